"""A capsule: namespaces of processes, mounts and network that end together.

Everything the test node and the bed start lives in one. Its first process holds the namespaces;
when that ends, however it does, the kernel ends every process, mount, interface, address and
firewall table with it. What remains outside is a folder and cgroups; `remove` takes them away, also
those of a capsule that was killed.

Inside, /run is empty but for /run/raftmq, which is the capsule's folder, and what is written to
/etc and /var stays in that folder too.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

# The capsule's folder as it is seen inside: short, because the paths of sockets are limited.
INSIDE = pathlib.Path("/run/raftmq")

# Set for every process inside; says which capsule it is in.
MARK = "RAFTMQ_CAPSULE"

CGROUPS = pathlib.Path("/sys/fs/cgroup")

# Longest waits. Unit: seconds. A node starts in about 20 on two idle cores.
START_TIMEOUT = 240
STOP_TIMEOUT = 30

POLL = 0.05

NAMESPACES = ["--mount", "--net", "--pid", "--ipc"]


class Broken(Exception):
    """The capsule cannot be used."""


class Capsule:
    """A capsule in a folder; `name` also names its cgroup."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder).resolve()
        self.record = self.folder / "capsule.json"
        self.log = self.folder / "capsule.log"

    @property
    def cgroup(self):
        """The cgroup of its containers, below the top of each hierarchy."""
        return "raftmq-" + str(self.folder).strip("/").replace("/", "-")

    def start(self, program, ends_with_me):
        """Runs `program`, an argument list, as the first process of a fresh capsule."""
        if os.geteuid() != 0:
            raise Broken("namespaces need root: run this as root")
        self.remove()
        self.folder.mkdir(parents=True)
        make_cgroups(self.cgroup)
        command = ["unshare", "--fork", "--kill-child=KILL", "--mount-proc", "--propagation", "private"]
        command += NAMESPACES + [sys.executable, str(pathlib.Path(__file__).with_name("first.py")), str(self.folder)]
        with open(self.log, "ab") as log:
            process = subprocess.Popen(
                command + program,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, MARK: str(self.folder)},
                preexec_fn=end_with_parent if ends_with_me else None,
            )
        record = {"pid": process.pid, "started": start_time(process.pid)}
        self.record.write_text(json.dumps(record))
        self.await_ready(process)

    def await_ready(self, process):
        """Waits until the program inside has called `say_ready`."""
        end = time.monotonic() + START_TIMEOUT
        while not (self.folder / "ready").exists():
            if process.poll() is not None:
                tail = self.log.read_text(errors="replace")[-4000:]
                self.remove()
                raise Broken(f"it ended while it started:\n{tail}")
            if time.monotonic() > end:
                tail = self.log.read_text(errors="replace")[-4000:]
                self.remove()
                raise Broken(f"it was not ready within {START_TIMEOUT} s:\n{tail}")
            time.sleep(POLL)

    def holder(self):
        """The process outside that the capsule hangs on, None when there is none."""
        try:
            record = json.loads(self.record.read_text())
        except (OSError, ValueError):
            return None
        # The number may belong to another process by now; its start time tells.
        return record["pid"] if start_time(record["pid"]) == record["started"] else None

    def is_up(self):
        """Whether it runs and was ready once."""
        return self.holder() is not None and (self.folder / "ready").exists()

    def first(self):
        """The first process of the capsule, by its number outside."""
        holder = self.holder()
        try:
            children = pathlib.Path(f"/proc/{holder}/task/{holder}/children").read_text().split()
            return int(children[0])
        except (OSError, IndexError) as error:
            raise Broken(f"no capsule runs in {self.folder}") from error

    def command(self, arguments):
        """The arguments that run `arguments` inside."""
        # Entering leads to the top folder.
        return ["nsenter", f"--target={self.first()}", *NAMESPACES, "--", "env", f"--chdir={os.getcwd()}", *arguments]

    def environment(self):
        """The environment of a command inside."""
        return {**os.environ, MARK: str(self.folder), **json.loads((self.folder / "ready").read_text())}

    def remove(self):
        """Ends it and takes away what it left outside."""
        holder = self.holder()
        if holder is not None:
            os.kill(holder, signal.SIGKILL)
        end = time.monotonic() + STOP_TIMEOUT
        while processes(self.folder):
            if time.monotonic() > end:
                raise Broken(f"processes {processes(self.folder)} of {self.folder} do not end")
            time.sleep(POLL)
            reap(holder)
        remove_cgroups(self.cgroup)
        shutil.rmtree(self.folder, ignore_errors=True)

    def traces(self):
        """What is still there of it, seen from outside: nothing, after `remove`."""
        found = [f"process {pid}" for pid in processes(self.folder)]
        mounts = pathlib.Path("/proc/self/mountinfo").read_text().splitlines()
        found += [f"mount {line.split()[4]}" for line in mounts if str(self.folder) in line]
        found += [f"cgroup {path}" for path in hierarchies(self.cgroup) if path.exists()]
        if self.folder.exists():
            found.append(f"folder {self.folder}")
        return found


def say_ready(environment):
    """Called inside when all is there; `environment` is what commands inside shall have."""
    (INSIDE / ".ready").write_text(json.dumps(environment))
    (INSIDE / ".ready").rename(INSIDE / "ready")


def end_with_parent():
    """Run in a child: SIGKILL when the parent ends."""
    import ctypes  # pylint: disable=import-outside-toplevel

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def reap(pid):
    """Takes the exit code of a child that has ended, if it is one."""
    try:
        os.waitpid(pid or -1, os.WNOHANG)
    except ChildProcessError:
        pass


def start_time(pid):
    """When a process started, None when it has ended."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def processes(folder):
    """The processes of a capsule, by their mark; the caller is not one of them."""
    mark = f"{MARK}={folder}".encode()
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            environment = (path / "environ").read_bytes()
        except OSError:
            continue
        if mark in environment.split(b"\0") and int(path.name) != os.getpid() and start_time(path.name):
            found.append(int(path.name))
    return found


def hierarchies(name):
    """The folders of a cgroup: one for each hierarchy of version 1, or the one of version 2."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS / name]
    tops = [path for path in CGROUPS.iterdir() if path.is_dir() and not path.is_symlink()]
    return [top / name for top in tops if (top / "cgroup.procs").exists() or (top / "tasks").exists()]


def make_cgroups(name):
    """Makes a cgroup that the kubelet can use as its root."""
    for path in hierarchies(name):
        path.mkdir(exist_ok=True)
        # A cpuset without processors and memory can hold no process.
        for file in ("cpuset.cpus", "cpuset.mems"):
            above = path.parent / file
            if above.exists() and (path / file).exists():
                (path / file).write_text(above.read_text())


def remove_cgroups(name):
    """Removes a cgroup with all below it; its processes have ended."""
    for top in hierarchies(name):
        if not top.exists():
            continue
        below = [pathlib.Path(path) for path, _, _ in os.walk(top, topdown=False)]
        for path in below:
            try:
                path.rmdir()
            except OSError as error:
                raise Broken(f"cgroup {path}: {error.strerror}") from error
