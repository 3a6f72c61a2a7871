#!/usr/bin/env python3
"""compare.py: RaftMQ and RocketMQ 5.5.0 in DLedger mode under the same loads in the same run.

Three brokers of each kind stand on this machine. Every case runs at one, then at the other, and so
on for a number of rounds: what else the machine does meets both. Ours acknowledges after a quorum
has synced to disk, theirs after a quorum has the message in memory. The generators are
`raftmq bench` and RocketMQ's own benchmark Producer. Prints one table and, as plain
information, how the figures stand to what is meant. Progress goes to standard error.
"""

import argparse
import functools
import os
import pathlib
import platform
import subprocess
import sys
import time

import cluster as e2e
import comparison
import java
import measure
from comparison import OURS, THEIRS

PARTS = ("idle", "generator", "producer", "old")

SIZES = (128, 1024)

# Connections and messages in flight on each. Not more than 512 in all: with 2048 RocketMQ refuses
# most of them, because they wait longer than 200 ms in its queue (waitTimeMillsInSendQueue).
LOADS = ((1, 1), (1, 32), (64, 1), (64, 8))

# Messages that were sent before everything else, and by how many connections they are read back.
# Ours have left the broker's own memory long since; both find their files in the page cache.
OLD = {size: f"compare_old_{size}" for size in SIZES}
OLD_MESSAGES = 400_000
OLD_CONNECTIONS = 4

# What RocketMQ's own DLedger example sets beside names, ports and folders.
THEIR_SETTINGS = ("sendMessageThreadPoolNums=16",)


class Ours(e2e.Cluster):
    """`raftmq local` with its defaults."""

    label = OURS

    def pids(self):
        """The processes of the brokers."""
        return [node["pid"] for node in self.nodes().values()]


class Theirs(java.DLedgerCluster):
    """Three RocketMQ brokers in DLedger mode."""

    label = THEIRS

    def pids(self):
        """The processes of the brokers."""
        return list(super().pids().values())


