#!/usr/bin/env python3
"""identity.py: a broker that goes comes back as who it was; one that lost its disk never does."""

import time

import mq
import operators
import traffic as loads
from mq import e2e

NAMESPACE = "identity"

# How long a broker with an empty disk is watched: it must not become a member. Unit: seconds.
WATCHED = 10


def run(checks):
    client = mq.api.Api()
    with operators.running():
        mq.delete_namespace(client, NAMESPACE)
        cluster = mq.RaftCluster(NAMESPACE, "orders").make().await_ready()
        group = cluster.group()
        with loads.traffic(cluster, "identity", False) as traffic:
            for name, act in (("deleted", delete), ("evicted", evict), ("killed", kill)):
                for role in ("follower", "leader"):
                    return_of(checks, group, f"a {role} that was {name}", act, role)
            judge_budget(checks, group)
            traffic.check_nothing_lost(checks)
        judge_lost_disk(checks, group)
        mq.delete_namespace(client, NAMESPACE)


def identity(group, pod):
    """(node id, incarnation of the data) as the broker says it."""
    status = group.broker_status(pod)
    return status["nodeId"], status.get("incarnation")


def claim(group, pod):
    """The uid of the claim of a pod."""
    return group.client.get(group.core("persistentvolumeclaims", f"data-{pod}"))["metadata"]["uid"]


def delete(group, pod):
    """kubectl delete pod."""
    uid = group.pods()[pod]["metadata"]["uid"]
    group.delete_pod(pod)
    group.await_replaced(pod, uid)


def evict(group, pod):
    """What a drain does."""
    uid = group.pods()[pod]["metadata"]["uid"]
    group.await_evictable()
    group.evict(pod)
    group.await_replaced(pod, uid)


def kill(group, pod):
    """SIGKILL; the container is started again in the same pod."""
    before = restarts(group, pod)
    group.signal(pod)
    e2e.await_that(f"{pod} to be started again", mq.READY_TIMEOUT, lambda: restarts(group, pod) > before)


def restarts(group, pod):
    """How often the container was started again."""
    return group.pods()[pod]["status"]["containerStatuses"][0]["restartCount"]


def return_of(checks, group, name, act, role):
    """Ends one broker in one way and looks at what comes back."""
    group.await_caught_up()
    leader = group.await_leader()
    pod = leader if role == "leader" else next(pod for pod in group.pods() if pod != leader)
    before = identity(group, pod), claim(group, pod)
    begin = time.monotonic()
    act(group, pod)
    group.await_caught_up()
    seconds = time.monotonic() - begin
    after = identity(group, pod), claim(group, pod)
    checks.check(after == before, f"{name} is back after {seconds:.1f} s as who it was", f"{before} became {after}")


def judge_budget(checks, group):
    """One at a time: a second eviction is refused while the first pod is away."""
    group.await_caught_up()
    first, second, *_ = group.pods()
    uid = group.pods()[first]["metadata"]["uid"]
    group.await_evictable()
    group.evict(first)
    try:
        group.evict(second)
        refused = "it was not"
    except mq.api.ApiError as error:
        refused = error.status
    checks.check(refused == 429, "a second eviction is refused meanwhile", refused)
    group.await_replaced(first, uid)
    group.await_caught_up()


def judge_lost_disk(checks, group):
    """Claim and pod deleted: the pod that returns is empty, and must not vote as the old node."""
    group.await_caught_up()
    leader = group.await_leader()
    pod = next(name for name in group.pods() if name != leader)
    old_id, old_incarnation = identity(group, pod)
    old_claim = claim(group, pod)
    uid = group.pods()[pod]["metadata"]["uid"]
    group.client.call("DELETE", group.core("persistentvolumeclaims", f"data-{pod}"))
    group.delete_pod(pod)

    def returned():
        found = group.client.get(group.core("persistentvolumeclaims", f"data-{pod}"))
        now = group.pods().get(pod)
        return found and found["metadata"]["uid"] != old_claim and now and now["metadata"]["uid"] != uid and now["status"].get("podIP")

    e2e.await_that(f"{pod} to come with an empty volume", mq.READY_TIMEOUT, returned)
    condition = e2e.await_that("condition Degraded to tell", mq.READY_TIMEOUT, lambda: degraded(group, pod))
    print(f"Degraded: {condition['reason']}: {condition['message']}")
    checks.check(pod in condition["message"], "the condition names the pod", condition["message"])
    as_old = []
    end = time.monotonic() + WATCHED
    while time.monotonic() < end:
        status = group.broker_status(pod)
        if status and status["nodeId"] == old_id and (status["ready"] or status["role"] in ("LEADER", "FOLLOWER")):
            as_old.append(status["role"])
        time.sleep(0.2)
    checks.check(not as_old, f"{pod} never returns as node {old_id} ({old_incarnation})", as_old[:3])
    checks.check(group.leader() is not None, "the other two go on")


def degraded(group, pod):
    """Condition Degraded once it is about this pod's disk."""
    condition = group.cluster.condition("Degraded")
    is_about = pod in condition.get("message", "") and "isk" in condition.get("reason", "") + condition.get("message", "")
    return condition if condition.get("status") == "True" and is_about else None


if __name__ == "__main__":
    e2e.main(run)
