"""Java servers and programs of RocketMQ for the scripts beside this file.

Every JVM gets SIGTERM when the script that started it dies. Ports are chosen free, below those that
the kernel gives to connections, so that no client of anybody takes one in between.
"""

import collections
import os
import random
import re
import signal
import socket
import subprocess

import cluster as e2e
import remoting

COMPAT = e2e.REPOSITORY / "tests/compat/java"

# Longest waits. Generous: a JVM on a busy machine takes its time. Unit: seconds.
CLASSPATH_TIMEOUT = 900
JVM_TIMEOUT = 300
STOP_TIMEOUT = 25

# Where blocks of ports begin; the range of the kernel starts at 32768.
PORTS_FIRST, PORTS_LAST = 12000, 30000

CLUSTER_INFO = 106

CLUSTER_LIST_ROW = re.compile(r"^(\S+) +(\S+) +(\d+) +(\S+:\d+) +(V\S+) ", re.MULTILINE)


def prepare():
    """Resolves the jars and compiles the test programs; quick when that has been done."""
    done = subprocess.run(
        [COMPAT / "classpaths.sh"], capture_output=True, text=True, timeout=CLASSPATH_TIMEOUT, check=False
    )
    if done.returncode != 0:
        raise e2e.Broken(f"classpaths.sh: {done.stdout}{done.stderr}")


def is_free(port):
    """Whether a server can listen on this port of every local address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True


def free_ports(count):
    """The first port of `count` free ones in a row."""
    for _ in range(200):
        first = random.randrange(PORTS_FIRST, PORTS_LAST - count)
        if all(is_free(port) for port in range(first, first + count)):
            return first
    raise e2e.Broken(f"no {count} free ports in a row between {PORTS_FIRST} and {PORTS_LAST}")


class Program:
    """One program in the background; its output goes to `NAME.out` in `folder`."""

    def __init__(self, folder, name, command, environment=None):
        self.name = name
        self.output = folder / f"{name}.out"
        with open(self.output, "ab") as out:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                preexec_fn=e2e.end_with_parent,
            )
        self.pid = self.process.pid

    def text(self):
        """What it has printed so far."""
        return self.output.read_text(errors="replace")

    def has_ended(self):
        """Whether it is gone."""
        return self.process.poll() is not None

    def must_run(self):
        """Raises when the program has ended."""
        if self.has_ended():
            raise e2e.Broken(f"{self.name} ended with {self.process.returncode}:\n{self.text()[-4000:]}")

    def await_end(self, seconds):
        """Waits until it ends by itself and returns its exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise e2e.Broken(f"{self.name} still ran after {seconds} s:\n{self.text()[-2000:]}") from None

    def stop(self):
        """SIGTERM, and SIGKILL when that does not help."""
        if self.has_ended():
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self):
        """kill -9."""
        if not self.has_ended():
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()


def program(folder, name, *arguments, heap=None):
    """Starts what `run.sh` calls by these arguments; its logs go to `folder` too."""
    environment = {"COMPAT_LOGS": str(folder)}
    if heap:
        environment["COMPAT_HEAP"] = heap
    return Program(folder, name, [COMPAT / "run.sh", *arguments], environment)


def example(folder, name, class_name, name_server, *arguments, heap=None):
    """Starts a class of RocketMQ's examples. It finds the name server by the system property that
    stands for an unset address, so the class itself stays as it is."""
    environment = {"COMPAT_LOGS": str(folder), "COMPAT_NAMESRV": name_server, "NAMESRV_ADDR": name_server}
    if heap:
        environment["COMPAT_HEAP"] = heap
    return Program(folder, name, [COMPAT / "run.sh", "example", class_name, *arguments], environment)


def await_port(server, port):
    """Waits until a server listens."""

    def listens():
        server.must_run()
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            return False
        return True

    e2e.await_that(f"port {port} of {server.name}", JVM_TIMEOUT, listens)


def registered(name_server):
    """The brokers that a name server knows, as {(broker name, BID): address}; None without answer."""
    try:
        connection = remoting.Connection(name_server)
    except OSError:
        return None
    try:
        _, body = connection.call(CLUSTER_INFO, {})
    except (OSError, remoting.Failed, ValueError):
        return None
    finally:
        connection.close()
    # Not a JSON parser: the Java server writes the numbers in front of addresses without quotes.
    rows = {}
    text = body.decode(errors="replace")
    for block in re.findall(r'\{[^{}]*"brokerAddrs":\{[^{}]*\}[^{}]*\}', text):
        name = re.search(r'"brokerName":"([^"]*)"', block).group(1)
        for broker_id, address in re.findall(r'"?(\d+)"?:"([^"]+:\d+)"', block):
            rows[name, int(broker_id)] = address
    return rows


