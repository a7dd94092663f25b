"""What the borg process may do: the paths it is given and the privilege it keeps."""

from __future__ import annotations

import errno
import os
import stat

from borg_pull.errors import NotAllowedError, SystemRefusedError
from borg_pull.linux import capabilities, paths, process
from borg_pull.linux.signals import SIGKILL
from borg_pull.record import Record
from borg_pull.source.request import quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from borg_pull.source.judge import Grant


class Root(Record):
    """One granted path, opened: the descriptor pins what was checked until the run has ended."""

    path: str
    descriptor: int

    def is_in_place(self) -> bool:
        """Whether the path still leads to what was opened.

        /proc names the descriptor's present place without a look-up, so this needs no privilege.
        """
        now = os.readlink(f"/proc/self/fd/{self.descriptor}".encode())
        return now == os.fsencode(self.path.rstrip("/") or "/")


class Confinement(Record):
    """What confines borg in this run, for the audit record."""

    capability: bool
    """Whether borg has CAP_DAC_READ_SEARCH; without it, it reads what the account can."""
    no_new_privs: bool
    landlock: int | None
    """ABI level in force."""

    def as_fields(self) -> dict[str, bool | int | None]:
        """The record's fields."""
        return {
            "capability": self.capability,
            "no_new_privs": self.no_new_privs,
            "landlock": self.landlock,
        }


def planned() -> Confinement:
    """The confinement that `enter` will bring about."""
    return Confinement(
        capability=capabilities.is_permitted(capabilities.DAC_READ_SEARCH),
        no_new_privs=True,
        landlock=None,
    )


def open_roots(grants: Sequence[Grant], *, refuse_empty: bool) -> list[Root]:
    """Open every granted path as borg will, and check that there is something to read.

    Borg itself reports a missing root with a warning and saves an archive without it. No
    component may be a symbolic link: whoever can write one could point it anywhere.
    Raises NotAllowedError for a link, SystemRefusedError for what cannot be read.
    """
    capabilities.make_effective(capabilities.DAC_READ_SEARCH)
    try:
        return [_open_root(grant.path, refuse_empty=refuse_empty) for grant in grants]
    finally:
        capabilities.make_effective(None)


def _open_root(path: str, *, refuse_empty: bool) -> Root:
    encoded = os.fsencode(path)
    try:
        descriptor = paths.open_without_links(encoded, os.O_PATH | os.O_NOFOLLOW)
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            empty = _is_empty_directory(encoded)
        elif stat.S_ISREG(status.st_mode):
            os.close(paths.open_without_links(encoded, os.O_RDONLY | os.O_NOCTTY))
            empty = status.st_size == 0
        else:
            empty = False
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotAllowedError(
                f"path {quoted(path)} is or leads through a symbolic link",
                "ask for, and allow, the path it leads to",
            ) from error
        raise SystemRefusedError(
            f"path {quoted(path)} cannot be read: {error.strerror}",
            "nothing was saved",
        ) from error
    if stat.S_ISLNK(status.st_mode):
        raise NotAllowedError(
            f"path {quoted(path)} is or leads through a symbolic link",
            "ask for, and allow, the path it leads to",
        )
    if empty and refuse_empty:
        raise SystemRefusedError(
            f"path {quoted(path)} is empty",
            "is its file system mounted? nothing was saved",
        )
    return Root(path=path, descriptor=descriptor)


def _is_empty_directory(path: bytes) -> bool:
    descriptor = paths.open_without_links(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with os.scandir(descriptor) as entries:
            return next(entries, None) is None
    finally:
        os.close(descriptor)


def enter(confinement: Confinement, parent: int) -> None:
    """Reduce the calling process, which is about to become borg, to what it may do.

    ``parent`` is the pid the process was forked from. Raises SystemRefusedError.
    """
    if confinement.capability:
        capabilities.keep_only_across_exec(capabilities.DAC_READ_SEARCH)
    else:
        capabilities.drop_all()
    process.set_no_new_privileges()
    # After the capabilities: the kernel forgets the signal when credentials change.
    process.set_parent_death_signal(SIGKILL)
    if os.getppid() != parent:
        raise SystemRefusedError("the forced command ended before borg could start")
