"""AIO's ``configuration.json``: which target its backups go to, and having it be another.

The file is AIO's own, which rewrites it at any time and does not start with an empty one. So it is
replaced whole or not at all, with its owner and mode, and no key but those of the target differs.
Its directory belongs to an account inside a container: no link is followed there, and nothing is
opened twice by its name.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from borg_pull.aio.texts import MAX_TARGET, brief
from borg_pull.credentials import masked
from borg_pull.errors import ConfigurationError, SystemRefusedError
from borg_pull.linux.paths import open_without_links

HOST_LOCATION = "borg_backup_host_location"
REMOTE_REPOSITORY = "borg_remote_repo"
TARGET_KEYS = (HOST_LOCATION, REMOTE_REPOSITORY)

_DRAFT = ".borg-pull-draft-"
_MAX_BYTES = 4 << 20
_ATTEMPTS = 20

_HALF_WRITTEN_ATTEMPTS = 4
_HALF_WRITTEN_SECONDS = 0.2

_REMEDIES = {
    errno.EROFS: "mount its file system writable; if it went read-only by itself, look at the disk",
    errno.EACCES: "run this as root, unconfined",
    errno.EPERM: "run this as root, unconfined; is the file or its directory immutable (lsattr)?",
}

TargetKeys = dict[str, Any]
"""The keys of the target that the file has, and their values as they stand there."""


class _HalfWrittenError(ConfigurationError):
    """What stands there is no JSON, or not yet."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """The file as it was read."""

    values: dict[str, Any]
    status: os.stat_result
    attributes: Mapping[str, bytes]
    """Extended attributes: access control list, security label."""

    @property
    def target(self) -> TargetKeys:
        """What it says of the target."""
        return {key: self.values[key] for key in TARGET_KEYS if key in self.values}

    @property
    def is_set_up(self) -> bool:
        """Whether AIO's interface has been through its set-up."""
        # AIO's script takes a number as well as a word for it.
        return str(self.values.get("wasStartButtonClicked")).lower() in ("1", "true")

    @property
    def is_restore(self) -> bool:
        """Whether the backup container, if it runs, restores."""
        return self.values.get("backup-mode") == "restore"


def keys_of(*, host_location: str | None, remote_repo: str | None) -> TargetKeys:
    """What the file has to say for that target; exactly one is given."""
    return {HOST_LOCATION: host_location or "", REMOTE_REPOSITORY: remote_repo or ""}


def is_same(one: TargetKeys, other: TargetKeys) -> bool:
    """Whether both name the same target: a key that is missing says as little as an empty one."""
    return all((one.get(key) or "") == (other.get(key) or "") for key in TARGET_KEYS)


def shown(target: TargetKeys) -> str | None:
    """The target for people, without what could be a credential; None when there is none."""
    text = target.get(REMOTE_REPOSITORY) or target.get(HOST_LOCATION)
    return brief(masked(text), MAX_TARGET) if isinstance(text, str) and text else None


