"""``verify``: a random sample of the last backup, restored and compared with the source.

The source reads the sampled files once more, as an ordinary `create` under the rules it has: no
power is added for this. It makes an archive of its own of them, in the job's repository, since the
source may know no other; the comparison done, that is deleted again. Asked for by name the files
are another set of paths than the job's, of which the source has no cache: borg reads them really,
unless it was the very same sample that was compared before.

A source whose rules name the job's ``paths`` one by one lets no file below them be asked for. Then
what was restored has passed borg's checksums, and that is all that is said of it.
"""

from __future__ import annotations

import filecmp
import json
import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import click

from borg_pull.errors import BusyError, FailedError, RequestError, printable
from borg_pull.findings import many
from borg_pull.output import put
from borg_pull.pull import care, contents
from borg_pull.pull.by_hand import alone, logged
from borg_pull.pull.contents import Item
from borg_pull.pull.invocation import Invocation, tolerant
from borg_pull.pull.ledger import Ledger
from borg_pull.pull.log import LogFile
from borg_pull.pull.places import Places
from borg_pull.pull.progress import size
from borg_pull.pull.pull import Attempt, Task, attempt, hello
from borg_pull.pull.repositories import local
from borg_pull.pull.repository import LocalRepository
from borg_pull.pull.run import task
from borg_pull.pull.said import Greeting
from borg_pull.pull.source import ORIGINAL, escaped
from borg_pull.pull.stop import Stop, failing_by_signals
from borg_pull.values import MAX_PATHS, path_fault

SAMPLE = 20
MOST_BYTES = 1 << 30
"""Of a whole sample, so that a verification ends; larger files are not sampled."""
_REFUSED = (71, 77)
"""How a source answers when it will not or cannot read a path."""
_NOT_BY_NAME = "is not allowed"
_TRIES = 10
NOT_COMPARED = "not compared with the source, whose rules let no single files be asked for"


@dataclass
class Verified:
    """What a verification came to."""

    archive: str
    files: int = 0
    """Restored, which is checked by borg's checksums."""
    size: int = 0
    is_compared: bool = False
    """Whether the source let the files be asked for by name."""
    identical: int = 0
    changed: int = 0
    """Not comparable: changed or gone since the archive was made."""
    faults: list[str] = field(default_factory=list)


class VerificationError(FailedError):
    """The backup is not what it should be."""


