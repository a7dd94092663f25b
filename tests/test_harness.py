"""The harness itself, with a stand-in for the forced command: what it promises other tests."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import processes, trees
from tests.harness.builds import SOURCE_12, Programs, borg
from tests.harness.peer import Peer
from tests.harness.site import Installations, Site
from tests.harness.source import Source, toml
from tests.harness.wait import until
from tests.harness.workplace import BASE, IS_ROOT, Workplace

SAY = """#!/bin/sh
case $SSH_ORIGINAL_COMMAND in
sleep) exec sleep 1000 ;;
read) exec cat ;;
*) printf '%s' "$SSH_ORIGINAL_COMMAND"; echo "to the side" >&2; test -r "$SSH_USER_AUTH"; exit 7 ;;
esac
"""
# As the original tool did it: borg talks to whatever stands at the socket's path.
CREATE = """#!/bin/sh
set -f; set -- $SSH_ORIGINAL_COMMAND
BORG_RSH="{relay} {socket}"; export BORG_RSH
BORG_BASE_DIR={home}; export BORG_BASE_DIR
BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes; export BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK
LC_ALL=C.UTF-8; export LC_ALL
{borg} create "ssh://client$2::$3" "$4"; code=$?
rm {socket}
exit $code
"""
RELAY = """#!{python} -I
import socket, sys, threading, os
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[1])
def up():
    while block := os.read(0, 65536):
        peer.sendall(block)
    peer.shutdown(socket.SHUT_WR)
threading.Thread(target=up, daemon=True).start()
while block := peer.recv(65536):
    os.write(1, block)
