"""Secrets: repositories' passphrases, and files of URLs that hold credentials.

They are read where they are needed, kept in memory alone, and stand in no message.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

from borg_pull.errors import ConfigurationError
from borg_pull.pull.config import Repository

COMMAND_SECONDS = 60.0
"""How long a passphrase_command may take: long enough to unlock a store, not to hang a night."""

MAX_SECRET = 64 * 1024  # bytes
SERVICE = "borg-pull"
"""Under which the desktop's secret store keeps ours."""


def passphrase(name: str, repository: Repository) -> bytes | None:
    """The passphrase of the repository ``name``, without its newline; None when it has none.

    Raises ConfigurationError.
    """
    if repository.passphrase_file is not None:
        return _first_line(read(repository.passphrase_file), str(repository.passphrase_file))
    if repository.passphrase_command is not None:
        key = f"repository.{name}.passphrase_command"
        return _first_line(_printed(repository.passphrase_command, key), key)
    if repository.passphrase_credential is not None:
        return _credential(repository.passphrase_credential)
    return None


def read(path: Path) -> bytes:
    """The content of a file that nobody but its owner, and perhaps a group, can read.

    Raises ConfigurationError.
    """
    try:
        # O_NONBLOCK: opening a FIFO must not wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            status = os.fstat(descriptor)
            _check_status(path, status)
            content = stream.read(MAX_SECRET + 1)
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"{path} does not exist", "put it back from where its copy is kept, with mode 0600"
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror}", "give it to this account, with mode 0600"
        ) from error
    if len(content) > MAX_SECRET:
        raise ConfigurationError(f"{path} is larger than {MAX_SECRET} bytes")
    return content


def lines(path: Path) -> list[str]:
    """The lines of a secret file of text, but empty ones and comments (``#``).

    Raises ConfigurationError.
    """
    try:
        found = [line.strip() for line in read(path).decode("utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8 text") from error
    return [line for line in found if line and not line.startswith("#")]


def _check_status(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ConfigurationError(f"{path} is not a regular file")
    if status.st_uid not in (0, os.geteuid()):
        raise ConfigurationError(
            f"{path} belongs to uid {status.st_uid}, not to root or this user",
            "give it to this user",
        )
    if status.st_mode & stat.S_IRWXO:
        raise ConfigurationError(f"{path} is open to others", f"run chmod 0600 {path}")
    if status.st_mode & stat.S_IWGRP:
        raise ConfigurationError(f"{path} can be written by its group", f"run chmod g-w {path}")


def _first_line(content: bytes, origin: str) -> bytes:
    line = content.partition(b"\n")[0].removesuffix(b"\r")
    if not line:
        raise ConfigurationError(f"{origin} yields no passphrase", "its first line is empty")
    if b"\0" in line:
        raise ConfigurationError(f"{origin} yields no passphrase", "its first line has a NUL")
    return line


def _printed(command: Sequence[str], key: str) -> bytes:
    """What ``command`` prints. Raises ConfigurationError."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise ConfigurationError(f"{key}: cannot run {command[0]}: {error.strerror}") from error
    with process:
        try:
            printed, _nothing = process.communicate(timeout=COMMAND_SECONDS)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise ConfigurationError(
                f"{key}: {command[0]} gave nothing within {COMMAND_SECONDS:g} s"
            ) from error
    if process.returncode != 0:
        raise ConfigurationError(
            f"{key}: {command[0]} ended with {process.returncode}", "run it by hand to see why"
        )
    return printed


def _credential(name: str) -> bytes:
    """The credential that systemd passed to the service, else the one in the desktop's store."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if directory is not None:
        path = Path(directory) / name
        if path.exists():
            return _first_line(_systemd_credential(path), f"credential {name}")
    found = _stored(name)
    if found is None:
        raise ConfigurationError(
            f"there is no credential {name}",
            "have systemd load it for the service (LoadCredential), or store it with: "
            f"secret-tool store --label=borg-pull service {SERVICE} username {name}",
        )
    return _first_line(found.encode("utf-8"), f"credential {name}")


def _systemd_credential(path: Path) -> bytes:
    # systemd sees to who can read it; its modes differ between versions.
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_SECRET)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error


def _stored(name: str) -> str | None:
    # A tenth of a second to import, for the few who use it.
    import keyring
    from keyring.backends.fail import Keyring as NoKeyring

    store = keyring.get_keyring()
    if isinstance(store, NoKeyring):
        return None
    try:
        return store.get_password(SERVICE, name)
    except Exception as error:
        # What a store's own transport raises goes through keyring as it is.
        said = str(error) or type(error).__name__
        raise ConfigurationError(
            f"credential {name}: the secret store does not answer: {said}"
        ) from error
