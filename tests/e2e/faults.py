"""What is done to brokers that stay alive: paused, cut off, on disks that stall or are full.

Each fault is a function of the brokers and the name of one; it returns what ends the fault. Packets
between brokers are told apart by the Unix group that their sender runs under, in a network namespace
of this process alone. Needs root.
"""

import contextlib
import ctypes
import os
import pathlib
import signal
import subprocess

import cluster as e2e
import configured as own
import disks

# What a sync takes on a disk that stalls. Unit: seconds.
SYNC = 5.0

# Nobody has these numbers; root keeps its rights under any group.
FIRST_GROUP = 61001


class Brokers(own.Brokers):
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

    def raft_port(self, name):
        """The port on which a node listens for its peers."""
        return self.all_nodes[name]["raftAddress"].rsplit(":", 1)[1]


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


def silence(group, name):
    """Rules that drop whatever a node sends to its peers, on connections of either side."""
    gid = group.gid(name)
    theirs = ", ".join(group.raft_port(peer) for peer in group.all_nodes if peer != name)
    mine = group.raft_port(name)
    return f"meta skgid {gid} tcp dport {{ {theirs} }} drop\nmeta skgid {gid} tcp sport {mine} drop"


def deafness(group, name):
    """Rules that drop whatever peers send to a node on its own port; they hear it."""
    gids = ", ".join(str(group.gid(peer)) for peer in group.all_nodes if peer != name)
    return f"meta skgid {{ {gids} }} tcp dport {group.raft_port(name)} drop"


def paused(group, name):
    """paused"""
    pid = group.nodes()[name]["pid"]
    os.kill(pid, signal.SIGSTOP)

    def resume():
        # It may have been killed meanwhile.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    return resume


def stalled(group, name):
    """on a disk that stalls"""
    group.flag(name).write_text(f"{1000 * SYNC:.0f}\n")
    return group.flag(name).unlink


def silent(group, name):
    """heard by nobody (a partition in one direction)"""
    rules(silence(group, name))
    return lambda: rules("")


def deaf(group, name):
    """without what peers send to its port (a partition in the other direction)"""
    rules(deafness(group, name))
    return lambda: rules("")


def cut_off(group, name):
    """cut off (a partition in both directions)"""
    rules(f"{silence(group, name)}\n{deafness(group, name)}")
    return lambda: rules("")


def full(group, name):
    """on a disk that somebody else has filled"""
    disk = disks.of(group, name)
    disks.fill(disk)
    # The power may have been cut before it reached the disk.
    return lambda: (disk / disks.FILLER).unlink(missing_ok=True)


def all_full(group, _name):
    """on disks that are all full"""
    ends = [full(group, name) for name in group.all_nodes]
    return lambda: [end() for end in ends]
