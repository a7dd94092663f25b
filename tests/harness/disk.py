"""A small disk that can be filled to its last byte, or its last inode, and emptied again."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from borg_pull.audit import AuditLog, Common
from borg_pull.errors import AuditError

BLOCK = 4096
_BALLAST = "ballast"


class Disk:
    """A tmpfs mounted over the directory ``place``, which keeps its owner and mode (root only)."""

    def __init__(self, place: Path, *, kibibytes: int = 256, inodes: int = 200) -> None:
        self.place = place
        status = place.stat()
        options = (
            f"size={kibibytes}k,nr_inodes={inodes},mode={status.st_mode & 0o7777:o},"
            f"uid={status.st_uid},gid={status.st_gid}"
        )
        subprocess.run(
            ["/usr/bin/mount", "-t", "tmpfs", "-o", options, "borg-pull-test", place], check=True
        )

    def fill(self, *, leave: int = 0) -> None:
        """Take all blocks but ``leave`` bytes; what lies there may still grow to a block's end."""
        with (self.place / _BALLAST).open("wb", buffering=0) as file:
            try:
                while file.write(b"x" * BLOCK):
                    pass
            except OSError:
                pass
            file.truncate(max(0, file.tell() - leave))

    def fill_with_records(self, log: Path) -> None:
        """Take all blocks, and what room the last one of an audit log still has for a record."""
        self.fill()
        nobody = Common(session="0", client=None, key=None, address=None, port=None, pid=0)
        for padding in (1000, 100, 0):
            try:
                while True:
                    AuditLog(str(log), sync=False).append("filling", nobody, {"_": "x" * padding})
            except AuditError:
                continue

    def take_inodes(self) -> None:
        """Leave no inode to make anything new of."""
        (self.place / _BALLAST).mkdir()
        try:
            for number in range(10_000):
                (self.place / _BALLAST / str(number)).touch()
        except OSError:
            return
        raise AssertionError(f"{self.place} has inodes without end")

    def empty(self) -> None:
        """Give back what was taken."""
        subprocess.run(["/usr/bin/rm", "-r", self.place / _BALLAST], check=True)

    def unmount(self) -> None:
        """Take the disk away with all that is on it; safe to call twice."""
        if os.path.ismount(self.place):
            subprocess.run(["/usr/bin/umount", "--lazy", self.place], check=True)
