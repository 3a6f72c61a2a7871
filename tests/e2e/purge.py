#!/usr/bin/env python3
"""purge.py [KILLS]: a follower that comes back to a log whose beginning the others have deleted.

While it is down, the others delete expired segments because the tools ask for it (request 329). It
comes up by a snapshot and the entries after it, has the same state, and serves as leader. Then it
is killed with -9 KILLS times while such a snapshot is being installed. Then it comes back with a damaged
file of its log that the others have deleted, while only one of them is up. In the end no metric that
traffic moves is zero.
"""

import json
import pathlib
import random
import signal
import sys
import time

import configured as own
import cluster as e2e
import grpc
import log_files
import remoting

SEGMENT_BYTES = 1 << 20
SETTINGS = {
    "mappedFileSizeCommitLog": SEGMENT_BYTES,
    # A segment is expired as soon as it is full; it is deleted when somebody asks for it.
    "fileReservedTime": 0,
    # An hour in which the test does not run.
    "deleteWhen": f"{(time.localtime().tm_hour + 12) % 24:02d}",
    "flushIntervalCommitLog": 500,
}
GROUP = "e2e_purge"
QUEUES = 4
# Makes a snapshot of some hundred KB, so that its installation takes a while.
TOPICS = 200
TOPIC_QUEUES = 16
# Several segments.
LOAD = {"rate": 1000, "size": 8 << 10, "connections": 4, "in_flight": 8, "queues": QUEUES}
MESSAGES = 800

# Zero for good reasons after the traffic of this script: at rest, or nothing of the kind happened.
MAY_BE_ZERO = {
    "raftmq_connections_refused_total",
    "raftmq_disk_full",
    "raftmq_flush_oldest_seconds",
    "raftmq_held_bytes",
    "raftmq_held_requests",
    "raftmq_limit_reached_total",
    # Answers, and requests of a moment.
    "raftmq_memory_held_bytes",
    "raftmq_log_damages_total",
    "raftmq_log_repaired_bytes_total",
    "raftmq_log_repaired_ranges_total",
    "raftmq_parked_pulls",
    "raftmq_proposer_waiting_bytes",
    "raftmq_raft_learners",
    "raftmq_raft_refused_peers_total",
    "raftmq_raft_peer_lag_entries",
    "raftmq_raft_votes_withheld",
    # Of a process that was killed since; looked at when it happens.
    "raftmq_raft_snapshots_installed_total",
    "raftmq_sends_refused_disk_full_total",
}
# Families with labels: absent until something was counted.
MUST_BE_THERE = {
    "raftmq_connections",
    "raftmq_connections_accepted_total",
    "raftmq_forwards_total",
    "raftmq_registrations_total",
    "raftmq_requests_total",
}


def run(checks):
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with own.running_brokers(SETTINGS) as group:
        leader = group.await_leader()
        make_state(group, leader)
        first = send(group, "before")
        follower = next(name for name in group.all_nodes if name != leader)
        second = come_back(checks, group, follower, "snapshot", undisturbed)
        lead(checks, group, follower, second)
        for number in range(kills):
            moment = MOMENTS[number % len(MOMENTS)]
            come_back(checks, group, follower, f"kill {number + 1}, {moment.__doc__}", killed_at(moment))
        moved = (group.folder / f"{follower}.log").read_text(errors="replace").count(MOVED)
        print(f"{moved} of {kills} kills fell between the stored snapshot and the moved log")
        damaged(checks, group, follower)
        last = send(group, "after")
        check_readable(checks, group, last)
        check_metrics(checks, group)
        print(f"{len(first.acks())} messages were sent and deleted on the way")


def make_state(group, leader):
    """Topics, a group and offsets that a snapshot must carry."""
    address = group.nodes()[leader]["address"]
    connection = remoting.Connection(address, 30)
    for number in range(TOPICS):
        remoting.create_topic(address, f"topic_{number}_{'x' * 60}", TOPIC_QUEUES)
    connection.close()
    remoting.create_group(address, GROUP)
    for number in range(TOPICS):
        remoting.commit_offset(address, GROUP, f"topic_{number}_{'x' * 60}", number % TOPIC_QUEUES, 0)


def send(group, topic):
    """Messages for several segments."""
    load = e2e.Load(group, topic, **LOAD)
    with e2e.loads(load):
        e2e.await_that("messages to be sent", 120, lambda: load.acknowledged() > MESSAGES)
        load.finish()
    return load


def running(group, besides):
    """Names of the nodes that run."""
    return [name for name, node in group.nodes().items() if node["pid"] and name not in besides]


