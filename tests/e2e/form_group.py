#!/usr/bin/env python3
"""form_group.py: a group that waits to be formed, as an operator runs it.

Nodes with raftFormGroup=admin wait; one call forms the group, and repeating it does nothing, also
after kill -9. The leader is registered under leaderServiceAddress. A node that returns under its
old id with an empty disk is refused by the others and helps nobody to a majority; under a new id
it takes its place.
"""

import contextlib
import json
import signal
import subprocess
import time

import brokers
import cluster as e2e
import grpc
import remoting

# How long nothing must happen. Several election timeouts (1.5 s). Unit: seconds.
QUIET = 6.0

# Longer than any step takes here: what comes before it is not sent for its sake. Unit: ms.
WATCH_INTERVAL_MS = 30_000
WATCH_TIMEOUT = 20

WAITS = "waits to be formed into its group"
NO_LEADER = "no leader with a quorum"
OTHER_DISK = "returned with another disk"


def run(checks):
    with e2e.temporary_folder() as folder:
        # The operator points this address at the leader; here nobody listens on it.
        group = brokers.Group(folder, 4)
        try:
            voters = group.all[:3]
            for broker in voters:
                broker.start()
            nodes_wait(checks, voters)
            group_is_formed(checks, group, voters)
            leader_is_registered(checks, group, voters)
            hand_over(checks, group)
            leader_changes_are_sent(checks, group)
            acks = some_messages(group)
            lost, good = disk_is_lost(checks, group, voters)
            replaced(checks, group, lost, good, group.all[3], acks)
            stop(checks, group, lost)
        finally:
            group.stop()


def nodes_wait(checks, voters):
    """Before anybody asks for a group there is none."""
    e2e.await_that("all nodes to answer", e2e.START_TIMEOUT, lambda: all(broker.status() for broker in voters))
    time.sleep(QUIET)
    for broker in voters:
        status = broker.status()
        seen = (status["role"], status["term"], status["leader"], status["initialized"], status["voters"])
        checks.check(seen == ("LEARNER", 0, None, False, []), f"n{broker.number} waits", seen)
        code, body = broker.get("/readyz")
        checks.check((code, body) == (503, WAITS + "\n"), f"n{broker.number} is not ready", (code, body))
        checks.check(broker.get("/livez")[0] == 200, f"n{broker.number} is alive")
    incarnations = {broker.status()["incarnation"] for broker in voters}
    checks.check(len(incarnations) == 3 and "" not in incarnations, "each disk has its incarnation", incarnations)


def members_of(voters):
    """The voters as members of a group, and their incarnations."""
    incarnations = [broker.status()["incarnation"] for broker in voters]
    members = [
        grpc.member(broker.node_id, broker.raft, incarnation)
        for broker, incarnation in zip(voters, incarnations)
    ]
    return members, incarnations


def group_is_formed(checks, group, voters):
    """Wrong calls are refused, a right one forms the group, a repeated one does nothing."""
    members, (incarnation, *others) = members_of(voters)
    first = voters[0]
    for name, arguments in [
        ("another node's incarnation", (others[0], members)),
        ("members without the called node", (incarnation, members[1:])),
        ("a member without an incarnation", (incarnation, members[:1] + [grpc.member(2, voters[1].raft, "")])),
    ]:
        refused = is_refused(lambda: grpc.form_group(first.http, *arguments))
        checks.check(refused, f"FormGroup with {name} is refused", "it was answered")
    checks.check(first.status()["term"] == 0, "a refused call changes nothing")
    already = grpc.form_group(first.http, incarnation, members)
    first.end(signal.SIGKILL)
    checks.check(not already, "FormGroup forms the group")
    first.start()
    e2e.await_that("n0 to answer", e2e.START_TIMEOUT, first.status)
    again = grpc.form_group(first.http, incarnation, members)
    checks.check(again, "kill -9 right after the answer: the group stays formed", again)
    group.await_ready(voters)
    checks.check(True, "all nodes are ready")
    for broker, own in zip(voters, [incarnation, *others]):
        already = grpc.form_group(broker.http, own, members)
        checks.check(already, f"FormGroup repeated at n{broker.number} says that there is one", already)
        status = broker.status()
        named = {member["id"]: member["incarnation"] for member in status["voters"]}
        wanted = dict(zip((1, 2, 3), [incarnation, *others]))
        checks.check(
            (named, status["initialized"], status["incarnation"]) == (wanted, True, own),
            f"n{broker.number} knows the disks of all members",
            (named, status["incarnation"]),
        )


def is_refused(call):
    """Whether a call has no answer."""
    try:
        call()
    except remoting.Failed:
        return True
    return False


def send(client, topic, key):
    """Sends a message until it is acknowledged; its queue and offset."""

    def acknowledged():
        try:
            return client.send(topic, 0, key)
        except (OSError, remoting.Failed):
            return None

    return e2e.await_that("an acknowledgement", e2e.LEADER_TIMEOUT, acknowledged)


