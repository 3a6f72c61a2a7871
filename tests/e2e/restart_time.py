#!/usr/bin/env python3
"""restart_time.py [GB]: how long three brokers take from exec to serving with GB of log each.

Writes GB (5 unless given) of messages of 1, 8 and 64 KiB, kills all brokers with -9, starts them,
and prints the times from the first exec to the first acknowledged send and to the first pull of
old messages, of each replica. Both are meant to be below two seconds; the writing takes minutes
and three times the space.
"""

import subprocess
import sys
import threading
import time

import configured as own
import cluster as e2e
import remoting

# What is promised. Unit: seconds.
LIMIT = 2.0
# Body sizes, and which part of the bytes they make up.
SIZES = ((1 << 10, 0.2), (8 << 10, 0.3), (64 << 10, 0.5))
QUEUES = 8
# Pause between two attempts. Unit: seconds.
ATTEMPT = 0.005


def run(checks):
    gigabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 5
    with own.running_brokers({}) as group:
        for size, part in SIZES:
            write(group, size, int(gigabytes * (1 << 30) * part))
        group.await_all_equal()
        lengths = [group.metric(name, "raftmq_log_bytes") for name in group.all_nodes]
        remoting.create_group(group.nodes()[group.await_leader()]["address"], "e2e_pull")
        for number in range(3):
            measure(checks, group, number + 1, min(lengths))


def topic_of(size):
    """Messages of one size have a topic."""
    return f"restart_{size}"


def write(group, size, total):
    """Writes `total` bytes of bodies, as fast as the brokers take them."""
    arguments = [e2e.binary(), "bench", "produce", "-t", topic_of(size), "--queues", str(QUEUES)]
    for address in group.addresses():
        arguments += ["-b", address]
    in_flight = max(1, min(64, (256 << 10) // size))
    arguments += ["-c", "16", "--in-flight", str(in_flight), "--size", str(size)]
    arguments += ["--messages", str(max(1, total // size)), "--interval", "0", "--format", "json"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=3600, check=False)
    if done.returncode != 0:
        raise e2e.Broken(f"bench produce: {done.stdout}{done.stderr}")


def measure(checks, group, number, length):
    """One crash and restart."""
    group.kill(*group.all_nodes)
    begin = time.monotonic()
    for name in group.all_nodes:
        group.restart(name)
    pulls = {}
    threads = [
        threading.Thread(target=first_pull, args=(group.all_nodes[name]["address"], begin, pulls, name), daemon=True)
        for name in group.all_nodes
    ]
    for thread in threads:
        thread.start()
    sent = first_send(group, begin)
    for thread in threads:
        thread.join(e2e.START_TIMEOUT)
    group.await_ready()
    shown = ", ".join(f"{name} {pulls[name]:.2f} s" for name in sorted(pulls))
    what = f"restart {number} with {length / 1e9:.2f} GB of log: first send {sent:.2f} s, first pull {shown}"
    slowest = max([sent, *pulls.values()])
    complete = len(pulls) == len(group.all_nodes)
    checks.check(complete and slowest < LIMIT, what, f"meant to be below {LIMIT} s")
    for name in group.all_nodes:
        print(f"  {name}: {opened(group, name)}")


def first_send(group, begin):
    """When a message is acknowledged first."""
    client = remoting.Client(group.addresses())
    end = begin + e2e.START_TIMEOUT
    while time.monotonic() < end:
        try:
            client.send("restart_probe", 0, f"{time.time_ns():032X}")
            return time.monotonic() - begin
        except (OSError, remoting.Failed):
            time.sleep(ATTEMPT)
    raise e2e.Broken("no message was acknowledged")


def first_pull(address, begin, pulls, name):
    """When a replica hands out its oldest messages first."""
    end = begin + e2e.START_TIMEOUT
    while time.monotonic() < end:
        try:
            connection = remoting.Connection(address)
            try:
                code, body = remoting.pull(connection, topic_of(SIZES[0][0]), 0, 0)
            finally:
                connection.close()
            if code == remoting.SUCCESS and body:
                pulls[name] = time.monotonic() - begin
                return
        except (OSError, remoting.Failed):
            pass
        time.sleep(ATTEMPT)


def opened(group, name):
    """What the broker's log says about its last recovery."""
    lines = (group.folder / f"{name}.log").read_text(errors="replace").splitlines()
    found = [line for line in lines if "opened the log" in line]
    return found[-1].strip() if found else "no line about opening the log"


if __name__ == "__main__":
    e2e.main(run)
