"""first.py FOLDER PROGRAM...: the first process of a capsule.

Makes the mounts, runs the program and reaps whatever is left to it until the program ends.
"""

import os
import pathlib
import subprocess
import sys

import capsule

# Settings of the whole machine that a kubelet wants. It only writes what differs, so it finds
# them in files of ours and leaves the machine as it is.
KERNEL = {
    "kernel/keys/root_maxbytes": "25000000",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
}

# Folders whose changes stay in the capsule.
PRIVATE = ["etc", "var"]


def mount(*arguments):
    """Calls mount, which says itself what is wrong. It keeps no record: that would be in the /run
    of the machine."""
    subprocess.run(["mount", "--no-mtab", *map(str, arguments)], check=True)


def mounts(folder):
    """The mounts that the head of capsule.py promises."""
    for name in PRIVATE:
        upper, work = folder / "private" / name, folder / "private" / f"{name}.work"
        upper.mkdir(parents=True)
        work.mkdir()
        mount("-t", "overlay", "overlay", "-o", f"lowerdir=/{name},upperdir={upper},workdir={work}", f"/{name}")
    outside = os.open(folder, os.O_PATH)
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    capsule.INSIDE.mkdir()
    # By descriptor: the folder may lie below a path that was just covered.
    mount("--bind", f"/proc/{os.getpid()}/fd/{outside}", capsule.INSIDE)
    os.close(outside)
    settings = capsule.INSIDE / "kernel"
    for name, value in KERNEL.items():
        file = settings / name.replace("/", ".")
        file.parent.mkdir(exist_ok=True)
        file.write_text(value + "\n")
        mount("--bind", file, pathlib.Path("/proc/sys") / name)


def main():
    """Ends with the code of the program; the kernel then ends all else inside."""
    mounts(pathlib.Path(sys.argv[1]))
    os.chdir("/")
    child = os.fork()
    if child == 0:
        os.execvp(sys.argv[2], sys.argv[2:])
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)


if __name__ == "__main__":
    main()
