"""Threat: a borg that has been taken over, by its peer or by what it reads, asks the companion.

It runs as the account of the forced command, which may connect to the companion's socket, and the
companion is root's and drives the container engine. What tells the two apart is what the kernel
says of the process that connected: each borg of ours has no_new_privs, for good. So a process with
it is refused, and so is every other account, while the forced command itself is served.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.aio.daemon import Daemon
from tests.aio.host import Answer, Host
from tests.aio.stand_in_aio import StandIn
from tests.harness.workplace import Workplace

pytestmark = pytest.mark.needs_root


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    workplace = Workplace()
    made = Daemon(workplace)
    yield made
    made.close()
    workplace.close()


@pytest.fixture
def host(daemon: Daemon) -> Iterator[Host]:
    aio = StandIn(daemon)
    made = Host(aio)
    made.start()
    yield made
    made.close()
    aio.close()


def answer(process: subprocess.Popen[bytes]) -> Answer:
    out, _ = process.communicate(timeout=30)
    return Answer([json.loads(line) for line in out.splitlines()])


def test_confined_process_is_refused(host: Host) -> None:
    refused = answer(host.asking("run", action="nightly", prefix=("setpriv", "--no-new-privs")))
    assert (refused.exit, "is confined" in refused.end["error"]) == (77, True)
    assert host.aio.calls() == []
    assert "refused: the process" in host.said()
    control = host.ask("target-show")
    assert control.exit == 0, control.lines


def test_child_of_a_confined_process_is_refused(host: Host) -> None:
    """It cannot shake it off: neither by another program nor by one with set-user-ID."""
    prefix = ("setpriv", "--no-new-privs", "sh", "-c", 'exec "$@"', "sh", "env", "-i")
    refused = answer(host.asking("run", action="nightly", prefix=prefix))
    assert refused.exit == 77
    assert host.ask("target-show").exit == 0


def test_process_that_has_ended_is_refused(host: Host) -> None:
    """Its number may be another's by the time that one is looked at."""
    request = {"version": 1, "request": "target-show", "client": "luna", "session": None}
    script = (
        "import os,socket,sys\n"
        "s=socket.socket(socket.AF_UNIX); r,w=os.pipe()\n"
        "child=os.fork()\n"
        "if child==0:\n"
        "    s.connect(sys.argv[1]); os._exit(0)\n"
        "os.waitpid(child,0)\n"
        "s.sendall(sys.argv[2].encode()+b'\\n')\n"
        "sys.stdout.buffer.write(s.recv(4096))\n"
    )
    process = subprocess.Popen(
        [
            *("setpriv", f"--reuid={host.account.uid}", f"--regid={host.account.gid}"),
            *("--clear-groups", "/usr/bin/python3", "-c", script),
            *(str(host.socket), json.dumps(request)),
        ],
        stdout=subprocess.PIPE,
    )
    refused = answer(process)
    assert refused.exit == 77, refused.lines


def test_other_accounts_are_refused(host: Host) -> None:
    other = host.aio.daemon.workplace.account()
    os.chmod(host.socket, 0o666)  # as if the file's mode did not keep them out already
    mine, host.account = host.account, other
    try:
        refused = host.ask("target-show")
    finally:
        host.account = mine
    assert (refused.exit, "may not ask" in refused.end["error"]) == (77, True)
    assert host.ask("target-show").exit == 0


def test_socket_keeps_other_accounts_out(host: Host) -> None:
    status = host.socket.stat()
    assert (status.st_uid, status.st_gid) == (0, host.account.gid)
    assert status.st_mode & 0o777 == 0o660


def test_silent_peers_do_not_keep_others_out(host: Host) -> None:
    """Ten that say nothing, and one that asks."""
    script = (
        "import socket,sys,time\n"
        "held=[socket.socket(socket.AF_UNIX) for _ in range(10)]\n"
        "[s.connect(sys.argv[1]) for s in held]\n"
        "print('held',flush=True); sys.stdin.read()\n"
    )
    silent = subprocess.Popen(
        ["/usr/bin/python3", "-c", script, str(host.socket)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert silent.stdout is not None
    assert silent.stdout.readline() == b"held\n"
    try:
        assert host.ask("target-show").exit == 0
    finally:
        silent.communicate()
