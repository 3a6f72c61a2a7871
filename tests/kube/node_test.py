#!/usr/bin/env python3
"""node_test.py [--bed]: the node (or the bed) itself: comes up, runs a pod, and leaves nothing on
this machine, also when it was killed, failed to start, or was started twice."""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import capsule
from mq import e2e

NODE = pathlib.Path(__file__).with_name("node.py")

POD = """
apiVersion: v1
kind: Pod
metadata: {name: pause}
spec:
  terminationGracePeriodSeconds: 1
  automountServiceAccountToken: false
  containers:
  - {name: pause, image: localhost/pause:1, imagePullPolicy: Never%s}
"""


def run(checks):
    is_bed = "--bed" in sys.argv
    options = ["--bed"] if is_bed else []
    folder = pathlib.Path(tempfile.mkdtemp(prefix="raftmq-node-test.")) / "node"
    node = Node(folder, options)
    node.call("down")
    before = machine()
    try:
        node.call("up")
        has_pod(checks, node, is_bed)
        first = node.capsule.first()
        node.call("up")
        checks.check(node.capsule.first() == first, "a second up changes nothing")
        node.call("down")
        judge(checks, "down", node, before)

        node.call("up")
        os.kill(node.capsule.first(), signal.SIGKILL)
        e2e.await_that("it to end", 30, lambda: not node.capsule.is_up())
        node.call("up")
        has_pod(checks, node, is_bed)
        node.call("down")
        judge(checks, "up after a run that was killed, and down", node, before)

        failed = node.call("up", check=False, PATH_FIRST=str(broken_programs()))
        checks.check(failed != 0, "an API server that does not work makes up fail")
        judge(checks, "up that failed", node, before)

        runner = subprocess.Popen([sys.executable, NODE, *options, f"--folder={folder}", "run", "--", "sleep", "600"])
        e2e.await_that("run to be up", capsule.START_TIMEOUT, node.capsule.is_up)
        runner.kill()
        runner.wait()
        e2e.await_that("the capsule of a killed run to end", 30, lambda: not capsule.processes(folder))
        node.call("down")
        judge(checks, "run that was killed", node, before)
    finally:
        node.call("down", check=False)


class Node:
    """The command line of the node."""

    def __init__(self, folder, options):
        self.folder = folder
        self.options = options
        self.capsule = capsule.Capsule(folder)

    def call(self, *arguments, check=True, **environment):
        """Runs node.py; its exit code."""
        done = subprocess.run(
            [sys.executable, NODE, *self.options, f"--folder={self.folder}", *arguments],
            env={**os.environ, **environment},
            check=False,
        )
        if check and done.returncode != 0:
            raise e2e.Broken(f"node.py {arguments[0]} exited with {done.returncode}")
        return done.returncode

    def kubectl(self, *arguments, text=None):
        """kubectl inside."""
        command = self.capsule.command(["kubectl", *arguments])
        done = subprocess.run(
            command, env=self.capsule.environment(), input=text, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise e2e.Broken(f"kubectl {arguments}: {done.stderr}")
        return done.stdout


def has_pod(checks, node, is_bed):
    """A pod runs and ends."""
    command = ", command: [sleep, infinity]" if is_bed else ""
    begin = time.monotonic()
    node.kubectl("apply", "--filename=-", text=POD % command)
    node.kubectl("wait", "--for=condition=Ready", "pod/pause", "--timeout=60s")
    checks.check(True, f"a pod is ready after {time.monotonic() - begin:.1f} s")
    node.kubectl("delete", "pod", "pause", "--timeout=60s")


def broken_programs():
    """A folder with an API server that does not work."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="raftmq-broken."))
    program = folder / "kube-apiserver"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    return folder


def machine():
    """What a node could leave behind on this machine."""

    def lines(*command):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return sorted(done.stdout.splitlines())

    return {
        "mounts": sorted(line.split(" ", 3)[3] for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines()),
        "interfaces": [line.split(":")[1] for line in lines("ip", "-oneline", "link")],
        "addresses": [" ".join(line.split()[1:4]) for line in lines("ip", "-oneline", "address")],
        "nft tables": lines("nft", "list", "tables"),
        "namespaces": lines("ip", "netns", "list"),
        "kernel": [pathlib.Path(f"/proc/sys/{name}").read_text() for name in ("kernel/panic", "vm/overcommit_memory", "net/ipv4/ip_forward")],
        "run": sorted(os.listdir("/run")),
    }


def judge(checks, name, node, before):
    """The machine is as it was."""
    traces = node.capsule.traces()
    checks.check(not traces, f"{name}: no process, mount, cgroup or file of it", traces)
    after = machine()
    changed = {what: [before[what], after[what]] for what in before if before[what] != after[what]}
    checks.check(not changed, f"{name}: the machine is as before", changed)


if __name__ == "__main__":
    e2e.main(run)
