"""What the borg process may do: the paths it is given and the privilege it keeps."""

from __future__ import annotations

import errno
import os
import stat

from borg_pull.errors import NotAllowedError, SystemRefusedError
from borg_pull.linux import capabilities, landlock, paths, process, seccomp
from borg_pull.linux.signals import SIGKILL
from borg_pull.record import Record
from borg_pull.source.borg import lock_directory
from borg_pull.source.installation import socket_wrapper
from borg_pull.source.state import places
from borg_pull.values import quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from borg_pull.source.judge import Allowed, Grant
    from borg_pull.source.whitelist import Settings


class Root(Record):
    """One granted path, opened: the descriptor pins what was checked until the run has ended."""

    path: str
    descriptor: int
    parent: int
    """Descriptor of the directory it stands in, by which it was opened."""

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
    seccomp: bool
    """Whether system calls are filtered."""

    def as_fields(self) -> dict[str, bool | int | None]:
        """The record's fields."""
        return {
            "capability": self.capability,
            "no_new_privs": self.no_new_privs,
            "landlock": self.landlock,
            "seccomp": self.seccomp,
        }

    def without_capability(self) -> Confinement:
        """The same for a program that need not read what the account cannot."""
        return Confinement(
            capability=False,
            no_new_privs=self.no_new_privs,
            landlock=self.landlock,
            seccomp=self.seccomp,
        )


# Of what the admin names, a program for a passphrase, nobody knows what it needs.
OF_ADMINS_PROGRAMS = Confinement(capability=False, no_new_privs=True, landlock=None, seccomp=False)


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
        seccomp=landlock_mode != "off",
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


class Allowance(Record):
    """One rule for the kernel."""

    path: str
    access: str
    """A key of `_ACCESS`."""
    is_grant: bool
    """Whether it comes from the request; its rule is then made of what was opened."""


_ACCESS = {
    "list": landlock.LIST,
    "read": landlock.READ,
    "read, execute": landlock.READ_AND_EXECUTE,
    "read, write": landlock.READ_AND_WRITE_FILE,
    "everything": landlock.EVERYTHING,
}


def allowances(allowed: Allowed, client: str, settings: Settings, state: str) -> list[Allowance]:
    """What borg and all it starts may do with files, each path with all below it.

    Contents can be read below the granted paths, of the programs and of what they load; written
    in ``state``, the client's own directory, alone. Borg lists the directory each granted path
    stands in, which therefore may be listed, not read.
    """
    _, report_path = places(lock_directory(settings.runtime, client), allowed.repository)
    granted = [grant.path for grant in allowed.grants]
    parents = (os.path.dirname(path.rstrip("/")) or "/" for path in granted)
    return [
        *(Allowance(path=path, access="read", is_grant=True) for path in granted),
        *(Allowance(path=path, access="list", is_grant=True) for path in parents),
        *to_load(settings),
        Allowance(path=report_path, access="read, write", is_grant=False),
        Allowance(path=state, access="everything", is_grant=False),
    ]


def to_load(settings: Settings) -> list[Allowance]:
    """What borg and a socket wrapper must load, whatever they are to do."""
    loaded = [*_PROGRAMS, *settings.confine.also_readable]
    for program in (settings.runtime.borg, socket_wrapper(settings)):
        loaded += _program_places(program)
    return [
        *(Allowance(path=path, access="read, execute", is_grant=False) for path in loaded),
        *(Allowance(path=path, access="read", is_grant=False) for path in _LOOKED_UP),
        Allowance(path="/dev/null", access="read, write", is_grant=False),
    ]


def ruleset(
    confinement: Confinement,
    roots: Sequence[Root],
    rules: Sequence[Allowance],
    evidence: Sequence[int],
) -> landlock.Ruleset | None:
    """The kernel's form of `allowances`, None where Landlock is not in force.

    A root's rule is its own descriptor, and so is that of the directory it stands in: a link
    swapped in after they were opened changes nothing.
    ``evidence`` are descriptors of files that the socket wrap reads to verify the peer. Raises
    SystemRefusedError.
    """
    if confinement.landlock is None:
        return None
    made = landlock.Ruleset(confinement.landlock)
    for root in roots:
        made.allow(root.descriptor, landlock.READ)
        made.allow(root.parent, landlock.LIST)
    for rule in rules:
        if not rule.is_grant:
            made.allow_path(rule.path, _ACCESS[rule.access])
    for descriptor in evidence:
        made.allow(descriptor, landlock.READ)
    return made


