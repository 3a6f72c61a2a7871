#!/usr/bin/env python3
"""garbage.py: hostile input on every port, and data folders that are not the broker's.

Random bytes, impossible lengths and headers, half-open, idle and slow connections, a reader that
does not read: each is closed or answered with an error, memory stays bounded, no node steps down
and other clients go on. Two processes on one folder and a folder of another node end with an error.
"""

import contextlib
import random
import resource
import selectors
import socket
import struct
import subprocess
import time

import cluster as e2e
import remoting

# Longest time until a server has closed a connection that sent nonsense. Unit: seconds.
CLOSE_TIMEOUT = 15

# What all hostile connections together may add to a process. Below it: 256 KiB of read-ahead for
# each half-open connection, 32 MiB of answers that are not read.
MEMORY_GROWTH_MAX = 192 << 20

# Longest pause of a well-behaved client. Unit: seconds.
GAP_MAX = 2.0

RANDOM_CONNECTIONS = 60
HALF_OPEN_CONNECTIONS = 150
SLOW_CONNECTIONS = 20
SLOW_SECONDS = 2.0


def frame(header, mark=None, body=b""):
    """A remoting frame around any bytes as header."""
    mark = len(header) if mark is None else mark
    return struct.pack(">II", 4 + len(header) + len(body), mark) + header + body


def bad_frames():
    """Name and bytes of remoting frames that no client sends."""
    header = b'{"code":105,"opaque":1,"flag":0,"language":"JAVA","version":1,"extFields":{}}'
    return [
        ("length 0", struct.pack(">I", 0)),
        ("length 3", struct.pack(">I", 3) + b"abc"),
        ("length 17 MiB", struct.pack(">I", 17 << 20)),
        ("length 2^31-1", struct.pack(">I", 0x7FFFFFFF)),
        ("length 2^32-1", struct.pack(">I", 0xFFFFFFFF)),
        ("a header longer than its frame", frame(header, 0x00FFFFFF)),
        ("an unknown header format", frame(header, 7 << 24 | len(header))),
        ("a ROCKETMQ header of random bytes", frame(random.Random(1).randbytes(64), 1 << 24 | 64)),
        ("a header that is no JSON", frame(b"\xff{]" * 10)),
        ("a deeply nested header", frame(b'{"extFields":' * 50_000)),
        ("an empty header", frame(b"")),
    ]


def bad_http():
    """Name and bytes of HTTP requests that no client sends."""
    return [
        ("no HTTP", b"\x00\x01\x02" * 100 + b"\r\n\r\n"),
        ("a header line of 2 MiB", b"GET /status HTTP/1.1\r\nX: " + b"a" * (2 << 20) + b"\r\n\r\n"),
        ("100000 header lines", b"GET /status HTTP/1.1\r\n" + b"a: b\r\n" * 100_000 + b"\r\n"),
        ("a bad length", b"POST /status HTTP/1.1\r\nContent-Length: -5\r\n\r\n"),
        ("an HTTP/2 frame of 16 MiB", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x00\x00\x00\x00\x00\x01"),
    ]


def connect(address):
    """A connection without a client behind it."""
    return socket.create_connection(remoting.split(address), 5)


def send_all(stream, data):
    """Sends; the server may have closed before it has read all."""
    with contextlib.suppress(OSError):
        stream.sendall(data)


def until_closed(stream):
    """Reads until the server closes; whether it did in time, and what it sent."""
    end = time.monotonic() + CLOSE_TIMEOUT
    received = b""
    while True:
        left = end - time.monotonic()
        if left <= 0:
            return False, received
        stream.settimeout(left)
        try:
            part = stream.recv(65536)
        except TimeoutError:
            return False, received
        except OSError:
            return True, received
        if not part:
            return True, received
        received += part


def all_closed(streams):
    """Waits until the server has closed all of them; the number of those it has not."""
    end = time.monotonic() + CLOSE_TIMEOUT
    with selectors.DefaultSelector() as open_ones:
        for stream in streams:
            open_ones.register(stream, selectors.EVENT_READ)
        while open_ones.get_map() and time.monotonic() < end:
            for key, _ in open_ones.select(0.2):
                try:
                    is_over = not key.fileobj.recv(65536)
                except OSError:
                    is_over = True
                if is_over:
                    open_ones.unregister(key.fileobj)
        return len(open_ones.get_map())


class Ports:
    """The ports of a cluster as (kind, address)."""

    def __init__(self, cluster):
        nodes = cluster.nodes().values()
        self.remoting = [("name server", cluster.name_server())]
        self.remoting += [(f"broker {node['name']}", node["address"]) for node in nodes]
        self.raft = [(f"Raft {node['name']}", node["raftAddress"]) for node in nodes]
        self.http = [(f"HTTP {node['name']}", node["httpAddress"]) for node in nodes]
        self.all = self.remoting + self.raft + self.http


def random_bytes(checks, ports):
    """Random bytes, then the end of our direction."""
    source = random.Random(7)
    for name, address in ports.all:
        streams = []
        for _ in range(RANDOM_CONNECTIONS):
            stream = connect(address)
            send_all(stream, source.randbytes(source.randrange(1, 8192)))
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_WR)
            streams.append(stream)
        left = all_closed(streams)
        checks.check(left == 0, f"{name}: random bytes are closed", f"{left} connections are not")
        for stream in streams:
            stream.close()


