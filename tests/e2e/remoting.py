"""A small client of the RocketMQ remoting protocol with JSON headers, one request at a time."""

import json
import socket
import struct
import threading
import time

SEND_MESSAGE = 10
PULL_MESSAGE = 11
QUERY_CONSUMER_OFFSET = 14
UPDATE_CONSUMER_OFFSET = 15
CREATE_TOPIC = 17
GET_ALL_TOPICS = 21
GET_MAX_OFFSET = 30
GET_MIN_OFFSET = 31
GET_ALL_CONSUMER_OFFSETS = 43
GET_ROUTE = 105
CREATE_GROUP = 200
DELETE_EXPIRED_COMMITLOG = 329

SUCCESS = 0
SYSTEM_ERROR = 1
SERVICE_NOT_AVAILABLE = 14
QUERY_NOT_FOUND = 22

# Above the 2.8 s for which a replica holds a request that waits for a leader. Unit: seconds.
CALL_TIMEOUT = 3.5


class Failed(Exception):
    """No answer, or one that makes no sense."""


def split(address):
    """host:port as a pair."""
    host, port = address.rsplit(":", 1)
    return host, int(port)


def encode(code, fields, body=b"", opaque=1):
    """A request as it stands on the wire."""
    header = json.dumps(
        {
            "code": code,
            "language": "PYTHON",
            "version": 0,
            "opaque": opaque,
            "flag": 0,
            "extFields": {name: str(value) for name, value in fields.items()},
            "serializeTypeCurrentRPC": "JSON",
        }
    ).encode()
    return struct.pack(">II", 4 + len(header) + len(body), len(header)) + header + body


def connect(address, timeout):
    """A connection whose own port a server may still bind: it comes from the ephemeral range, in
    which the Raft ports of the cluster under test lie too."""
    stream = socket.socket()
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    stream.settimeout(timeout)
    try:
        stream.connect(address)
    except OSError:
        stream.close()
        raise
    return stream


