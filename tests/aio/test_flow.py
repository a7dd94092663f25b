"""The flow on a real engine, against every way in which AIO's daily backup is odd."""

from __future__ import annotations

from typing import Any

import pytest

from borg_pull.aio.flow import Flow, Outcome, Pace, Plan
from borg_pull.aio.jobs import Jobs
from borg_pull.aio.journal import prepare
from borg_pull.aio_policy import AioSettings, Target
from borg_pull.audit import new_session
from tests.aio.stand_in_aio import BACKUP, MASTER, StandIn

QUICK = Pace(poll=0.05, look=0.2, reach=2.0)


class Bench:
    """Runs flows against a stand-in, and keeps what they told."""

    def __init__(self, aio: StandIn) -> None:
        self.aio = aio
        self.state = aio.root / "state"
        prepare(str(self.state))
        self.jobs = Jobs(str(self.state), keep=10, keep_days=10)
        self.journal: dict[str, Any] = {}
        self.job = new_session()
        self.cancelled: str | None = None

    def target(self, place: str) -> Target:
        return Target(name=place, remote_repo=None, host_location=str(self.aio.root / place))

    def run(self, **changed: Any) -> Outcome:
        limit = changed.pop("health_timeout", 5)
        plan: dict[str, Any] = {
            "kind": "backup",
            "target": None,
            "restore_after": False,
            "stop_containers": True,
            "start_containers": True,
            "automatic_updates": False,
            "stop_timeout": 10,
            "timeout": 30,
        }
        settings = AioSettings(
            mastercontainer=MASTER,
            borgbackup_container=BACKUP,
            watchtower_container="nextcloud-aio-watchtower",
            apache_container="nextcloud-aio-apache",
            configuration_file=str(self.aio.configuration),
            database_dump_dir=str(self.aio.root / "dump"),
            engine=self.aio.daemon.address,
            socket="/nowhere",
            state_dir=str(self.state),
            health_timeout=limit,
            keep_jobs=10,
            keep_days=10,
        )
        events = self.jobs.create(self.job, {"client": None})
        flow = Flow(
            Plan(**(plan | changed)),
            settings,
            events,
            self.journal.update,
            lambda: self.cancelled,
            QUICK,
        )
        return flow.run()

    def events(self, kind: str) -> list[dict[str, Any]]:
        found = self.jobs.events(self.job, 1, follow=None)
        return [event for event in found if event["event"] == kind]

    def states(self) -> list[str]:
        told = [event["state"] for event in self.events("state")]
        return [state for place, state in enumerate(told) if told[place - 1 : place] != [state]]

    def output(self, origin: str) -> list[str]:
        return [event["line"] for event in self.events("output") if event["origin"] == origin]


@pytest.fixture
def bench(aio: StandIn) -> Bench:
    return Bench(aio)


def test_backup(bench: Bench) -> None:
    outcome = bench.run()
    assert (outcome.result, outcome.exit, outcome.error) == ("success", 0, None)
    assert len(bench.aio.archives("first")) == 1
    assert bench.aio.calls() == ["0 |10|110"]
    assert bench.states() == [
        "preflight", "switch-target", "run", "watch", "verdict", "health", "done",
    ]  # fmt: skip
    assert "making the backup" in bench.output("daily-backup.sh")
    assert any(line.startswith("Backup finished") for line in bench.output(BACKUP))
