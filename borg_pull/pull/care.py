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
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

from borg_pull.errors import ConfigurationError, FailedError, printable
from borg_pull.pull import retention
from borg_pull.pull.config import Check, Retention
from borg_pull.pull.ledger import Ledger
from borg_pull.pull.pull import Task
from borg_pull.pull.repository import Archive, Archives, LocalRepository, RepositoryError
from borg_pull.pull.retention import Recorded
from borg_pull.pull.source_repository import is_stored

NAMED = 5
"""How many missing archives a message names."""

_AT_ONCE = 200  # archives that one borg deletes

MISSING = "archives on record are missing from the repository"
"""In every message of that."""

NOTHING_DELETED = "nothing was deleted"
NOTHING_DONE = "compact nothing"
NOTHING_FREED = "what was deleted is not freed yet"


class MissingArchivesError(FailedError):
    """Archives on record are not in the repository any more: an alarm, not a nuisance."""

    def __init__(self, job: str, missing: Sequence[str], so_far: str = NOTHING_DELETED) -> None:
        super().__init__(
            f"job {job}: {len(missing)} {MISSING}: {_some(missing)}",
            f"{so_far}; find out who did that, the repository's transactions before it "
            f"can be had back; if it was you, run: borg-pull forget {job}",
        )


class UnrecordedArchivesError(FailedError):
    """There are archives that no run on record made, and a borg elsewhere would count them."""

    def __init__(self, job: str, archives: Sequence[Archive]) -> None:
        names = [archive.name for archive in archives]
        super().__init__(
            f"job {job}: {len(names)} archives of its name were made by none of its runs: "
            f"{_some(names)}",
            f"{NOTHING_DELETED}, for they would take the place of others; find out who made them, "
            f"and delete them, or if it was you, run: borg-pull adopt {job}",
        )


class DisobedientError(FailedError):
    """A source has deleted archives that it was to keep."""

    def __init__(self, job: str, archives: Sequence[Archive]) -> None:
        names = [archive.name for archive in archives]
        super().__init__(
            f"job {job}: the source deleted archives that retention keeps: {_some(names)}",
            f"{NOTHING_FREED}; find out why, the repository's transactions before it can be had "
            f"back; if it is all right, run: borg-pull forget {job}",
        )


class DamagedArchivesError(FailedError):
    """Archives are not whole, and to free space would make that final."""


@dataclass(frozen=True)
class Pruned:
    """What pruning did, or with a dry run would have done."""

    kept: list[Archive]
    deleted: list[Archive]
    unrecorded: list[Archive]
    """Archives of the job's name that no run on record made; nothing is done with them."""

    def remark(self, job: str) -> str:
        """What to say of those."""
        names = [archive.name for archive in self.unrecorded]
        return (
            f"{len(names)} archives of this name were made by no run of job {job}, and stay: "
            f"{_some(names)}; if they are yours, run: borg-pull adopt {job}"
        )


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
    beside: Mapping[str, str],
    *,
    dry_run: bool = False,
) -> Pruned:
    """Delete the job's archives that its retention does not keep, and free their space.

    Which those are the ledger says, not the repository (see `retention`). ``beside`` are the other
    jobs of the repository, name to glob: what theirs have lost would be lost for good, too.

    A source that deletes, because it alone can, is served append-only: what it deletes beyond its
    orders is found out before `_compact` makes it final.

    Raises MissingArchivesError, UnrecordedArchivesError, DisobedientError, DamagedArchivesError,
    ConfigurationError, RepositoryError, NotAllowedError.
    """
    rules = retention_of(task)
    before = archives.archives(glob)
    _check_others(archives, ledger, beside)
    recorded = ledger.recorded(task.name)
    lost = _missing(task, {one.id: one.name for one in recorded}, before, glob)
    if lost:
        raise MissingArchivesError(task.name, [*lost.values()])
    listed = {archive.id for archive in before}
    present = [one for one in recorded if one.id in listed]
    known = {one.id for one in recorded}
    unrecorded = [archive for archive in before if archive.id not in known]
    is_there = task.repository.key_on == "source"
    if is_there:
        doomed = _prune_there(task, archives, before, unrecorded, glob, dry_run=dry_run)
    else:
        doomed = _delete_here(task, archives, before, present, glob, dry_run=dry_run)
    if dry_run:
        gone = {archive.id for archive in doomed}
        return _pruned(before, gone, known)
    after = archives.archives(glob)
    gone = {archive.id for archive in before} - {archive.id for archive in after}
    if is_there:
        sure = retention.surely_kept(present, rules, now=datetime.now(UTC))
        beyond = [archive for archive in before if archive.id in sure & gone]
        if beyond:
            raise DisobedientError(task.name, beyond)
    else:
        gone &= {archive.id for archive in doomed}
    ledger.mark_gone(task.name, sorted(gone))
    lost = _missing(task, ledger.kept(task.name), after, glob)
    if lost:
        raise MissingArchivesError(task.name, [*lost.values()], NOTHING_FREED)
    if rules.compact and gone:
        # What a source says of its archives is its own word.
        if rules.check_before_compact and not is_there:
            _check_whole(task, archives)
        _bare(task, archives).run(["compact", str(task.repository.path)])
    return _pruned(before, gone, known)


