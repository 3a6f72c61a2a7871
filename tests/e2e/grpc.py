"""Calls the admin service of a node: as much of HTTP/2 and gRPC as calls with small answers take.
Trailers are compressed and not read: a call that is refused has no answer."""

import socket
import struct

import remoting

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, END_HEADERS, ACK = 1, 4, 1

SERVICE = "/raftmq.admin.v1.Admin/"

# Numbers of fields of NodeStatus.
ROLE, TERM, LEADER_ID = 4, 5, 6
ROLE_LEADER = 1


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


def varint(value):
    """A number, seven bits at a time."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])


def varint_field(number, value):
    """A protobuf field of type uint64."""
    return bytes([number << 3]) + varint(value)


def bytes_field(number, value):
    """A protobuf field of type string, bytes or message."""
    value = value.encode() if isinstance(value, str) else value
    return bytes([number << 3 | 2]) + varint(len(value)) + value


def fields(message):
    """Number and value of each field of a message; submessages and texts as bytes."""
    place = 0

    def number():
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(message):
        key = number()
        if key & 7 == 0:
            yield key >> 3, number()
        elif key & 7 == 2:
            length = number()
            yield key >> 3, message[place : place + length]
            place += length
        else:
            raise remoting.Failed(f"a field of wire type {key & 7}")


def exactly(stream, count):
    """The next `count` bytes."""
    data = b""
    while len(data) < count:
        part = stream.recv(count - len(data))
        if not part:
            raise remoting.Failed("the connection was closed")
        data += part
    return data


def call(address, method, message, timeout=15):
    """Makes one call and yields the messages of its answer until its stream has ended."""
    path = SERVICE + method
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
        received = b""
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
            elif kind == DATA and number == 1:
                received += payload
                while len(received) >= 5 and len(received) >= 5 + int.from_bytes(received[1:5], "big"):
                    length = int.from_bytes(received[1:5], "big")
                    yield received[5 : 5 + length]
                    received = received[5 + length :]
            if number == 1 and flags & END_STREAM:
                return


def answer(address, method, message, timeout=15):
    """Makes one call and returns the message it is answered with; Failed when it is refused."""
    for found in call(address, method, message, timeout):
        return found
    raise remoting.Failed(f"{method}: refused")


def transfer_leader(address, to=0):
    """Asks the node whose HTTP port is `address` to hand its role to node `to`, or to any."""
    answer(address, "TransferLeader", varint_field(1, to) if to else b"")


def member(node_id, address, incarnation):
    """A `Member`; the fields are also those of `AddLearnerRequest`."""
    return varint_field(1, node_id) + bytes_field(2, address) + bytes_field(3, incarnation)


def form_group(address, incarnation, members):
    """Asks a node to form the group of `members`; whether it belonged to it before."""
    message = bytes_field(1, incarnation) + b"".join(bytes_field(2, one) for one in members)
    return dict(fields(answer(address, "FormGroup", message))).get(1, 0) == 1


def add_learner(address, node_id, raft_address, incarnation):
    """Asks the leader to add a node without a vote."""
    answer(address, "AddLearner", member(node_id, raft_address, incarnation))


def change_membership(address, voters):
    """Asks the leader to make exactly these nodes the voters."""
    answer(address, "ChangeMembership", b"".join(varint_field(1, voter) for voter in voters))


def watch_status(address, interval_ms, timeout):
    """Yields the fields of each `NodeStatus` that a node sends."""
    for message in call(address, "WatchStatus", varint_field(1, interval_ms), timeout):
        yield dict(fields(message))