class AioConfiguration:
    """The file at ``path``. Every method raises ConfigurationError when it is not as AIO's is, and
    SystemRefusedError when the system does not do what is asked."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._name = os.path.basename(path)

    def read(self) -> Content:
        """What it says now."""
        with self._directory() as directory:
            return self._read(directory)

    def replace_target(self, expected: TargetKeys, wanted: TargetKeys) -> bool:
        """Have ``wanted`` in place of ``expected``; False, and nothing done, when by now it says
        something else than ``expected``."""
        with self._directory() as directory:
            self._remove_drafts(directory)
            for _ in range(_ATTEMPTS):
                content = self._read(directory)
                if not is_same(content.target, expected):
                    return False
                if content.target == wanted or self._replace(directory, content, wanted):
                    return True
        raise SystemRefusedError(f"{self.path} changes all the time", "try again later")

    def has_beside(self, name: str) -> bool:
        """Whether there is a file ``name`` in its directory."""
        return os.path.lexists(os.path.join(os.path.dirname(self.path), name))

    @contextlib.contextmanager
    def _directory(self) -> Iterator[int]:
        path = os.path.dirname(self.path)
        try:
            descriptor = open_without_links(os.fsencode(path), os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _read(self, directory: int) -> Content:
        """AIO writes the file in place: one that is half there is looked at again."""
        for _ in range(_HALF_WRITTEN_ATTEMPTS):
            with contextlib.suppress(_HalfWrittenError):
                return self._read_once(directory)
            time.sleep(_HALF_WRITTEN_SECONDS)
        return self._read_once(directory)

    def _read_once(self, directory: int) -> Content:
        try:
            with self._regular(directory) as file:
                status = os.fstat(file.fileno())
                text = file.read(_MAX_BYTES + 1)
                attributes = {
                    name: os.getxattr(file.fileno(), name) for name in os.listxattr(file.fileno())
                }
        except OSError as error:
            raise self._unusable(error) from error
        if len(text) > _MAX_BYTES:
            raise ConfigurationError(f"{self.path} is larger than {_MAX_BYTES} bytes")
        try:
            values = json.loads(
                text.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite
            )
        except (ValueError, RecursionError) as error:
            raise _HalfWrittenError(
                f"{self.path} is not JSON", "AIO may be writing it; else restore it from a backup"
            ) from error
        if not isinstance(values, dict):
            raise ConfigurationError(f"{self.path} is not a JSON object")
        return Content(values=values, status=status, attributes=attributes)

    @contextlib.contextmanager
    def _regular(self, directory: int) -> Iterator[BinaryIO]:
        """The file, which is looked at before it is opened: opening a device may do something."""
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
        place = os.open(self._name, flags, dir_fd=directory)
        try:
            if not stat.S_ISREG(os.fstat(place).st_mode):
                raise ConfigurationError(f"{self.path} is not a regular file")
            # Not to wait for who holds a lease of it.
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(f"/proc/self/fd/{place}", flags)
        finally:
            os.close(place)
        with open(descriptor, "rb") as file:
            yield file

    def _replace(self, directory: int, content: Content, wanted: TargetKeys) -> bool:
        """False, and nothing done, when AIO has written the file since it was read."""
        values = content.values | wanted
        for key in TARGET_KEYS:
            if key not in wanted:
                values.pop(key, None)
        try:
            # As AIO writes it, so that a comparison of two versions shows what differs.
            text = json.dumps(values, indent=4, allow_nan=False).encode("ascii")
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(f"{self.path} cannot be written again: {error}") from error
        if len(text) > _MAX_BYTES:
            raise ConfigurationError(f"{self.path} would become larger than {_MAX_BYTES} bytes")
        draft = f"{_DRAFT}{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(draft, flags, 0o600, dir_fd=directory)
            try:
                with open(descriptor, "wb") as file:
                    file.write(text)
                    file.flush()
                    for name, value in content.attributes.items():
                        os.setxattr(descriptor, name, value)
                    os.fchown(descriptor, content.status.st_uid, content.status.st_gid)
                    os.fchmod(descriptor, stat.S_IMODE(content.status.st_mode))
                    os.fsync(descriptor)
                now = os.stat(self._name, dir_fd=directory, follow_symlinks=False)
                if _version(now) != _version(content.status):
                    os.unlink(draft, dir_fd=directory)
                    return False
                os.rename(draft, self._name, src_dir_fd=directory, dst_dir_fd=directory)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(draft, dir_fd=directory)
                raise
            os.fsync(directory)
        except OSError as error:
            refused = SystemRefusedError.because(f"{self.path} cannot be replaced", error)
            refused.hint = refused.hint or _REMEDIES.get(error.errno or 0)
            raise refused from error
        return True

    def _remove_drafts(self, directory: int) -> None:
        """What a companion that was killed has left; only one at a time writes here."""
        for name in os.listdir(directory):
            if name.startswith(_DRAFT):
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=directory)

    def _unusable(self, error: OSError) -> ConfigurationError:
        return ConfigurationError(
            f"AIO's configuration {self.path} cannot be used: {error.strerror}",
            "is Nextcloud AIO installed, and aio.configuration_file right?",
        )


def _version(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _finite(text: str) -> float:
    """A number too large for one becomes infinite, which JSON has no word for."""
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:20]} is too large")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
