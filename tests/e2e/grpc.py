"""Calls the admin service of a node: as much of HTTP/2 and gRPC as one call with a small answer
takes. Fields of the answer are not read; /status shows what has happened."""

import socket
import struct

import remoting

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, END_HEADERS, ACK = 1, 4, 1

TRANSFER_LEADER = "/raftmq.admin.v1.Admin/TransferLeader"


def frame(kind, flags, stream, payload):
    """A frame of HTTP/2."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name, value):
    """A header field without compression."""
    parts = [b"\x00"]
    for text in (name.encode(), value.encode()):
        # Lengths up to 126 take one byte.
        assert len(text) < 127
        parts += [bytes([len(text)]), text]
    return b"".join(parts)


def varint_field(number, value):
    """A protobuf field of type uint64."""
    out = bytearray([number << 3])
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])


def exactly(stream, count):
    """The next `count` bytes."""
    data = b""
    while len(data) < count:
        part = stream.recv(count - len(data))
        if not part:
            raise remoting.Failed("the connection was closed")
        data += part
    return data


def call(address, path, message, timeout=15):
    """Makes one call and waits until its stream has ended."""
    headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", address),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]
    block = b"".join(literal(name, value) for name, value in headers)
    body = struct.pack(">BI", 0, len(message)) + message
    with socket.create_connection(remoting.split(address), timeout) as stream:
        stream.sendall(
            PREFACE
            + frame(SETTINGS, 0, 0, b"")
            + frame(HEADERS, END_HEADERS, 1, block)
            + frame(DATA, END_STREAM, 1, body)
        )
        while True:
            head = exactly(stream, 9)
            length = int.from_bytes(head[:3], "big")
            kind, flags, number = struct.unpack(">BBI", head[3:])
            payload = exactly(stream, length)
            if kind == SETTINGS and not flags & ACK:
                stream.sendall(frame(SETTINGS, ACK, 0, b""))
            elif kind == PING and not flags & ACK:
                stream.sendall(frame(PING, ACK, 0, payload))
            elif kind in (RESET, GOAWAY):
                raise remoting.Failed(f"{path}: the call was refused")
            elif number == 1 and flags & END_STREAM:
                return


def transfer_leader(address, to=0):
    """Asks the node whose HTTP port is `address` to hand its role to node `to`, or to any."""
    call(address, TRANSFER_LEADER, varint_field(1, to) if to else b"")
