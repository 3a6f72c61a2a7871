"""Disks of brokers: file systems of their own, small ones, full ones, and ones whose power is cut.
Needs root, for the mounts, which nobody else sees."""

import contextlib
import ctypes
import errno
import os
import pathlib
import signal
import time

import cluster as e2e
import configured as own

# The file with which somebody else takes all space.
FILLER = "filler"


def of(group, name):
    """Where the disk of a node is mounted."""
    return pathlib.Path(group.all_nodes[name]["dataDir"])


def private_mounts():
    """Gives this process a mount namespace of its own: what it mounts nobody else sees, and it is
    gone with the process, however that ends."""
    new_mount_namespace = 0x00020000
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(new_mount_namespace) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise e2e.Broken(f"no mount namespace: {reason}; this test needs root (CAP_SYS_ADMIN)")
    mount("--make-rprivate", "/")


def mount(*arguments):
    """Runs mount(8)."""
    own.run_tool("mount", *arguments)


def make_image(path, mebibytes):
    """A file that holds an empty ext4 file system."""
    with open(path, "wb") as file:
        file.truncate(mebibytes << 20)
    own.run_tool("mkfs.ext4", "-q", "-m", "0", str(path))


@contextlib.contextmanager
def small_disks(folders, mebibytes, kind):
    """Mounts a file system of this size at each folder; `kind` is tmpfs, or ext4 on a loop device."""
    private_mounts()
    mounted = []
    try:
        for folder in folders:
            folder.mkdir(parents=True)
            if kind == "tmpfs":
                mount("-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder))
            else:
                image = folder.with_suffix(".img")
                make_image(image, mebibytes)
                mount("-o", "loop", str(image), str(folder))
            mounted.append(folder)
        yield
    finally:
        for folder in mounted:
            own.run_tool("umount", "--lazy", str(folder))


class Images:
    """An ext4 file system for each broker, in an image whose power can be cut."""

    MIB = 512

    def __init__(self, group):
        self.group = group
        self.mounted = []

    def __enter__(self):
        private_mounts()
        for name in self.group.all_nodes:
            of(self.group, name).mkdir(parents=True)
            make_image(self.image(name), self.MIB)
            self.mount(name)
        return self

    def __exit__(self, *_):
        for folder in self.mounted:
            own.run_tool("umount", "--lazy", str(folder))

    def image(self, name):
        """The file that is the disk of a broker."""
        return of(self.group, name).with_suffix(".img")

    def mount(self, name):
        """Attaches the disk."""
        folder = of(self.group, name)
        mount("-o", "loop", str(self.image(name)), str(folder))
        self.mounted.append(folder)

    def cut_power(self, names):
        """Ends brokers in one moment, which is returned, with nothing on their disks but what has
        reached them: they are frozen and the images copied, without what only stands in the page
        cache. Then they are killed, and the copies take the place of the images."""
        self.group.signal(names, signal.SIGSTOP)
        moment = time.monotonic()
        for name in names:
            image = self.image(name)
            own.run_tool("cp", "--sparse=always", str(image), str(image.with_suffix(".cut")))
        self.group.kill(*names)
        for name in names:
            folder, image = of(self.group, name), self.image(name)
            own.run_tool("umount", str(folder))
            self.mounted.remove(folder)
            image.with_suffix(".cut").replace(image)
            self.mount(name)
        return moment


def available(folder):
    """Bytes a file system has left."""
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize


def fill(folder):
    """Takes all that a file system has left: most of it in one step, the rest block by block."""
    with open(folder / FILLER, "ab", buffering=0) as file:
        size = file.tell()
        try:
            os.posix_fallocate(file.fileno(), size, max(available(folder), 1))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        file.seek(0, os.SEEK_END)
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
