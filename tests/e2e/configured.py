"""Brokers started by properties files of their own, for scripts that need settings or disks which
`raftmq local` does not give. What `cluster.py` does with a cluster works with these too."""

import contextlib
import pathlib
import random
import signal
import socket
import subprocess

import cluster as e2e

# Ports are taken below the ephemeral range, so that no outgoing connection holds one.
PORTS = range(15000, 32000)
# Ports one broker needs: remoting, Raft, HTTP, name server.
PORTS_PER_BROKER = 4


class Brokers(e2e.Cluster):
    """A group of brokers, each a process of this script. `settings` go into every properties file.

    The data of node n1 is in `data/n1` below the folder, its log beside it in `n1.log`.
    """

    def __init__(self, folder, settings, count=3):
        super().__init__(folder)
        self.settings = settings
        self.processes = {}
        # How processes ended that nobody killed: (name, exit code).
        self.deaths = []
        ports = free_ports(count * PORTS_PER_BROKER)
        self.all_nodes = {}
        for number in range(count):
            remoting, raft, http, name_server = ports[number * PORTS_PER_BROKER :][:PORTS_PER_BROKER]
            name = f"n{number + 1}"
            self.all_nodes[name] = {
                "name": name,
                "address": f"127.0.0.1:{remoting}",
                "raftAddress": f"127.0.0.1:{raft}",
                "httpAddress": f"127.0.0.1:{http}",
                "nameServerPort": name_server,
                "dataDir": str(self.data / name),
            }

    def start(self):
        """Starts all nodes and waits until they are ready and one leads."""
        for name in self.all_nodes:
            self.restart(name)
        self.await_ready()

    def await_ready(self):
        """Waits until all nodes are ready and one leads."""

        def is_ready():
            self.note_deaths()
            if self.deaths:
                raise e2e.Broken(f"ended: {self.deaths}, see {self.folder}/*.log")
            all_of = [self.status(name) for name in self.all_nodes]
            return all(status and status["ready"] for status in all_of) and self.leader()

        e2e.await_that("the brokers to be ready", e2e.START_TIMEOUT, is_ready)

    def restart(self, name):
        """Starts a node that does not run."""
        path = self.folder / f"{name}.conf"
        path.write_text(self.properties(name), encoding="utf-8")
        pathlib.Path(self.all_nodes[name]["dataDir"]).mkdir(parents=True, exist_ok=True)
        with open(self.folder / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                [e2e.binary(), "broker", "-c", str(path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=e2e.end_with_parent,
                **self.launch(name),
            )

    def launch(self, _name):
        """What else a node is started with, for `subprocess.Popen`."""
        return {}

    def properties(self, name):
        """The properties file of a node."""
        node = self.all_nodes[name]
        peers = ";".join(f"{peer['name']}-{peer['raftAddress']}" for peer in self.all_nodes.values())
        store = pathlib.Path(node["dataDir"]) / "store"
        own = {
            "brokerClusterName": "E2eCluster",
            "brokerName": "E2eBroker",
            "brokerIP1": "127.0.0.1",
            "bindAddress": "127.0.0.1",
            "listenPort": node["address"].rsplit(":", 1)[1],
            "httpPort": node["httpAddress"].rsplit(":", 1)[1],
            "embeddedNamesrvPort": node["nameServerPort"],
            "storePathRootDir": store,
            "storePathCommitLog": store / "commitlog",
            "enableDLegerCommitLog": "true",
            "dLegerGroup": "E2eBroker",
            "dLegerPeers": peers,
            "dLegerSelfId": name,
        }
        return "".join(f"{key}={value}\n" for key, value in {**own, **self.settings}.items())

    def nodes(self):
        """The nodes by name, with the process id of those that run."""
        self.note_deaths()
        return {
            name: {**node, "pid": self.processes[name].pid if name in self.processes else None}
            for name, node in self.all_nodes.items()
        }

    def description(self):
        """As local.json has it."""
        nodes = list(self.nodes().values())
        return {"nodes": nodes, "nameServer": f"127.0.0.1:{nodes[0]['nameServerPort']}"}

    def note_deaths(self):
        """Takes note of processes that have ended by themselves."""
        for name, process in list(self.processes.items()):
            if process.poll() is not None:
                del self.processes[name]
                self.deaths.append((name, process.returncode))

    def signal(self, names, number):
        """Sends a signal to nodes, which they survive."""
        for name in names:
            self.processes[name].send_signal(number)

    def kill(self, *names):
        """kill -9, all at once."""
        self.end(names, signal.SIGKILL)

    def end(self, names, number):
        """Sends a signal to nodes and waits for their end."""
        self.note_deaths()
        ending = [self.processes.pop(name) for name in names]
        for process in ending:
            process.send_signal(number)
        for process in ending:
            process.wait(e2e.STOP_TIMEOUT)

    def stop(self):
        """Stops what runs."""
        self.note_deaths()
        names = list(self.processes)
        try:
            self.end(names, signal.SIGTERM)
        except subprocess.TimeoutExpired:
            self.end([name for name in names if name in self.processes], signal.SIGKILL)

    def metric(self, name, metric):
        """Sum of a metric's series at a node."""
        return sum(value for series, value in self.metrics(name) if series.split("{")[0] == metric)

    def metrics(self, name):
        """What /metrics of a node says, as (series, value)."""
        text = e2e.http_get(self.all_nodes[name]["httpAddress"], "/metrics")
        if text is None:
            raise e2e.Broken(f"{name} shows no metrics")
        lines = [line.rsplit(" ", 1) for line in text.decode().splitlines() if line[:1] not in ("#", "")]
        return [(series, float(value)) for series, value in lines]


def free_ports(count):
    """Ports that nobody listens on now."""
    held = []
    with contextlib.ExitStack() as stack:
        candidates = list(PORTS)
        random.shuffle(candidates)
        for port in candidates:
            listener = stack.enter_context(socket.socket())
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            held.append(port)
            if len(held) == count:
                return held
    raise e2e.Broken(f"no {count} free ports in {PORTS}")


@contextlib.contextmanager
def running_brokers(settings, prepare=None, count=3):
    """Brokers that are ready; stopped in any case. `prepare(brokers)` runs before the start, as a
    context that is left after the stop."""
    with e2e.temporary_folder() as folder:
        brokers = Brokers(folder, settings, count)
        with prepare(brokers) if prepare else contextlib.nullcontext():
            try:
                brokers.start()
                yield brokers
            finally:
                brokers.stop()


def run_tool(*command):
    """Runs a system tool that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise e2e.Broken(f"{' '.join(command)}: {done.stdout}{done.stderr}".strip())