"""


class StandIn:
    """A source and a peer around a shell script instead of the forced command."""

    def __init__(self, installations: Installations, script: str) -> None:
        workplace = installations.workplace
        self.account = installations.take_account()
        self.source = Source(
            workplace, self.account, Programs(workplace.root, capable=False, loads=()), borg("1.2")
        )
        relay = self._program("relay", RELAY.format(python=sys.executable))
        forced = self._program(
            "forced",
            script.replace("{relay}", str(relay))
            .replace("{socket}", str(self.source.socket("luna")))
            .replace("{home}", str(self.source.home))
            .replace("{borg}", str(borg("1.2"))),
        )
        self.server = installations.server()
        self.peer = Peer(workplace, self.server, self.source, "luna", borg("1.2"))
        self.peer.authorize(str(forced))
        self.installations = installations

    def _program(self, name: str, text: str) -> Path:
        path = self.source.directory / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def close(self) -> None:
        self.source.assert_nothing_left()
        self.installations.return_account(self.account)


@pytest.mark.parametrize("request_text", ["create /r a /p", "-- -C lz4 create", "odd  \t'q\" é"])
def test_request_arrives_as_it_was_sent(installations: Installations, request_text: str) -> None:
    stand_in = StandIn(installations, SAY)
    result = stand_in.peer.pull(request_text)
    assert result.exit == 7
    assert result.stdout.decode() == request_text
    assert result.stderr == b"to the side\n"
    stand_in.close()


def test_standard_input_arrives(installations: Installations) -> None:
    stand_in = StandIn(installations, SAY)
    assert stand_in.peer.pull("read", stdin=b"one\ntwo\n").stdout == b"one\ntwo\n"
    stand_in.close()


def test_pull_restores_the_same_tree(installations: Installations, tmp_path: Path) -> None:
    stand_in = StandIn(installations, CREATE)
    data = stand_in.source.tree()
    trees.build(data, uid=stand_in.account.uid, gid=stand_in.account.gid)
    repository = stand_in.peer.repository()
    result = stand_in.peer.pull(f"create {repository.path} first {data}", repository)
    assert result.exit == 0, result.errors
    assert repository.archives() == ["first"]
    restored = repository.extract("first", tmp_path / "out") / data.relative_to("/")
    assert trees.differences(data, restored) == []
    (restored / "text").write_text("other")
    assert trees.differences(data, restored)
    repository.check()
    stand_in.source.assert_nothing_left("luna")
    stand_in.close()


def test_held_stream_and_killed_ssh(installations: Installations) -> None:
    stand_in = StandIn(installations, CREATE)
    data = stand_in.source.tree()
    stand_in.source.file(data / "big", os.urandom(4 << 20))
    repository = stand_in.peer.repository()
    with stand_in.peer.listening(repository, hold_after=1 << 20) as listener:
        pull = stand_in.peer.start(f"create {repository.path} a {data}", listener)
        listener.held()
        assert listener.to_repository == 1 << 20
        assert "::a" in pull.running("borg create").command
        assert pull.sessions()
        pull.kill()
        assert pull.wait().exit == -signal.SIGKILL
        listener.release()
        listener.server_ended()
    stand_in.source.assert_nothing_left()
    assert not repository.locked()
    assert repository.archives() == []
    stand_in.close()


def test_killed_session_is_seen_by_the_peer(installations: Installations) -> None:
    stand_in = StandIn(installations, SAY)
    pull = stand_in.peer.start("sleep")
    sleeping = pull.running("sleep 1000")
    for session in pull.sessions():
        session.send(signal.SIGKILL)
    assert pull.wait().exit == 255
    sleeping.send(signal.SIGKILL)
    stand_in.close()


def test_what_is_left_is_noticed(
    installations: Installations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.harness.source.GONE_SECONDS", 0.1)
    stand_in = StandIn(installations, SAY)
    pull = stand_in.peer.start("sleep")
    sleeping = pull.running("sleep 1000")
    with pytest.raises(AssertionError, match="sleep 1000"):
        stand_in.source.assert_nothing_left()
    monkeypatch.undo()
    sleeping.send(signal.SIGKILL)
    pull.wait()
    stand_in.close()


def test_strangers_are_not_let_in(installations: Installations) -> None:
    stand_in = StandIn(installations, SAY)
    stranger = Peer(installations.workplace, stand_in.server, stand_in.source, "other", borg("1.2"))
    assert stranger.pull("anything").exit == 255
    stand_in.close()


def test_ports_are_not_forwarded(installations: Installations) -> None:
    stand_in = StandIn(installations, SAY)
    result = stand_in.peer.start("x", options=["-R", "0:127.0.0.1:1"]).wait()
    assert result.exit == 255
    assert "remote port forwarding failed" in result.errors
    stand_in.close()


def test_sockets_of_the_source_are_not_reached(installations: Installations) -> None:
    """The way back, ``ssh -L``, to whatever sockets the source has is refused."""
    stand_in = StandIn(installations, SAY)
    with socket.socket(socket.AF_UNIX) as private:
        remote = stand_in.source.directory / "private.sock"
        private.bind(str(remote))
        private.listen()
        remote.chmod(0o777)
        local = stand_in.peer.directory / "local.sock"
        pull = stand_in.peer.start("sleep", options=["-L", f"{local}:{remote}"])
        sleeping = pull.running("sleep 1000")
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(local))
            assert connection.recv(1) == b""
        private.settimeout(0)
        with pytest.raises(BlockingIOError):
            private.accept()
    sleeping.send(signal.SIGKILL)
    pull.wait()
    log = stand_in.server.log.read_text(errors="replace")
    assert f"refused streamlocal port forward: originator  port 0, target {remote}" in log
    stand_in.close()


def test_site_writes_a_whitelist_that_reads_back(installations: Installations) -> None:
    import tomllib

    document = {"runtime": {"home": "/h"}, "client": {"a.b": {"paths": ['/x "y"\n'], "n": True}}}
    assert tomllib.loads(toml(document)) == document
    site = Site(installations, SOURCE_12)
    site.allow(paths=["/x"])
    written = tomllib.loads(site.source.configuration.read_text())
    assert written["client"]["luna"] == {"allow_unknown_repository": True, "paths": ["/x"]}
    assert written["runtime"]["socket_dir"] == str(site.source.socket_dir)
    site.close()


DIES = """
import os, subprocess, sys
from tests.harness.workplace import Workplace
from tests.harness.sshd import SshServer
workplace = Workplace()
account = workplace.account()
server = SshServer(workplace)
server.start()
print(workplace.root, account.name, server._daemon.pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_dead_run_is_cleared_by_the_next() -> None:
    died = subprocess.run(
        [sys.executable, "-c", DIES],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    root, account, daemon = died.stdout.split()
    until(lambda: processes.read(int(daemon)) is None, seconds=10, what="sshd's own death")
    next_run = Workplace()
    assert not Path(root).exists()
    assert next_run.root.parent == BASE
    if IS_ROOT:
        with pytest.raises(KeyError):
            pwd.getpwnam(account)
    next_run.close()
    assert not next_run.root.exists()


def test_missing_pieces_fail_loudly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tests.harness import builds

    monkeypatch.setenv("BORG_PULL_FROZEN", str(tmp_path))
    with pytest.raises(builds.MissingPieceError, match="no frozen bundle"):
        builds.frozen_bundle()
    builds.borg.cache_clear()
    monkeypatch.setenv("BORG_PULL_BORG14", "/bin/true")
    with pytest.raises(builds.MissingPieceError, match=r"not borg 1\.4"):
        builds.borg("1.4")
    builds.borg.cache_clear()
