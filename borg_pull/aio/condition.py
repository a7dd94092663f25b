"""How AIO stands: its containers, its target, its last backup, and what a crash has left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from borg_pull.aio.configuration import AioConfiguration, shown
from borg_pull.aio.engine import Container, Engine, EngineError
from borg_pull.aio.flow import PREFIX, REPOSITORY_LOCK_FILE, lock_files, script_runs
from borg_pull.aio.jobs import label
from borg_pull.aio.verdict import SUCCESS_LINES, rfc3339
from borg_pull.errors import BorgPullError

if TYPE_CHECKING:
    from borg_pull.aio.runs import Runs
    from borg_pull.aio_policy import AioPolicy

_LOG_LINES = 50


def status(policy: AioPolicy, runs: Runs) -> dict[str, Any]:
    """The answer of ``aio-status``. Raises EngineError."""
    aio = policy.aio
    engine = Engine(aio.engine)
    containers = _containers(engine, policy)
    last = _last_backup(engine, dict(containers).get(aio.borgbackup_container))
    jobs = runs.jobs.all()
    answer: dict[str, Any] = {
        "type": "aio-status",
        "version": 1,
        "containers": [_told(name, found) for name, found in containers],
        "last_backup": last,
        "last_runs": {kind: _last_run(jobs, kind) for kind in SUCCESS_LINES},
        "running": runs.under_way(),
        "last_job": next(iter(jobs), None),
    }
    try:
        content = AioConfiguration(aio.configuration_file).read()
        answer |= {
            "set_up": content.is_set_up,
            "target": shown(content.target),
            "target_name": name_of_target(policy, content.target),
            "lock_files": [],
            "error": None,
        }
        answer["lock_files"] = sorted(lock_files(aio, content.target))
    except BorgPullError as error:
        answer |= {"set_up": None, "target": None, "target_name": None, "lock_files": []}
        answer["error"] = error.message
    except OSError as error:
        reason = error.strerror or error
        answer["error"] = f"the target's file system cannot be looked at: {reason}"
    answer["under_way"] = (
        answer["running"] is not None
        or (last is not None and last["verdict"] == "running")
        or (bool(answer["lock_files"]) and _script_runs(engine, dict(containers), policy))
    )
    return answer


def amiss(policy: AioPolicy, found: Mapping[str, Any]) -> list[str]:
    """What an answer of `status` says that needs somebody's hand."""
    aio = policy.aio
    faults = []
    if found["set_up"] is None:
        faults.append(str(found["error"]))
    elif not found["set_up"]:
        faults.append("Nextcloud AIO is not set up")
    containers = {one["name"]: one for one in found["containers"]}
    if containers[aio.mastercontainer]["status"] != "running":
        faults.append(f"{aio.mastercontainer} does not run")
    if found["under_way"]:
        # Its containers are stopped meanwhile.
        return faults
    skipped = (aio.borgbackup_container, aio.watchtower_container, aio.mastercontainer)
    down = [name for name, one in containers.items() if name not in skipped and not one["ok"]]
    if down:
        faults.append(f"not up and healthy: {', '.join(down)}")
    if found["lock_files"]:
        left = [name for name in found["lock_files"] if name != REPOSITORY_LOCK_FILE]
        if left:
            faults.append(f"a crash has left {', '.join(left)}")
        if REPOSITORY_LOCK_FILE in found["lock_files"]:
            faults.append(
                f"{REPOSITORY_LOCK_FILE} in the repository makes AIO refuse: a script works on it, "
                "or has left that"
            )
    return faults


def health(policy: AioPolicy) -> dict[str, Any]:
    """The answer of ``health``. Raises EngineError."""
    aio = policy.aio
    skipped = (aio.borgbackup_container, aio.watchtower_container)
    told = [
        _told(name, found)
        for name, found in _containers(Engine(aio.engine), policy)
        if name not in skipped
    ]
    down = [one["name"] for one in told if not one["ok"]]
    return {
        "type": "health",
        "version": 1,
        "healthy": not down,
        "amiss": down,
        "containers": told,
    }


