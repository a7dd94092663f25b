"""What a run came to, by what it left behind. AIO's script ends with 0 whatever became of it.

Pure: it judges what others have looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from borg_pull.aio.configuration import HOST_LOCATION, REMOTE_REPOSITORY, TargetKeys, is_same, shown
from borg_pull.audit import timestamp

if TYPE_CHECKING:
    from borg_pull.aio.engine import Container
    from borg_pull.audit import JSONValue

Result = Literal["success", "fail", "timeout", "unknown"]
Kind = Literal["backup", "check"]

SUCCESS_LINES: Mapping[Kind, str] = {
    "backup": "Backup finished successfully on ",
    "check": "Check finished successfully on ",
}
_SIGNALLED = 128  # exit codes above are signals'
_KILL = 9
INITIALISED = "borg.config"
"""What AIO has beside its configuration once it has made a repository."""
REFUSED_TARGET = (
    "is the target's disk mounted, and the target the right one? AIO makes no second repository "
    "while it has a borg.config: only if this target is to hold a new one, and the old one is "
    "safe, delete borg.config beside configuration.json by hand"
)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is known of a run, and by what."""

    result: Result
    error: str | None
    """One line; None for a success."""
    hint: str | None
    evidence: Mapping[str, JSONValue]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was looked at when all had ended."""

    kind: Kind
    began: float
    """When the script was started, in seconds since the epoch: the earliest that the clock, which
    may have been set back since, has for it."""
    before: tuple[str, float | None] | None
    """The backup container's last start before that; None when there was none."""
    name: str
    """Of the backup container."""
    container: Container | None
    has_run: bool
    """Whether it was seen to have been started since then."""
    log: Sequence[str]
    """The last lines of the backup container's standard output."""
    errors: Sequence[str]
    """The last lines of both its outputs."""
    target: TargetKeys
    """Where AIO was to send it."""
    has_initialised: bool
    """Whether AIO has a ``borg.config``."""


def verdict(seen: Seen) -> Verdict:
    """Success only with all of the evidence."""
    container = seen.container
    evidence = _evidence(seen)
    if container is None or not is_new(container, seen.before):
        return _not_there(seen, evidence)
    if container.running or container.finished_at is None or container.exit_code is None:
        return Verdict(
            result="unknown",
            error=f"the container of the {seen.kind} has not ended",
            hint=None,
            evidence=evidence,
        )
    for error, hint in _faults(seen, container):
        return Verdict(result="fail", error=error, hint=hint, evidence=evidence)
    for error in _doubts(container, seen, evidence):
        hint = "look at its log, and at AIO's interface"
        return Verdict(result="unknown", error=error, hint=hint, evidence=evidence)
    return Verdict(result="success", error=None, hint=None, evidence=evidence)


def is_new(container: Container, before: tuple[str, float | None] | None) -> bool:
    """Whether this is another start than ``before``, the last one then."""
    return container.started_at is not None and container.start != before


def _not_there(seen: Seen, evidence: Mapping[str, JSONValue]) -> Verdict:
    result: Result = "fail"
    error = f"AIO started no {seen.kind}"
    hint = "what its script said tells why; see the job's output"
    if seen.has_run:
        result = "unknown"
        error = f"the container of the {seen.kind} vanished before it had told how it ended"
        hint = "look at AIO's interface"
    elif seen.container is None:
        error += f": there is no container {seen.name}"
        hint = f"is aio.borgbackup_container its name? If so, {hint}"
    return Verdict(result=result, error=error, hint=hint, evidence=evidence)


def _doubts(container: Container, seen: Seen, evidence: Mapping[str, JSONValue]) -> Iterator[str]:
    """What is missing of the evidence of a container that has ended with 0."""
    what = f"the container of the {seen.kind} ended with 0, but"
    if not evidence["success_line"]:
        yield f"{what} its output not with success"
    if not evidence["started_after_us"]:
        yield f"{what} was started before AIO's script was, by the clock"
    if "BORG_MODE" not in container.told or _went_to(container) is None:
        yield f"{what} its environment does not say what it did, or where"


def _faults(seen: Seen, container: Container) -> list[tuple[str, str | None]]:
    found: list[tuple[str, str | None]] = []
    if container.exit_code != 0:
        said = next((line for line in reversed(seen.errors) if line.strip()), "")
        error = f"the {seen.kind} failed: exit code {container.exit_code}{_why(container)}"
        error += f": {said[:300]}" if said else ""
        is_refused = seen.has_initialised and any(INITIALISED in line for line in seen.errors)
        found.append((error, REFUSED_TARGET if is_refused else None))
    mode = container.told.get("BORG_MODE")
    if mode is not None and mode != seen.kind:
        found.append((f"what ran was no {seen.kind} but a {mode}", "it was not this job's"))
    went = _went_to(container)
    if went is not None and not is_same(went, seen.target):
        error = f"it went to {shown(went)}, not to {shown(seen.target)}"
        found.append((error, "something else changed AIO's target meanwhile"))
    return found


def _why(container: Container) -> str:
    """What an exit code does not say to everybody."""
    if container.out_of_memory:
        return "; it ran out of memory"
    signal = (container.exit_code or 0) - _SIGNALLED
    if signal <= 0:
        return ""
    return f", killed by signal {signal}" + (" (out of memory?)" if signal == _KILL else "")


def _evidence(seen: Seen) -> dict[str, JSONValue]:
    container = seen.container
    last = next((line for line in reversed(seen.log) if line.strip()), "")
    went = None if container is None else _went_to(container)
    return {
        "container": None if container is None else container.id[:12],
        "started_at": None if container is None else rfc3339(container.started_at),
        "finished_at": None if container is None else rfc3339(container.finished_at),
        "exit_code": None if container is None else container.exit_code,
        "started_after_us": container is not None and _is_after(container, seen.began),
        "success_line": last.startswith(SUCCESS_LINES[seen.kind]),
        "target": None if went is None else shown(went),
    }


def rfc3339(moment: float | None) -> str | None:
    """A time of the engine's, as answers and records tell it; None for none."""
    return None if moment is None else timestamp(moment)


def _is_after(container: Container, moment: float) -> bool:
    return container.started_at is not None and container.started_at >= moment


def _went_to(container: Container) -> TargetKeys | None:
    """The target that the container was given; None when its environment does not say."""
    told = container.told
    if "BORG_REMOTE_REPO" not in told and "BORGBACKUP_HOST_LOCATION" not in told:
        return None
    remote = told.get("BORG_REMOTE_REPO", "")
    # AIO may hand a remote one its host location besides.
    location = "" if remote else told.get("BORGBACKUP_HOST_LOCATION", "")
    return {REMOTE_REPOSITORY: remote, HOST_LOCATION: location}
