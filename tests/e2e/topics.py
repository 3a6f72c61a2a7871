#!/usr/bin/env python3
"""topics.py [TOPICS]: topics are created one after the other, 2,000 unless told otherwise.

Meanwhile the route of another topic is asked for every 5 ms: it always names a master. The last
thousand take as long as the first, and the name server knows every topic soon after. With all these
topics a hand-over shows in the route as soon as the new leader serves, and the route never is
without a master. Clients that change different attributes of a topic at a time all succeed. Prints
the figures.
"""

import json
import statistics
import sys
import threading
import time

import cluster as e2e
import grpc
import remoting

# Pause between two questions for the route. Unit: seconds.
ROUTE_PAUSE = 0.005
# Longest time until the name server knows what was created last, or who leads. Unit: seconds.
KNOWN_SOON = 1.0
# The last thousand may take this many times as long as the first.
RATIO_MAX = 1.5
# Attempts that may fail before the script gives up.
FAILURES_MAX = 100
# Rounds of two changes at a time.
ATTRIBUTE_ROUNDS = 50

GET_ALL_TOPIC_NAMES = 206
GET_TOPIC_CONFIG = 351

WATCHED = "watched"


class RouteWatcher(threading.Thread):
    """Asks a name server for the route of a topic again and again."""

    def __init__(self, address, topic):
        super().__init__(daemon=True)
        self.connection = remoting.Connection(address)
        self.topic = topic
        # (begin, end, address of the master or None) of each question.
        self.answers = []
        self.ended = None
        self.stopping = threading.Event()

    def run(self):
        while not self.stopping.is_set():
            begin = time.monotonic()
            try:
                header, body = self.connection.call(remoting.GET_ROUTE, {"topic": self.topic})
            except (OSError, remoting.Failed) as error:
                # Nobody ends the name server before the script is done.
                self.ended = error
                return
            master = None
            if header["code"] == remoting.SUCCESS:
                brokers = json.loads(body)["brokerDatas"]
                master = brokers[0]["brokerAddrs"].get("0") if brokers else None
            self.answers.append((begin, time.monotonic(), master))
            self.stopping.wait(ROUTE_PAUSE)

    def stop(self):
        """Ends the thread."""
        self.stopping.set()
        self.join(60)

    def master(self):
        """What the newest answer says."""
        return self.answers[-1][2] if self.answers else None

    def without_master(self):
        """(answers without a master, longest time without one in seconds)."""
        count, longest, since = 0, 0.0, None
        for begin, end, master in list(self.answers):
            if master is None:
                count += 1
                since = begin if since is None else since
                longest = max(longest, end - since)
            else:
                since = None
        return count, longest

    def times(self):
        """How long each answer took. Unit: seconds."""
        return sorted(end - begin for begin, end, _ in list(self.answers))


def run(checks):
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    with e2e.running_cluster() as cluster:
        leader = cluster.nodes()[cluster.await_leader()]["address"]
        remoting.create_topic(leader, WATCHED, 4)
        watcher = RouteWatcher(cluster.name_server(), WATCHED)
        watcher.start()
        e2e.await_that("a master in the route", e2e.LEADER_TIMEOUT, watcher.master)
        watcher.answers.clear()
        create_topics(checks, cluster, count)
        report(checks, watcher, f"{count} creations")
        hand_over(checks, cluster, watcher)
        watcher.stop()
        report(checks, watcher, "creations and a hand-over")
        change_attributes(checks, cluster)


