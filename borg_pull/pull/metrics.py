"""Metrics for Prometheus' textfile collector, written as a whole or not at all.

Names and units by Prometheus' conventions (its documentation, "Metric and label naming").
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

from borg_pull.errors import SystemRefusedError
from borg_pull.pull.condition import ENDS, Condition
from borg_pull.pull.config import Config

_JOB = ("job",)


def write(path: Path, config: Config, found: Sequence[Condition], now: datetime) -> None:
    """Write everything to ``path``. Raises SystemRefusedError."""
    registry = CollectorRegistry()
    _jobs(registry, found)
    is_whole = _repositories(registry, config)
    written = Gauge(
        "borg_pull_metrics_written_timestamp_seconds",
        "When these metrics were written.",
        registry=registry,
    )
    written.set(now.timestamp())
    sound = Gauge(
        "borg_pull_configuration_sound",
        "Whether nothing of the configuration is left out: 1 yes, 0 no.",
        registry=registry,
    )
    sound.set(int(not config.faults))
    whole = Gauge(
        "borg_pull_metrics_complete",
        "Whether every repository could be measured: 1 yes, 0 no.",
        registry=registry,
    )
    whole.set(int(is_whole))
    try:
        write_to_textfile(str(path), registry)
    except OSError as error:
        raise SystemRefusedError(f"metrics {path}: {error.strerror}") from error


def _jobs(registry: CollectorRegistry, found: Sequence[Condition]) -> None:
    def gauge(name: str, text: str) -> Gauge:
        return Gauge(f"borg_pull_job_{name}", text, _JOB, registry=registry)

    last_success = gauge("last_success_timestamp_seconds", "Start of the last run with a backup.")
    last_run = gauge("last_run_timestamp_seconds", "Start of the last run.")
    duration = gauge("last_run_duration_seconds", "How long the last run took.")
    outcome = Gauge(
        "borg_pull_job_last_run_outcome",
        "How the last run ended: 1 for the outcome that holds, 0 for the others.",
        ("job", "outcome"),
        registry=registry,
    )
    size = gauge("archive_original_size_bytes", "Size of the data in the last archive.")
    new = gauge("archive_deduplicated_size_bytes", "What the last archive added.")
    files = gauge("archive_files", "Files in the last archive.")
    running = gauge("running", "Whether it runs now.")
    stale = gauge(
        "stale", "Whether the last backup is older than stale_after, or not known to be fresh."
    )
    shrunk = gauge("shrunk", "Whether the last archive is much smaller than usual.")
    failing = gauge("failing", "Whether the last run, retention or check failed.")
    due = gauge("next_due_timestamp_seconds", "When it is due next.")
    verified = gauge("last_verified_timestamp_seconds", "When a restore was last verified.")
    for one in found:
        if (good := one.last_success) is not None:
            # An alert on its age would stay silent until the date is past.
            _set(last_success, one.job, None if one.is_ahead else good.started.timestamp())
            _set(size, one.job, good.original_size)
            _set(new, one.job, good.new_size)
            _set(files, one.job, good.files)
        if one.last is not None:
            last_run.labels(one.job).set(one.last.started.timestamp())
            _set(duration, one.job, one.last.duration)
        _set(due, one.job, None if one.next_due is None else one.next_due.timestamp())
        at = one.last_verified
        _set(verified, one.job, None if at is None else at.timestamp())
        running.labels(one.job).set(int(one.running is not None))
        stale.labels(one.job).set(int(one.state in ("stale", "never")))
        shrunk.labels(one.job).set(int(one.is_shrunk))
        failing.labels(one.job).set(int(one.state == "failing"))
        for name in ENDS:
            holds = one.last is not None and one.last.outcome == name
            outcome.labels(one.job, name).set(int(holds))


def _set(gauge: Gauge, job: str, value: float | None) -> None:
    """What is not known has no sample, rather than a zero."""
    if value is not None:
        gauge.labels(job).set(value)


def _repositories(registry: CollectorRegistry, config: Config) -> bool:
    """Whether all of them could be measured."""
    size = Gauge(
        "borg_pull_repository_size_bytes",
        "What the repository's segments take.",
        ("repository",),
        registry=registry,
    )
    free = Gauge(
        "borg_pull_repository_free_bytes",
        "Free space of the repository's filesystem for its owner.",
        ("repository",),
        registry=registry,
    )
    is_whole = True
    for name, repository in config.repository.items():
        try:
            status = os.statvfs(repository.path)
            free.labels(name).set(status.f_bavail * status.f_frsize)
            size.labels(name).set(segments_size(repository.path))
        except OSError:
            is_whole = False
    return is_whole


def segments_size(repository: Path) -> int:
    """Bytes of the repository's segments. Raises OSError when it cannot be read."""
    total = 0
    with os.scandir(repository / "data") as directories:
        for directory in directories:
            with os.scandir(directory.path) as segments:
                for segment in segments:
                    try:
                        total += segment.stat().st_size
                    except FileNotFoundError:
                        continue  # compacted away meanwhile
    return total
