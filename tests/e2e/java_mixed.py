#!/usr/bin/env python3
"""java_mixed.py: RocketMQ 5.5.0 servers and ours in one deployment.

A Java name server and one of ours; three brokers of ours and a Java broker; every broker registers
with both name servers. Both must show the same brokers to the real mqadmin, also after kill -9 of
our leader and its return. The quickstart producer asks our name server and the consumer the Java
one, and the messages go to brokers of both kinds.
"""

import classic
import cluster as e2e
import java
import java_quickstart

JAVA_BROKER = "broker-a"


class Mixed:
    """The servers of both kinds."""

    def __init__(self, folder):
        self.folder = folder
        documented = classic.Documented()
        documented.move_ports()
        # The Java name server's, and the Java broker's with two below and one above it.
        first = java.free_ports(5)
        self.java_name_server = f"127.0.0.1:{first}"
        self.java_address = f"127.0.0.1:{first + 3}"
        own = classic.value_of(documented.brokers["broker-n1.conf"], "namesrvAddr").split(";")[0]
        self.name_servers = [self.java_name_server, own]
        known = {"namesrvAddr": ";".join(self.name_servers)}
        for name, text in documented.brokers.items():
            documented.brokers[name] = classic.with_values(text, known)
        self.ours = classic.Setup(folder, documented)
        self.broker_name = classic.value_of(documented.brokers["broker-n1.conf"], "brokerName")
        self.java_programs = []

    def start(self):
        """Starts everything and waits until both name servers know all brokers."""
        port = int(self.java_name_server.rsplit(":", 1)[1])
        self.java_programs.append(java.NameServer(self.folder, port, heap="256m").process)
        self.ours.start("namesrv", next(iter(self.ours.documented.name_servers)))
        for name in self.ours.documented.brokers:
            self.ours.start("broker", name)
        arguments = ["broker", self.folder / "java-broker", port + 3, ";".join(self.name_servers)]
        self.java_programs.append(java.program(self.folder, "java-broker", *arguments))
        e2e.await_that("the Java broker to register with both", java.JVM_TIMEOUT, self.has_java_broker)

    def has_java_broker(self):
        """Whether both name servers know the Java broker."""
        for program in self.java_programs:
            program.must_run()
        known = [(java.registered(address) or {}).get((JAVA_BROKER, 0)) for address in self.name_servers]
        return known == [self.java_address] * len(known)

    def stop(self):
        """Stops everything."""
        for program in self.java_programs:
            program.process.terminate()
        self.ours.stop()
        for program in self.java_programs:
            program.stop()

    def check_lists(self, checks, when):
        """Both name servers show all brokers in their roles to mqadmin."""
        for _ in range(classic.LOOKS):
            expected = self.ours.await_registered(self.broker_name, self.name_servers)
            lists = java.cluster_list(self.folder, *self.name_servers)
            if self.ours.expected() == expected:
                break
        rows = {(self.broker_name, address, str(number)) for address, number in expected.items()}
        rows.add((JAVA_BROKER, self.java_address, "0"))
        for server, shown in zip(("the Java name server", "our name server"), lists):
            shown = {(row.broker_name, row.address, row.broker_id) for row in shown}
            checks.check(
                shown == rows,
                f"mixed servers, {when}: mqadmin clusterList at {server}",
                f"expected {sorted(rows)}, got {sorted(shown)}",
            )

    def leader(self):
        """The file name and the program of the broker that leads."""
        expected = e2e.await_that("a leader", classic.START_TIMEOUT, self.ours.expected)
        (name,) = [name for name in self.ours.documented.brokers if expected[self.ours.address_of(name)] == 0]
        return name, self.ours.programs[name]

    def follows_without(self, name):
        """Whether both name servers show another leader and the killed broker no more."""
        gone = self.ours.address_of(name)
        for address in self.name_servers:
            rows = java.registered(address) or {}
            if gone in rows.values() or (self.broker_name, 0) not in rows:
                return False
        return True


def run(checks):
    java.prepare()
    with e2e.temporary_folder() as folder:
        mixed = Mixed(folder)
        try:
            mixed.start()
            mixed.check_lists(checks, "at the start")
            java_name_server, own = mixed.name_servers
            brokers = java_quickstart.send_and_receive(checks, folder, own, java_name_server)
            checks.check(
                brokers == {mixed.broker_name, JAVA_BROKER},
                "mixed servers: the producer sent to brokers of both kinds",
                f"only to {brokers}",
            )
            name, leader = mixed.leader()
            leader.kill()
            moved = e2e.await_that("the new leader's rows", classic.START_TIMEOUT, lambda: mixed.follows_without(name))
            checks.check(moved, "mixed servers: both name servers show another leader after kill -9")
            mixed.ours.start("broker", name)
            mixed.check_lists(checks, "after the return of the killed leader")
        finally:
            mixed.stop()


if __name__ == "__main__":
    e2e.main(run)
