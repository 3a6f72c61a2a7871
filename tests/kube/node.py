#!/usr/bin/env python3
"""node.py [--bed] [--folder DIR] COMMAND: a real Kubernetes with one node, without a container host.

  up              starts it and returns; nothing happens when it is up
  down            ends it; nothing of it remains
  exec -- PROGRAM ARGUMENTS...   runs a program inside, with kubectl, helm and KUBECONFIG
  run -- PROGRAM ARGUMENTS...    up, the program inside, down; ends also when this is killed
  status          says whether it is up

RAFTMQ_IMAGES names archives of images, separated by blanks, that the node shall have.
--bed starts the quick bed instead: the same control plane, and processes instead of containers.
The first start on a machine builds Kubernetes, which takes about 20 minutes on two cores.
"""

import argparse
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import api
import bed
import capsule
import control_plane
import volumes
from component import Component

HERE = pathlib.Path(__file__).resolve().parent

CONTAINERD = capsule.INSIDE / "containerd.toml"
CONTAINERD_TEXT = f"""
version = 2
root = "{capsule.INSIDE}/containerd"
state = "/run/containerd"

[plugins."io.containerd.internal.v1.opt"]
  path = "{capsule.INSIDE}/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  # A machine without CAP_SYS_RESOURCE refuses to make a process less likely to be killed.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{capsule.INSIDE}/cni"
"""

# Every pod has a link of its own to the node, so that all traffic passes kube-proxy's rules.
CNI_TEXT = """
{"cniVersion": "0.4.0", "name": "pods", "plugins": [{
  "type": "ptp",
  "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}
}]}
"""

KUBELET = capsule.INSIDE / "kubelet.yaml"
KUBELET_TEXT = f"""
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
cgroupRoot: /CGROUP
# Version 1 of cgroups is what the machine may have.
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
authentication: {{anonymous: {{enabled: true}}, webhook: {{enabled: false}}}}
authorization: {{mode: AlwaysAllow}}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
podLogsDir: {capsule.INSIDE}/pods
volumePluginDir: {capsule.INSIDE}/plugins
# Tests kill the same container many times; the usual pause grows to five minutes.
featureGates:
  KubeletCrashLoopBackOffMax: true
crashLoopBackOff:
  maxContainerRestartPeriod: 1s
clusterDNS: [{control_plane.NODE_IP}]
clusterDomain: {control_plane.DNS_DOMAIN}
resolvConf: ""
# The disk is shared with others; how full it is says nothing about this node.
evictionHard: {{nodefs.available: "1%", imagefs.available: "1%", memory.available: "100Mi"}}
imageGCHighThresholdPercent: 100
# Events and status come at once: tests wait for them.
syncFrequency: 10s
registryPullQPS: 0
"""


def serve(cgroup):
    """The program of the capsule: starts everything, then waits until it is ended."""
    control_plane.tools_are_here("containerd", "runc", "nft", "conntrack", "etcd", "kubelet")
    control_plane.network()
    pathlib.Path("/proc/sys/net/ipv4/ip_forward").write_text("1\n")
    write(CONTAINERD, CONTAINERD_TEXT)
    write(capsule.INSIDE / "cni/pods.conflist", CNI_TEXT)
    write(KUBELET, KUBELET_TEXT.replace("CGROUP", cgroup))
    containerd = Component("containerd", ["containerd", "--config", CONTAINERD, "--log-level=warn"])
    containerd.start()
    control_plane.start("*")
    kubeconfig = f"--kubeconfig={control_plane.KUBECONFIG}"
    Component("kube-scheduler", ["kube-scheduler", kubeconfig, "--leader-elect=false"]).start()
    containerd.await_that(lambda: pathlib.Path("/run/containerd/containerd.sock").exists())
    for image in images():
        control_plane.run("ctr", "--namespace=k8s.io", "images", "import", image)
    kubelet = Component("kubelet", kubelet_arguments(kubeconfig))
    kubelet.start()
    control_plane.proxy().start()
    volumes.start()
    client = api.Api()
    kubelet.await_that(lambda: node_is_ready(client))
    capsule.say_ready(control_plane.environment())
    signal.pause()


