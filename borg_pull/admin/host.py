"""What the admin's commands find on this host: files, accounts, programs. Changes nothing."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from borg_pull.configuration_files import client_directory, client_file, main_file
from borg_pull.errors import (
    BorgPullError,
    ConfigurationError,
)
from borg_pull.linux.capabilities import DAC_READ_SEARCH
from borg_pull.linux.paths import open_without_links
from borg_pull.schema import SourceFile
from borg_pull.source.whitelist import Settings, load_settings
from borg_pull.trust import Trust

UNCHECKED = Trust(enforced=False, uid=0)
"""For reading alone: nothing that is read is acted upon with any privilege."""

CLIENT_FILE_SUFFIX = ".toml"


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
    return next(
        (directory for directory in above if not os.access(directory, os.X_OK, effective_ids=True)),
        None,
    )


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
