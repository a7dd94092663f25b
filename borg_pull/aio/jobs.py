"""Jobs and their events: one file each, JSON Lines, bounded in size, number and age.

The first line tells what the job is, each further one is an event; the last event is the result.
They are written by the run itself, and read by whoever follows it, in whichever process.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from borg_pull.audit import encode, timestamp
from borg_pull.errors import BORG_ERROR, SystemRefusedError, printable
from borg_pull.values import is_session

if TYPE_CHECKING:
    from borg_pull.audit import JSONValue

MAX_OUTPUT_BYTES = 8 << 20
"""Of a job's file: from there on output is not kept; states and the result still are."""
MAX_LINE = 2000
"""Characters of one line of output."""
_TAIL = 64 * 1024
_DAY = 24 * 60 * 60
_SUFFIX = ".jsonl"
RESULT = "result"
_LOST: dict[str, Any] = {
    "status": "finished",
    "result": "unknown",
    "exit": BORG_ERROR,
    "error": "its end could not be written here",
    "hint": "see the audit log",
    "target_restored": None,
}


class Jobs:
    """All jobs of ``state_dir``; ``keep`` of each client.

    ``is_open`` says whether somebody works on a job, or has still to settle it.
    """

    def __init__(
        self,
        state_dir: str,
        *,
        keep: int,
        keep_days: int,
        is_open: Callable[[str], bool] = lambda _job: True,
    ) -> None:
        self._directory = f"{state_dir}/jobs"
        self._keep = keep
        self._keep_days = keep_days
        self._is_open = is_open

    def create(self, job: str, head: Mapping[str, JSONValue]) -> Events:
        """A new job's events; the client's oldest jobs make room. Raises SystemRefusedError."""
        self._clear_old()
        self._clear_of(head.get("client"), self._keep - 1)
        # The clock may be set back; what ran last must stay what ran last.
        sequence = 1 + max((_sequence(one) for one in self.all()), default=0)
        line = {"type": "job", "job_id": job, "sequence": sequence, **head}
        line["created"] = timestamp(time.time())
        path = self._path(job)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o600)
            os.write(descriptor, f"{encode(line)}\n".encode("ascii"))
        except OSError as error:
            self.remove(job)
            raise SystemRefusedError.because(f"{path} cannot be written", error) from error
        return Events(descriptor, job, number=0, size=0)

    def resume(self, job: str) -> Events:
        """The events of a job whose run was killed: where its file cannot be written, they are
        lost, and the run's end comes all the same."""
        path = self._path(job)
        content = b""
        descriptor = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            content = _read(path)
            found = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            try:
                if content and not content.endswith(b"\n"):
                    os.write(found, b"\n")
                os.dup2(found, descriptor, inheritable=False)
            finally:
                os.close(found)
        numbers = [event["number"] for event in _parsed(content) if "number" in event]
        return Events(descriptor, job, number=max(numbers, default=0), size=len(content))

    def remove(self, job: str) -> None:
        """Have no such job any more."""
        for suffix in (_SUFFIX, ".cancel"):
            with contextlib.suppress(OSError):
                os.unlink(self._path(job, suffix))

    def head(self, job: str) -> dict[str, Any] | None:
        """What the job is and how it stands; None when there is none of that id."""
        summary = self._read_head(job)
        if summary is None or summary["status"] == "finished" or self._is_open(job):
            return summary
        # It may have ended between.
        summary = self._read_head(job)
        if summary is not None and summary["status"] != "finished":
            ended = self._changed(job)
            duration = round(max(0.0, ended - _seconds(summary["created"])), 3)
            summary |= _LOST | {"ended": timestamp(ended), "duration": duration}
        return summary

    def _read_head(self, job: str) -> dict[str, Any] | None:
        try:
            with open(self._path(job), "rb") as file:
                head = _parsed(file.readline())
                start = max(file.tell(), os.fstat(file.fileno()).st_size - _TAIL)
                file.seek(start)
                last = _parsed(file.read())
        except OSError:
            return None
        if not head or head[0].get("type") != "job":
            return None
        summary = head[0] | {"status": "running", "state": None, "result": None}
        for event in last:
            if event.get("event") == "state":
                summary["state"] = event["state"]
            if event.get("event") == RESULT:
                told = ("result", "exit", "error", "hint", "duration", "target_restored")
                summary |= {name: event.get(name) for name in told}
                summary |= {"status": "finished", "ended": event["time"]}
        return summary

    def all(self) -> list[dict[str, Any]]:
        """Every job's head, the newest first."""
        heads = [self.head(job) for job in self._ids()]
        return sorted(
            (head for head in heads if head is not None),
            key=lambda head: (_sequence(head), str(head["created"])),
            reverse=True,
        )

    def events(
        self,
        job: str,
        start: int,
        *,
        follow: Callable[[], bool] | None = None,
        pause: Callable[[float], object] = time.sleep,
        poll: float = 0.2,
    ) -> Iterator[dict[str, Any]]:
        """Its events from number ``start`` on. ``follow`` has them come until the result, or until
        it says that nobody works on the job any more. ``pause`` waits for more, in seconds."""
        rest = b""
        with open(self._path(job), "rb") as file:
            while True:
                is_alive = follow is not None and follow()
                # Asked before reading: what the run wrote last must not be missed.
                for piece in file:
                    rest += piece
                    if not rest.endswith(b"\n"):
                        break
                    for event in _parsed(rest):
                        if event.get("number", 0) >= start:
                            yield event
                        if event.get("event") == RESULT:
                            return
                    rest = b""
                if not is_alive:
                    return
                pause(poll)

    def ask_to_cancel(self, job: str, who: str) -> None:
        """Leave word for its run. Raises SystemRefusedError."""
        path = self._path(job, ".cancel")
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(who)
        except OSError as error:
            raise SystemRefusedError.because(f"{path} cannot be written", error) from error

    def withdraw(self, job: str) -> None:
        """Take the word back."""
        with contextlib.suppress(OSError):
            os.unlink(self._path(job, ".cancel"))

    def cancelled_by(self, job: str) -> str | None:
        """Who has asked to cancel it."""
        try:
            with open(self._path(job, ".cancel"), encoding="utf-8") as file:
                return file.read()
        except OSError:
            return None

    def _path(self, job: str, suffix: str = _SUFFIX) -> str:
        if not is_session(job):
            raise ValueError("no job's id")
        return f"{self._directory}/{job}{suffix}"

    def _ids(self) -> list[str]:
        names = (name.removesuffix(_SUFFIX) for name in os.listdir(self._directory))
        return [name for name in names if is_session(name)]

    def _changed(self, job: str) -> float:
        with contextlib.suppress(OSError):
            return os.stat(self._path(job)).st_mtime
        return time.time()

    def _clear_old(self) -> None:
        """Remove what is too old, and what no head says anything about."""
        oldest = time.time() - self._keep_days * _DAY
        for job in self._ids():
            with contextlib.suppress(OSError):
                if os.stat(self._path(job)).st_mtime < oldest or self._read_head(job) is None:
                    self.remove(job)

    def _clear_of(self, client: JSONValue, keep: int) -> None:
        """Remove the client's oldest that are too many. Others' stay, and so does the last one of
        each action and target: what is told of it must not go by how often something else runs."""
        seen: set[tuple[str, str]] = set()
        count = 0
        for head in self.all():
            is_last = head["status"] == "finished" and label(head) not in seen
            if is_last:
                seen.add(label(head))
            if head.get("client") == client:
                count += 1
                if count > keep and not is_last:
                    self.remove(head["job_id"])


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def _sequence(head: Mapping[str, Any]) -> int:
    number = head.get("sequence")
    return number if isinstance(number, int) else 0


