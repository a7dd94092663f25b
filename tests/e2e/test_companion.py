"""What reaches the companion through ssh, what comes back, and what is on record of it."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from borg_pull.companion import Ask, end_line
from tests.harness.companion import StandInCompanion, line
from tests.harness.site import Site
from tests.harness.wait import until

pytestmark = [pytest.mark.needs_root, pytest.mark.builds("frozen")]

JOB = "0b0f2a5e-0000-4000-8000-0123456789ab"
REMOTE = "ssh://borg@vault.example.org:22/srv/aio"
ALL = {
    f"enable_{name}": True
    for name in ("admin", "config_write", "break_lock", "passphrase_change", "arbitrary_targets")
}


@pytest.fixture
def companion(site: Site) -> Iterator[StandInCompanion]:
    made = StandInCompanion(site.source.directory / "companion.sock")
    site.source.directory.chmod(0o755)
    yield made
    made.close()


def allow(
    site: Site,
    features: dict[str, bool] | None = None,
    socket: Path | None = None,
    **client: object,
) -> None:
    site.source.write_whitelist(
        {"luna": {"actions": ["nightly"], "aio_targets": ["vault"], **client}},
        aio={
            "socket": str(socket or site.source.directory / "companion.sock"),
            "target": {"vault": {"remote_repo": REMOTE}, "disk": {"host_location": "/mnt/b"}},
        },
        action={
            "nightly": {
                "type": "nextcloud_aio_backup",
                "description": "each night",
                "target": "vault",
            },
            "other": {"type": "nextcloud_aio_backup"},
        },
        features=features or {},
    )


def answered(site: Site) -> dict[str, Any]:
    (record,) = site.source.audit(event="answered")
    return record


def test_an_action_is_run_by_name(site: Site, companion: StandInCompanion) -> None:
    allow(site, role="action")
    event = line({"type": "event", "job": JOB, "number": 1, "event": "state"})
    companion.answer = lambda _ask: [event, end_line(0, None, None)]
    result = site.pull("run nightly")
    assert (result.exit, result.errors) == (0, "")
    assert result.stdout == event + end_line(0, None, None)
    (ask,) = companion.asked
    record = answered(site)
    assert (ask.request, ask.action, ask.target, ask.job) == ("run", "nightly", None, None)
    assert (ask.client, ask.all, ask.detach) == ("luna", False, False)
    for name in ("session", "key", "address", "port", "pid"):
        assert getattr(ask.session, name) == record[name]
    assert (record["verb"], record["name"], record["exit"]) == ("run", "nightly", 0)
    assert record["key"].startswith("SHA256:")
    site.source.assert_chain()


@pytest.mark.parametrize(
    ("request_line", "asked"),
    [
        ("run nightly --detach", {"request": "run", "detach": True}),
        ("aio vault", {"request": "aio", "target": "vault", "check": False}),
        ("aio --check --detach vault", {"request": "aio", "check": True, "detach": True}),
        ("jobs", {"request": "jobs", "all": True}),
        (f"job {JOB}", {"request": "job", "job": JOB, "follow": False, "start": 1}),
        (f"job {JOB} --follow --from 7", {"request": "job", "follow": True, "start": 7}),
        (f"cancel {JOB}", {"request": "cancel", "job": JOB, "all": True}),
        ("aio-status", {"request": "aio-status"}),
        ("health", {"request": "health"}),
        ("metrics", {"request": "metrics"}),
        ("target show", {"request": "target-show"}),
        ("target set vault", {"request": "target-set", "target": "vault"}),
        ("target set disk", {"request": "target-set", "target": "disk"}),
        ("lockdown on", {"request": "lockdown-on"}),
        ("lockdown off", {"request": "lockdown-off"}),
    ],
)
@pytest.mark.builds("one")
def test_each_request_arrives(
    site: Site, companion: StandInCompanion, request_line: str, asked: dict[str, object]
) -> None:
    allow(site, ALL, role="admin")
    result = site.pull(request_line)
    assert (result.exit, result.errors) == (0, "")
    assert result.stdout.startswith(b'{"type": "' + str(asked["request"]).encode())
    (ask,) = companion.asked
    assert {name: getattr(ask, name) for name in asked} == asked


@pytest.mark.builds("one")
def test_what_the_whitelist_answers_takes_no_companion(site: Site) -> None:
    allow(site, ALL, role="admin")
    result = site.pull("actions")
    assert (result.exit, result.errors) == (0, "")
    assert json.loads(result.stdout) == {
        "type": "actions",
        "version": 1,
        "actions": [
            {
                "name": "nightly",
                "type": "nextcloud_aio_backup",
                "description": "each night",
                "target": "ssh://***@vault.example.org:22/srv/aio",
            }
        ],
        "targets": [
            {"name": "vault", "target": "ssh://***@vault.example.org:22/srv/aio"},
            {"name": "disk", "target": "/mnt/b"},
        ],
    }
    status = site.pull("lockdown status")
    assert json.loads(status.stdout)["locked"] is False
    refused = site.pull("run nightly")
    assert refused.exit == 69
    assert "no companion at" in refused.errors


@pytest.mark.parametrize(
    ("lines", "exit_code", "said"),
    [
        ([end_line(1, "containers are not healthy", None)], 1, "containers are not healthy"),
        ([end_line(2, "the backup failed", "see job")], 2, "the backup failed; see job"),
        ([end_line(75, "an AIO run is under way", f"job {JOB}")], 75, f"under way; job {JOB}"),
        ([end_line(77, "no", None)], 77, "no"),
        ([end_line(73, "no record", None)], 73, "no record"),
        ([], 69, "the companion ended before it had answered"),
        ([b'{"type": "event"}\n'], 69, "the companion ended before it had answered"),
        ([b"no JSON\n"], 70, "a line that is no object"),
        ([b"[]\n"], 70, "a line that is no object"),
        ([b'{"type": "x\x1b[2J"}\n'], 70, "what is not printable"),
        ([b"x" * 200_000], 70, "a line without an end"),
        ([line({"type": "end", "exit": 99})], 70, "without an exit code of its own"),
        ([line({"type": "end", "exit": True})], 70, "without an exit code of its own"),
    ],
)
@pytest.mark.builds("one")
def test_how_it_ends(
    site: Site, companion: StandInCompanion, lines: list[bytes], exit_code: int, said: str
) -> None:
    allow(site)
    companion.answer = lambda _ask: lines
    result = site.pull("run nightly")
    assert result.exit == exit_code
    assert said in result.errors
    assert result.errors.count("\n") == 1
    assert b"\x1b" not in result.stdout
    if lines and b'"end"' in lines[-1] and exit_code not in (69, 70):
        assert json.loads(result.stdout)["exit"] == exit_code
    (record,) = site.source.audit()
    assert record["exit"] == exit_code
    assert record["event"] == ("answered" if exit_code < 3 else "refused")


LISTENER = """
import socket, sys
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[1])
listening.listen()
connection, _ = listening.accept()
print(connection.recv(1))
"""


@pytest.mark.builds("one")
def test_a_socket_of_another_than_root_is_no_companion(site: Site) -> None:
    """Threat: who takes the companion's name learns what is asked, or says that all is well."""
    path = site.source.home / "companion.sock"
    allow(site, socket=path)
    account = site.account
    listener = subprocess.Popen(
        ["/usr/bin/python3", "-I", "-c", LISTENER, path],
        user=account.uid,
        group=account.gid,
        extra_groups=[],
        stdout=subprocess.PIPE,
    )
    try:
        until(path.exists, seconds=20, what="the socket")
        result = site.pull("run nightly")
        assert result.exit == 69
        assert "is not the companion's" in result.errors
        assert listener.communicate(timeout=20)[0] == b"b''\n"
    finally:
        listener.kill()
        listener.wait()