def images():
    """Archives of the images that are on the node from the start; there is no registry."""
    pause = pathlib.Path(os.environ["RAFTMQ_KUBE_TOOLS"]) / "pause.tar"
    return [pause, *os.environ.get("RAFTMQ_IMAGES", "").split()]


def kubelet_arguments(kubeconfig):
    """What is not in its file."""
    arguments = ["kubelet", f"--config={KUBELET}", kubeconfig, f"--root-dir={capsule.INSIDE}/kubelet"]
    return arguments + [f"--node-ip={control_plane.NODE_IP}", f"--hostname-override={control_plane.NODE_NAME}"]


def node_is_ready(client):
    """Whether pods can run on it."""
    node = client.get(f"/api/v1/nodes/{control_plane.NODE_NAME}")
    if node is None or node["spec"].get("taints"):
        return False
    conditions = node["status"].get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def write(path, text):
    """A small file in a folder that need not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def programs(is_bed):
    """Builds and installs what is missing; the folders with the programs."""
    of_kubernetes = ["kube-apiserver", "kube-controller-manager", "kube-proxy", "kubectl"] if is_bed else []
    calls = [["kubernetes.sh", *of_kubernetes], ["tools.sh", "bed" if is_bed else "node"]]
    folders = []
    for name, *arguments in calls:
        done = subprocess.run([HERE / "build" / name, *arguments], stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise capsule.Broken(f"{name} exited with {done.returncode}")
        folders.append(done.stdout.strip())
    return folders


def up(node, is_bed, ends_with_me=False):
    """Starts the node unless it is up."""
    if node.is_up():
        print(f"it is up already, in {node.folder}")
        return
    begin = time.monotonic()
    bin_folder, tools = programs(is_bed)
    os.environ["RAFTMQ_KUBE_TOOLS"] = tools
    # PATH_FIRST lets a test put a program before the real ones.
    folders = [os.environ.get("PATH_FIRST"), tools, bin_folder, os.environ["PATH"], "/usr/sbin", "/sbin"]
    os.environ["PATH"] = ":".join(folder for folder in folders if folder)
    prepared = time.monotonic()
    what = ["serve-bed"] if is_bed else ["serve", node.cgroup]
    node.start([sys.executable, str(pathlib.Path(__file__).resolve()), *what], ends_with_me)
    print(f"up in {time.monotonic() - prepared:.1f} s, after {prepared - begin:.1f} s for its programs; {node.folder}")


def inside(node, command):
    """Runs a command inside; its exit code."""
    if not command:
        raise capsule.Broken("no program given: put it after --")
    process = subprocess.Popen(node.command(command), env=node.environment())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it reaches the program as well
    return process.wait()


def run(node, is_bed, command):
    """Up, the command, down."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        up(node, is_bed, ends_with_me=True)
        return inside(node, command)
    finally:
        node.remove()


def main():
    """The command line."""
    if sys.argv[1:2] == ["serve"]:
        return serve(sys.argv[2])
    if sys.argv[1:2] == ["serve-bed"]:
        return bed.serve()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bed", action="store_true")
    parser.add_argument("--folder")
    parser.add_argument("command", choices=["up", "down", "exec", "run", "status"])
    parser.add_argument("program", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    kind = "bed" if given.bed else "node"
    node = capsule.Capsule(given.folder or pathlib.Path(tempfile.gettempdir()) / f"raftmq-kube-{kind}")
    program = given.program[1:] if given.program[:1] == ["--"] else given.program
    try:
        return act(given, node, program)
    except capsule.Broken as error:
        print(f"{kind}: {error}", file=sys.stderr)
        return 1


def act(given, node, program):
    """One command of the command line; its exit code."""
    match given.command:
        case "up":
            up(node, given.bed)
        case "down":
            node.remove()
        case "exec":
            return inside(node, program)
        case "run":
            return run(node, given.bed, program)
        case "status":
            print("up" if node.is_up() else "down")
            return 0 if node.is_up() else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
