"""A client uses its share of the host and no more, however it asks, and nobody else's.

Threat: a leaked key (A) asks as often and for as much at once as it can, to wear the host out or to
keep another client (B) from being served; it tries to get round its rate by asking many times at
once, and to have a limit skipped by what it plants in place of the files that count.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from borg_pull.source.places import LiveSession, live
from tests.harness.builds import FROZEN_14
from tests.harness.fixtures import SiteMaker
from tests.harness.processes import Process
from tests.harness.site import Site
from tests.harness.wait import until
from tests.harness.workplace import IS_ROOT

SECONDS = 60
# Refused for what it asks (64), and counted like any other; it is over at once.
NONSENSE = "nonsense"
LONG_NONSENSE = NONSENSE + " and more" * 1000
LIMITED = re.compile(
    r"borg-pull-source: client luna has made too many requests \((\d+) an hour are let in, "
    r"(\d+) at once\); try again in (\d+) seconds?\n"
)


class Request:
    """A forced command started as sshd starts it, but without the cost of a login."""

    def __init__(self, site: Site, client: str, command: str) -> None:
        account = site.account
        become = (
            *("/usr/bin/setpriv", f"--reuid={account.uid}", f"--regid={account.gid}"),
            "--clear-groups",
        )
        self.process = subprocess.Popen(
            [
                *(become if IS_ROOT else ()),
                *(site.source.programs.source, site.source.configuration, client),
            ],
            env={"SSH_ORIGINAL_COMMAND": command, "SSH_CONNECTION": "192.0.2.7 4711 192.0.2.1 22"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def end(self) -> tuple[int, str]:
        """Its exit code and what it said."""
        _, errors = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, errors


Ask = Callable[..., Request]


@pytest.fixture
def site(make_site: SiteMaker) -> Site:
    """One build is enough: what counts is in no part that differs."""
    return make_site(FROZEN_14)


@pytest.fixture
def ask(site: Site) -> Iterator[Ask]:
    """Starts requests; none outlives the test."""
    requests: list[Request] = []

    def start(command: str = NONSENSE, client: str = "luna") -> Request:
        requests.append(Request(site, client, command))
        return requests[-1]

    yield start
    for request in requests:
        request.process.kill()
        request.process.communicate()


def _allow(site: Site, host: int = 64, **of_luna: int) -> None:
    """Luna with these limits; nova and vega, who are patient, with the defaults."""
    rules: dict[str, dict[str, object]] = {name: {"paths": ["/x"]} for name in ("nova", "vega")}
    rules["luna"] = {"paths": ["/x"], **of_luna}
    site.source.write_whitelist(rules, limits={"max_sessions": host})


def _slow_borg(site: Site) -> dict[str, str]:
    """A borg that takes its time to tell its version: a hello that stays."""
    slow = site.source.directory / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 1000\n")
    slow.chmod(0o755)
    return {"borg": str(slow)}


def _live(site: Site, client: str | None = None) -> list[LiveSession]:
    return [one for one in live(str(site.source.home)) if client is None or one.client == client]


def _until_live(site: Site, client: str, count: int) -> list[LiveSession]:
    def there() -> list[LiveSession] | None:
        found = [one for one in _live(site, client) if one.verb == "hello"]
        return found if len(found) == count else None

    return until(there, seconds=SECONDS, what=f"{count} sessions of {client}")


def test_the_defaults_do_not_stand_in_the_way_of_honest_use(site: Site, ask: Ask) -> None:
    """The control: as many requests as a backup server makes in a busy minute."""
    _allow(site)
    for _ in range(4):
        ended = [request.end() for request in [ask() for _ in range(8)]]
        assert [code for code, _ in ended] == [64] * 8, ended


def test_many_sessions_at_once_do_not_get_round_the_rate(site: Site, ask: Ask) -> None:
    _allow(site, requests_per_hour=1, request_burst=5, max_sessions=40)
    ended = [request.end() for request in [ask(LONG_NONSENSE) for _ in range(30)]]
    codes = [code for code, _ in ended]
    assert (codes.count(64), codes.count(75)) == (5, 25)
    for errors in (errors for code, errors in ended if code == 75):
        told = LIMITED.fullmatch(errors)
        assert told is not None, errors
        assert told.groups()[:2] == ("1", "5")
        assert 3000 < int(told[3]) <= 3600
    # One record each, and those that no limit bounds are short.
    records = site.source.audit(event="refused", client="luna")
    assert len(records) == 30
    for record in records:
        assert record["request_truncated"] is True
        assert len(record["request"]) == (256 if record["exit"] == 75 else 8192)
        assert (record["verb"], record["reason"] != "") == (None, True)
    site.source.assert_chain()
    # Nothing of it was kept in a process: all have ended, and it is still over its rate.
    assert ask().end()[0] == 75
    assert ask(client="nova").end()[0] == 64


def test_time_lets_a_client_in_again(site: Site, ask: Ask) -> None:
    _allow(site, requests_per_hour=1, request_burst=2)
    bucket = site.source.home / "limits/luna.limits"
    for hours, let_in in ((0, 2), (1, 1), (1000, 2), (-1000, 0)):
        if bucket.exists():
            credit, at = map(int, bucket.read_text().split())
            bucket.write_bytes(b"%020d %020d\n" % (credit, at - hours * 3_600_000))
        codes = [ask().end()[0] for _ in range(3)]
        assert codes == [64] * let_in + [75] * (3 - let_in), hours


@pytest.mark.parametrize("content", [b"\0" * 42, b"x" * 4096, b"9" * 42], ids=["0", "x", "9"])
def test_a_damaged_count_is_an_empty_one_and_recovers(site: Site, ask: Ask, content: bytes) -> None:
    _allow(site, requests_per_hour=1)
    assert ask().end()[0] == 64
    site.source.home.joinpath("limits/luna.limits").write_bytes(content)
    assert ask().end()[0] == 75
    _allow(site, requests_per_hour=36_000)
    until(lambda: ask().end()[0] == 64, seconds=SECONDS, what="luna to be let in again")


@pytest.mark.parametrize("name", ["luna.limits", "sessions"])
def test_what_cannot_be_counted_is_not_run(site: Site, ask: Ask, name: str) -> None:
    _allow(site)
    assert ask(client="nova").end()[0] == 64
    path = site.source.home / "limits" / name
    path.unlink(missing_ok=True)
    path.mkdir()
    site.source.give(path)
    code, errors = ask("hello").end()
    assert code == 71
    assert errors == f"borg-pull-source: cannot use {path}: Is a directory\n"
    assert site.source.audit(client="luna", event="refused", exit=71)
    if name == "luna.limits":
        assert ask(client="nova").end()[0] == 64
    path.rmdir()
    assert ask().end()[0] == 64


def test_a_client_at_its_limit_keeps_nobody_out_and_a_killed_session_frees_its_place(
    site: Site, ask: Ask
) -> None:
    data = site.source.tree()
    site.source.file(data / "file", os.urandom(1 << 16))
    nova = {"paths": [str(data)], "allow_unknown_repository": True}
    luna = {"paths": [str(data)], "max_sessions": 2}
    host = {"max_sessions": 3}
    site.source.write_whitelist({"luna": luna, "nova": nova}, runtime=_slow_borg(site), limits=host)
    held = [ask("hello") for _ in range(2)]
    sessions = _until_live(site, "luna", 2)
    site.source.write_whitelist({"luna": luna, "nova": nova}, limits=host)
    code, errors = ask("hello").end()
    assert code == 75
    assert errors == (
        "borg-pull-source: client luna has 2 sessions under way, which is all it may have "
        f"(the longest since {sessions[0].since}); try again in 60 seconds\n"
    )
    assert len(site.source.audit(event="refused", client="luna", exit=75)) == 1
    # The control: another client's backup goes on as if luna were not there.
    repository = site.peer("nova").repository()
    result = site.peer("nova").pull(f"create {repository.path} a {data}", repository)
    assert (result.exit, result.complaints) == (0, "")
    assert repository.archives() == ["a"]
    held[0].process.kill()
    held[0].process.wait()
    assert ask().end()[0] == 64
    held[1].process.send_signal(signal.SIGTERM)
    assert held[1].end()[0] == 75
    assert _live(site) == []


def test_all_clients_together_have_no_more_than_the_host_allows(site: Site, ask: Ask) -> None:
    rules = {name: {"paths": ["/x"], "max_sessions": 1} for name in ("luna", "nova", "vega")}
    host = {"max_sessions": 2}
    site.source.write_whitelist(rules, runtime=_slow_borg(site), limits=host)
    held = {name: ask("hello", name) for name in ("luna", "nova")}
    for name in held:
        _until_live(site, name, 1)
    code, errors = ask(client="vega").end()
    # Of other clients it is told nothing.
    assert (code, errors) == (
        75,
        "borg-pull-source: this host has 2 sessions under way, which is all it may have; "
        "try again in 60 seconds\n",
    )
    held["luna"].process.send_signal(signal.SIGTERM)
    assert held["luna"].end()[0] == 75
    assert ask(client="vega").end()[0] == 64


def _forwarding(site: Site, to: Path) -> contextlib.AbstractContextManager[object]:
    """A session of nova's that has sshd bind ``to`` and asks for nothing."""
    stack = contextlib.ExitStack()
    peer = site.peer("nova")
    trap = stack.enter_context(peer.listening(peer.repository(to.name)))
    pull = peer.start("", trap, remote_socket=to, options=["-N"])
    stack.callback(pull.wait)
    stack.callback(pull.kill)
    until(to.exists, seconds=SECONDS, what=f"{to} to be bound")
    return stack


