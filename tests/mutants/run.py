#!/usr/bin/env python3
"""run.py [--markdown] [--check CHECK] [NAME...]: plants known defects, one at a time, and shows which check finds
each of them, and how soon.

A mutant is a patch in this folder. Its head says what is wrong and which checks look for it:

    What: a vote is answered before it is on disk
    Check: store, failover

Checks are tried in this order until one fails. A mutant that all of them let pass is a hole in the
tests, and this script then ends with 1. So does it when a check fails without any mutant, and when
a patch no longer fits the code. The work is done in a copy of the repository; what is compiled for
it stays in ${RAFTMQ_CACHE:-~/.cache/raftmq}/mutants.
"""

import argparse
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]

# Each check is a command. A hang is a failure too: it takes much less than this. Unit: seconds.
TIMEOUT = 240
BUILD_TIMEOUT = 1500

TEST = ["cargo", "test", "--locked", "--quiet"]
RELEASE = ["cargo", "build", "--locked", "--quiet", "--release", "--package", "raftmq"]
# Enough for a defect that shows itself often.
SHORT_LIVES = ["env", "RAFTMQ_SIM_SEEDS=24", "RAFTMQ_SIM_SECONDS=200"]
CHECKS = {
    "store": ([*TEST, "--package", "raftmq-store", "--no-run"], [*TEST, "--package", "raftmq-store"]),
    "crash_points": (
        [*TEST, "--package", "raftmq-tests", "--test", "crash_points", "--no-run"],
        [*TEST, "--package", "raftmq-tests", "--test", "crash_points"],
    ),
    "lost_ends": (
        [*TEST, "--package", "raftmq-tests", "--test", "lost_ends", "--no-run"],
        [*TEST, "--package", "raftmq-tests", "--test", "lost_ends"],
    ),
    "hand_over": (
        [*TEST, "--package", "raftmq-tests", "--test", "hand_over", "--no-run"],
        [*TEST, "--package", "raftmq-tests", "--test", "hand_over"],
    ),
    "host": ([*TEST, "--package", "raftmq-host", "--no-run"], [*TEST, "--package", "raftmq-host"]),
    "namesrv": ([*TEST, "--package", "raftmq-namesrv", "--no-run"], [*TEST, "--package", "raftmq-namesrv"]),
    "replica": ([*TEST, "--package", "raftmq-replica", "--no-run"], [*TEST, "--package", "raftmq-replica"]),
    "state": ([*TEST, "--package", "raftmq-state", "--no-run"], [*TEST, "--package", "raftmq-state"]),
    "broker": ([*TEST, "--package", "raftmq", "--lib", "--no-run"], [*TEST, "--package", "raftmq", "--lib"]),
    "simulation": (
        [*TEST, "--release", "--package", "raftmq-tests", "--test", "simulation", "--no-run"],
        [*SHORT_LIVES, *TEST, "--release", "--package", "raftmq-tests", "--test", "simulation"],
    ),
    "failover": (RELEASE, [sys.executable, "tests/e2e/failover.py", "3"]),
    "crash_all": (RELEASE, [sys.executable, "tests/e2e/crash_all.py", "2"]),
    "repair": (RELEASE, [sys.executable, "tests/e2e/repair.py"]),
    "transfer": (RELEASE, [sys.executable, "tests/e2e/transfer.py", "2"]),
}

# What names the test that failed, in the output of cargo test and of the scripts.
FAILED = re.compile(r"^(?:---- (\S+) stdout ----|FAIL (.*?)(?::.*)?|  problem (\w+):.*)$", re.MULTILINE)


class Mutant:
    """One patch."""

    def __init__(self, path):
        self.path = path
        self.name = path.stem
        head = path.read_text().split("\n\n", 1)[0]
        fields = dict(line.split(": ", 1) for line in head.splitlines())
        self.what = fields["What"]
        self.checks = [name.strip() for name in fields["Check"].split(",")]