def purge(group, besides):
    """Asks the nodes to delete what is expired, and waits until they have."""
    for name in running(group, besides):
        before = group.status(name)["purgedIndex"] or 0
        remoting.ask(group.nodes()[name]["address"], remoting.DELETE_EXPIRED_COMMITLOG)
        e2e.await_that(
            f"{name} to delete expired segments",
            30,
            lambda: ((group.status(name) or {}).get("purgedIndex") or 0) > before,
        )


def undisturbed(group, follower):
    """A start, and nothing else."""
    group.restart(follower)


def come_back(checks, group, follower, name, bring_back):
    """The follower stops, the others delete what it would need, it comes back."""
    group.end([follower], signal.SIGTERM)
    leader = group.await_leader(besides=(follower,))
    # Its last index is not asked for: what is sent now is what it cannot have.
    begin = group.status(leader)["lastIndex"]
    topic = f"{name.split(',')[0].replace(' ', '_')}_sent"
    load = send(group, topic)
    commit(group, leader, topic)
    purge(group, (follower,))
    purged = group.status(leader)["purgedIndex"]
    checks.check(purged > begin, f"{name}: the others deleted up to {purged}", f"{follower} has {begin}")
    # What comes by entries after the snapshot.
    tail = remoting.Client([node["address"] for node in group.nodes().values() if node["pid"]])
    e2e.await_that("a message", 30, lambda: tail.try_send("tail", 0, f"{time.time_ns():032X}")["code"] == 0)
    bring_back(group, follower)
    group.await_caught_up(follower)
    checks.check(not group.deaths, f"{name}: no broker has ended by itself", group.deaths)
    installed = group.metric(follower, "raftmq_raft_snapshots_installed_total")
    log = pathlib.Path(group.folder / f"{follower}.log").read_text(errors="replace")
    checks.check(
        installed > 0 or bring_back is not undisturbed,
        f"{name}: {follower} came up by a snapshot ({installed:.0f} since its start)",
        log[-2000:],
    )
    compare(checks, group, follower, name, topic)
    return load


def damaged(checks, group, follower):
    """The follower comes back with a damaged file that the others have deleted; one of them is away."""
    send(group, "damaged_before")
    group.await_all_equal()
    group.end([follower], signal.SIGTERM)
    leader = group.await_leader(besides=(follower,))
    load = send(group, "damaged_sent")
    purge(group, (follower,))
    third = next(name for name in group.all_nodes if name not in (leader, follower))
    log = log_files.Log(group.all_nodes[follower]["dataDir"])
    # Neither the file where its log begins nor the one that it wrote last.
    base = log.segments()[1]
    log.flip(base, base + 9)
    group.end([third], signal.SIGTERM)
    group.restart(follower)
    e2e.await_that(f"{follower} to start", 60, lambda: group.status(follower))
    group.await_caught_up(follower)
    text = (group.folder / f"{follower}.log").read_text(errors="replace")
    checks.check(
        PURGED in text and not group.deaths and len(log.segments()) > 0,
        f"damage at {base} that others have deleted: {follower} starts behind it",
        text[-2000:],
    )
    withheld = group.metric(follower, "raftmq_raft_votes_withheld")
    checks.check(withheld == 0, f"{follower} may vote, it has lost nothing", withheld)
    later = send(group, "damaged_led")
    group.restart(third)
    group.await_caught_up(third)
    for acknowledged in (load, later):
        check_readable(checks, group, acknowledged)


def commit(group, leader, topic):
    """Offsets of a topic, in every queue."""
    address = group.nodes()[leader]["address"]
    for queue_id in range(QUEUES):
        _, end = remoting.queue_bounds(address, topic, queue_id)
        remoting.commit_offset(address, GROUP, topic, queue_id, end - 1)


def state_of(group, name, topic):
    """What a node knows by itself: topics, offsets, bounds of the queues that can be asked for."""
    address = group.nodes()[name]["address"]
    topics = json.loads(remoting.ask(address, remoting.GET_ALL_TOPICS, timeout=20)[1])
    offsets = json.loads(remoting.ask(address, remoting.GET_ALL_CONSUMER_OFFSETS, timeout=20)[1])
    queues = {"topic": topic}
    ends = [
        int(remoting.ask(address, remoting.GET_MIN_OFFSET, {**queues, "queueId": queue_id})[0]["extFields"]["offset"])
        for queue_id in range(QUEUES)
    ]
    return {"topics": topics["topicConfigTable"], "offsets": offsets["offsetTable"], "minimums": ends}


