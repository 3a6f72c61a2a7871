"""A stock Java producer and a stock push consumer, with default settings, and what they saw."""

import collections
import os
import pathlib
import socket
import subprocess
import tempfile
import time

from mq import e2e

RUN = pathlib.Path(__file__).resolve().parents[1] / "compat/java/run.sh"

# The load is there to notice, not to fill anything. Unit: messages per second; threads; bytes.
RATE = 80
THREADS = 2
BODY = 128

# A program that nobody ends does so itself. Unit: seconds.
SECONDS_MAX = 3600

# How long the consumer may lag behind at the end. A default client waits 20 s for its next
# rebalance, and a consumer whose pull met an error tries again after 3 s. Unit: seconds.
DRAIN_TIMEOUT = 120

Ack = collections.namedtuple("Ack", "number queue offset begin end")
Failure = collections.namedtuple("Failure", "number begin end reason")


class Program:
    """One Java program in the background, its output in a file."""

    def __init__(self, folder, name, arguments):
        self.output = folder / f"{name}.out"
        environment = {**os.environ, "COMPAT_LOGS": str(folder / "java"), "COMPAT_HEAP": "192m"}
        with open(self.output, "wb") as out:
            self.process = subprocess.Popen(
                [str(RUN), "client55", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                preexec_fn=e2e.end_with_parent,
            )

    def check_alive(self):
        """Fails when it has ended."""
        if self.process.poll() is not None:
            raise e2e.Broken(f"{self.output.name} ended: {self.output.read_text(errors='replace')[-1000:]}")

    def end(self):
        """Ends it."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Traffic:
    """A producer and a consumer on one topic, from `with` to its end."""

    def __init__(self, cluster, topic, rate=RATE):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="raftmq-java."))
        self.name_server = cluster.name_server()
        self.topic = topic
        self.rate = rate
        self.log = self.folder / "sent"
        self.position = 0
        self.acked = []
        self.failed = []
        self.producer = self.consumer = None

    def __enter__(self):
        arguments = [self.name_server, self.topic, THREADS, SECONDS_MAX, BODY, self.log, self.rate]
        self.producer = Program(self.folder, "producer", ["compat.LoadProducer", *arguments])
        self.await_acks(10)
        arguments = [self.name_server, f"CG_{self.topic}", self.topic, 2**31 - 1, SECONDS_MAX]
        self.consumer = Program(self.folder, "consumer", ["compat.Drain", *arguments])
        return self

    def __exit__(self, *_):
        for program in (self.producer, self.consumer):
            if program is not None:
                program.end()

    def read(self):
        """Takes in what the producer has logged since the last call, whole lines only."""
        if not self.log.exists():
            return
        with open(self.log, "rb") as log:
            log.seek(self.position)
            text = log.read()
        end = text.rfind(b"\n") + 1
        self.position += end
        for line in text[:end].decode(errors="replace").splitlines():
            if line.startswith("FAIL"):
                _, number, begin, finish, reason = line.split(" ", 4)
                self.failed.append(Failure(int(number), int(begin), int(finish), reason))
            else:
                self.acked.append(Ack(*map(int, line.split()[:5])))

    def acks(self):
        """Every acknowledged message."""
        self.read()
        return self.acked

    def failures(self):
        """Every send that failed after the client's own retries."""
        self.read()
        return self.failed

    def await_acks(self, count, since=0.0, seconds=60):
        """Waits for acknowledgements of sends that began after a moment."""

        def enough():
            self.producer.check_alive()
            return sum(ack.begin / 1e6 >= since for ack in self.acks()[-200:]) >= count

        e2e.await_that(f"{count} acknowledged messages", seconds, enough)

    def gap(self, begin, end):
        """Longest time without an acknowledgement that overlaps a span. Unit: seconds."""
        times = sorted(ack.end / 1e6 for ack in self.acks())
        gaps = [after - before for before, after in zip(times, times[1:]) if after >= begin and before <= end]
        return max(gaps, default=end - begin)

    def consumed(self):
        """(number, queue, offset) of every message that came to the consumer."""
        found = set()
        text = self.consumer.output.read_text(errors="replace")
        for line in text[: text.rfind("\n") + 1].splitlines():
            fields = line.split()
            if len(fields) >= 4 and fields[0].isdigit() and fields[3].isdigit():
                found.add((int(fields[3]), int(fields[0]), int(fields[1])))
        return found

    def check_nothing_lost(self, checks):
        """Ends the producer and waits until every acknowledged message came to the consumer."""
        self.producer.end()
        sent = {(ack.number, ack.queue, ack.offset) for ack in self.acks()}
        end = time.monotonic() + DRAIN_TIMEOUT
        missing = sent - self.consumed()
        while missing and time.monotonic() < end:
            time.sleep(0.5)
            missing = sent - self.consumed()
        checks.check(
            not missing and bool(sent),
            f"{len(sent)} acknowledged messages, each consumed with its queue and offset",
            f"{len(missing)} did not come, {sorted(missing)[:5]}",
        )


def prepare():
    """Resolves jars and compiles, outside of the node: there is no network inside."""
    subprocess.run([str(RUN.with_name("classpaths.sh"))], check=True, stdout=subprocess.DEVNULL)


def service_is_reachable(cluster):
    """Whether this machine reaches addresses of Services."""
    host, port = cluster.name_server().rsplit(":", 1)
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            return True
    except OSError:
        return False
