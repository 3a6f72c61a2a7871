"""Traffic on a cluster while something happens to it: stock Java clients, or a small one of ours."""

import pathlib
import tempfile
import threading
import time

import java_clients
import mq
from mq import e2e

import remoting  # beside cluster.py of e2e

# The small client sends one message after the other with this pause. Unit: seconds.
PAUSE = 0.02


def traffic(cluster, topic, with_java):
    """The one or the other; both have the same methods."""
    return java_clients.Traffic(cluster, topic) if with_java else Small(cluster, topic)


class Small:
    """A producer that knows the leader's Service only, and afterwards a look into every replica."""

    def __init__(self, cluster, topic):
        self.group = cluster.group()
        self.topic = topic
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="raftmq-traffic."))
        self.address = f"{self.group.service_address()}:{mq.PORT_REMOTING}"
        self.sender = Sender(self.address, topic)

    def __enter__(self):
        self.sender.start()
        self.await_acks(10)
        return self

    def __exit__(self, *_):
        self.sender.stop()

    def await_acks(self, count, since=0.0, seconds=60):
        """Waits for acknowledgements of sends that began after a moment."""
        acks = self.sender.acks

        def enough():
            return sum(ack.begin / 1e6 >= since for ack in acks[-200:]) >= count

        try:
            e2e.await_that(f"{count} acknowledged messages", seconds, enough)
        except e2e.Broken as error:
            raise e2e.Broken(f"{error}; the last failures: {self.sender.failed[-2:]}") from error

    def failures(self):
        """Every send that failed after its retries."""
        return self.sender.failed

    def gap(self, begin, end):
        """Longest time without an acknowledgement that overlaps a span. Unit: seconds."""
        times = [ack.end / 1e6 for ack in self.sender.acks]
        gaps = [after - before for before, after in zip(times, times[1:]) if after >= begin and before <= end]
        return max(gaps, default=end - begin)

    def addresses(self):
        """For `e2e.check_topic`: every replica by itself."""
        return self.group.addresses()

    def check_nothing_lost(self, checks):
        """Every acknowledged message is at its place on every replica."""
        self.sender.stop()
        self.group.await_caught_up()
        acks = [(ack.number, ack.queue, ack.offset) for ack in self.sender.acks]
        e2e.check_topic(checks, self, self.topic, 4, acks, True)


class Sender(threading.Thread):
    """Sends one message after the other, each at most three times, as a stock producer does."""

    RETRIES = 3

    def __init__(self, address, topic):
        super().__init__(daemon=True)
        self.client = remoting.Client([address])
        self.topic = topic
        self.acks = []
        self.failed = []
        self.stopping = threading.Event()

    def run(self):
        number = 0
        prefix = f"{time.time_ns() // 1000 << 16:016X}"[:16]
        while not self.stopping.is_set():
            key = f"{prefix}{number:016X}"
            number += 1
            begin = time.time()
            reason = None
            for _ in range(self.RETRIES):
                try:
                    place = self.client.send(self.topic, 0, key)
                    self.acks.append(java_clients.Ack(key, *place, int(begin * 1e6), int(time.time() * 1e6)))
                    break
                except (OSError, remoting.Failed, ValueError) as error:
                    reason = f"{type(error).__name__}: {error}"
            else:
                self.failed.append(java_clients.Failure(key, int(begin * 1e6), int(time.time() * 1e6), reason))
            # A pace, not a wait: the sender shall not load the machine.
            self.stopping.wait(PAUSE)

    def stop(self):
        """Ends the thread."""
        self.stopping.set()
        if self.is_alive():
            self.join(60)
