"""The output of a short helper command, run as this account and without the capability."""

from __future__ import annotations

import os
import select
import time

from borg_pull.errors import SystemRefusedError
from borg_pull.linux import capabilities, process
from borg_pull.linux.signals import SIGKILL


def output_of(
    argv: tuple[str, ...], environment: dict[str, str], *, timeout: float, limit: int
) -> bytes:
    """Up to about ``limit`` bytes of what ``argv`` writes to standard output.

    Its standard input is empty, its standard error ours. Raises SystemRefusedError when it cannot
    be started, does not end within ``timeout`` seconds or fails.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        parent = os.getpid()
        pid = os.fork()
    except OSError as error:
        raise SystemRefusedError(f"cannot start {argv[0]}: {error.strerror}") from error
    if pid == 0:
        _become(argv, environment, writer, parent)
    os.close(writer)
    try:
        output = _read_all(reader, time.monotonic() + timeout, limit)
    except TimeoutError:
        os.kill(pid, SIGKILL)
        raise SystemRefusedError(f"{argv[0]} did not end within {timeout:.0f} seconds") from None
    finally:
        os.close(reader)
        _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        raise SystemRefusedError(f"{argv[0]} failed with exit code {code}")
    return output


def _become(argv: tuple[str, ...], environment: dict[str, str], writer: int, parent: int) -> None:
    """Replace the forked process by the command; never returns."""
    try:
        capabilities.drop_all()
        process.set_no_new_privileges()
        process.set_parent_death_signal(SIGKILL)
        if os.getppid() == parent:
            os.dup2(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), 0)
            os.dup2(writer, 1)
            os.closerange(3, 1 << 20)
            os.execve(argv[0], argv, environment)
    finally:
        os._exit(127)


def _read_all(reader: int, deadline: float, limit: int) -> bytes:
    output = b""
    while len(output) <= limit:
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not select.select([reader], [], [], remaining)[0]:
            raise TimeoutError
        block = os.read(reader, limit)
        if not block:
            break
        output += block
    return output
