"""What runs: one snapshot of /proc, and signals that cannot hit a recycled pid."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

UID_FIELDS = 4


@dataclass(frozen=True)
class Process:
    """One process as /proc showed it; ``start`` is in clock ticks since boot."""

    pid: int
    parent: int
    start: int
    state: str
    uids: frozenset[int]
    name: str
    command: str

    def alive(self) -> bool:
        """Whether this very process (not a later one with its pid) still runs."""
        now = read(self.pid)
        return now is not None and now.start == self.start and now.state not in "ZX"

    def send(self, number: signal.Signals) -> None:
        """Signal it; nothing happens when it is gone already."""
        descriptor = -1
        try:
            descriptor = os.pidfd_open(self.pid)
            if self.alive():
                signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            pass
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def __str__(self) -> str:
        return f"{self.pid} (parent {self.parent}, {self.state}) {self.command or self.name}"


def read(pid: int) -> Process | None:
    """The process with this pid, or None when there is none (any more)."""
    base = Path("/proc") / str(pid)
    try:
        stat = (base / "stat").read_text(errors="replace")
        status = (base / "status").read_text(errors="replace")
        command = (base / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    name, _, rest = stat.partition("(")[2].rpartition(")")
    fields = rest.split()
    uids = next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1:]
    return Process(
        pid=pid,
        parent=int(fields[1]),
        start=int(fields[19]),
        state=fields[0],
        uids=frozenset(int(uid) for uid in uids[:UID_FIELDS]),
        name=name,
        command=command.replace(b"\0", b" ").decode(errors="backslashreplace").strip(),
    )


def snapshot() -> list[Process]:
    """Every process but zombies, which hold nothing any more but their pid."""
    return [process for process in _everything() if process.state not in "ZX"]


def unreaped(uid: int) -> list[Process]:
    """The zombies of this user: what looks a pid up still finds them."""
    return [process for process in _everything() if process.state == "Z" and uid in process.uids]


def _everything() -> list[Process]:
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    return [process for process in map(read, pids) if process is not None]


def of_account(uid: int) -> list[Process]:
    """Every process that has ``uid`` as any of its user ids."""
    return [process for process in snapshot() if uid in process.uids]


def descendants(pid: int) -> list[Process]:
    """Every process below ``pid``, parents before their children."""
    everything = snapshot()
    found: list[Process] = []
    parents = {pid}
    while parents:
        layer = [process for process in everything if process.parent in parents]
        found.extend(layer)
        parents = {process.pid for process in layer}
    return found


def environment(pid: int) -> dict[bytes, bytes]:
    """The environment ``pid`` was started with; empty when it may not be read."""
    try:
        raw = (Path("/proc") / str(pid) / "environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return {}
    pairs = (entry.partition(b"=") for entry in raw.split(b"\0") if entry)
    return {name: value for name, _, value in pairs}


def mentions(process: Process, text: str) -> bool:
    """Whether the command line or the starting environment of ``process`` holds ``text``."""
    if text in process.command:
        return True
    wanted = os.fsencode(text)
    return any(wanted in value for value in environment(process.pid).values())
