"""What the kernel of this host can enforce, and whether it is set to."""

from __future__ import annotations

import errno
import os

from borg_pull import accounts
from borg_pull.findings import Findings
from borg_pull.linux import landlock
from borg_pull.linux.paths import open_without_links

_TCP_LEVEL = 4
_SCOPE_LEVEL = 6


def look(findings: Findings, account: accounts.Account | None, landlock_mode: str) -> None:
    """Look at each feature that a run relies on."""
    _look_at_landlock(findings, landlock_mode)
    _look_at_path_walks(findings)
    for code, subject, is_there, since in (
        ("seccomp", "seccomp", os.path.exists("/proc/sys/kernel/seccomp/actions_avail"), "4.14"),
        ("no-new-privs", "no_new_privs", _has_no_new_privs(), "4.10"),
        ("children", "/proc/thread-self/children", _lists_children(), "4.2"),
    ):
        if is_there:
            findings.ok(f"kernel.{code}", subject, "is there")
            continue
        findings.wrong(
            "error",
            f"kernel.{code}",
            subject,
            "is not there",
            why="a request needs it, and is refused",
            remedy=f"run a kernel of Linux {since} or newer that has it",
        )
    _look_at_links(findings)
    _look_at_proc(findings, account)


def _look_at_landlock(findings: Findings, mode: str) -> None:
    level = landlock.abi()
    remedy = (
        "start the kernel with lsm=landlock,... (see /sys/kernel/security/lsm), or use Linux 5.13"
    )
    if mode == "off":
        findings.wrong(
            "warning",
            "kernel.landlock",
            "Landlock",
            "is off by confine.landlock",
            why="borg, if taken over, reads every file of the host",
            remedy='take landlock = "off" out of the whitelist',
        )
    elif level is None:
        findings.wrong(
            "error" if mode == "required" else "warning",
            "kernel.landlock",
            "Landlock",
            "is not there, or switched off",
            needed=mode,
            why="nothing runs"
            if mode == "required"
            else "borg, if taken over, reads every file of the host",
            remedy=remedy,
        )
    elif level < _SCOPE_LEVEL:
        lacks = (
            "signals and abstract sockets" if level >= _TCP_LEVEL else "TCP, signals and sockets"
        )
        findings.wrong(
            "warning",
            "kernel.landlock",
            "Landlock",
            f"is of level {level}",
            needed=f"level {_SCOPE_LEVEL}",
            why=f"it does not cover {lacks}; the filter of system calls covers most of that",
            remedy="use Linux 6.12 or newer",
        )
    else:
        findings.ok("kernel.landlock", "Landlock", f"level {level}, {mode}")


def _look_at_path_walks(findings: Findings) -> None:
    try:
        os.close(open_without_links(b"/", os.O_PATH))
    except OSError as error:
        findings.wrong(
            "error",
            "kernel.openat2",
            "openat2",
            os.strerror(error.errno or errno.ENOSYS),
            why="granted paths are opened with it",
            remedy="use Linux 5.6 or newer",
        )
        return
    findings.ok("kernel.openat2", "openat2", "is there")


def _has_no_new_privs() -> bool:
    with open("/proc/self/status", encoding="utf-8") as file:
        return any(line.startswith("NoNewPrivs:") for line in file)


def _lists_children() -> bool:
    return os.path.exists("/proc/thread-self/children")


def _look_at_links(findings: Findings) -> None:
    path = "/proc/sys/fs/protected_hardlinks"
    with open(path, encoding="ascii") as file:
        value = file.read().strip()
    if value == "1":
        findings.ok("kernel.hardlinks", "fs.protected_hardlinks", value)
        return
    findings.wrong(
        "error",
        "kernel.hardlinks",
        "fs.protected_hardlinks",
        value,
        needed="1",
        why="a local user could link to the program with the capability, beside modules of his own",
        remedy="echo fs.protected_hardlinks=1 > /etc/sysctl.d/99-borg-pull.conf && sysctl --system",
    )


def _look_at_proc(findings: Findings, account: accounts.Account | None) -> None:
    """The forced command looks for the sshd processes above it, which are root's."""
    if account is None or not accounts.can_act_as(account):
        findings.unchecked("kernel.proc", "/proc", "was not seen with the account's eyes")
        return
    with accounts.acting_as(account):
        try:
            with open("/proc/1/stat", "rb") as file:
                is_seen = bool(file.read(1))
        except OSError:
            is_seen = False
    if is_seen:
        findings.ok("kernel.proc", "/proc", f"shows {account.name} the processes of root")
        return
    findings.wrong(
        "error",
        "kernel.proc",
        "/proc",
        f"hides the processes of others from {account.name} (hidepid)",
        why="the forced command cannot find its session's sshd, and refuses with 69",
        remedy=f"mount -o remount,hidepid=invisible,gid={account.group} /proc, and in /etc/fstab",
    )