def impossible_frames(checks, ports):
    """Frames that cannot be, on connections that we do not close."""
    cases = [(name, address, case, data) for name, address in ports.remoting for case, data in bad_frames()]
    lengths = [("length 0", 0), ("length 81 MiB", 81 << 20), ("length 2^32-1", 0xFFFFFFFF)]
    cases += [
        (name, address, case, struct.pack(">I", length) + b"\x00" * 64)
        for name, address in ports.raft
        for case, length in lengths
    ]
    # A server may answer a bad request and wait for the next one; an HTTP server answers 4xx.
    for name, address, case, data in cases:
        with connect(address) as stream:
            send_all(stream, data)
            closed, received = until_closed(stream)
            checks.check(closed, f"{name}: {case} is closed", f"still open, {len(received)} bytes came")
    for name, address in ports.http:
        for case, data in bad_http():
            with connect(address) as stream:
                send_all(stream, data)
                with contextlib.suppress(OSError):
                    stream.shutdown(socket.SHUT_WR)
                closed, received = until_closed(stream)
                checks.check(
                    closed and not received.startswith(b"HTTP/1.1 200"),
                    f"{name}: {case} is refused",
                    f"closed {closed}, answer {received[:40]}",
                )


def half_open(checks, ports, stack):
    """Connections that announce much and send nothing; they stay open until the script ends."""
    for name, address in ports.remoting + ports.raft:
        for _ in range(HALF_OPEN_CONNECTIONS):
            stream = stack.enter_context(connect(address))
            # Below every limit of a frame, so that the server has to wait for it.
            send_all(stream, struct.pack(">I", 15 << 20) + b"\x00")
    for name, address in ports.http:
        for _ in range(50):
            send_all(stack.enter_context(connect(address)), b"GET /status HTTP/1.1\r\nHost:")


def slow(checks, ports):
    """A byte at a time, and at last the answer."""
    request = remoting.encode(remoting.GET_ROUTE, {"topic": "probe"})
    streams = [connect(address) for _, address in ports.remoting for _ in range(SLOW_CONNECTIONS)]
    pause = SLOW_SECONDS / len(request)
    for place in range(len(request)):
        for stream in streams:
            stream.sendall(request[place : place + 1])
        time.sleep(pause)
    answered = 0
    for stream in streams:
        stream.settimeout(5)
        with contextlib.suppress(OSError):
            answered += bool(stream.recv(4))
        stream.close()
    checks.check(answered == len(streams), "slow requests are answered", f"{answered} of {len(streams)}")


def never_reading(checks, ports, stack):
    """Many requests whose answers nobody reads: the server must stop reading, not collect them."""
    runtime_info = 28
    request = remoting.encode(runtime_info, {}) * 100
    for name, address in ports.remoting:
        stream = stack.enter_context(connect(address))
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stream.settimeout(0.5)
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 64 << 20:
                sent += stream.send(request)
        print(f"{name}: took {sent >> 10} KiB of requests from one that does not read")