def routes(group, topic):
    """The brokers of a topic by broker id, at each name server; None where it is unknown."""
    found = []
    for broker in group.all:
        if not broker.is_running():
            continue
        with contextlib.closing(remoting.Connection(broker.namesrv)) as connection:
            header, body = connection.call(remoting.GET_ROUTE, {"topic": topic})
        if header["code"] != remoting.SUCCESS:
            found.append(None)
            continue
        addresses = json.loads(quoted_keys(body))["brokerDatas"][0]["brokerAddrs"]
        found.append({int(number): address for number, address in addresses.items()})
    return found


def quoted_keys(body):
    """Name servers write broker ids as keys without quotes, as RocketMQ's JSON library does."""
    text = body.decode()
    for number in range(9):
        text = text.replace("{%d:" % number, '{"%d":' % number).replace(",%d:" % number, ',"%d":' % number)
    return text


def leader_is_registered(checks, group, voters):
    """Id 0 is the address of the leader service, the others are the followers' own."""
    leader = group.await_leader()
    follower = next(broker for broker in voters if broker is not leader)
    client = remoting.Client([follower.address])
    send(client, "probe", "0" * 32)
    expect_route(checks, group, leader, voters, "formed")
    header, _ = client.call(
        remoting.SEND_MESSAGE,
        {
            "producerGroup": "e2e", "topic": "probe", "defaultTopic": "TBW102", "defaultTopicQueueNums": 4,
            "queueId": 0, "sysFlag": 0, "bornTimestamp": 1, "flag": 0, "properties": "", "reconsumeTimes": 0,
        },
        b"x",
    )
    client.connection.close()
    message_id = header["extFields"]["msgId"]
    stored_host = f"{'.'.join(str(byte) for byte in bytes.fromhex(message_id[:8]))}:{int(message_id[8:16], 16)}"
    checks.check(stored_host == group.leader_service, "message ids lead to the leader service", stored_host)


def expect_route(checks, group, leader, voters, when):
    """Waits until every name server knows the leader under the service and the others as they are."""
    wanted = {broker.node_id: broker.address for broker in voters if broker is not leader}
    wanted[0] = group.leader_service

    def known():
        return all(route == wanted for route in routes(group, "probe"))

    try:
        e2e.await_that("the route", e2e.LEADER_TIMEOUT, known)
        checks.check(True, f"{when}: all name servers have id 0 at the leader service")
    except e2e.Broken:
        checks.check(False, f"{when}: all name servers have id 0 at the leader service", routes(group, "probe"))


