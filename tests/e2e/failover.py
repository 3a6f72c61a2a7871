#!/usr/bin/env python3
"""failover.py [ROUNDS]: kill -9 of the leader under load, a restart, and that again.

After all rounds: every acknowledged message is at its acknowledged offset on every replica,
offsets are dense, replicas equal, each sender's order kept, no committed offset ever went back.
Prints the gap of a sender that knows all replicas.
"""

import sys
import time

import cluster as e2e
import remoting

# Time in which a restarted cluster works before the next leader is killed. Unit: seconds.
CALM = 0.5


def run(checks):
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with e2e.running_cluster() as cluster:
        addresses = cluster.addresses()
        # One sender for each replica: it makes a difference whether it loses its connection.
        probers = [remoting.Prober(addresses, f"probe{place}", place) for place in range(3)]
        watcher = remoting.OffsetWatcher(addresses, "probe0", "e2e_watcher")
        ordered = e2e.Load(cluster, "ordered", in_flight=1)
        pipelined = e2e.Load(cluster, "pipelined", in_flight=32)
        with e2e.loads(ordered, pipelined):
            threads = [*probers, watcher]
            for thread in threads:
                thread.start()
            # A gap needs an acknowledgement before it.
            e2e.await_that(
                "all senders to begin", e2e.LEADER_TIMEOUT, lambda: all(len(prober.times) > 9 for prober in probers)
            )
            gaps = [], []
            for number in range(rounds):
                kill_leader(checks, cluster, probers, number, gaps)
            for thread in threads:
                thread.stop()
            for load in (ordered, pipelined):
                report = load.finish()
                print(f"{load.topic}: {report['messages']} sent, failures {report['failures']}")
        print(e2e.gap_line("write gap, sender on the killed leader", gaps[0]))
        print(e2e.gap_line("write gap, sender on another replica", gaps[1]))
        checks.check(
            not watcher.back and watcher.seen > 0,
            f"committed offset never went back ({watcher.answers} answers, at {watcher.seen} in the end)",
            f"{len(watcher.back)} times, {watcher.back[:3]}",
        )
        cluster.await_all_equal()
        for load, in_order in ((ordered, True), (pipelined, False)):
            e2e.check_topic(checks, cluster, load.topic, load.queues, load.acks(), in_order)
        for prober in probers:
            print(f"{prober.topic}: vain attempts {e2e.summary(prober.vain)}")
            e2e.check_topic(checks, cluster, prober.topic, 4, prober.acks, True)


def kill_leader(checks, cluster, probers, number, gaps):
    """One round; adds the gaps of the senders that were and were not connected to the leader."""
    leader = cluster.await_leader()
    address = cluster.nodes()[leader]["address"]
    was_there = [prober.client.address() == address for prober in probers]
    begin = time.monotonic()
    cluster.kill(leader)
    new = cluster.await_leader(besides=(leader,))
    e2e.await_that("all senders to go on", e2e.LEADER_TIMEOUT, lambda: all_sent_since(probers, begin))
    elected = time.monotonic()
    time.sleep(CALM)
    end = time.monotonic()
    cluster.restart(leader)
    cluster.await_caught_up(leader)
    own = [prober.gap(begin, end) for prober in probers]
    for gap, there in zip(own, was_there):
        gaps[0 if there else 1].append(gap)
    print(
        f"round {number + 1}: {leader} killed, {new} leads after {elected - begin:.2f} s, gaps "
        f"{' '.join(f'{1000 * gap:.0f}' for gap in own)} ms, caught up {time.monotonic() - end:.2f} s after its restart"
    )
    checks.check(new != leader, f"round {number + 1}: another node leads, the old leader follows")


def all_sent_since(probers, begin):
    """Whether each sender got an acknowledgement for a message that was sent after `begin`."""
    # The second one after that moment was surely sent after it.
    return all(len(prober.times) > 1 and prober.times[-2] > begin for prober in probers)


if __name__ == "__main__":
    e2e.main(run)
