"""What a target is."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

SEPARATOR = b"\n--\n"

Mutator = Callable[[bytes, Random], bytes]


@dataclass(frozen=True)
class Target:
    """One reader of untrusted bytes."""

    name: str
    check: Callable[[bytes], str]
    """Reads one input and says in a word what it was taken for. Raises AssertionError when a
    promise is broken; whatever else it raises is a fault of the reader's."""
    reaches: Mapping[str, tuple[str, ...]]
    """Modules, and which of their functions (all if none are named), of which it is measured how
    many lines are reached."""
    weight: int
    """Its part of the time."""
    seeds: Callable[[], Iterable[bytes]] = tuple
    """What to begin with beside the corpus."""
    dictionary: tuple[bytes, ...] = ()
    mutate: Mutator | None = None
    """Changes an input while keeping its structure; None when bytes are structure enough."""
    max_length: int = 2048
    honest: Callable[[], Iterable[bytes]] = field(default=tuple)
    """Seeds without any attack in them, from which planted bugs must be found."""


def parts(data: bytes, count: int) -> list[bytes]:
    """``data`` cut at the separators into ``count`` parts, the last ones empty if there are few."""
    found = data.split(SEPARATOR, count - 1)
    return found + [b""] * (count - len(found))


@functools.cache
def scratch() -> Path:
    """A directory of this process's own."""
    directory = tempfile.TemporaryDirectory(prefix="borg-pull-fuzz-")
    _KEPT.append(directory)
    return Path(directory.name)


_KEPT: list[object] = []
"""A temporary directory lives as long as the object that made it."""
