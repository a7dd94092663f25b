"""The companion's service: who is served, what is answered, and what outlives it."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
from typing import Any

import pytest

from borg_pull.audit import new_session
from tests.aio.host import Answer, Host
from tests.aio.stand_in_aio import BACKUP, MASTER
from tests.harness.builds import PROJECT, frozen_bundle
from tests.harness.wait import until

pytestmark = pytest.mark.needs_root

ADMIN = 'role = "admin"'
SWITCHES = "[features]\nenable_admin = true\nenable_config_write = true"


def begin(host: Host, action: str = "nightly") -> str:
    """Have a run going whose backup does not end before the knob ``hold`` is released; its job."""
    host.aio.turn("hold")
    answer = host.ask("run", action=action, detach=True)
    assert answer.exit == 0, answer.lines
    job = str(answer.only("job")["job_id"])
    until(lambda: backup_runs(host), seconds=20, what="the backup container")
    return job


def backup_runs(host: Host) -> bool:
    found = host.aio.daemon.client.containers(filters={"name": BACKUP})
    return bool(found)


def since(number: int) -> dict[str, Any]:
    return {"from": number}


def result_of(answer: Answer) -> dict[str, Any]:
    (result,) = answer.events("result")
    return result


def test_run_of_an_action(host: Host) -> None:
    host.start()
    answer = host.ask("run", action="away", detach=False)
    assert answer.exit == 0, answer.lines
    job = answer.only("job")
    assert (job["action"], job["target"]) == ("away", f"{host.aio.root}/second")
    assert [event["number"] for event in answer.lines[1:-1]] == list(
        range(1, len(answer.lines) - 1)
    )
    assert result_of(answer)["result"] == "success"
    assert result_of(answer)["target_restored"] is True
    assert len(host.aio.archives("second")) == 1
    (start,), (complete,) = host.records("action_start"), host.records("action_complete")
    for record in (start, complete):
        assert (record["client"], record["key"], record["address"], record["port"]) == (
            "luna", "SHA256:of-luna", "192.0.2.7", 50_000,
        )  # fmt: skip
        assert (record["job"], record["action"]) == (job["job_id"], "away")
        assert record["target"] == f"{host.aio.root}/second"
    assert (complete["result"], complete["exit"], complete["exit_code"]) == ("success", 0, 0)
    assert complete["duration"] > 0
    assert complete["error"] is None
    # A log that root made would shut the account out.
    assert host.log.stat().st_uid == host.account.uid
    assert host.journal() is None


def test_interrupt_ends_the_telling_alone(host: Host) -> None:
    host.aio.turn("hold")
    told = subprocess.Popen(
        host.command("run", "nightly"), cwd=PROJECT, stdout=subprocess.PIPE, text=True
    )
    until(lambda: backup_runs(host), seconds=20, what="the backup container")
    told.send_signal(signal.SIGINT)
    told.communicate(timeout=20)
    assert told.returncode == 130
    host.aio.release("hold")
    until(lambda: host.records("action_complete"), seconds=30, what="the end")
    assert host.records("action_complete")[0]["result"] == "success"


def test_plain_backup_and_check_of_a_target(host: Host) -> None:
    host.start()
    made = host.ask("aio", target="second", check=False, detach=False)
    assert made.exit == 0, made.lines
    checked = host.ask("aio", target="second", check=True, detach=False)
    assert checked.exit == 0, checked.lines
    assert host.aio.calls() == ["0 |10|110", "0 |01|010"]
    assert host.aio.read()["borg_backup_host_location"] == f"{host.aio.root}/first"


def test_one_run_at_a_time(host: Host) -> None:
    host.start()
    job = begin(host)
    second = host.ask("run", action="nightly", detach=False)
    assert (second.exit, second.only("busy")["job_id"]) == (75, job)
    assert job in second.end["error"]
    by_admin = host.run("run", "nightly")
    assert (by_admin.returncode, job in by_admin.stderr) == (75, True)
    host.aio.release("hold")
    assert result_of(host.ask("job", job=job, follow=True, **since(1)))["result"] == "success"
    assert len(host.records("action_start")) == len(host.records("action_complete")) == 1


def test_job_outlives_the_connection_and_the_service(host: Host) -> None:
    """Whoever follows it, from wherever, is told all of it."""
    host.start()
    host.aio.turn("hold")
    watcher = host.asking("run", action="nightly", detach=False)
    until(lambda: backup_runs(host), seconds=20, what="the backup container")
    watcher.kill()
    watcher.communicate()
    assert host.stop(signal.SIGTERM) == 0
    assert not host.socket.exists()
    host.start()
    (head,) = host.ask("jobs").only("jobs")["jobs"]
    assert (head["status"], head["state"], head["client"]) == ("running", "watch", "luna")
    assert host.stop(signal.SIGKILL) == -signal.SIGKILL
    host.start()
    follower = host.asking("job", job=head["job_id"], follow=True, **since(3))
    host.aio.release("hold")
    out, _ = follower.communicate(timeout=60)
    answer = Answer([json.loads(line) for line in out.splitlines()])
    assert answer.lines[1]["number"] == 3
    assert (result_of(answer)["result"], answer.exit) == ("success", 0)
    (head,) = host.ask("jobs").only("jobs")["jobs"]
    assert (head["status"], head["result"], head["exit"]) == ("finished", "success", 0)
    (record,) = host.records("action_complete")
    assert record["result"] == "success"


def test_cancel(host: Host) -> None:
    """Not while AIO is at work; while its containers come up again, it ends the waiting."""
    host.start()
    job = begin(host)
    refused = host.ask("cancel", job=job)
    assert (refused.exit, "in the state watch" in refused.end["error"]) == (75, True)
    host.aio.turn("apache-dies")
    host.aio.release("hold")
    until(
        lambda: (host.journal() or {}).get("state") == "health", seconds=20, what="the state health"
    )
    assert host.ask("cancel", job=job).exit == 0
    answer = host.ask("job", job=job, follow=True, **since(1))
    assert (answer.exit, result_of(answer)["result"]) == (1, "success")
    over = host.ask("cancel", job=job)
    assert (over.exit, over.end["error"]) == (77, "this job is over")


def test_jobs_of_others(host: Host) -> None:
    host.configure(
        more='[client.sol]\nactions = ["nightly"]\n[client.root]\nrole = "admin"\n' + SWITCHES
    )
    host.start()
    answer = host.ask("run", action="nightly", detach=False)
    job = answer.only("job")["job_id"]
    assert host.ask("jobs", client="sol").only("jobs")["jobs"] == []
    assert host.ask("job", job=job, client="sol").end["error"] == "no such job"
    assert host.ask("job", job=job, client="sol", all=True).end["error"] == "no such job"
    assert host.ask("job", job=new_session()).end["error"] == "no such job"
    (seen,) = host.ask("jobs", client="root", all=True).only("jobs")["jobs"]
    assert (seen["job_id"], seen["client"]) == (job, "luna")


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        ("run", {"action": "weekly"}),
        ("run", {"action": "nightly", "client": "nobody"}),
        ("aio", {"target": "first"}),
        ("target-set", {"target": "second"}),
        ("lockdown-on", {}),
    ],
)
def test_what_the_whitelist_does_not_grant(
    host: Host, request_: str, fields: dict[str, Any]
) -> None:
    """The companion looks for itself, whatever the forced command let through."""
    before = host.aio.configuration.read_bytes()
    host.start()
    answer = host.ask(request_, **fields)
    assert answer.exit == 77, answer.lines
    assert host.aio.calls() == []
    assert host.aio.configuration.read_bytes() == before
    assert not (host.config.parent / "lockdown").exists()


def test_whitelist_is_read_for_each_request(host: Host) -> None:
    host.start()
    host.configure(client='role = "read"')
    assert host.ask("run", action="nightly").exit == 77
    host.config.write_text("[runtime]\nhome = 1\n")
    assert host.ask("aio-status").exit == 78


@pytest.mark.parametrize(
    "line",
    [
        "",
        "no json",
        '{"version": 2}',
        "x" * 5000,
        '{"version":1,"request":"run","client":"luna","session":{},"action":"../x"}',
    ],
)
def test_request_that_does_not_parse(host: Host, line: str) -> None:
    host.start()
    out, _ = host.sending(line).communicate(timeout=30)
    assert json.loads(out)["exit"] == 64


def test_no_record_no_run(host: Host) -> None:
    host.start()
    host.log.mkdir()
    answer = host.ask("run", action="away", detach=False)
    assert (answer.exit, host.aio.calls()) == (73, [])
    assert host.journal() is None
    (head,) = host.ask("jobs").only("jobs")["jobs"]
    assert (head["result"], head["exit"]) == ("fail", 73)


def test_target_set_and_show(host: Host) -> None:
    host.configure(client=ADMIN, more=SWITCHES)
    host.start()
    assert host.ask("target-show").only("target")["name"] == "first"
    answer = host.ask("target-set", target="second")
    assert (answer.exit, answer.only("target")["name"]) == (0, "second")
    assert host.aio.read()["borg_backup_host_location"] == f"{host.aio.root}/second"
    (start,), (complete,) = host.records("action_start"), host.records("action_complete")
    assert (start["kind"], start["previous"]) == ("target-set", f"{host.aio.root}/first")
    assert complete["result"] == "success"
    shown = host.run("target", "show")
    assert shown.stdout == f"second  {host.aio.root}/second\n"
    assert host.run("target", "set", "first").returncode == 0
    assert host.run("target", "set", "third").returncode == 77
    assert host.aio.read()["borg_backup_host_location"] == f"{host.aio.root}/first"


def test_target_is_not_set_during_a_run(host: Host) -> None:
    host.configure(client=ADMIN, more=SWITCHES)
    host.start()
    job = begin(host)
    assert host.ask("target-set", target="second").exit == 75
    host.aio.release("hold")
    host.ask("job", job=job, follow=True, **since(1))


def test_target_is_not_set_while_aio_works_on_its_own(host: Host) -> None:
    """Its script may not have read where to yet."""
    host.configure(client=ADMIN, more=SWITCHES)
    host.start()
    client = host.aio.daemon.client
    host.aio.turn("hold")
    begun = client.exec_create(
        "nextcloud-aio-mastercontainer", ["/daily-backup.sh"], environment={"DAILY_BACKUP": "1"}
    )
    client.exec_start(begun["Id"], detach=True)
    until(lambda: backup_runs(host), seconds=20, what="the backup container")
    refused = host.ask("target-set", target="second")
    assert (refused.exit, "of its own" in refused.end["error"]) == (75, True)
    assert host.aio.read()["borg_backup_host_location"].endswith("/first")
    assert host.records("action_start") == []
    host.aio.release("hold")
    until(lambda: not backup_runs(host), seconds=60, what="its end")
    until(lambda: host.ask("target-set", target="second").exit == 0, seconds=30, what="the target")


def test_lockdown(host: Host) -> None:
    host.configure(client=ADMIN, more=SWITCHES)
    host.start()
    assert host.ask("lockdown-on").only("lockdown")["changed"] is True
    assert "by: client luna" in (host.config.parent / "lockdown").read_text()
    assert host.ask("lockdown-off").only("lockdown")["changed"] is True
    assert [record["client"] for record in host.records()] == ["luna", "luna"]
    (host.config.parent / "lockdown").write_text("by: the host's admin\n")
    refused = host.ask("run", action="nightly", detach=False)
    assert (refused.exit, "is locked down" in refused.end["error"]) == (75, True)
    assert host.aio.calls() == []
    (host.config.parent / "lockdown").unlink()
    assert not (host.config.parent / "lockdown").exists()


def test_status_health_and_metrics(host: Host) -> None:
    host.start()
    host.ask("run", action="nightly", detach=False)
    (host.aio.data / "daily_backup_running").touch()
    status = host.ask("aio-status").only("aio-status")
    assert (status["set_up"], status["target_name"], status["running"]) == (True, "first", None)
    assert status["last_backup"]["verdict"] == "success"
    assert status["last_job"]["result"] == "success"
    assert status["lock_files"] == ["daily_backup_running"]
    assert {one["name"] for one in status["containers"]} >= {BACKUP, "nextcloud-aio-apache"}
    assert "of-aio-itself" not in json.dumps(status)
    told = host.run("status")
    assert "AIO's last    backup: success, 20" in told.stdout
    assert "last backup   success, 20" in told.stdout
    assert "left behind   daily_backup_running" in told.stdout
    assert (told.returncode, "a crash has left daily_backup_running" in told.stderr) == (1, True)
    assert host.ask("health").only("health")["healthy"] is True
    text = host.ask("metrics").only("metrics")["text"]
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, text=True, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert 'borg_pull_aio_last_run_success{kind="backup",name="nightly"} 1.0' in text
    host.aio.daemon.client.stop("nextcloud-aio-apache", timeout=0)
    answer = host.ask("health")
    assert (answer.exit, answer.only("health")["amiss"]) == (1, ["nextcloud-aio-apache"])


@pytest.mark.parametrize("place", ["/a\0b", "/\ud800", "/" + "x" * 200_000])
def test_target_that_is_no_path(host: Host, place: str) -> None:
    """Whoever writes AIO's configuration may have it say anything."""
    host.start()
    host.aio.change(borg_backup_host_location=place)
    status = host.ask("aio-status")
    assert status.exit == 0
    assert "cannot be looked at" in status.only("aio-status")["error"]
    refused = host.ask("run", action="nightly", detach=False)
    assert (refused.exit, "cannot be looked at" in refused.end["error"]) == (2, True)
    assert host.aio.calls() == []
    host.aio.change(borg_backup_host_location=str(host.aio.root / "first"))
    assert host.ask("aio-status").only("aio-status")["error"] is None
    assert host.ask("run", action="nightly", detach=False).exit == 0


