#!/usr/bin/env python3
"""crash_all.py [ROUNDS]: kill -9 of all three brokers at once under load, then all restarted.

After all rounds: nothing acknowledged is lost, offsets are dense, replicas equal, order kept.
Prints how long it took until a message was acknowledged again.
"""

import sys
import time

import cluster as e2e
import remoting

# Time under load before the next crash. Unit: seconds.
CALM = 1.0


def run(checks):
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with e2e.running_cluster() as cluster:
        addresses = cluster.addresses()
        prober = remoting.Prober(addresses, "probe")
        watcher = remoting.OffsetWatcher(addresses, "probe", "e2e_watcher")
        ordered = e2e.Load(cluster, "ordered", in_flight=1)
        pipelined = e2e.Load(cluster, "pipelined", in_flight=32)
        with e2e.loads(ordered, pipelined):
            prober.start()
            watcher.start()
            back = [crash(checks, cluster, prober, number) for number in range(rounds)]
            time.sleep(CALM)
            prober.stop()
            watcher.stop()
            for load in (ordered, pipelined):
                report = load.finish()
                print(f"{load.topic}: {report['messages']} sent, failures {report['failures']}")
        print(e2e.gap_line("from the restart to the first acknowledgement", back))
        checks.check(
            not watcher.back and watcher.seen > 0,
            f"committed offset never went back ({watcher.answers} answers, at {watcher.seen} in the end)",
            f"{len(watcher.back)} times, {watcher.back[:3]}",
        )
        cluster.await_all_equal()
        for load, in_order in ((ordered, True), (pipelined, False)):
            e2e.check_topic(checks, cluster, load.topic, load.queues, load.acks(), in_order)
        e2e.check_topic(checks, cluster, prober.topic, 4, prober.acks, True)


def crash(checks, cluster, prober, number):
    """One round; the time from the restart to the first acknowledgement, in seconds."""
    time.sleep(CALM)
    names = list(cluster.nodes())
    acknowledged = len(prober.acks)
    cluster.kill(*names)
    begin = time.monotonic()
    for name in names:
        cluster.restart(name)
    e2e.await_that(
        "an acknowledgement",
        e2e.LEADER_TIMEOUT,
        lambda: prober.times and prober.times[-1] > begin,
    )
    first = next(moment for moment in prober.times if moment > begin)
    leader = cluster.await_leader()
    for name in names:
        if name != leader:
            cluster.await_caught_up(name)
    print(f"round {number + 1}: all killed after {acknowledged} probes, first acknowledgement after {first - begin:.2f} s")
    checks.check(True, f"round {number + 1}: the cluster is back, {leader} leads")
    return first - begin


if __name__ == "__main__":
    e2e.main(run)
