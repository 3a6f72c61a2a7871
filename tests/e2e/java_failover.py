#!/usr/bin/env python3
"""java_failover.py [ROUNDS] [--dledger ROUNDS] [--spread SECONDS]: the write gap of a stock Java client.

A DefaultMQProducer 5.5.0 with default settings sends, one message after the other, while leaders
get kill -9 and come back. Prints the longest time without an acknowledgement for every kill and how
many sends failed after the client's own retries. Then every message that was acknowledged must be
at its place on every replica. `--dledger` does the same to three RocketMQ brokers in DLedger mode,
without the look at the replicas.

The client asks its name server for the leader's address every 30 s and not when a connection is
refused. So the gap mostly tells when in those 30 s the leader died, unless the leader's address
stays alive; kills come at random moments, spread over that time.
"""

import argparse
import collections
import random
import re
import time

import cluster as e2e
import java

# Shortest time in which the restarted cluster works before the next leader dies. Unit: seconds.
CALM = 2

# How often the client asks for the route of a topic. Source: pollNameServerInterval. Unit: seconds.
ROUTE_POLL = 30

# Longest wait for the client to go on: a few of its questions. Unit: seconds.
RESUME_TIMEOUT = 4 * ROUTE_POLL

# Acknowledged sends that end a round: the client has found the new leader.
RESUME_SENDS = 20

# The load ends by itself long after the script would have. Unit: seconds.
LOAD_SECONDS = 6 * 3600

BODY_BYTES = 128

# What is printed of the text of a failure; its numbers differ from send to send.
REASON_CHARS = 100

# Of a topic that is created by the first send. Source: defaultTopicQueueNums of the client.
QUEUES = 4

# An acknowledged send: when it began and ended, and (message id, queue id, queue offset).
Ack = collections.namedtuple("Ack", "begin end place")


class JavaLoad:
    """LoadProducer in the background: what it was told is read from its file."""

    def __init__(self, folder, name_server, topic):
        self.path = folder / f"{topic}.sends"
        self.path.touch()
        self.acks = []
        self.failures = []
        self.file = open(self.path, encoding="utf-8")
        self.rest = ""
        arguments = ["client55", "compat.LoadProducer", name_server, topic, 1, LOAD_SECONDS, BODY_BYTES, self.path]
        self.program = java.program(folder, topic, *arguments)

    def read(self):
        """Takes in what came since the last time; times become seconds of the wall clock."""
        lines = (self.rest + self.file.read()).split("\n")
        self.rest = lines.pop()
        for line in lines:
            words = line.split(" ", 4)
            if words[0] == "FAIL":
                self.failures.append((int(words[3]) / 1e6, words[4]))
            else:
                _, queue, offset, begin, rest = words
                end, key = rest.split()
                self.acks.append(Ack(int(begin) / 1e6, int(end) / 1e6, (key, int(queue), int(offset))))

    def sent_since(self, moment):
        """Acknowledgements of messages that were sent after `moment`."""
        self.program.must_run()
        self.read()
        # The newest come last and few are needed.
        return sum(1 for ack in self.acks[-RESUME_SENDS:] if ack.begin > moment)

    def gap(self, begin, end):
        """Longest time without an acknowledgement that overlaps [begin, end]."""
        times = [ack.end for ack in self.acks]
        gaps = [after - before for before, after in zip(times, times[1:]) if after >= begin and before <= end]
        return max(gaps, default=end - begin)

    def stop(self):
        """Ends the load and reads the rest."""
        self.program.stop()
        self.read()
        self.file.close()


def run(checks):
    parser = argparse.ArgumentParser(description="The write gap of a stock Java client.")
    parser.add_argument("rounds", nargs="?", type=int, default=5, help="leader kills of ours (default 5)")
    parser.add_argument("--dledger", type=int, default=0, metavar="ROUNDS", help="leader kills of Java DLedger")
    parser.add_argument(
        "--spread",
        type=float,
        default=ROUTE_POLL,
        metavar="SECONDS",
        help=f"a leader is killed at a random moment of this time after the last one's return (default {ROUTE_POLL})",
    )
    arguments = parser.parse_args()
    java.prepare()
    if arguments.rounds > 0:
        with e2e.running_cluster() as cluster:
            kill_leaders(checks, "RaftMQ", cluster, arguments.rounds, arguments.spread)
    if arguments.dledger > 0:
        with e2e.temporary_folder() as folder:
            cluster = java.DLedgerCluster(folder)
            try:
                cluster.start()
                kill_leaders(checks, "RocketMQ DLedger", cluster, arguments.dledger, arguments.spread)
            finally:
                cluster.stop()


def kill_leaders(checks, label, cluster, rounds, spread):
    """All rounds at one cluster."""
    topic = "java_failover"
    load = JavaLoad(cluster.folder, cluster.name_server(), topic)
    gaps, failed = [], []
    try:
        e2e.await_that("the Java producer to begin", RESUME_TIMEOUT, lambda: load.sent_since(0) >= RESUME_SENDS)
        for number in range(rounds):
            time.sleep(CALM + random.uniform(0, spread))
            kill_leader(load, cluster, f"{label}, round {number + 1}", gaps, failed)
    finally:
        load.stop()
    print(e2e.gap_line(f"{label}: write gap of a default Java producer", gaps))
    print(f"{label}: {len(load.acks)} sends acknowledged, {len(load.failures)} failed after the client's retries")
    reasons = e2e.summary(re.sub(r"\d+", "N", reason)[:REASON_CHARS] for _, reason in load.failures)
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1]):
        print(f"  {count} x {reason}")
    checks.check(len(gaps) == rounds, f"{label}: a Java producer went on after each of {rounds} leader kills")
    if isinstance(cluster, e2e.Cluster):
        cluster.await_all_equal()
        e2e.check_topic(checks, cluster, topic, QUEUES, [ack.place for ack in load.acks], False)


def kill_leader(load, cluster, label, gaps, failed):
    """One round; adds its gap and the number of sends that failed in it."""
    leader = cluster.await_leader()
    failed_before = len(load.failures)
    begin = time.time()
    cluster.kill(leader)
    new = cluster.await_leader(besides=(leader,))
    elected = time.time()
    e2e.await_that("the Java producer to go on", RESUME_TIMEOUT, lambda: load.sent_since(begin) >= RESUME_SENDS)
    end = time.time()
    cluster.restart(leader)
    cluster.await_caught_up(leader)
    load.read()
    gaps.append(load.gap(begin, end))
    failed.append(len(load.failures) - failed_before)
    print(
        f"{label}: {leader} killed, {new} leads after {elected - begin:.2f} s, "
        f"gap {1000 * gaps[-1]:.0f} ms, {failed[-1]} sends failed"
    )


if __name__ == "__main__":
    e2e.main(run)
