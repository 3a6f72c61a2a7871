#!/usr/bin/env python3
"""stalls.py [ROUNDS]: leaders that are not dead but do not work: paused (SIGSTOP), on a disk whose
syncs take 5 s, cut off by a partition in one or in both directions.

Each time the group takes messages again within 2 s, the leader of the past returns as a follower,
and the term rises by little: no storm of elections. In the end nothing acknowledged is lost. Runs
in a network namespace of its own, where packets between brokers are told apart by the group that
their sender runs under; needs root.
"""

import ctypes
import os
import pathlib
import signal
import subprocess
import sys
import time

import cluster as e2e
import configured as own
import remoting

# What a group may take to be writable again. Unit: seconds.
WRITABLE_MAX = 2.0
# How long a fault lasts, and what a sync takes meanwhile. Unit: seconds.
FAULT = 4.0
SYNC = 5.0
# Terms that one fault may use: an election may need a second try.
TERMS_MAX = 4
# Calm before each fault. Unit: seconds.
CALM = 1.0

# Nobody has these numbers; root keeps its rights under any group.
FIRST_GROUP = 61001


class Stalling(own.Brokers):
    """Brokers with a slow disk on demand, each under a Unix group of its own."""

    def __init__(self, folder, settings):
        super().__init__(folder, settings)
        self.library = folder / "slow_disk.so"
        source = pathlib.Path(__file__).with_name("slow_disk.c")
        own.run_tool("cc", "-shared", "-fPIC", "-O1", "-o", str(self.library), str(source), "-ldl")

    def gid(self, name):
        """The Unix group of a node."""
        return FIRST_GROUP + list(self.all_nodes).index(name)

    def flag(self, name):
        """The file that slows the disk of a node."""
        return self.folder / f"{name}.slow"

    def launch(self, name):
        environment = {**os.environ, "LD_PRELOAD": str(self.library), "SLOW_DISK_FLAG": str(self.flag(name))}
        return {"env": environment, "group": self.gid(name)}


def private_network():
    """A network namespace with nothing but its own loopback; gone with this process."""
    # Not on the path of every user.
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    new_network_namespace = 0x40000000
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(new_network_namespace) != 0:
        raise e2e.Broken(f"no network namespace: {os.strerror(ctypes.get_errno())}; this test needs root")
    own.run_tool("ip", "link", "set", "lo", "up")


def rules(text):
    """Replaces the packet filter of the namespace."""
    program = f"flush ruleset\ntable inet partition {{\n chain output {{\n type filter hook output priority 0;\n{text}\n }}\n}}\n"
    done = subprocess.run(["nft", "-f", "-"], input=program, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode != 0:
        raise e2e.Broken(f"nft: {done.stderr}")


def raft_port(group, name):
    """The port on which a node listens for its peers."""
    return group.all_nodes[name]["raftAddress"].rsplit(":", 1)[1]


def silence(group, leader):
    """Rules that drop whatever a node sends to its peers, on connections of either side."""
    gid = group.gid(leader)
    theirs = ", ".join(raft_port(group, name) for name in group.all_nodes if name != leader)
    mine = raft_port(group, leader)
    return f"meta skgid {gid} tcp dport {{ {theirs} }} drop\nmeta skgid {gid} tcp sport {mine} drop"


def deafness(group, leader):
    """Rules that drop whatever peers send to a node on its own port; they hear it."""
    gids = ", ".join(str(group.gid(name)) for name in group.all_nodes if name != leader)
    return f"meta skgid {{ {gids} }} tcp dport {raft_port(group, leader)} drop"


def paused(group, leader):
    """paused"""
    os.kill(group.nodes()[leader]["pid"], signal.SIGSTOP)
    return lambda: os.kill(group.nodes()[leader]["pid"], signal.SIGCONT)


def stalled(group, leader):
    """on a disk that stalls"""
    group.flag(leader).write_text(f"{1000 * SYNC:.0f}\n")
    return group.flag(leader).unlink


def silent(group, leader):
    """heard by nobody (a partition in one direction)"""
    rules(silence(group, leader))
    return lambda: rules("")


def cut_off(group, leader):
    """cut off (a partition in both directions)"""
    rules(f"{silence(group, leader)}\n{deafness(group, leader)}")
    return lambda: rules("")


FAULTS = (paused, stalled, silent, cut_off)


def run(checks):
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    private_network()
    with e2e.temporary_folder() as folder:
        group = Stalling(folder, {})
        try:
            group.start()
            # Each stays with one replica, as long as that answers.
            probers = {
                name: remoting.Prober([node["address"]], f"probe_{name}") for name, node in group.all_nodes.items()
            }
            for prober in probers.values():
                prober.start()
            e2e.await_that(
                "all senders to begin", e2e.LEADER_TIMEOUT, lambda: all(len(p.times) > 9 for p in probers.values())
            )
            gaps = {fault: [] for fault in FAULTS}
            for number in range(rounds):
                for fault in FAULTS:
                    one_round(checks, group, probers, fault, f"{fault.__doc__}, round {number + 1}", gaps[fault])
            for prober in probers.values():
                prober.stop()
            for fault, values in gaps.items():
                print(e2e.gap_line(f"a leader {fault.__doc__}: writable again after", values))
            group.await_all_equal()
            for prober in probers.values():
                print(f"{prober.topic}: vain attempts {e2e.summary(prober.vain)}")
                e2e.check_topic(checks, group, prober.topic, 4, prober.acks, True)
        finally:
            group.stop()


def one_round(checks, group, probers, fault, name, gaps):
    """A fault, its end, and what came of it."""
    time.sleep(CALM)
    leader = group.await_leader()
    term = group.status(leader)["term"]
    # Who is connected to the leader waits for its own timeout; what the others get tells when the
    # group takes messages again.
    others = [prober for place, prober in probers.items() if place != leader]
    begin = time.monotonic()
    mend = fault(group, leader)
    try:
        e2e.await_that(f"{name}: messages to be taken", 30, lambda: all(sent_since(other, begin) for other in others))
        # A fault may begin to tell a moment later.
        time.sleep(max(0.0, begin + FAULT - time.monotonic()))
        gap = max(other.gap(begin, time.monotonic()) for other in others)
        new = group.leader()
    finally:
        mend()
    group.await_caught_up(leader)
    e2e.await_that("all senders to go on", 30, lambda: all(sent_since(one, time.monotonic() - 1) for one in probers.values()))
    after = group.status(group.await_leader())["term"]
    print(f"{name}: {leader} to {new}, senders at the others paused for {1000 * gap:.0f} ms, {after - term} terms")
    gaps.append(gap)
    checks.check(gap < WRITABLE_MAX, f"{name}: writable within {WRITABLE_MAX} s", f"{gap:.2f} s")
    checks.check(new not in (None, leader), f"{name}: another node leads", new)
    checks.check(after - term <= TERMS_MAX, f"{name}: no storm of elections", f"{after - term} terms")
    checks.check(not group.deaths, f"{name}: no broker ended", group.deaths)


def sent_since(prober, begin):
    """Whether a message that was sent after `begin` was acknowledged."""
    # The second acknowledgement after that moment is surely of a later send.
    return len(prober.times) > 1 and prober.times[-2] > begin


if __name__ == "__main__":
    e2e.main(run)
