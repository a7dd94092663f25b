"""What the borg process may do: the paths it is given and the privilege it keeps."""

from __future__ import annotations

import errno
import os
import stat

from borg_pull.errors import NotAllowedError, SystemRefusedError
from borg_pull.linux import capabilities, landlock, paths, process
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


def planned(landlock_mode: str) -> Confinement:
    """The confinement that `enter` will bring about.

    ``landlock_mode`` is ``required``, ``auto`` or ``off``. Raises SystemRefusedError when it is
    required and the kernel has none.
    """
    level = None if landlock_mode == "off" else landlock.abi()
    if level is None and landlock_mode == "required":
        raise SystemRefusedError(
            "the kernel has no Landlock, which confine.landlock requires",
            "start it with lsm=landlock,... or use Linux 5.13 or newer",
        )
    return Confinement(
        capability=capabilities.is_permitted(capabilities.DAC_READ_SEARCH),
        no_new_privs=True,
        landlock=level,
    )


# What borg, its interpreter and a socket wrapper must load or look up wherever they run.
_PROGRAMS = (
    "/bin",
    "/lib",
    "/lib64",
    "/usr/bin",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/bin",
    "/usr/local/lib",
)
_LOOKED_UP = (
    "/etc/group",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/resolv.conf",
    "/etc/ssl/openssl.cnf",
    "/dev/random",
    "/dev/urandom",
    "/dev/zero",
    # The names of owners, where they come from a directory service.
    "/var/lib/sss/mc",
    "/usr/share/locale",
    "/usr/share/zoneinfo",
    # Debian's interpreters read their sitecustomize.py through a link to here.
    *(f"/etc/python3.{minor}" for minor in range(9, 16)),
)


def ruleset(
    confinement: Confinement,
    roots: Sequence[Root],
    *,
    state: str,
    programs: Sequence[str],
    also_readable: Sequence[str],
) -> landlock.Ruleset | None:
    """Rules for one run, None where Landlock is not in force.

    Contents can be read below the roots, of the programs and of what they load; written in the
    client's own ``state`` directory alone. The roots' own descriptors become rules, so a link
    swapped in after they were opened changes nothing. Borg lists the directory each root stands
    in, which therefore may be listed, not read. Raises SystemRefusedError.
    """
    if confinement.landlock is None:
        return None
    rules = landlock.Ruleset(confinement.landlock)
    for root in roots:
        rules.allow(root.descriptor, landlock.READ)
        rules.allow_path(os.path.dirname(root.path.rstrip("/")) or "/", landlock.LIST)
    for path in _PROGRAMS:
        rules.allow_path(path, landlock.READ_AND_EXECUTE)
    for program in programs:
        for path in _program_places(program):
            rules.allow_path(path, landlock.READ_AND_EXECUTE)
    for path in _LOOKED_UP:
        rules.allow_path(path, landlock.READ)
    for path in also_readable:
        rules.allow_path(path, landlock.READ_AND_EXECUTE)
    rules.allow_path("/dev/null", landlock.READ_AND_WRITE_FILE)
    rules.allow_path(state, landlock.EVERYTHING)
    return rules


def _program_places(program: str) -> list[str]:
    """What must be readable for ``program`` to load: itself, and the tree it is installed in
    when that can be told: the prefix of a ``bin`` directory, or a bundle with its ``_internal``."""
    places = [program]
    for path in (program, os.path.realpath(program)):
        directory = os.path.dirname(path)
        prefix, _, last = directory.rpartition("/")
        if last == "bin" and prefix not in ("", "/usr", "/usr/local"):
            places.append(prefix)
        elif os.path.isdir(f"{directory}/_internal"):
            places.append(directory)
    return places


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


def enter(confinement: Confinement, rules: landlock.Ruleset | None, parent: int) -> None:
    """Reduce the calling process, which is about to become borg, to what it may do.

    ``parent`` is the pid the process was forked from. Raises SystemRefusedError.
    """
    if confinement.capability:
        capabilities.keep_only_across_exec(capabilities.DAC_READ_SEARCH)
    else:
        capabilities.drop_all()
    process.set_no_new_privileges()
    if rules is not None:
        rules.enforce()
    # After the capabilities: the kernel forgets the signal when credentials change.
    process.set_parent_death_signal(SIGKILL)
    if os.getppid() != parent:
        raise SystemRefusedError("the forced command ended before borg could start")
