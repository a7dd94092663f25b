"""A tree with everything a file system can hold, and the comparing of two trees.

Names are bytes throughout, for not all of them are text.
"""

from __future__ import annotations

import os
import random
import socket
import stat
import subprocess
from pathlib import Path

from .workplace import IS_ROOT

OLD_NS = 981_173_106_123_456_789  # February 2001, with nanoseconds
SPARSE_SIZE = 8 << 20
ODD_NAMES = (
    b"caf\xe9-\xff",
    b"new\nline",
    b"-rf",
    b"--help",
    b" leading and trailing ",
    b"quotes'\"`",
    b"back\\slash",
    b"star*?[a]",
    b"escape\x1b[31m",
    b"{now}",
    b"$(id)",
    b"pp:x",
    b"a::b",
    "snowman ☃ é".encode(),
    b"n" * 255,
)


def build(root: Path, *, uid: int, gid: int) -> None:
    """Fill the empty directory ``root``. As root all of it belongs to ``uid`` but root's secret."""
    top = os.fsencode(root)
    _plain(top)
    _links(top)
    _odd_names(top)
    _special_files(top)
    _attributes(top)
    if IS_ROOT:
        for directory, names, files in os.walk(top):
            for name in (*names, *files):
                path = os.path.join(directory, name)
                mode = os.lstat(path).st_mode
                os.chown(path, uid, gid, follow_symlinks=False)
                if not stat.S_ISLNK(mode):
                    os.chmod(path, stat.S_IMODE(mode))  # chown clears set-user-ID
    _age(top)


def _write(path: bytes, content: bytes, mode: int = 0o644) -> None:
    with open(path, "wb") as file:
        file.write(content)
    os.chmod(path, mode)


def _plain(top: bytes) -> None:
    _write(top + b"/empty", b"")
    _write(top + b"/text", b"hello\n" * 1000)
    _write(top + b"/random", random.Random(2).randbytes(3 << 20), 0o600)
    _write(top + b"/private", b"mine alone\n", 0o600)
    _write(top + b"/set-user-id", b"#!/bin/sh\n", 0o4755)
    _write(top + b"/set-group-id", b"#!/bin/sh\n", 0o2755)
    os.makedirs(top + b"/deep" + b"/d" * 40)
    os.mkdir(top + b"/empty directory")
    os.mkdir(top + b"/sticky")
    os.chmod(top + b"/sticky", 0o1777)
    with open(top + b"/sparse", "wb") as file:
        file.seek(SPARSE_SIZE // 2)
        file.write(b"an island")
        file.truncate(SPARSE_SIZE)


def _links(top: bytes) -> None:
    os.link(top + b"/text", top + b"/text, again")
    os.link(top + b"/text", top + b"/deep/text")
    os.symlink(b"text", top + b"/link")
    os.symlink(b"no such \xff thing", top + b"/dangling")
    os.symlink(b"/etc/hostname", top + b"/absolute")
    os.symlink(b"../..", top + b"/upwards")


def _odd_names(top: bytes) -> None:
    os.mkdir(top + b"/odd")
    for number, name in enumerate(ODD_NAMES):
        _write(top + b"/odd/" + name, b"odd %d" % number)
    os.mkdir(top + b"/odd/dir\xfe\n")
    _write(top + b"/odd/dir\xfe\n/inside", b"inside")


def _special_files(top: bytes) -> None:
    os.mkfifo(top + b"/fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(top + b"/socket")
    if IS_ROOT:
        os.mknod(top + b"/device", stat.S_IFCHR | 0o600, os.makedev(1, 3))


def _attributes(top: bytes) -> None:
    os.setxattr(top + b"/text", b"user.note", b"value \x00\xff")
    os.setxattr(top + b"/empty directory", b"user.empty", b"")
    for target, entry in (
        (b"/private", "u:65534:r"),
        (b"/deep", "g:65534:rx"),
        (b"/deep", "d:u:65534:rwx"),
    ):
        subprocess.run(["setfacl", "-m", entry, "--", top + target], check=True)


def _age(top: bytes) -> None:
    """Set old times with nanoseconds, children before the directories that hold them."""
    for directory, names, files in os.walk(top, topdown=False):
        for name in (*names, *files):
            path = os.path.join(directory, name)
            os.utime(path, ns=(OLD_NS, OLD_NS + len(name)), follow_symlinks=False)
    os.utime(top, ns=(OLD_NS, OLD_NS))


def differences(original: Path, restored: Path) -> list[str]:
    """How ``restored`` differs from ``original``, a line each; sockets are not archived.

    Compared: names, types, modes, times of change of content, content, targets of links, device
    numbers, extended attributes (access control lists among them), which names are one file, and
    as root the owners.
    """
    left, right = _entries(original), _entries(restored)
    found = [f"missing: {name!r}" for name in sorted(left.keys() - right.keys())]
    found += [f"unexpected: {name!r}" for name in sorted(right.keys() - left.keys())]
    for name in sorted(left.keys() & right.keys()):
        for aspect, value in left[name].items():
            other = right[name].get(aspect)
            if value != other:
                found.append(f"{name!r}: {aspect} was {value!r:.80}, is {other!r:.80}")
    return found


def _entries(root: Path) -> dict[bytes, dict[str, object]]:
    top = os.fsencode(root)
    first_name: dict[tuple[int, int], bytes] = {}
    entries: dict[bytes, dict[str, object]] = {}
    paths = [top] + [
        os.path.join(directory, name)
        for directory, names, files in sorted(os.walk(top))
        for name in sorted((*names, *files))
    ]
    for path in paths:
        status = os.lstat(path)
        if stat.S_ISSOCK(status.st_mode):
            continue
        name = path[len(top) :]
        entries[name] = _aspects(path, status)
        if not stat.S_ISDIR(status.st_mode):
            identity = (status.st_dev, status.st_ino)
            entries[name]["same file as"] = first_name.setdefault(identity, name)
    return entries


def _aspects(path: bytes, status: os.stat_result) -> dict[str, object]:
    kind = stat.S_IFMT(status.st_mode)
    aspects: dict[str, object] = {
        "type": kind,
        "mode": oct(status.st_mode),
        "modified": status.st_mtime_ns,
        "attributes": {
            attribute: os.getxattr(path, attribute, follow_symlinks=False)
            for attribute in sorted(os.listxattr(path, follow_symlinks=False))
        },
    }
    if IS_ROOT:
        aspects["owner"] = (status.st_uid, status.st_gid)
    if kind == stat.S_IFREG:
        with open(path, "rb") as file:
            aspects["content"] = file.read()
    elif kind == stat.S_IFLNK:
        aspects["target"] = os.readlink(path)
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        aspects["device"] = status.st_rdev
    return aspects
