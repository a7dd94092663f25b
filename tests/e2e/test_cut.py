"""A connection cut anywhere ends the run as failed and leaves nothing behind.

Threat: the network (F) drops, delays or half-opens. At each point where it can happen: no process
is left on the source, both locks are free, the audit log has the run's start and its end, what was
half written counts as no archive, and the next run succeeds.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import processes
from tests.harness.builds import Build
from tests.harness.fixtures import SiteMaker
from tests.harness.peer import Listener, Pull, Repository
from tests.harness.site import Site
from tests.harness.wait import until

# Bytes to the repository: inside the first message of the protocol, and well into the data.
EARLY = 40
DATA = 2 << 20
SOURCE_SIZE = 8 << 20
KEEP_ALIVE = ("ClientAliveInterval 1", "ClientAliveCountMax 2")


def _kill_ssh(pull: Pull) -> None:
    pull.kill()


def _kill_session(pull: Pull) -> None:
    pull.sessions()[-1].send(signal.SIGKILL)


def _kill_monitor(pull: Pull) -> None:
    pull.sessions()[0].send(signal.SIGKILL)


def _end_ssh(pull: Pull) -> None:
    pull.kill(signal.SIGTERM)


def _stop_ssh(pull: Pull) -> None:
    """Half-open: the peer neither answers nor closes; sshd asks each second."""
    pull.kill(signal.SIGSTOP)


CUTS: dict[str, Callable[[Pull], None]] = {
    "ssh killed": _kill_ssh,
    "session killed": _kill_session,
    "ssh ended": _end_ssh,
    "ssh stopped": _stop_ssh,
}


@pytest.fixture
def site(make_site: SiteMaker, build: Build) -> Site:
    """A site whose sshd asks a silent peer every second whether it lives."""
    return make_site(build, sshd=KEEP_ALIVE)


def _after(site: Site, pull: Pull, listener: Listener, repository: Repository) -> None:
    """What must hold once the connection is gone, the peer's own side being cleared up."""
    site.source.assert_nothing_left()
    pull.kill(signal.SIGKILL)
    assert pull.wait().exit != 0
    listener.close()
    assert not repository.locked()


def _next_run_succeeds(site: Site, repository: Repository, data: Path) -> None:
    assert repository.archives() == []
    # borg takes a lock for stale once its holder's pid is nobody's; a busy init reaps late.
    until(
        lambda: not processes.unreaped(site.account.uid),
        seconds=60,
        what="the killed processes to be reaped",
    )
    result = site.pull(f"create {repository.path} next {data}", repository)
    # A borg that was killed leaves locks in its cache, which the next one finds to be stale.
    complaints = [line for line in result.complaints.splitlines() if "stale" not in line]
    assert (result.exit, complaints) == (0, [])
    assert repository.archives() == ["next"]
    repository.check()
    site.source.assert_nothing_left("luna")
    site.source.assert_chain()


def _big(site: Site) -> Path:
    data = site.source.tree()
    site.source.file(data / "file", os.urandom(SOURCE_SIZE))
    site.allow(paths=[str(data)])
    return data


@pytest.mark.parametrize("point", [EARLY, DATA], ids=["at the first message", "in the data"])
@pytest.mark.parametrize("cut", CUTS)
def test_cut_while_the_stream_stands(site: Site, cut: str, point: int) -> None:
    data = _big(site)
    repository = site.repository()
    peer = site.peer()
    with peer.listening(repository, hold_after=point) as listener:
        pull = peer.start(f"create {repository.path} cut {data}", listener)
        listener.held()
        CUTS[cut](pull)
        _after(site, pull, listener, repository)
    start, complete = site.source.audit()
    assert (start["event"], complete["event"]) == ("start", "complete")
    assert start["session"] == complete["session"]
    assert complete["result"] in ("error", "killed")
    assert complete["exit"] == 2
    assert complete["error"]
    _next_run_succeeds(site, repository, data)


@pytest.mark.parametrize("cut", ["ssh killed", "session killed", "ssh stopped"])
def test_cut_before_borg_connects(site: Site, cut: str) -> None:
    """A borg that takes its time: nothing but the closed session tells that the peer is gone."""
    data = _big(site)
    slow = site.source.directory / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 1000\n")
    slow.chmod(0o755)
    site.source.write_whitelist(
        {"luna": {"paths": [str(data)], "allow_unknown_repository": True}},
        runtime={"borg": str(slow)},
    )
    repository = site.repository()
    peer = site.peer()
    with peer.listening(repository) as listener:
        pull = peer.start(f"create {repository.path} cut {data}", listener)
        pull.running("sleep 1000")
        CUTS[cut](pull)
        _after(site, pull, listener, repository)
        assert listener.connections == 0
    start, complete = site.source.audit()
    assert (start["event"], complete["event"]) == ("start", "complete")
    assert complete["result"] == "killed"
    site.allow(paths=[str(data)])
    _next_run_succeeds(site, repository, data)


@pytest.mark.parametrize("cut", ["ssh killed", "session killed", "ssh stopped"])
def test_cut_while_the_passphrase_is_awaited(site: Site, cut: str) -> None:
    data = _big(site)
    site.allow(paths=[str(data)], passphrase_stdin=True)
    repository = site.repository()
    peer = site.peer()
    with peer.listening(repository) as listener:
        pull = peer.start(
            f"create {repository.path} cut {data}", listener, stdin=b"", stdin_stays_open=True
        )
        pull.running("luna")
        until(
            lambda: list((site.source.home / "locks/luna").glob("*.lock")),
            seconds=20,
            what="the lock",
        )
        CUTS[cut](pull)
        _after(site, pull, listener, repository)
    (refused,) = site.source.audit()
    assert refused["event"] == "refused"
    site.allow(paths=[str(data)])
    _next_run_succeeds(site, repository, data)


