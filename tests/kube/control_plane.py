"""etcd, the API server, the controller-manager and DNS inside a capsule; node and bed share them."""

import os
import pathlib
import shutil
import subprocess
import urllib.error
import urllib.request

import api
import capsule
from component import Component

# The address of the one node. It is on the loopback interface of the capsule, but pods can be
# told it, which they cannot of 127.0.0.1.
NODE_IP = "172.30.0.1"
NODE_NAME = "node"
POD_NETWORK = "10.244.0.0/16"
SERVICE_NETWORK = "10.96.0.0/16"
DNS_DOMAIN = "cluster.local"

# Users by their tokens. All may do everything; the operators of the bed have a name of their own, so
# that their writes can be told from those of the tests.
USERS = {"admin": "token-of-the-admin", "raftmq-operator": "token-of-the-operators"}
KUBECONFIG = capsule.INSIDE / "kubeconfig"
OPERATOR_KUBECONFIG = capsule.INSIDE / "kubeconfig.operator"
CERTIFICATES = capsule.INSIDE / "certificates"
SERVICE_ACCOUNT_KEY = capsule.INSIDE / "service-account.key"

COREFILE = f"""
. {{
  bind {NODE_IP}
  errors
  kubernetes {DNS_DOMAIN} {{
    kubeconfig {KUBECONFIG}
    pods insecure
    ttl 1
  }}
}}
"""

# Every write, and by whom. Tests count them.
AUDIT_LOG = capsule.INSIDE / "audit.log"
AUDIT_POLICY = """
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: None, verbs: [get, list, watch]}
- {level: Metadata}
"""

# Settings of a client that trusts the certificate the API server made for itself.
KUBECONFIG_TEXT = """
apiVersion: v1
kind: Config
clusters:
- name: test
  cluster: {server: "https://%s:6443", certificate-authority: "%s/apiserver.crt"}
users:
- name: user
  user: {token: "%s"}
contexts:
- name: test
  context: {cluster: test, user: user}
current-context: test
"""


def network():
    """Loopback, the address of the node, and names."""
    run("ip", "link", "set", "lo", "up")
    run("ip", "addr", "add", f"{NODE_IP}/32", "dev", "lo")
    # Somewhere to go for what kube-proxy sends elsewhere on the way.
    run("ip", "route", "add", SERVICE_NETWORK, "dev", "lo", "src", NODE_IP)
    resolver = pathlib.Path("/etc/resolv.conf")
    # It may be a link into a folder that is not there inside.
    resolver.unlink(missing_ok=True)
    resolver.write_text(f"nameserver {NODE_IP}\nsearch svc.{DNS_DOMAIN} {DNS_DOMAIN}\noptions ndots:5\n")


def run(*arguments):
    """Runs a program to its end; its output goes to the log of the capsule."""
    subprocess.run([str(argument) for argument in arguments], check=True)


def start(controllers):
    """Starts all of them and waits until the API answers."""
    tokens = [f"{token},{name},{name},system:masters\n" for name, token in USERS.items()]
    (capsule.INSIDE / "tokens.csv").write_text("".join(tokens))
    (capsule.INSIDE / "audit.yaml").write_text(AUDIT_POLICY)
    for name, path in (("admin", KUBECONFIG), ("raftmq-operator", OPERATOR_KUBECONFIG)):
        path.write_text(KUBECONFIG_TEXT % (NODE_IP, CERTIFICATES, USERS[name]))
    os.environ["KUBECONFIG"] = str(KUBECONFIG)
    run("openssl", "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", SERVICE_ACCOUNT_KEY)
    etcd = Component("etcd", etcd_arguments())
    etcd.start()
    etcd.await_that(lambda: answers("http://127.0.0.1:2379/health"))
    server = Component("kube-apiserver", apiserver_arguments())
    server.start()
    server.await_that(api_is_ready)
    manager = Component("kube-controller-manager", controller_manager_arguments(controllers))
    manager.start()
    corefile = capsule.INSIDE / "Corefile"
    corefile.write_text(COREFILE)
    Component("coredns", ["coredns", "-conf", corefile]).start()
    client = api.Api()
    manager.await_that(lambda: accounts_exist(client))


