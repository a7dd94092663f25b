"""The sshd that runs on this host, what it was started with, and what it says is in force.

sshd reads its files when it starts and on SIGHUP, and keeps them in memory, where nobody can look.
So it is asked anew (``sshd -T``) with the command line of the one that runs, which that shows as
its title; whether its files have changed since it read them is told by the times of both.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import itertools
import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

PROGRAM = "/usr/sbin/sshd"
CONFIGURATION = "/etc/ssh/sshd_config"
PID_FILE = "/run/sshd.pid"
_DIRECTORY = "/etc/ssh"
"""Where relative names in ``Include`` start."""

_MAX_INCLUDES = 16  # as sshd itself
_ASK_SECONDS = 20
_TITLE = re.compile(r"sshd: (?P<command>\S+.*?) \[listener\] ")
_UNIT = re.compile(r"/(sshd?(?:@[^/]*)?\.service)$", re.MULTILINE)
_LISTEN = "0A"
_WITH_VALUE = "bcCEfghkopu"
"""sshd's options that take a value, sshd(8)."""
_PASSED = "cfhopu46"
"""Those that say what is in force."""


class NotAskedError(Exception):
    """sshd would not say what is in force; the reason, in its words."""


@dataclass(frozen=True, kw_only=True)
class Daemon:
    """A running sshd that accepts connections."""

    pid: int
    program: str
    is_replaced: bool
    """Whether its program is another file now than the one that runs."""
    command: tuple[str, ...] | None
    """Its command line; None where its title is cut off."""
    ports: tuple[int, ...]
    started: float
    """Seconds since the epoch."""
    capabilities: int
    """The bounding set: what a program it starts can get at most."""
    no_new_privs: bool
    unit: str | None
    """The unit of systemd that it is."""

    @property
    def options(self) -> tuple[str, ...]:
        """Those options it was started with that say what is in force."""
        return () if self.command is None else _passed(self.command[1:])

    @property
    def configuration(self) -> str:
        """Its configuration file."""
        options = self.options
        files = [value for option, value in itertools.pairwise(options) if option == "-f"]
        return files[-1] if files else CONFIGURATION

    def reload(self) -> str:
        """The command that has it read its files again."""
        test = ["sshd", "-t"]
        if self.configuration != CONFIGURATION:
            test += ["-f", self.configuration]
        again = f"kill -HUP {self.pid}" if self.unit is None else f"systemctl reload {self.unit}"
        return f"{shlex.join(test)} && {again}"


def _passed(words: Sequence[str]) -> tuple[str, ...]:
    """The options among ``words``, as sshd's getopt takes them, that say what is in force.

    The title joins them with blanks, so a value goes on to the next word that begins an option.
    """
    passed: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("-") or len(word) < 2:
            continue
        for position, letter in enumerate(word[1:], 2):
            if letter not in _WITH_VALUE:
                passed += [f"-{letter}"] if letter in _PASSED else []
                continue
            value = [word[position:]] if word[position:] else []
            while waiting and (not value or not waiting[0].startswith("-")):
                value.append(waiting.pop(0))
            passed += [f"-{letter}", " ".join(value)] if letter in _PASSED else []
            break
    return tuple(passed)


def running() -> list[Daemon]:
    """Every sshd of this host that accepts connections, those in containers left out."""
    return [daemon for pid in _pids() if (daemon := _daemon(pid)) is not None]


def _pids() -> Iterator[int]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            yield int(entry)


def _daemon(pid: int) -> Daemon | None:
    base = f"/proc/{pid}"
    try:
        if _read(f"{base}/comm").strip() != "sshd" or _is_elsewhere(base):
            return None
        ports = _ports(base)
        if not ports:
            return None
        words = _read(f"{base}/cmdline").replace("\0", " ")
        program = os.readlink(f"{base}/exe")
        status = dict(
            line.split(":\t", 1) for line in _read(f"{base}/status").splitlines() if ":\t" in line
        )
        fields = _read(f"{base}/stat").rpartition(")")[2].split()
        unit = _UNIT.search(_read(f"{base}/cgroup"))
    except OSError:
        # It has ended meanwhile.
        return None
    title = _TITLE.match(words)
    deleted = " (deleted)"
    return Daemon(
        pid=pid,
        program=program.removesuffix(deleted),
        is_replaced=program.endswith(deleted),
        command=None if title is None else tuple(title["command"].split()),
        ports=ports,
        started=_time_of(int(fields[19])),
        capabilities=int(status["CapBnd"], 16),
        no_new_privs=status.get("NoNewPrivs", "0").strip() == "1",
        unit=None if unit is None else unit[1],
    )


def _is_elsewhere(base: str) -> bool:
    """Whether the process sees other files or processes than we do, or does not listen as root."""
    return os.stat(base).st_uid != 0 or any(
        os.stat(f"{base}/ns/{kind}").st_ino != os.stat(f"/proc/self/ns/{kind}").st_ino
        for kind in ("mnt", "pid")
    )


