#!/usr/bin/env python3
"""repair.py [ROUNDS]: damaged logs mend from peers, with nobody's help.

All brokers are stopped and damaged at disjoint places: bits in payloads and headers, blocks of
zeros, a file that is gone. Each mends from the others, nothing acknowledged is missing anywhere, and
the files are what they were. Then sealed segments are damaged while the brokers run: no pull ever
brings other bytes than before, and the files are mended, also where nobody reads but the scrub. At
last a node loses the end of its log with an acknowledged message in it: it helps nobody into office
who does not have the message either, and the same without its mark loses it.
"""

import random
import shutil
import signal
import sys
import time

import configured as own
import cluster as e2e
import log_files
import remoting

SETTINGS = {
    "mappedFileSizeCommitLog": 2 << 20,
    "commitLogTailBytes": 1 << 20,
    # Nothing is deleted in between.
    "fileReservedTime": 240,
}
QUEUES = 4
LOAD = {"rate": 600, "size": 4 << 10, "connections": 4, "in_flight": 4, "queues": QUEUES}
# Several segments, the last of them well filled.
MESSAGES = 2200
# Every so many entries one is damaged, at one node after the other.
DAMAGE_EVERY = 12
# How often all of them are killed while they mend.
KILLS = 3
# How long pulls go on while damage is being mended, at most. Unit: seconds.
MEND_TIMEOUT = 30
# How long two nodes of three are watched that must not elect. Unit: seconds.
NO_LEADER = 4
LOST = "lost"


def run(checks):
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    with own.running_brokers(SETTINGS) as group:
        for number in range(rounds):
            load = send(group, f"load_{number}")
            at_start(checks, group, load)
            while_running(checks, group, load)
            by_scrub(checks, group)
            for_a_follower_behind(checks, group, number)
            follower_without_end(checks, group)
        lost_end(checks, group)


def send(group, topic):
    """Messages for several segments."""
    load = e2e.Load(group, topic, **LOAD)
    with e2e.loads(load):
        e2e.await_that("messages to be sent", 120, lambda: load.acknowledged() > MESSAGES)
        load.finish()
    group.await_all_equal()
    return load


def logs(group):
    """The log of each node."""
    return {name: log_files.Log(node["dataDir"]) for name, node in group.all_nodes.items()}


def mended(group, name):
    """Ranges and bytes a node has mended since its start."""
    return tuple(int(group.metric(name, f"raftmq_log_repaired_{what}_total")) for what in ("ranges", "bytes"))


def mended_in_log(group, name):
    """Ranges a node has mended according to its log, over all its lives."""
    text = (group.folder / f"{name}.log").read_text(errors="replace")
    return text.count("mended a damaged range")


def stop_all(group):
    """Stops all nodes in order, so that everything is on their disks."""
    group.end(list(group.processes), signal.SIGTERM)


