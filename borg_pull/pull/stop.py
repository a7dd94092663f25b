"""Telling what runs that it is to end."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from borg_pull.errors import FailedError

_LONGEST_POLL = 3600.0
"""Seconds; poll(2) counts milliseconds in an int, which ends at 24 days."""


def ready(poll: select.poll, seconds: float) -> dict[int, int]:
    """What ``poll`` has within ``seconds``, however many these are: descriptors and events."""
    until = time.monotonic() + seconds
    while True:
        left = max(0.0, until - time.monotonic())
        found = dict(poll.poll(min(left, _LONGEST_POLL) * 1000))
        if found or left <= _LONGEST_POLL:
            return found


class Stop:
    """Tells a run from outside that it is to end, and why; safe from any thread and signal."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.reason: str | None = None

    def set(self, reason: str) -> None:
        """End whatever listens, now and in future; the first reason stays."""
        if self.reason is None:
            self.reason = reason
            os.write(self._writer, b".")

    def fileno(self) -> int:
        """Readable once it is set, for ever."""
        return self._reader

    def wait(self, seconds: float) -> bool:
        """Sleep, but no longer than until it is set; whether it is."""
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        ready(poll, seconds)
        return self.reason is not None

    def close(self) -> None:
        """Give its descriptors back."""
        os.close(self._reader)
        os.close(self._writer)


@contextmanager
def failing_by_signals() -> Iterator[None]:
    """Have signals end what is done within as a failure: all that it has opened is put away.

    Raises FailedError for a signal.
    """
    ended = "ended by SIGINT"

    def end(number: int, _frame: object) -> None:
        nonlocal ended
        ended = f"ended by {signal.Signals(number).name}"
        # Which nothing takes for a fault of its own, and passes over.
        raise KeyboardInterrupt

    try:
        with _handled(end):
            yield
    except KeyboardInterrupt:
        raise FailedError(ended) from None


@contextmanager
def set_by_signals(stop: Stop, wake: Callable[[], None] | None = None) -> Iterator[None]:
    """Have signals end in order what runs, rather than this process. ``wake`` is called then."""

    def end(number: int, _frame: object) -> None:
        stop.set(f"ended by {signal.Signals(number).name}")
        if wake is not None:
            wake()

    with _handled(end):
        yield


@contextmanager
def _handled(end: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have ``end`` called by the signals that tell a program to end."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # nohup(1) wants SIGHUP to stay ignored.
    wanted = [one for one in numbers if signal.getsignal(one) is not signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
