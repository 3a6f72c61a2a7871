#!/usr/bin/env python3
"""failover.py [--rounds N] [--kinds KIND,...] [--java] [--calm S]: leaders that end in every way.

Kinds: delete (the pod is deleted), kill (its process gets SIGKILL), stop (SIGSTOP for a while, the
leader of the past returns).

A producer and a consumer go on meanwhile: stock Java clients with default settings with --java,
else a small client that knows only the Service of the leader. Checked: nothing acknowledged is
lost; never two addresses; a living one within 50 ms of a death; the leader's within 50 ms of its
term being known (but for rare cases on a busy machine); which sends failed. Printed: all the times.
"""

import argparse
import signal
import time

import mq
import operators
import traffic as loads
from mq import e2e
from timeline import MOVE_MAX, Leads, Published, Timeline, Verdict

NAMESPACE = "failover"

# How long a stopped leader stands still: until another one surely leads. Unit: seconds.
STANDSTILL = 2.0

# Calm before a leader ends. kube-proxy writes rules at most once a second, so what happened just
# before would be part of what is measured. Unit: seconds.
CALM = 2.0

# Everything runs on two cores here, and sometimes something waits for one: a small share of moves
# (and one of a few) may take longer than MOVE_MAX, but none as long as this. Unit: seconds.
LATE_SHARE = 0.01
MOVE_WORST = 0.2

# Sends that began so soon after a kill may fail: nothing has noticed the death yet. Unit: seconds.
UNNOTICED = 0.05

# Meant for a stock producer's longest time without an acknowledgement. Unit: seconds.
GAP_MEANT = 1.5


class Rounds:
    """What was measured in the rounds of one kind. All times in seconds."""

    def __init__(self, kind):
        self.kind = kind
        self.elected = []
        self.published = []
        self.gaps = []
        self.failures = []

    def print(self):
        """The figures."""
        print(e2e.gap_line(f"{self.kind}: end of the old leader -> new leader known", self.elected))
        print(e2e.gap_line(f"{self.kind}: new leader known -> its address published", self.published))
        print(e2e.gap_line(f"{self.kind}: longest time without an acknowledgement", self.gaps))
        print(f"{self.kind}: {len(self.failures)} sends failed after all retries {e2e.summary(self.failures)}")


def run(checks):
    given = arguments()
    with operators.running():
        mq.delete_namespace(mq.api.Api(), NAMESPACE)
        cluster = mq.RaftCluster(NAMESPACE, "orders").make().await_ready()
        group = cluster.group()
        with Timeline(group) as timeline, loads.traffic(cluster, "failover", given.java) as traffic:
            for kind in given.kinds.split(","):
                rounds = Rounds(kind)
                for number in range(given.rounds):
                    one_round(rounds, group, timeline, traffic, given.calm)
                    shown = f"{rounds.elected[-1]:.2f} s, published after {1000 * rounds.published[-1]:.0f} ms"
                    print(f"{kind} {number + 1}: new leader after {shown}, gap {rounds.gaps[-1]:.2f} s", flush=True)
                rounds.print()
                judge_sends(checks, rounds, given.calm)
            traffic.check_nothing_lost(checks)
            judge_endpoint(checks, Verdict(timeline.sorted_events()))
        mq.delete_namespace(cluster.client, NAMESPACE)


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", default="delete,kill,stop")
    parser.add_argument("--java", action="store_true")
    parser.add_argument("--calm", type=float, default=CALM, help="seconds before each end of a leader")
    return parser.parse_args()


def one_round(rounds, group, timeline, traffic, calm):
    """Ends one leader and waits until all is as before."""
    group.await_caught_up()
    time.sleep(calm)
    term, address = timeline.await_switch(0)
    pod = group.pod_at(address)
    uid = group.pods()[pod]["metadata"]["uid"]
    traffic.await_acks(5, since=time.time())
    begin = end_leader(rounds.kind, group, pod, address, timeline)
    term, address = timeline.await_switch(term)
    traffic.await_acks(5, since=time.time())
    if rounds.kind == "delete":
        group.await_replaced(pod, uid)
    group.await_caught_up()
    traffic.await_acks(5, since=time.time())
    end = time.time()
    events = [event for event in timeline.sorted_events() if event.at >= begin]
    known = next(event.at for event in events if isinstance(event, Leads) and event.term >= term)
    shown = next(event.at for event in events if isinstance(event, Published) and address in event.addresses)
    rounds.elected.append(known - begin)
    rounds.published.append(max(0.0, shown - known))
    rounds.gaps.append(traffic.gap(begin, end))
    for failure in traffic.failures():
        if begin <= failure.end / 1e6 <= end and failure.begin / 1e6 > begin + UNNOTICED:
            rounds.failures.append(failure.reason)


def end_leader(kind, group, pod, address, timeline):
    """Ends a leader in one of the ways; when that was."""
    process = mq.process_of(group.namespace, pod)
    timeline.follow_process(process, address)
    if kind == "delete":
        return group.delete_pod(pod)
    if kind == "stop":
        at = group.signal(pod, signal.SIGSTOP)
        time.sleep(STANDSTILL)
        group.signal(pod, signal.SIGCONT)
        return at
    return group.signal(pod)


def judge_sends(checks, rounds, calm):
    """Which sends may fail, and how long a pause may be."""
    failed = e2e.summary(rounds.failures)
    if calm >= CALM:
        checks.check(not rounds.failures, f"{rounds.kind}: no send failed after its retries", failed)
    gap = e2e.percentile(rounds.gaps, 0.99)
    # A leader that stands still is replaced only after it was silent, and says nothing then.
    limit = GAP_MEANT + (STANDSTILL if rounds.kind == "stop" else 0)
    checks.check(gap < limit, f"{rounds.kind}: the producer paused for less than {limit} s", f"{gap:.2f} s")


def judge_endpoint(checks, verdict):
    """Must never be wrong for long."""
    checks.check(not verdict.two, "never two addresses published", verdict.two[:3])
    for name, values in (
        ("death -> a living address published", verdict.dark),
        ("leader's term known -> its address published", verdict.unpublished),
    ):
        if not values:
            continue
        print(e2e.gap_line(name, values))
        late = sorted((value for value in values if value > MOVE_MAX), reverse=True)
        shown = f"{len(late)} of {len(values)} later: {[f'{1000 * value:.0f} ms' for value in late[:5]]}"
        if late:
            print(f"{name}: {shown}")
        is_rare = len(late) <= LATE_SHARE * len(values) + 1
        checks.check(is_rare, f"{name}: within {1000 * MOVE_MAX:.0f} ms but for rare cases", shown)
        checks.check(max(values) <= MOVE_WORST, f"{name}: always within {1000 * MOVE_WORST:.0f} ms", shown)
    print(f"stand-ins published: {verdict.stand_ins}")


if __name__ == "__main__":
    e2e.main(run)