class Copy:
    """A copy of the repository to plant defects in."""

    def __init__(self, folder):
        self.folder = folder
        files = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True).stdout
        for name in filter(None, files.decode().split("\0")):
            source, target = REPOSITORY / name, folder / name
            if source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
        cache = pathlib.Path(os.environ.get("RAFTMQ_CACHE", pathlib.Path.home() / ".cache/raftmq"))
        self.environment = {**os.environ, "CARGO_TARGET_DIR": str(cache / "mutants"), "CARGO_TERM_COLOR": "never"}
        self.environment.pop("RAFTMQ_BINARY", None)

    def apply(self, mutant, *options):
        """Applies a patch, or takes it back with --reverse; why it does not fit, else None."""
        command = ["patch", "--strip=1", "--batch", "--fuzz=0", "--no-backup-if-mismatch", *options]
        done = subprocess.run(
            command, cwd=self.folder, stdin=open(mutant.path, "rb"), capture_output=True, text=True, check=False
        )
        return None if done.returncode == 0 else done.stdout + done.stderr

    def run(self, command, timeout):
        """(exit code, output); the code is None when it took too long."""
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=timeout)
            return process.returncode, output
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            return None, output

    def check(self, name):
        """(what failed, None when nothing did; seconds)"""
        build, test = CHECKS[name]
        code, output = self.run(build, BUILD_TIMEOUT)
        if code != 0:
            raise SystemExit(f"{name} does not build:\n{output[-3000:]}")
        begin = time.monotonic()
        code, output = self.run(test, TIMEOUT)
        seconds = time.monotonic() - begin
        if code == 0:
            return None, seconds
        return names_of_failures(output) or ("it does not end" if code is None else "it fails"), seconds


def names_of_failures(output):
    """The first tests that failed, short enough for a table."""
    found = []
    for groups in FAILED.findall(output):
        name = next(filter(None, groups))
        if name not in found:
            found.append(name)
    rest = f" and {len(found) - 2} more" if len(found) > 2 else ""
    return ", ".join(found[:2]) + rest


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", action="store_true", help="prints the table for the documentation")
    parser.add_argument("--check", choices=CHECKS, help="only mutants that name this check, and only by it")
    parser.add_argument("names", nargs="*", help="mutants (all)")
    given = parser.parse_args()
    mutants = [Mutant(path) for path in sorted(HERE.glob("*.patch"))]
    unknown = set(given.names) - {mutant.name for mutant in mutants}
    if unknown:
        parser.error(f"no such mutant: {', '.join(sorted(unknown))}")
    mutants = [mutant for mutant in mutants if not given.names or mutant.name in given.names]
    if given.check:
        mutants = [mutant for mutant in mutants if given.check in mutant.checks]
        for mutant in mutants:
            mutant.checks = [given.check]
    with tempfile.TemporaryDirectory(prefix="raftmq-mutants.") as folder:
        rows = judge(Copy(pathlib.Path(folder)), mutants)
    if given.markdown:
        print("| Mutant | What is wrong | Check | Found by | Seconds |\n| --- | --- | --- | --- | ---: |")
        for row in rows:
            print(f"| `{row[0]}` | {row[1]} | {row[2]} | {row[3]} | {row[4]:.1f} |")
    return 0 if rows is not None and len(rows) == len(mutants) else 1


def judge(copy, mutants):
    """Plants each; the rows of those that were found."""
    for check in sorted({check for mutant in mutants for check in mutant.checks}):
        found, _ = copy.check(check)
        if found is not None:
            print(f"FAIL {check} without a mutant: {found}")
            return None
        print(f"PASS {check} without a mutant", flush=True)
    rows = []
    for mutant in mutants:
        misfit = copy.apply(mutant)
        if misfit is not None:
            print(f"FAIL {mutant.name}: the patch does not fit: {misfit}")
            continue
        row = judge_one(copy, mutant)
        copy.apply(mutant, "--reverse")
        if row is None:
            print(f"FAIL {mutant.name}: nothing finds that {mutant.what}", flush=True)
            continue
        rows.append(row)
        print(f"PASS {mutant.name}: {row[2]} finds it in {row[4]:.1f} s: {row[3]}", flush=True)
    return rows


def judge_one(copy, mutant):
    """The row of the table, None when no check finds it."""
    for check in mutant.checks:
        found, seconds = copy.check(check)
        if found is not None:
            return mutant.name, mutant.what, check, found, seconds
    return None


if __name__ == "__main__":
    sys.exit(main())
