"""What a pull came to: success, warning or failure, and why."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Literal

from borg_pull.pull import ssh
from borg_pull.pull.progress import size
from borg_pull.pull.said import Result, Transcript

Verdict = Literal["success", "warning", "failure"]

ORDER: tuple[Verdict, ...] = ("success", "warning", "failure")
"""Best first; a run of several jobs is as bad as its worst, and its exit code is the place here."""

BUSY = 75
_BY_SIGNAL = 128
"""Beyond it are a shell's exit codes for a command that a signal has ended."""
_STALE_GREETING_EXITS = (64, 69, 77, 78, ssh.CONNECTION_FAILED)


@dataclass(frozen=True)
class Evidence:
    """What is known when everything has ended."""

    ssh_exit: int | None
    """None when it was ended by us; negative for a signal."""
    given_up: str | None
    """Why we ended it, if we did."""
    connected: bool
    """Whether borg at the source reached ``borg serve``."""
    serve_signal: int | None
    """What killed ``borg serve``, if anything did that was not us."""
    transcript: Transcript
    ssh_said: str
    archive_id: str | None
    """Of the archive that was looked up after the run; None: it is not in the repository."""
    lookup_error: str | None
    """Why the repository could not be asked."""
    original_size: int | None
    minimum_size: int
    usual_size: int | None
    """Median of the last ones."""
    shrink_alarm: float


@dataclass(frozen=True)
class Outcome:
    """The verdict and one line on it; ``error`` is None for success."""

    verdict: Verdict
    error: str | None
    borg_code: int | None
    shrunk: bool = False
    """Whether the archive is much smaller than usual: a part of the data may be missing."""


def judge(evidence: Evidence) -> Outcome:
    """The verdict: never by an exit code alone, and never a success without the archive."""
    result = evidence.transcript.result
    borg_code = None if result is None else result.borg_code
    failure = _failure(evidence, result)
    if failure is not None:
        return Outcome("failure", failure, borg_code)
    shrunk = _shrunk(evidence)
    warnings = [one for one in (shrunk, _warning(evidence, result)) if one is not None]
    if warnings:
        return Outcome("warning", "; ".join(warnings), borg_code, shrunk=shrunk is not None)
    return Outcome("success", None, borg_code)


def is_busy(evidence: Evidence) -> bool:
    """Whether the source asked to come back later."""
    return evidence.ssh_exit == BUSY and evidence.given_up is None


def is_doubtful(evidence: Evidence) -> bool:
    """Whether the source may not be any more what it once said it was."""
    return (
        evidence.ssh_exit in _STALE_GREETING_EXITS
        and evidence.given_up is None
        and not evidence.connected
    )


def _failure(evidence: Evidence, result: Result | None) -> str | None:
    last = _last_words(evidence)
    if evidence.given_up is not None:
        return evidence.given_up
    if evidence.serve_signal is not None and evidence.ssh_exit != 0:
        return f"borg serve was killed by {_signal_name(evidence.serve_signal)}"
    if evidence.ssh_exit is not None and evidence.ssh_exit < 0:
        return f"ssh was killed by {_signal_name(-evidence.ssh_exit)}"
    if evidence.ssh_exit == ssh.CONNECTION_FAILED:
        if evidence.connected:
            why = f": {evidence.ssh_said}" if evidence.ssh_said else ""
            return f"ssh: the connection was lost{why}"
        return f"ssh: {last or 'the connection failed'}"
    if evidence.ssh_exit not in (0, 1):
        said = None if result is None else result.error
        if said is None and evidence.ssh_exit is not None and evidence.ssh_exit > _BY_SIGNAL:
            return (
                f"the source's command was killed by {_signal_name(evidence.ssh_exit - _BY_SIGNAL)}"
            )
        return said or last or f"exit {evidence.ssh_exit}"
    if evidence.lookup_error is not None:
        return f"the archive could not be looked up: {evidence.lookup_error}"
    if evidence.archive_id is None and evidence.ssh_exit == 1:
        # The original tool's refusals are a 1, too.
        return f"{last or 'exit 1'}; the archive is not in the repository"
    if evidence.archive_id is None:
        return "the source reported success, but the archive is not in the repository"
    if evidence.original_size is None and evidence.minimum_size > 0:
        return (
            "nobody told how much the archive holds, "
            f"and it must be the minimum_size of {evidence.minimum_size} bytes"
        )
    if evidence.original_size is not None and evidence.original_size < evidence.minimum_size:
        return (
            f"the archive holds {evidence.original_size} bytes, "
            f"less than the minimum_size of {evidence.minimum_size}"
        )
    return None


def _warning(evidence: Evidence, result: Result | None) -> str | None:
    if evidence.ssh_exit != 0:
        return (result and result.error) or _last_words(evidence) or "borg warned"
    return None


def _shrunk(evidence: Evidence) -> str | None:
    now, usual = evidence.original_size, evidence.usual_size
    if now is not None and usual and now < usual * evidence.shrink_alarm:
        return f"the archive shrank to {size(now)}; the last ones held {size(usual)}"
    return None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last_words(evidence: Evidence) -> str | None:
    complaints = evidence.transcript.complaints
    return complaints[-1] if complaints else (evidence.ssh_said or None)
