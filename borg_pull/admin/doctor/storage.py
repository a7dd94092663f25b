"""Room on the disks, the socket directory's return after a restart, the clock, the log's head."""

from __future__ import annotations

import contextlib
import datetime
import glob
import hashlib
import os
import shlex
import time
from collections.abc import Iterable
from typing import Literal

from borg_pull import accounts
from borg_pull.admin.audit import Line, Source, opened, record_of, size_text
from borg_pull.errors import BorgPullError
from borg_pull.findings import Findings
from borg_pull.source.installation import program_beside
from borg_pull.source.whitelist import Settings

_LITTLE_BYTES = 1 << 30
_NO_BYTES = 16 << 20
_FEW_FILES = 10_000
_NO_FILES = 100
_SOCKET_PATH = 107  # bytes: sun_path without its terminating NUL, unix(7)
_SHORT_NONCE = 16
_USUAL_NONCE = 32  # 128 bits in hexadecimal, as the quickstart has it
_TMPFILES = (
    "/etc/tmpfiles.d",
    "/run/tmpfiles.d",
    "/usr/local/lib/tmpfiles.d",
    "/usr/lib/tmpfiles.d",
)
_SECONDS_AHEAD = 60.0
"""How far a record may be ahead of the clock: writers on other processors, a second's rounding."""


def look(
    findings: Findings, account: accounts.Account | None, settings: Settings, clients: Iterable[str]
) -> None:
    """Look at what the runs write to."""
    places = {
        "runtime.home": settings.runtime.home,
        "audit.file": os.path.dirname(settings.audit.file),
    }
    devices: set[int] = set()
    for key, path in places.items():
        _look_at_room(findings, account, key, path, devices)
    _look_at_socket_directory(findings, account, settings.runtime.socket_dir.rstrip("/") or "/")
    _look_at_socket_paths(findings, settings.runtime.socket_dir.rstrip("/"), clients)
    newest = _look_at_log(findings, account, settings.audit.file)
    _look_at_clock(findings, newest)


def _look_at_room(
    findings: Findings, account: accounts.Account | None, key: str, path: str, devices: set[int]
) -> None:
    try:
        device = os.stat(path).st_dev
        status = os.statvfs(path)
    except FileNotFoundError:
        findings.unchecked("storage.room", path, "does not exist", _making(account, path, key))
        return
    except OSError as error:
        findings.unchecked(
            "storage.room", path, f"cannot be looked at: {error.strerror}", _as_root()
        )
        return
    if device in devices:
        return
    devices.add(device)
    left = status.f_bavail * status.f_frsize
    # Some file systems (btrfs) have no fixed number of files, and say 0 of 0.
    files = status.f_favail if status.f_files else None
    remedy = f"df -h {shlex.quote(path)}; df -i {shlex.quote(path)}; free some, or make it larger"
    text = f"{size_text(left)} left" + ("" if files is None else f", room for {files} files")
    none_left = left < _NO_BYTES or (files is not None and files < _NO_FILES)
    little_left = left < _LITTLE_BYTES or (files is not None and files < _FEW_FILES)
    if not little_left:
        findings.ok("storage.room", path, text)
        return
    findings.wrong(
        "error" if none_left else "warning",
        "storage.room",
        path,
        text,
        needed=f"{size_text(_LITTLE_BYTES)}, {_FEW_FILES} files ({key})",
        why="without a record nothing runs, and borg keeps a cache",
        remedy=remedy,
    )


def _making(account: accounts.Account | None, directory: str, key: str) -> str:
    """What to do about one that does not exist."""
    name, group = _owner(account)
    make = f"install -d -o {name} -g {group} -m 0700 {shlex.quote(directory)}"
    return f"{make}, or name the one that is meant in {key}"


def _owner(account: accounts.Account | None) -> tuple[str, str]:
    """The account's name and its group's."""
    usual = accounts.USUAL_ACCOUNT
    return (usual, usual) if account is None else (account.name, account.group)


def _as_root() -> str | None:
    return None if os.geteuid() == 0 else "run this as root"


def _look_at_socket_directory(
    findings: Findings, account: accounts.Account | None, directory: str
) -> None:
    """Its owner and mode are among what `check` looks at; here, whether it comes back."""
    kind = _file_system(directory)
    if kind not in ("tmpfs", "ramfs"):
        findings.ok("storage.sockets", directory, f"on {kind}, outlives a restart")
        return
    if _is_made_at_boot(directory):
        findings.ok("storage.sockets", directory, "is made anew at each boot")
        return
    name, group = _owner(account)
    line = shlex.quote(f"d {directory} 0700 {name} {group} -")
    findings.wrong(
        "warning",
        "storage.sockets",
        directory,
        f"is on {kind}, and no line of tmpfiles.d makes it",
        why="after a restart of the machine it is gone, and every request is refused",
        remedy=f"echo {line} > /etc/tmpfiles.d/borg-pull.conf",
    )


def _file_system(path: str) -> str:
    """Type of the file system that ``path`` is on, or would be."""
    best, kind = "", "an unknown file system"
    real = os.path.realpath(path)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            point = before.split()[4].replace("\\040", " ")
            inside = real == point or real.startswith(point.rstrip("/") + "/")
            # Of two mounts on one point the later one is seen.
            if inside and len(point) >= len(best):
                best, kind = point, after.split()[0]
    return kind


