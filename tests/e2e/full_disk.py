#!/usr/bin/env python3
"""full_disk.py [tmpfs|ext4]: what happens when disks fill up, with three brokers on small ones.

Messages are refused at the watermark, with RocketMQ's answer; pulls and offset commits go on. At
100 % too, also after kill -9 of one and of all brokers. After space is freed messages are taken
again without a restart. A follower with a full disk of its own lags behind and catches up. Disks
that another process fills in an instant under load end no broker. In the end every acknowledged
message is on every replica. Needs root, for the mounts.
"""

import os
import sys
import time

import configured as own
import cluster as e2e
import disks
import remoting

DISK_MIB = 256
# A file of somebody else, there from the start; removing it is what frees space.
BALLAST_MIB = 128
SETTINGS = {
    "mappedFileSizeCommitLog": 8 << 20,
    # Nothing may be deleted here: everything acknowledged is compared in the end.
    "cleanFileForciblyEnable": "false",
}
GROUP = "e2e_full"
QUEUES = 4
# Sixteen MB/s: slow machines fill the disks too, and fast ones not in an instant.
LOAD = {"rate": 1000, "size": 16 << 10, "connections": 4, "in_flight": 8, "queues": QUEUES}
# Longest wait for a disk to be filled, and for a broker to notice that there is space. Seconds.
FILL_TIMEOUT = 180
NOTICE_TIMEOUT = 15