def label(head: Mapping[str, Any]) -> tuple[str, str]:
    """What a job ran, as metrics name it: its action or target, and the kind."""
    return head.get("action") or head.get("target_name") or "", head.get("kind") or ""


class Events:
    """Appends events to one job. A full disk loses events, never the run."""

    def __init__(self, descriptor: int, job: str, *, number: int, size: int) -> None:
        self._descriptor = descriptor
        self._job = job
        self._number = number
        self._size = size
        self.is_full = False
        """Whether no more output is kept."""

    def add(self, event: str, **fields: JSONValue) -> None:
        """Append one."""
        self._number += 1
        line = encode(
            {
                "type": "event",
                "job": self._job,
                "number": self._number,
                "time": timestamp(time.time()),
                "event": event,
                **fields,
            }
        )
        with contextlib.suppress(OSError):
            self._size += os.write(self._descriptor, f"{line}\n".encode("ascii"))

    def output(self, origin: str, line: str) -> None:
        """Append one line of output, escaped and cut."""
        if self._size < MAX_OUTPUT_BYTES:
            self.add("output", origin=origin, line=printable(line[:MAX_LINE]))
        elif not self.is_full:
            self.is_full = True
            self.add("output", origin=origin, line="[further output is not kept]")

    def close(self) -> None:
        """No more events from here."""
        os.close(self._descriptor)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def _parsed(content: bytes) -> list[dict[str, Any]]:
    """The lines that are whole: a power cut may have torn one."""
    found = []
    for line in content.split(b"\n"):
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict):
                found.append(event)
    return found
