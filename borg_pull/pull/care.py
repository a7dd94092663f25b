"""Retention and verification of a job's archives: prune, compact, check.

Nothing is deleted before the archives on record have been found in the repository. A hostile
source can delete what it may write, and an append-only repository merely keeps that from being
final; pruning it, which this host does without that restriction, would make it so.
"""

from __future__ import annotations

import configparser
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from borg_pull.errors import ConfigurationError, FailedError, printable
from borg_pull.pull.config import Check, Retention
from borg_pull.pull.ledger import Ledger
from borg_pull.pull.pull import Task
from borg_pull.pull.repository import Archive, Archives, LocalRepository, RepositoryError
from borg_pull.pull.source_repository import is_stored

NAMED = 5
"""How many missing archives a message names."""

MISSING = "archives on record are missing from the repository"
"""In every message of that."""

NOTHING_DELETED = "nothing was deleted"
NOTHING_DONE = "compact nothing"
NOTHING_FREED = "what was deleted is not freed yet"


class MissingArchivesError(FailedError):
    """Archives on record are not in the repository any more: an alarm, not a nuisance."""

    def __init__(self, job: str, missing: Sequence[str], so_far: str = NOTHING_DELETED) -> None:
        names = ", ".join(missing[:NAMED])
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        super().__init__(
            f"job {job}: {len(missing)} {MISSING}: {names}{more}",
            f"{so_far}; find out who did that, the repository's transactions before it "
            f"can be had back; if it was you, run: borg-pull forget {job}",
        )


@dataclass(frozen=True)
class Pruned:
    """What pruning did, or with a dry run would have done."""

    kept: list[Archive]
    deleted: list[Archive]


def missing(task: Task, archives: Archives, ledger: Ledger, glob: str) -> dict[str, str]:
    """The archives that are on record and not in the repository: id to name."""
    return _missing(task, ledger.kept(task.name), archives.archives(glob), glob)


def _missing(
    task: Task, on_record: dict[str, str], listed: Sequence[Archive], glob: str
) -> dict[str, str]:
    """Those on record that are not listed; or, where the source lists them, not stored here."""
    present = {archive.id for archive in listed}
    if task.repository.key_on == "source":
        present = {id_ for id_ in present if id_ not in on_record or is_stored(task, id_)}
    return unlisted(on_record, present, glob)


def unlisted(on_record: Mapping[str, str], listed: Collection[str], glob: str) -> dict[str, str]:
    """The archives on record that are not among the ids that were ``listed``: id to name.

    One of a name that the job does not give any more cannot be among them, and is left out.
    """
    return {
        id_: name
        for id_, name in on_record.items()
        if id_ not in listed and fnmatchcase(name, glob)
    }


def prune(
    task: Task,
    archives: Archives,
    ledger: Ledger,
    glob: str,
    *,
    dry_run: bool = False,
) -> Pruned:
    """Delete the job's archives that its retention does not keep, and free their space.

    A source that does it, because it alone can, is served append-only: what it deletes beyond its
    orders is found out before `_compact` makes it final.

    Raises MissingArchivesError, ConfigurationError, RepositoryError, NotAllowedError.
    """
    retention = retention_of(task)
    before = archives.archives(glob)
    lost = _missing(task, ledger.kept(task.name), before, glob)
    if lost:
        raise MissingArchivesError(task.name, [*lost.values()])
    words = ["prune", "--list", "--glob-archives", glob, *keep_options(retention)]
    if dry_run:
        answer = archives.run([*words, "--dry-run", str(task.repository.path)])
        doomed = _would_prune(answer.stderr, before)
        return Pruned([one for one in before if one not in doomed], doomed)
    archives.run([*words, str(task.repository.path)])
    listed = archives.archives(glob)
    after = {archive.id for archive in listed}
    deleted = [archive for archive in before if archive.id not in after]
    ledger.mark_gone(task.name, [archive.id for archive in deleted])
    if task.repository.key_on == "source":
        lost = _missing(task, ledger.kept(task.name), listed, glob)
        if lost:
            raise MissingArchivesError(task.name, [*lost.values()], NOTHING_FREED)
    if retention.compact and deleted:
        _bare(task, archives).run(["compact", str(task.repository.path)])
    return Pruned([one for one in before if one.id in after], deleted)