@click.command(short_help="Restore a sample, and compare it.")
@click.argument("name", metavar="JOB")
@click.option(
    "--files",
    type=click.IntRange(1, MAX_PATHS),
    default=SAMPLE,
    show_default=True,
    help="How many files to take, at random.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@tolerant
def verify(invocation: Invocation, name: str, *, files: int, as_json: bool) -> int:
    """Restore random files of a job's last backup and compare them with the source's.

    What has changed on the source since the backup is counted as such. Exit code: 0 when all is as
    it should be, 2 when not; 78 where this host cannot read the repository (key_on).
    """
    config, places = invocation.config, invocation.places
    job = task(config, name)
    # What the source itself restores and compares is its own word: no verification.
    contents.readable_here(job, "latest / --dry-run, which has the source read and check it all")
    repository = local(config, job.repository_name)
    doubts: list[str] = []
    ledger = Ledger(places.ledger)
    try:
        ledger.recover()
        last = next(iter(ledger.successes(name, 1)), None)
        if last is None or last.archive is None:
            raise RequestError(f"job {name} has no backup yet", f"run: borg-pull run {name}")
        with (
            logged(ledger, job, places, "verify", doubts) as (run, log),
            alone(job, places),
            failing_by_signals(),
        ):
            there = repository.archive(last.archive)
            if there is None or there.id != last.archive_id:
                raise care.MissingArchivesError(name, [last.archive], care.NOTHING_DONE)
            found = _verified(job, repository, places, last.archive, files, log)
            ledger.update(run, archive=found.archive, files=found.files, original_size=found.size)
            if not found.is_compared:
                doubts.append(NOT_COMPARED)
            if found.faults:
                raise VerificationError(
                    f"{len(found.faults)} of {found.files} files of {printable(found.archive)} are "
                    f"not as they should be: {found.faults[0]}",
                    f"see borg-pull logs {run}, and borg-pull check {name}",
                )
    finally:
        ledger.close()
    put(_as_json(name, found) if as_json else _as_text(found))
    return 0


def _as_json(name: str, found: Verified) -> str:
    told = {
        "job": name,
        "archive": found.archive,
        "files": found.files,
        "size": found.size,
        "compared_with_source": found.is_compared,
        "identical": found.identical,
        "changed": found.changed,
    }
    return json.dumps(told, separators=(",", ":")) + "\n"


def _as_text(found: Verified) -> str:
    text = (
        f"restored {many(found.files, 'file')}, {size(found.size)}, of {printable(found.archive)}"
    )
    if found.is_compared:
        return f"{text}: {found.identical} as on the source, {found.changed} changed there since\n"
    return f"{text}: all have passed borg's checksums\n{NOT_COMPARED} (trees do)\n"


def _verified(
    job: Task, repository: LocalRepository, places: Places, archive: str, count: int, log: LogFile
) -> Verified:
    sample = _sample(contents.items(repository, archive, ()), count)
    if not sample:
        raise FailedError(f"archive {printable(archive)} holds no file that could be sampled")
    directory = places.state_dir / f"verify-{job.name}"
    # What a verification that was killed has left: the job's lock is ours.
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
    try:
        found = Verified(archive, len(sample), sum(item.size for item in sample))
        kept = directory / "kept"
        _restore(repository, archive, sample, kept)
        for item in sample:
            if _size_of(kept / item.path) != item.size:
                _fault(found, log, item, "cannot be restored whole")
        if found.faults:
            # Whatever the source says, or that it says nothing, must not hide this.
            return found
        greeting = hello(job.source, job.source_name, places.known_hosts, log=log)
        if greeting.protocol != ORIGINAL:
            _compare(found, job, repository, places, greeting, sample, directory, log)
        return found
    finally:
        try:
            shutil.rmtree(directory)
        except OSError as error:
            left = f"{directory} cannot be removed: {error.strerror}\n"
            log.write(printable(left).encode())


def _restore(
    repository: LocalRepository, archive: str, sample: Sequence[Item], directory: Path
) -> None:
    """Unpack the sample, as far as it is as large as the archive says. Raises FailedError."""
    most = sum(item.size for item in sample)

    def stay_within(_done: int, _all: int) -> None:
        if sum(_size_of(directory / item.path) or 0 for item in sample) > most:
            raise FailedError(
                f"archive {printable(archive)} holds more than the {size(most)} it speaks of",
                "no honest backup does: look who made it",
            )

    largest = max(item.size for item in sample)
    contents.extract(
        repository,
        archive,
        _patterns(sample),
        directory,
        largest=largest,
        is_kept=False,
        show=stay_within,
    )


def _sample(items: Iterator[Item], count: int) -> list[Item]:
    """``count`` files at random, or as many as stay within `MOST_BYTES`."""
    choice = random.SystemRandom()
    sample: list[Item] = []
    seen = 0
    for item in items:
        if not item.is_file or not 0 < item.size <= MOST_BYTES or path_fault(f"/{item.path}"):
            continue
        seen += 1
        if len(sample) < count:
            sample.append(item)
        elif (place := choice.randrange(seen)) < count:
            sample[place] = item
    choice.shuffle(sample)
    kept: list[Item] = []
    for item in sample:
        if sum(one.size for one in kept) + item.size <= MOST_BYTES:
            kept.append(item)
    return kept


def _compare(
    found: Verified,
    job: Task,
    repository: LocalRepository,
    places: Places,
    greeting: Greeting,
    sample: Sequence[Item],
    directory: Path,
    log: LogFile,
) -> None:
    """Have the source read the sample once more, and compare. Raises FailedError, BusyError."""
    prefix = f"verify-of-{job.name}@"
    _delete(repository, prefix)  # what a verification that was killed has left
    try:
        asked = _Asked(job, places, greeting, prefix, repository, log)
        name = asked.archive_of([f"/{item.path}" for item in sample])
        if name is None and not asked.is_by_name:
            return
        found.is_compared = True
        now: dict[str, Item] = {}
        if name is not None:
            now = {item.path: item for item in contents.items(repository, name, ())}
        same = [item for item in sample if _is_unchanged(item, now.get(item.path))]
        found.changed = len(sample) - len(same)
        if name is None or not same:
            return
        fresh = directory / "fresh"
        _restore(repository, name, same, fresh)
        for item in same:
            kept = directory / "kept" / item.path
            if filecmp.cmp(kept, fresh / item.path, shallow=False):
                found.identical += 1
            else:
                _fault(found, log, item, "has another content on the source, of the same time")
    finally:
        _delete(repository, prefix)


class _Asked:
    """Asking the source for single files."""

    def __init__(
        self,
        job: Task,
        places: Places,
        greeting: Greeting,
        prefix: str,
        repository: LocalRepository,
        log: LogFile,
    ) -> None:
        self._job = job
        self._places = places
        self._greeting = greeting
        self._prefix = prefix
        self._repository = repository
        self._log = log
        self.is_by_name = True
        """Whether the source lets files be asked for by name."""

    def archive_of(self, paths: list[str]) -> str | None:
        """The name of a new archive of those of ``paths`` that are still there.

        None when there are none, or when they may not be asked for. Raises FailedError, BusyError.
        """
        for _ in range(_TRIES):
            if not paths:
                return None
            came = self._pulled(paths)
            error = came.outcome.error or ""
            if came.archive_id is not None:
                return came.archive
            if came.busy:
                raise BusyError(f"source {self._job.source_name}: {error}")
            # Our own source's word on the one path that it stopped at.
            refused = next((path for path in paths if f"path {path!a} " in error), None)
            if came.exit not in _REFUSED or refused is None:
                raise FailedError(f"source {self._job.source_name}: {error}")
            if _NOT_BY_NAME in error:
                self.is_by_name = False
                return None
            paths = [path for path in paths if path != refused]
        raise FailedError(
            f"source {self._job.source_name}: files vanish while they are asked for",
            "try again when it is quiet there",
        )

    def _pulled(self, paths: list[str]) -> Attempt:
        stop = Stop()
        try:
            return attempt(
                self._task(paths),
                self._greeting,
                self._places,
                archives=self._repository,
                passphrase=self._repository.passphrase,
                earlier=(),
                usual_sizes=(),
                on_record=(),
                log=self._log,
                emit=lambda _event: None,
                stop=stop,
                deadline=time.monotonic() + self._job.job.deadline.total_seconds(),
            )
        finally:
            stop.close()

    def _task(self, paths: list[str]) -> Task:
        changes = {
            "paths": paths,
            "archive": f"{self._prefix}{{utcnow:%Y%m%dT%H%M%S}}",
            "minimum_size": 0,
        }
        return replace(self._job, job=self._job.job.model_copy(update=changes))


def _patterns(items: Sequence[Item]) -> list[str]:
    return [f"pf:{item.path}" for item in items]


def _is_unchanged(then: Item, now: Item | None) -> bool:
    return now is not None and (then.size, then.mtime) == (now.size, now.mtime)


def _size_of(path: Path) -> int | None:
    try:
        return os.lstat(path).st_size
    except OSError:
        return None


def _fault(found: Verified, log: LogFile, item: Item, what: str) -> None:
    text = printable(f"/{item.path} {what}")
    found.faults.append(text)
    log.write(text.encode() + b"\n")


def _delete(repository: LocalRepository, prefix: str) -> None:
    for archive in repository.archives(f"{escaped(prefix)}*"):
        repository.run(["delete", f"{repository.repository.path}::{archive.name}"])