class NameServer:
    """A Java name server."""

    def __init__(self, folder, port, heap=None):
        self.address = f"127.0.0.1:{port}"
        self.process = program(folder, f"namesrv-{port}", "namesrv", folder / f"namesrv-{port}", port, heap=heap)
        await_port(self.process, port)


class DLedgerCluster:
    """A Java name server and three brokers in DLedger mode, with the methods of e2e.Cluster that
    scripts for both use. Nodes are called n0, n1, n2."""

    BROKER_NAME = "RaftNode00"

    def __init__(self, folder, heap="1g", settings=()):
        self.folder = folder
        self.heap = heap
        self.settings = list(settings)
        self.name_server_process = None
        self.programs = {}
        self.ports = []
        self.peer_ports = []
        self.name_server_port = None

    def start(self):
        """Starts it and waits until all three brokers are registered, one as the leader."""
        prepare()
        self.folder.mkdir(parents=True, exist_ok=True)
        # A broker at port P also listens on P-2 and P+1.
        first = free_ports(16)
        self.name_server_port = first
        self.ports = [first + 3, first + 7, first + 11]
        self.peer_ports = [first + 13, first + 14, first + 15]
        server = NameServer(self.folder, first, heap="256m")
        self.name_server_process = server.process
        for name in ("n0", "n1", "n2"):
            self.launch(name)
        e2e.await_that("three registered Java brokers", JVM_TIMEOUT, self.is_complete)

    def launch(self, name):
        """Starts a broker."""
        numbers = [",".join(str(port) for port in ports) for ports in (self.ports, self.peer_ports)]
        arguments = ["dledger", self.folder / name, name[1:], *numbers, self.name_server(), *self.settings]
        self.programs[name] = program(self.folder, name, *arguments, heap=self.heap)

    def is_complete(self):
        """Whether all three brokers are registered and one leads."""
        for broker in self.programs.values():
            broker.must_run()
        rows = registered(self.name_server()) or {}
        return len(rows) == 3 and (self.BROKER_NAME, 0) in rows

    def stop(self):
        """Stops all of it."""
        everything = [*self.programs.values(), self.name_server_process]
        running = [server for server in everything if server and not server.has_ended()]
        for server in running:
            server.process.terminate()
        for server in running:
            server.stop()

    def name_server(self):
        """Where clients reach the name server."""
        return f"127.0.0.1:{self.name_server_port}"

    def address(self, name):
        """Where clients reach a broker."""
        return f"127.0.0.1:{self.ports[int(name[1:])]}"

    def addresses(self):
        """Where clients reach the brokers."""
        return [self.address(name) for name in self.programs]

    def pids(self):
        """The process of each broker by name."""
        return {name: broker.pid for name, broker in self.programs.items()}

    def leader(self, besides=()):
        """The node that is registered as the leader, None when there is none."""
        address = (registered(self.name_server()) or {}).get((self.BROKER_NAME, 0))
        names = [name for name in self.programs if self.address(name) == address]
        return names[0] if names and names[0] not in besides else None

    def await_leader(self, besides=()):
        """Waits for a leader and returns its name."""
        return e2e.await_that("a Java leader", JVM_TIMEOUT, lambda: self.leader(besides))

    def kill(self, name):
        """kill -9."""
        self.programs[name].kill()

    def restart(self, name):
        """Starts a broker again that has ended."""
        self.launch(name)

    def await_caught_up(self, name):
        """Waits until a restarted broker is registered again. What it has of the log is not asked:
        DLedger elects nobody whose log is behind a quorum's."""
        e2e.await_that(f"{name} to register", JVM_TIMEOUT, self.is_complete)


# A row of `mqadmin clusterList`.
Row = collections.namedtuple("Row", "cluster broker_name broker_id address version")


def cluster_list(folder, *name_servers):
    """What the real `mqadmin clusterList` prints for each of the name servers, as lists of rows."""
    commands = "".join(f"clusterList\t-n\t{address}\n" for address in name_servers)
    done = subprocess.run(
        [COMPAT / "run.sh", "admin-shell"],
        input=commands,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=JVM_TIMEOUT,
        env={**os.environ, "COMPAT_LOGS": str(folder)},
        preexec_fn=e2e.end_with_parent,
        check=False,
    )
    answers = done.stdout.split("--end-of-command--")[: len(name_servers)]
    found = [[Row(*row) for row in CLUSTER_LIST_ROW.findall(answer)] for answer in answers]
    if done.returncode != 0 or len(found) != len(name_servers):
        raise e2e.Broken(f"mqadmin clusterList: {done.stdout[-2000:]}")
    return found