def used_percent(folder):
    """Used part of a file system."""
    stat = os.statvfs(folder)
    used = (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    return 100 * used / (used + disks.available(folder))


def run(checks):
    kind = sys.argv[1] if len(sys.argv) > 1 else "tmpfs"

    def small(group):
        return disks.small_disks([disks.of(group, name) for name in group.all_nodes], DISK_MIB, kind)

    with own.running_brokers(SETTINGS, lambda group: with_ballast(group, small(group))) as group:
        loads = [fill_to_the_watermark(checks, group)]
        fill_everything(checks, group)
        restart_one(checks, group, loads[0])
        restart_all(checks, group, loads[0])
        free_space(checks, group)
        loads.append(fill_one_follower(checks, group))
        loads.append(fill_under_load(checks, group))
        end(checks, group, loads)


class with_ballast:
    """The disks, each with the file of somebody else on it."""

    def __init__(self, group, small):
        self.group, self.small = group, small

    def __enter__(self):
        self.small.__enter__()
        for name in self.group.all_nodes:
            with open(disks.of(self.group, name) / "ballast", "wb") as file:
                os.posix_fallocate(file.fileno(), 0, BALLAST_MIB << 20)

    def __exit__(self, *error):
        return self.small.__exit__(*error)


def sender(group):
    """A client that knows all replicas."""
    return remoting.Client(group.addresses())


def try_send(client, topic):
    """One send, at up to every replica; the header of the last answer."""
    header = {"code": None, "remark": "no answer"}
    for _ in client.addresses:
        try:
            header = client.try_send(topic, 0, f"{time.time_ns():032X}")
        except (OSError, remoting.Failed) as error:
            header = {"code": None, "remark": f"{type(error).__name__}: {error}"}
            continue
        if header["code"] in (remoting.SUCCESS, remoting.SERVICE_NOT_AVAILABLE):
            break
        client.next_replica()
    return header


def is_disk_full(header):
    """Whether it is the answer that RocketMQ gives."""
    return header["code"] == remoting.SERVICE_NOT_AVAILABLE and "the broker's disk is full [CL: " in (
        header.get("remark") or ""
    )


def refusal(client, topic):
    """The answer to a message from whoever leads, also when that has to be elected first."""

    def answer():
        header = try_send(client, topic)
        return header if is_disk_full(header) or header["code"] == remoting.SUCCESS else None

    return e2e.await_that("an answer of a leader", e2e.LEADER_TIMEOUT, answer)


def check_no_deaths(checks, group, when):
    """No broker has ended by itself."""
    group.note_deaths()
    checks.check(not group.deaths, f"{when}: no broker has ended", group.deaths)
    group.deaths.clear()


def check_service(checks, group, topic, when, step):
    """Messages are refused; reads, offsets and metadata go on."""
    header = refusal(sender(group), topic)
    checks.check(is_disk_full(header), f"{when}: a message is refused as RocketMQ does", header)
    for name, node in group.nodes().items():
        received = e2e.consume_all(group, topic, QUEUES, node["address"])
        checks.check(len(received) > 0, f"{when}: {name} serves {len(received)} messages", "none")
    leader = group.nodes()[group.await_leader()]["address"]
    remoting.commit_offset(leader, GROUP, topic, 0, step)
    stored = remoting.committed_offset(leader, GROUP, topic, 0)
    checks.check(stored == step, f"{when}: an offset commit is applied", f"{stored} instead of {step}")
    remoting.create_topic(leader, f"created_{step}", 1)
    checks.check(True, f"{when}: a topic is created")


def fill_to_the_watermark(checks, group):
    """Sends until messages are refused."""
    leader = group.nodes()[group.await_leader()]["address"]
    remoting.create_group(leader, GROUP)
    load = e2e.Load(group, "filling", **LOAD)
    client = sender(group)
    with e2e.loads(load):
        e2e.await_that("the watermark", FILL_TIMEOUT, lambda: is_disk_full(try_send(client, "probe")))
        report = load.finish()
    print(f"filled: {report['messages']} sent, failures {report['failures']}")
    for name in group.all_nodes:
        used = used_percent(disks.of(group, name))
        checks.check(88 < used < 97, f"watermark: the disk of {name} is {used:.0f} % full", "not around 90 %")
    check_no_deaths(checks, group, "watermark")
    check_service(checks, group, load.topic, "watermark", 1)
    return load


def fill_everything(checks, group):
    """Somebody else takes the rest."""
    for name in group.all_nodes:
        disks.fill(disks.of(group, name))
        left = disks.available(disks.of(group, name))
        checks.check(left == 0, f"the disk of {name} is 100 % full", f"{left} bytes left")
    # Longer than the broker looks away.
    time.sleep(2)
    check_no_deaths(checks, group, "100 %")
    check_service(checks, group, "filling", "100 %", 2)


def restart_one(checks, group, load):
    """kill -9 of the leader on its full disk."""
    old = group.await_leader()
    group.kill(old)
    group.await_leader(besides=(old,))
    group.restart(old)
    group.await_caught_up(old)
    check_no_deaths(checks, group, "one restarted")
    check_service(checks, group, load.topic, "one restarted", 3)


def restart_all(checks, group, load):
    """kill -9 of all brokers on full disks, twice: what a start needs it must not use up."""
    for number in range(2):
        group.kill(*group.all_nodes)
        for name in group.all_nodes:
            group.restart(name)
        group.await_ready()
        check_no_deaths(checks, group, f"all restarted, {number + 1}")
        check_service(checks, group, load.topic, f"all restarted, {number + 1}", 4 + number)


def await_sends(checks, group, when):
    """Messages are taken again, soon and by the same processes."""
    client = sender(group)
    begin = time.monotonic()
    e2e.await_that(
        "a message to be taken",
        NOTICE_TIMEOUT,
        lambda: try_send(client, "probe")["code"] == remoting.SUCCESS,
    )
    checks.check(True, f"{when}: messages are taken again after {time.monotonic() - begin:.1f} s")
    check_no_deaths(checks, group, when)


def free_space(checks, group):
    """Somebody removes files."""
    for name in group.all_nodes:
        (disks.of(group, name) / disks.FILLER).unlink()
        (disks.of(group, name) / "ballast").unlink()
    await_sends(checks, group, "space freed")


def fill_one_follower(checks, group):
    """Only a follower's disk is full; it falls behind, and catches up."""
    leader = group.await_leader()
    victim = next(name for name in group.all_nodes if name != leader)
    disks.fill(disks.of(group, victim))
    before = group.status(victim)["lastIndex"]
    load = e2e.Load(group, "one_full", **LOAD)
    with e2e.loads(load):
        # More than the ground of the follower.
        e2e.await_that("24 MB to be sent", FILL_TIMEOUT, lambda: load.acknowledged() > 1500)
        checks.check(True, "a follower is full: messages are taken")
        report = load.finish()
    print(f"one full: {report['messages']} sent, failures {report['failures']}")
    check_no_deaths(checks, group, "a follower is full")
    status, leading = [
        e2e.await_that(f"the status of {name}", e2e.LEADER_TIMEOUT, lambda name=name: group.status(name))
        for name in (victim, group.await_leader())
    ]
    checks.check(
        status["lastIndex"] < leading["lastIndex"],
        f"a follower is full: {victim} lags behind ({status['lastIndex']} of {leading['lastIndex']}, was {before})",
        "it has everything",
    )
    received = e2e.consume_all(group, "filling", QUEUES, group.nodes()[victim]["address"])
    checks.check(len(received) > 0, f"a follower is full: it serves {len(received)} messages", "none")
    (disks.of(group, victim) / disks.FILLER).unlink()
    group.await_caught_up(victim)
    checks.check(True, "a follower is full no longer: it has caught up")
    check_no_deaths(checks, group, "a follower is full no longer")
    return load


def fill_under_load(checks, group):
    """All disks are filled in an instant while messages come in."""
    load = e2e.Load(group, "instant", **LOAD)
    with e2e.loads(load):
        e2e.await_that("the load", FILL_TIMEOUT, lambda: load.acknowledged() > 200)
        for name in group.all_nodes:
            disks.fill(disks.of(group, name))
        # Under load for a while, against full disks.
        time.sleep(3)
        check_no_deaths(checks, group, "filled under load")
        check_service(checks, group, load.topic, "filled under load", 10)
        for name in group.all_nodes:
            (disks.of(group, name) / disks.FILLER).unlink()
        await_sends(checks, group, "freed under load")
        report = load.finish()
    print(f"under load: {report['messages']} sent, failures {report['failures']}")
    return load


def end(checks, group, loads):
    """Everything is there."""
    group.await_all_equal()
    for load in loads:
        e2e.check_topic(checks, group, load.topic, load.queues, load.acks(), False)
    leader = group.nodes()[group.await_leader()]["address"]
    stored = remoting.committed_offset(leader, GROUP, loads[0].topic, 0)
    checks.check(stored == 5, "the last committed offset is kept", stored)
    for name in group.all_nodes:
        refused = group.metric(name, "raftmq_sends_refused_disk_full_total")
        ratio = group.metric(name, "raftmq_disk_used_ratio")
        full = group.metric(name, "raftmq_disk_full")
        print(f"{name}: {refused:.0f} refused since its start, disk {100 * ratio:.0f} % full")
        checks.check(ratio > 0 and full == 0, f"{name}: metrics tell of the disk", (ratio, full))


if __name__ == "__main__":
    e2e.main(run)
