#!/usr/bin/env python3
"""stalls.py [ROUNDS]: leaders that are not dead but do not work: paused (SIGSTOP), on a disk whose
syncs take 5 s, cut off by a partition in one or in both directions.

Each time the group takes messages again within 2 s, the leader of the past returns as a follower,
and the term rises by little: no storm of elections. Then a leader is paused while the third node is
dead, so that nobody can replace it: what its follower forwards is answered in time all the same, and
the leader does none of it when it goes on. In the end nothing acknowledged is lost. Runs in a network
namespace of its own; needs root.
"""

import concurrent.futures
import sys
import time

import cluster as e2e
import faults
import remoting

# What a group may take to be writable again. Unit: seconds.
WRITABLE_MAX = 2.0
# How long a fault lasts. Unit: seconds.
FAULT = 4.0
# Terms that one fault may use: an election may need a second try.
TERMS_MAX = 4
# Calm before each fault. Unit: seconds.
CALM = 1.0
# What a client waits for the answer to a send. Unit: seconds.
ANSWER_MAX = 3.0
# Messages that are sent at once to a group without a quorum.
SENDERS = 16

FAULTS = (faults.paused, faults.stalled, faults.silent, faults.cut_off)


def run(checks):
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    faults.private_network()
    with e2e.temporary_folder() as folder:
        group = faults.Brokers(folder, {})
        try:
            group.start()
            # Each stays with one replica, as long as that answers.
            probers = {
                name: remoting.Prober([node["address"]], f"probe_{name}") for name, node in group.all_nodes.items()
            }
            for prober in probers.values():
                prober.start()
            e2e.await_that(
                "all senders to begin", e2e.LEADER_TIMEOUT, lambda: all(len(p.times) > 9 for p in probers.values())
            )
            gaps = {fault: [] for fault in FAULTS}
            for number in range(rounds):
                for fault in FAULTS:
                    one_round(checks, group, probers, fault, f"{fault.__doc__}, round {number + 1}", gaps[fault])
            for prober in probers.values():
                prober.stop()
            nobody_can_replace_it(checks, group)
            for fault, values in gaps.items():
                print(e2e.gap_line(f"a leader {fault.__doc__}: writable again after", values))
            group.await_all_equal()
            for prober in probers.values():
                print(f"{prober.topic}: vain attempts {e2e.summary(prober.vain)}")
                e2e.check_topic(checks, group, prober.topic, 4, prober.acks, True)
        finally:
            group.stop()


def one_round(checks, group, probers, fault, name, gaps):
    """A fault, its end, and what came of it."""
    time.sleep(CALM)
    leader = group.await_leader()
    term = group.status(leader)["term"]
    # Who is connected to the leader waits for its own timeout; what the others get tells when the
    # group takes messages again.
    others = [prober for place, prober in probers.items() if place != leader]
    begin = time.monotonic()
    mend = fault(group, leader)
    try:
        e2e.await_that(f"{name}: messages to be taken", 30, lambda: all(sent_since(other, begin) for other in others))
        # A fault may begin to tell a moment later.
        time.sleep(max(0.0, begin + FAULT - time.monotonic()))
        gap = max(other.gap(begin, time.monotonic()) for other in others)
        new = group.leader()
    finally:
        mend()
    group.await_caught_up(leader)
    e2e.await_that("all senders to go on", 30, lambda: all(sent_since(one, time.monotonic() - 1) for one in probers.values()))
    after = group.status(group.await_leader())["term"]
    print(f"{name}: {leader} to {new}, senders at the others paused for {1000 * gap:.0f} ms, {after - term} terms")
    gaps.append(gap)
    checks.check(gap < WRITABLE_MAX, f"{name}: writable within {WRITABLE_MAX} s", f"{gap:.2f} s")
    checks.check(new not in (None, leader), f"{name}: another node leads", new)
    checks.check(after - term <= TERMS_MAX, f"{name}: no storm of elections", f"{after - term} terms")
    checks.check(not group.deaths, f"{name}: no broker ended", group.deaths)


def nobody_can_replace_it(checks, group):
    """A leader that is paused while the third node is dead."""
    topic = "given_up"
    leader = group.await_leader()
    follower, third = (name for name in group.all_nodes if name != leader)
    address = group.all_nodes[follower]["address"]
    remoting.create_topic(address, topic, 1)
    remoting.Client([address]).send(topic, 0, "before")

    def send(number):
        begin = time.monotonic()
        header = remoting.Client([address]).try_send(topic, 0, f"given_up_{number}")
        return time.monotonic() - begin, header["code"]

    group.kill(third)
    resume = faults.paused(group, leader)
    try:
        with concurrent.futures.ThreadPoolExecutor(SENDERS) as pool:
            answers = list(pool.map(send, range(SENDERS)))
    finally:
        resume()
    longest = max(seconds for seconds, _ in answers)
    codes = {code for _, code in answers}
    print(f"sends without a quorum: answered within {longest:.2f} s, with {sorted(codes)}")
    checks.check(longest < ANSWER_MAX, f"sends without a quorum: answered within {ANSWER_MAX} s", f"{longest:.2f} s")
    unknown_or_not_done = {remoting.SYSTEM_ERROR, remoting.SERVICE_NOT_AVAILABLE}
    checks.check(codes <= unknown_or_not_done, "sends without a quorum: none is acknowledged", codes)
    time.sleep(CALM)
    _, end = remoting.Client([address]).send(topic, 0, "after")
    checks.check(end == 1, "sends without a quorum: none is carried out later", f"{end - 1} are")
    group.restart(third)
    group.await_ready()


def sent_since(prober, begin):
    """Whether a message that was sent after `begin` was acknowledged."""
    # The second acknowledgement after that moment is surely of a later send.
    return len(prober.times) > 1 and prober.times[-2] > begin


if __name__ == "__main__":
    e2e.main(run)
