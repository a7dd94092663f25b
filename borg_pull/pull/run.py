"""``borg-pull run``: choose jobs, pull them, and tell whoever wants to know."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import click

from borg_pull.errors import (
    BorgPullError,
    ConfigurationError,
    RequestError,
    SystemRefusedError,
)
from borg_pull.output import print_error
from borg_pull.pull import notify, secret
from borg_pull.pull.batch import Batch, our_fault
from borg_pull.pull.condition import conditions, start_of
from borg_pull.pull.config import Config
from borg_pull.pull.due import is_due
from borg_pull.pull.faults import ConfigFaultsError, nearest
from borg_pull.pull.invocation import Invocation, tolerant
from borg_pull.pull.ledger import Ledger
from borg_pull.pull.outcome import ORDER
from borg_pull.pull.places import Places
from borg_pull.pull.progress import JsonScreen, PeopleScreen, Screen
from borg_pull.pull.pull import Task
from borg_pull.pull.serve import remove_abandoned
from borg_pull.pull.stop import Stop, set_by_signals

_ALARM = "ledger-alarm"

EXIT_CODES = """
Exit codes: 0 every job made its backup; 1 with warnings; 2 a job failed, or was ended; 64 for a
wrong command line, 71 when the system refuses: a full disk, for one, on which runs cannot be put on
record; 78 when the configuration is wrong: then the jobs of the files in pull.d that are sound have
run all the same, but nothing was pruned. A job that is still running elsewhere is skipped, and
changes none of them.
"""


@click.command(epilog=EXIT_CODES, short_help="Pull backups.")
@click.argument("names", metavar="JOB...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Every job of the configuration.")
@click.option("--due", is_flag=True, help="Every job whose schedule says so.")
@click.option("--jobs", "workers", type=click.IntRange(1, 256), help="Pulls at once.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object an event and line.")
@click.option("--quiet", is_flag=True, help="Print warnings and failures alone.")
@tolerant
def run(
    invocation: Invocation,
    names: tuple[str, ...],
    *,
    every: bool,
    due: bool,
    workers: int | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Pull the backups of the named jobs, of all, or of those that are due."""
    if sum((bool(names), every, due)) != 1:
        given = "one of them alone" if names or every or due else "see borg-pull run --help"
        raise RequestError("name jobs, or give --all or --due", given)
    config, places = invocation.config, invocation.places
    try:
        with alarmed(config, places):
            worst, batch = _run(config, places, names, due, workers, as_json=as_json, quiet=quiet)
            for fault in batch.faults:
                raise fault
            if batch.verdicts:
                _calm(config, places)
    except BorgPullError as fault:
        if not config.faults:
            raise
        print_error(fault.line(), "yellow")
    return ConfigurationError.exit_code if config.faults else worst


def _run(
    config: Config,
    places: Places,
    names: Sequence[str],
    due: bool,
    workers: int | None,
    *,
    as_json: bool,
    quiet: bool,
) -> tuple[int, Batch]:
    """The worst that came of it as an exit code, and what was run."""
    ledger = Ledger(places.ledger)
    try:
        for lost in ledger.recover():
            print_error(f"run {lost.id} of {lost.job} was interrupted", "yellow")
        remove_abandoned(places.runtime_dir)
        chosen = _chosen(config, ledger, names, due=due)
        screen: Screen = JsonScreen() if as_json else PeopleScreen(quiet=quiet)
        stop = Stop()
        batch = _batch(config, ledger, places, workers, screen, stop)
        with screen, set_by_signals(stop, batch.wake):
            verdict = batch.run([task(config, name) for name in chosen])
        worst = max(ORDER.index(verdict), _told(config, ledger, batch))
        _remove_old_logs(places.logs, config.settings.keep_logs.total_seconds())
        return worst, batch
    finally:
        ledger.close()


@contextmanager
def alarmed(config: Config, places: Places) -> Iterator[None]:
    """Have people told when this host keeps runs from being put on record.

    What was told else stands in the ledger, which then cannot be asked: here a file's age does it.
    """
    try:
        yield
    except SystemRefusedError as error:
        stamp = places.runtime_dir / _ALARM
        age = None
        with suppress(OSError):
            age = time.time() - stamp.stat().st_mtime
        if age is None or not 0 <= age < config.notify.repeat_every.total_seconds():
            text = f"this host cannot record what is pulled, so nothing may be: {error.line()}"
            _send(config, text, is_bad=True)
            with suppress(OSError):
                stamp.unlink(missing_ok=True)
                stamp.touch(mode=0o600)
        raise


