#!/usr/bin/env python3
"""transfer.py [ROUNDS]: the leader hands over, asked through the admin service and by SIGTERM.

Asked to transfer: no send fails, not even for a sender that never tries twice. SIGTERM: the leader
hands over before it stops; no send fails at all replicas. Prints the gaps.
"""

import os
import signal
import sys
import time

import cluster as e2e
import grpc
import remoting

# Time between two transfers. Unit: seconds.
CALM = 0.5


def run(checks):
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with e2e.running_cluster() as cluster:
        loaded_rounds(checks, cluster, rounds, by_request, "asked")
        loaded_rounds(checks, cluster, rounds, by_sigterm, "stopped")
        cluster.await_all_equal()


def loaded_rounds(checks, cluster, rounds, hand_over, name):
    """Rounds of one kind under load, then what the load saw."""
    strict = hand_over is by_request
    probers = [remoting.Prober(cluster.addresses(), f"{name}{place}", place) for place in range(3)]
    load = e2e.Load(cluster, f"{name}_load", in_flight=1)
    gaps = []
    with e2e.loads(load):
        for prober in probers:
            prober.start()
        # A gap needs an acknowledgement before it.
        e2e.await_that(
            "all senders to begin", e2e.LEADER_TIMEOUT, lambda: all(len(prober.times) > 9 for prober in probers)
        )
        for number in range(rounds):
            time.sleep(CALM)
            begin = time.monotonic()
            old, new = hand_over(checks, cluster)
            e2e.await_that("all senders to go on", e2e.LEADER_TIMEOUT, lambda: all_go_on(probers, begin))
            time.sleep(CALM)
            own = [prober.gap(begin, time.monotonic()) for prober in probers]
            gaps += own
            shown = " ".join(f"{1000 * gap:.0f}" for gap in own)
            print(f"{name}, round {number + 1}: {old} to {new}, gaps {shown} ms")
            checks.check(new != old, f"{name}, round {number + 1}: another node leads")
            if not strict:
                cluster.restart(old)
                cluster.await_caught_up(old)
        for prober in probers:
            prober.stop()
        report = load.finish()
    print(e2e.gap_line(f"{name}: write gap", gaps))
    failed = [reasons for prober in probers for reasons in prober.failed]
    checks.check(not failed, f"{name}: no send failed at all replicas", f"{len(failed)}: {failed[:2]}")
    vain = [reason for prober in probers for reason in prober.vain]
    if strict:
        checks.check(not vain, f"{name}: no attempt failed", f"{len(vain)}: {vain[:3]}")
        checks.check(
            report["failed"] == 0,
            f"{name}: no send of the load failed ({report['messages']} sent)",
            report["failures"],
        )
    else:
        print(f"{name}: attempts in vain {e2e.summary(vain)}, failures of the load {report['failures']}")
    e2e.check_topic(checks, cluster, load.topic, load.queues, load.acks(), True)
    for prober in probers:
        e2e.check_topic(checks, cluster, prober.topic, 4, prober.acks, True)


def by_request(checks, cluster):
    """The leader is asked to transfer; returns its name and that of the new one."""
    old = cluster.await_leader()
    grpc.transfer_leader(cluster.nodes()[old]["httpAddress"])
    new = e2e.await_that("the new leader", e2e.LEADER_TIMEOUT, lambda: other_leader(cluster, old))
    return old, new


def by_sigterm(checks, cluster):
    """The leader is told to stop; returns its name and that of the new one."""
    old = cluster.await_leader()
    os.kill(cluster.nodes()[old]["pid"], signal.SIGTERM)
    cluster.await_gone([old])
    return old, cluster.await_leader(besides=(old,))


def other_leader(cluster, old):
    """The leader, if it is another node than `old`."""
    leader = cluster.leader()
    return leader if leader != old else None


def all_go_on(probers, begin):
    """Whether each sender got an answer to a message sent after `begin`."""
    return all(len(prober.times) > 1 and prober.times[-2] > begin for prober in probers)


if __name__ == "__main__":
    e2e.main(run)
