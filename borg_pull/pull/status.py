"""``status``, ``history`` and ``logs``: what the ledger knows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from borg_pull.errors import BorgPullError, ConfigurationError, RequestError, printable
from borg_pull.output import print_table, put
from borg_pull.pull.condition import Condition, conditions, rfc3339
from borg_pull.pull.config import Config
from borg_pull.pull.faults import nearest
from borg_pull.pull.fields import duration
from borg_pull.pull.invocation import Invocation, tolerant
from borg_pull.pull.ledger import Ledger, Run
from borg_pull.pull.progress import size

BARS = "▁▂▃▄▅▆▇█"
_STYLES = {
    "ok": "green",
    "warning": "yellow",
    "failing": "bold red",
    "stale": "bold red",
    "never": "bold red",
    "success": "green",
    "failure": "bold red",
    "interrupted": "red",
    "skipped": "dim",
}


@click.command(short_help="Tell whether the backups are fine.")
@click.argument("names", metavar="[JOB]...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--tell", is_flag=True, help="Also send notifications and write metrics.")
@tolerant
def status(invocation: Invocation, names: tuple[str, ...], *, as_json: bool, tell: bool) -> int:
    """Tell of each job: its last backup, age, outcome, sizes, and when it is due.

    Exit code: 78 when a file in pull.d is wrong, and its jobs left out; else 0 when every job has a
    fresh backup and the last run made one, 1 when not, or when the last archive is much smaller
    than those before.
    """
    config = invocation.config
    if names:
        from borg_pull.pull.run import task  # late: it brings all that pulling takes

        for name in names:
            task(config, name)
    now = datetime.now(UTC)
    with _alarmed(invocation) if tell else nullcontext():
        ledger = Ledger(invocation.places.ledger)
        try:
            ledger.recover()
            found = conditions(config, ledger, now)
            faults = _told(config, ledger) if tell else []
        finally:
            ledger.close()
    if names:
        found = [one for one in found if one.job in names]
    if as_json:
        told: dict[str, Any] = {"time": rfc3339(now), "jobs": [one.as_json() for one in found]}
        told["configuration_faults"] = [fault.text() for fault in config.faults]
        put(_json(told | {"jobs_left_out": config.left_out}))
    else:
        headings = ("JOB", "STATE", "LAST BACKUP", "AGE", "SIZE", "TREND", "NEXT", "VERIFIED")
        print_table(
            headings,
            [(_cells(one), _STYLES[one.state]) for one in found],
            expendable=("TREND", "NEXT", "SIZE", "AGE"),
            ends_in_prose=False,
        )
        for one in found:
            if one.state != "ok":
                put(f"{why(one)}\n")
        for fault in config.faults:
            put(f"configuration: {fault.text()}\n")
        if config.left_out:
            put(f"left out for that: {', '.join(config.left_out)}\n")
    if faults:
        raise faults[0]
    if config.faults:
        return ConfigurationError.exit_code
    return 0 if all(one.is_fine for one in found) else 1


def _alarmed(invocation: Invocation) -> AbstractContextManager[None]:
    from borg_pull.pull.run import alarmed

    return alarmed(invocation.config, invocation.places)


def _told(config: Config, ledger: Ledger) -> list[BorgPullError]:
    from borg_pull.pull.run import report

    return report(config, ledger)


@click.command(short_help="List past runs.")
@click.argument("names", metavar="[JOB]...", nargs=-1)
@click.option("--limit", type=click.IntRange(1, 100_000), default=30, show_default=True)
@click.option("--since", metavar="SPAN", help="Only of the last SPAN, such as 7d.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a run and line.")
@tolerant
def history(
    invocation: Invocation,
    names: tuple[str, ...],
    *,
    limit: int,
    since: str | None,
    as_json: bool,
) -> int:
    """List runs, newest first."""
    ledger = Ledger(invocation.places.ledger)
    try:
        ledger.recover()
        for name in names:
            # One that is gone from the configuration still has its history.
            if name not in invocation.config.job and not ledger.runs(name, limit=1):
                known = nearest(name, invocation.config.job)
                raise RequestError(f"there is no job {name}{known}, and no run of one")
        runs = _runs(ledger, names, limit, since)
    finally:
        ledger.close()
    if as_json:
        put("".join(_json(run_object(run)) for run in runs))
        return 0
    headings = ("RUN", "JOB", "KIND", "STARTED", "TOOK", "OUTCOME", "FILES", "SIZE", "NEW", "ERROR")
    print_table(
        headings,
        [(_run_cells(run), _STYLES.get(run.outcome or "", "")) for run in runs],
        expendable=("NEW", "FILES", "TOOK", "SIZE"),
    )
    return 0


@click.command(short_help="Show the log of a run.")
@click.argument("run", type=int)
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object, with the lines as they are."
)
@tolerant
def logs(invocation: Invocation, run: int, *, as_json: bool) -> int:
    """Print what the source, borg and borg-pull said of a run; history has its number.

    How far borg had come when is left out. Lines that begin with "borg-pull:" and a time are this
    program's own.
    """
    ledger = Ledger(invocation.places.ledger)
    try:
        found = ledger.get(run)
    finally:
        ledger.close()
    if found is None:
        raise RequestError(f"there is no run {run}", "see borg-pull history")
    if found.log is None:
        why = "" if found.error is None else f": {found.error}"
        raise RequestError(f"run {run} has no log", f"it was {found.outcome}{why}")
    try:
        text = Path(found.log).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise RequestError(f"the log of run {run} is not kept any more") from None
    # What a source can write ends a line for str.splitlines, and the next could look like ours.
    lines = text.removesuffix("\n").split("\n") if text else []
    if as_json:
        put(_json({**run_object(found), "lines": lines}))
        return 0
    told = [text for line in lines for text in _log_lines(line)]
    if found.finished is None:
        told.append("(the run goes on)")
    put("".join(f"{printable(line)}\n" for line in told))
    return 0


def _log_lines(line: str) -> list[str]:
    """A line of a log for people: JSON is the source's, and says much that is of the moment."""
    try:
        said = json.loads(line)
        kind = said["type"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return [line]
    if kind in _OF_THE_MOMENT:
        return []
    if kind == "log_message":
        return [f"source: {said.get('levelname')}: {text}" for text in _text_of(said)]
    if kind == "borg_pull_result":
        why = "" if said.get("error") is None else f": {said['error']}"
        return [f"source: {said.get('result')}, session {said.get('session')}{why}"]
    return [f"source: {text}" for text in _text_of(said)] or [line]


_OF_THE_MOMENT = ("archive_progress", "progress_message", "progress_percent")


def _text_of(said: dict[str, Any]) -> list[str]:
    return str(said.get("message", "")).splitlines()


def _runs(ledger: Ledger, names: Sequence[str], limit: int, since: str | None) -> list[Run]:
    moment = None
    if since is not None:
        try:
            moment = datetime.now(UTC) - duration(since)
        except (ValueError, OverflowError) as error:
            raise RequestError(f"--since {since}: {error}") from None
    if not names:
        return ledger.runs(limit=limit, since=moment)
    found = [run for name in names for run in ledger.runs(name, limit=limit, since=moment)]
    return sorted(found, key=lambda run: (run.started, run.id), reverse=True)[:limit]


def run_object(run: Run) -> dict[str, Any]:
    """A run as ``history --json`` prints it: the ledger's columns, times as RFC 3339 in UTC."""
    values = {one.name: getattr(run, one.name) for one in fields(run)}
    return {
        name: rfc3339(value) if isinstance(value, datetime) else value
        for name, value in values.items()
    }


def why(one: Condition) -> str:
    """One line on what is wrong with a job, or what its last run warned of; and where to look."""
    if one.is_ahead and one.last_success is not None:
        text = (
            f"{one.job}: the last backup is dated {rfc3339(one.last_success.started)}, in the "
            "future: this host's clock is wrong, or was; nobody knows how old it is; see "
            f"borg-pull doctor, then run: borg-pull run {one.job}"
        )
    elif one.state == "stale":
        text = f"{one.job}: no backup for {age(one.age)}, more than {age(one.stale_after)}"
        text += "".join(f"; {_failed(run)}" for run in one.failures[:1])
    elif one.failures:
        text = f"{one.job}: {_failed(one.failures[0])}"
        if others := [run.kind for run in one.failures[1:]]:
            text += f"; failed before and not tried since: {', '.join(others)}"
    elif one.last is not None:
        text = _with_log(f"{one.job}: {one.last.error}", one.last)
    else:
        text = f"{one.job}: never ran; run: borg-pull run {one.job}"
    return printable(text)


def _failed(run: Run) -> str:
    what = "" if run.kind == "create" else f"{run.kind} failed: "
    return _with_log(f"{what}{run.error}", run)


def _with_log(text: str, run: Run) -> str:
    """``text`` with where to look, unless it says so itself."""
    see = f"see borg-pull logs {run.id}"
    return text if see in text else f"{text.removesuffix('.')}; {see}"


def _cells(one: Condition) -> list[str]:
    last = one.last_success
    state = one.state if one.running is None else f"{one.state}, running"
    return [
        one.job,
        state,
        "-" if last is None else rfc3339(last.started),
        age(one.age),
        "-" if last is None or last.original_size is None else size(last.original_size),
        sparkline(one.sizes),
        "-" if one.next_due is None else rfc3339(one.next_due),
        _verified(one),
    ]


def _verified(one: Condition) -> str:
    if one.last_restored is None:
        return "never"
    text = rfc3339(one.last_restored)
    return text if one.last_restored == one.last_verified else f"{text} (checksums)"


def _run_cells(run: Run) -> list[str]:
    def sized(count: int | None) -> str:
        return "-" if count is None else size(count)

    return [
        str(run.id),
        run.job,
        run.kind,
        rfc3339(run.started),
        "-" if run.duration is None else f"{run.duration:.1f} s",
        run.outcome or "running",
        "-" if run.files is None else str(run.files),
        sized(run.original_size),
        sized(run.new_size),
        printable(run.error or ""),
    ]


def age(span: timedelta | None) -> str:
    """A time span in its largest unit that leaves a number."""
    if span is None:
        return "-"
    seconds = int(span.total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def sparkline(sizes: Sequence[int]) -> str:
    """Sizes as bars, from nothing to the largest."""
    largest = max(sizes, default=0)
    if largest == 0:
        return BARS[0] * len(sizes)
    return "".join(BARS[round(one * (len(BARS) - 1) / largest)] for one in sizes)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":")) + "\n"
