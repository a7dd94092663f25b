"""What is in an archive, and getting it out on this host.

The archive was made by the source, which may be hostile by now: borg that unpacks it is confined to
the directory it unpacks into, and an archive that would lead out of it is refused before.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from borg_pull.errors import (
    ConfigurationError,
    FailedError,
    RequestError,
    SystemRefusedError,
    printable,
)
from borg_pull.pull.faults import nearest
from borg_pull.pull.pull import Task
from borg_pull.pull.repository import (
    Archive,
    Archives,
    Cell,
    LocalRepository,
    is_done,
)
from borg_pull.pull.tree import Tree
from borg_pull.values import path_fault

LATEST = "latest"
_WARNINGS_KEPT = 100
_LONGEST_LINE = 1 << 20
_WITHOUT_ATTRIBUTES = ("--noflags", "--noacls", "--noxattrs")


@dataclass(frozen=True)
class Item:
    """One file, directory or link in an archive, as borg lists it."""

    path: str
    """As the archive has it: relative."""
    mode: str
    """As ls prints it; its first letter is the kind."""
    user: str
    group: str
    size: int
    mtime: str
    """RFC 3339, UTC; empty where borg tells none."""
    target: str
    """Of a link."""

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file with content of its own."""
        return self.mode.startswith("-")


@dataclass(frozen=True)
class Extracted:
    """What unpacking came to."""

    items: int
    size: int
    warnings: list[str]


def readable_here(task: Task, instead: str) -> None:
    """Raise ConfigurationError where only the source can read the repository.

    ``instead`` are words of ``borg-pull restore``, which has the source do it.
    """
    if task.repository.key_on == "source":
        raise ConfigurationError(
            f"repository {task.repository_name} is for the source alone to read (key_on)",
            f"run: borg-pull restore {task.name} {instead}",
        )


def chosen(
    repository: Archives, glob: str, name: str, on_record: Callable[[], Sequence[str]]
) -> Archive:
    """The archive of that name, or the job's newest for ``latest``. Raises RequestError.

    The newest is that of ``on_record``, the ids of the job's archives in the order of their runs:
    the time that an archive says, whoever made it has written. Where none is on record, that is
    all there is to go by.
    """
    if name != LATEST:
        archive = repository.archive(name)
        if archive is not None:
            return archive
    found = repository.archives(glob)
    if not found:
        raise RequestError(f"{repository.repository.path} has no archive {glob}")
    if name != LATEST:
        names = {archive.name: archive for archive in found}
        raise RequestError(
            f"there is no archive {printable(name)}{nearest(name, names)}",
            "see borg-pull archives",
        )
    listed = {archive.id: archive for archive in found}
    ours = [listed[id_] for id_ in on_record() if id_ in listed]
    return ours[-1] if ours else found[-1]


def members(paths: Sequence[str]) -> list[str]:
    """``paths`` as patterns of borg's, given as the source has them or as the archive has them.

    Empty for ``/``, which is all. Raises RequestError.
    """
    patterns = []
    for path in paths:
        absolute = path if path.startswith("/") else f"/{path}"
        fault = path_fault(absolute)
        if fault is not None:
            raise RequestError(f"path {printable(path)} {fault}")
        if absolute == "/":
            return []
        patterns.append(f"pp:{absolute.strip('/')}")
    return patterns


def items(repository: LocalRepository, archive: str, patterns: Sequence[str]) -> Iterator[Item]:
    """What the archive holds of ``patterns``, or all. Raises RepositoryError."""
    words = ["list", "--json-lines", f"{repository.repository.path}::{archive}", *patterns]
    for line in repository.stream(words):
        yield _item(json.loads(line))