def _pruned(before: Sequence[Archive], gone: Collection[str], known: Collection[str]) -> Pruned:
    left = [archive for archive in before if archive.id not in gone]
    return Pruned(
        kept=[archive for archive in left if archive.id in known],
        deleted=[archive for archive in before if archive.id in gone],
        unrecorded=[archive for archive in left if archive.id not in known],
    )


def _check_others(archives: Archives, ledger: Ledger, beside: Mapping[str, str]) -> None:
    for job, glob in beside.items():
        on_record = ledger.kept(job)
        if on_record:
            present = {archive.id for archive in archives.archives(glob)}
            lost = unlisted(on_record, present, glob)
            if lost:
                raise MissingArchivesError(job, [*lost.values()])


def _delete_here(
    task: Task,
    archives: Archives,
    before: Sequence[Archive],
    present: Sequence[Recorded],
    glob: str,
    *,
    dry_run: bool,
) -> list[Archive]:
    """Delete those on record that the rules do not keep, each by its name."""
    assert task.job.retention is not None
    keep = retention.kept(present, task.job.retention, now=datetime.now(UTC))
    doomed = {one.id for one in present} - keep
    deleted = [archive for archive in before if archive.id in doomed]
    leftovers = [archive for archive in archives.checkpoints(glob) if archive.id not in keep]
    if not dry_run:
        names = [archive.name for archive in (*leftovers, *deleted)]
        for at in range(0, len(names), _AT_ONCE):
            path = str(task.repository.path)
            archives.run(["delete", "--", path, *names[at : at + _AT_ONCE]])
    return deleted


def _prune_there(
    task: Task,
    archives: Archives,
    before: Sequence[Archive],
    unrecorded: Sequence[Archive],
    glob: str,
    *,
    dry_run: bool,
) -> list[Archive]:
    """Have the source's borg prune, which goes by the rules and by its own clock; what it would."""
    rules = task.job.retention
    assert rules is not None
    if unrecorded:
        raise UnrecordedArchivesError(task.name, unrecorded)
    words = ["prune", "--list", "--glob-archives", glob, *keep_options(rules)]
    if dry_run:
        answer = archives.run([*words, "--dry-run", str(task.repository.path)])
        return _would_prune(answer.stderr, before)
    archives.run([*words, str(task.repository.path)])
    return []


def _check_whole(task: Task, archives: Archives) -> None:
    """Raise DamagedArchivesError if an archive lacks something."""
    answer = archives.run(["check", "--archives-only", str(task.repository.path)])
    if answer.code != 0:
        lines = [line for line in answer.stderr.splitlines() if line.strip()]
        raise DamagedArchivesError(
            f"archives in {task.repository.path} are not whole: "
            f"{printable(lines[0]) if lines else 'borg check warned'}",
            f"{NOTHING_FREED}; find out why, the repository's transactions before it can be had "
            "back; see the log",
        )


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


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return printable(", ".join(names[:NAMED])) + more


def _would_prune(listing: str, before: Sequence[Archive]) -> list[Archive]:
    """borg says ``Would prune: NAME ... TIME [ID]`` on a line each."""
    doomed = [line for line in listing.splitlines() if line.startswith("Would prune:")]
    return [archive for archive in before if any(f"[{archive.id}]" in line for line in doomed)]