def test_a_socket_planted_where_the_counts_will_be_skips_no_limit(site: Site, ask: Ask) -> None:
    """sshd binds one wherever a client that may forward says, before luna's first request."""
    _allow(site, requests_per_hour=1, request_burst=1)
    directory = site.source.home / "limits"
    with _forwarding(site, directory):
        assert ask().end()[0] == 64
        assert directory.is_dir()
        assert ask().end()[0] == 75
    directory.joinpath("luna.limits").unlink()
    with _forwarding(site, directory / "luna.limits"):
        assert ask().end()[0] == 64
        assert ask().end()[0] == 75


# Signals before borg runs


def _sleeping(site: Site) -> Process | None:
    return next((one for one in site.source.processes() if "sleep 1000" in one.command), None)


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT],
    ids=lambda number: number.name,
)
def test_a_signal_ends_a_request_in_order_and_on_record(
    site: Site, ask: Ask, number: signal.Signals
) -> None:
    site.source.write_whitelist({"luna": {"paths": ["/x"]}}, runtime=_slow_borg(site))
    request = ask("hello")
    until(lambda: _sleeping(site), seconds=SECONDS, what="borg to be asked for its version")
    request.process.send_signal(number)
    said = f"the request was ended by signal {int(number)} before it was served; try again later"
    assert request.end() == (75, f"borg-pull-source: {said}\n")
    (refused,) = site.source.audit()
    assert (refused["event"], refused["exit"]) == ("refused", 75)
    assert said.startswith(refused["reason"])
    site.source.assert_nothing_left()
    site.source.assert_chain()


