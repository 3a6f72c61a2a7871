#!/usr/bin/env python3
"""classic.py: the set-up by properties files, as README.md describes it under "The classic set-up".

The files are made from the text of README.md: its two properties blocks and its table. Three
`raftmq namesrv` and three `raftmq broker` are started by hand, and the real `mqadmin clusterList`
must show three rows, BID 0 for the leader and the documented numbers for the others. Folders are
rewritten to a temporary one, ports only when one of them is taken.
"""

import re

import cluster as e2e
import java

SECTION = "## The classic set-up"

# Where the documented files keep their data.
DOCUMENTED_FOLDER = "/tmp/rmqstore"

START_TIMEOUT = 60

# How often mqadmin is asked when the leader changes meanwhile.
LOOKS = 3


class Documented:
    """The files of README.md: {file name: text} of brokers and of name servers."""

    def __init__(self):
        text = (e2e.REPOSITORY / "README.md").read_text()
        section = text.split(SECTION, 1)[1].split("\n## ", 1)[0]
        first, name_server = re.findall(r"```properties\n(.*?)```", section, re.DOTALL)
        self.brokers = {"broker-n1.conf": first}
        for name, port, node, folder, log, http in re.findall(
            r"\| `(broker-n\d\.conf)` \| (\d+) \| (n\d) \| `([^`]+)`, `([^`]+)` \| (\d+) \|", section
        ):
            changed = {
                "listenPort": port,
                "dLegerSelfId": node,
                "storePathRootDir": folder,
                "storePathCommitLog": log,
                "httpPort": http,
            }
            self.brokers[name] = with_values(first, changed)
        (described,) = re.findall(r"^listenPort=(\d+)$", name_server, re.MULTILINE)
        addresses = value_of(first, "namesrvAddr").split(";")
        ports = [address.rsplit(":", 1)[1] for address in addresses]
        self.name_servers = {f"namesrv-{port}.conf": name_server.replace(described, port) for port in ports}
        if len(self.brokers) != 3 or len(self.name_servers) != 3:
            raise e2e.Broken(f"README.md describes {[*self.brokers, *self.name_servers]}, not three of each")

    def ports(self):
        """Every port that the files name."""
        texts = [*self.brokers.values(), *self.name_servers.values()]
        named = re.compile(r"^(?:listenPort|httpPort)=(\d+)$|:(\d+)", re.MULTILINE)
        return sorted({int(one or other) for text in texts for one, other in named.findall(text)})

    def rewrite(self, change):
        """Passes every text through a function."""
        for texts in (self.brokers, self.name_servers):
            for name, text in texts.items():
                texts[name] = change(text)

    def move_ports(self):
        """Puts other ports, all free, into the texts."""
        old = self.ports()
        first = java.free_ports(len(old))
        new = {str(port): str(first + place) for place, port in enumerate(old)}
        self.rewrite(lambda text: re.sub(r"\b\d{4,5}\b", lambda found: new.get(found[0], found[0]), text))


def value_of(text, key):
    """The value of a key in a properties text."""
    found = re.search(rf"^{key}=(.*)$", text, re.MULTILINE)
    if not found:
        raise e2e.Broken(f"the properties of README.md have no {key}")
    return found[1]


def with_values(text, values):
    """The text with these keys set; every one of them must be there."""
    for key, value in values.items():
        value_of(text, key)
        text = re.sub(rf"^{key}=.*$", f"{key}={value}", text, flags=re.MULTILINE)
    return text