class Connection:
    """One connection to a broker or a name server."""

    def __init__(self, address, timeout=CALL_TIMEOUT):
        self.socket = connect(split(address), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.opaque = 0

    def call(self, code, fields, body=b""):
        """Sends a request and returns (header, body) of its answer."""
        self.opaque += 1
        self.socket.sendall(encode(code, fields, body, self.opaque))
        while True:
            header, answer = self.read()
            # Requests of the broker have no response bit.
            if header["opaque"] == self.opaque and header["flag"] & 1:
                return header, answer

    def read(self):
        """The next frame."""
        (length,) = struct.unpack(">I", self.exactly(4))
        frame = self.exactly(length)
        (mark,) = struct.unpack(">I", frame[:4])
        if mark >> 24 != 0:
            raise Failed("the answer has no JSON header")
        return json.loads(frame[4 : 4 + mark]), frame[4 + mark :]

    def exactly(self, count):
        """The next `count` bytes."""
        parts = []
        while count:
            part = self.socket.recv(count)
            if not part:
                raise Failed("the connection was closed")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def close(self):
        """Closes the connection."""
        self.socket.close()


class Client:
    """Calls a replica and stays with it until it fails, then takes the next."""

    def __init__(self, addresses):
        self.addresses = addresses
        self.place = 0
        self.connection = None

    def address(self):
        """The replica that is asked now."""
        return self.addresses[self.place]

    def call(self, code, fields, body=b""):
        """One attempt; raises Failed or OSError, and the next call takes another replica."""
        try:
            if self.connection is None:
                self.connection = Connection(self.address())
            return self.connection.call(code, fields, body)
        except (OSError, Failed, ValueError):
            self.next_replica()
            raise

    def next_replica(self):
        """Leaves the replica."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None
        self.place = (self.place + 1) % len(self.addresses)

    def try_send(self, topic, queue_id, key, body=b"probe"):
        """Sends one message; the header of the answer."""
        fields = {
            "producerGroup": "e2e",
            "topic": topic,
            "defaultTopic": "TBW102",
            "defaultTopicQueueNums": 4,
            "queueId": queue_id,
            "sysFlag": 0,
            "bornTimestamp": int(time.time() * 1000),
            "flag": 0,
            "properties": f"UNIQ_KEY\x01{key}\x02WAIT\x01true\x02",
            "reconsumeTimes": 0,
            "unitMode": "false",
            "batch": "false",
        }
        return self.call(SEND_MESSAGE, fields, body)[0]

    def send(self, topic, queue_id, key):
        """Sends one message; (queue id, queue offset) when it is acknowledged, else Failed."""
        header = self.try_send(topic, queue_id, key)
        if header["code"] != SUCCESS:
            self.next_replica()
            raise Failed(f"answer {header['code']}: {header.get('remark')}")
        answer = header["extFields"]
        return int(answer["queueId"]), int(answer["queueOffset"])


def ask(address, code, fields=(), body=b"", timeout=CALL_TIMEOUT):
    """One request on a connection of its own; (header, body) of an answer with SUCCESS."""
    connection = Connection(address, timeout)
    try:
        header, answer = connection.call(code, dict(fields), body)
    finally:
        connection.close()
    if header["code"] != SUCCESS:
        raise Failed(f"answer {header['code']} to {code}: {header.get('remark')}")
    return header, answer


def pull(connection, topic, queue_id, offset):
    """Pulls some messages without waiting for any; (code, bytes of the messages)."""
    fields = {
        "consumerGroup": "e2e_pull",
        "topic": topic,
        "queueId": queue_id,
        "queueOffset": offset,
        "maxMsgNums": 32,
        "sysFlag": 4,
        "commitOffset": 0,
        "suspendTimeoutMillis": 0,
        "subscription": "*",
        "subVersion": 0,
        "expressionType": "TAG",
    }
    header, body = connection.call(PULL_MESSAGE, fields)
    return header["code"], body


def create_topic(address, topic, queues):
    """Creates a topic."""
    fields = {
        "topic": topic,
        "defaultTopic": "TBW102",
        "readQueueNums": queues,
        "writeQueueNums": queues,
        "perm": 6,
        "topicFilterType": "SINGLE_TAG",
        "topicSysFlag": 0,
        "order": "false",
    }
    ask(address, CREATE_TOPIC, fields)


def create_group(address, group):
    """Creates a subscription group."""
    ask(address, CREATE_GROUP, body=json.dumps({"groupName": group}).encode())


def commit_offset(address, group, topic, queue_id, offset):
    """Commits a consumer offset and waits until it is in the log."""
    queue = {"consumerGroup": group, "topic": topic, "queueId": queue_id}
    ask(address, UPDATE_CONSUMER_OFFSET, {**queue, "commitOffset": offset})


def committed_offset(address, group, topic, queue_id):
    """The committed offset."""
    queue = {"consumerGroup": group, "topic": topic, "queueId": queue_id}
    header, _ = ask(address, QUERY_CONSUMER_OFFSET, queue)
    return int(header["extFields"]["offset"])


def queue_bounds(address, topic, queue_id):
    """(min, max) offset of a queue."""
    queue = {"topic": topic, "queueId": queue_id}
    answers = [ask(address, code, queue)[0] for code in (GET_MIN_OFFSET, GET_MAX_OFFSET)]
    return tuple(int(header["extFields"]["offset"]) for header in answers)


class Prober(threading.Thread):
    """Sends one message after the other and notes when each was acknowledged.

    It knows all replicas; a failed send is tried once more at each of the others, as a stock
    producer does.
    """

    PAUSE = 0.002

    def __init__(self, addresses, topic, first=0):
        super().__init__(daemon=True)
        self.client = Client(addresses)
        self.client.place = first
        self.topic = topic
        self.acks = []
        # (moment, queue id, queue offset); list.append is atomic.
        self.times = []
        self.vain = []
        self.failed = []
        self.stopping = threading.Event()

    def run(self):
        number = 0
        prefix = f"{time.time_ns() // 1000 << 16:016X}"[:16]
        while not self.stopping.is_set():
            key = f"{prefix}{number:016X}"
            number += 1
            reasons = []
            for _ in self.client.addresses:
                try:
                    place = self.client.send(self.topic, 0, key)
                    self.times.append(time.monotonic())
                    self.acks.append((key, *place))
                    break
                except (OSError, Failed, ValueError) as error:
                    reasons.append(f"{type(error).__name__}: {error}")
            else:
                self.failed.append(reasons)
            self.vain += reasons
            # A pace, not a wait: the sender shall not load the machine.
            self.stopping.wait(self.PAUSE)

    def stop(self):
        """Ends the thread."""
        self.stopping.set()
        self.join(60)

    def gap(self, begin, end):
        """Longest time without an acknowledgement that overlaps [begin, end]."""
        times = list(self.times)
        gaps = [after - before for before, after in zip(times, times[1:]) if after >= begin and before <= end]
        return max(gaps, default=end - begin)


class OffsetWatcher(threading.Thread):
    """Commits the end of queue 0 of a topic for a group, again and again, and asks for the
    committed offset. What is answered must never go back."""

    PAUSE = 0.01

    def __init__(self, addresses, topic, group):
        super().__init__(daemon=True)
        self.client = Client(addresses)
        self.queue = {"consumerGroup": group, "topic": topic, "queueId": 0}
        self.seen = -1
        self.answers = 0
        self.back = []
        self.group = group
        self.has_group = False
        self.stopping = threading.Event()

    def run(self):
        while not self.stopping.is_set():
            try:
                if not self.has_group:
                    body = json.dumps({"groupName": self.group}).encode()
                    header, _ = self.client.call(CREATE_GROUP, {}, body)
                    self.has_group = header["code"] == SUCCESS
                self.step()
            except (OSError, Failed, ValueError):
                # The next replica is asked.
                pass
            self.stopping.wait(self.PAUSE)

    def step(self):
        """One commit and one question."""
        asked = self.client.address()
        header, _ = self.client.call(GET_MAX_OFFSET, self.queue)
        if header["code"] == SUCCESS:
            end = int(header["extFields"]["offset"])
            if end > self.seen:
                fields = {**self.queue, "commitOffset": end}
                header, _ = self.client.call(UPDATE_CONSUMER_OFFSET, fields)
                if header["code"] == SUCCESS:
                    # An answered commit is in the log: it must not be lost either.
                    self.seen = end
        header, _ = self.client.call(QUERY_CONSUMER_OFFSET, self.queue)
        if header["code"] == SUCCESS:
            offset = int(header["extFields"]["offset"])
            self.answers += 1
        elif header["code"] == QUERY_NOT_FOUND:
            offset = -1
        else:
            self.client.next_replica()
            return
        if offset < self.seen:
            self.back.append((asked, self.seen, offset))
        self.seen = max(self.seen, offset)

    def stop(self):
        """Ends the thread."""
        self.stopping.set()
        self.join(60)