def _program_places(program: str) -> list[str]:
    """What must be readable for ``program`` to load: itself, and the tree it is installed in
    when that can be told: a virtual environment, or a bundle with its ``_internal``."""
    found = [program]
    for path in (program, os.path.realpath(program)):
        directory = os.path.dirname(path)
        prefix = os.path.dirname(directory)
        # A virtual environment says that it is one; any other directory could hold anything.
        if os.path.exists(f"{prefix}/pyvenv.cfg"):
            found.append(prefix)
        elif os.path.isdir(f"{directory}/_internal"):
            found.append(directory)
    return found


def open_roots(grants: Sequence[Grant], *, refuse_empty: bool) -> list[Root]:
    """Open every granted path as borg will, and check that there is something to read.

    Borg itself reports a missing root with a warning and saves an archive without it. No
    component may be a symbolic link: whoever can write one could point it anywhere.
    Raises NotAllowedError for a link, SystemRefusedError for what cannot be read.
    """
    capabilities.make_effective(capabilities.DAC_READ_SEARCH)
    roots: list[Root] = []
    try:
        for grant in grants:
            roots.append(_open_root(grant.path, refuse_empty=refuse_empty))  # noqa: PERF401
        return roots
    except SystemRefusedError:
        # Where descriptors are what is short, the record of the failure needs some.
        for root in roots:
            os.close(root.descriptor)
            os.close(root.parent)
        raise
    finally:
        capabilities.make_effective(None)


def _open_root(path: str, *, refuse_empty: bool) -> Root:
    directory, _, name = os.fsencode(path).rstrip(b"/").rpartition(b"/")
    try:
        parent = paths.open_without_links(directory or b"/", os.O_PATH | os.O_DIRECTORY)
        descriptor = paths.open_without_links(name or b"/", os.O_PATH | os.O_NOFOLLOW, parent)
        status = os.fstat(descriptor)
        empty = _is_empty(descriptor, status)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _led_elsewhere(path) from error
        raise SystemRefusedError(
            f"path {quoted(path)} cannot be read: {error.strerror}",
            "nothing was saved",
        ) from error
    if stat.S_ISLNK(status.st_mode):
        raise _led_elsewhere(path)
    if empty and refuse_empty:
        raise SystemRefusedError(
            f"path {quoted(path)} is empty",
            "is its file system mounted? nothing was saved",
        )
    return Root(path=path, descriptor=descriptor, parent=parent)


def _led_elsewhere(path: str) -> NotAllowedError:
    return NotAllowedError(
        f"path {quoted(path)} is or leads through a symbolic link",
        "ask for, and allow, the path it leads to",
    )


def _is_empty(descriptor: int, status: os.stat_result) -> bool:
    """Whether a directory or regular file is empty, found by reading it; OSError if it cannot be.

    It is opened anew by its descriptor, never by name: what stands there by now may be a FIFO,
    and opening that would wait for ever.
    """
    if not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
        return False
    reading = os.open(
        f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    )
    try:
        if stat.S_ISREG(status.st_mode):
            return status.st_size == 0
        with os.scandir(reading) as entries:
            return next(entries, None) is None
    finally:
        os.close(reading)


def enter(
    confinement: Confinement,
    rules: landlock.Ruleset | None,
    parent: int,
    *,
    unpacks: bool = False,
) -> None:
    """Reduce the calling process, which is about to become borg, to what it may do.

    ``parent`` is the pid the process was forked from; ``unpacks`` whether it makes files that
    have modes and times of their own. Raises SystemRefusedError.
    """
    if confinement.capability:
        capabilities.keep_only_across_exec(capabilities.DAC_READ_SEARCH)
    else:
        capabilities.drop_all()
    process.set_no_new_privileges()
    if rules is not None:
        rules.enforce()
    if confinement.seccomp:
        seccomp.deny_system_calls(unpacks=unpacks)
    # After the capabilities: the kernel forgets the signal when credentials change.
    process.set_parent_death_signal(SIGKILL)
    if os.getppid() != parent:
        raise SystemRefusedError("the forced command ended before borg could start")