def _ports(base: str) -> tuple[int, ...]:
    """The TCP ports it listens on; none for one that serves a session."""
    sockets = set()
    for descriptor in os.listdir(f"{base}/fd"):
        with contextlib.suppress(OSError):
            sockets.add(os.readlink(f"{base}/fd/{descriptor}"))
    found = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError):
            for line in _read(f"{base}/net/{table}").splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN and f"socket:[{fields[9]}]" in sockets:
                    found.add(int(fields[1].rpartition(":")[2], 16))
    return tuple(sorted(found))


def _time_of(ticks: int) -> float:
    """The end of a clock tick since boot, in seconds since the epoch."""
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return boot + (ticks + 1) / os.sysconf("SC_CLK_TCK")


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


# What is in force


Effective = Mapping[str, tuple[str, ...]]
"""Values by keyword in lower case, in the order sshd prints them; several lines are several."""


def in_force(
    program: str, options: Sequence[str], user: str | None = None, address: str = "", port: int = 22
) -> Effective:
    """What sshd says is in force for ``user`` who comes from ``address`` to ``port``, or without
    a user by no ``Match`` at all.

    Raises NotAskedError.
    """
    command = [program, "-T", *options]
    if user is not None:
        where = f"host={address},addr={address},laddr={address},lport={port}"
        command += ["-C", f"user={user},{where}"]
    try:
        said = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ASK_SECONDS,
            check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotAskedError(str(error)) from error
    if said.returncode != 0:
        lines = said.stderr.split("\n")
        reason = next((line.strip() for line in lines if line.strip()), "it gave no reason")
        raise NotAskedError(reason)
    found: dict[str, list[str]] = {}
    for line in said.stdout.splitlines():
        keyword, _, value = line.partition(" ")
        found.setdefault(keyword.lower(), []).append(value.strip())
    return {keyword: tuple(values) for keyword, values in found.items()}


# The files it reads


@dataclass(frozen=True, kw_only=True)
class Files:
    """The configuration files of an sshd, in the order it reads them."""

    lines: tuple[tuple[str, int, str, str], ...]
    """Each line that is no comment: file, number, keyword in lower case, the rest."""
    paths: tuple[str, ...]
    patterns: tuple[str, ...]
    """What ``Include`` names, absolute."""

    def places(self, keyword: str) -> list[str]:
        """``FILE:LINE`` of each line with this keyword."""
        wanted = keyword.lower()
        return [f"{path}:{number}" for path, number, found, _ in self.lines if found == wanted]

    def has_match(self, user: str) -> bool:
        """Whether some ``Match`` is for this account."""
        return any(
            keyword == "match" and re.search(rf"(?i)\buser\s+(\S+,)?{re.escape(user)}\b", rest)
            for _, _, keyword, rest in self.lines
        )

    def drop_in_directory(self) -> str | None:
        """The directory of which every ``*.conf`` is read, None when there is none."""
        return next(
            (
                os.path.dirname(pattern)
                for pattern in self.patterns
                if fnmatch.fnmatch("00-borg-pull.conf", os.path.basename(pattern))
            ),
            None,
        )

    def changed(self) -> tuple[float, str]:
        """When any of them was last changed, added or removed, and its name."""
        directories = {os.path.dirname(pattern) for pattern in self.patterns}
        times = [(0.0, "")]
        for path in (*self.paths, *directories):
            with contextlib.suppress(OSError):
                times.append((os.stat(path).st_ctime, path))
        return max(times)


_LINE = re.compile(r"\s*(?P<keyword>\w+)(?:\s*=\s*|\s+|$)(?P<rest>.*?)\s*$")


def files_of(configuration: str) -> Files:
    """The files that are read from ``configuration`` on; what cannot be read is left out."""
    lines: list[tuple[str, int, str, str]] = []
    paths: list[str] = []
    patterns: list[str] = []

    def read(path: str, depth: int) -> None:
        try:
            text = _read(path)
        except OSError:
            return
        paths.append(path)
        for number, line in enumerate(text.splitlines(), 1):
            match = _LINE.match(line)
            if match is None:
                continue
            keyword = match["keyword"].lower()
            lines.append((path, number, keyword, match["rest"]))
            if keyword == "include" and depth < _MAX_INCLUDES:
                for word in match["rest"].replace('"', " ").split():
                    pattern = os.path.join(_DIRECTORY, word)
                    patterns.append(pattern)
                    for name in sorted(glob.glob(pattern)):
                        read(name, depth + 1)

    read(configuration, 0)
    return Files(lines=tuple(lines), paths=tuple(paths), patterns=tuple(patterns))


def last_read(daemon: Daemon, effective: Effective) -> tuple[float, bool]:
    """When it last read its files, and whether a reload since its start would be seen.

    It writes its pid file anew each time, and remains the same process.
    """
    (path,) = effective.get("pidfile", (PID_FILE,))
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            is_its_own = file.read().strip() == str(daemon.pid)
            written = os.fstat(file.fileno()).st_mtime
    except OSError:
        return daemon.started, False
    return (max(written, daemon.started), True) if is_its_own else (daemon.started, False)