def etcd_arguments():
    """Data that nobody keeps need not be synced."""
    client = "http://127.0.0.1:2379"
    arguments = ["etcd", "--data-dir", capsule.INSIDE / "etcd", "--unsafe-no-fsync", "--logger=zap"]
    return arguments + [f"--listen-client-urls={client}", f"--advertise-client-urls={client}", "--log-level=warn"]


def apiserver_arguments():
    """Service accounts may what their roles say."""
    return [
        "kube-apiserver",
        "--etcd-servers=http://127.0.0.1:2379",
        f"--cert-dir={CERTIFICATES}",
        f"--advertise-address={NODE_IP}",
        f"--service-cluster-ip-range={SERVICE_NETWORK}",
        f"--service-account-issuer=https://kubernetes.default.svc.{DNS_DOMAIN}",
        f"--service-account-signing-key-file={SERVICE_ACCOUNT_KEY}",
        f"--service-account-key-file={SERVICE_ACCOUNT_KEY}",
        f"--token-auth-file={capsule.INSIDE}/tokens.csv",
        "--authorization-mode=Node,RBAC",
        "--allow-privileged=true",
        # The name of the node is no name that anybody resolves.
        "--kubelet-preferred-address-types=InternalIP",
        f"--audit-policy-file={capsule.INSIDE}/audit.yaml",
        f"--audit-log-path={AUDIT_LOG}",
    ]


def controller_manager_arguments(controllers):
    """`controllers` is a list of names, or `*` for all."""
    return [
        "kube-controller-manager",
        f"--kubeconfig={KUBECONFIG}",
        f"--controllers={controllers}",
        "--allocate-node-cidrs",
        f"--cluster-cidr={POD_NETWORK}",
        f"--service-account-private-key-file={SERVICE_ACCOUNT_KEY}",
        "--use-service-account-credentials",
        f"--root-ca-file={CERTIFICATES}/apiserver.crt",
        "--leader-elect=false",
    ]


def proxy():
    """kube-proxy, so that Services have addresses. What it wants of the kernel's connection tables
    beyond its own rules belongs to the machine."""
    arguments = ["kube-proxy", f"--kubeconfig={KUBECONFIG}", f"--hostname-override={NODE_NAME}"]
    arguments += ["--proxy-mode=nftables", f"--cluster-cidr={POD_NETWORK}", "--oom-score-adj=0"]
    arguments += ["--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0"]
    arguments += ["--conntrack-tcp-timeout-close-wait=0"]
    return Component("kube-proxy", arguments)


def accounts_exist(client):
    """Whether pods can be made: each runs under an account, and a controller makes the first."""
    return client.get("/api/v1/namespaces/default/serviceaccounts/default") is not None


def answers(url):
    """Whether a GET is answered with success."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status == 200
    except (OSError, urllib.error.URLError):
        return False


def api_is_ready():
    """Whether the API server has finished starting: its own certificate comes late."""
    if not (CERTIFICATES / "apiserver.crt").exists():
        return False
    try:
        client = api.Api(KUBECONFIG)
        return client.call("GET", "/readyz") == "ok" and client.get("/api/v1/namespaces/default") is not None
    except (OSError, api.ApiError, api.http.client.HTTPException):
        return False


def environment():
    """What commands in the capsule need."""
    return {"KUBECONFIG": str(KUBECONFIG), "PATH": os.environ["PATH"], "RAFTMQ_NODE_IP": NODE_IP}


def tools_are_here(*programs):
    """Fails early and clearly."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise capsule.Broken(f"not found: {', '.join(missing)}")
