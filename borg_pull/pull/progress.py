"""What a run shows while it runs: lines for people, or one JSON object a line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, Self

from borg_pull.errors import printable
from borg_pull.findings import many
from borg_pull.output import abandon_output

if TYPE_CHECKING:
    from rich.progress import TaskID

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size(count: float) -> str:
    """A number of bytes in IEC units."""
    unit = 0
    while count >= 1024 and unit < len(UNITS) - 1:
        count /= 1024
        unit += 1
    return f"{count:.0f} {UNITS[unit]}" if unit == 0 else f"{count:.1f} {UNITS[unit]}"


_STEPS = {"prune_start": "pruning", "check_start": "verifying the repository"}
"""What follows a pull, and takes its time."""


class Screen(Protocol):
    """Takes a batch's events as they come."""

    def show(self, event: dict[str, Any]) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class JsonScreen:
    """One JSON object a line on standard output."""

    def show(self, event: dict[str, Any]) -> None:
        try:
            sys.stdout.write(json.dumps(event, separators=(",", ":")) + "\n")
            sys.stdout.flush()
        except OSError:
            # A reader that has gone, or a full disk, must not end what runs.
            abandon_output()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to put back."""


class PeopleScreen:
    """A live line for each running job on a terminal; elsewhere a line for each end or new wait."""

    def __init__(self, *, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._quiet = quiet
        self._live = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[name]}"),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=quiet or not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._waits: dict[str, str] = {}
        """By job, what it was last said to wait for."""

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        # A terminal that has gone takes nothing of what was done back.
        try:
            self._live.stop()
        except OSError:
            abandon_output(sys.stderr)

    def show(self, event: dict[str, Any]) -> None:
        try:
            self._show(event)
        except OSError:
            abandon_output(sys.stderr)

    def _show(self, event: dict[str, Any]) -> None:
        kind, job = event["event"], event["job"]
        if kind == "run_start":
            self._tasks[job] = self._live.add_task("", total=None, name=job, text="connecting")
        elif kind in _STEPS:
            self._live.update(self._tasks[job], text=_STEPS[kind])
        elif kind == "progress":
            self._live.update(self._tasks[job], text=_progress_text(event))
        elif kind == "retry":
            text = retry_text(event)
            self._live.update(self._tasks[job], text=text)
            if self._live.disable and not self._quiet and self._waits.get(job) != event["reason"]:
                self._waits[job] = event["reason"]
                self._print(f"{job}: {text}", "yellow")
        elif kind == "run_end":
            if job in self._tasks:
                self._live.remove_task(self._tasks.pop(job))
            if not self._quiet or event["outcome"] in ("warning", "failure"):
                self._print(end_line(event), _STYLES.get(event["outcome"], ""))
        elif event["outcome"] == "failure":  # of what follows a run: prune, check
            line = f"{job}: {kind.removesuffix('_end')} failed: {event['error']}"
            self._print(printable(line), _STYLES["failure"])

    def _print(self, line: str, style: str) -> None:
        self._console.print(line, style=style, soft_wrap=True)


@contextmanager
def counting(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on a terminal, nothing elsewhere; takes how much is done, and of how much if known."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    with Progress(
        TextColumn("{task.fields[name]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        job = bar.add_task("", total=None, name=printable(name))
        yield lambda done, whole: bar.update(job, completed=done, total=whole)


_STYLES = {"success": "green", "warning": "yellow", "failure": "bold red", "skipped": "dim"}


def _progress_text(event: dict[str, Any]) -> str:
    rate = event["read_bytes"] / event["elapsed"] if event["elapsed"] else 0.0
    return (
        f"{event['files']} files, {size(event['read_bytes'])} read, "
        f"{size(event['new_bytes'])} new, {size(rate)}/s"
    )


def log_line(event: dict[str, Any]) -> str | None:
    """What the log of a run says of an event; None when that has no place there."""
    kind, error = event["event"], event.get("error")
    if kind == "run_end":
        return end_line(event)
    if kind == "retry":
        return retry_text(event)
    if kind.endswith("_end"):
        why = "" if error is None else f": {error}"
        return printable(f"{event['job']}: {kind.removesuffix('_end')}: {event['outcome']}{why}")
    return None


def retry_text(event: dict[str, Any]) -> str:
    """When a busy source is asked again."""
    return printable(f"busy, again in {event['seconds']:.0f} s: {event['reason']}")


def end_line(event: dict[str, Any]) -> str:
    """One line on how a job ended."""
    line = f"{event['job']}: {event['outcome']}"
    if event.get("error"):
        line = f"{line}: {event['error']}"
    elif event.get("original_size") is not None:
        line = (
            f"{line}: {event['archive']}: {many(event['files'] or 0, 'file')}, "
            f"{size(event['original_size'])}, {size(event['new_size'] or 0)} new, "
            f"{event['duration']:.1f} s"
        )
    return printable(line)
