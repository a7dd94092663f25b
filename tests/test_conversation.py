"""An answer of the companion that is read slowly, or not at all."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from borg_pull.audit import new_session
from borg_pull.companion import Ask, Session, end_line
from borg_pull.errors import BusyError
from borg_pull.linux.signals import watch_endings
from borg_pull.linux.sockets import listener_of
from borg_pull.source import conversation
from tests.harness.builds import PROJECT

LINES = 3000
LINE = b'{"type":"event","line":"' + b"x" * 60 + b'"}\n'
SECONDS = 0.6

SCRIPT = f"""
import os, socket, sys, threading
from borg_pull.linux.signals import watch_endings
from borg_pull.linux.sockets import listener_of
from borg_pull.source import conversation

conversation._LAST_SECONDS = {SECONDS}
ours, theirs = socket.socketpair()
content = {LINE!r} * {LINES} + b'{{"type":"end","exit":0,"error":null,"hint":null}}\\n'
threading.Thread(target=theirs.sendall, args=(content,), daemon=True).start()
ours.setblocking(False)
answer = conversation._Relay(ours, watch_endings(), is_stream=True).run()
sys.stderr.write(str(answer.exit))
sys.stderr.flush()
os._exit(0)
"""


def relay() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_slow_peer_gets_all_of_it() -> None:
    """Though that takes longer than a peer may take nothing."""
    process = relay()
    assert process.stdout is not None
    read = b""
    started = time.monotonic()
    while block := os.read(process.stdout.fileno(), 16 * 1024):
        read += block
        time.sleep(SECONDS / 8)
    assert time.monotonic() - started > SECONDS
    _, said = process.communicate(timeout=20)
    assert said == b"0"
    assert read.count(LINE) == LINES
    assert read.endswith(b'"hint":null}\n')


def test_a_peer_that_reads_nothing_holds_nothing() -> None:
    process = relay()
    try:
        assert process.stderr is not None
        # It ends although its standard output is never read.
        assert process.stderr.read() == b"0"
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()


def test_who_is_refused_before_asking_learns_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The companion has closed by the time that the request would be sent."""
    path = str(tmp_path / "socket")
    is_closed = threading.Event()

    def late(connection: socket.socket) -> object:
        assert is_closed.wait(20)
        return listener_of(connection)

    def refuse() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.sendall(end_line(75, "the companion is busy", "try again later"))
        is_closed.set()

    monkeypatch.setattr(conversation, "listener_of", late)
    session = Session(session=new_session(), key=None, address=None, port=None, pid=1)
    ask = Ask(
        request="health",
        client="luna",
        session=session,
        action=None,
        job=None,
        target=None,
        detach=False,
        follow=False,
        start=1,
        check=False,
        all=False,
    )
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        thread = threading.Thread(target=refuse, daemon=True)
        thread.start()
        with pytest.raises(BusyError, match="the companion is busy") as refused:
            conversation.ask(path, ask, watch_endings(), is_stream=False)
        thread.join(20)
    assert refused.value.exit_code == 75