def command(*arguments):
    """Runs the program; exit code and output."""
    done = subprocess.run(
        [e2e.binary(), *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout + done.stderr


def hand_over(checks, group):
    """`raftmq hand-over`: another node leads when it returns."""
    old = group.await_leader()
    code, output = command("hand-over", "--address", old.http)
    status = old.status()
    checks.check(
        code == 0 and status["role"] == "FOLLOWER" and status["leader"] not in (None, old.node_id),
        "hand-over: returns when the node knows another leader",
        (code, output, status["role"], status["leader"]),
    )
    code, output = command("hand-over", "--address", old.http)
    checks.check(code == 0 and "does not lead" in output, "hand-over: nothing to do on a follower", (code, output))
    nobody = group.leader_service
    code, output = command("hand-over", "--address", nobody, "--timeout", "2s")
    checks.check(code == 1 and nobody in output, "hand-over: says that nobody answers", (code, output))
    expect_route(checks, group, group.await_leader(), group.all[:3], "handed over")


def leader_changes_are_sent(checks, group):
    """The status streams of both nodes tell a new leader at once: long before their interval."""
    old = group.await_leader()
    new = next(broker for broker in group.all[:3] if broker is not old)
    with contextlib.ExitStack() as stack:
        streams = {}
        for broker in (old, new):
            stream = grpc.watch_status(broker.http, WATCH_INTERVAL_MS, WATCH_TIMEOUT)
            streams[broker] = stack.enter_context(contextlib.closing(stream))
            first = next(stream)
            is_leader = first.get(grpc.ROLE) == grpc.ROLE_LEADER
            checks.check(is_leader == (broker is old), "a status stream begins with the role", first)
        term = old.status()["term"]
        grpc.transfer_leader(old.http, new.node_id)
        for broker in (old, new):
            steps = until_leader(streams[broker], new.node_id)
            last = steps[-1]
            leads = last.get(grpc.ROLE) == grpc.ROLE_LEADER
            checks.check(
                leads == (broker is new) and last[grpc.TERM] > term,
                f"the stream of n{broker.number} tells the new leader at once",
                steps,
            )
            # A node that was elected and does not serve yet must not look like the leader.
            early = [step for step in steps[:-1] if step.get(grpc.ROLE) == grpc.ROLE_LEADER and step[grpc.TERM] > term]
            checks.check(not early, f"the stream of n{broker.number} shows no leader before it serves", early)


def until_leader(stream, node_id):
    """What a stream sends until it shows the leader: serving, when it is the node itself."""
    steps = []
    for status in stream:
        own = status[3] == node_id
        steps.append({number: status.get(number) for number in (grpc.ROLE, grpc.TERM, grpc.LEADER_ID)})
        if status.get(grpc.LEADER_ID) == node_id and (not own or status.get(grpc.ROLE) == grpc.ROLE_LEADER):
            return steps
    raise e2e.Broken(f"the stream ended: {steps}")


def some_messages(group):
    """Messages that nothing of what follows may lose."""
    leader = group.await_leader()
    client = remoting.Client([leader.address])
    acks = [(f"{number:032X}", *send(client, "kept", f"{number:032X}")) for number in range(50)]
    client.connection.close()
    return acks


def disk_is_lost(checks, group, voters):
    """A follower loses its disk and returns under its old id."""
    leader = group.await_leader()
    lost = next(broker for broker in voters if broker is not leader)
    good = [broker for broker in voters if broker is not lost]
    before = lost.status()["incarnation"]
    lost.end(signal.SIGKILL)
    lost.lose_disk()
    lost.start()
    e2e.await_that("the node to answer", e2e.START_TIMEOUT, lost.status)
    checks.check(lost.status()["incarnation"] != before, "an empty folder gets another incarnation")

    def is_refused():
        return OTHER_DISK in (lost.status()["notReadyReason"] or "")

    e2e.await_that("the node to know that it is refused", e2e.LEADER_TIMEOUT, is_refused)
    print("  " + lost.get("/readyz")[1].strip())
    # The other good node meets it only in an election.
    other = next(broker for broker in good if broker is not leader)
    leader.end(signal.SIGKILL)
    e2e.await_that("an election", e2e.LEADER_TIMEOUT, lambda: refusals(other) > 0)

    def has_no_leader():
        status = other.status()
        return not status["ready"] and NO_LEADER in status["notReadyReason"]

    e2e.await_that("the good node to miss a leader", e2e.LEADER_TIMEOUT, has_no_leader)
    checks.check(other.get("/livez")[0] == 200, "a lost quorum is no reason to restart")
    time.sleep(QUIET)
    statuses = {f"n{broker.number}": (status["role"], status["term"]) for broker, status in group.statuses()}
    roles = {role for role, _ in statuses.values()}
    checks.check(roles == {"LEARNER", "FOLLOWER"}, "a blank node gives nobody a majority", statuses)
    status = lost.status()
    seen = (status["role"], status["term"], status["lastIndex"], status["initialized"])
    checks.check(seen == ("LEARNER", 0, None, False), "the blank node has never voted", seen)
    checks.check(not status["ready"], "the blank node is not ready")
    for broker in good:
        warned = broker.lines(OTHER_DISK)
        checks.check(
            len([line for line in warned if "WARN" in line]) == 1,
            f"n{broker.number} says once why it refuses the node",
            warned,
        )
    checks.check(refusals(other) > 1, "every refusal is counted", refusals(other))
    leader.start()
    group.await_ready(good)
    checks.check(True, "the two good nodes elect a leader")
    return lost, good


def refusals(broker):
    """Connections this node has refused for another disk."""
    return broker.metric("raftmq_raft_refused_peers_total")


def replaced(checks, group, lost, good, fresh, acks):
    """The node takes its place under a new id."""
    fresh.start()
    e2e.await_that("the new node to answer", e2e.START_TIMEOUT, fresh.status)
    incarnation = fresh.status()["incarnation"]
    leader = group.await_leader()
    same_id = is_refused(lambda: grpc.add_learner(leader.http, lost.node_id, lost.raft, lost.status()["incarnation"]))
    checks.check(same_id, "the old id cannot be given to another disk", "it was answered")
    for _ in range(2):
        grpc.add_learner(leader.http, fresh.node_id, fresh.raft, incarnation)
    group.await_ready([fresh])
    grpc.change_membership(leader.http, [broker.node_id for broker in [*good, fresh]])
    lost.end(signal.SIGKILL)
    ids = [member["id"] for member in leader.status()["voters"]]
    wanted = sorted(broker.node_id for broker in [*good, fresh])
    checks.check(ids == wanted, "a new id takes the place of the lost one", ids)
    expect_route(checks, group, group.await_leader(), [*good, fresh], "replaced")
    applied = [leader.status()["appliedIndex"]]

    def has_all():
        return (fresh.status()["appliedIndex"] or 0) >= applied[0]

    e2e.await_that("the new node to have everything", e2e.CATCH_UP_TIMEOUT, has_all)
    received = e2e.consume_all(group, "kept", 4, fresh.address)
    missing = set(acks) - set(received)
    checks.check(not missing, "the new node has every acknowledged message", f"{len(missing)} are missing")


def stop(checks, group, lost):
    """SIGTERM ends every node well."""
    for broker in group.all:
        if broker is not lost:
            begin = time.monotonic()
            code = broker.end()
            took = time.monotonic() - begin
            checks.check(code == 0, f"n{broker.number} ends with code 0 on SIGTERM ({took:.1f} s)", code)


if __name__ == "__main__":
    e2e.main(run)
