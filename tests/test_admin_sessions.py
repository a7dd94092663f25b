"""``borg-pull-admin sessions``, and ``lockdown on --kill``, on stand-ins for forced commands.

What the account can write, root reads as the account and believes no more than it must.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from borg_pull.admin import sessions
from borg_pull.source import limits, places
from borg_pull.source.places import LiveSession
from tests.admin_host import Host
from tests.admin_runs import Answer, run, start
from tests.harness.site import Installations
from tests.harness.wait import until

NOBODY = 65534


@pytest.fixture
def host(installations: Installations) -> Iterator[Host]:
    account = installations.take_account()
    made = Host(installations, account)
    yield made
    made.close()
    installations.return_account(account)


def shown(host: Host) -> list[dict[str, Any]]:
    answer = run("sessions", host.config, "--json")
    assert (answer.exit, answer.stderr) == (0, "")
    said: list[dict[str, Any]] = json.loads(answer.stdout)["sessions"]
    return said


def report(host: Host, content: str | bytes, client: str = "luna") -> str:
    """A wrap's report, the account's own."""
    directory = host.directory / "home/locks" / client
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "0123456789abcdef.report"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    for one in (directory.parent, directory, path):
        os.chown(one, host.account.uid, host.account.gid)
    return str(path)


def test_nothing_is_under_way(host: Host) -> None:
    answer = run("sessions", host.config)
    assert (answer.exit, answer.stdout) == (0, "no request is under way\n")
    assert shown(host) == []


def test_nothing_has_ever_been(host: Host) -> None:
    (host.directory / "home/limits").rmdir()
    assert shown(host) == []


def test_what_is_under_way(host: Host) -> None:
    path = report(host, "7 connected 0 0 0\n7 progress 1048576 2048 0\n7 progress 1572864 3072 0\n")
    first = host.hold(report=path)
    second = host.hold("sol", "list")
    third = host.hold("vega", None)
    said = shown(host)
    assert [one["pid"] for one in said] == [first, second, third]
    assert [one["client"] for one in said] == ["luna", "sol", "vega"]
    assert [one["verb"] for one in said] == ["create", "list", None]
    assert [one["bytes_to_peer"] for one in said] == [1572864, None, None]
    assert [one["bytes_from_peer"] for one in said] == [3072, None, None]
    assert all(0 <= one["age"] < 60 for one in said)
    lines = run("sessions", host.config).stdout.splitlines()
    assert re.split("  +", lines[0]) == list(sessions._HEADINGS)
    assert re.fullmatch(
        rf"luna +create +{said[0]['since'][:10]} \d\d:\d\d:\d\d +\d+\.0 s +1\.5 MiB +3\.0 KiB +"
        rf"{first} +{said[0]['session']}",
        lines[1],
    )
    assert re.fullmatch(rf"vega +- .* - +- +{third} +{said[2]['session']}", lines[3])


def test_the_end_of_one_is_seen(host: Host) -> None:
    pid = host.hold()
    assert len(shown(host)) == 1
    os.kill(pid, signal.SIGKILL)
    until(lambda: not shown(host), seconds=10, what="the place to be free")


@pytest.mark.needs_root
def test_the_account_may_look_and_nobody_else(host: Host) -> None:
    host.config.chmod(0o644)
    host.hold(report=report(host, "7 progress 5 6 0\n"))
    answer = start("sessions", str(host.config), "--json", uid=host.account.uid)
    assert json.loads(answer.stdout)["sessions"][0]["bytes_to_peer"] == 5
    answer = start("sessions", str(host.config), uid=NOBODY)
    assert answer.exit == 71
    assert f"only root and {host.account.name} have access" in answer.stderr


HOSTILE_REPORTS: dict[str, str | bytes] = {
    "escapes": "7 \x1b[2J 1 2 0 \x1b]0;x\x07\n",
    "huge": f"7 progress {'9' * 100_000} 1 0\n",
    "negative": "7 progress -5 1 0\n",
    "not text": b"\xff\xfe\x00 progress 1 1 0",
    "long": "x" * 5_000_000,
    "many": "".join(f"{pid} progress {'9' * 18} {'9' * 18} 0\n" for pid in range(3000)),
}


@pytest.mark.parametrize("kind", HOSTILE_REPORTS)
def test_a_report_that_lies(host: Host, kind: str) -> None:
    """Threat: a borg that was taken over writes what it likes into the wrap's report."""
    host.hold(report=report(host, HOSTILE_REPORTS[kind]))
    (one,) = shown(host)
    assert one["bytes_to_peer"] is None or one["bytes_to_peer"] >= 0
    table = run("sessions", host.config).stdout
    assert table.replace("\n", "").isprintable()
    assert len(table) < 500