def _calm(config: Config, places: Places) -> None:
    """Tell that it can again, if it was told that it cannot."""
    stamp = places.runtime_dir / _ALARM
    if stamp.exists():
        _send(config, "what is pulled is on record again", is_bad=False)
        stamp.unlink(missing_ok=True)


def _send(config: Config, text: str, *, is_bad: bool) -> None:
    file = config.notify.urls_file
    if file is None:
        return
    try:
        notify.deliver(secret.lines(file), "borg-pull: ledger", text, is_bad=is_bad)
    except BorgPullError as fault:
        print_error(fault.line(), "yellow")


def task(config: Config, name: str) -> Task:
    """The job of that name with all it refers to. Raises RequestError, ConfigFaultsError."""
    job = config.job.get(name)
    if job is None and config.faults:
        raise ConfigFaultsError(config.faults)
    if job is None:
        raise RequestError(f"there is no job {name}{nearest(name, config.job)}")
    source, repository = config.source[job.source], config.repository[job.repository]
    return Task(name, job, job.source, source, job.repository, repository)


def _chosen(config: Config, ledger: Ledger, names: Sequence[str], *, due: bool) -> list[str]:
    if names:
        for name in names:
            task(config, name)
        return list(dict.fromkeys(names))
    if not due:
        return list(config.job)
    now = datetime.now(UTC)
    last = {name: start_of(run, now) for name, run in ledger.latest(config.job).items()}
    return [name for name, job in config.job.items() if is_due(job, last.get(name), now)]


def _batch(
    config: Config, ledger: Ledger, places: Places, workers: int | None, screen: Screen, stop: Stop
) -> Batch:
    secrets: dict[str, bytes | None] = {}

    def passphrase(one: Task) -> bytes | None:
        name = one.repository_name
        if name not in secrets:
            secrets[name] = secret.passphrase(name, one.repository)
        return secrets[name]

    return Batch(
        config,
        ledger,
        places,
        workers=workers or config.settings.jobs,
        passphrase=passphrase,
        emit=screen.show,
        stop=stop,
    )


def _told(config: Config, ledger: Ledger, batch: Batch) -> int:
    """Pings, notifications, metrics; what cannot be delivered is a warning, never silent."""
    faults: list[BorgPullError] = []
    for name, verdict in batch.verdicts.items():
        file = config.job[name].ping_url_file
        if verdict != "failure" and file is not None:
            _attempt(faults, lambda file=file: notify.ping(file))
    faults += report(config, ledger)
    for fault in faults:
        print_error(fault.line(), "yellow")
    return 1 if faults else 0


def report(config: Config, ledger: Ledger) -> list[BorgPullError]:
    """Write the metrics and tell the news; what went wrong with that."""
    now = datetime.now(UTC)
    found = conditions(config, ledger, now)
    faults: list[BorgPullError] = []
    textfile = config.metrics.textfile
    if textfile is not None:
        from borg_pull.pull import metrics  # whose library is a tenth of a start

        _attempt(faults, lambda: metrics.write(textfile, config, found, now))
    urls_file = config.notify.urls_file
    if urls_file is not None:
        _attempt(
            faults,
            lambda: notify.tell(
                found,
                ledger,
                secret.lines(urls_file),
                now,
                repeat_every=config.notify.repeat_every,
                warnings=config.notify.warnings,
                digest_at=config.notify.digest,
                faults=config.faults,
            ),
        )
    return faults


def _attempt(faults: list[BorgPullError], act: object) -> None:
    assert callable(act)
    try:
        act()
    except BorgPullError as error:
        faults.append(error)
    except Exception as error:  # noqa: BLE001 - the rest is to be told all the same
        faults.append(our_fault(error))


def _remove_old_logs(logs: Path, seconds: float) -> None:
    oldest = time.time() - seconds
    for log in logs.iterdir():
        try:
            if log.stat().st_mtime < oldest:
                log.unlink()
        except FileNotFoundError:
            continue  # another borg-pull was first
        except OSError as error:
            sys.stderr.write(f"borg-pull: {log}: {error.strerror}\n")
