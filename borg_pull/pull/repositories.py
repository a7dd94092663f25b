"""What is done by hand to a job's repository, and what a person says of its archives."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Literal

import click

from borg_pull.errors import FailedError, RequestError, printable
from borg_pull.findings import many
from borg_pull.output import print_error, print_table, put
from borg_pull.pull import care, secret
from borg_pull.pull.by_hand import alone, logged
from borg_pull.pull.condition import rfc3339
from borg_pull.pull.config import Config
from borg_pull.pull.faults import nearest
from borg_pull.pull.invocation import Invocation, configured, tolerant
from borg_pull.pull.ledger import Ledger
from borg_pull.pull.log import LogFile
from borg_pull.pull.pull import Task
from borg_pull.pull.repository import Archive, Archives, LocalRepository
from borg_pull.pull.run import report, task
from borg_pull.pull.source_repository import SourceRepository
from borg_pull.pull.stop import Stop, set_by_signals

ENCRYPTION = ("repokey-blake2", "repokey", "authenticated-blake2", "authenticated", "none")


@contextmanager
def opened(
    invocation: Invocation, name: str, log: LogFile | None = None
) -> Iterator[tuple[Task, Archives, Stop]]:
    """The job of that name and its repository, by whoever has its key; ``log`` is its run's.

    Within, signals set the stop, and what is asked of the repository ends in order. Raises
    RequestError.
    """
    config, places = invocation.config, invocation.places
    job = task(config, name)
    stop = Stop()
    with closing(stop), tempfile.TemporaryFile() as nowhere, set_by_signals(stop):
        if job.repository.key_on == "server":
            yield job, local(config, job.repository_name, stop, log), stop
            return
        archives = SourceRepository(
            job,
            places,
            greeting=None,
            passphrase=lambda: secret.passphrase(job.repository_name, job.repository),
            log=log or nowhere,
            stop=stop,
        )
        yield job, archives, stop


@contextmanager
def _recorded(
    invocation: Invocation, ledger: Ledger, job: Task, kind: Literal["check", "prune"]
) -> Iterator[LogFile]:
    """What happens within is a run on record, and told of like any other; its log."""
    try:
        with logged(ledger, job, invocation.places, kind) as (_run, log):
            yield log
    finally:
        for untold in report(invocation.config, ledger):
            print_error(untold.line(), "yellow")


def local(
    config: Config, name: str, stop: Stop | None = None, log: LogFile | None = None
) -> LocalRepository:
    """The repository of that name. Raises RequestError."""
    repository = config.repository.get(name)
    if repository is None:
        raise RequestError(f"there is no repository {name}{nearest(name, config.repository)}")
    return LocalRepository(repository, lambda: secret.passphrase(name, repository), stop, log)


@click.command(short_help="Make a repository.")
@click.argument("name", metavar="REPOSITORY")
@click.option("--encryption", type=click.Choice(ENCRYPTION), default=ENCRYPTION[0])
@configured
def init(invocation: Invocation, name: str, encryption: str) -> int:
    """Make the repository that the configuration names, with its passphrase."""
    repository = local(invocation.config, name)
    path = repository.repository.path
    if encryption != "none" and secret.passphrase(name, repository.repository) is None:
        raise RequestError(
            f"repository {name} has no passphrase in the configuration",
            "give it one, or --encryption none",
        )
    repository.run(["init", "--encryption", encryption, "--make-parent-dirs", str(path)])
    put(f"made {path} ({encryption})\n")
    if encryption != "none":
        put(f"keep a copy of its key elsewhere: borg key export {path} FILE\n")
    return 0


@click.command(short_help="List a job's archives.")
@click.argument("name", metavar="JOB")
@click.option("--json", "as_json", is_flag=True, help="One JSON object an archive and line.")
@tolerant
def archives(invocation: Invocation, name: str, *, as_json: bool) -> int:
    """List the archives of a job that are in its repository, oldest first."""
    with opened(invocation, name) as (_job, repository, _stop):
        found = repository.archives(invocation.config.archive_glob(name))
    if as_json:
        for archive in found:
            put(json.dumps(_archive_object(archive), separators=(",", ":")) + "\n")
    else:
        rows = [([printable(one.name), rfc3339(one.time), one.id], "") for one in found]
        print_table(("ARCHIVE", "MADE", "ID"), rows)
    return 0


@click.command(short_help="Delete what retention does not keep.")
@click.argument("name", metavar="JOB")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, and delete nothing.")
@configured
def prune(invocation: Invocation, name: str, *, dry_run: bool) -> int:
    """Delete the archives of a job that its retention does not keep, and free their space.

    Nothing is deleted when an archive on record is missing from the repository, or while the last
    one is much smaller than those before.
    """
    job = task(invocation.config, name)
    care.retention_of(job)
    glob = invocation.config.archive_glob(name)
    with ExitStack() as stack:
        ledger = stack.enter_context(closing(_ledger(invocation)))
        log = None
        if not dry_run:
            _refuse_shrunk(ledger, name)
            stack.enter_context(alone(job, invocation.places))
            log = stack.enter_context(_recorded(invocation, ledger, job, "prune"))
        _, repository, _ = stack.enter_context(opened(invocation, name, log))
        beside = invocation.config.beside(name)
        done = care.prune(job, repository, ledger, glob, beside, dry_run=dry_run)
    word = "would delete" if dry_run else "deleted"
    for archive in done.deleted:
        put(f"{word} {printable(archive.name)}\n")
    put(f"{word} {many(len(done.deleted), 'archive')}, kept {len(done.kept)}\n")
    if done.unrecorded:
        print_error(done.remark(name), "yellow")
    return 0


def _refuse_shrunk(ledger: Ledger, job: str) -> None:
    """Raise FailedError while the job's last archive may lack most of the data."""
    last = ledger.held(job)
    if last is not None:
        raise FailedError(
            f"job {job}: nothing was deleted, for its last archive, {last.archive}, is much "
            "smaller than those before",
            f"if that is right: borg-pull accept {job}",
        )


