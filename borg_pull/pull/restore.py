"""``restore``: have a source put files of an archive back, into its own staging directory."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import click

from borg_pull.errors import (
    BusyError,
    FailedError,
    NotAllowedError,
    RequestError,
    printable,
)
from borg_pull.findings import many
from borg_pull.output import print_error, put
from borg_pull.pull import contents, secret, source
from borg_pull.pull.by_hand import alone, logged
from borg_pull.pull.invocation import Invocation, tolerant
from borg_pull.pull.ledger import Ledger
from borg_pull.pull.log import LogFile
from borg_pull.pull.outcome import BUSY
from borg_pull.pull.places import Places
from borg_pull.pull.progress import counting
from borg_pull.pull.pull import Conversation, Task, hello, sent_secret, ssh_command, stall_of
from borg_pull.pull.repositories import opened
from borg_pull.pull.said import Greeting
from borg_pull.pull.serve import Serving
from borg_pull.pull.stop import Stop
from borg_pull.values import path_fault

VERB = "restore"
_LISTED = b'"borg.output.list"'


@dataclass(frozen=True)
class Restored:
    """What a restore came to."""

    items: int
    """That borg named."""
    directory: str | None
    """On the source; None for a dry run."""
    session: str | None
    warnings: list[str]


@click.command(short_help="Put files back, on the source.")
@click.argument("name", metavar="JOB")
@click.argument("archive", metavar="ARCHIVE")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("--dry-run", is_flag=True, help="Read everything, and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@tolerant
def restore(
    invocation: Invocation,
    name: str,
    archive: str,
    paths: tuple[str, ...],
    *,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Have the source unpack paths of a job's archive into a new directory of its own.

    ARCHIVE may be "latest". A PATH is as the source has it, "/" is everything. Nothing on the
    source is overwritten: its admin moves the files to where they belong. The source must allow it.
    """
    config, places = invocation.config, invocation.places
    for path in paths:
        fault = path_fault(path)
        if fault is not None:
            raise RequestError(f"path {printable(path)} {fault}")
    ledger = Ledger(places.ledger)
    try:
        with opened(invocation, name) as (job, repository, stop):
            greeting = _granted(job, places, stop)
            on_record = [one.id for one in ledger.recorded(name)]
            found = contents.chosen(
                repository, config.archive_glob(name), archive, lambda: on_record
            )
            words = [VERB, "--log-json", "--list", *(["--dry-run"] if dry_run else [])]
            words += [str(job.repository.path), found.name, *paths]
            with logged(ledger, job, places, "restore") as (run, log), alone(job, places):
                ledger.update(run, archive=found.name)
                with counting(found.name) as show:
                    done = _restored(job, places, greeting, words, log, stop, show)
                ledger.update(run, session=done.session, files=done.items)
                if done.items == 0:
                    raise RequestError(
                        f"archive {printable(found.name)} has nothing of what was named",
                        f"see borg-pull browse {name} {printable(found.name)}",
                    )
    finally:
        ledger.close()
    if as_json:
        told = {
            "job": name,
            "source": job.source_name,
            "archive": found.name,
            "archive_id": found.id,
            "dry_run": dry_run,
            "items": done.items,
            "directory": done.directory,
            "session": done.session,
            "warnings": done.warnings,
        }
        put(json.dumps(told, separators=(",", ":")) + "\n")
    else:
        word = "would restore" if dry_run else "restored"
        put(f"{word} {many(done.items, 'item')} of {printable(found.name)}\n")
        if done.directory is not None:
            put(f"on source {job.source_name} they are in {done.directory}\n")
        for warning in done.warnings:
            print_error(warning, "yellow")
    return 1 if done.warnings else 0


def _granted(job: Task, places: Places, stop: Stop) -> Greeting:
    """What the source says of itself. Raises NotAllowedError where it restores nothing."""
    greeting = hello(job.source, job.source_name, places.known_hosts, stop)
    if VERB not in greeting.verbs:
        raise NotAllowedError(
            f"source {job.source_name} does not allow {VERB}",
            f'in the whitelist there, add "{VERB}" to client.{greeting.client}.allow and set '
            f"client.{greeting.client}.restore_to; or take borg-pull extract",
        )
    return greeting


def _restored(
    job: Task,
    places: Places,
    greeting: Greeting,
    words: Sequence[str],
    log: LogFile,
    stop: Stop,
    show: Callable[[int, int | None], None],
) -> Restored:
    """Send the request and serve the repository for it. Raises FailedError and the like."""
    items = 0

    def hear(line: bytes) -> None:
        nonlocal items
        if _LISTED in line:
            items += 1
            show(items, None)

    request = source.query(greeting, job.source, list(words))
    sent = sent_secret(
        job, greeting, lambda: secret.passphrase(job.repository_name, job.repository)
    )
    # borg's lock has to be written: the repository cannot be served for reading alone.
    with Serving(job.repository, places.runtime_dir, log, append_only=True) as serving:
        deadline = time.monotonic() + job.job.deadline.total_seconds()
        talk = Conversation(
            serving, stop, deadline, log, on_line=hear, stall=stall_of(job, greeting)
        )
        talk.pull(ssh_command(job, places, request, serving), sent)
    if serving.config_fault is not None:
        raise FailedError(f"source {job.source_name}: {serving.config_fault}")
    result, complaints = talk.transcript.result, talk.transcript.complaints
    if talk.given_up is not None or talk.exit not in (0, 1):
        last = complaints[-1] if complaints else talk.ssh_said or f"exit {talk.exit}"
        text = talk.given_up or (result and result.error) or last
        kind = BusyError if talk.exit == BUSY else FailedError
        raise kind(f"source {job.source_name}: {text}")
    return Restored(
        items=items,
        directory=None if result is None else result.directory,
        session=None if result is None else result.session,
        warnings=[*complaints] if talk.exit == 1 else [],
    )
