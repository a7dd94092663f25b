"""What the admin's commands find on this host: files, accounts, programs. Changes nothing."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from borg_pull.configuration_files import client_directory, client_file, main_file
from borg_pull.errors import (
    BorgPullError,
    ConfigurationError,
    RequestError,
    SystemRefusedError,
)
from borg_pull.linux.capabilities import DAC_READ_SEARCH
from borg_pull.linux.paths import open_without_links
from borg_pull.schema import SourceFile
from borg_pull.source.whitelist import Settings, load_settings
from borg_pull.trust import Trust

UNCHECKED = Trust(enforced=False, uid=0)
"""For reading alone: nothing that is read is acted upon with any privilege."""

CLIENT_FILE_SUFFIX = ".toml"

USUAL_ACCOUNT = "borg-pull"
"""The account that packaging/install.sh makes."""


def absolute(config: str) -> str:
    """The configuration's path as the forced command is to be given it."""
    return config if config.startswith("/") else os.path.abspath(config)


def settings_of(config: str) -> Settings:
    """The settings of the whitelist at ``config``. Raises ConfigurationError."""
    settings = load_settings(main_file(absolute(config), UNCHECKED))
    if settings is None:
        raise ConfigurationError(f"{config} is wrong", "see borg-pull-admin check")
    return settings


def audit_file(config: str) -> str:
    """The audit log of the whitelist at ``config``. Raises ConfigurationError."""
    return settings_of(config).audit.file


@dataclass(frozen=True, kw_only=True)
class ClientFiles:
    """What stands in ``clients.d``."""

    files: dict[str, SourceFile]
    """By client name."""
    unusable: list[tuple[str, BorgPullError]]
    """Path and error of each file that cannot be read."""
    ignored: list[str]
    """Paths of what no forced command ever reads."""


def client_files(config: str, trust: Trust) -> ClientFiles:
    """Every file of ``clients.d`` beside ``config``; all empty when there is no such directory."""
    found = ClientFiles(files={}, unusable=[], ignored=[])
    directory = client_directory(config)
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return found
    except OSError as error:
        unusable = ConfigurationError(f"{directory} cannot be used: {error.strerror}")
        found.unusable.append((directory, unusable))
        return found
    for name in names:
        path = f"{directory}/{name}"
        client = name.removesuffix(CLIENT_FILE_SUFFIX)
        if client == name or name.startswith("."):
            found.ignored.append(path)
            continue
        try:
            file = client_file(config, client, trust)
        except ConfigurationError as error:
            found.unusable.append((path, error))
            continue
        if file is not None:
            found.files[client] = file
    return found


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


def forced_command_account(settings: Settings, user: str | None) -> Account:
    """The account that ``user`` names, else the one behind ``settings``; never root's.

    Raises RequestError, SystemRefusedError when this process cannot act as it.
    """
    runtime = settings.runtime
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
def acting_as(account: Account) -> Iterator[None]:
    """Look at files, write and signal as ``account`` does; no change for who is neither root nor
    that account.

    Root keeps itself as saved identity, so that the way back is open.
    """
    if os.geteuid() != 0 or account.uid == 0:
        yield
        return
    groups = os.getgroups()
    try:
        os.setgroups(os.getgrouplist(account.name, account.gid))
        os.setresgid(account.gid, account.gid, 0)
        os.setresuid(account.uid, account.uid, 0)
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(groups)


_CAPABILITY_ATTRIBUTE = "security.capability"


def has_capability(program: str) -> bool:
    """Whether the file grants CAP_DAC_READ_SEARCH to who runs it.

    Then the forced command obeys no file that its caller could have written.
    """
    try:
        value = os.getxattr(program, _CAPABILITY_ATTRIBUTE)
    except OSError:
        return False
    # struct vfs_cap_data of linux/capability.h: flags and revision, then the permitted set's
    # lower half, all little-endian.
    return bool(int.from_bytes(value[4:8], "little") >> DAC_READ_SEARCH & 1)


def barred_directory(path: str) -> str | None:
    """The topmost directory above ``path`` that the running user may not pass through."""
    parts = os.path.dirname(path).split("/")
    above = ("/".join(parts[: count + 1]) or "/" for count in range(len(parts)))
    return next((directory for directory in above if not os.access(directory, os.X_OK)), None)


def path_obstacle(path: str, *, refuse_empty: bool) -> str | None:
    """Why the forced command would not open ``path`` as it stands now, else None.

    The order and the calls are those of ``source.confine``. Raises PermissionError when the
    running user cannot see it.
    """
    encoded = os.fsencode(path)
    try:
        descriptor = open_without_links(encoded, os.O_PATH | os.O_NOFOLLOW)
        try:
            status = os.fstat(descriptor)
            if stat.S_ISLNK(status.st_mode):
                return _link_text(path)
        finally:
            os.close(descriptor)
        if not refuse_empty:
            return None
        if stat.S_ISDIR(status.st_mode):
            with os.scandir(encoded) as entries:
                empty = next(entries, None) is None
        else:
            empty = stat.S_ISREG(status.st_mode) and status.st_size == 0
    except PermissionError:
        raise
    except OSError as error:
        if error.errno == errno.ELOOP:
            return _link_text(path)
        if error.errno == errno.ENOENT:
            return "does not exist now"
        return f"cannot be read: {error.strerror}"
    return "is empty, which refuse_empty refuses" if empty else None


def _link_text(path: str) -> str:
    return f"is or leads through a symbolic link, to {os.path.realpath(path)}"
