"""A job's hooks: programs on this host, before and after its pull. No shell, a limit of time."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Literal

from borg_pull.errors import FailedError, printable
from borg_pull.pull.log import LogFile
from borg_pull.pull.pull import Task
from borg_pull.pull.ssh import tied
from borg_pull.pull.stop import Stop, ready

TERM_SECONDS = 5.0
"""What a hook gets to end by itself once it was asked to."""
STOPPED_SECONDS = 30.0
"""What is left to an ``after`` hook when borg-pull itself was told to end."""

LONGEST_VALUE = 4096
"""Characters of what a hook is told by one variable: any path has room."""

_PASSED_ON = ("HOME", "LOGNAME", "TZ", "USER", "XDG_RUNTIME_DIR")


class HookError(FailedError):
    """A hook failed, or took too long."""


def run(
    task: Task,
    which: Literal["before", "after"],
    facts: Mapping[str, str],
    log: LogFile,
    stop: Stop,
) -> None:
    """Run a hook of the job's, if it has it, with its output in ``log``.

    ``facts`` go into its environment, as ``BORG_PULL_`` and the name. Raises HookError.
    """
    hooks = task.job.hooks
    argv = hooks.before if which == "before" else hooks.after
    if argv is None:
        return
    seconds = hooks.timeout.total_seconds()
    if which == "after" and stop.reason is not None:
        seconds = min(seconds, STOPPED_SECONDS)
    _note(log, f"hook {which}: {shlex.join(argv)}")
    error = _run(argv, _environment(task, which, facts), seconds, log, stop, which)
    _note(log, f"hook {which}: {error or 'done'}")
    if error is not None:
        raise HookError(f"hook {which} {error}", "its output is in the log of the run")


def _run(
    argv: Sequence[str],
    environment: Mapping[str, str],
    seconds: float,
    log: LogFile,
    stop: Stop,
    which: str,
) -> str | None:
    """What went wrong with it."""
    if not os.access(argv[0], os.X_OK):
        return "cannot be run: it is not there, or not executable"
    try:
        process = subprocess.Popen(
            tied(argv),
            stdin=subprocess.DEVNULL,
            stdout=log.fileno(),
            stderr=log.fileno(),
            env=environment,
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        return f"cannot be run: {error.strerror}"
    ended = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        if which == "before":
            poll.register(stop.fileno(), select.POLLIN)
        cause = None
        if ended not in (found := ready(poll, seconds)):
            cause = stop.reason if found else f"was ended after {seconds:g} s"
            _end(process, ended)
    finally:
        os.close(ended)
    code = process.wait()
    if cause is not None or code == 0:
        return cause
    return f"failed with {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"


def _end(process: subprocess.Popen[bytes], ended: int) -> None:
    """End it and what it has started, in order if it will."""
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    deadline = time.monotonic() + TERM_SECONDS
    for number in (signal.SIGTERM, signal.SIGKILL):
        # Not waited for yet, so the group is still its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        poll.poll(max(0.0, deadline - time.monotonic()) * 1000)


def _environment(task: Task, which: str, facts: Mapping[str, str]) -> dict[str, str]:
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment |= {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
    }
    named = {
        "HOOK": which,
        "JOB": task.name,
        "SOURCE": task.source_name,
        "REPOSITORY": task.repository_name,
        "REPOSITORY_PATH": str(task.repository.path),
        **facts,
    }
    # Some of it is a source's, or borg's, word, and execve(2) takes no NUL and not any length.
    values = {name: printable(value)[:LONGEST_VALUE] for name, value in named.items()}
    return environment | {f"BORG_PULL_{name}": value for name, value in values.items()}


def _note(log: LogFile, line: str) -> None:
    log.write(f"borg-pull: {line}\n".encode("utf-8", "backslashreplace"))
