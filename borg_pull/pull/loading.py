"""From files to a `Config`, with everything that is wrong named at once."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from borg_pull.pull.config import (
    Config,
    Job,
    Metrics,
    Notify,
    Repository,
    Settings,
    Source,
    Storage,
    archive_prefix,
    filled_archive,
)
from borg_pull.pull.faults import ConfigFaultsError, Fault, dotted, faults_of, nearest, wrong_type
from borg_pull.pull.fields import NO_NAME, name_fault
from borg_pull.toml import loads
from borg_pull.values import archive_fault, archive_parts

MAX_FILE = 16 * 1024 * 1024  # bytes

_ONCE: dict[str, type[BaseModel]] = {"settings": Settings, "notify": Notify, "metrics": Metrics}
_NAMED: dict[str, type[BaseModel]] = {
    "storage": Storage,
    "source": Source,
    "repository": Repository,
    "job": Job,
}


def directory_beside(path: Path) -> Path:
    """Where further files of the configuration ``path`` stand."""
    return path.parent / "pull.d"


@dataclass
class Reading:
    """What was found in the files of a configuration."""

    files: list[Path] = field(default_factory=list)
    """All that were read, the main file first."""
    faults: list[Fault] = field(default_factory=list)
    once: dict[str, BaseModel] = field(default_factory=dict)
    """The tables there is one of, as far as they are sound."""
    named: dict[str, dict[str, Any]] = field(default_factory=lambda: {kind: {} for kind in _NAMED})
    """The tables that have names, as far as they are sound."""
    homes: dict[tuple[str, str], str] = field(default_factory=dict)
    """The file of each of these, sound or not, by kind and name."""
    main: str = ""
    unsound: set[str] = field(default_factory=set)
    """The files that have a part in some fault; not the main one where another is to blame."""
    unread: set[str] = field(default_factory=set)
    """Those of them of which it is not known what they hold."""

    def config(self) -> Config:
        """What was read. Raises ConfigFaultsError when anything is wrong."""
        if self.faults:
            raise ConfigFaultsError(self.faults)
        return Config.model_validate({**self.once, **self.named})

    def sound_part(self) -> Config:
        """What was read, without the files that are wrong, and without what refers to their tables.

        Raises ConfigFaultsError when the main file is among them, or which files there are is not
        known.
        """
        if self.unsound & {self.main, str(directory_beside(Path(self.main)))}:
            raise ConfigFaultsError(self.faults)
        named = {
            kind: {
                name: table
                for name, table in tables.items()
                if self.homes[kind, name] not in self.unsound
            }
            for kind, tables in self.named.items()
        }
        # In this order each finds what it refers to as complete as it will be.
        for kind, keys in (("repository", ("storage",)), ("job", ("source", "repository"))):
            named[kind] = {
                name: table
                for name, table in named[kind].items()
                if all(getattr(table, key) in {None, *named[key]} for key in keys)
            }
        left_out = (name for kind, name in self.homes if kind == "job" and name not in named["job"])
        config = Config.model_validate({**self.once, **named})
        return config.without(self.faults, tuple(left_out))

    def add(self, fault: Fault, *others: str) -> None:
        """Note what is wrong with a file, or with what it and ``others`` hold together."""
        self.faults.append(fault)
        involved = {fault.file, *others}
        # Of a fault between the main file and another the other is left out.
        self.unsound |= involved - {self.main} or involved


def examine(path: Path, added: tuple[Path, str] | None = None) -> Reading:
    """Read and check everything; what is wrong is in the reading's ``faults``.

    ``added`` is a file yet to be written, and its text.
    """
    reading = Reading(main=str(path))
    documents: Iterable[tuple[Path, dict[str, Any] | None]] = (
        (file, _document(file, reading)) for file in (path, *_files_beside(path, reading))
    )
    if added is not None:
        documents = (*documents, (added[0], loads(added[1])))
    for file, document in documents:
        for key, value in ({} if document is None else document).items():
            _take(reading, str(file), key, value, is_main=file == path)
    _contradict(reading)
    return reading


def _files_beside(path: Path, reading: Reading) -> list[Path]:
    directory = directory_beside(path)
    try:
        status = directory.stat()
        found = sorted(directory.glob("*.toml"))
    except FileNotFoundError:
        return []
    except OSError as error:
        reading.add(Fault(str(directory), "", f"cannot be read: {error.strerror}"))
        return []
    fault = _mode_fault(status)
    if fault is not None:
        reading.add(Fault(str(directory), "", fault))
    return [file for file in found if not file.name.startswith(".")]


def _document(file: Path, reading: Reading) -> dict[str, Any] | None:
    """The content of ``file``; None, with a fault added, when it cannot be had."""
    try:
        content = _content(file)
        reading.files.append(file)
        return loads(content.decode("utf-8"))
    except FileNotFoundError:
        message = "does not exist; name another with --config, or begin with borg-pull add-source"
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        message = f"is not UTF-8 text (at line {line})"
    except _UnfitError as error:
        message = str(error)
    except ValueError as error:
        message = f"is not valid TOML: {error}"
    except RecursionError:
        message = "is nested too deeply"
    reading.add(Fault(str(file), "", message))
    reading.unread.add(str(file))
    return None


class _UnfitError(Exception):
    """The file is not one to take orders from."""


def _content(file: Path) -> bytes:
    # O_NONBLOCK: opening a FIFO must not wait for its writer.
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    is_regular = stat.S_ISREG(status.st_mode)
    fault = _mode_fault(status) if is_regular else "is not a regular file"
    if fault is not None:
        os.close(descriptor)
        raise _UnfitError(fault)
    with os.fdopen(descriptor, "rb") as stream:
        content = stream.read(MAX_FILE + 1)
    if len(content) > MAX_FILE:
        raise _UnfitError(f"is larger than {MAX_FILE} bytes")
    return content


def _mode_fault(status: os.stat_result) -> str | None:
    """The configuration names programs to run: whoever can write it runs them as this user."""
    if status.st_uid not in (0, os.geteuid()):
        return f"belongs to uid {status.st_uid}, not to root or this user"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "can be written by others; run chmod go-w on it"
    return None


def _take(reading: Reading, file: str, key: str, value: object, *, is_main: bool) -> None:
    """Check one top-level table and keep what is sound of it."""

    def fault(location: tuple[str, ...], message: str, *others: str) -> None:
        reading.add(Fault(file, dotted(location), message), *others)

    if key not in _ONCE and key not in _NAMED:
        fault((key,), f"is unknown{nearest(key, Config.model_fields)}")
    elif not isinstance(value, dict):
        fault((key,), wrong_type("a table", value))
    elif key in _ONCE and not is_main:
        fault((key,), "belongs in the main file")
    elif key in _ONCE:
        sound = _validated(reading, file, (key,), _ONCE[key], value)
        if sound is not None:
            reading.once[key] = sound
    else:
        for name, table in value.items():
            other = reading.homes.setdefault((key, name), file)
            if other != file:
                fault((key, name), f"stands in {other} too", other)
                continue
            if name_fault(name) is not None:
                fault((key, name), NO_NAME)
            sound = _validated(reading, file, (key, name), _NAMED[key], table)
            if sound is not None:
                reading.named[key][name] = sound


def _validated(
    reading: Reading, file: str, prefix: tuple[str, ...], model: type[BaseModel], table: object
) -> BaseModel | None:
    try:
        return model.model_validate(table)
    except ValidationError as error:
        for fault in faults_of(error, model, file, prefix):
            reading.add(fault)
        return None


def _contradict(reading: Reading) -> None:
    """Note what does not fit together, of what is sound by itself."""
    repositories: dict[str, Repository] = reading.named["repository"]
    jobs: dict[str, Job] = reading.named["job"]
    dangling = [
        *_dangling(reading, "repository", "storage", repositories),
        *_dangling(reading, "job", "source", jobs),
        *_dangling(reading, "job", "repository", jobs),
    ]
    for kind, name, key, message, _ in dangling:
        fault = Fault(reading.homes[kind, name], dotted((kind, name, key)), message)
        if reading.unread:
            # What is missing may stand there: that file is to blame, not the one that needs it.
            reading.faults.append(fault)
        else:
            reading.add(fault)
    found = [
        *_overlapping(repositories),
        *_indistinct(jobs),
        *_beyond_the_original(reading),
        *_nobody_to_tell(reading),
    ]
    for kind, name, key, message, other in found:
        home = reading.homes[kind, name] if name else reading.main
        others = [] if other is None else [reading.homes[other]]
        text = dotted(part for part in (kind, name, key) if part)
        reading.add(Fault(home, text, message), *others)


_Contradiction = tuple[str, str, str, str, tuple[str, str] | None]
"""Kind and name of a table, a key in it, what is wrong with that, and kind and name of the table it
does not go with, if there is one. No name: of the main file."""


def _dangling(
    reading: Reading, kind: str, key: str, tables: Mapping[str, object]
) -> Iterator[_Contradiction]:
    """References by ``key`` to tables that are in no file."""
    known = {name for other, name in reading.homes if other == key}
    for name, table in tables.items():
        target = getattr(table, key)
        if target is not None and target not in known:
            message = f"there is no [{dotted((key, target))}]{nearest(target, known)}"
            yield kind, name, key, message, None


def _overlapping(repositories: Mapping[str, Repository]) -> Iterator[_Contradiction]:
    """Repositories in one place, or one in another."""
    parents = cache(os.path.realpath)
    places = {}
    for name, repository in repositories.items():
        path = repository.path
        place = f"{parents(path.parent)}/{path.name}"
        places[name] = f"{os.path.realpath(place) if os.path.islink(place) else place}/"
    for name, other in _prefixed(places):
        same = places[name] == places[other]
        message = f"is that of repository {other} too" if same else f"lies in repository {other}"
        yield "repository", name, "path", message, ("repository", other)


def _indistinct(jobs: Mapping[str, Job]) -> Iterator[_Contradiction]:
    """Jobs whose archives could not be told from those of others in their repository."""
    prefixes: dict[str, dict[str, str]] = {}
    for name, job in jobs.items():
        message = _archive_fault(name, job)
        if message is not None:
            yield "job", name, "archive", message, None
        else:
            prefixes.setdefault(job.repository, {})[name] = archive_prefix(name, job)
    for same_place in prefixes.values():
        for name, other in _prefixed(same_place):
            message = (
                f"begins with {same_place[name]!a}, that of job {other} in the same repository "
                f"with {same_place[other]!a}: what selects {other}'s archives would select these"
            )
            yield "job", name, "archive", message, ("job", other)


def _beyond_the_original(reading: Reading) -> Iterator[_Contradiction]:
    """What jobs ask of sources that are said to run the original tool, and that it cannot do."""
    sources: dict[str, Source] = reading.named["source"]
    repositories: dict[str, Repository] = reading.named["repository"]
    jobs: dict[str, Job] = reading.named["job"]
    for name, job in jobs.items():
        source = sources.get(job.source)
        if source is None or source.protocol != "original":
            continue
        its = ("source", job.source)
        tool = f"source {job.source} runs the original tool (protocol), which"
        repository = repositories.get(job.repository)
        if repository is not None and repository.key_on == "source":
            yield (
                *("job", name, "repository"),
                f"has key_on = 'source', but {tool} cannot be asked about archives",
                its,
            )
        if len(job.paths) > 1:
            message = f"has {len(job.paths)}, but {tool} backs up one path"
            yield "job", name, "paths", message, its
        if job.exclude:
            yield "job", name, "exclude", f"cannot be had: {tool} knows no exclude", its
        if "{hostname}" in job.archive:
            message = f"has {{hostname}}, but {tool} does not tell what that is"
            yield "job", name, "archive", message, its


def _nobody_to_tell(reading: Reading) -> Iterator[_Contradiction]:
    notify = reading.once.get("notify")
    if isinstance(notify, Notify) and notify.digest is not None and notify.urls_file is None:
        yield "notify", "", "digest", "is sent to nobody without urls_file", None


def _prefixed(texts: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Names of texts that begin with another's text, each with that other's name."""
    # In this order whatever begins with a text follows it at once.
    open_ones: list[str] = []
    for name in sorted(texts, key=lambda name: texts[name]):
        while open_ones and not texts[name].startswith(texts[open_ones[-1]]):
            open_ones.pop()
        if open_ones:
            yield name, open_ones[-1]
        open_ones.append(name)


def _archive_fault(name: str, job: Job) -> str | None:
    fault = archive_fault(filled_archive(name, job))
    if fault is not None:
        return fault
    prefix = archive_prefix(name, job)
    if prefix.startswith("verify-of-") and "@" in prefix:
        return "begins like the archives that verify makes and deletes"
    if not prefix:
        return "does not begin with a text of its own, by which to tell this job's archives"
    if set(prefix) & set("*?[]"):
        return "has one of *?[] before its first placeholder, which patterns give a meaning"
    parts = archive_parts(filled_archive(name, job))
    placeholders = {inside.partition(":")[0] for _literal, inside in parts if inside}
    if not placeholders & {"now", "utcnow"}:
        return "has neither {now} nor {utcnow}: the second run would find the name taken"
    return None
