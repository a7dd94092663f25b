"""The output of a short helper command, run as this account and without the capability."""

from __future__ import annotations

import os
import select
import time

from borg_pull.errors import SystemRefusedError
from borg_pull.linux import capabilities, process
from borg_pull.linux.signals import SIG_DFL, SIGKILL, SIGPIPE, signal


def output_of(
    argv: tuple[str, ...], environment: dict[str, str], *, timeout: float, limit: int
) -> bytes:
    """Up to about ``limit`` bytes of what ``argv`` writes to standard output.

    Its standard input is empty, its standard error ours. Raises SystemRefusedError when it cannot
    be started, does not end within ``timeout`` seconds or fails.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        process.become_subreaper()
        parent = os.getpid()
        pid = os.fork()
    except OSError as error:
        raise SystemRefusedError(f"cannot start {argv[0]}: {error.strerror}") from error
    if pid == 0:
        _become(argv, environment, writer, parent)
    os.close(writer)
    deadline = time.monotonic() + timeout
    try:
        try:
            output = _read_all(reader, deadline, limit)
        finally:
            os.close(reader)
        _wait_for_end(pid, deadline)
    except TimeoutError:
        _kill_group(pid)
        raise SystemRefusedError(f"{argv[0]} did not end within {timeout:.0f} seconds") from None
    finally:
        _, status = os.waitpid(pid, 0)
        process.end_descendants()
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        raise SystemRefusedError(f"{argv[0]} failed with exit code {code}")
    return output


def _wait_for_end(pid: int, deadline: float) -> None:
    """Wait until the process has ended, and leave it to be reaped. Raises TimeoutError.

    It may have closed its standard output long before.
    """
    descriptor = os.pidfd_open(pid)
    try:
        _wait_until_readable(descriptor, deadline)
    finally:
        os.close(descriptor)


def _kill_group(pid: int) -> None:
    """Kill the command and what it started."""
    try:
        os.killpg(pid, SIGKILL)
    except ProcessLookupError:
        # It has not come to making a group of its own.
        os.kill(pid, SIGKILL)


def _become(argv: tuple[str, ...], environment: dict[str, str], writer: int, parent: int) -> None:
    """Replace the forked process by the command; never returns."""
    try:
        os.setsid()
        signal(SIGPIPE, SIG_DFL)
        capabilities.drop_all()
        process.set_no_new_privileges()
        process.set_parent_death_signal(SIGKILL)
        if os.getppid() == parent:
            os.dup2(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), 0)
            os.dup2(writer, 1)
            process.close_descriptors()
            os.execve(argv[0], argv, environment)
    finally:
        os._exit(127)


def _read_all(reader: int, deadline: float, limit: int) -> bytes:
    output = b""
    while len(output) <= limit:
        _wait_until_readable(reader, deadline)
        block = os.read(reader, limit)
        if not block:
            break
        output += block
    return output


def _wait_until_readable(descriptor: int, deadline: float) -> None:
    """Raises TimeoutError. Not by select(2), which takes no descriptor above 1023."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError
