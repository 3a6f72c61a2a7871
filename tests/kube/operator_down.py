#!/usr/bin/env python3
"""operator_down.py [--rounds N]: what publishes the leader fails together with the leader.

Cases: one operator (the one that reconciles) killed with the leader; both killed with it; the API
server restarted with it. Each time the endpoint converges to the new leader, is never wrong on the
way, nothing is deleted or made anew, and the brokers go on serving.
"""

import argparse
import os
import signal
import time

import mq
import operators
import traffic as loads
from component import pid
from mq import e2e
from timeline import Timeline, Verdict

NAMESPACE = "operator-down"

# Longest time until the new leader is published. Kubernetes starts a container that was killed
# again at once only the first time, then after 10 s, 20 s and so on. Unit: seconds.
CONVERGE_TIMEOUT = 150

# What the operator makes; none of it may be made anew.
KINDS = {
    "pods": "/api/v1/namespaces/{}/pods",
    "services": "/api/v1/namespaces/{}/services",
    "configmaps": "/api/v1/namespaces/{}/configmaps",
    "claims": "/api/v1/namespaces/{}/persistentvolumeclaims",
    "statefulsets": "/apis/apps/v1/namespaces/{}/statefulsets",
    "endpointslices": "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices",
    "budgets": "/apis/policy/v1/namespaces/{}/poddisruptionbudgets",
}


def run(checks):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    rounds = parser.parse_args().rounds
    with operators.running() as both:
        mq.delete_namespace(mq.api.Api(), NAMESPACE)
        cluster = mq.RaftCluster(NAMESPACE, "orders").make().await_ready()
        group = cluster.group()
        with loads.traffic(cluster, "operator_down", False) as traffic:
            for number in range(rounds):
                for name, disturb in (
                    ("one operator killed", lambda: both.kill(both.lease_holder())),
                    ("both operators killed", both.kill),
                    ("API server restarted", restart_api_server),
                ):
                    one_round(checks, f"{name} ({number + 1})", disturb, group, traffic, both)
            traffic.check_nothing_lost(checks)
        mq.delete_namespace(cluster.client, NAMESPACE)


def restart_api_server():
    """SIGKILL; it comes back by itself."""
    os.kill(pid("kube-apiserver"), signal.SIGKILL)


def one_round(checks, name, disturb, group, traffic, both):
    """The leader and something else fail together."""
    both.await_working()
    group.await_caught_up()
    before = objects(group)
    with Timeline(group) as timeline:
        term, address = timeline.leader()
        pod = group.pod_at(address)
        process = mq.process_of(group.namespace, pod)
        begin = time.time()
        disturb()
        os.kill(process, signal.SIGKILL)
        timeline.await_switch(term, CONVERGE_TIMEOUT)
        converged = time.time() - begin
        traffic.await_acks(5, since=time.time())
        served = traffic.gap(begin, time.time())
        verdict = Verdict(timeline.sorted_events())
        checks.check(not verdict.two, f"{name}: never two addresses", verdict.two[:3])
        wrong = [one for one in timeline.published_addresses() if group.pod_at(one) is None]
        checks.check(not wrong, f"{name}: only brokers of the group were published", wrong)
    print(f"{name}: new leader published after {converged:.2f} s, sender's pause {served:.2f} s", flush=True)
    e2e.await_that("the API server", 60, lambda: is_answered(group))
    group.await_caught_up()
    both.await_working()
    group.cluster.await_ready()
    after = objects(group)
    changed = {kind: (before[kind], after[kind]) for kind in KINDS if before[kind] != after[kind]}
    checks.check(not changed, f"{name}: nothing was deleted or made anew", changed)


def is_answered(group):
    """Whether the API server answers again."""
    try:
        return group.cluster.resource() is not None
    except (OSError, mq.api.ApiError, mq.api.http.client.HTTPException):
        return False


def objects(group):
    """The uids of everything in the namespace, by kind."""
    found = {}
    for kind, path in KINDS.items():
        items = group.client.get(path.format(group.namespace))["items"]
        found[kind] = sorted((item["metadata"]["name"], item["metadata"]["uid"]) for item in items)
    return found


if __name__ == "__main__":
    e2e.main(run)
