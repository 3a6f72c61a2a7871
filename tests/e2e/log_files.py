"""The files of a stopped broker's log, for scripts that damage them. Formats: store/src/record.rs
and store/src/vote.rs."""

import pathlib
import struct

MAGIC = b"RMQ\x01"
HEADER_BYTES = 64


class Log:
    """The log of one node, as it lies in its files."""

    def __init__(self, data_dir):
        self.folder = pathlib.Path(data_dir) / "store" / "commitlog"

    def segments(self):
        """Bases of the segments, ascending."""
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit() and len(path.name) == 20)

    def path(self, base):
        """The file of a segment."""
        return self.folder / f"{base:020d}"

    def entries(self):
        """(base, address, bytes) of every entry from the beginning on."""
        found = []
        for base in self.segments():
            content = self.path(base).read_bytes()
            at = 0
            while content[at : at + 4] == MAGIC:
                (total,) = struct.unpack_from("<I", content, at + 4)
                found.append((base, base + at, content[at : at + total]))
                at += total
        return found

    def content(self):
        """What the entries are, one after the other."""
        return b"".join(entry for _, _, entry in self.entries())

    def read(self, base, address, count):
        """Bytes at an address."""
        with open(self.path(base), "rb") as file:
            file.seek(address - base)
            return file.read(count)

    def write(self, base, address, content):
        """Puts bytes at an address."""
        with open(self.path(base), "r+b") as file:
            file.seek(address - base)
            file.write(content)

    def flip(self, base, address):
        """Turns one bit over."""
        (byte,) = self.read(base, address, 1)
        self.write(base, address, bytes([byte ^ 0x20]))

    def forget_guard(self):
        """Takes the mark away that lets the node cast no vote; whether there was one."""
        path, block, slot = self.folder / "vote", 4096, 512
        content = bytearray(path.read_bytes())
        had = False
        for number in (4, 5):
            at = number * block
            (length,) = struct.unpack_from("<I", content, at + 4)
            had |= length == 52
            if length == 52:
                struct.pack_into("<I", content, at + 4, 48)
                content[at + 16 + 48 : at + 16 + 52] = bytes(4)
                crc = crc32c(bytes(content[at : at + slot - 4]))
                struct.pack_into("<I", content, at + slot - 4, crc)
        path.write_bytes(content)
        return had


def crc32c(content):
    """CRC-32C, slowly."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
