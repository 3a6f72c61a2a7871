"""A cluster of `raftmq local` for the scripts beside this file, loads on it and what they leave.

Everything is on 127.0.0.1 and ends with the process that started it: `raftmq local` gets SIGTERM
when its parent dies, and its servers end with it.
"""

import collections
import contextlib
import ctypes
import http.client
import json
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

# Longest waits. Generous: two slow cores may also be compiling something. Unit: seconds.
START_TIMEOUT = 90
LEADER_TIMEOUT = 30
CATCH_UP_TIMEOUT = 60
STOP_TIMEOUT = 40

# Pause between two looks at a condition. Unit: seconds.
POLL = 0.02


class Broken(Exception):
    """The script cannot go on."""


class Checks:
    """Prints PASS or FAIL for each check and remembers whether one failed."""

    any_failed = False

    def __init__(self):
        self.failed = 0

    def check(self, ok, name, detail=""):
        """Counts one check; `detail` is printed when it failed."""
        if ok:
            print(f"PASS {name}")
        else:
            self.failed += 1
            Checks.any_failed = True
            print(f"FAIL {name}: {detail}")
        return ok


def binary():
    """The program to test: $RAFTMQ_BINARY, else what cargo builds with --release."""
    target = os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target")
    path = pathlib.Path(os.environ.get("RAFTMQ_BINARY") or pathlib.Path(target) / "release/raftmq")
    if not os.access(path, os.X_OK):
        raise Broken(f"{path} is no program; cargo build --release, or set RAFTMQ_BINARY")
    return str(path.resolve())


def await_that(what, seconds, condition):
    """Waits until `condition()` is true and returns its value."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Broken(f"gave up waiting for {what} after {seconds} s")
        time.sleep(POLL)


def end_with_parent():
    """Run in a child: SIGTERM when the parent dies, however it does."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def memory_bytes(pid, field="VmRSS"):
    """Memory of a process as the kernel counts it; VmHWM is the peak of VmRSS."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise Broken(f"process {pid} has no {field}")


class Cluster:
    """`raftmq local` in a temporary folder."""

    def __init__(self, folder):
        self.folder = folder
        self.data = folder / "data"
        self.output = folder / "local.out"
        self.process = None

    def start(self):
        """Starts it and waits until every node is ready."""
        arguments = [binary(), "local", "--data-dir", str(self.data)]
        with open(self.output, "ab") as out:
            self.process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                preexec_fn=end_with_parent,
            )

        def is_ready():
            if self.process.poll() is not None:
                raise Broken(f"raftmq local ended:\n{self.output.read_text()}")
            return "ready after" in self.output.read_text()

        await_that("the cluster to start", START_TIMEOUT, is_ready)

    def stop(self):
        """Stops it as Ctrl-C does."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def description(self):
        """What local.json says."""
        return json.loads((self.data / "local.json").read_text())

    def nodes(self):
        """The nodes by name."""
        return {node["name"]: node for node in self.description()["nodes"]}

    def addresses(self):
        """Where clients reach the brokers."""
        return [node["address"] for node in self.description()["nodes"]]

    def name_server(self):
        """Where clients reach the name server."""
        return self.description()["nameServer"]

    def status(self, name):
        """The answer of /status, None when the node does not answer."""
        address = self.nodes()[name]["httpAddress"]
        return http_status(address)

    def leader(self, besides=()):
        """The name of the node that leads, None when there is none. The highest term wins: a
        leader of the past may not know yet that it is one."""
        leaders = []
        for name in self.nodes():
            status = None if name in besides else self.status(name)
            if status and status["role"] == "LEADER":
                leaders.append((status["term"], name))
        return max(leaders)[1] if leaders else None

    def await_leader(self, besides=()):
        """Waits for a leader and returns its name."""
        return await_that("a leader", LEADER_TIMEOUT, lambda: self.leader(besides))

    def kill(self, *names):
        """kill -9, all at once, and waits until `raftmq local` has noticed."""
        nodes = self.nodes()
        pids = [nodes[name]["pid"] for name in names]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.await_gone(names)

    def await_gone(self, names):
        """Waits until `raftmq local` knows that these nodes have ended."""

        def gone():
            nodes = self.nodes()
            return all(nodes[name]["pid"] is None for name in names)

        await_that(f"the end of {', '.join(names)}", STOP_TIMEOUT, gone)

    def restart(self, name):
        """Starts a node again that has ended."""
        arguments = [binary(), "local", "restart", name, "--data-dir", str(self.data)]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            raise Broken(f"raftmq local restart {name}: {done.stdout}{done.stderr}")

    def await_caught_up(self, name):
        """Waits until a node follows and has what the leader had when it was asked."""

        def caught_up():
            own = self.status(name)
            if not own or not own["ready"] or own["role"] != "FOLLOWER":
                return False
            leader = self.leader()
            if leader is None:
                return False
            status = self.status(leader)
            if not status or status["term"] != own["term"]:
                return False
            goal = status["committedIndex"] or 0
            return await_applied(name, goal)

        def await_applied(follower, goal):
            end = time.monotonic() + 5
            while time.monotonic() < end:
                status = self.status(follower)
                if status and (status["appliedIndex"] or 0) >= goal:
                    return True
                time.sleep(POLL)
            return False

        await_that(f"{name} to catch up", CATCH_UP_TIMEOUT, caught_up)

    def await_all_equal(self):
        """Waits until every node has applied the same last entry; needs a silent cluster."""

        def equal():
            all_of = [self.status(name) for name in self.nodes()]
            if not all(status and status["ready"] for status in all_of):
                return False
            return len({(status["lastIndex"], status["appliedIndex"]) for status in all_of}) == 1

        await_that("all nodes to have the same log", CATCH_UP_TIMEOUT, equal)


