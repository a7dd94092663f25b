"""The log of a run."""

from __future__ import annotations

import contextlib
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, Self

LIMIT = 16 * 1024 * 1024
"""Bytes: what there is to say is the source's choice, the disk is ours."""


OURS = b"borg-pull: "
"""How our own words begin in a log, and nobody else's."""


class LogFile(Protocol):
    """What takes the lines of a log, and the output of processes."""

    def fileno(self) -> int: ...

    def write(self, line: bytes, /) -> object: ...


class Log:
    """A log, as long as there is room for it: a full disk costs the log, not the run."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._room = LIMIT - self._file.tell()
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """For a process that writes to it."""
        return self._file.fileno()

    def write(self, line: bytes, /) -> None:
        """Add a line; from any thread."""
        with self._lock:
            if self._room <= 0:
                return
            self._room -= len(line)
            if self._room <= 0:
                line = b"borg-pull: there was more, which is not kept\n"
            with contextlib.suppress(OSError):
                self._file.write(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def foreign(line: bytes) -> bytes:
    """``line`` of somebody else's, so that it does not look like one of ours."""
    return b"? " + line if line.startswith(OURS) else line


def note(path: Path, text: str) -> None:
    """Add a printable line of our own to the log at ``path``, also to one that is full."""
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    # It costs the log, not the run.
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as log:
        log.write(OURS + f"{stamp} {text}\n".encode())
