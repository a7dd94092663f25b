"""The output of a short helper command, run as this account."""

from __future__ import annotations

import os
import select
import time

from borg_pull.errors import EndedError, SystemRefusedError
from borg_pull.linux import process
from borg_pull.linux.signals import SIG_DFL, SIGKILL, SIGPIPE, check_endings, signal
from borg_pull.source import confine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from borg_pull.linux.landlock import Ruleset
    from borg_pull.source.confine import Confinement


def output_of(
    argv: tuple[str, ...],
    environment: dict[str, str],
    *,
    confinement: Confinement,
    rules: Ruleset | None,
    timeout: float,
    limit: int,
    watch: int,
) -> bytes:
    """Up to about ``limit`` bytes of what ``argv`` writes to standard output.

    Its standard input is empty, its standard error ours. Raises SystemRefusedError when it cannot
    be started, does not end within ``timeout`` seconds or fails, and EndedError, having killed it,
    for a signal that ``watch`` notes.
    """
    try:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        process.become_subreaper()
        parent = os.getpid()
        pid = os.fork()
    except OSError as error:
        raise SystemRefusedError.because(f"cannot start {argv[0]}", error) from error
    if pid == 0:
        _become(argv, environment, confinement, rules, writer, parent)
    os.close(writer)
    deadline = time.monotonic() + timeout
    try:
        try:
            output = _read_all(reader, deadline, limit, watch)
        finally:
            os.close(reader)
        _wait_for_end(pid, deadline, watch)
    except EndedError:
        _kill_group(pid)
        raise
    except TimeoutError:
        _kill_group(pid)
        raise SystemRefusedError(f"{argv[0]} did not end within {timeout:.0f} seconds") from None
    except OSError as error:
        _kill_group(pid)
        raise SystemRefusedError.because(f"cannot wait for {argv[0]}", error) from error
    finally:
        _, status = os.waitpid(pid, 0)
        process.end_descendants()
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        raise SystemRefusedError(f"{argv[0]} failed with exit code {code}")
    return output


def _wait_for_end(pid: int, deadline: float, watch: int) -> None:
    """Wait until the process has ended, and leave it to be reaped. Raises TimeoutError, EndedError.

    It may have closed its standard output long before.
    """
    descriptor = os.pidfd_open(pid)
    try:
        wait_for(descriptor, deadline, watch)
    finally:
        os.close(descriptor)


def wait_for(descriptor: int, deadline: float, watch: int) -> None:
    """Wait until ``descriptor`` is readable. Raises TimeoutError, and EndedError for a signal that
    ``watch`` notes."""
    poll = select.poll()  # select(2) takes no descriptor above 1023
    poll.register(descriptor, select.POLLIN)
    poll.register(watch, select.POLLIN)
    while True:
        ready = dict(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
        if watch in ready:
            check_endings(watch)
        if descriptor in ready:
            return
        if not ready:
            raise TimeoutError


def _kill_group(pid: int) -> None:
    """Kill the command and what it started."""
    try:
        os.killpg(pid, SIGKILL)
    except ProcessLookupError:
        # It has not come to making a group of its own.
        os.kill(pid, SIGKILL)


def _become(
    argv: tuple[str, ...],
    environment: dict[str, str],
    confinement: Confinement,
    rules: Ruleset | None,
    writer: int,
    parent: int,
) -> None:
    """Replace the forked process by the command; never returns."""
    try:
        os.setsid()
        signal(SIGPIPE, SIG_DFL)
        os.dup2(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), 0)
        os.dup2(writer, 1)
        confine.enter(confinement, rules, parent)
        process.close_descriptors()
        os.execve(argv[0], argv, environment)
    finally:
        os._exit(127)


def _read_all(reader: int, deadline: float, limit: int, watch: int) -> bytes:
    output = b""
    while len(output) <= limit:
        wait_for(reader, deadline, watch)
        block = os.read(reader, limit)
        if not block:
            break
        output += block
    return output
