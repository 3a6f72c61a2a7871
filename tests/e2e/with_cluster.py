#!/usr/bin/env python3
"""with_cluster.py -- COMMAND...: runs a command against a fresh local cluster.

The command finds NAMESRV, CLUSTER, BROKER_NAME, LEADER (address of the leader) and BROKERS (all
addresses, separated by blanks) in its environment. Exits with the command's code.
"""

import os
import subprocess
import sys

import cluster as e2e


def run(checks):
    command = sys.argv[2:] if sys.argv[1:2] == ["--"] else sys.argv[1:]
    with e2e.running_cluster() as cluster:
        leader = cluster.await_leader()
        status = cluster.status(leader)
        environment = {
            **os.environ,
            "NAMESRV": cluster.name_server(),
            "CLUSTER": status["cluster"],
            "BROKER_NAME": status["group"],
            "LEADER": status["addresses"]["broker"],
            "BROKERS": " ".join(cluster.addresses()),
        }
        process = subprocess.Popen(command, env=environment, preexec_fn=e2e.end_with_parent)
        try:
            code = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if code != 0:
            raise e2e.Broken(f"{command[0]} exited with {code}")


if __name__ == "__main__":
    e2e.main(run)
