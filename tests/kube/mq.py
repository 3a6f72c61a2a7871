"""A RaftCluster and its groups, for the cases: on the node, in the bed, or on a cluster elsewhere."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import api
import capsule

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
import cluster as e2e  # noqa: E402  pylint: disable=wrong-import-position

# Longest waits. Unit: seconds.
READY_TIMEOUT = 120
GONE_TIMEOUT = 90

PORT_REMOTING = 10911
PORT_HTTP = 5557
PORT_NAMESRV = 9876

RESOURCES = "/apis/raftmq.io/v1alpha1/namespaces"

IS_BED = "RAFTMQ_BED" in os.environ
# On our own node and in the bed every process can be seen; elsewhere not.
IS_OURS = capsule.MARK in os.environ


def kubectl(*arguments, text=None):
    """Runs kubectl; its output. What it says on an error ends the case."""
    done = subprocess.run(["kubectl", *arguments], input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise e2e.Broken(f"kubectl {' '.join(arguments)}: {done.stdout}{done.stderr}")
    return done.stdout


class RaftCluster:
    """One RaftCluster by namespace and name."""

    def __init__(self, namespace, name):
        self.client = api.Api()
        self.namespace = namespace
        self.name = name
        self.path = f"{RESOURCES}/{namespace}/raftclusters/{name}"

    def make(self, groups=("broker-a",), replicas=3, spec=None):
        """Makes the namespace, restricted as far as Kubernetes can, and the resource."""
        make_namespace(self.client, self.namespace)
        body = {
            "apiVersion": "raftmq.io/v1alpha1",
            "kind": "RaftCluster",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": {
                "replicas": replicas,
                "groups": [{"name": group} for group in groups],
                "storage": {"size": "1Gi"},
                **(spec or {}),
            },
        }
        self.client.apply(self.path, body)
        return self

    def resource(self):
        """The resource as it is, None when there is none."""
        return self.client.get(self.path)

    def status(self):
        """Its status; empty while there is none."""
        return (self.resource() or {}).get("status", {})

    def condition(self, kind):
        """One condition; empty while there is none."""
        found = (condition for condition in self.status().get("conditions", []) if condition["type"] == kind)
        return next(found, {})

    def await_ready(self, seconds=READY_TIMEOUT):
        """Waits for condition Ready of the newest generation."""

        def ready():
            resource = self.resource()
            condition = self.condition("Ready")
            fresh = condition.get("observedGeneration") == resource["metadata"]["generation"]
            return condition.get("status") == "True" and fresh

        try:
            e2e.await_that(f"{self.namespace}/{self.name} to be ready", seconds, ready)
        except e2e.Broken as error:
            raise e2e.Broken(f"{error}; {json.dumps(self.status().get('conditions'))}") from error
        return self

    def groups(self):
        """Its groups by name."""
        return {entry["name"]: Group(self, entry["name"]) for entry in self.resource()["spec"]["groups"]}

    def group(self):
        """Its first group."""
        return next(iter(self.groups().values()))

    def name_server(self):
        """What clients set as namesrvAddr, with the address instead of the name of the Service."""
        service = self.client.get(f"/api/v1/namespaces/{self.namespace}/services/{self.name}-namesrv")
        return f"{service['spec']['clusterIP']}:{PORT_NAMESRV}"

    def delete(self):
        """Deletes the resource and waits until it is gone."""
        self.client.call("DELETE", self.path)
        e2e.await_that(f"{self.name} to be gone", GONE_TIMEOUT, lambda: self.resource() is None)


class Group:
    """One group of a cluster."""

    def __init__(self, cluster, name):
        self.cluster = cluster
        self.client = cluster.client
        self.namespace = cluster.namespace
        self.name = name
        self.base = f"{cluster.name}-{name}"
        self.leader_service = f"{self.base}-leader"
        self.selector = f"raftmq.io/cluster%3D{cluster.name},raftmq.io/group%3D{name}"

    def core(self, kind, name=""):
        """Path of something of the core API in this namespace."""
        return f"/api/v1/namespaces/{self.namespace}/{kind}" + (f"/{name}" if name else "")

    def pods(self):
        """Its pods by name."""
        found = self.client.get(f"{self.core('pods')}?labelSelector={self.selector}")
        return {pod["metadata"]["name"]: pod for pod in found["items"]}

    def pod_at(self, address):
        """The name of the pod with an address."""
        found = (name for name, pod in self.pods().items() if pod["status"].get("podIP") == address)
        return next(found, None)

    def addresses(self):
        """Where clients reach the pods themselves."""
        return [f"{pod['status']['podIP']}:{PORT_REMOTING}" for pod in self.pods().values() if pod["status"].get("podIP")]

    def service_address(self):
        """The cluster IP of the leader's Service."""
        return self.client.get(self.core("services", self.leader_service))["spec"]["clusterIP"]

    def broker_status(self, pod):
        """The answer of /status of a pod by name; None when it does not answer."""
        address = self.pods()[pod]["status"].get("podIP")
        return e2e.http_status(f"{address}:{PORT_HTTP}") if address else None

    def leader(self):
        """The name of the pod that leads, None when there is none."""
        leaders = []
        for name, pod in self.pods().items():
            status = e2e.http_status(f"{pod['status']['podIP']}:{PORT_HTTP}") if pod["status"].get("podIP") else None
            if status and status["role"] == "LEADER":
                leaders.append((status["term"], name))
        return max(leaders)[1] if leaders else None

    def await_leader(self):
        """Waits for a leader and returns its name."""
        return e2e.await_that(f"a leader of {self.base}", e2e.LEADER_TIMEOUT, self.leader)

    def await_caught_up(self, seconds=READY_TIMEOUT):
        """Waits until every pod follows or leads in one term with everything applied."""
        replicas = self.cluster.resource()["spec"]["replicas"]

        def caught_up():
            statuses = [self.broker_status(pod) for pod in self.pods()]
            if len(statuses) != replicas or not all(status and status["ready"] for status in statuses):
                return False
            leader = next((status for status in statuses if status["role"] == "LEADER"), None)
            if leader is None or len({status["term"] for status in statuses}) > 1:
                return False
            return all((status["appliedIndex"] or 0) >= (leader["committedIndex"] or 0) for status in statuses)

        e2e.await_that(f"all of {self.base} to catch up", seconds, caught_up)

    def signal(self, pod, number=signal.SIGKILL):
        """Sends a signal to the broker process of a pod; when it was sent."""
        pid = process_of(self.namespace, pod)
        at = time.time()
        os.kill(pid, number)
        return at

    def delete_pod(self, pod):
        """Deletes a pod as `kubectl delete pod` does; when that was asked."""
        at = time.time()
        self.client.call("DELETE", self.core("pods", pod))
        return at

    def evict(self, pod):
        """Evicts a pod as `kubectl drain` does, without its patience."""
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": self.namespace}}
        self.client.call("POST", f"{self.core('pods', pod)}/eviction", body)

    def await_evictable(self):
        """Waits until a pod may be evicted: the budget is counted a moment after a pod is ready."""
        path = f"/apis/policy/v1/namespaces/{self.namespace}/poddisruptionbudgets/{self.base}"

        def is_allowed():
            status = self.client.get(path)["status"]
            return status.get("disruptionsAllowed", 0) > 0

        e2e.await_that("the budget to allow an eviction", READY_TIMEOUT, is_allowed)

    def await_replaced(self, pod, uid, seconds=READY_TIMEOUT):
        """Waits until another pod of that name is ready."""

        def replaced():
            found = self.pods().get(pod)
            return found and found["metadata"]["uid"] != uid and is_ready(found)

        e2e.await_that(f"{pod} to be back", seconds, replaced)


