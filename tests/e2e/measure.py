"""What processes use of the machine, read from /proc, and runs of load that measure brokers."""

import collections
import json
import os
import pathlib
import re
import subprocess
import time

import cluster as e2e
import java

# Unit of the times in /proc/PID/stat.
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

# Writing this to clear_refs sets the peak of a process's memory back to its size now.
RESET_PEAK = "5"

# Brokers are quiet when all of them together use less than this share of one core, looked at over
# this many seconds; after the timeout a run begins all the same.
QUIET_SHARE = 0.3
QUIET_LOOK = 0.5
QUIET_TIMEOUT = 15

# Seconds at the start of a run of `raftmq bench` that are not measured.
WARM_UP = 2

# Longest time that such a run takes beside the measured one. Unit: seconds.
BENCH_TIMEOUT = 120

# Longest time to write or read the messages of a topic. Unit: seconds.
FILL_TIMEOUT = 120

# RocketMQ's Producer prints the mean of its last nine to ten seconds, for the first time after ten.
PRODUCER_WINDOW = 10
PRODUCER_THREADS = 64
PRODUCER_START_TIMEOUT = 90

PRODUCER_LINE = re.compile(
    r"^Current Time: .*?Send TPS: (\d+) .*?Max RT\(ms\): (\d+) .*?Average RT\(ms\): +([\d.]+|NaN) "
    r".*?Send Failed: (\d+) .*?Response Failed: (\d+)",
    re.MULTILINE,
)

# One run. Latencies in ms, None where the generator does not tell; `cpu` of all brokers in seconds;
# `peak` the largest resident memory that one broker had, in bytes; `generator` is the generator's
# own processor time as a share of one core, `threads` how many it has.
Run = collections.namedtuple("Run", "rate seconds mean p50 p99 p999 failed cpu peak generator threads")


def cpu_seconds(pid):
    """User and system time of all threads of a process since its start."""
    stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    # The name in front may hold blanks and brackets; behind it the fields are counted from 3.
    fields = stat.rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def cpu_of(pids):
    """The same of several processes together."""
    return sum(cpu_seconds(pid) for pid in pids)


def reset_peaks(pids):
    """From now on VmHWM tells the largest memory since this moment."""
    for pid in pids:
        pathlib.Path(f"/proc/{pid}/clear_refs").write_text(RESET_PEAK)


def await_quiet(pids):
    """Waits until the brokers have done what they had left to do; whether they have."""
    end = time.monotonic() + QUIET_TIMEOUT
    while time.monotonic() < end:
        before = cpu_of(pids)
        time.sleep(QUIET_LOOK)
        if cpu_of(pids) - before < QUIET_SHARE * QUIET_LOOK:
            return True
    return False


Idle = collections.namedtuple("Idle", "memory anonymous cpu")


def idle(systems, seconds):
    """Memory (bytes) and processor time (share of one core) of each broker that has nothing to do;
    a list of Idle for each system."""
    before = [[cpu_seconds(pid) for pid in system.pids()] for system in systems]
    begin = time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - begin
    results = []
    for system, cpu_before in zip(systems, before):
        brokers = []
        for pid, cpu in zip(system.pids(), cpu_before):
            memory = e2e.memory_bytes(pid)
            anonymous = e2e.memory_bytes(pid, "RssAnon")
            brokers.append(Idle(memory, anonymous, (cpu_seconds(pid) - cpu) / passed))
        results.append(brokers)
    return results


def bench(system, command, topic, seconds, *arguments):
    """One run of `raftmq bench`, which is to end in about `seconds`: its report."""
    line = [e2e.binary(), "bench", command, "-n", system.name_server(), "-t", topic]
    line += ["--interval", "0", "--format", "json", *(str(argument) for argument in arguments)]
    for pid in system.pids():
        line += ["--pid", str(pid)]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=seconds + BENCH_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise e2e.Broken(f"bench {command} at {system.label} did not end in time") from None
    if done.returncode != 0:
        raise e2e.Broken(f"bench {command} at {system.label}: {done.stdout}{done.stderr}")
    report = json.loads(done.stdout)
    if report["messages"] == 0:
        raise e2e.Broken(f"bench {command} at {system.label}: no message, {report['failures']}")
    return report


