#!/usr/bin/env python3
"""power_cut.py [ROUNDS] [--async]: the power of all brokers is cut at random moments under load.

Each broker has an ext4 file system of its own in an image. A cut freezes all brokers and copies the
images: that is what has reached the disks, and nothing that only stands in the page cache. Then all
brokers are killed, and the copies are mounted in place of the images and the brokers started on
them. With the default flush nothing acknowledged is lost. With --async (flushDiskType=ASYNC_FLUSH)
a cut of all brokers may lose what was acknowledged since the last sync; how much is printed. Needs
root, for the mounts, which nobody else sees.
"""

import pathlib
import random
import signal
import sys
import time

import cluster as e2e
import configured as own
import remoting

DISK_MIB = 512
SETTINGS = {"mappedFileSizeCommitLog": 16 << 20}
ASYNC = {"flushDiskType": "ASYNC_FLUSH", "flushIntervalCommitLog": 500}

# Time under load before a cut; a random part is added. Unit: seconds.
CALM = 0.3
CALM_RANDOM = 1.0
# What an acknowledgement may be ahead of the disk with ASYNC_FLUSH: its interval, and as long again
# for the sync itself on a busy machine. Unit: seconds.
LOSS_MAX = 1.0


class Disks:
    """One image for each broker."""

    def __init__(self, group):
        self.folders = {name: pathlib.Path(node["dataDir"]) for name, node in group.all_nodes.items()}
        self.mounted = []

    def __enter__(self):
        own.private_mounts()
        for name, folder in self.folders.items():
            folder.mkdir(parents=True)
            image = self.image(name)
            with open(image, "wb") as file:
                file.truncate(DISK_MIB << 20)
            own.run_tool("mkfs.ext4", "-q", "-m", "0", str(image))
            self.mount(name)
        return self

    def __exit__(self, *_):
        for folder in self.mounted:
            own.run_tool("umount", "--lazy", str(folder))

    def image(self, name):
        """The file that is the disk of a broker."""
        return self.folders[name].with_suffix(".img")

    def mount(self, name):
        """Attaches the disk."""
        own.mount("-o", "loop", str(self.image(name)), str(self.folders[name]))
        self.mounted.append(self.folders[name])

    def copy(self, name):
        """Copies what has reached the disk."""
        image = self.image(name)
        own.run_tool("cp", "--sparse=always", str(image), str(image.with_suffix(".cut")))

    def swap(self, name):
        """Puts the copy in place of the disk."""
        own.run_tool("umount", str(self.folders[name]))
        self.mounted.remove(self.folders[name])
        image = self.image(name)
        image.with_suffix(".cut").replace(image)
        self.mount(name)


def run(checks):
    is_async = "--async" in sys.argv
    numbers = [argument for argument in sys.argv[1:] if argument.isdigit()]
    rounds = int(numbers[0]) if numbers else 3
    with e2e.temporary_folder() as folder:
        group = own.Brokers(folder, {**SETTINGS, **(ASYNC if is_async else {})})
        with Disks(group) as disks:
            try:
                group.start()
                loaded(checks, group, disks, rounds, is_async)
            finally:
                group.stop()


def loaded(checks, group, disks, rounds, is_async):
    """All cuts, and what they left."""
    addresses = group.addresses()
    prober = remoting.Prober(addresses, "probe")
    ordered = e2e.Load(group, "ordered", in_flight=1)
    pipelined = e2e.Load(group, "pipelined", in_flight=32)
    cuts = []
    with e2e.loads(ordered, pipelined):
        prober.start()
        for number in range(rounds):
            cuts.append(cut(group, disks, prober))
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


def cut(group, disks, prober):
    """One cut; when it was, and the seconds from the start to the first acknowledgement."""
    time.sleep(CALM + random.random() * CALM_RANDOM)
    names = list(group.all_nodes)
    group.signal(names, signal.SIGSTOP)
    moment = time.monotonic()
    for name in names:
        disks.copy(name)
    group.kill(*names)
    for name in names:
        disks.swap(name)
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
