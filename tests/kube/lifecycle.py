#!/usr/bin/env python3
"""lifecycle.py: a cluster from nothing to nothing: ready in time, quiet at rest, gone when deleted
but for its claims, and found again by a new resource of the same name."""

import json
import os
import pathlib
import time

import control_plane
import mq
import operators
import traffic as loads
from mq import e2e

NAMESPACE = "lifecycle"

# Rest that is looked at. Unit: seconds.
REST = 30
# How often it is looked again when a leader was elected meanwhile.
RESTS_MAX = 3

KINDS = ["pods", "services", "configmaps", "statefulsets", "endpointslices", "poddisruptionbudgets", "serviceaccounts"]


def run(checks):
    client = mq.api.Api()
    with operators.running() as both:
        mq.delete_namespace(client, NAMESPACE)
        mq.make_namespace(client, NAMESPACE)
        begin = time.monotonic()
        cluster = mq.RaftCluster(NAMESPACE, "orders").make().await_ready()
        print(f"ready {time.monotonic() - begin:.1f} s after it was applied")
        judge_rest(checks, both, cluster)
        traffic = loads.traffic(cluster, "lifecycle", False)
        with traffic:
            traffic.await_acks(100)
        acks = list(traffic.sender.acks)
        judge_deletion(checks, cluster)
        cluster.make().await_ready()
        again = loads.Small(cluster, "lifecycle")
        again.sender.acks += acks
        again.check_nothing_lost(checks)
        mq.delete_namespace(client, NAMESPACE)


def judge_rest(checks, both, cluster):
    """What the operators cost when nothing happens, and that they write nothing."""
    for _ in range(RESTS_MAX):
        term = term_of(cluster)
        time.sleep(3)  # what the start of the cluster left to do
        costs, writes = rest(both)
        # An election, which a busy machine may cause, is no rest.
        if term_of(cluster) == term:
            break
    for line in costs:
        print(line)
    shown = [(line["verb"], line["objectRef"]["resource"], line["objectRef"].get("name")) for line in writes]
    checks.check(not writes, f"no write but its Lease in {REST} s at rest", shown[:5])


def term_of(cluster):
    """The term of the group's leader."""
    return cluster.resource()["status"]["groups"][0].get("term")


def rest(both):
    """What each operator costs in a while, as lines, and what they write but their Lease."""
    processes = both.processes()
    begin, lines = time.time(), len(audited())
    ticks = {name: processor_ticks(process) for name, process in processes.items()}
    time.sleep(REST)
    costs = []
    for name, process in processes.items():
        share = (processor_ticks(process) - ticks[name]) / os.sysconf("SC_CLK_TCK") / (time.time() - begin)
        memory, most = (e2e.memory_bytes(process, of) / 2**20 for of in ("VmRSS", "VmHWM"))
        costs.append(f"{name} at rest: {100 * share:.2f} % of a processor, {memory:.0f} MiB, at most {most:.0f}")
    writes = [line for line in audited()[lines:] if is_of_operator(line) and line["objectRef"]["resource"] != "leases"]
    return costs, writes


def audited():
    """Every write that the API server has answered."""
    return [json.loads(line) for line in pathlib.Path(control_plane.AUDIT_LOG).read_text().splitlines()]


def is_of_operator(line):
    """Whether an operator asked for it."""
    return "raftmq-operator" in line["user"]["username"]


def processor_ticks(process):
    """Processor time of a process."""
    fields = pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def judge_deletion(checks, cluster):
    """All it made is gone, but for the claims."""
    claims = names(cluster, "persistentvolumeclaims")
    cluster.delete()

    def left():
        kept = {"serviceaccounts": ["default"], "configmaps": ["kube-root-ca.crt"]}
        return [(kind, name) for kind in KINDS for name in names(cluster, kind) if name not in kept.get(kind, [])]

    try:
        e2e.await_that("what it made to be gone", mq.GONE_TIMEOUT, lambda: not left())
    except e2e.Broken:
        pass
    checks.check(not left(), "deleting the resource removes what it made", left())
    kept = names(cluster, "persistentvolumeclaims")
    checks.check(kept == claims and len(claims) == 3, f"the claims are kept: {', '.join(claims)}", kept)


def names(cluster, kind):
    """The names of what is in the namespace."""
    listed = mq.kubectl("get", kind, "--namespace", cluster.namespace, "--output", "name")
    return sorted(line.split("/")[-1] for line in listed.splitlines())


if __name__ == "__main__":
    e2e.main(run)
