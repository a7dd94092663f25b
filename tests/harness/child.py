"""A function called in a forked child: what it raises comes back, and it cannot hang for ever."""

from __future__ import annotations

import os
import select
import signal
import traceback
from collections.abc import Callable

SECONDS = 120


def said_by_child(function: Callable[[], object]) -> str:
    """The traceback of what ``function`` raised in a child of its own; "" when it returned."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        said = ""
        try:
            function()
        except BaseException:  # noqa: BLE001 - the child must end here whatever it is
            said = traceback.format_exc()
        finally:
            os.write(writer, said.encode()[:60_000])
            os._exit(0)
    os.close(writer)
    descriptor = os.pidfd_open(child)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if not poll.poll(SECONDS * 1000):
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        os.set_blocking(reader, False)
        try:
            said = os.read(reader, 60_000).decode()
        except BlockingIOError:
            said = ""
        return said or (f"the child ended with {code}" if code else "")
    finally:
        os.close(descriptor)
        os.close(reader)
