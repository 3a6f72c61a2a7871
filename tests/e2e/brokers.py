"""Single `raftmq broker` processes for the scripts beside this file: a group whose nodes wait to
be formed, each with a name server inside, as an operator would run them."""

import http.client
import itertools
import pathlib
import shutil
import signal
import subprocess

import cluster as e2e
import configured as own
import remoting

CLUSTER = "FormedCluster"
GROUP = "formed"


class Broker:
    """One broker process and its files."""

    def __init__(self, group, number):
        self.group = group
        self.number = number
        # Raft node ids count from 1.
        self.node_id = number + 1
        self.folder = group.folder / f"n{number}"
        self.log = group.folder / f"n{number}.log"
        self.data = self.folder / "store"
        ports = itertools.islice(group.ports, own.PORTS_PER_BROKER)
        self.address, self.http, self.raft, self.namesrv = (f"127.0.0.1:{port}" for port in ports)
        self.process = None

    def write(self):
        """Writes the file that only this broker reads."""
        self.folder.mkdir(exist_ok=True)
        pairs = {
            "dLegerSelfId": f"n{self.number}",
            "listenPort": port_of(self.address),
            "httpPort": port_of(self.http),
            "embeddedNamesrvPort": port_of(self.namesrv),
            "storePathRootDir": self.data,
            "storePathCommitLog": self.data / "commitlog",
            # Wins over the common file, and loses to the command line.
            "raftFormGroup": "admin",
            "brokerIP1": "192.0.2.1",
        }
        self.config().write_text("".join(f"{key}={value}\n" for key, value in pairs.items()))

    def config(self):
        """The file that only this broker reads."""
        return self.folder / "node.conf"

    def start(self):
        """Starts the process."""
        arguments = [e2e.binary(), "broker", "-c", str(self.group.config()), "-c", str(self.config())]
        arguments += ["--set", "brokerIP1=127.0.0.1"]
        with open(self.log, "ab") as out:
            self.process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                preexec_fn=e2e.end_with_parent,
            )

    def end(self, number=signal.SIGTERM):
        """Sends a signal and returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(e2e.STOP_TIMEOUT)

    def is_running(self):
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    def status(self):
        """The answer of /status, None when there is none."""
        return e2e.http_status(self.http)

    def get(self, path):
        """Code and body of an HTTP answer."""
        connection = http.client.HTTPConnection(*remoting.split(self.http), timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def metric(self, name):
        """The value of a metric without labels."""
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith(name + " "):
                return float(line.split()[1])
        raise e2e.Broken(f"no metric {name}")

    def lines(self, text):
        """Lines of the log that contain a text."""
        return [line for line in self.log.read_text().splitlines() if text in line]

    def lose_disk(self):
        """Deletes everything the broker has written."""
        shutil.rmtree(self.data)


class Group:
    """Brokers of one group."""

    def __init__(self, folder, count):
        self.folder = pathlib.Path(folder)
        self.ports = iter(own.free_ports(count * own.PORTS_PER_BROKER + 1))
        # Nobody listens there.
        self.leader_service = f"127.0.0.1:{next(self.ports)}"
        self.all = [Broker(self, number) for number in range(count)]
        self.write()

    def config(self):
        """The file that all brokers read."""
        return self.folder / "broker.conf"

    def write(self):
        """Writes all files."""
        # A name that nobody has: it must disturb no other.
        name_servers = [broker.namesrv for broker in self.all] + ["not-there.invalid:9876"]
        pairs = {
            "brokerClusterName": CLUSTER,
            "brokerName": GROUP,
            "bindAddress": "127.0.0.1",
            "enableDLegerCommitLog": "true",
            "dLegerPeers": ";".join(f"n{broker.number}-{broker.raft}" for broker in self.all),
            "namesrvAddr": ";".join(name_servers),
            "leaderServiceAddress": self.leader_service,
            "raftFormGroup": "peers",
            # The scripts are not about speed: a busy machine must not cause elections.
            "raftHeartbeatIntervalMs": 150,
            "raftElectionTimeoutMinMs": 900,
            "raftElectionTimeoutMaxMs": 1500,
        }
        self.config().write_text("".join(f"{key}={value}\n" for key, value in pairs.items()))
        for broker in self.all:
            broker.write()

    def leader(self):
        """The broker that leads, None when none says so."""
        found = [(status["term"], broker) for broker, status in self.statuses() if status["role"] == "LEADER"]
        return max(found, key=lambda pair: pair[0])[1] if found else None

    def statuses(self):
        """Each broker that answers, with its status."""
        pairs = [(broker, broker.status()) for broker in self.all if broker.is_running()]
        return [(broker, status) for broker, status in pairs if status]

    def await_leader(self):
        """Waits for a leader."""
        return e2e.await_that("a leader", e2e.LEADER_TIMEOUT, self.leader)

    def await_ready(self, brokers):
        """Waits until these brokers are ready."""

        def all_ready():
            return all((broker.status() or {}).get("ready") for broker in brokers)

        e2e.await_that("all brokers to be ready", e2e.CATCH_UP_TIMEOUT, all_ready)

    def stop(self):
        """Ends what still runs."""
        for broker in self.all:
            if broker.is_running():
                broker.process.kill()
                broker.process.wait()


def port_of(address):
    """The port of host:port."""
    return remoting.split(address)[1]