def attacks(checks, cluster):
    """All attacks, with a well-behaved client beside them."""
    ports = Ports(cluster)
    description = cluster.description()
    pids = {node["name"]: node["pid"] for node in description["nodes"]}
    pids["namesrv"] = description["nameServerPid"]
    prober = remoting.Prober(cluster.addresses(), "probe")
    prober.start()
    e2e.await_that("the first acknowledgement", 10, lambda: prober.times)
    before = {name: e2e.memory_bytes(pid) for name, pid in pids.items()}
    leader = cluster.await_leader()
    term = cluster.status(leader)["term"]
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        half_open(checks, ports, stack)
        random_bytes(checks, ports)
        impossible_frames(checks, ports)
        slow(checks, ports)
        never_reading(checks, ports, stack)
        # Raft and new clients must get through beside the connections that are still open.
        for name in cluster.nodes():
            checks.check(cluster.status(name), f"HTTP {name}: answers a new client", "no answer")
        route = remoting.Connection(cluster.name_server())
        header, _ = route.call(remoting.GET_ROUTE, {"topic": "probe"})
        checks.check(header["code"] == 0, "name server: answers a new client", header)
        follower = next(name for name in cluster.nodes() if name != leader)
        cluster.kill(follower)
        cluster.restart(follower)
        cluster.await_caught_up(follower)
        checks.check(True, f"{follower} restarted and caught up beside half-open connections")
    end = time.monotonic()
    prober.stop()
    gap = prober.gap(begin, end)
    print(f"attacked for {end - begin:.1f} s, longest gap of the other client {1000 * gap:.0f} ms")
    checks.check(gap < GAP_MAX, "the other client goes on", f"gap {gap:.1f} s")
    checks.check(not prober.failed, "no send of the other client failed", prober.failed[:2])
    now = cluster.status(leader)
    checks.check(
        now and (now["role"], now["term"]) == ("LEADER", term),
        "no node stepped down",
        now and (now["role"], term, now["term"]),
    )
    for name, pid in pids.items():
        if name == follower:
            continue
        peak = e2e.memory_bytes(pid, "VmHWM")
        print(f"{name}: {before[name] >> 20} MiB before, {peak >> 20} MiB at most")
        checks.check(
            peak - before[name] < MEMORY_GROWTH_MAX,
            f"{name}: memory is bounded",
            f"grew from {before[name] >> 20} to {peak >> 20} MiB",
        )
    return prober


def free_ports(count):
    """Ports that are free now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [found.getsockname()[1] for found in sockets]


def broker_with(node, folder, changes):
    """Runs a broker with the node's configuration but for `changes`; its exit code and output."""
    config = folder / "other.conf"
    lines = (e2e.pathlib.Path(node["dataDir"]) / "broker.conf").read_text().splitlines()
    pairs = dict(line.split("=", 1) for line in lines if "=" in line)
    pairs.update(changes)
    config.write_text("".join(f"{key}={value}\n" for key, value in pairs.items()))
    arguments = [e2e.binary(), "broker", "-c", str(config)]
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired as error:
        return None, str(error.stderr)
    return done.returncode, done.stdout + done.stderr


def check_refusal(checks, name, code, output, words):
    """An error that names the folder, and exit code 1."""
    is_clear = code == 1 and any(word in output for word in words)
    checks.check(is_clear, f"{name}: refused", f"exit code {code}: {output[-600:]}")
    print("  " + "\n  ".join(output.strip().splitlines()[-2:]))


def same_folder(checks, cluster):
    """A second process on a folder that is in use."""
    node = cluster.nodes()["n1"]
    ports = free_ports(5)
    peers = ";".join(f"n{place + 1}-127.0.0.1:{port}" for place, port in enumerate(ports[:3]))
    changes = {"listenPort": ports[3], "httpPort": ports[4], "dLegerPeers": peers}
    code, output = broker_with(node, cluster.folder, changes)
    check_refusal(checks, "two brokers on one folder", code, output, ["in use by another process"])
    arguments = [e2e.binary(), "local", "--data-dir", str(cluster.data)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=20, check=False)
    output = done.stdout + done.stderr
    check_refusal(checks, "two raftmq local on one folder", done.returncode, output, ["in use by another"])


def foreign_folder(checks, cluster):
    """A broker on the folder of another node; the cluster has stopped."""
    nodes = cluster.nodes()
    store = f"{nodes['n2']['dataDir']}/store"
    changes = {"storePathRootDir": store, "storePathCommitLog": f"{store}/commitlog"}
    code, output = broker_with(nodes["n1"], cluster.folder, changes)
    check_refusal(checks, "a folder of another node", code, output, ["n2", "belongs", "identity"])


def run(checks):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with e2e.running_cluster() as cluster:
        prober = attacks(checks, cluster)
        same_folder(checks, cluster)
        cluster.stop()
        foreign_folder(checks, cluster)
        cluster.output.write_text("")
        cluster.start()
        cluster.await_leader()
        cluster.await_all_equal()
        e2e.check_topic(checks, cluster, "probe", 4, prober.acks, True)


if __name__ == "__main__":
    e2e.main(run)
