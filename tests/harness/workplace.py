"""Where a test run lives: its directory, its throw-away accounts, and the clearing of dead runs.

As root the directory stands below /var/lib, because a program that starts with a capability
refuses configuration below a directory that others can write, /tmp among them.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import grp
import os
import pwd
import secrets
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import processes
from .wait import until

IS_ROOT = os.geteuid() == 0
ACCOUNT_PREFIX = "bpt-"
OWNER_FILE = "owner"
NAMES_FILE = "accounts"
BASE = (
    Path("/var/lib/borg-pull-tests") if IS_ROOT else Path("/tmp") / f"borg-pull-tests-{os.getuid()}"
)


@dataclass(frozen=True)
class Account:
    """A login account of the source; disposable ones were made for this run."""

    name: str
    uid: int
    gid: int
    disposable: bool


class Workplace:
    """One run's directory. ``close`` removes all that the run made, and so does the next run."""

    def __init__(self, base: Path = BASE) -> None:
        self._base = base
        base.mkdir(mode=0o755, parents=True, exist_ok=True)
        base.chmod(0o755)
        with _clearing(base):
            self.root = base / secrets.token_hex(4)
            self.root.mkdir(mode=0o755)
            self.root.chmod(0o755)
            _record_owner(self.root)
        self._accounts: list[Account] = []
        self._group: str | None = None
        self._counter = 0
        self._closed = False
        atexit.register(self.close)

    def directory(self, prefix: str, mode: int = 0o755) -> Path:
        """A new directory of this run; its path is kept short, for sockets."""
        self._counter += 1
        path = self.root / f"{prefix}{self._counter}"
        path.mkdir()
        path.chmod(mode)
        return path

    @property
    def group(self) -> str:
        """The group all accounts of this run share, as ``borg-pull`` is on a real source."""
        if not IS_ROOT:
            return grp.getgrgid(os.getgid()).gr_name
        if self._group is None:
            name = self._new_name()
            _run(["groupadd", "--system", name])
            self._group = name
        return self._group

    def account(self) -> Account:
        """A new system account, or without root the current user, who is all sshd lets in."""
        if not IS_ROOT:
            entry = pwd.getpwuid(os.getuid())
            return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, disposable=False)
        group = self.group
        name = self._new_name()
        home = self.root / "nobodys-home"
        home.mkdir(exist_ok=True)
        # '*' and not '!': sshd without PAM takes the latter for a locked account.
        _run(
            [
                *("useradd", "--system", "--no-create-home", "--home-dir", str(home)),
                *("--gid", group, "--shell", "/bin/sh", "--password", "*", name),
            ]
        )
        entry = pwd.getpwnam(name)
        account = Account(name, entry.pw_uid, entry.pw_gid, disposable=True)
        self._accounts.append(account)
        return account

    def _new_name(self) -> str:
        name = ACCOUNT_PREFIX + secrets.token_hex(4)
        with (self.root / NAMES_FILE).open("a") as names:
            names.write(name + "\n")
        return name

    def close(self) -> None:
        """Remove accounts, their processes and the directory. Safe to call twice."""
        if self._closed or _owner_pid(self.root) != os.getpid():
            return  # forked children run atexit handlers too
        self._closed = True
        _remove_run(self.root)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed with {done.returncode}: {done.stderr.strip()}")


def _record_owner(root: Path) -> None:
    me = processes.read(os.getpid())
    assert me is not None
    (root / OWNER_FILE).write_text(f"{me.pid} {me.start}\n")


def _owner_pid(root: Path) -> int | None:
    try:
        return int((root / OWNER_FILE).read_text().split()[0])
    except (FileNotFoundError, IndexError, ValueError):
        return None


def _is_dead(root: Path) -> bool:
    try:
        pid, start = map(int, (root / OWNER_FILE).read_text().split())
    except (FileNotFoundError, ValueError):
        return True
    process = processes.read(pid)
    return process is None or process.start != start


@contextlib.contextmanager
def _clearing(base: Path) -> Iterator[None]:
    """Remove what dead runs left, holding the lock under which new runs register themselves."""
    descriptor = os.open(base / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        runs = [entry for entry in base.iterdir() if entry.is_dir()]
        living = [run for run in runs if not _is_dead(run)]
        for run in runs:
            if run not in living:
                _remove_run(run)
        if IS_ROOT:
            claimed = {name for run in living for name in _names(run)}
            _remove_accounts(
                [
                    entry.pw_name
                    for entry in pwd.getpwall()
                    if entry.pw_name.startswith(ACCOUNT_PREFIX) and entry.pw_name not in claimed
                ]
            )
        yield
    finally:
        os.close(descriptor)


def _names(run: Path) -> list[str]:
    try:
        return (run / NAMES_FILE).read_text().split()
    except FileNotFoundError:
        return []


def _remove_run(run: Path) -> None:
    _kill(lambda process: str(run) in process.command)
    if IS_ROOT:
        _remove_accounts(_names(run))
        # One may go with another, or by itself.
        for place in _mounted_below(run):
            subprocess.run(["umount", "--lazy", place], capture_output=True, check=False)
        if left := _mounted_below(run):
            raise RuntimeError(f"cannot unmount {', '.join(left)}")
    shutil.rmtree(run, ignore_errors=True)


def _mounted_below(run: Path) -> list[str]:
    lines = Path("/proc/self/mounts").read_text().splitlines()
    places = [line.split(" ")[1] for line in lines]
    return [place for place in places if place.startswith(f"{run}/")]


def _remove_accounts(names: list[str]) -> None:
    for name in names:
        try:
            uid = pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
        _kill(_belongs_to(uid, name))
        _run(["userdel", name])
    for name in names:
        with contextlib.suppress(KeyError):
            grp.getgrnam(name)
            _run(["groupdel", name])


def _belongs_to(uid: int, name: str) -> Callable[[processes.Process], bool]:
    # sshd's own session processes carry the account's name in their title.
    return lambda process: (
        uid in process.uids or (process.name.startswith("sshd") and name in process.command)
    )


def _kill(wanted: Callable[[processes.Process], bool]) -> None:
    def left() -> list[processes.Process]:
        return [
            process
            for process in processes.snapshot()
            if process.pid != os.getpid() and wanted(process)
        ]

    def none_left() -> bool:
        remaining = left()
        for process in remaining:
            process.send(signal.SIGKILL)
        return not remaining

    until(none_left, seconds=20, what="the death of a finished run's processes")
