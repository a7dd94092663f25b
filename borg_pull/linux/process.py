"""Attributes and ancestry of processes; facts from prctl(2) and proc_pid_stat(5)."""

from __future__ import annotations

import os

# python-prctl's compiled half: its Python half generates classes at import, 2.7 ms of a
# start that should take 10.
import _prctl  # type: ignore[import-not-found, unused-ignore]

from borg_pull.errors import SystemRefusedError
from borg_pull.linux._kernel import lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_STAT_PARENT = 1  # fields after the closing parenthesis of comm: state is 0
_STAT_START_TIME = 19
_MAX_ANCESTORS = 64
_MAX_DESCRIPTORS = 1 << 20  # fs.nr_open by default; the limit now may be lower than it was


def close_descriptors(kept: Sequence[int] = ()) -> None:
    """Close every descriptor above the standard streams but those in ``kept``."""
    lowest = 3
    for descriptor in sorted(kept):
        os.closerange(lowest, descriptor)
        lowest = descriptor + 1
    os.closerange(lowest, _MAX_DESCRIPTORS)


def forget_signals() -> None:
    """Undo what a caller can leave in force across exec: signals ignored or blocked, timers.

    A caller that ignores SIGCHLD would have the kernel reap borg before its status is known.
    """
    _check(lib.bp_forget_signals(), "set the signals back")


def forbid_core_dumps() -> None:
    """Have neither this process nor any it starts leave its memory in a file or with a program."""
    _check(lib.bp_forbid_core_dumps(), "forbid core dumps")


def raise_descriptor_limit(wanted: int) -> None:
    """Allow ``wanted`` open descriptors, or as many below that as the hard limit does."""
    _check(lib.bp_raise_descriptor_limit(wanted), "raise the limit of descriptors")


def limit_processes(most: int) -> None:
    """Let the account have no more than ``most`` processes before this one's forks fail."""
    _check(lib.bp_limit_processes(most), "limit the number of processes")


def set_no_new_privileges() -> None:
    """Make exec unable to grant anything more, for this process and all it starts."""
    _prctl_call(_prctl.PR_SET_NO_NEW_PRIVS, 1, "set no_new_privs")


def hide_from_debuggers() -> None:
    """Let no process of the same account trace this one, read its memory or make it dump core.

    The kernel does so by itself for a program with a file capability, but forgets it when the
    program executes itself again, as PyInstaller's does.
    """
    _prctl_call(_prctl.PR_SET_DUMPABLE, 0, "forbid tracing")


def set_parent_death_signal(signal_number: int) -> None:
    """Have the kernel send ``signal_number`` when the parent thread ends."""
    _prctl_call(_prctl.PR_SET_PDEATHSIG, signal_number, "set the parent-death signal")


def become_subreaper() -> None:
    """Become the parent of every orphan among the descendants, so that none escapes."""
    _prctl_call(_prctl.PR_SET_CHILD_SUBREAPER, 1, "become the subreaper")


def end_descendants() -> None:
    """Kill what a child that ended left behind; a subreaper is the parent of all of it.

    Of this single-threaded process. Raises SystemRefusedError where the kernel does not list
    children (CONFIG_PROC_CHILDREN).
    """
    _check(lib.bp_end_children(), "list child processes")


def is_secure_execution() -> bool:
    """Whether the kernel started this program with more privilege than its caller (AT_SECURE)."""
    return lib.bp_at_secure() != 0


def start_time(pid: int) -> int | None:
    """Start of process ``pid`` in clock ticks since boot; None when it cannot be read."""
    fields = _stat_fields(pid)
    return None if fields is None else int(fields[_STAT_START_TIME])


def open_stat(pid: int) -> int:
    """A descriptor of /proc/PID/stat that allows no reading by itself. Raises
    SystemRefusedError."""
    try:
        return os.open(f"/proc/{pid}/stat", os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise SystemRefusedError.because(f"cannot look at process {pid}", error) from error


def ancestors(pid: int) -> list[tuple[int, int]]:
    """(pid, start time) of the processes above ``pid``, nearest first, without pid 1.

    Ends early where /proc hides a process (mount option hidepid).
    """
    found: list[tuple[int, int]] = []
    fields = _stat_fields(pid)
    while fields is not None and len(found) < _MAX_ANCESTORS:
        parent = int(fields[_STAT_PARENT])
        if parent <= 1:
            break
        fields = _stat_fields(parent)
        if fields is not None:
            found.append((parent, int(fields[_STAT_START_TIME])))
    return found


def _stat_fields(pid: int) -> list[bytes] | None:
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = os.read(descriptor, 4096)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    # comm may hold spaces and parentheses of the process's own choosing; the last ")" ends it.
    return text[text.rindex(b")") + 2 :].split()


def _prctl_call(option: int, argument: int, what: str) -> None:
    try:
        _prctl.prctl(option, argument)
    except OSError as error:
        raise SystemRefusedError(f"cannot {what}: {error.strerror}") from error


def _check(result: int, what: str) -> None:
    if result < 0:
        raise SystemRefusedError(f"cannot {what}: {os.strerror(-result)}")
