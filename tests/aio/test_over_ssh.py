"""A key that may run one action has AIO's backup made: sshd, forced command, companion, engine."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.aio.stand_in_aio import BACKUP, StandIn
from tests.harness.builds import FROZEN_14
from tests.harness.fixtures import SiteMaker
from tests.harness.peer import Result
from tests.harness.site import Site
from tests.harness.wait import until

pytestmark = pytest.mark.needs_root


@pytest.fixture
def site(make_site: SiteMaker, aio: StandIn) -> Iterator[Site]:
    """A source on the host of ``aio``, with its companion, both frozen."""
    made = make_site(FROZEN_14)
    source = made.source
    source.directory.chmod(0o755)
    path = source.directory / "run-aio/companion.sock"
    source.write_whitelist(
        {
            "flow": {"role": "action", "actions": ["nightly"]},
            "watcher": {"role": "read"},
            "boss": {"role": "admin", "aio_targets": ["second"]},
        },
        features={"enable_admin": True, "enable_config_write": True},
        aio={
            "engine": aio.daemon.address,
            "configuration_file": str(aio.configuration),
            "database_dump_dir": str(aio.root / "dump"),
            "socket": str(path),
            "state_dir": str(source.directory / "aio-state"),
            "health_timeout": 30,
            "target": {
                "first": {"host_location": str(aio.root / "first")},
                "second": {"host_location": str(aio.root / "second")},
            },
        },
        action={"nightly": {"type": "nextcloud_aio_backup", "target": "second"}},
    )
    with (source.directory / "companion.log").open("ab") as log:
        service = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL"),
                *(source.programs.aio, "--config", source.configuration, "serve"),
            ],
            stdin=subprocess.DEVNULL,
            stderr=log,
        )
    until(path.exists, seconds=20, what="the companion")
    yield made
    service.terminate()
    service.wait(20)


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_one_action(site: Site, aio: StandIn) -> None:
    flow = site.peer("flow")
    assert [one["name"] for one in lines(flow.pull("actions"))[0]["actions"]] == ["nightly"]
    ran = flow.pull("run nightly")
    assert (ran.exit, ran.errors) == (0, "")
    job, *events, end = lines(ran)
    assert (job["type"], job["action"], end["exit"]) == ("job", "nightly", 0)
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["result"] == "success"
    assert len(aio.archives("second")) == 1
    source = site.source
    (start,), (done,) = source.audit(event="action_start"), source.audit(event="action_complete")
    (answered,) = source.audit(event="answered", verb="run")
    for name in ("session", "client", "key", "address", "port"):
        assert start[name] == done[name] == answered[name]
    assert (answered["name"], answered["exit"], done["result"]) == ("nightly", 0, "success")
    source.assert_chain()
    assert source.audit_file.stat().st_uid == site.account.uid
    # Others see that it was, and neither whose nor more of it than that.
    assert lines(site.peer("watcher").pull("jobs"))[0]["jobs"] == []
    other = site.peer("watcher").pull(f"job {job['job_id']}")
    assert (other.exit, "no such job" in other.errors) == (77, True)
    (seen,) = lines(site.peer("boss").pull("jobs"))[0]["jobs"]
    assert (seen["job_id"], seen["client"]) == (job["job_id"], "flow")


def test_detached_followed_and_busy(site: Site, aio: StandIn) -> None:
    flow, boss = site.peer("flow"), site.peer("boss")
    aio.turn("hold")
    begun = flow.pull("run nightly --detach")
    assert begun.exit == 0, begun.errors
    (job,) = lines(begun)
    assert {"job_id", "action", "status"} <= job.keys()
    running = {"name": BACKUP}
    until(
        lambda: bool(aio.daemon.client.containers(filters=running)),
        seconds=30,
        what="the backup container",
    )
    busy = flow.pull("run nightly")
    assert busy.exit == 75
    assert job["job_id"] in busy.errors
    assert job["job_id"] in str(lines(busy))
    # What an admin may besides: not while a run has the target.
    assert boss.pull("target set second").exit == 75
    follower = flow.start(f"job {job['job_id']} --follow", stdin=b"")
    aio.release("hold")
    followed = follower.wait()
    assert followed.exit == 0, followed.errors
    numbers = [line["number"] for line in lines(followed) if line["type"] == "event"]
    assert numbers == list(range(1, len(numbers) + 1))
    later = flow.pull(f"job {job['job_id']} --follow --from {numbers[-1]}")
    assert [one["number"] for one in lines(later) if one["type"] == "event"] == numbers[-1:]
    moved = boss.pull("target set second")
    assert moved.exit == 0, moved.errors
    assert flow.pull("target set second").exit == 77
    assert boss.pull("target set first").exit == 77