@pytest.mark.needs_root
@pytest.mark.parametrize("what", ["report", "table"])
def test_a_link_in_place_of_a_file_leads_root_nowhere(host: Host, what: str) -> None:
    """Threat: who took over the account has root read what only root may."""
    path = report(host, "")
    host.hold(report=path)
    secret = host.directory / "secret"
    secret.write_text("7 progress 5 6 0\n")
    secret.chmod(0o600)
    place = Path(path) if what == "report" else host.directory / "home/limits/sessions"
    place.unlink()
    place.symlink_to(secret)
    answer = run("sessions", host.config, "--json")
    if what == "report":
        assert json.loads(answer.stdout)["sessions"][0]["bytes_to_peer"] is None
    else:
        assert (answer.exit, answer.stdout) == (71, "")
    place.unlink()
    os.mkfifo(place)
    os.chown(place, host.account.uid, host.account.gid)
    answer = run("sessions", host.config, "--json")
    if what == "report":
        assert json.loads(answer.stdout)["sessions"][0]["bytes_to_peer"] is None
    else:
        assert (answer.exit, answer.stdout) == (71, "")


def test_the_schema_is_stated(host: Host) -> None:
    host.hold()
    answer = run("sessions", host.config, "--json")
    said = json.loads(answer.stdout)
    stated = start("sessions", "--help").stdout
    for name in (*said, *said["sessions"][0]):
        assert name in stated, name
    assert list(sessions.Report.__annotations__) == list(said)
    assert list(sessions.Session.__annotations__) == list(said["sessions"][0])


def test_it_says_whether_more_may_come(host: Host) -> None:
    assert json.loads(run("sessions", host.config, "--json").stdout)["locked"] is False
    host.lockdown("on")
    assert json.loads(run("sessions", host.config, "--json").stdout)["locked"] is True


def test_a_wrong_configuration(host: Host) -> None:
    host.config.write_text("x = 1\n")
    assert run("sessions", host.config).exit == 78


# Ending them


def killed(host: Host, *arguments: str) -> tuple[Answer, dict[str, Any]]:
    answer = host.lockdown("on", "--kill", "--json", *arguments)
    return answer, json.loads(answer.stdout)


def test_lockdown_leaves_them_alone_without_kill(host: Host) -> None:
    pid = host.hold()
    assert host.lockdown("on").exit == 0
    assert host.ended(pid) is None
    assert host.records()[0]["kill"] is False


