#!/usr/bin/env python3
"""power_cut.py [ROUNDS] [--async]: the power of all brokers is cut at random moments under load.

Then all are started again on what had reached their disks (`disks.Images`). With the default flush nothing acknowledged is lost. With --async (flushDiskType=ASYNC_FLUSH)
a cut of all brokers may lose what was acknowledged since the last sync; how much is printed. Needs
root, for the mounts, which nobody else sees.
"""

import random
import sys
import time

import cluster as e2e
import configured as own
import disks
import remoting

SETTINGS = {"mappedFileSizeCommitLog": 16 << 20}
ASYNC = {"flushDiskType": "ASYNC_FLUSH", "flushIntervalCommitLog": 500}

# Time under load before a cut; a random part is added. Unit: seconds.
CALM = 0.3
CALM_RANDOM = 1.0
# What an acknowledgement may be ahead of the disk with ASYNC_FLUSH: its interval, and as long again
# for the sync itself on a busy machine. Unit: seconds.
LOSS_MAX = 1.0


def run(checks):
    is_async = "--async" in sys.argv
    numbers = [argument for argument in sys.argv[1:] if argument.isdigit()]
    rounds = int(numbers[0]) if numbers else 3
    with e2e.temporary_folder() as folder:
        group = own.Brokers(folder, {**SETTINGS, **(ASYNC if is_async else {})})
        with disks.Images(group) as images:
            try:
                group.start()
                loaded(checks, group, images, rounds, is_async)
            finally:
                group.stop()


def loaded(checks, group, images, rounds, is_async):
    """All cuts, and what they left."""
    addresses = group.addresses()
    prober = remoting.Prober(addresses, "probe")
    ordered = e2e.Load(group, "ordered", in_flight=1)
    pipelined = e2e.Load(group, "pipelined", in_flight=32)
    cuts = []
    with e2e.loads(ordered, pipelined):
        prober.start()
        for number in range(rounds):
            cuts.append(cut(group, images, prober))
            if not is_async:
                print(f"cut {number + 1}: first acknowledgement {cuts[-1][1]:.2f} s after the start", flush=True)
        time.sleep(CALM)
        prober.stop()
        for load in (ordered, pipelined):
            report = load.finish()
            print(f"{load.topic}: {report['messages']} sent, failures {report['failures']}")
    print(e2e.gap_line("from the start to the first acknowledgement", [seconds for _, seconds in cuts]))
    checks.check(not group.deaths, f"{rounds} cuts: every broker came back", group.deaths)
    group.await_all_equal()
    if is_async:
        judge_loss(checks, group, prober, [moment for moment, _ in cuts])
        return
    for load, in_order in ((ordered, True), (pipelined, False)):
        e2e.check_topic(checks, group, load.topic, load.queues, load.acks(), in_order)
    e2e.check_topic(checks, group, prober.topic, 4, prober.acks, True)


def cut(group, images, prober):
    """One cut; when it was, and the seconds from the start to the first acknowledgement."""
    time.sleep(CALM + random.random() * CALM_RANDOM)
    names = list(group.all_nodes)
    moment = images.cut_power(names)
    begin = time.monotonic()
    for name in names:
        group.restart(name)
    e2e.await_that("an acknowledgement", e2e.LEADER_TIMEOUT, lambda: prober.times and prober.times[-1] > begin)
    first = next(at for at in prober.times if at > begin)
    group.await_ready()
    return moment, first - begin


def judge_loss(checks, group, prober, cuts):
    """What of a sender's acknowledged messages is gone, and how old it was when the power went."""
    received = e2e.consume_all(group, prober.topic, 4, group.addresses()[0])
    content = {(queue_id, offset): key for key, queue_id, offset in received}
    ages = []
    for (key, queue_id, offset), at in zip(prober.acks, prober.times):
        if content.get((queue_id, offset)) != key:
            ages.append(min((moment - at for moment in cuts if moment >= at), default=float("inf")))
    print(f"ASYNC_FLUSH: {len(ages)} of {len(prober.acks)} acknowledged messages are gone after {len(cuts)} cuts")
    if ages:
        print(f"ASYNC_FLUSH: the oldest was acknowledged {1000 * max(ages):.0f} ms before the power went")
    checks.check(
        max(ages, default=0) < LOSS_MAX, f"ASYNC_FLUSH: nothing older than {LOSS_MAX} s was lost", f"{max(ages, default=0):.2f} s"
    )


if __name__ == "__main__":
    e2e.main(run)