def http_get(address, path):
    """The body of an answer with 200, None when there is none."""
    host, port = address.rsplit(":", 1)
    connection = http.client.HTTPConnection(host, int(port), timeout=2)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        return body if answer.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def http_status(address):
    """GET /status, None when there is no answer."""
    body = http_get(address, "/status")
    try:
        return json.loads(body) if body is not None else None
    except ValueError:
        return None


@contextlib.contextmanager
def temporary_folder():
    """A folder that is kept when the script fails, for its logs."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="raftmq-e2e."))
    try:
        yield folder
    except BaseException:
        print(f"data and logs: {folder}", file=sys.stderr)
        raise
    if Checks.any_failed:
        print(f"data and logs: {folder}", file=sys.stderr)
        return
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def running_cluster():
    """A cluster that is ready; stopped in any case."""
    with temporary_folder() as folder:
        cluster = Cluster(folder)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


class Load:
    """`raftmq bench produce` in the background."""

    def __init__(self, cluster, topic, rate=400, connections=4, in_flight=1, queues=4, size=128):
        self.topic = topic
        self.queues = queues
        self.ack_log = cluster.folder / f"{topic}.acks"
        arguments = [binary(), "bench", "produce", "-t", topic, "--queues", str(queues)]
        for address in cluster.addresses():
            arguments += ["-b", address]
        arguments += ["-c", str(connections), "--in-flight", str(in_flight), "--rate", str(rate)]
        arguments += ["--size", str(size)]
        # Ends by itself long after the script would have.
        arguments += ["--seconds", "3600", "--interval", "0", "--format", "json"]
        arguments += ["--ack-log", str(self.ack_log)]
        self.process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=end_with_parent,
        )
        self.report = None

    def finish(self):
        """Ends the load and returns its report."""
        if self.report is None:
            self.process.send_signal(signal.SIGINT)
            out, errors = self.process.communicate(timeout=60)
            if self.process.returncode != 0:
                raise Broken(f"bench produce: {out}{errors}")
            self.report = json.loads(out)
        return self.report

    def kill(self):
        """Ends the process if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()

    def acks(self):
        """Acknowledged messages as (key, queue id, queue offset); after the end of the load."""
        return read_message_log(self.ack_log)

    def acknowledged(self):
        """How many messages were acknowledged so far, about."""
        try:
            return self.ack_log.read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0


@contextlib.contextmanager
def loads(*all_of):
    """Kills the loads that still run at the end."""
    try:
        yield all_of
    finally:
        for load in all_of:
            load.kill()


def read_message_log(path):
    """The lines `KEY QUEUE_ID QUEUE_OFFSET` of a file."""
    messages = []
    with open(path, encoding="ascii") as lines:
        for line in lines:
            key, queue_id, offset = line.split()
            messages.append((key, int(queue_id), int(offset)))
    return messages