def compare(checks, group, follower, when, topic):
    """The follower knows what the leader knows."""
    leader = group.await_leader()
    expected, found = state_of(group, leader, topic), state_of(group, follower, topic)
    for part in ("topics", "offsets"):
        checks.check(
            expected[part] == found[part],
            f"{when}: {follower} has the {len(expected[part])} {part} of {leader}",
            "they differ",
        )
    # It may have less than the leader, never more: where its log begins is its own affair.
    checks.check(
        all(own_min >= leader_min for own_min, leader_min in zip(found["minimums"], expected["minimums"])),
        f"{when}: queues of {follower} begin at {found['minimums']}",
        f"those of {leader} at {expected['minimums']}",
    )


def lead(checks, group, follower, load):
    """The leader role moves to the follower, which then answers everything by itself."""
    old = group.await_leader()
    address = group.nodes()[old]["address"]
    before = [remoting.queue_bounds(address, load.topic, queue_id) for queue_id in range(QUEUES)]
    node_id = group.status(follower)["nodeId"]
    grpc.transfer_leader(group.nodes()[old]["httpAddress"], node_id)
    e2e.await_that(f"{follower} to lead", e2e.LEADER_TIMEOUT, lambda: group.leader() == follower)
    address = group.nodes()[follower]["address"]
    after = [remoting.queue_bounds(address, load.topic, queue_id) for queue_id in range(QUEUES)]
    checks.check(
        [end for _, end in before] == [end for _, end in after],
        f"{follower} leads: queues end where they ended ({[end for _, end in after]})",
        f"{before} before",
    )
    committed = [remoting.committed_offset(address, GROUP, load.topic, queue_id) for queue_id in range(QUEUES)]
    checks.check(
        committed == [end - 1 for _, end in before],
        f"{follower} leads: committed offsets are {committed}",
        before,
    )
    check_readable(checks, group, load)
    check_readable(checks, group, send(group, "led"))


def check_readable(checks, group, load):
    """Each replica holds acknowledged messages from where its queues begin, equal and dense."""
    group.await_all_equal()
    acks = {(queue_id, offset): key for key, queue_id, offset in load.acks()}
    for name, node in group.nodes().items():
        received = e2e.consume_all(group, load.topic, load.queues, node["address"])
        content = {(queue_id, offset): key for key, queue_id, offset in received}
        problems = [place for place in content if acks.get(place) not in (None, content[place])]
        for queue_id in range(load.queues):
            offsets = sorted(offset for found, offset in content if found == queue_id)
            end = max(offset for found, offset in acks if found == queue_id) + 1
            first = offsets[0] if offsets else end
            begin, _ = remoting.queue_bounds(node["address"], load.topic, queue_id)
            if first != begin or [offset for offset in offsets if offset < end] != list(range(first, end)):
                problems.append((queue_id, begin, first, end, len(offsets)))
        checks.check(
            not problems and content,
            f"{load.topic} at {name}: {len(content)} of {len(acks)} messages are there, dense up to the end",
            problems[:5] or "none",
        )


def killed_at(moment):
    """kill -9 at a moment of the installation, then a start for good."""

    def bring_back(group, follower):
        checkpoints = pathlib.Path(group.all_nodes[follower]["dataDir"]) / "store" / "checkpoint"
        before = {path.name for path in checkpoints.iterdir()}
        group.restart(follower)
        end = time.monotonic() + 10
        while time.monotonic() < end and not moment({path.name for path in checkpoints.iterdir()} - before):
            # Short: the moments are.
            time.sleep(0.0002)
        group.kill(follower)
        group.restart(follower)

    return bring_back


def being_written(names):
    """while the snapshot is stored"""
    return any(name.endswith(".tmp") for name in names)


def stored(names):
    """when the snapshot is stored"""
    return any(name.startswith("checkpoint-") and not name.endswith(".tmp") for name in names)


def by_chance(_names):
    """at some moment"""
    return random.random() < 0.001


# The log is moved to the snapshot just after it was stored, which is the moment worth most.
MOMENTS = (stored, being_written, stored, by_chance)
PURGED = "begin the log at a checkpoint behind it"
MOVED = "move the log to the installed snapshot"


def check_metrics(checks, group):
    """No metric of a node is zero everywhere that traffic moves."""
    totals = {}
    for name in group.all_nodes:
        for series, value in group.metrics(name):
            family = series.split("{")[0]
            totals[family] = max(totals.get(family, 0), value)
    zero = sorted(family for family, value in totals.items() if value == 0 and family not in MAY_BE_ZERO)
    zero = [family for family in zero if not family.endswith("_bucket")]
    zero += sorted(MUST_BE_THERE - totals.keys())
    checks.check(not zero, f"{len(totals)} metric families, none is zero that should not be", zero)
    begin = [group.metric(name, "raftmq_log_first_physical_offset") for name in group.all_nodes]
    checks.check(all(begin), f"the logs begin at {begin}", "a log was never purged")


if __name__ == "__main__":
    e2e.main(run)
