#!/usr/bin/env python3
"""bench.py [SECONDS]: throughput and latency of a local cluster; each kind of load for SECONDS. Then
one group reads everything back."""

import subprocess
import sys

import cluster as e2e

# Connections, messages in flight on each, bytes of a message.
KINDS = [
    (connections, in_flight, size)
    for size in (128, 1024)
    for connections, in_flight in ((1, 1), (64, 1), (1, 64), (64, 16))
]


# How many connections read.
READERS = 4


def bench(checks, name, cluster, command, topic, *arguments):
    """One run, whose table is printed."""
    line = [e2e.binary(), "bench", command, "-n", cluster.name_server(), "-t", topic, "--interval", "0"]
    line += [str(argument) for argument in arguments]
    for broker, node in cluster.nodes().items():
        line += ["--pid", f"{broker}={node['pid']}"]
    done = subprocess.run(line, text=True, stdout=subprocess.PIPE, timeout=600, check=False)
    print(done.stdout)
    checks.check(done.returncode == 0, name, f"exit code {done.returncode}")


def run(checks):
    seconds = sys.argv[1] if len(sys.argv) > 1 else "10"
    with e2e.running_cluster() as cluster:
        topics = {load: "bench_{}_{}_{}".format(*load) for load in KINDS}
        for load, topic in topics.items():
            connections, in_flight, size = load
            arguments = ["--size", size, "-c", connections, "-i", in_flight, "-s", seconds, "--warmup", 2]
            name = f"{connections} connections x {in_flight} in flight, {size} B"
            bench(checks, name, cluster, "produce", topic, *arguments)
        for load, topic in topics.items():
            name = f"{topic} read by {READERS} connections"
            bench(checks, name, cluster, "consume", topic, "-c", READERS, "--from", "first", "--until-empty")


if __name__ == "__main__":
    e2e.main(run)