@pytest.mark.parametrize("locked", [False, True])
def test_a_signal_while_the_passphrase_is_awaited(site: Site, locked: bool) -> None:
    data = site.source.tree()
    site.allow(paths=[str(data)], passphrase_stdin=True)
    peer, repository = site.peer(), site.repository()
    request = f"create {repository.path} a {data}"
    with peer.listening(repository) as listener:
        pull = peer.start(request, listener, stdin=b"", stdin_stays_open=True)
        verbs = ["create"]
        until(
            lambda: [one.verb for one in _live(site)] == verbs, seconds=SECONDS, what="it to come"
        )
        if locked:
            _lock_down(site)
        os.kill(_live(site)[0].pid, signal.SIGINT)
        pull.ssh.wait(SECONDS)  # before its standard input is closed, which ends it as well
        result = pull.wait()
    assert result.exit == 75
    said = "the request was ended by signal 2 before it was served; "
    said += LOCKED_DOWN if locked else "try again later"
    assert result.errors == f"borg-pull-source: {said}\n"
    (refused,) = site.source.audit()
    assert (refused["event"], refused["exit"], refused["verb"]) == ("refused", 75, "create")
    site.source.assert_nothing_left("luna")
    if locked:
        code, errors = site.pull("hello").exit, site.pull("hello").errors
        assert (code, errors) == (
            75,
            f"borg-pull-source: {LOCKED_DOWN}; try again when that is over\n",
        )
        assert len(site.source.audit(event="refused", exit=75)) == 3
        (site.source.directory / "lockdown").unlink()
    passphrase = b"not needed\n"
    assert site.pull(request, repository, stdin=passphrase).exit == 0
    assert repository.archives() == ["a"]


LOCKED_DOWN = "this host is locked down since 2026-11-21T00:00:00Z by ann: a break-in"


def _lock_down(site: Site) -> None:
    text = "since: 2026-11-21T00:00:00Z\nby: ann\nreason: a break-in\n"
    path = site.source.directory / "lockdown"
    path.write_text(text)
    path.chmod(0o644)


def test_a_run_that_a_signal_ends_names_the_lockdown(site: Site) -> None:
    data = site.source.tree()
    site.source.file(data / "file", os.urandom(4 << 20))
    site.allow(paths=[str(data)])
    peer, repository = site.peer(), site.repository()
    with peer.listening(repository, hold_after=1 << 20) as listener:
        pull = peer.start(f"create {repository.path} a {data}", listener)
        listener.held()
        (session,) = _live(site)
        assert session.verb == "create"
        assert session.report is not None
        assert Path(session.report).is_file()
        _lock_down(site)
        os.kill(session.pid, signal.SIGINT)
        until(lambda: not pull.source_processes(), seconds=SECONDS, what="the end of the run")
        listener.release()
        result = pull.wait()
    said = f"the run was ended: signal 2; {LOCKED_DOWN}"
    assert result.exit == 2
    assert f"borg-pull-source: {said}\n" in result.errors
    (complete,) = site.source.audit(event="complete")
    assert (complete["result"], complete["error"]) == ("killed", said)
    (site.source.directory / "lockdown").unlink()
    assert site.pull(f"create {repository.path} b {data}", repository).exit == 0
    assert "b" in repository.archives()
