"""The quick bed: a real control plane, and a kubelet that runs processes instead of containers.

API server, controllers, DNS, Services and claims are Kubernetes' own. Each pod is a process with
its own root folder, user and network, so that killing and starting one takes milliseconds.
"""

import ipaddress
import itertools
import os
import pathlib
import signal
import threading

import api
import capsule
import control_plane
import volumes
from process_pod import ProcessPod

# What the operator's children need; nothing else takes processor time.
CONTROLLERS = ",".join(
    [
        "deployment-controller",
        "replicaset-controller",
        "statefulset-controller",
        "endpointslice-controller",
        "garbage-collector-controller",
        "disruption-controller",
        "namespace-controller",
        "serviceaccount-controller",
        "root-ca-certificate-publisher-controller",
        "persistentvolume-binder-controller",
        "persistentvolumeclaim-protection-controller",
        "persistentvolume-protection-controller",
    ]
)

PODS = "/api/v1/pods"


def serve():
    """The program of the capsule."""
    control_plane.tools_are_here("etcd", "nft", "kube-proxy", "kubectl")
    control_plane.network()
    network = ipaddress.ip_network(control_plane.POD_NETWORK)
    pathlib.Path("/proc/sys/net/ipv4/ip_forward").write_text("1\n")
    control_plane.start(CONTROLLERS)
    client = api.Api()
    register_node(client)
    control_plane.proxy().start()
    volumes.start(wait_for_pod=False)
    Kubelet(client, network).start()
    capsule.say_ready({**control_plane.environment(), "RAFTMQ_BED": "1"})
    signal.pause()


def register_node(client):
    """The node all pods are on."""
    path = f"/api/v1/nodes/{control_plane.NODE_NAME}"
    labels = {"kubernetes.io/hostname": control_plane.NODE_NAME}
    client.apply(path, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": control_plane.NODE_NAME, "labels": labels}})
    addresses = [{"type": "InternalIP", "address": control_plane.NODE_IP}]
    conditions = [{"type": "Ready", "status": "True", "reason": "ProcessKubelet", "message": ""}]
    client.patch(f"{path}/status", {"status": {"addresses": addresses, "conditions": conditions}})


class Kubelet(threading.Thread):
    """Runs every pod of the cluster, by a thread for each."""

    def __init__(self, client, network):
        super().__init__(name="kubelet", daemon=True)
        self.client = client
        # The first 256 are the node's own.
        self.numbers = itertools.count(1)
        self.addresses = (str(address) for address in network.hosts() if address.packed[2] > 0 and address.packed[3] > 0)
        self.pods = {}

    def run(self):
        for kind, pod in self.client.watch(PODS):
            if kind == "RESET":
                continue
            self.pods = {uid: runner for uid, runner in self.pods.items() if runner.is_alive()}
            uid = pod["metadata"]["uid"]
            runner = self.pods.get(uid)
            if runner is not None:
                runner.see(pod, kind == "DELETED")
            elif kind != "DELETED" and pod["status"]["phase"] in ("Pending", "Running"):
                self.pods[uid] = ProcessPod(api.Api(os.environ["KUBECONFIG"]), pod, next(self.numbers), next(self.addresses))
                self.pods[uid].start()
