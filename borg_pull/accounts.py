"""The account that the forced command runs as, found on this host, and acting as it.

What root writes for that account must be the account's own: a log or a lock file of root's would
shut it out.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
from dataclasses import dataclass
from typing import TYPE_CHECKING

from borg_pull.errors import RequestError, SystemRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from borg_pull.settings import Runtime

USUAL_ACCOUNT = "borg-pull"
"""The account that packaging/install.sh makes."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """The account that the forced command runs as."""

    name: str
    """Its number in digits where it has no name."""
    uid: int
    gid: int

    @property
    def group(self) -> str:
        """Name of its group, the number in digits where it has none."""
        return _group_name(self.gid)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of all its groups, its own first."""
        others = set(os.getgrouplist(self.name, self.gid)) - {self.gid}
        return (self.group, *sorted(map(_group_name, others)))


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def account_named(name: str) -> Account:
    """The account of that name. Raises RequestError."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise RequestError(f"there is no account {name}", "name another with --user") from None
    return Account(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid)


def home_of(account: Account) -> str:
    """Its home directory by the account database. Raises KeyError."""
    return pwd.getpwnam(account.name).pw_dir


def owner_of(path: str) -> Account | None:
    """The account that owns ``path``, None when that cannot be seen."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    try:
        entry = pwd.getpwuid(status.st_uid)
    except KeyError:
        return Account(name=str(status.st_uid), uid=status.st_uid, gid=status.st_gid)
    return Account(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid)


def account_behind(*directories: str) -> Account | None:
    """The account that most likely runs the forced command that uses ``directories``.

    That is who owns the first of them, so that a mistake in its owner is found: the usual
    account, if it owns one or only root does. None when there is neither.
    """
    owners = [owner for owner in map(owner_of, directories) if owner is not None]
    ordinary = [owner for owner in owners if owner.uid != 0]
    try:
        usual = account_named(USUAL_ACCOUNT)
    except RequestError:
        return next(iter(ordinary or owners), None)
    return usual if not ordinary or usual in ordinary else ordinary[0]


def forced_command_account(runtime: Runtime, user: str | None) -> Account:
    """The account that ``user`` names, else the one behind ``runtime``; never root's.

    Raises RequestError, SystemRefusedError when this process cannot act as it.
    """
    account = (
        account_behind(runtime.home, runtime.socket_dir) if user is None else account_named(user)
    )
    if account is None or account.uid == 0:
        raise RequestError(
            f"the forced command's account cannot be told from who owns {runtime.home}",
            "name it with --user",
        )
    if not can_act_as(account):
        raise SystemRefusedError(
            f"only root and {account.name} have access to {runtime.home}", "run this as root"
        )
    return account


def can_act_as(account: Account) -> bool:
    """Whether `acting_as` sees exactly what the account sees."""
    return os.geteuid() in (0, account.uid)


@contextlib.contextmanager
def acting_as(account: Account, *, signalling: bool = False) -> Iterator[None]:
    """Look at files and write as ``account`` does, with ``signalling`` also send signals; no change
    for who is neither root nor that account.

    Root keeps itself as real and saved identity: it is open to the signals of an account that is
    its real one, which could stop it in the midst of what it does. os.access and the like are to be
    asked for the effective identity.
    """
    if os.geteuid() != 0 or account.uid == 0:
        yield
        return
    groups = os.getgroups()
    # kill(2) goes by the sender's real identity, too.
    uid, gid = (account.uid, account.gid) if signalling else (0, 0)
    try:
        os.setgroups(os.getgrouplist(account.name, account.gid))
        os.setresgid(gid, account.gid, 0)
        os.setresuid(uid, account.uid, 0)
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(groups)