def is_ready(pod):
    """Whether a pod has condition Ready."""
    conditions = pod["status"].get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def process_of(namespace, pod):
    """The process id of the broker of a pod."""
    if IS_BED:
        return int((capsule.INSIDE / "pids" / f"pod.{namespace}.{pod}").read_text())
    if not IS_OURS:
        raise e2e.Broken("the processes of this cluster are out of reach")
    found = api.Api().get(f"/api/v1/namespaces/{namespace}/pods/{pod}")
    container = found["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
    listed = subprocess.run(["ctr", "--namespace=k8s.io", "tasks", "list"], capture_output=True, text=True, check=True)
    for line in listed.stdout.splitlines():
        fields = line.split()
        if fields[0] == container:
            return int(fields[1])
    raise e2e.Broken(f"containerd has no process of {pod}")


def make_namespace(client, name):
    """A namespace in which only restricted pods may run."""
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    client.apply(f"/api/v1/namespaces/{name}", body)


def delete_namespace(client, name):
    """Deletes a namespace with all in it, if there is one, and waits."""
    path = f"/api/v1/namespaces/{name}"
    if client.get(path) is not None:
        client.call("DELETE", path)
        e2e.await_that(f"namespace {name} to be gone", GONE_TIMEOUT, lambda: client.get(path) is None)
