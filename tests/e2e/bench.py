#!/usr/bin/env python3
"""bench.py [SECONDS]: throughput and latency of a local cluster; each kind of load for SECONDS."""

import subprocess
import sys

import cluster as e2e

# Connections, messages in flight on each, bytes of a message.
KINDS = [
    (connections, in_flight, size)
    for size in (128, 1024)
    for connections, in_flight in ((1, 1), (64, 1), (1, 64), (64, 16))
]


def run(checks):
    seconds = sys.argv[1] if len(sys.argv) > 1 else "10"
    with e2e.running_cluster() as cluster:
        for connections, in_flight, size in KINDS:
            arguments = [e2e.binary(), "bench", "produce", "-n", cluster.name_server()]
            arguments += ["-t", f"bench_{connections}_{in_flight}_{size}", "--size", str(size)]
            arguments += ["-c", str(connections), "-i", str(in_flight), "-s", seconds]
            arguments += ["--warmup", "2", "--interval", "0"]
            for name, node in cluster.nodes().items():
                arguments += ["--pid", f"{name}={node['pid']}"]
            done = subprocess.run(arguments, text=True, stdout=subprocess.PIPE, timeout=600, check=False)
            print(done.stdout)
            name = f"{connections} connections x {in_flight} in flight, {size} B"
            checks.check(done.returncode == 0, name, f"exit code {done.returncode}")


if __name__ == "__main__":
    e2e.main(run)
