"""The network of a process pod: a namespace with one link to the node, as the node's CNI makes it."""

import pathlib
import subprocess

GATEWAY = "10.244.0.1"


def make(name, number, address):
    """A namespace called `name` with this address; `number` is of no other pod."""
    link = f"pod{number}"
    outside = [
        f"netns add {name}",
        f"link add {link} type veth peer name eth0 netns {name}",
        f"addr add {GATEWAY}/32 dev {link}",
        f"link set {link} up",
        f"route add {address}/32 dev {link}",
    ]
    inside = [
        "link set lo up",
        f"addr add {address}/32 dev eth0",
        "link set eth0 up",
        f"route add {GATEWAY} dev eth0 scope link",
        f"route add default via {GATEWAY} dev eth0",
    ]
    batch(["ip"], outside)
    batch(["ip", "-netns", name], inside)


def remove(name):
    """Removes a namespace, if there is one, and its link with it."""
    if path(name).exists():
        batch(["ip"], [f"netns del {name}"])


def path(name):
    """The file that stands for a namespace."""
    return pathlib.Path("/run/netns") / name


def batch(program, lines):
    """Several commands of ip in one process."""
    subprocess.run([*program, "-batch", "-"], input="\n".join(lines) + "\n", text=True, check=True)