class Comparison:
    """Both clusters and what was measured."""

    def __init__(self, options, folder, ours, theirs):
        self.options = options
        self.folder = folder
        self.systems = [ours, theirs]
        self.results = {}
        self.idles = {}
        # (CPU seconds, seconds) of each cluster while the other one was loaded.
        self.beside = {OURS: [0, 0], THEIRS: [0, 0]}
        self.restless = 0
        self.repeated = 0

    def pids(self):
        """The processes of all six brokers."""
        return [pid for system in self.systems for pid in system.pids()]

    def measure_idle(self, when):
        """Both clusters at once: neither has anything to do."""
        if "idle" not in self.options.parts:
            return
        progress(f"idle {when}: {self.options.idle_seconds} s")
        measure.await_quiet(self.pids())
        found = measure.idle(self.systems, self.options.idle_seconds)
        self.idles[when] = {system.label: idle for system, idle in zip(self.systems, found)}

    def warm_up(self):
        """The loads of the table, not measured: JVMs compile what they run often."""
        cases = [(*load, size) for load in LOADS for size in SIZES]
        seconds = max(1, self.options.warm_up // len(cases))
        for system in self.systems:
            progress(f"warming up {system.label}")
            for connections, in_flight, size in cases:
                try:
                    measure.bench_produce(system, connections, in_flight, size, seconds)
                except e2e.Broken as broken:
                    # A cold JVM may not answer in time; the rounds are what counts.
                    progress(f"while warming up: {broken}")

    def fill(self):
        """Messages to be read back."""
        if "old" not in self.options.parts:
            return
        for system in self.systems:
            for size, topic in OLD.items():
                progress(f"filling {topic} at {system.label}")
                measure.fill(system, topic, size, OLD_MESSAGES)

    def run_case(self, number, name, load):
        """One case at both, in turn; who begins changes with the round."""
        order = self.systems if number % 2 == 0 else self.systems[::-1]
        for system in order:
            if not measure.await_quiet(self.pids()):
                self.restless += 1
            (other,) = [other for other in self.systems if other is not system]
            pids = other.pids()
            before, begin = measure.cpu_of(pids), time.monotonic()
            run = self.run_twice_at_most(system, load)
            self.beside[other.label][0] += measure.cpu_of(pids) - before
            self.beside[other.label][1] += time.monotonic() - begin
            self.results.setdefault(name, {OURS: [], THEIRS: []})[system.label].append(run)
            progress(f"round {number + 1}: {name}: {system.label} {run.rate:.0f}/s")

    def run_twice_at_most(self, system, load):
        """One run, and another when the cluster just changed its leader and nothing could be sent."""
        try:
            return load(system)
        except e2e.Broken as broken:
            self.repeated += 1
            progress(f"again: {broken}")
            system.await_leader()
            return load(system)

    def run_all(self):
        """Everything in its order."""
        self.measure_idle("after the start")
        if set(self.options.parts) & {"generator", "producer"}:
            self.warm_up()
        self.fill()
        for number in range(self.options.rounds):
            for name, load in self.loads(number):
                self.run_case(number, name, load)
        self.measure_idle("after the load")

    def loads(self, number):
        """The cases of one round: names and what to do to a system."""
        seconds = self.options.seconds
        if "generator" in self.options.parts:
            for size in SIZES:
                for connections, in_flight in LOADS:
                    case = {"connections": connections, "in_flight": in_flight, "size": size}
                    load = functools.partial(measure.bench_produce, **case, seconds=seconds)
                    yield generator_case(**case), load
        if "producer" in self.options.parts:
            for size in SIZES:
                case = {"folder": self.folder, "size": size, "seconds": seconds, "number": number}
                yield producer_case(size), functools.partial(measure.java_produce, **case)
        if "old" in self.options.parts:
            for size, topic in OLD.items():
                case = {"topic": topic, "connections": OLD_CONNECTIONS, "number": number}
                yield old_case(size), functools.partial(measure.bench_consume, **case)


def generator_case(connections, in_flight, size):
    """How a case of our generator is called."""
    kind = "sync" if in_flight == 1 else f"async x{in_flight}"
    return f"{kind}, {connections} connection{'s' if connections > 1 else ''}, {bytes_text(size)}"


def producer_case(size):
    """How a case of RocketMQ's generator is called."""
    return f"RocketMQ's Producer, {measure.PRODUCER_THREADS} threads, {bytes_text(size)}"


def old_case(size):
    """How reading back is called."""
    return f"old messages, {OLD_CONNECTIONS} connections, {bytes_text(size)}"


def bytes_text(size):
    """128 B, 1 KiB."""
    return f"{size // 1024} KiB" if size % 1024 == 0 else f"{size} B"


def progress(line):
    """For the person who waits."""
    print(line, file=sys.stderr, flush=True)


def header(options):
    """What was compared on what."""
    version = subprocess.run([e2e.binary(), "--version"], capture_output=True, text=True, check=True).stdout.strip()
    models = [
        line.split(":", 1)[1].strip()
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return [
        f"{version} (`raftmq local`, defaults: acknowledged after a quorum has synced) and RocketMQ 5.5.0 DLedger "
        "(acknowledged after a quorum has it in memory), three brokers each.",
        f"RocketMQ: heap {options.heap} a broker, G1, {', '.join(THEIR_SETTINGS)}, otherwise its defaults.",
        f"Machine: {len(os.sched_getaffinity(0))} cores ({models[0] if models else platform.machine()}), "
        f"{memory:.0f} GiB, Linux {platform.release()}; brokers and generators share it, everything on one disk; "
        f"load average {os.getloadavg()[0]:.1f} before the start.",
        f"{options.rounds} rounds of {options.seconds} s a case, in turn; figures are medians over the rounds, failed "
        "sends their sum, the peak their highest; ratio: messages per second, median (lowest-highest round).",
    ]


def explain(comparison_run):
    """What the table does not say by itself."""
    lines = [
        "CPU s: processor time of the three brokers in one run; µs/msg: the same for one message; peak MiB: largest "
        "resident memory of one broker, mapped files included.",
    ]
    cells = [cell for row in comparison.rows(comparison_run.results) for cell in row]
    if any(cell.endswith("*") for cell in cells):
        lines.append("*: the generator was busy all the time; the brokers may do more.")
    if "producer" in comparison_run.options.parts:
        used = [
            f"{system} {100 * comparison.median(runs[system], 'generator'):.0f} %"
            for name, runs in comparison_run.results.items()
            if name == producer_case(SIZES[-1])
            for system in (OURS, THEIRS)
        ]
        lines.append(
            f"RocketMQ's Producer tells no percentiles, and its JVM takes much of the same cores (of one core, "
            f"{bytes_text(SIZES[-1])}: {', '.join(used)})."
        )
    beside = [
        f"{label} {100 * cpu / seconds:.1f} %" for label, (cpu, seconds) in comparison_run.beside.items() if seconds
    ]
    if beside:
        lines.append(f"The cluster without load stayed up and used of one core, three brokers: {', '.join(beside)}.")
    if comparison_run.restless:
        lines.append(f"{comparison_run.restless} runs began before the brokers had come to rest.")
    if comparison_run.repeated:
        lines.append(f"{comparison_run.repeated} runs had to be repeated: no leader took messages.")
    return lines


def report(comparison_run):
    """Prints everything."""
    options = comparison_run.options
    table = comparison.markdown_table if options.markdown else comparison.text_table
    blocks = ["\n".join(comparison_run.header)]
    if comparison_run.results:
        blocks.append(table(comparison.HEADINGS, comparison.rows(comparison_run.results)))
    if comparison_run.idles:
        headings = [f"over {options.idle_seconds} s", "brokers", OURS, THEIRS]
        blocks.append(table(headings, comparison.idle_rows(comparison_run.idles)))
    blocks.append("\n".join(explain(comparison_run)))
    sync = [generator_case(64, 1, size) for size in SIZES]
    producer = [producer_case(size) for size in SIZES]
    lines = comparison.meant(comparison_run.results, comparison_run.idles, sync, producer)
    blocks.append("\n".join(["What is meant, and this run:", *(f"- {line}" for line in lines)]))
    print("\n\n".join(blocks))


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description="RaftMQ and RocketMQ 5.5.0 DLedger under the same loads.")

    def add(name, default, text):
        parser.add_argument(name, type=type(default), default=default, help=f"{text} ({default})")

    add("--seconds", 10, "measured time of a run; of RocketMQ's Producer in tens")
    add("--rounds", 3, "runs of each case at each cluster")
    add("--warm-up", 60, "seconds of load on each cluster before the first round")
    add("--idle-seconds", 20, "time over which idle brokers are watched")
    add("--heap", "1g", "heap of each Java broker")
    add("--parts", ",".join(PARTS), "what is measured, a comma list")
    parser.add_argument("--markdown", action="store_true", help="tables for the documentation")
    options = parser.parse_args()
    options.parts = options.parts.split(",")
    if not set(options.parts) <= set(PARTS):
        parser.error(f"--parts takes {', '.join(PARTS)}")
    for name in ("seconds", "rounds", "idle_seconds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is at least 1")
    return options


def run(_checks):
    options = arguments()
    top = header(options)
    with e2e.temporary_folder() as folder:
        ours, theirs = Ours(folder), Theirs(folder / "rocketmq", options.heap, THEIR_SETTINGS)
        try:
            progress("starting both clusters")
            theirs.start()
            ours.start()
            comparison_run = Comparison(options, folder, ours, theirs)
            comparison_run.header = top
            comparison_run.run_all()
        finally:
            ours.stop()
            theirs.stop()
        report(comparison_run)


if __name__ == "__main__":
    e2e.main(run)
