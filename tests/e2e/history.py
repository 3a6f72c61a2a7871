#!/usr/bin/env python3
"""history.py [SECONDS]: the clients and the oracle of the simulation at real brokers.

Producers, pullers and consumers write down what they do and see, while brokers get kill -9 and have
their power cut, one or all at once, and are paused, cut off, on disks that stall or are full; the
former also during the latter. Everything in that history is then held against what clients are
promised: one function of the log for all observers, nothing lost, dense offsets, real-time order,
pulls without gaps, consumer offsets that never go back, duplicates only after an unknown outcome.
The history of a run that breaks one of these is kept. Runs in a network namespace of its own; needs
root.
"""

import collections
import os
import random
import subprocess
import sys
import time

import cluster as e2e
import disks
import faults

# Pause between two things that are done to brokers. Unit: seconds.
CALM = 1.0
# How long a fault lasts. Unit: seconds.
FAULT_MIN, FAULT_MAX = 0.2, 3.0
# Nothing is done to brokers at the end. Unit: seconds.
REST = 5
# Until the program is built, if it is not, and has read everything. Unit: seconds.
PROGRAM_TIMEOUT = 1500

PROGRAM = ["cargo", "test", "--release", "--locked", "--quiet", "--package", "raftmq-tests", "--test", "history"]

# Small segments, so that the disks have room for many; nothing may be deleted.
SETTINGS = {"mappedFileSizeCommitLog": 8 << 20, "cleanFileForciblyEnable": "false"}


class Nemesis:
    """What is done to brokers, by chance."""

    def __init__(self, group, images, chance):
        self.group, self.images, self.chance = group, images, chance
        self.done = collections.Counter()

    def one(self):
        """The name of one broker."""
        return self.chance.choice(sorted(self.group.all_nodes))

    def step(self):
        """A fault, an end of brokers, or one during the other."""
        fault = self.chance.choice(LASTING)
        end = self.chance.choice(ENDS)
        if fault is None:
            end(self)
            return
        self.done[fault.__name__] += 1
        mend = fault(self.group, self.one())
        try:
            time.sleep(self.chance.uniform(FAULT_MIN, FAULT_MAX))
            if self.chance.random() < 0.3:
                end(self)
                time.sleep(self.chance.uniform(0, 1))
        finally:
            mend()

    def kill(self):
        """kill -9 of one broker."""
        self.end_of([self.one()], "kill", self.kill_names)

    def kill_leader(self):
        """kill -9 of the leader, if there is one."""
        self.end_of([self.group.leader() or self.one()], "kill_leader", self.kill_names)

    def kill_all(self):
        """kill -9 of all brokers at once."""
        self.end_of(sorted(self.group.all_nodes), "kill_all", self.kill_names)

    def power(self):
        """A power cut of one broker."""
        self.end_of([self.one()], "power", self.cut_power)

    def power_of_all(self):
        """A power cut of all brokers at once."""
        self.end_of(sorted(self.group.all_nodes), "power_of_all", self.cut_power)

    def kill_names(self, names):
        """kill -9 of these brokers."""
        self.group.kill(*names)

    def cut_power(self, names):
        """A power cut of these brokers."""
        self.images.cut_power(names)

    def end_of(self, names, what, end):
        """Ends brokers and starts them again."""
        self.done[what] += 1
        end(names)
        time.sleep(self.chance.uniform(0, 1))
        for name in names:
            self.group.restart(name)


LASTING = (None, faults.paused, faults.stalled, faults.silent, faults.deaf, faults.cut_off, faults.full, faults.all_full)
ENDS = (Nemesis.kill, Nemesis.kill_leader, Nemesis.kill_all, Nemesis.power, Nemesis.power_of_all)


def run(checks):
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    subprocess.run([*PROGRAM, "--no-run"], cwd=e2e.REPOSITORY, check=True, timeout=PROGRAM_TIMEOUT)
    seed = int(os.environ.get("RAFTMQ_HISTORY_SEED", time.time_ns() % 1_000_000))
    print(f"seed {seed}")
    faults.private_network()
    with e2e.temporary_folder() as folder:
        group = faults.Brokers(folder, SETTINGS)
        with disks.Images(group) as images:
            try:
                group.start()
                history(checks, group, Nemesis(group, images, random.Random(seed)), seconds)
            finally:
                group.stop()


def history(checks, group, nemesis, seconds):
    """The load, what is done meanwhile, and the judgement."""
    environment = {
        **os.environ,
        "RAFTMQ_HISTORY_BROKERS": ",".join(group.addresses()),
        "RAFTMQ_HISTORY_SECONDS": str(seconds),
        "RAFTMQ_HISTORY_FILE": str(group.folder / "history.txt"),
    }
    program = subprocess.Popen(
        PROGRAM, cwd=e2e.REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True, preexec_fn=e2e.end_with_parent
    )
    end = time.monotonic() + seconds - REST
    while time.monotonic() < end:
        time.sleep(CALM)
        nemesis.step()
    output, _ = program.communicate(timeout=PROGRAM_TIMEOUT)
    print(output, end="")
    done = nemesis.done
    print("done to brokers:", ", ".join(f"{name} {count}" for name, count in sorted(done.items())))
    checks.check(done.total() >= 3, "something was done to the brokers", done)
    group.note_deaths()
    checks.check(not group.deaths, "no broker ended by itself", group.deaths)
    checks.check(program.returncode == 0, "the history is sound", f"exit code {program.returncode}")


if __name__ == "__main__":
    e2e.main(run)