def test_all_are_ended(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_AT_ONCE", 2)
    pids = [host.hold(client) for client in ("luna", "luna", "sol", "vega", "vega")]
    answer, said = killed(host)
    assert (answer.exit, said["ended"], said["left"]) == (0, 5, [])
    assert [host.ended(pid) for pid in pids] == [signal.SIGINT] * 5
    assert answer.stderr.startswith("under way: 5, after 0 s\n")
    assert answer.stderr.splitlines()[-1].startswith("under way: 0, after ")
    assert host.records()[0]["kill"] is True
    assert shown(host) == []


def test_there_is_nothing_to_end(host: Host) -> None:
    answer = host.lockdown("on", "--kill")
    assert answer.exit == 0
    assert answer.stdout.splitlines()[-1] == "ended       0"
    assert host.lockdown("on", "--kill").exit == 0


def test_one_that_does_not_end_is_told_of(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "END_SECONDS", 0.5)
    stubborn, good = host.hold("luna", ignores=True), host.hold("sol")
    answer, said = killed(host)
    assert answer.exit == 75
    assert (said["locked"], said["ended"]) == (True, 1)
    assert [(one["pid"], one["client"]) for one in said["left"]] == [(stubborn, "luna")]
    assert f"end them with kill -KILL {stubborn}" in answer.stderr
    assert host.ended(good) == signal.SIGINT
    assert host.ended(stubborn) is None
    text = host.lockdown("on", "--kill").stdout
    assert f"left        pid {stubborn}: luna create since " in text
    os.kill(stubborn, signal.SIGKILL)
    until(lambda: not shown(host), seconds=10, what="the end of it")
    assert host.lockdown("on", "--kill").exit == 0


def test_what_cannot_be_recorded_is_ended_all_the_same(host: Host) -> None:
    """Threat: who took over the account hinders the record, to go on undisturbed."""
    host.log.symlink_to("/dev/null")
    pid = host.hold()
    answer, said = killed(host)
    assert (answer.exit, said["ended"], said["left"]) == (73, 1, [])
    assert host.ended(pid) == signal.SIGINT


def test_who_is_served_cannot_be_told(host: Host) -> None:
    pid = host.hold()
    (host.directory / "home/limits/sessions").unlink()
    (host.directory / "home/limits/sessions").symlink_to("/dev/null")
    answer, said = killed(host)
    assert (answer.exit, said["locked"], said["left"]) == (71, True, None)
    assert "locked down, but who is served now cannot be told: " in answer.stderr
    assert host.ended(pid) is None
    host.config.write_text("x = 1\n")
    answer, said = killed(host)
    assert (answer.exit, said["locked"], said["left"]) == (73, True, None)
    assert "borg-pull-admin: locked down, but who is served now cannot be told: " in answer.stderr


def test_a_process_that_came_after_one_is_not_ended(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pid can be another's by the time it is signalled: only who holds a place is."""
    bystander = host.hold()
    one = LiveSession(
        pid=bystander,
        client="luna",
        verb="create",
        since="2026-11-21T00:17:08Z",
        session="4b4d4b1e-0000-4000-8000-000000000001",
        report=None,
    )
    lists = iter([[one], [], [], []])
    monkeypatch.setattr(places, "live", lambda _home: next(lists))
    answer, said = killed(host)
    assert (answer.exit, said["ended"]) == (0, 1)
    assert host.ended(bystander) is None


@pytest.mark.needs_root
def test_a_process_of_another_user_is_not_ended(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threat: who took over the account has root end what the account could not."""
    monkeypatch.setattr(sessions, "END_SECONDS", 0.3)
    host.hold()
    host.close()
    of_root = host.hold(as_root=True)
    answer, said = killed(host)
    assert (answer.exit, [one["pid"] for one in said["left"]]) == (75, [of_root])
    assert host.ended(of_root) is None


def test_what_cannot_be_named_is_told_of(host: Host) -> None:
    """Threat: a place is held by a lock that no process owns, so that a run would be missed."""
    pid = host.hold()
    table = host.directory / "home/limits/sessions"
    with table.open("r+b") as file:
        layout = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, 7 * limits.RECORD_BYTES, 1, 0)
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, layout)
        assert [one["pid"] for one in shown(host)] in ([pid, None], [None, pid])
        assert "\n-       -" in run("sessions", host.config).stdout
        answer, said = killed(host)
        assert (answer.exit, said["ended"]) == (75, 1)
        assert [one["pid"] for one in said["left"]] == [None]
        assert "cannot be named from here" in answer.stderr
        assert "kill -KILL" not in answer.stderr
    assert host.lockdown("on", "--kill").exit == 0


@pytest.mark.parametrize("since", ["2026-99-99T99:99:99Z", "9999-12-31T23:59:59Z"])
def test_a_place_that_tells_an_impossible_time(host: Host, since: str) -> None:
    """Threat: the account's files keep the admin from seeing and ending what runs."""
    pid = host.hold()
    line = f"{pid} luna create {since} 4b4d4b1e-0000-4000-8000-000000000001 -".encode()
    with (host.directory / "home/limits/sessions").open("r+b") as table:
        table.write(line.ljust(limits.RECORD_BYTES - 1) + b"\n")
    (one,) = shown(host)
    assert (one["pid"], one["since"]) == (pid, since)
    assert one["age"] in (None, 0)
    assert killed(host)[0].exit == 0


def test_a_table_that_is_none_is_not_taken_for_an_empty_one(host: Host) -> None:
    (host.directory / "home/limits/sessions").mkdir()
    answer = run("sessions", host.config)
    assert (answer.exit, answer.stdout) == (71, "")
    assert killed(host)[0].exit == 71


@pytest.mark.parametrize("action", ["off", "status"])
def test_kill_goes_with_on_alone(host: Host, action: str) -> None:
    assert host.lockdown(action, "--kill").exit == 64