@click.command(short_help="Accept that a backup has become smaller.")
@click.argument("name", metavar="JOB")
@configured
def accept(invocation: Invocation, name: str) -> int:
    """Take the size of a job's last archive as usual: what is missing was removed on purpose.

    Until then retention deletes nothing, because that archive would be kept in place of whole ones.
    """
    config = invocation.config
    task(config, name)
    with closing(_ledger(invocation)) as ledger:
        last = ledger.held(name)
        if last is None:
            put("the last archive is not much smaller than those before\n")
            return 0
        ledger.accept(last.id)
        for untold in report(config, ledger):
            print_error(untold.line(), "yellow")
    put(f"{printable(last.archive or '-')} is taken as usual\n")
    return 0


@click.command(short_help="Verify a job's repository.")
@click.argument("name", metavar="JOB")
@tolerant
def check(invocation: Invocation, name: str) -> int:
    """Verify a job's repository now, as its check table says."""
    job = task(invocation.config, name)
    care.rules_of_check(job)
    with (
        closing(_ledger(invocation)) as ledger,
        alone(job, invocation.places),
        _recorded(invocation, ledger, job, "check") as log,
        opened(invocation, name, log) as (_, repository, _stop),
    ):
        found = care.check(job, repository, on_line=_pass_on)
    how_far = "" if found.segment is None else f", up to segment {found.segment}; to be continued"
    put(f"{job.repository.path}: no damage found in {found.seconds:.0f} s{how_far}\n")
    return 0


def _ledger(invocation: Invocation) -> Ledger:
    return Ledger(invocation.places.ledger)


def _pass_on(line: bytes) -> None:
    sys.stderr.write(f"{printable(line.decode('utf-8', 'replace').rstrip())}\n")


@click.command(short_help="Accept that archives are gone.")
@click.argument("name", metavar="JOB")
@click.option("--yes", is_flag=True, help="Do not ask.")
@configured
def forget(invocation: Invocation, name: str, *, yes: bool) -> int:
    """Note that the archives of a job that are missing from its repository were deleted on purpose.

    Until then retention deletes nothing, because whoever deleted them may be an attacker.
    """
    glob = invocation.config.archive_glob(name)
    with closing(_ledger(invocation)) as ledger:
        with opened(invocation, name) as (job, repository, _stop):
            lost = care.missing(job, repository, ledger, glob)
        if not lost:
            put("no archive on record is missing\n")
            return 0
        for archive in sorted(lost.values()):
            put(f"missing: {printable(archive)}\n")
        if not yes:
            try:
                agreed = click.confirm(f"Were these {len(lost)} deleted on purpose?", err=True)
            except click.Abort as error:
                if sys.stdin.isatty():
                    raise
                raise RequestError("nobody answers", "give --yes if they were") from error
            if not agreed:
                raise click.Abort
        ledger.mark_gone(name, list(lost))
    put(f"no more expected: {many(len(lost), 'archive')}\n")
    return 0


@click.command(short_help="Take archives on record that no run made.")
@click.argument("name", metavar="JOB")
@click.option("--yes", is_flag=True, help="Do not ask.")
@configured
def adopt(invocation: Invocation, name: str, *, yes: bool) -> int:
    """Have retention count, and delete, archives of a job's name that none of its runs made.

    Such as those of the time before borg-pull. Whoever may write into the repository can make them,
    with any date: adopt only what you know.
    """
    glob = invocation.config.archive_glob(name)
    with closing(_ledger(invocation)) as ledger:
        with opened(invocation, name) as (job, repository, _stop):
            known = ledger.known(name)
            found = [one for one in repository.archives(glob) if one.id not in known]
        if not found:
            put("all archives are on record\n")
            return 0
        for archive in found:
            put(f"{rfc3339(archive.time)}  {printable(archive.name)}\n")
        if not yes:
            click.confirm(f"Take these {len(found)} on record?", abort=True, err=True)
        for archive in found:
            run = ledger.begin(
                name,
                job.source_name,
                job.repository_name,
                kind="adopt",
                log=None,
                started=archive.time,
            )
            ledger.finish(run, "success", archive=archive.name, archive_id=archive.id)
    put(f"{len(found)} archives are on record now\n")
    return 0


def _archive_object(archive: Archive) -> dict[str, str]:
    return {"archive": archive.name, "id": archive.id, "time": rfc3339(archive.time)}