def extract(
    repository: LocalRepository,
    archive: str,
    patterns: Sequence[str],
    directory: Path,
    *,
    dry_run: bool = False,
    with_attributes: bool = False,
    largest: int | None = None,
    is_kept: bool = True,
    show: Callable[[int, int], None] = lambda _done, _all: None,
) -> Extracted:
    """Unpack ``patterns`` of the archive, or all, into ``directory``, which must be empty or new.

    What is unpacked is what is checked before only where nothing else can change the repository
    meanwhile. ``with_attributes`` is for access control lists, extended attributes and flags,
    ``largest`` the size of the largest file that is made, where that is to be a limit.
    ``is_kept`` tells whether it outlives a failure. ``show`` is told how many items are done, of
    how many. Raises RequestError, FailedError.
    """
    count, size = _checked(items(repository, archive, patterns), is_whole=not patterns)
    if count == 0:
        raise RequestError(
            f"archive {printable(archive)} has nothing of what was named",
            "see borg-pull browse",
        )
    if dry_run:
        return Extracted(count, size, [])
    _make_empty(directory)
    with tempfile.TemporaryDirectory(prefix="borg-pull-") as own:
        cell = Cell(directory, Path(own), largest)
        options = () if with_attributes else _WITHOUT_ATTRIBUTES
        words = ["extract", "--list", "--log-json", *options]
        words += [f"{repository.repository.path}::{archive}", *patterns]
        process = repository.start(words, stdout=subprocess.DEVNULL, confined_to=cell)
        with repository.bounded("extract", process):
            left = directory if is_kept else None
            warnings = _heard(process, archive, left, lambda done: show(done, count))
    return Extracted(count, size, warnings)


def _heard(
    process: subprocess.Popen[bytes],
    archive: str,
    left: Path | None,
    show: Callable[[int], None],
) -> list[str]:
    """The warnings of an unpacking, once it is done; a failed one leaves something in ``left``.

    Raises FailedError.
    """
    assert process.stderr is not None
    done, warnings, said = 0, list[str](), ""
    for line in iter(partial(process.stderr.readline, _LONGEST_LINE), b""):
        told = _told(line)
        if told is None:
            said = said or line.decode("utf-8", "replace").strip()
        elif told.get("name") == "borg.output.list":
            done += 1
            show(done)
        elif told.get("type") == "log_message":
            # An exception's first line says it; a traceback follows.
            text = printable(str(told.get("message", "")).strip().partition("\n")[0][:2000])
            if told.get("levelname") == "WARNING" and len(warnings) < _WARNINGS_KEPT:
                warnings.append(text)
            elif told.get("levelname") in ("ERROR", "CRITICAL"):
                said = said or text
    process.stderr.close()
    code = process.wait()
    if not is_done(code):
        raise FailedError(
            f"borg extract of {printable(archive)}: {printable(said) or f'exit {code}'}",
            None if left is None else f"what was unpacked before is in {left}",
        )
    return warnings


def _checked(found: Iterator[Item], *, is_whole: bool) -> tuple[int, int]:
    """Number and size of the items, of which none leads out of where it is unpacked.

    Raises FailedError.
    """
    count = size = 0
    tree = Tree(is_whole=is_whole)
    for item in found:
        count += 1
        size += item.size
        fault = tree.fault(item.path, item.mode[:1], item.target)
        if fault is not None:
            raise FailedError(
                f"the archive could lead out of where it is unpacked: {printable(item.path)} "
                f"{fault}",
                "nothing was unpacked; no honest backup has this: look who made it",
            )
    return count, size


def _make_empty(directory: Path) -> None:
    """Make ``directory``, or see that it is this user's alone and empty. Raises RequestError."""
    try:
        directory.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        # Whoever could rename or replace what is in it would have it lead elsewhere.
        status = directory.lstat()
        if not stat.S_ISDIR(status.st_mode):
            raise RequestError(f"{directory} is not a directory") from None
        if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise RequestError(
                f"{directory} is another user's, or others may write it", "name a new directory"
            ) from None
        if os.listdir(directory):
            raise RequestError(
                f"{directory} is not empty", "name a new directory: nothing is overwritten"
            ) from None
    except OSError as error:
        raise SystemRefusedError.because(f"cannot make {directory}", error) from error


def _item(listed: dict[str, Any]) -> Item:
    # Without a zone; the borg that lists was told that it is UTC.
    mtime = str(listed.get("mtime") or "")
    return Item(
        path=str(listed["path"]),
        mode=str(listed["mode"]),
        user=str(listed.get("user") or listed.get("uid", "")),
        group=str(listed.get("group") or listed.get("gid", "")),
        size=int(listed.get("size") or 0),
        mtime=f"{mtime}Z" if mtime else "",
        target=str(listed.get("linktarget") or listed.get("source") or ""),
    )


def _told(line: bytes) -> dict[str, Any] | None:
    try:
        told = json.loads(line)
    except ValueError:
        return None
    return told if isinstance(told, dict) else None
