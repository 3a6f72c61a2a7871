"""Reads the status stream of a broker (raftmq.admin.v1, WatchStatus): gRPC with what Python has.

Just enough of HTTP/2 for one call on one connection: headers are sent plainly, those received are
not looked at, and every DATA frame is confirmed.
"""

import socket
import struct
import threading
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PATH = "/raftmq.admin.v1.Admin/WatchStatus"
STREAM = 1

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK = END_STREAM = 0x1
END_HEADERS, PADDED = 0x4, 0x8

# The broker sends at least this often; three times that without anything is a broken stream.
# Unit: ms.
PROGRESS_MS = 200

# Pause before a broker that cannot be reached is tried again. Unit: seconds.
AGAIN = 0.005

# Field numbers of NodeStatus in admin.proto.
GROUP, NODE_ID, ROLE, TERM, LEADER_ID, APPLIED, READY = 2, 3, 4, 5, 6, 11, 14

LEADER = 1


class StatusStream(threading.Thread):
    """Follows one broker and hands each status, a dict, to `on_status`; None when it broke."""

    def __init__(self, host, port, on_status):
        super().__init__(name=f"status {host}", daemon=True)
        self.host, self.port = host, port
        self.on_status = on_status
        self.stopping = threading.Event()

    def run(self):
        connected = True
        while not self.stopping.is_set():
            try:
                for status in statuses(self.host, self.port):
                    connected = True
                    self.on_status(status)
                    if self.stopping.is_set():
                        return
            except (OSError, ValueError):
                pass
            if connected:
                self.on_status(None)
                connected = False
            self.stopping.wait(AGAIN)

    def stop(self):
        """Ends with the next status or failure."""
        self.stopping.set()


def statuses(host, port):
    """Yields the statuses of one call until it ends."""
    with socket.create_connection((host, port), timeout=3 * PROGRESS_MS / 1000) as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        request = b"\x08" + varint(PROGRESS_MS)
        message = struct.pack(">BI", 0, len(request)) + request
        headers = b"".join(
            literal(name, value)
            for name, value in (
                (":method", "POST"),
                (":scheme", "http"),
                (":path", PATH),
                (":authority", host),
                ("content-type", "application/grpc"),
                ("te", "trailers"),
            )
        )
        opening = PREFACE + frame(SETTINGS, 0, 0, b"")
        opening += frame(HEADERS, END_HEADERS, STREAM, headers) + frame(DATA, END_STREAM, STREAM, message)
        stream.sendall(opening)
        waiting = b""
        while True:
            length, kind, flags, _ = read_frame_header(stream)
            payload = exactly(stream, length)
            if kind == SETTINGS and not flags & ACK:
                stream.sendall(frame(SETTINGS, ACK, 0, b""))
            elif kind == PING and not flags & ACK:
                stream.sendall(frame(PING, ACK, 0, payload))
            elif kind in (RST_STREAM, GOAWAY) or kind == HEADERS and flags & END_STREAM:
                return
            elif kind == DATA and length:
                room = struct.pack(">I", length)
                stream.sendall(frame(WINDOW_UPDATE, 0, 0, room) + frame(WINDOW_UPDATE, 0, STREAM, room))
                waiting += payload[1 : length - payload[0]] if flags & PADDED else payload
                while len(waiting) >= 5 and len(waiting) >= 5 + (size := struct.unpack(">I", waiting[1:5])[0]):
                    yield decode(waiting[5 : 5 + size])
                    waiting = waiting[5 + size :]


def frame(kind, flags, stream, payload):
    """A frame of HTTP/2."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def read_frame_header(stream):
    """(length, kind, flags, stream) of the next frame."""
    header = exactly(stream, 9)
    kind, flags, number = struct.unpack(">BBI", header[3:])
    return int.from_bytes(header[:3], "big"), kind, flags, number


def exactly(stream, count):
    """The next `count` bytes."""
    parts = []
    while count:
        part = stream.recv(count)
        if not part:
            raise OSError("the connection was closed")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def literal(name, value):
    """A header field that no table knows; both parts are shorter than 127 bytes."""
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def varint(number):
    """A number as protobuf writes it."""
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def fields(message):
    """Yields (number, value) of a protobuf message; a value is an int or bytes."""
    at = 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        key = number()
        wire = key & 7
        if wire == 0:
            yield key >> 3, number()
        elif wire == 2:
            size = number()
            yield key >> 3, message[at : at + size]
            at += size
        else:
            raise ValueError(f"wire type {wire} in a status")


def decode(message):
    """What the tests look at."""
    found = dict(fields(message))
    return {
        "at": time.time(),
        "group": found.get(GROUP, b"").decode(),
        "node_id": found.get(NODE_ID, 0),
        "leads": found.get(ROLE) == LEADER,
        "term": found.get(TERM, 0),
        "leader_id": found.get(LEADER_ID, 0),
        "applied": found.get(APPLIED, 0),
        "ready": bool(found.get(READY, 0)),
    }