def at_start(checks, group, load):
    """All three are damaged at different places, and start."""
    stop_all(group)
    files = logs(group)
    names = list(files)
    entries = {name: log.entries() for name, log in files.items()}
    shared = min(len(found) for found in entries.values()) - 2
    first = entries[names[0]]
    assert all(found[:shared] == first[:shared] for found in entries.values()), "equal logs"
    damages = {name: 0 for name in names}
    told = {name: mended_in_log(group, name) for name in names}
    for number in range(0, shared, DAMAGE_EVERY):
        name = names[number // DAMAGE_EVERY % len(names)]
        base, address, entry = first[number]
        log = files[name]
        kind = random.choice(("payload", "header", "zeros"))
        if kind == "payload" and len(entry) > log_files.HEADER_BYTES:
            log.flip(base, address + random.randrange(log_files.HEADER_BYTES, len(entry)))
        elif kind == "zeros":
            log.write(base, address, bytes(min(len(entry), 4096)))
        else:
            log.flip(base, address + random.randrange(log_files.HEADER_BYTES))
        damages[name] += 1
    # One of them has no file any more for a segment in which the others have damage.
    gone = files[names[0]].segments()[1]
    files[names[0]].path(gone).unlink()
    print(f"damaged entries {damages}, and {names[0]} without {gone:020d}", flush=True)
    for _ in range(KILLS):
        for name in names:
            group.restart(name)
        time.sleep(random.uniform(0.05, 0.4))
        group.kill(*group.processes)
    for name in names:
        group.restart(name)
    group.await_ready()
    checks.check(not group.deaths, "all brokers are ready again, nobody helped", group.deaths)
    for name in names:
        # What a checkpoint covers is not read by a start; the scrub comes to it.
        e2e.await_that(f"{name} to be whole", MEND_TIMEOUT, lambda: is_whole(files[name], first[:shared]))
        found = files[name].entries()[:shared]
        checks.check(found == first[:shared], f"{name} has the {shared} entries it had, byte by byte", len(found))
        count = mended_in_log(group, name) - told[name]
        last = mended(group, name)[0]
        checks.check(
            count > damages[name] // 2,
            f"{name} mended {count} ranges, {last} of them after the last kill",
            damages,
        )
    check_equal(checks, group, "after the start")
    e2e.check_topic(checks, group, load.topic, load.queues, load.acks(), False)


def check_equal(checks, group, when):
    """The logs of all nodes are the same bytes as far as all of them have them."""
    group.await_all_equal()
    contents = [log.content() for log in logs(group).values()]
    common = min(len(content) for content in contents)
    same = all(content[:common] == contents[0][:common] for content in contents)
    checks.check(same and common > 0, f"{when}: the logs of all replicas are equal, {common} bytes", "they differ")


def records(address, topic):
    """Bytes of every message of a topic at one replica, by queue and offset; refused pulls."""
    found, refused = {}, 0
    connection = remoting.Connection(address, 30)
    for queue_id in range(QUEUES):
        _, end = remoting.queue_bounds(address, topic, queue_id)
        offset = 0
        until = time.monotonic() + MEND_TIMEOUT
        while offset < end and time.monotonic() < until:
            code, body = remoting.pull(connection, topic, queue_id, offset)
            if code != remoting.SUCCESS:
                refused += 1
                time.sleep(0.02)
                continue
            at = 0
            while at < len(body):
                size = int.from_bytes(body[at : at + 4], "big")
                offset = int.from_bytes(body[at + 20 : at + 28], "big")
                found[(queue_id, offset)] = body[at : at + size]
                at += size
            offset += 1
    connection.close()
    return found, refused


def while_running(checks, group, load):
    """Sealed segments of all nodes are damaged under their feet, and read."""
    files = logs(group)
    address = {name: node["address"] for name, node in group.nodes().items()}
    expected, refused = records(next(iter(address.values())), load.topic)
    checks.check(len(expected) >= MESSAGES and not refused, f"{len(expected)} messages are read before", refused)
    places, topic = {}, load.topic.encode()
    for number, (name, log) in enumerate(files.items()):
        # Of this topic, so that they are read.
        sealed = [entry for entry in log.entries() if entry[0] != log.segments()[-1] and topic in entry[2]]
        # Each entry at one node only.
        mine = random.sample(sealed[number :: len(files)], 12)
        places[name] = [(base, at, entry) for base, at, entry in mine if len(entry) > 1000]
    before = {name: mended(group, name)[0] for name in files}
    for name, mine in places.items():
        for base, at, entry in mine:
            files[name].flip(base, at + random.choice((7, 200, len(entry) - 1)))
    for name in files:
        found, refused = records(address[name], load.topic)
        wrong = [place for place in expected if found.get(place) != expected[place]]
        checks.check(
            not wrong,
            f"{name}: {len(found)} messages are the bytes they were; {refused} pulls were refused meanwhile",
            f"{len(wrong)} are not, {wrong[:3]}",
        )
    for name, mine in places.items():
        e2e.await_that(f"{name} to be mended", MEND_TIMEOUT, lambda: is_whole(files[name], mine))
        e2e.await_that(f"{name} to count", MEND_TIMEOUT, lambda: mended(group, name)[0] >= before[name] + len(mine))
        ranges = mended(group, name)[0] - before[name]
        checks.check(ranges == len(mine), f"{name} mended {ranges} ranges of {len(mine)} while it ran", before)
    checks.check(not group.deaths, "no broker has ended by itself", group.deaths)


def is_whole(log, places):
    """Whether these entries are in the file as they were."""
    return all(log.read(base, at, len(entry)) == entry for base, at, entry in places)


def by_scrub(checks, group):
    """Damage in a part of the log that a start does not read and nobody asks for."""
    leader = group.await_leader()
    name = next(name for name in group.all_nodes if name != leader)
    group.end([name], signal.SIGTERM)
    log = logs(group)[name]
    base = log.segments()[0]
    places = [entry for entry in log.entries() if entry[0] == base][3:6]
    for _, at, entry in places:
        log.flip(base, at + len(entry) // 2)
    group.restart(name)
    e2e.await_that("the scrub", MEND_TIMEOUT, lambda: group.status(name) and mended(group, name)[0] >= len(places))
    ranges, _ = mended(group, name)
    scrubbed, damages = (group.metric(name, f"raftmq_log_{what}_total") for what in ("scrubbed_bytes", "damages"))
    checks.check(
        ranges == len(places) == damages and is_whole(log, places),
        f"{name}: the scrub found what nobody read, {ranges} ranges are mended",
        f"{ranges} mended, {damages} found, {scrubbed} bytes read",
    )


def for_a_follower_behind(checks, group, number):
    """The leader finds damage in what it has to send to a follower."""
    leader = group.await_leader()
    behind, third = [name for name in group.all_nodes if name != leader]
    group.end([behind], signal.SIGTERM)
    load = e2e.Load(group, f"behind_{number}", **LOAD)
    with e2e.loads(load):
        e2e.await_that("messages to be sent", 120, lambda: load.acknowledged() > MESSAGES)
        load.finish()
    log, had = logs(group)[leader], len(logs(group)[behind].entries())
    missing = log.entries()[had:]
    # The first of them are read already, and the last ones in memory.
    half = len(missing) // 2
    places = missing[half : half + 35 : 7]
    before = mended(group, leader)[0]
    for base, at, entry in places:
        log.flip(base, at + len(entry) // 2)
    group.restart(behind)
    group.await_caught_up(behind)
    e2e.await_that(f"{leader} to be mended", MEND_TIMEOUT, lambda: mended(group, leader)[0] >= before + len(places))
    ranges = mended(group, leader)[0] - before
    checks.check(
        ranges == len(places) and is_whole(log, places) and leader == group.leader() and not group.deaths,
        f"{leader} still leads; it mended {ranges} ranges from {third}, and {behind} has them",
        group.deaths,
    )
    check_equal(checks, group, "after catching up")


def lose_end(group, name, entries):
    """Zeros instead of the last entries of a stopped node."""
    log = logs(group)[name]
    for base, at, entry in log.entries()[-entries:]:
        log.write(base, at, bytes(len(entry)))


def follower_without_end(checks, group):
    """A follower comes back with less than it has acknowledged, under the same leader."""
    leader = group.await_leader()
    name = next(name for name in group.all_nodes if name != leader)
    client = remoting.Client([group.nodes()[leader]["address"]])
    for number in range(20):
        client.send("tail", 0, f"{number:032X}")
    group.await_all_equal()
    group.end([name], signal.SIGTERM)
    lose_end(group, name, 10)
    group.restart(name)
    e2e.await_that(
        f"{name} to vote again",
        MEND_TIMEOUT,
        lambda: group.status(name) and group.metric(name, "raftmq_raft_votes_withheld") == 0,
    )
    text = (group.folder / f"{name}.log").read_text(errors="replace")
    checks.check("the end of the log is lost" in text, f"{name} gave the end of its log up", text[-500:])
    client.send("tail", 0, f"{99:032X}")
    group.await_caught_up(name)
    check_equal(checks, group, f"{name} got the end of its log again from {leader}")
    checks.check(not group.deaths, "no broker has ended by itself", group.deaths)


def lost_end(checks, group):
    """An acknowledged message is on two nodes; one of them loses it, and the other is away."""
    leader = group.await_leader()
    loser, third = [name for name in group.all_nodes if name != leader]
    group.end([third], signal.SIGTERM)
    client = remoting.Client([group.nodes()[leader]["address"]])
    key = f"{time.time_ns():032X}"
    queue_id, offset = client.send(LOST, 0, key)
    group.await_caught_up(loser)
    # How far the log was synced is noted ten times a second.
    time.sleep(0.5)
    group.kill(leader, loser)
    lose_end(group, loser, entries_since(group, loser, third))
    for name in (loser, third):
        group.restart(name)
    end = time.monotonic() + NO_LEADER
    leaders = set()
    up = set()
    while time.monotonic() < end:
        leaders.add(group.leader())
        up |= {name for name in (loser, third) if group.status(name)}
        time.sleep(0.05)
    checks.check(
        leaders == {None} and up == {loser, third},
        f"{loser} lost an acknowledged message; {third}, which has not got it, is not elected",
        f"{leaders}, up {up}",
    )
    withheld = group.metric(loser, "raftmq_raft_votes_withheld")
    checks.check(withheld == 1, f"{loser} says that it casts no vote", withheld)
    group.kill(loser, third)
    kept = group.folder / "kept"
    shutil.copytree(group.data, kept)
    # The same without the mark.
    had = logs(group)[loser].forget_guard()
    for name in (loser, third):
        group.restart(name)
    elected = group.await_leader()
    e2e.await_that("the elected one", 30, lambda: group.status(elected))
    found = content_at(group, elected)
    checks.check(
        had and (queue_id, offset) not in found,
        f"without the mark {elected} is elected, and the acknowledged message is lost",
        found,
    )
    group.kill(loser, third)
    shutil.rmtree(group.data)
    kept.rename(group.data)
    for name in group.all_nodes:
        group.restart(name)
    group.await_ready()
    e2e.await_that(
        f"{loser} to vote again",
        MEND_TIMEOUT,
        lambda: group.metric(loser, "raftmq_raft_votes_withheld") == 0,
    )
    group.await_all_equal()
    for name in group.all_nodes:
        found = content_at(group, name)
        checks.check(found.get((queue_id, offset)) == key, f"{name} has the acknowledged message", found)
    # The node whose end was lost counts again: with it alone a leader is found.
    group.kill(leader)
    checks.check(group.await_leader() != leader, f"without {leader} the others elect")
    group.restart(leader)
    group.await_ready()
    check_equal(checks, group, "in the end")


def entries_since(group, name, other):
    """How many entries a node has that another has not."""
    files = logs(group)
    return len(files[name].entries()) - len(files[other].entries())


def content_at(group, name):
    """The keys of the topic at one replica, by place."""
    address = group.nodes()[name]["address"]
    try:
        received = e2e.consume_all(group, LOST, 1, address)
    except e2e.Broken:
        # A replica that has no message of a topic may not have the topic.
        return {}
    return {(queue_id, offset): key for key, queue_id, offset in received}


if __name__ == "__main__":
    e2e.main(run)