def _is_made_at_boot(directory: str) -> bool:
    for place in _TMPFILES:
        for name in glob.glob(f"{place}/*.conf"):
            with (
                contextlib.suppress(OSError),
                open(name, encoding="utf-8", errors="replace") as file,
            ):
                for line in file:
                    words = line.split()
                    kinds = ("d", "D", "d!", "D!", "d=", "v")
                    if len(words) > 1 and words[0] in kinds and words[1].rstrip("/") == directory:
                        return True
    return False


def _look_at_socket_paths(findings: Findings, directory: str, clients: Iterable[str]) -> None:
    longest = max(clients, key=len, default="")
    length = len(os.fsencode(f"{directory}/{longest}.sock"))
    room = _SOCKET_PATH - length - 1
    if room >= _USUAL_NONCE:
        findings.ok("storage.names", directory, "socket names have room")
        return
    is_error = length > _SOCKET_PATH
    findings.wrong(
        "error" if is_error else "warning",
        "storage.names",
        directory,
        f"leaves {max(room, 0)} characters for --socket of client {longest}",
        needed=str(_USUAL_NONCE),
        why="a socket's path has at most 107 bytes"
        + ("" if room >= _SHORT_NONCE else ", and 16 characters is the least"),
        remedy="name a directory with a shorter path in runtime.socket_dir",
    )


def _look_at_log(findings: Findings, account: accounts.Account | None, log: str) -> str | None:
    """Time of the newest record, None when there is none or it cannot be read."""
    verify = shlex.join([program_beside("borg-pull-admin"), "audit", "verify", "--rotated", log])
    if not os.path.lexists(log):
        directory = os.path.dirname(log)
        if os.access(directory, os.X_OK, effective_ids=True):
            findings.ok("audit.head", log, "has no record yet")
        elif os.geteuid() == 0:
            remedy = _making(account, directory, "runtime.home or audit.file")
            findings.unchecked("audit.head", log, f"{directory} does not exist", remedy)
        else:
            findings.unchecked("audit.head", log, "cannot be seen by this user")
        return None
    try:
        with opened([log], rotated=False) as (sources, sidecar):
            last = _last_line(sources[0])
    except BorgPullError as error:
        found = error.message.removeprefix(f"audit log {log}: ")
        if os.geteuid() == 0:
            findings.wrong("error", "audit.head", log, found, remedy=verify)
        else:
            findings.unchecked("audit.head", log, found)
        return None
    if last is None:
        findings.ok("audit.head", log, "has no record since it was rotated")
        return None
    if sidecar.head is None and os.geteuid() != 0:
        findings.unchecked("audit.head", sidecar.path, sidecar.fault or "cannot be read")
        return _time_of(last)
    fault: str | None = None
    level: Literal["error", "warning"] = "warning"
    if not last.ended:
        fault = "ends in a line that is cut off"
    elif sidecar.head is None:
        fault = f"{sidecar.path}: {sidecar.fault}"
    elif last.record is None or sidecar.head.hash != last.hash:
        fault, level = "ends otherwise than its sidecar says", "error"
    if fault is not None or last.record is None:
        findings.wrong(
            level,
            "audit.head",
            log,
            fault or "does not end in a record",
            why="somebody altered it, or the machine lost power",
            remedy=verify,
        )
        return _time_of(last)
    number = last.record["seq"]
    findings.ok("audit.head", log, f"ends in record {number}, as its sidecar says")
    return _time_of(last)


def _last_line(source: Source) -> Line | None:
    """The last line of a log, read from near its end."""
    size = source.size or 0
    window = 64 * 1024
    while True:
        start = max(0, size - window)
        source.stream.seek(start)
        block = source.stream.read(size - start)
        cut = block.rstrip(b"\n").rfind(b"\n")
        if cut >= 0 or start == 0:
            break
        window *= 8
    content = block[cut + 1 :].removesuffix(b"\n")
    if not content:
        return None
    return Line(
        file=source.name,
        number=0,
        content=content,
        hash=hashlib.sha256(content).hexdigest(),
        ended=block.endswith(b"\n"),
        record=record_of(content),
    )


def _time_of(line: Line) -> str | None:
    return None if line.record is None else str(line.record.get("time"))


def _look_at_clock(findings: Findings, newest: str | None) -> None:
    now = time.time()
    later = []
    with contextlib.suppress(ValueError):
        if newest is not None:
            recorded = datetime.datetime.fromisoformat(newest).timestamp()
            if recorded > now + _SECONDS_AHEAD:
                later.append(f"the last record of the audit log, {newest}")
    installed = os.stat(program_beside("borg-pull-admin")).st_ctime
    if installed > now + _SECONDS_AHEAD:
        later.append("the installation of the programs")
    text = datetime.datetime.fromtimestamp(now, datetime.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    if not later:
        findings.ok("audit.clock", "clock", text)
        return
    findings.wrong(
        "warning",
        "audit.clock",
        "clock",
        f"{text}, which is before {' and '.join(later)}",
        why="records are out of order, and limits on requests wait",
        remedy="timedatectl set-ntp true",
    )
