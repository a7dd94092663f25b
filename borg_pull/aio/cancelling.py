"""Ending a job where nothing can come to harm by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from borg_pull.aio.flow import CANCELLABLE
from borg_pull.errors import BusyError, NotAllowedError

if TYPE_CHECKING:
    from borg_pull.aio.runs import Runs


def cancel(runs: Runs, job: str, who: str) -> None:
    """Have ``job`` end. Raises NotAllowedError when it is over, BusyError where it may not."""
    state = runs.state_of(job)
    if state is None:
        raise NotAllowedError("this job is over", "see job")
    _check(state)
    runs.jobs.ask_to_cancel(job, who)
    # It looks for the word after it has noted its state: where the state is still such a one, it
    # finds the word. Where it is not, it may have looked before.
    try:
        _check(runs.state_of(job) or state)
    except BusyError:
        runs.jobs.withdraw(job)
        raise


def _check(state: str) -> None:
    if state not in ("accepted", *CANCELLABLE):
        raise BusyError(
            f"this job is in the state {state}, which nothing may end",
            "AIO's backup cannot be stopped without harm; wait for its end",
        )