def _bare(task: Task, archives: Archives) -> LocalRepository:
    """The repository without its key, which compacting and verifying its objects do not need."""
    return LocalRepository(task.repository, lambda: None, archives.stop, archives.log)


def retention_of(task: Task) -> Retention:
    """How long the job's archives are kept. Raises ConfigurationError."""
    if task.job.retention is None:
        raise ConfigurationError(
            f"job {task.name} has no retention",
            f"add a table [job.{task.name}.retention], such as with keep_daily = 14",
        )
    return task.job.retention


def rules_of_check(task: Task) -> Check:
    """How the job's repository is verified. Raises ConfigurationError."""
    if task.job.check is None:
        raise ConfigurationError(
            f"job {task.name} has no check",
            f'add a table [job.{task.name}.check], such as with schedule = "monthly"',
        )
    return task.job.check


def keep_options(retention: Retention) -> list[str]:
    """borg's options for the rules."""
    options: list[str] = []
    for name, value in retention:
        if name.startswith("keep_") and value is not None:
            options += [f"--{name.replace('_', '-')}", str(value)]
    return options


@dataclass(frozen=True)
class Checked:
    """A check that found no damage."""

    seconds: float
    segment: int | None
    """Where the next slice begins, behind this segment; None when the last one was reached."""


def check(
    task: Task, archives: Archives, on_line: Callable[[bytes], None] | None = None
) -> Checked:
    """Verify the repository as the job says. Raises BorgPullError.

    With ``max_duration`` borg checks a slice of the repository, and the next one from there on
    (borg check, "partial checks"); that needs ``--repository-only``. Where the source has the key,
    it is asked about the archives, and this host looks at the repository itself.
    """
    rules = rules_of_check(task)
    deep = ["--verify-data"] if rules.verify_data else []
    steps: list[tuple[Archives, list[str]]]
    if rules.max_duration is not None:
        seconds = max(1, int(rules.max_duration.total_seconds()))
        steps = [(_bare(task, archives), ["--repository-only", "--max-duration", str(seconds)])]
    elif task.repository.key_on == "source":
        steps = [
            (_bare(task, archives), ["--repository-only"]),
            (archives, ["--archives-only", *deep]),
        ]
    else:
        steps = [(archives, deep)]
    started = time.monotonic()
    for who, options in steps:
        answer = who.run(["check", *options, str(task.repository.path)], on_line=on_line)
        if answer.code != 0:
            # What borg calls a warning here is damage that it found.
            lines = [line for line in answer.stderr.splitlines() if line.strip()]
            # The first is what it found; the last, that it found something.
            found = printable(lines[0]) if lines else f"exit {answer.code}"
            raise RepositoryError(
                f"borg check found damage in {task.repository.path}: {found.rstrip('.')}",
                "do not repair before you have a copy; see borg check --help",
            )
    sliced = rules.max_duration is not None
    segment = _last_segment_checked(task.repository.path) if sliced else None
    return Checked(time.monotonic() - started, segment)


def _last_segment_checked(repository: Path) -> int | None:
    """Where borg notes that it left off; it takes the note away at the end (its repository.py)."""
    notes = configparser.ConfigParser(interpolation=None)
    try:
        notes.read(repository / "config")
        return notes.getint("repository", "last_segment_checked", fallback=None)
    except (configparser.Error, ValueError, OSError) as error:
        raise RepositoryError(f"cannot read {repository}/config: {error}") from error


def _would_prune(listing: str, before: Sequence[Archive]) -> list[Archive]:
    """borg says ``Would prune: NAME ... TIME [ID]`` on a line each."""
    doomed = [line for line in listing.splitlines() if line.startswith("Would prune:")]
    return [archive for archive in before if any(f"[{archive.id}]" in line for line in doomed)]