def test_engine_not_there(host: Host) -> None:
    host.config.write_text(
        host.config.read_text().replace(host.aio.daemon.address, "unix:///nowhere/api.sock")
    )
    host.start()
    assert host.ask("aio-status").exit == 69
    assert "borg_pull_aio_engine_up 0.0" in host.ask("metrics").only("metrics")["text"]
    assert host.ask("run", action="nightly", detach=False).exit == 69
    (record,) = host.records("action_complete")
    assert (record["result"], record["exit"]) == ("fail", 69)


def test_engine_of_the_environment(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    text = host.config.read_text().replace(f'engine = "{host.aio.daemon.address}"', "")
    host.config.write_text(text)
    monkeypatch.setenv("DOCKER_HOST", host.aio.daemon.address)
    assert host.run("status").returncode == 0
    monkeypatch.setenv("DOCKER_HOST", "ssh://root@far")
    for command in (("status",), ("run", "nightly")):
        refused = host.run(*command)
        assert (refused.returncode, "not of a kind that is used" in refused.stderr) == (78, True)
    assert host.records() == []


def test_check_config(host: Host) -> None:
    sound = host.run("check-config")
    assert (sound.returncode, sound.stderr) == (0, "")
    host.aio.change(wasStartButtonClicked=False)
    not_yet = host.run("check-config")
    assert (not_yet.returncode, "not set up yet" in not_yet.stderr) == (78, True)
    host.configure(actions='[action.bad]\ntype = "x"\ntimeout = 1')
    wrong = host.run("check-config")
    assert (wrong.returncode, wrong.stdout) == (78, "")
    assert "action.bad.timeout" in wrong.stderr
    assert "action.bad.type" in wrong.stderr


@pytest.mark.parametrize(
    ("client", "more", "told"),
    [
        ("", "[aoi]\nengine = 'x'", "aoi: is unknown; did you mean aio?"),
        ('role = "acton"', "", "client.luna.role: "),
        ("", '[client.vega]\nactions = ["nightl"]', "client.vega.actions[0]: 'nightl' is no"),
        ("", '[client.vega]\naio_targets = ["third"]', "client.vega.aio_targets[0]: "),
    ],
)
def test_check_config_looks_at_what_clients_may_name(
    host: Host, client: str, more: str, told: str
) -> None:
    host.configure(client=client, more=more)
    wrong = host.run("check-config")
    assert (wrong.returncode, wrong.stdout) == (78, "")
    assert told in wrong.stderr
    assert wrong.stderr.endswith("the configuration is wrong: 1 error\n"), wrong.stderr


def test_check_config_finds_what_would_fail_at_night(host: Host) -> None:
    """A client's own file, a configuration that cannot be replaced, an AIO that is stopped."""
    own = host.config.parent / "clients.d"
    own.mkdir()
    (own / "vega.toml").write_text('actions = ["nightly", "none"]')
    wrong = host.run("check-config")
    assert (wrong.returncode, "vega.toml" in wrong.stderr) == (78, True)
    (own / "vega.toml").unlink()
    mounted = subprocess.run(
        [
            *("unshare", "--mount", "sh", "-c", 'mount --bind "$1" "$1"; shift; exec "$@"', "sh"),
            *(str(host.aio.configuration), *host.command("check-config")),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=PROJECT,
    )
    assert (mounted.returncode, "is mounted by itself" in mounted.stderr) == (78, True)
    read_only = subprocess.run(
        [
            *("unshare", "--mount", "sh", "-c"),
            'mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"; shift; exec "$@"',
            *("sh", str(host.aio.data), *host.command("check-config")),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=PROJECT,
    )
    assert (read_only.returncode, "cannot be switched" in read_only.stderr) == (78, True)
    host.aio.daemon.client.stop(MASTER, timeout=0)
    stopped = host.run("check-config")
    assert (stopped.returncode, f"{MASTER} does not run" in stopped.stderr) == (78, True)


def test_another_service_is_not_displaced(host: Host) -> None:
    host.start()
    second = host.run("serve")
    assert (second.returncode, "another companion listens" in second.stderr) == (75, True)
    assert host.ask("aio-status").exit == 0


def test_file_in_the_sockets_place_stays(host: Host) -> None:
    host.socket.parent.mkdir()
    host.socket.write_text("precious")
    refused = host.run("serve")
    assert (refused.returncode, "cannot listen on" in refused.stderr) == (71, True)
    assert host.socket.read_text() == "precious"
    host.socket.unlink()
    host.start()
    assert host.ask("aio-status").exit == 0


def test_two_that_start_over_the_socket_of_one_that_is_gone(host: Host) -> None:
    host.start()
    host.stop(signal.SIGKILL)
    assert host.socket.exists()
    both = [
        subprocess.Popen(host.command("serve"), cwd=PROJECT, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    try:
        until(lambda: any(one.poll() is not None for one in both), seconds=30, what="one's end")
        (ended,) = [one for one in both if one.poll() is not None]
        assert ended.returncode == 75
        assert host.ask("aio-status").exit == 0
    finally:
        for one in both:
            one.kill()
            one.communicate()


@pytest.mark.parametrize("content", ["[" * 100_000, '{"version": 1}', "{"])
def test_journal_that_says_nothing_does_not_end_the_service(host: Host, content: str) -> None:
    host.start()
    host.stop()
    (host.state / "journal.json").write_text(content)
    host.start()
    until(lambda: len(host.said().splitlines()) > 2, seconds=20, what="what it says of it")
    assert host.ask("target-show").exit == 0
    refused = host.ask("run", action="nightly")
    assert refused.exit in (70, 75, 78)
    assert host.records("action_start") == []
    (host.state / "journal.json").unlink()
    assert host.ask("run", action="nightly", detach=False).exit == 0


def test_without_descriptors_it_says_so_and_waits(host: Host) -> None:
    host.start()
    assert host.service is not None
    _, hard = resource.prlimit(host.service, resource.RLIMIT_NOFILE)
    resource.prlimit(host.service, resource.RLIMIT_NOFILE, (6, hard))
    waiting = host.asking("target-show")
    until(lambda: "a connection is lost" in host.said(), seconds=20, what="what it says of it")
    assert len(host.said()) < 10_000
    resource.prlimit(host.service, resource.RLIMIT_NOFILE, (1024, hard))
    out, _ = waiting.communicate(timeout=30)
    assert json.loads(out.splitlines()[-1])["exit"] == 0


def test_socket_of_systemd(host: Host) -> None:
    """Passed as the unit does it; it is not the service's to remove."""
    host.socket.parent.mkdir()
    activator = subprocess.Popen(
        ["/usr/bin/systemd-socket-activate", "--listen", host.socket, *host.command("serve")],
        cwd=PROJECT,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(host.socket.exists, seconds=10, what="the socket")
        os.chown(host.socket, 0, host.account.gid)
        host.socket.chmod(0o660)
        assert host.ask("aio-status").exit == 0
        activator.terminate()
        assert activator.wait(timeout=10) == 0
        assert host.socket.exists()
    finally:
        activator.kill()
        activator.wait()


def test_frozen_companion(aio: Any) -> None:
    """The same from the bundle: the engine's library, the runs of their own, all of it."""
    host = Host(aio, frozen_bundle() / "borg-pull-aio")
    try:
        host.start()
        answer = host.ask("run", action="away", detach=False)
        assert (answer.exit, result_of(answer)["result"]) == (0, "success"), answer.lines
        assert host.ask("metrics").exit == 0
        assert host.run("status").returncode == 0
    finally:
        host.close()
