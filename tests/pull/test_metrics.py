"""Metrics: true, whole, and as promtool wants them."""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from borg_pull.errors import SystemRefusedError
from borg_pull.pull import metrics
from borg_pull.pull.condition import conditions
from borg_pull.pull.config import Config
from borg_pull.pull.ledger import Ledger


def _config(tmp_path: Path) -> Config:
    data = tmp_path / "repository" / "data" / "0"
    data.mkdir(parents=True)
    (data / "1").write_bytes(b"x" * 1000)
    (data / "2").write_bytes(b"x" * 500)
    return Config.model_validate(
        {
            "source": {"s": {"host": "h", "identity": "/key"}},
            "repository": {"r": {"path": str(tmp_path / "repository")}},
            "job": {
                "good": {
                    "source": "s",
                    "repository": "r",
                    "paths": ["/p"],
                    "schedule": "daily",
                },
                "never": {"source": "s", "repository": "r", "paths": ["/p"]},
            },
        }
    )


def _write(target: Path, config: Config, ledger: Ledger) -> datetime:
    """Write what is known now, and that now."""
    now = datetime.now(UTC)
    metrics.write(target, config, conditions(config, ledger, now), now)
    return now


def _values(path: Path) -> dict[tuple[str, ...], float]:
    return {
        (sample.name.removeprefix("borg_pull_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(path.read_text())
        for sample in family.samples
    }


def test_what_is_written_is_what_is_known(tmp_path: Path) -> None:
    config = _config(tmp_path)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    run = ledger.begin("good", "s", "r", log=None)
    ledger.finish(run, "success", original_size=10, new_size=5, files=3, duration=1.5)
    target = tmp_path / "borg_pull.prom"
    now = _write(target, config, ledger)
    values = _values(target)
    assert values["job_archive_original_size_bytes", "good"] == 10
    assert values["job_archive_deduplicated_size_bytes", "good"] == 5
    assert values["job_archive_files", "good"] == 3
    assert values["job_last_run_duration_seconds", "good"] == 1.5
    assert values["job_last_run_outcome", "good", "success"] == 1
    assert values["job_last_run_outcome", "good", "failure"] == 0
    assert values["job_stale", "good"] == 0
    assert values["job_stale", "never"] == 1
    assert ("job_last_success_timestamp_seconds", "never") not in values
    assert values["job_next_due_timestamp_seconds", "good"] > now.timestamp()
    assert values["repository_size_bytes", "r"] == 1500
    assert values["repository_free_bytes", "r"] > 0
    assert values["metrics_complete",] == 1
    assert list(tmp_path.glob("borg_pull.prom*")) == [target]


def test_a_repository_that_is_gone_makes_them_incomplete(tmp_path: Path) -> None:
    config = _config(tmp_path)
    shutil.rmtree(tmp_path / "repository")
    target = tmp_path / "borg_pull.prom"
    ledger = Ledger(tmp_path / "ledger.sqlite")
    _write(target, config, ledger)
    assert _values(target)["metrics_complete",] == 0


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    config = _config(tmp_path)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    with pytest.raises(SystemRefusedError, match="metrics"):
        _write(tmp_path / "missing" / "x.prom", config, ledger)


def test_promtool_finds_nothing_to_say(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    assert promtool, "install Debian's package prometheus"
    config = _config(tmp_path)
    target = tmp_path / "borg_pull.prom"
    ledger = Ledger(tmp_path / "ledger.sqlite")
    _write(target, config, ledger)
    said = subprocess.run(
        [promtool, "check", "metrics"],
        stdin=target.open("rb"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")
