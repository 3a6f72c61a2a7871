#!/usr/bin/env python3
"""cancelled.py: calls of the admin service whose callers go away while they run.

A follower is paused (SIGSTOP), the leader is asked to hand over to it, or to go on with it alone,
and the connection is closed after half a second. After the follower goes on, and in the first case
also before, sends must be taken; a change of the voters that was begun must be finished.
"""

import os
import signal
import socket
import time

import cluster as e2e
import grpc
import remoting

# When the caller goes away. Unit: seconds.
PATIENCE = 0.5
# How long the follower is paused. Unit: seconds.
PAUSE = 3
# What a group may take to take messages again. Unit: seconds.
WRITABLE_MAX = 10


def run(checks):
    with e2e.running_cluster() as cluster:
        probers = [remoting.Prober(cluster.addresses(), f"cancelled{place}", place) for place in range(3)]
        for prober in probers:
            prober.start()
        e2e.await_that(
            "all senders to begin", e2e.LEADER_TIMEOUT, lambda: all(len(prober.times) > 9 for prober in probers)
        )
        one_call(checks, cluster, probers, "a hand-over", hand_over, True)
        before = voters(cluster)
        one_call(checks, cluster, probers, "a change of the voters", take_out, False)
        after = e2e.await_that("one set of voters", WRITABLE_MAX, lambda: settled(cluster))
        checks.check(len(after) == len(before) - 1, "the change of the voters was finished", after)
        take_in(cluster, before)
        for prober in probers:
            prober.stop()
        cluster.await_all_equal()
        for prober in probers:
            e2e.check_topic(checks, cluster, prober.topic, 4, prober.acks, True)


def one_call(checks, cluster, probers, name, call, writable):
    """Makes a call that needs a paused follower, and drops it. `writable`: sends do not need it."""
    leader = cluster.await_leader()
    target = next(node for node in sorted(cluster.nodes()) if node != leader)
    pid = cluster.nodes()[target]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        # So that the follower lacks something.
        await_sends(f"{name}: sends without the follower", probers)
        try:
            call(cluster, cluster.nodes()[leader]["httpAddress"], target)
            checks.check(False, f"{name}: it ran when its caller went away")
        except (socket.timeout, TimeoutError):
            checks.check(True, f"{name}: it ran when its caller went away")
        except remoting.Failed as failure:
            # Refused at once is as good.
            print(f"{name}: {failure}")
        if writable:
            await_sends(f"{name}: sends while the follower is paused", probers)
        time.sleep(PAUSE)
    finally:
        os.kill(pid, signal.SIGCONT)
    await_sends(f"{name}: sends after it goes on", probers)
    time.sleep(PAUSE)
    await_sends(f"{name}: sends in the end", probers)
    checks.check(True, f"{name}: sends go on")


def hand_over(_cluster, leader, target):
    """Asks the leader to hand over to a node."""
    grpc.answer(leader, "TransferLeader", grpc.varint_field(1, raft_id(target)), PATIENCE)


def take_out(cluster, leader, target):
    """Asks the leader to go on with one other node alone: only with its word the change is made."""
    stay = [raft_id(cluster.await_leader()), raft_id(target)]
    message = b"".join(grpc.varint_field(1, voter) for voter in stay)
    grpc.answer(leader, "ChangeMembership", message, PATIENCE)


def take_in(cluster, wanted):
    """Takes the node that was taken out into the group again."""
    leader = cluster.nodes()[cluster.await_leader()]["httpAddress"]
    for node in cluster.nodes().values():
        status = e2e.http_status(node["httpAddress"])
        if status["nodeId"] not in voters(cluster):
            grpc.add_learner(leader, status["nodeId"], status["addresses"]["raft"], status["incarnation"])
    grpc.change_membership(leader, wanted)


def raft_id(name):
    """The Raft id of a node: one more than in its name."""
    return int(name.lstrip("n")) + 1


def voters(cluster):
    """Ids of the voters, as the leader says."""
    status = e2e.http_status(cluster.nodes()[cluster.await_leader()]["httpAddress"])
    return [member["id"] for member in status["voters"]]


def settled(cluster):
    """The voters, when no change is half done."""
    status = e2e.http_status(cluster.nodes()[cluster.await_leader()]["httpAddress"])
    return None if status["joint"] else [member["id"] for member in status["voters"]]


def await_sends(what, probers):
    """Waits until each sender got an answer to a message sent from now on."""
    begin = time.monotonic()
    e2e.await_that(
        what, WRITABLE_MAX, lambda: all(prober.times[-2] > begin for prober in probers if len(prober.times) > 1)
    )


if __name__ == "__main__":
    e2e.main(run)