def create_topics(checks, cluster, count):
    """Creates the topics and compares the beginning with the end."""
    fields = {"defaultTopic": "TBW102", "readQueueNums": 1, "writeQueueNums": 1, "perm": 6}
    fields |= {"topicFilterType": "SINGLE_TAG", "topicSysFlag": 0, "order": "false"}
    leader = cluster.await_leader()
    client = remoting.Client(cluster.addresses())
    client.place = list(cluster.nodes()).index(leader)
    took, failed = [], []
    for number in range(count):
        begin = time.monotonic()
        while not created(client, {**fields, "topic": f"many-{number:06}"}, failed):
            if len(failed) > FAILURES_MAX:
                raise e2e.Broken(f"too many creations failed: {failed[-3:]}")
        took.append(time.monotonic() - begin)
    done = time.monotonic()
    print(f"{count} topics: {sum(took):.1f} s, {len(failed)} attempts in vain {failed[:2]}")
    step = min(1000, count // 2)
    for at in range(0, count, step):
        part = took[at : at + step]
        print(f"topics {at} to {at + len(part)}: {sum(part):.2f} s, median {1000 * statistics.median(part):.2f} ms")
    ratio = statistics.median(took[-step:]) / statistics.median(took[:step])
    checks.check(ratio <= RATIO_MAX, f"the last {step} take as long as the first", f"{ratio:.2f} times as long")
    print(f"last to first: {ratio:.2f} (medians)")

    def all_known():
        _, body = remoting.ask(cluster.name_server(), GET_ALL_TOPIC_NAMES)
        return sum(name.startswith("many-") for name in json.loads(body)["topicList"]) == count

    e2e.await_that("the name server to know all topics", e2e.CATCH_UP_TIMEOUT, all_known)
    late = time.monotonic() - done
    checks.check(late < KNOWN_SOON, "the name server knows every topic soon", f"{late:.2f} s")
    print(f"the name server knows every topic after {1000 * late:.0f} ms")
    for name, node in cluster.nodes().items():
        sent = registrations(node["httpAddress"])
        print(f"{name}: {sent} registrations with all topics")


def created(client, fields, failed):
    """One attempt to create a topic; the leader may change on a busy machine."""
    try:
        header, _ = client.call(remoting.CREATE_TOPIC, fields)
    except (OSError, remoting.Failed) as error:
        failed.append(f"{type(error).__name__}: {error}")
        return False
    if header["code"] != remoting.SUCCESS:
        failed.append(header.get("remark"))
        client.next_replica()
        return False
    return True


def registrations(address):
    """How often a broker has sent all topics."""
    text = (e2e.http_get(address, "/metrics") or b"").decode()
    rows = [line for line in text.splitlines() if line.startswith("raftmq_registrations_total{")]
    return int(sum(float(row.rsplit(" ", 1)[1]) for row in rows))


def hand_over(checks, cluster, watcher):
    """Another node leads: the route has to follow."""
    old = cluster.await_leader()
    grpc.transfer_leader(cluster.nodes()[old]["httpAddress"])
    done = time.monotonic()
    new = cluster.await_leader(besides=(old,))
    address = cluster.nodes()[new]["address"]
    e2e.await_that("the new leader in the route", e2e.LEADER_TIMEOUT, lambda: watcher.master() == address)
    late = time.monotonic() - done
    checks.check(late < KNOWN_SOON, "the new leader is in the route soon", f"{late:.2f} s")
    print(f"hand-over from {old} to {new}: in the route after {1000 * late:.0f} ms at most")


def report(checks, watcher, name):
    """What the watcher saw."""
    count, longest = watcher.without_master()
    times = watcher.times()
    checks.check(watcher.ended is None, f"{name}: the name server answers", watcher.ended)
    checks.check(count == 0, f"{name}: never without a master", f"{count} answers, up to {1000 * longest:.0f} ms")
    at = [times[int(share * (len(times) - 1))] for share in (0.5, 0.99, 1)]
    shown = " ".join(f"{1000 * seconds:.1f}" for seconds in at)
    print(f"{name}: {len(times)} routes; median, 99 %, longest: {shown} ms; {count} without a master, {1000 * longest:.0f} ms")


def change_attributes(checks, cluster):
    """Two clients change different attributes of one topic, both at the same time."""
    leader = cluster.nodes()[cluster.await_leader()]["address"]
    changes = {"message.type": "FIFO", "cleanup.policy": "DELETE"}
    lost = []
    for number in range(ATTRIBUTE_ROUNDS):
        topic = f"attributes-{number}"
        remoting.create_topic(leader, topic, 1)
        gate = threading.Barrier(len(changes))
        threads = [threading.Thread(target=change, args=(leader, topic, gate, f"+{key}={value}")) for key, value in changes.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        _, body = remoting.ask(leader, GET_TOPIC_CONFIG, {"topic": topic})
        attributes = json.loads(body)["attributes"]
        if attributes != changes:
            lost.append(attributes)
    checks.check(not lost, "changes of attributes that cross each other all count", f"{len(lost)} lost: {lost[:2]}")


def change(leader, topic, gate, attributes):
    """Changes attributes when everybody is there."""
    fields = {"topic": topic, "defaultTopic": "TBW102", "readQueueNums": 1, "writeQueueNums": 1, "perm": 6}
    fields |= {"topicFilterType": "SINGLE_TAG", "order": "false", "attributes": attributes}
    connection = remoting.Connection(leader)
    gate.wait()
    connection.call(remoting.CREATE_TOPIC, fields)
    connection.close()


if __name__ == "__main__":
    e2e.main(run)