class Setup:
    """The processes, started by hand from files in a folder of their own."""

    def __init__(self, folder, documented):
        self.folder = folder
        self.documented = documented
        documented.rewrite(lambda text: text.replace(DOCUMENTED_FOLDER, str(folder / "rmqstore")))
        for name, text in {**documented.brokers, **documented.name_servers}.items():
            (folder / name).write_text(text)
        self.programs = {}

    def start(self, role, name):
        """raftmq ROLE -c FILE."""
        command = [e2e.binary(), role, "-c", self.folder / name]
        self.programs[name] = java.Program(self.folder, name.removesuffix(".conf"), command)

    def start_all(self):
        """The name servers, then the brokers."""
        for name in self.documented.name_servers:
            self.start("namesrv", name)
        for name in self.documented.brokers:
            self.start("broker", name)

    def must_run(self):
        """Raises when one of them has ended."""
        for program in self.programs.values():
            program.must_run()

    def stop(self):
        """Stops all of it, brokers first."""
        for program in reversed(self.programs.values()):
            program.process.terminate()
        for program in self.programs.values():
            program.stop()

    def name_servers(self):
        """Addresses of the name servers."""
        return value_of(self.documented.brokers["broker-n1.conf"], "namesrvAddr").split(";")

    def address_of(self, name):
        """Where clients reach the broker of a file."""
        text = self.documented.brokers[name]
        return f"{value_of(text, 'brokerIP1')}:{value_of(text, 'listenPort')}"

    def expected(self):
        """What clusterList must show once there is a leader, as {address: BID}; None before that."""
        self.must_run()
        rows = {}
        for name, text in self.documented.brokers.items():
            status = e2e.http_status(f"127.0.0.1:{value_of(text, 'httpPort')}")
            if not status or not status["ready"]:
                return None
            follower = int(value_of(text, "dLegerSelfId")[1:]) + 1
            rows[self.address_of(name)] = 0 if status["role"] == "LEADER" else follower
        return rows if 0 in rows.values() else None

    def await_registered(self, broker_name, name_servers):
        """Waits until the name servers have the brokers in their roles; returns {address: BID}."""

        def registered():
            expected = self.expected()
            for address in name_servers:
                rows = java.registered(address) or {}
                own = {where: number for (name, number), where in rows.items() if name == broker_name}
                if own != expected:
                    return None
            return expected

        return e2e.await_that("the brokers to register in their roles", START_TIMEOUT, registered)


def run(checks):
    java.prepare()
    with e2e.temporary_folder() as folder:
        setup = started(folder)
        try:
            check_cluster_list(checks, folder, setup)
        finally:
            setup.stop()


def check_cluster_list(checks, folder, setup):
    """Compares what mqadmin prints with what the documentation says and the brokers answer."""
    first = setup.documented.brokers["broker-n1.conf"]
    cluster, name = value_of(first, "brokerClusterName"), value_of(first, "brokerName")
    servers = setup.name_servers()
    for _ in range(LOOKS):
        expected = setup.await_registered(name, servers)
        lists = java.cluster_list(folder, *servers)
        if setup.expected() == expected:
            break
    for server, rows in zip(servers, lists):
        shown = {row.address: int(row.broker_id) for row in rows}
        names = {(row.cluster, row.broker_name) for row in rows}
        checks.check(
            len(rows) == 3 and shown == expected and names == {(cluster, name)},
            f"classic set-up: mqadmin clusterList -n {server}: three rows of {cluster} {name}, BID 0 is the leader",
            f"expected {expected}, got {rows}",
        )


def started(folder):
    """The set-up with the documented ports, or with others when one of those is taken."""
    documented = Documented()
    taken = [port for port in documented.ports() if not java.is_free(port)]
    if not taken:
        try:
            return start(folder / "documented-ports", documented)
        except e2e.Broken as broken:
            if "in use" not in str(broken):
                raise
            documented = Documented()
    documented.move_ports()
    print(f"classic set-up: with ports {documented.ports()}, because one of README.md is taken: {taken}")
    return start(folder / "other-ports", documented)


def start(folder, documented):
    """Starts everything and waits until all brokers are ready and one leads."""
    folder.mkdir()
    setup = Setup(folder, documented)
    try:
        setup.start_all()
        e2e.await_that("the brokers to be ready", START_TIMEOUT, setup.expected)
    except BaseException:
        setup.stop()
        raise
    return setup


if __name__ == "__main__":
    e2e.main(run)