def run_of(report, latency):
    """What a report tells about a run."""
    generator, *brokers = report["processes"]
    return Run(
        rate=report["messagesPerSecond"],
        seconds=report["seconds"],
        mean=latency.get("mean"),
        p50=latency.get("p50"),
        p99=latency.get("p99"),
        p999=latency.get("p99.9"),
        failed=report["failed"],
        cpu=sum(broker["cpuSeconds"] for broker in brokers),
        peak=max(broker["rssPeakBytes"] for broker in brokers),
        generator=generator["cpuShare"],
        threads=1,
    )


def bench_produce(system, connections, in_flight, size, seconds):
    """One run of `raftmq bench produce`."""
    reset_peaks(system.pids())
    topic = f"compare_{connections}_{in_flight}_{size}"
    load = ["--size", size, "-c", connections, "-i", in_flight, "-s", seconds, "--warmup", WARM_UP]
    report = bench(system, "produce", topic, seconds, *load)
    return run_of(report, report["latencyMs"])


def fill(system, topic, size, messages):
    """Sends that many messages, to be read back. RocketMQ refuses one now and then when it is busy."""
    load = ["--size", size, "-c", 32, "-i", 8, "-m", messages]
    report = bench(system, "produce", topic, FILL_TIMEOUT, *load)
    if report["messages"] < 0.99 * messages:
        raise e2e.Broken(f"{system.label} took {report['messages']} of {messages} messages: {report['failures']}")


def bench_consume(system, topic, connections, number):
    """One run of `raftmq bench consume` over the whole topic by a group of its own. Messages are as
    old as they are, so that it tells no latency."""
    reset_peaks(system.pids())
    load = ["-c", connections, "--from", "first", "--until-empty", "-g", f"compare_{number}"]
    return run_of(bench(system, "consume", topic, FILL_TIMEOUT, *load), {})


def java_produce(system, folder, size, seconds, number):
    """One run of RocketMQ's own benchmark Producer with 64 threads, measured from its first line on,
    so that its JVM is warm, for `seconds` in whole windows of ten."""
    windows = max(1, round(seconds / PRODUCER_WINDOW))
    pids = system.pids()
    arguments = ["-t", f"compare_java_{size}", "-w", PRODUCER_THREADS, "-s", size, "-n", system.name_server()]
    name = f"producer-{system.label.lower()}-{size}-{number}"
    producer = java.example(folder, name, "benchmark.Producer", system.name_server(), *arguments, "-ri", 1000)

    def lines():
        producer.must_run()
        return PRODUCER_LINE.findall(producer.text())

    try:
        first = e2e.await_that("the first line of the Producer", PRODUCER_START_TIMEOUT, lines)[-1]
        reset_peaks(pids)
        begin, before, generator = time.monotonic(), cpu_of(pids), cpu_seconds(producer.pid)
        rows = []
        for _ in range(windows):
            time.sleep(PRODUCER_WINDOW)
            rows.append(lines()[-1])
        passed = time.monotonic() - begin
        cpu, generator = cpu_of(pids) - before, cpu_seconds(producer.pid) - generator
        peak = max(e2e.memory_bytes(pid, "VmHWM") for pid in pids)
    finally:
        # It would run for ever; nothing has to be written by it.
        producer.kill()
    rates = [int(row[0]) for row in rows]
    if sum(rates) == 0:
        raise e2e.Broken(f"the Producer sent nothing to {system.label}:\n{producer.text()[-2000:]}")
    spent = sum(rate * float(row[2]) for rate, row in zip(rates, rows) if rate)
    return Run(
        rate=sum(rates) / len(rates),
        seconds=passed,
        mean=spent / sum(rates),
        p50=None,
        p99=None,
        p999=None,
        failed=sum(int(rows[-1][column]) - int(first[column]) for column in (3, 4)),
        cpu=cpu,
        peak=peak,
        generator=generator / passed,
        threads=PRODUCER_THREADS,
    )
