#!/usr/bin/env python3
"""install.py: the four steps of a user, with the real helm, and the way back.

Lint, install, apply the example, wait for Ready; upgrade; with --remove: delete and uninstall. The
definition of RaftCluster and so every RaftCluster outlives the chart.
"""

import json
import os
import pathlib
import subprocess
import sys
import time

import mq
import operators
from mq import e2e

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
CHART = REPOSITORY / "charts/raftmq-operator"
EXAMPLE = REPOSITORY / "crds/examples/raftcluster.yaml"
RELEASE = "raftmq-operator"

# Meant for the time from apply to Ready with images on the node. Unit: seconds.
READY_MEANT = 15


def run(checks):
    if "--remove" in sys.argv:
        remove(checks)
        return
    lint = helm("lint", "--strict", CHART)
    checks.check("0 chart(s) failed" in lint, "helm lint --strict", lint)
    print(helm("upgrade", "--install", RELEASE, CHART, *options()))
    operators.Installed().await_working()
    checks.check(True, "helm install: both operators are ready")
    name, namespace, seconds = apply_example()
    print(f"ready {seconds:.1f} s after it was applied (meant: under {READY_MEANT} s)")
    checks.check(seconds < READY_MEANT, f"the example is ready within {READY_MEANT} s", f"{seconds:.1f} s")
    print(mq.kubectl("get", "raft", "--namespace", namespace))
    print(mq.kubectl("describe", "raft", name, "--namespace", namespace))
    upgrade(checks, namespace)


def options():
    """Where the chart goes, and images when others than the chart's are tested."""
    found = ["--namespace", operators.NAMESPACE, "--create-namespace", "--wait", "--timeout", "3m"]
    for setting in filter(None, os.environ.get("RAFTMQ_HELM_SET", "").split(",")):
        found += ["--set", setting]
    return found


def helm(*arguments):
    """Runs helm; its output. What it says on an error ends the case."""
    done = subprocess.run(["helm", *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise e2e.Broken(f"helm {arguments[0]}: {done.stdout}{done.stderr}")
    return done.stdout


def apply_example():
    """Applies the example as it is and waits for it; (name, namespace, seconds)."""
    begin = time.monotonic()
    mq.kubectl("apply", f"--filename={EXAMPLE}")
    made = json.loads(mq.kubectl("get", f"--filename={EXAMPLE}", "--output=json"))
    name, namespace = made["metadata"]["name"], made["metadata"]["namespace"]
    wait = ["wait", "--for=condition=Ready", f"raftcluster/{name}", "--namespace", namespace]
    try:
        mq.kubectl(*wait, f"--timeout={mq.READY_TIMEOUT}s")
    except e2e.Broken as error:
        shown = mq.kubectl("describe", "raft", name, "--namespace", namespace)
        pods = mq.kubectl("describe", "pods", "--namespace", namespace)
        raise e2e.Broken(f"{error}\n{shown}\n{pods[-6000:]}") from error
    return name, namespace, time.monotonic() - begin


def upgrade(checks, namespace):
    """Another release of the chart restarts no broker."""
    before = pods(namespace)
    helm("upgrade", RELEASE, CHART, *options(), "--set", "podAnnotations.test=upgrade")
    operators.Installed().await_working()
    checks.check(pods(namespace) == before, "helm upgrade leaves the brokers alone", pods(namespace))


def pods(namespace):
    """Name, uid and restarts of the pods in a namespace."""
    found = json.loads(mq.kubectl("get", "pods", "--namespace", namespace, "--output=json"))["items"]
    return sorted(
        (pod["metadata"]["name"], pod["metadata"]["uid"], pod["status"]["containerStatuses"][0]["restartCount"])
        for pod in found
    )


def remove(checks):
    """Uninstall, with the example still there; then the example by hand."""
    made = json.loads(mq.kubectl("get", f"--filename={EXAMPLE}", "--output=json"))
    namespace = made["metadata"]["namespace"]
    before = pods(namespace)
    helm("uninstall", RELEASE, "--namespace", operators.NAMESPACE, "--wait")
    e2e.await_that("the operators to be gone", mq.GONE_TIMEOUT, lambda: not operators.Installed().pods())
    kept = mq.kubectl("get", "crd", "raftclusters.raftmq.io", "--output=name").strip()
    checks.check(kept != "", "helm uninstall keeps the definition of RaftCluster")
    checks.check(pods(namespace) == before, "helm uninstall leaves the brokers alone", pods(namespace))
    mq.kubectl("delete", f"--filename={EXAMPLE}", "--timeout=60s")

    def is_gone():
        return not json.loads(mq.kubectl("get", "pods", "--namespace", namespace, "--output=json"))["items"]

    e2e.await_that("the brokers to be gone", mq.GONE_TIMEOUT, is_gone)
    checks.check(True, "without an operator the example can still be deleted, and its pods go")


if __name__ == "__main__":
    e2e.main(run)
