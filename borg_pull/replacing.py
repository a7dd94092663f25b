"""Writing a file that others read meanwhile: whole and on the disk, or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets


def replace(path: str, content: bytes, *, mode: int = 0o644) -> None:
    """Put a file of that mode, the caller's own, at ``path``. Raises OSError."""
    draft = f"{path}.{secrets.token_hex(4)}"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        os.rename(draft, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
        raise
    sync_directory_of(path)


def sync_directory_of(path: str) -> None:
    """Have what became of the name ``path`` on the disk. Raises OSError."""
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
