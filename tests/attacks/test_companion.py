"""Threat: a borg that has been taken over, by its peer or by what it reads, asks the companion.

It runs as the account of the forced command, which may connect to the companion's socket, and the
companion is root's and drives the container engine. What tells the two apart is what the kernel
says of the process that connected: each borg of ours has no_new_privs, for good. So a process with
it is refused, and so is every other account, while the forced command itself is served.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from borg_pull.aio import following
from borg_pull.aio.service import Service
from tests.aio.daemon import Daemon
from tests.aio.host import Answer, Host
from tests.aio.stand_in_aio import StandIn
from tests.aio.test_service import begin, since
from tests.harness import processes
from tests.harness.wait import until
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
        "print('ended', flush=True)\n"
        "try: s.sendall(sys.argv[2].encode()+b'\\n')\n"
        "except OSError: pass\n"
        "sys.stdout.buffer.write(s.recv(4096))\n"
    )
    assert host.service is not None
    os.kill(host.service, signal.SIGSTOP)
    process = subprocess.Popen(
        [
            *("setpriv", f"--reuid={host.account.uid}", f"--regid={host.account.gid}"),
            *("--clear-groups", "/usr/bin/python3", "-c", script),
            *(str(host.socket), json.dumps(request)),
        ],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ended\n"
    os.kill(host.service, signal.SIGCONT)
    refused = answer(process)
    assert refused.exit == 77, refused.lines
    assert host.ask("target-show").exit == 0


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


FLOOD = """
import select, socket, sys, time
end, poll, held, made = time.monotonic() + float(sys.argv[2]), select.poll(), {}, 0
print("on", flush=True)
while time.monotonic() < end:
    while len(held) < 200:
        one = socket.socket(socket.AF_UNIX)
        one.setblocking(False)
        try:
            one.connect(sys.argv[1])
        except OSError:
            one.close()
            break
        held[one.fileno()] = one
        poll.register(one, select.POLLIN | select.POLLHUP)
        made += 1
    for number, _ in poll.poll(20):
        poll.unregister(number)
        held.pop(number).close()
print(made)
"""


def test_flood_of_a_confined_process_keeps_nobody_out(host: Host) -> None:
    """It connects without end, and costs no place of those who may ask."""
    assert host.ask("target-show").exit == 0
    flood = subprocess.Popen(
        [
            *("setpriv", f"--reuid={host.account.uid}", f"--regid={host.account.gid}"),
            *("--clear-groups", "--no-new-privs", "/usr/bin/python3", "-c", FLOOD),
            *(str(host.socket), "4"),
        ],
        stdout=subprocess.PIPE,
    )
    assert flood.stdout is not None
    assert flood.stdout.readline() == b"on\n"
    exits = []
    while flood.poll() is None:
        exits.append(host.ask("target-show").exit)
    assert int(flood.stdout.read()) > 100
    assert exits
    assert set(exits) == {0}
    until(lambda: "more" in host.said(), seconds=20, what="the number of those refused")
    assert len(host.said().splitlines()) < 30


def followers(host: Host) -> int:
    assert host.service is not None
    return sum("serve" in one.command for one in processes.descendants(host.service))


def test_who_follows_and_is_gone_takes_no_place(host: Host) -> None:
    """Nothing has to be sent to it for hours, so that it would never show."""
    job = begin(host)
    before = followers(host)
    gone = [host.asking("job", job=job, follow=True, **since(10**6)) for _ in range(3)]
    stays = host.asking("job", job=job, follow=True, **since(10**6))
    for one in (*gone, stays):
        assert one.stdout is not None
        assert b'"job"' in one.stdout.readline()
    assert followers(host) == before + 4
    for one in gone:
        one.kill()
        one.communicate()
    until(lambda: followers(host) == before + 1, seconds=20, what="those that are gone")
    host.aio.release("hold")
    assert answer(stays).end["exit"] == 0


def test_one_client_follows_so_often_and_no_more(host: Host) -> None:
    host.configure(more='[client.bob]\nactions = ["nightly"]')
    job = begin(host)
    held = [
        host.asking("job", job=job, follow=True, **since(10**6))
        for _ in range(following.MOST_OF_CLIENT)
    ]
    for one in held:
        assert one.stdout is not None
        assert b'"job"' in one.stdout.readline()
    refused = host.ask("job", job=job, follow=True)
    assert (refused.exit, "wait for jobs already" in refused.end["error"]) == (75, True)
    assert host.ask("job", job=job).exit == 0
    others = host.ask("run", action="nightly", client="bob")
    assert others.only("busy")["job_id"] == job, "bob's own place was free"
    host.aio.release("hold")
    assert {answer(one).end["exit"] for one in held} == {0}
    assert host.ask("job", job=job, follow=True).exit == 0


def test_no_process_to_spare(host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said: list[str] = []
    service = Service(str(host.config), said.append)

    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as peer:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        peer.connect(str(tmp_path / "socket"))
        monkeypatch.setattr(os, "fork", fork)
        service._accept(listener)
        monkeypatch.undo()
        end = json.loads(peer.recv(4096))
    assert (end["type"], end["exit"]) == ("end", 75)
    assert said == ["no process for a request: Resource temporarily unavailable"]


def test_socket_in_a_directory_of_the_account_s(host: Host) -> None:
    """A link in the socket's place would have root give away what it points to."""
    host.stop()
    theirs = host.place / "theirs"
    theirs.mkdir()
    os.chown(theirs, host.account.uid, host.account.gid)
    text = host.config.read_text()
    host.config.write_text(text.replace(str(host.socket), str(theirs / "companion.sock")))
    refused = host.run("serve")
    assert refused.returncode == 78
    assert str(theirs) in refused.stderr
    host.config.write_text(text)
    host.start()
    assert host.ask("target-show").exit == 0
