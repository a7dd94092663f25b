"""Signals without the ``signal`` module, whose import loads ``enum``: 2 ms for seven numbers."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from signal import (
        ITIMER_REAL,
        SIG_DFL,
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

__all__ = [
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
    "set_wakeup_fd",
    "setitimer",
    "signal",
]
