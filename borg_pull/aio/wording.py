"""What the companion's program says to people, of what it says to programs as JSON."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from borg_pull.errors import printable

_OF_ALL = ("type", "job", "number", "time", "event", "state")
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


def moment(time_of_answer: str) -> str:
    """A time as answers have it, to the second; it is UTC."""
    return f"{time_of_answer[:10]} {time_of_answer[11:19]}Z"


def event(told: Mapping[str, Any]) -> str:
    """One line of a job."""
    kind = told["event"]
    if kind == "output":
        text = f"{told['origin']}: {told['line']}"
    elif kind == "state":
        more = [f"{key}: {value}" for key, value in told.items() if key not in _OF_ALL]
        text = " ".join([told["state"], *more])
    elif kind == "container":
        words = (told["name"], told["status"], told.get("health"), told["error"])
        text = " ".join(filter(None, words))
    else:
        text = told["result"] + ("" if told["error"] is None else f": {told['error']}")
        text += "" if told["hint"] is None else f"; {told['hint']}"
    return f"{moment(told['time'])} {kind:<9} {printable(text)}\n"


def job_cells(job: Mapping[str, Any]) -> tuple[str, ...]:
    """A job's row among others."""
    state = f"running: {job['state']}" if job["result"] is None else job["result"]
    return (
        moment(job["created"]),
        job["job_id"],
        job["action"] or job["target_name"] or "-",
        job["kind"],
        job["client"] or "(this host)",
        state,
        printable(job.get("error") or ""),
    )


JOB_HEADINGS = ("BEGUN", "ID", "ACTION", "KIND", "CLIENT", "RESULT", "ERROR")


def job_lines(job: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A job alone: labels and texts."""
    for heading, cell in zip(JOB_HEADINGS, job_cells(job), strict=True):
        if cell:
            yield heading.lower(), cell
    if job.get("hint"):
        yield "do", printable(job["hint"])
    if job.get("ended"):
        yield "ended", f"{moment(job['ended'])} after {job['duration']:.0f} s"


def status_lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """How AIO stands: labels and texts."""
    is_read = found["set_up"] is not None
    yield "set up", {True: "yes", False: "no", None: f"unknown: {found['error']}"}[found["set_up"]]
    if is_read:
        name = found["target_name"] or "not in the whitelist"
        yield "target", f"{found['target'] or 'none'} ({name})"
    else:
        yield "target", "unknown"
    yield "running", found["running"] or ("not ours" if found["under_way"] else "nothing")
    last = found["last_backup"]
    if last is None:
        yield "AIO's last", "none"
    else:
        ended = last["finished_at"] or last["started_at"]
        yield "AIO's last", f"{last['kind']}: {last['verdict']}, {_when(ended)}"
    for kind, told in found["last_runs"].items():
        if told is not None:
            text = f"{told['result']}, {_when(told['ended'])}"
            if told["result"] != "success":
                good = told["succeeded"]
                text += f"; last success {'unknown' if good is None else _when(good)}"
            yield f"last {kind}", text
    job = found["last_job"]
    if job is not None:
        text = f"{job['job_id']} {job['action'] or job['target_name']}, {moment(job['created'])}: "
        yield "last job", text + (job["result"] or job["status"]) + _reason(job)
    for name in found["lock_files"]:
        yield ("in use" if found["under_way"] else "left behind"), name
    for one in found["containers"]:
        yield "container", " ".join(filter(None, (one["name"], one["status"], one["health"])))


def _reason(job: Mapping[str, Any]) -> str:
    return f": {job['error']}" if job.get("error") else ""


def _when(time_of_answer: str) -> str:
    """A time, and how long ago that is."""
    seconds = max(0.0, time.time() - datetime.fromisoformat(time_of_answer).timestamp())
    for length, name in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min")):
        if seconds >= length:
            return f"{moment(time_of_answer)} ({seconds / length:.1f} {name} ago)"
    return f"{moment(time_of_answer)} ({seconds:.0f} s ago)"