@pytest.mark.builds("one")
def test_a_peer_that_leaves_ends_the_request_alone(site: Site, companion: StandInCompanion) -> None:
    """The companion goes on; what became of the request is on record."""
    allow(site)
    left = threading.Event()

    def answer(_ask: Ask) -> Iterator[bytes]:
        yield line({"type": "event"})
        left.wait(30)

    companion.answer = answer  # type: ignore[assignment]
    pull = site.peer().start("run nightly", stdin=b"")
    assert pull.ssh.stdout is not None
    assert json.loads(pull.ssh.stdout.readline()) == {"type": "event"}
    pull.kill()
    pull.wait()
    until(lambda: site.source.audit(event="answered"), seconds=20, what="the record")
    left.set()
    record = answered(site)
    assert (record["verb"], record["exit"]) == ("run", 2)
    assert record["error"] == "the connection closed"


@pytest.mark.builds("one")
def test_a_signal_ends_the_request_alone(site: Site, companion: StandInCompanion) -> None:
    """As of a lockdown with --kill: the record says that the job goes on."""
    allow(site)
    ended = threading.Event()

    def answer(_ask: Ask) -> Iterator[bytes]:
        yield line({"type": "event"})
        ended.wait(30)

    companion.answer = answer  # type: ignore[assignment]
    pull = site.peer().start("run nightly", stdin=b"")
    assert pull.ssh.stdout is not None
    assert json.loads(pull.ssh.stdout.readline()) == {"type": "event"}
    pull.running("borg-pull-source").send(signal.SIGINT)
    result = pull.wait()
    ended.set()
    assert result.exit == 2
    assert "what it asked for goes on; see jobs" in result.errors
    assert "goes on" in answered(site)["error"]


@pytest.mark.builds("one")
def test_no_capability_is_left_for_it(site: Site, companion: StandInCompanion) -> None:
    """While the companion works, the forced command has nothing that could be of use to others."""
    allow(site)
    found: list[str] = []

    def answer(ask: Ask) -> Sequence[bytes]:
        found.extend(Path(f"/proc/{ask.session.pid}/status").read_text().splitlines())
        return [end_line(0, None, None)]

    companion.answer = answer
    assert site.pull("run nightly").exit == 0
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert f"{name}:\t0000000000000000" in found
    # By these the companion knows it from a borg.
    assert "NoNewPrivs:\t0" in found
    assert "Seccomp:\t0" in found


@pytest.mark.builds("one")
def test_a_lockdown_lets_an_admins_key_look_and_lift(
    site: Site, companion: StandInCompanion
) -> None:
    allow(site, {"enable_admin": True}, role="admin")
    lockdown = site.source.directory / "lockdown"
    lockdown.write_text("since: 2026-11-21T00:00:00Z\nby: luna\nclient: luna\n")
    assert site.pull("run nightly").exit == 75
    assert site.pull("hello").exit == 75
    assert site.pull("lockdown on").exit == 75
    assert not companion.asked
    status = site.pull("lockdown status")
    assert json.loads(status.stdout) == {
        "type": "lockdown",
        "version": 1,
        "locked": True,
        "since": "2026-11-21T00:00:00Z",
        "by": "luna",
        "reason": None,
        "client": "luna",
    }
    assert site.pull("lockdown off").exit == 0
    assert [ask.request for ask in companion.asked] == ["lockdown-off"]
    for features, role in (({}, "admin"), ({"enable_admin": True}, "backup")):
        allow(site, features, role=role)
        assert site.pull("lockdown off").exit == 75
        assert site.pull("lockdown status").exit == 75
