"""The companion's service: who is served, what is answered, and what outlives it."""

from __future__ import annotations

from tests.aio.host import Host


def test_run_of_an_action(host: Host) -> None:
    host.start()
    answer = host.ask("run", action="nightly", detach=False)
    assert answer.exit == 0, answer.lines
    job = answer.only("job")["job_id"]
    (result,) = answer.events("result")
    assert result["result"] == "success"
    assert len(host.aio.archives("first")) == 1
    (start,), (complete,) = host.records("action_start"), host.records("action_complete")
    assert start["job"] == complete["job"] == job
    assert (start["client"], start["key"], start["address"]) == (
        "luna", "SHA256:of-luna", "192.0.2.7",
    )  # fmt: skip
    assert host.log.stat().st_uid == host.account.uid
    assert host.journal() is None


def test_admin_runs_one_in_the_foreground(host: Host) -> None:
    done = host.run("run", "nightly")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Backup finished" in done.stdout
    assert len(host.records("action_complete")) == 1