def metrics(policy: AioPolicy, runs: Runs) -> dict[str, Any]:
    """The answer of ``metrics``: Prometheus' text format."""
    registry = CollectorRegistry()
    labels = ("name", "kind")
    ended = Gauge(
        "borg_pull_aio_last_run_timestamp_seconds",
        "End of the last run, by action or target.",
        labels,
        registry=registry,
    )
    success = Gauge(
        "borg_pull_aio_last_run_success",
        "Whether that run was a success: 1 yes, 0 no.",
        labels,
        registry=registry,
    )
    duration = Gauge(
        "borg_pull_aio_last_run_duration_seconds", "How long it took.", labels, registry=registry
    )
    for job in reversed(runs.jobs.all()):
        if job["status"] == "finished":
            names = label(job)
            ended.labels(*names).set(min(_seconds(job["ended"]), time.time()))
            success.labels(*names).set(int(job["result"] == "success"))
            duration.labels(*names).set(job["duration"] or 0)
    under_way = Gauge(
        "borg_pull_aio_running", "Whether a run is under way: 1 yes, 0 no.", registry=registry
    )
    under_way.set(int(runs.under_way() is not None))
    container = Gauge(
        "borg_pull_aio_container_healthy",
        "Whether a container of AIO runs and is healthy: 1 yes, 0 no.",
        ("container",),
        registry=registry,
    )
    engine = Gauge(
        "borg_pull_aio_engine_up",
        "Whether the container engine answers: 1 yes, 0 no.",
        registry=registry,
    )
    with contextlib.suppress(EngineError):
        for one in health(policy)["containers"]:
            container.labels(one["name"]).set(int(one["ok"]))
        engine.set(1)
    text = generate_latest(registry).decode("utf-8")
    return {"type": "metrics", "version": 1, "format": "prometheus", "text": text}


def target(policy: AioPolicy) -> dict[str, Any]:
    """The answer of ``target show``. Raises ConfigurationError."""
    found = AioConfiguration(policy.aio.configuration_file).read().target
    return {
        "type": "target",
        "version": 1,
        "target": shown(found),
        "name": name_of_target(policy, found),
    }


def name_of_target(policy: AioPolicy, found: dict[str, Any]) -> str | None:
    """What the whitelist calls the target that AIO has; None when it does not."""
    from borg_pull.aio.configuration import is_same
    from borg_pull.aio.flow import keys_of_target

    return next(
        (name for name, one in policy.targets.items() if is_same(keys_of_target(one), found)),
        None,
    )


def _containers(engine: Engine, policy: AioPolicy) -> list[tuple[str, Container | None]]:
    aio = policy.aio
    names = {*engine.named(PREFIX), aio.mastercontainer, aio.borgbackup_container}
    return [(name, engine.inspect(name)) for name in sorted({*names, aio.apache_container})]


def _told(name: str, found: Container | None) -> dict[str, Any]:
    return {
        "name": name,
        "status": "absent" if found is None else found.status,
        "health": None if found is None else found.health,
        "started_at": None if found is None else rfc3339(found.started_at),
        "ok": found is not None and found.running and found.health in (None, "healthy"),
    }


def _last_run(jobs: list[dict[str, Any]], kind: str) -> dict[str, Any] | None:
    """How our last run of that kind ended, and when the last one did that was a success."""
    ended = [job for job in jobs if job["kind"] == kind and job["status"] == "finished"]
    if not ended:
        return None
    good = (job["ended"] for job in ended if job["result"] == "success")
    return {
        "result": ended[0]["result"],
        "exit": ended[0]["exit"],
        "ended": ended[0]["ended"],
        "succeeded": next(good, None),
    }


def _script_runs(
    engine: Engine, containers: Mapping[str, Container | None], policy: AioPolicy
) -> bool:
    master = containers[policy.aio.mastercontainer]
    with contextlib.suppress(EngineError):
        return master is not None and master.running and script_runs(engine, master.name)
    return False


def _last_backup(engine: Engine, found: Container | None) -> dict[str, Any] | None:
    """What the backup container did last, whoever had it done, and how that ended."""
    if found is None or found.started_at is None:
        return None
    kind = found.told.get("BORG_MODE")
    answer = {
        "kind": kind,
        "started_at": rfc3339(found.started_at),
        "finished_at": rfc3339(found.finished_at),
        "exit_code": found.exit_code,
    }
    if found.running:
        return answer | {"verdict": "running"}
    lines = engine.logs(found.id, since=found.started_at, stderr=False, tail=_LOG_LINES)
    last = next((line for line in reversed(lines) if line.strip()), "")
    is_success = last.startswith(tuple(SUCCESS_LINES.values()))
    if found.exit_code != 0:
        return answer | {"verdict": "fail"}
    return answer | {"verdict": "success" if is_success else "unknown"}


def _seconds(time: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(time).timestamp()
