#!/usr/bin/env python3
"""history.py [SECONDS]: the clients and the oracle of the simulation at real brokers.

Producers, pullers and consumers write down what they do and see, while brokers get kill -9, one or
all at once, and SIGSTOP. Everything in that history is then held against what clients are promised:
one function of the log for all observers, nothing lost, dense offsets, real-time order, pulls without
gaps, consumer offsets that never go back, duplicates only after an unknown outcome. The history of a
run that breaks one of these is kept.
"""

import os
import random
import signal
import subprocess
import sys
import time

import cluster as e2e

# Pause between two things that are done to brokers. Unit: seconds.
CALM = 1.5
# Longest time for which a broker is paused. Unit: seconds.
PAUSE_MAX = 3.0
# Nothing is done to brokers at the end. Unit: seconds.
REST = 5
# Until the program is built, if it is not, and has read everything. Unit: seconds.
PROGRAM_TIMEOUT = 1500

PROGRAM = ["cargo", "test", "--release", "--locked", "--quiet", "--package", "raftmq-tests", "--test", "history"]


def run(checks):
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    subprocess.run([*PROGRAM, "--no-run"], cwd=e2e.REPOSITORY, check=True, timeout=PROGRAM_TIMEOUT)
    seed = int(os.environ.get("RAFTMQ_HISTORY_SEED", time.time_ns() % 1_000_000))
    print(f"seed {seed}")
    chance = random.Random(seed)
    with e2e.running_cluster() as cluster:
        environment = {
            **os.environ,
            "RAFTMQ_HISTORY_BROKERS": ",".join(cluster.addresses()),
            "RAFTMQ_HISTORY_SECONDS": str(seconds),
            "RAFTMQ_HISTORY_FILE": str(cluster.folder / "history.txt"),
        }
        program = subprocess.Popen(
            PROGRAM, cwd=e2e.REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True, preexec_fn=e2e.end_with_parent
        )
        end = time.monotonic() + seconds - REST
        done = {}
        while time.monotonic() < end:
            time.sleep(CALM)
            what = chance.choice([kill, kill, kill_leader, kill_all, pause])
            what(cluster, chance)
            done[what.__name__] = done.get(what.__name__, 0) + 1
        output, _ = program.communicate(timeout=PROGRAM_TIMEOUT)
        print(output, end="")
        print("done to brokers:", ", ".join(f"{name} {count}" for name, count in sorted(done.items())))
        checks.check(sum(done.values()) >= 3, "something was done to the brokers", done)
        checks.check(program.returncode == 0, "the history is sound", f"exit code {program.returncode}")


def kill(cluster, chance):
    """Kills one broker and starts it again."""
    name = chance.choice(sorted(cluster.nodes()))
    cluster.kill(name)
    cluster.restart(name)


def kill_leader(cluster, chance):
    """Kills the leader and starts it again when another one leads."""
    name = cluster.await_leader()
    cluster.kill(name)
    cluster.await_leader(besides=(name,))
    cluster.restart(name)


def kill_all(cluster, chance):
    """Kills all brokers at once and starts them again."""
    names = sorted(cluster.nodes())
    cluster.kill(*names)
    for name in names:
        cluster.restart(name)


def pause(cluster, chance):
    """Gives one broker no processor time for a while."""
    name = chance.choice(sorted(cluster.nodes()))
    pid = cluster.nodes()[name]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(chance.uniform(0.2, PAUSE_MAX))
    finally:
        os.kill(pid, signal.SIGCONT)


if __name__ == "__main__":
    e2e.main(run)