def consume_all(cluster, topic, queues, address):
    """What one replica has of a topic, as (key, queue id, queue offset) in the order received."""
    path = cluster.folder / f"{topic}.{address.replace(':', '-')}.received"
    arguments = [binary(), "bench", "consume", "-b", address, "-t", topic]
    arguments += ["--queues", str(queues), "--no-commit", "--until-empty", "--seconds", "300"]
    arguments += ["--interval", "0", "--format", "json", "--message-log", str(path)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=330, check=False)
    if done.returncode != 0:
        raise Broken(f"bench consume from {address}: {done.stdout}{done.stderr}")
    return read_message_log(path)


def check_topic(checks, cluster, topic, queues, acks, ordered):
    """Nothing acknowledged is lost, offsets are dense, the replicas are equal.

    `ordered`: one message was in flight per connection, so each sender's order is kept.
    """
    contents = {}
    for address in cluster.addresses():
        received = consume_all(cluster, topic, queues, address)
        content = {(queue_id, offset): key for key, queue_id, offset in received}
        contents[address] = content
        problems = []
        if len(content) < len(received):
            problems.append(f"{len(received) - len(content)} offsets came twice")
        lost = [ack for ack in acks if content.get((ack[1], ack[2])) != ack[0]]
        if lost:
            there = [content.get((ack[1], ack[2])) for ack in lost[:3]]
            problems.append(f"{len(lost)} are lost, the first {lost[:3]}, at their places {there}")
        gaps = missing_offsets(content)
        if gaps:
            problems.append(f"{len(gaps)} offsets missing, the first {gaps[:5]}")
        checks.check(
            not problems,
            f"{topic} at {address}: {len(acks)} acknowledged messages, each at its offset, no gaps",
            "; ".join(problems),
        )
    first, *others = contents.values()
    for address, other in zip(list(contents)[1:], others):
        differing = [place for place in first.keys() | other.keys() if first.get(place) != other.get(place)]
        checks.check(
            not differing,
            f"{topic} at {address}: equal to the first replica ({len(first)} messages)",
            f"{len(differing)} places differ, {sorted(differing)[:3]}",
        )
    if ordered:
        swapped = out_of_order(acks)
        checks.check(not swapped, f"{topic}: each sender's order is kept", f"not at {swapped[:3]}")
    twice = len(first) - len(set(first.values()))
    print(f"{topic}: {len(acks)} acknowledged, {len(first)} stored, {twice} stored twice")


def missing_offsets(content):
    """Places below a queue's last offset, from 0, that hold nothing."""
    ends = {}
    for queue_id, offset in content:
        ends[queue_id] = max(ends.get(queue_id, 0), offset + 1)
    return [
        (queue_id, offset)
        for queue_id, end in sorted(ends.items())
        for offset in range(end)
        if (queue_id, offset) not in content
    ]


def out_of_order(acks):
    """Keys that stand before an older message of the same sender and queue. A key is 12 digits
    of the run, 4 of the connection and 16 of a counter."""
    newest = {}
    swapped = []
    for key, queue_id, _ in sorted(acks, key=lambda ack: (ack[1], ack[2])):
        sender, number = (key[:16], queue_id), int(key[16:], 16)
        if number <= newest.get(sender, -1):
            swapped.append(key)
        newest[sender] = max(number, newest.get(sender, -1))
    return swapped


def percentile(values, share):
    """The smallest value that at least `share` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]


def summary(reasons):
    """Each reason with its number."""
    return dict(collections.Counter(reasons))


def gap_line(name, gaps):
    """One line about gaps in seconds."""
    shown = [1000 * value for value in (percentile(gaps, 0.5), percentile(gaps, 0.99), max(gaps))]
    return f"{name}: p50 {shown[0]:.0f} ms, p99 {shown[1]:.0f} ms, max {shown[2]:.0f} ms over {len(gaps)}"


def main(run):
    """Runs `run(checks)`; the exit code says whether a check failed."""
    # SIGTERM ends the script the way an error does, so that everything is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    checks = Checks()
    name = pathlib.Path(sys.argv[0]).name
    try:
        run(checks)
    except Exception as error:  # pylint: disable=broad-except
        if not isinstance(error, Broken):
            traceback.print_exc()
        checks.check(False, name, f"{type(error).__name__}: {error}")
    sys.exit(1 if checks.failed else 0)