def test_the_privileged_half_of_sshd_dies(site: Site) -> None:
    """The session goes on or ends, but nothing stays behind when the peer goes too."""
    data = _big(site)
    repository = site.repository()
    peer = site.peer()
    with peer.listening(repository, hold_after=DATA) as listener:
        pull = peer.start(f"create {repository.path} cut {data}", listener)
        listener.held()
        _kill_monitor(pull)
        pull.kill()
        _after(site, pull, listener, repository)
    assert [record["event"] for record in site.source.audit()] == ["start", "complete"]
    _next_run_succeeds(site, repository, data)


SIGNALS = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_to_the_forced_command_ends_the_run(site: Site, number: signal.Signals) -> None:
    data = _big(site)
    repository = site.repository()
    peer = site.peer()
    with peer.listening(repository, hold_after=DATA) as listener:
        pull = peer.start(f"create {repository.path} cut {data}", listener)
        listener.held()
        _forced_command(pull).send(number)
        _only_ssh_is_left(pull, listener)
        result = pull.wait()
        assert result.exit == 2
        assert f"signal {int(number)}" in result.errors
    site.source.assert_nothing_left("luna")
    (complete,) = site.source.audit(event="complete")
    assert complete["result"] == "killed"
    _next_run_succeeds(site, repository, data)


def test_the_forced_command_killed_takes_borg_and_wrap_with_it(site: Site) -> None:
    """Nothing can be recorded then; the next run must not suffer for it."""
    data = _big(site)
    repository = site.repository()
    peer = site.peer()
    with peer.listening(repository, hold_after=DATA) as listener:
        pull = peer.start(f"create {repository.path} cut {data}", listener)
        listener.held()
        _forced_command(pull).send(signal.SIGKILL)
        _only_ssh_is_left(pull, listener)
        assert pull.wait().exit == 255 or pull.ssh.returncode == 128 + signal.SIGKILL
    assert not repository.locked()
    assert [record["event"] for record in site.source.audit()] == ["start"]
    site.source.socket("luna").unlink(missing_ok=True)
    _next_run_succeeds(site, repository, data)


@pytest.mark.parametrize("victim", ["borg", "wrap"])
def test_borg_or_the_wrap_dies(site: Site, victim: str) -> None:
    data = _big(site)
    repository = site.repository()
    peer = site.peer()
    with peer.listening(repository, hold_after=DATA) as listener:
        pull = peer.start(f"create {repository.path} cut {data}", listener)
        listener.held()
        name = "::cut" if victim == "borg" else "borg-pull-socket-wrap"
        pull.running(name).send(signal.SIGKILL)
        _only_ssh_is_left(pull, listener)
        result = pull.wait()
    assert result.exit == 2
    site.source.assert_nothing_left("luna")
    (complete,) = site.source.audit(event="complete")
    assert complete["result"] == ("killed" if victim == "borg" else "error")
    assert complete["signal"] == (signal.SIGKILL if victim == "borg" else None)
    _next_run_succeeds(site, repository, data)


def test_a_peer_that_reads_no_answer(site: Site) -> None:
    """Standard error is not read: borg's words wait, and the run ends when the peer goes."""
    data = site.source.tree()
    talkative = site.source.directory / "talkative"
    talkative.write_text("#!/bin/sh\nexec yes 'a long line of words, again and again' >&2\n")
    talkative.chmod(0o755)
    site.source.write_whitelist({"luna": {"paths": [str(data)]}}, runtime={"borg": str(talkative)})
    repository = site.repository()
    peer = site.peer()
    with peer.listening(repository) as listener:
        pull = peer.start(f"create {repository.path} cut {data}", listener)
        pull.running("yes")
        pull.kill(signal.SIGKILL)
        _after(site, pull, listener, repository)
    (complete,) = site.source.audit(event="complete")
    assert complete["result"] == "killed"


def _only_ssh_is_left(pull: Pull, listener: Listener) -> None:
    """Wait for the end of all on the source, then let ssh hand over what it still holds; it ends
    no sooner."""
    until(lambda: not pull.source_processes(), seconds=30, what="the end of the source's processes")
    listener.release()


def _forced_command(pull: Pull) -> processes.Process:
    """borg's parent."""
    borg = pull.running("::cut")
    parent = processes.read(borg.parent)
    assert parent is not None
    assert "borg-pull-source" in parent.command
    return parent


CHATTERER = """\
#!/bin/sh
trap 'echo asked >> {asked}' TERM
until [ -e {asked} ]; do
    echo chatter >&2
    sleep 0.1
done
exit 2
"""


def test_a_borg_that_talks_on_after_the_cut_is_asked_to_end_in_time(site: Site) -> None:
    """What it goes on to say into the closed connection puts nothing off."""
    data = site.source.tree()
    asked = site.source.state("luna") / "asked"
    borg = site.source.directory / "borg"
    borg.write_text(CHATTERER.format(asked=asked))
    borg.chmod(0o755)
    site.source.write_whitelist({"luna": {"paths": [str(data)]}}, runtime={"borg": str(borg)})
    peer = site.peer()
    with peer.listening(site.repository()) as listener:
        pull = peer.start(f"create /r a {data}", listener)
        until(
            lambda: site.source.audit(event="start"), seconds=20, what="the start of the stand-in"
        )
        pull.kill(signal.SIGKILL)
        site.source.assert_nothing_left("luna")
        pull.wait()
    assert asked.read_text() == "asked\n"
