"""The account that clients log in to: whether sshd lets it in, and what else it is."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shlex
import stat
import subprocess
import time
from typing import Literal

from borg_pull import accounts
from borg_pull.admin.doctor.daemon import Effective
from borg_pull.findings import Findings
from borg_pull.source.whitelist import Settings

_SHELLS = ("bash", "dash", "sh")
_PLAIN_SHELLS = ("dash", "sh")
_DAY = 86400
_NO_PASSWORD = "*"  # noqa: S105  # a field of /etc/shadow that is no password's hash


def look(
    findings: Findings, account: accounts.Account, settings: Settings, effective: Effective | None
) -> None:
    """Look at everything the account databases say of it, and at its home."""
    name = account.name
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        findings.wrong(
            "error",
            "account.entry",
            name,
            "has no name in the account database",
            why="nobody can log in to it",
            remedy="packaging/install.sh makes one; chown its directories to it",
        )
        return
    findings.ok("account.entry", name, f"uid {entry.pw_uid}, group {account.group}")
    _look_at_shell(findings, name, entry.pw_shell)
    _look_at_home(findings, account, entry.pw_dir, settings)
    _look_at_groups(findings, account)
    _look_at_password(findings, name, effective)


def _look_at_shell(findings: Findings, name: str, shell: str) -> None:
    shell = shell or "/bin/sh"
    remedy = f"usermod --shell /bin/sh {name}"
    if not os.path.isfile(shell) or not os.access(shell, os.X_OK, effective_ids=True):
        findings.wrong(
            "error",
            "account.shell",
            shell,
            f"{name}'s shell is no program",
            why="sshd refuses the account",
            remedy=remedy,
        )
        return
    kind = os.path.basename(shell)
    if kind not in _SHELLS:
        findings.wrong(
            "error",
            "account.shell",
            shell,
            f"is {name}'s shell",
            needed="/bin/sh",
            why="sshd runs the forced command through it; nologin and the like run nothing",
            remedy=remedy,
        )
    elif kind not in _PLAIN_SHELLS:
        findings.wrong(
            "warning",
            "account.shell",
            shell,
            f"is {name}'s shell",
            needed="/bin/sh",
            why="it runs ~/.bashrc before the forced command when sshd starts it",
            remedy=remedy,
        )
    else:
        findings.ok("account.shell", shell, f"is {name}'s shell")


def _look_at_home(
    findings: Findings, account: accounts.Account, home: str, settings: Settings
) -> None:
    """What lies in a home is run by shells and interpreters: no borg may be able to write there."""
    clients = f"{settings.runtime.home.rstrip('/')}/clients"
    remedy = f"usermod --home {shlex.quote(settings.runtime.home)} {account.name}"
    if home == clients or home.startswith(f"{clients}/"):
        findings.wrong(
            "error",
            "account.home",
            home,
            "lies where borg can write",
            why="a borg that was taken over could leave there what a later login runs",
            remedy=remedy,
        )
        return
    try:
        status = os.stat(home)
    except OSError as error:
        findings.wrong(
            "warning",
            "account.home",
            home,
            f"cannot be used: {error.strerror}",
            why="each request is told so on standard error",
            remedy=remedy,
        )
        return
    owned = status.st_uid in (0, account.uid)
    if owned and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        findings.ok("account.home", home, f"is {account.name}'s or root's alone to change")
        return
    quoted = shlex.quote(home)
    findings.wrong(
        "error",
        "account.home",
        home,
        "can be changed by others",
        needed="the account's or root's, and writable by nobody else",
        why="what they put there is run at a login",
        remedy=f"chown {account.name} {quoted} && chmod go-w {quoted}",
    )


def _look_at_groups(findings: Findings, account: accounts.Account) -> None:
    others = account.groups[1:]
    if others:
        findings.wrong(
            "warning",
            "account.groups",
            account.name,
            f"is also in {', '.join(others)}",
            why="a borg that was taken over can reach what these may, such as their sockets",
            remedy=" && ".join(f"gpasswd -d {account.name} {other}" for other in others),
        )
    else:
        findings.ok("account.groups", account.name, f"is in {account.group} alone")
    members = {entry.pw_name for entry in pwd.getpwall() if entry.pw_gid == account.gid}
    with contextlib.suppress(KeyError):
        members |= set(grp.getgrgid(account.gid).gr_mem)
    strangers = sorted(members - {account.name, "root"})
    if strangers:
        findings.wrong(
            "warning",
            "account.members",
            account.group,
            f"has other members: {', '.join(strangers)}",
            why="they may start the program that holds the capability, and read the audit log",
            remedy=" && ".join(f"gpasswd -d {other} {account.group}" for other in strangers),
        )
    else:
        findings.ok("account.members", account.group, f"has no member but {account.name}")


def _look_at_password(findings: Findings, name: str, effective: Effective | None) -> None:
    if os.geteuid() != 0:
        findings.unchecked("account.password", name, "only root can read /etc/shadow")
        return
    said = subprocess.run(
        ["/usr/bin/getent", "shadow", name],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    fields = said.stdout.rstrip("\n").split(":")
    if len(fields) < 9:
        findings.wrong(
            "error",
            "account.password",
            name,
            "has no entry in /etc/shadow",
            why="sshd refuses the account",
            remedy="pwconv",
        )
        return
    without_pam = effective is not None and effective.get("usepam", ("no",)) == ("no",)
    _look_at_field(findings, name, fields[1], without_pam=without_pam)
    _look_at_age(findings, name, fields)


def _look_at_field(findings: Findings, name: str, field: str, *, without_pam: bool) -> None:
    level: Literal["error", "warning"]
    if field == _NO_PASSWORD:
        findings.ok("account.password", name, "has * for a password: keys alone")
        return
    if field.startswith("!"):
        level = "error" if without_pam else "warning"
        found = "is locked: its password field begins with !"
        why = "sshd refuses its keys, too, where it does without PAM"
    elif not field:
        level, found, why = "error", "has an empty password", "anybody becomes it with su"
    else:
        level, found, why = "warning", "has a password", "it needs none, and one can be guessed"
    findings.wrong(
        level,
        "account.password",
        name,
        found,
        needed=_NO_PASSWORD,
        why=why,
        remedy=f"usermod --password '*' {name}",
    )


def _look_at_age(findings: Findings, name: str, fields: list[str]) -> None:
    """What ends an account: a date, or a password that is due to be changed."""
    today = int(time.time()) // _DAY
    changed, longest, ends = (
        int(fields[at]) if fields[at].lstrip("-").isdigit() else None for at in (2, 4, 7)
    )
    if ends is not None and 0 <= ends <= today:
        found, remedy = "has expired", f"chage --expiredate -1 {name}"
    elif changed == 0 or (
        changed is not None and longest is not None and 0 <= longest < today - changed
    ):
        found = "must change its password at the next login"
        remedy = f"chage --maxdays -1 --lastday {time.strftime('%Y-%m-%d')} {name}"
    else:
        findings.ok("account.age", name, "does not expire now")
        return
    findings.wrong(
        "error", "account.age", name, found, why="sshd refuses the account", remedy=remedy
    )
