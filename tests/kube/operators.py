"""The operators: pods that Helm installed, or two processes in the bed."""

import contextlib
import os
import pathlib
import shutil
import signal
import time

import api
import capsule
import control_plane
import mq
from component import Component, pid
from mq import e2e

NAMESPACE = "raftmq-system"
REPLICAS = 2

# HTTP port of the first one in the bed; the others follow.
PORT = 18080

CRDS = pathlib.Path(__file__).resolve().parents[2] / "crds"


@contextlib.contextmanager
def running():
    """Operators that work. In the bed they end with the `with`."""
    found = InBed() if mq.IS_BED else Installed()
    try:
        found.await_working()
        yield found
    finally:
        found.stop()


class Installed:
    """The pods of the Deployment."""

    def __init__(self):
        self.client = api.Api()

    def pods(self):
        """Its pods by name."""
        path = f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app.kubernetes.io/name=raftmq-operator"
        return {pod["metadata"]["name"]: pod for pod in self.client.get(path)["items"]}

    def await_working(self, seconds=mq.READY_TIMEOUT):
        """Waits until all are ready."""

        def ready():
            pods = self.pods().values()
            return len(pods) == REPLICAS and all(mq.is_ready(pod) for pod in pods)

        e2e.await_that("both operators to be ready", seconds, ready)

    def processes(self):
        """Process ids by name."""
        return {name: mq.process_of(NAMESPACE, name) for name in self.pods()}

    def kill(self, *names):
        """SIGKILL; Kubernetes starts them again."""
        processes = self.processes()
        at = time.time()
        for name in names or processes:
            os.kill(processes[name], signal.SIGKILL)
        return at

    def lease_holder(self):
        """The name of the one that reconciles."""
        return lease_holder(self.client, self.processes())

    def stop(self):
        """They stay."""


class InBed:
    """Two processes of this script, started again when they end, as Kubernetes does."""

    def __init__(self):
        self.client = api.Api()
        install_broker()
        define()
        mq.make_namespace(self.client, NAMESPACE)
        self.ports = {}
        self.components = []
        for number in range(REPLICAS):
            name = f"operator-{number}"
            self.ports[name] = PORT + number
            environment = {
                **os.environ,
                "KUBECONFIG": str(control_plane.OPERATOR_KUBECONFIG),
                "POD_NAME": name,
                "RAFTMQ_LEASE_NAMESPACE": NAMESPACE,
                "RAFTMQ_LISTEN": f"127.0.0.1:{PORT + number}",
            }
            component = Component(name, [binary("RAFTMQ_OPERATOR_BINARY"), "run"], environment)
            component.start()
            self.components.append(component)

    def await_working(self, seconds=mq.READY_TIMEOUT):
        """Waits until all are ready."""
        for name, port in self.ports.items():
            e2e.await_that(f"{name} to be ready", seconds, lambda port=port: control_plane.answers(f"http://127.0.0.1:{port}/readyz"))

    def processes(self):
        """Process ids by name."""
        return {name: pid(name) for name in self.ports}

    def kill(self, *names):
        """SIGKILL."""
        processes = self.processes()
        at = time.time()
        for name in names or processes:
            os.kill(processes[name], signal.SIGKILL)
        return at

    def lease_holder(self):
        """The name of the one that reconciles."""
        return lease_holder(self.client, self.processes())

    def stop(self):
        """Both leave, so that the next ones need not wait for the lease."""
        for component in self.components:
            component.stop()


def define():
    """Makes RaftCluster known; on a node the chart has done so."""
    if mq.IS_BED:
        mq.kubectl("apply", "--server-side", *(f"--filename={path}" for path in sorted(CRDS.glob("*.yaml"))))
        mq.kubectl("wait", "--for=condition=Established", "crd/raftclusters.raftmq.io", "--timeout=60s")


def lease_holder(client, names):
    """Which of the operators holds the Lease."""
    leases = client.get(f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases")["items"]
    holders = [lease["spec"].get("holderIdentity", "") for lease in leases]
    return next((name for name in names for holder in holders if holder.startswith(name)), None)


def binary(variable):
    """A program under test."""
    path = os.environ.get(variable)
    if not path or not os.access(path, os.X_OK):
        raise e2e.Broken(f"{variable} names no program")
    return path


def install_broker():
    """Puts the broker where pods of the bed find it; those that run keep the old file."""
    folder = capsule.INSIDE / "programs"
    folder.mkdir(exist_ok=True)
    shutil.copy(binary("RAFTMQ_BINARY"), folder / ".raftmq")
    (folder / ".raftmq").rename(folder / "raftmq")
