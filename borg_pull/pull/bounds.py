"""What a process that works on what a source has written may take of this host."""

from __future__ import annotations

from collections.abc import Sequence

from borg_pull.pull.config import Repository

_OF_ITS_OWN = 64 << 20
"""Bytes of the largest file that borg, as one program, unpacks of itself."""


def limited(argv: Sequence[str], repository: Repository, largest: int | None = None) -> list[str]:
    """``argv`` so that it, and all it starts, has as much memory each as ``repository`` allows.

    A few kilobytes in a repository can be compressed gigabytes. ``largest`` is the size of the
    largest file that it makes. prlimit is part of util-linux.
    """
    memory = int(repository.memory)
    limits = [f"--as={memory}:{memory}"]
    if largest is not None:
        size = max(largest, _OF_ITS_OWN)
        limits.append(f"--fsize={size}:{size}")
    return ["prlimit", *limits, "--", *argv]
