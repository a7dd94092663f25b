"""What a run came to, by what it left behind. AIO's script ends with 0 whatever became of it.

Pure: it judges what others have looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """When the script was started, in seconds since the epoch."""
    before: tuple[str, float | None] | None
    """The backup container's last start before that; None when there was none."""
    container: Container | None
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
    if container is None or container.start == seen.before or not _is_after(container, seen.began):
        return Verdict(
            result="fail",
            error=f"AIO started no {seen.kind}",
            hint="what its script said tells why; see the job's output",
            evidence=evidence,
        )
    if container.running or container.finished_at is None or container.exit_code is None:
        return Verdict(
            result="unknown",
            error=f"the container of the {seen.kind} has not ended",
            hint=None,
            evidence=evidence,
        )
    for error, hint in _faults(seen, container):
        return Verdict(result="fail", error=error, hint=hint, evidence=evidence)
    if not evidence["success_line"]:
        return Verdict(
            result="unknown",
            error=f"the container of the {seen.kind} ended with 0, but its output not with success",
            hint="look at its log, and at AIO's interface",
            evidence=evidence,
        )
    return Verdict(result="success", error=None, hint=None, evidence=evidence)


def _faults(seen: Seen, container: Container) -> list[tuple[str, str | None]]:
    found: list[tuple[str, str | None]] = []
    if container.exit_code != 0:
        why = "; it ran out of memory" if container.out_of_memory else ""
        said = next((line for line in reversed(seen.errors) if line.strip()), "")
        error = f"the {seen.kind} failed: exit code {container.exit_code}{why}: {said[:300]}"
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
