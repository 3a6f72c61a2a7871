"""The root folder of a process pod: the programs of this machine, mounts of the pod, nothing else."""

import os
import pathlib
import shlex
import shutil
import subprocess

import capsule

# Of this machine, read-only: programs and libraries.
SHARED = ["usr", "bin", "sbin", "lib", "lib64"]

# Where programs under test appear, as in an image.
PROGRAMS = "/usr/local/bin"

USER = 65532


def start(pod, container, environment, mounts, network, log):
    """Starts `container` of `pod` in a root of its own; the process.

    `network` is the file of its network namespace; `mounts` is a list of (source, path inside, whether it is writable).
    """
    arguments = container["command"] + container.get("args", [])
    arguments = [expand(argument, environment) for argument in arguments]
    user = security(pod, container).get("runAsUser", USER)
    root = capsule.INSIDE / "roots" / pod["metadata"]["uid"] / container["name"]
    root.mkdir(parents=True, exist_ok=True)
    script = "\n".join(["set -e", *root_lines(root, mounts, pod, container)])
    script += f"\nexec {shutil.which('chroot')} --userspec={user}:{user} --groups='' {root} {shlex.join(arguments)}"
    return subprocess.Popen(
        ["nsenter", f"--net={network}", "unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )


def root_lines(root, mounts, pod, container):
    """Shell lines that make the root."""
    lines = [f"mount -t tmpfs -o mode=755 tmpfs {root}", f"mkdir -p {root}/etc {root}/proc {root}/dev"]
    for name in SHARED:
        if pathlib.Path(f"/{name}").is_symlink():
            lines.append(f"ln -s {os.readlink(f'/{name}')} {root}/{name}")
        elif pathlib.Path(f"/{name}").is_dir():
            lines.append(f"mkdir {root}/{name}; mount --bind -o ro /{name} {root}/{name}")
    programs = capsule.INSIDE / "programs"
    if programs.is_dir():
        lines.append(f"mount --bind -o ro {programs} {root}{PROGRAMS}")
    lines += [f"mount --rbind /{name} {root}/{name}" for name in ("proc", "dev")]
    namespace = pod["metadata"]["namespace"]
    search = f"{namespace}.svc.cluster.local svc.cluster.local cluster.local"
    lines.append(f"sed 's/^search .*/search {search}/' /etc/resolv.conf >{root}/etc/resolv.conf")
    lines.append(f"cp /etc/hosts /etc/passwd /etc/group /etc/nsswitch.conf {root}/etc/")
    for source, path, writable in mounts:
        inside = shlex.quote(f"{root}{path}")
        make = "mkdir -p" if os.path.isdir(source) else "install -D /dev/null"
        option = "" if writable else "-o ro"
        lines.append(f"{make} {inside}; mount --bind {option} {shlex.quote(str(source))} {inside}")
    if security(pod, container).get("readOnlyRootFilesystem"):
        lines.append(f"mount -o remount,bind,ro {root}")
    return lines


def security(pod, container):
    """What holds for a container: its own settings before those of the pod."""
    return {**pod["spec"].get("securityContext", {}), **container.get("securityContext", {})}


def expand(text, environment):
    """$(NAME) is replaced as Kubernetes does it in commands; unknown names stay."""
    for name, value in environment.items():
        text = text.replace(f"$({name})", value)
    return text
