"""Signals without the ``signal`` module, whose import loads ``enum``: 2 ms for seven numbers."""

from __future__ import annotations

import os

from borg_pull.errors import EndedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from signal import (
        ITIMER_REAL,
        SIG_DFL,
        SIG_IGN,
        SIGALRM,
        SIGHUP,
        SIGINT,
        SIGKILL,
        SIGPIPE,
        SIGQUIT,
        SIGTERM,
        SIGXFSZ,
        set_wakeup_fd,
        setitimer,
        signal,
    )
else:
    from _signal import (
        ITIMER_REAL,
        SIG_DFL,
        SIG_IGN,
        SIGALRM,
        SIGHUP,
        SIGINT,
        SIGKILL,
        SIGPIPE,
        SIGQUIT,
        SIGTERM,
        SIGXFSZ,
        set_wakeup_fd,
        setitimer,
        signal,
    )

ENDING = (SIGINT, SIGTERM, SIGHUP, SIGQUIT)
"""What tells a program to end."""

__all__ = [
    "ENDING",
    "ITIMER_REAL",
    "SIGALRM",
    "SIGHUP",
    "SIGINT",
    "SIGKILL",
    "SIGPIPE",
    "SIGQUIT",
    "SIGTERM",
    "SIGXFSZ",
    "SIG_DFL",
    "SIG_IGN",
    "check_endings",
    "ignore_endings",
    "set_wakeup_fd",
    "setitimer",
    "signal",
    "watch_endings",
]


def watch_endings() -> int:
    """Note the signals of `ENDING` from now on, so that this program can end in order.

    Returns the reading end of the pipe that their numbers stand in.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    set_wakeup_fd(writer)
    for number in ENDING:
        signal(number, _noted)
    return reader


def check_endings(watch: int) -> None:
    """Raises EndedError if a signal was noted. ``watch`` is what `watch_endings` returned."""
    try:
        numbers = os.read(watch, 4096)
    except BlockingIOError:
        return
    for number in numbers:
        # Other signals that Python handles stand there, too.
        if number in ENDING:
            raise EndedError(f"the request was ended by signal {number} before it was served")


def ignore_endings() -> None:
    """Let the signals of `ENDING` do nothing from now on."""
    for number in ENDING:
        signal(number, SIG_IGN)


def _noted(_number: int, _frame: object) -> None:
    """The pipe has it."""
