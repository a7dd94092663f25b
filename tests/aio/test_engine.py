"""The engine's API, by the calls of `borg_pull.aio.engine`, on a real engine."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from borg_pull.aio.engine import Engine, EngineError, _unframed
from tests.aio.proxy import answer
from tests.aio.stand_in_aio import BACKUP, MASTER, StandIn

pytestmark = pytest.mark.needs_root


def test_script_runs_a_real_backup(aio: StandIn) -> None:
    engine = Engine(aio.daemon.address)
    assert MASTER in engine.running()
    assert engine.inspect(BACKUP) is None
    began = time.time()
    program = engine.start(MASTER, ["/daily-backup.sh"], {"DAILY_BACKUP": "1"})
    said = list(engine.stream(program))
    assert b"the script ends" in b"".join(data for _origin, data in said), said
    state = engine.exec_state(program)
    assert state is not None
    assert (state.running, state.exit_code) == (False, 0)
    found = engine.inspect(BACKUP)
    assert found is not None
    logs = engine.logs(found.id, since=began, stderr=False)
    assert found.exit_code == 0, "\n".join(engine.logs(found.id, since=began))
    assert logs[-1].startswith("Backup finished successfully on ")
    assert found.started_at is not None
    assert found.started_at > began
    assert len(aio.archives("first")) == 1


TAKEN = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
HONEST = {
    "Id": "c",
    "Name": "/c",
    "State": {"Running": True, "Status": "running", "StartedAt": "", "FinishedAt": ""},
    "Config": {},
}


def header_by_header(peer: socket.socket) -> None:
    peer.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        peer.sendall(b"x")
        time.sleep(0.1)


def byte_by_byte(peer: socket.socket) -> None:
    peer.sendall(f"{TAKEN}\r\n".encode())
    while True:
        peer.sendall(b"1\r\n \r\n")
        time.sleep(0.1)


def without_end(peer: socket.socket) -> None:
    peer.sendall(f"{TAKEN}\r\n".encode())
    while True:
        peer.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")


def packed(peer: socket.socket) -> None:
    answer(peer, gzip.compress(b" " * (64 << 20)), "200 OK", "Content-Encoding: gzip")


def elsewhere(peer: socket.socket) -> None:
    answer(peer, b"", "302 Found", f"Location: http://127.0.0.1:{ELSEWHERE[0]}/containers/c/json")


def honest(peer: socket.socket) -> None:
    answer(peer, json.dumps(HONEST).encode())


ELSEWHERE: list[int] = []


@contextmanager
def answering(how: Callable[[socket.socket], None]) -> Iterator[int]:
    """An engine on a port, which answers the look-up of one container as ``how`` does."""

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=one, args=(connection,), daemon=True).start()

    def one(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while asked := connection.recv(65536):
                if b"/containers/c/json" in asked:
                    how(connection)
                    if how is not honest:
                        return
                else:
                    answer(connection, b"[]")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (header_by_header, "no whole answer in 1 s"),
        (byte_by_byte, "no whole answer in 1 s"),
        (without_end, "its answer is larger than 8388608 bytes"),
        (packed, "it answers with a redirect, or with what is packed"),
        (elsewhere, "it answers with a redirect, or with what is packed"),
        (honest, None),
    ],
)
def test_answer_has_its_limits(
    monkeypatch: pytest.MonkeyPatch, how: Callable[[socket.socket], None], said: str | None
) -> None:
    """A proxy before the engine, or whoever took its port, holds nobody up, fills no memory and
    sends nobody elsewhere; with an honest one for a control."""
    monkeypatch.setattr("borg_pull.aio.engine.SECONDS", 1)
    with answering(honest) as other, answering(how) as port:
        ELSEWHERE[:] = [other]
        engine = Engine(f"tcp://127.0.0.1:{port}")
        began = time.monotonic()
        if said is None:
            for _ in range(2):
                found = engine.inspect("c")
                assert found is not None
                assert found.id == "c"
            return
        with pytest.raises(EngineError, match=said):
            engine.inspect("c")
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("body", [b"{}", b"[]", b"null", b'"x"', b"[" * 100_000, b"{", b"\xff"])
def test_answer_that_no_engine_gives(body: bytes) -> None:
    with answering(lambda peer: answer(peer, body)) as port:
        engine = Engine(f"tcp://127.0.0.1:{port}")
        with pytest.raises(EngineError):
            engine.inspect("c")


def test_log_that_is_followed_lasts_longer_than_an_answer_may(
    aio: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("borg_pull.aio.engine.SECONDS", 1)
    began = time.time()
    script = (
        "sleep 1.5; echo one; sleep 1.5; echo two >&2; head -c 300000 /dev/zero | tr '\\0' x; echo"
    )
    container = aio.container("talks", ["sh", "-c", script, str(aio.root)])
    engine = Engine(aio.daemon.address)
    said = b"".join(data for _origin, data in engine.follow(container, since=began))
    assert (len(said), said[:20]) == (300_009, b"one\ntwo\nxxxxxxxxxxxx")
    program = engine.start(MASTER, ["sh", "-c", "echo one; sleep 2.5; echo two >&2"], {})
    assert list(engine.stream(program)) == [("stdout", b"one\n"), ("stderr", b"two\n")]
    assert list(engine.follow("nobody", since=began)) == []


def test_lines_of_a_log_end_where_a_program_ends_them(aio: StandIn) -> None:
    """What it writes over on a terminal, or a separator of other texts, begins no line."""
    began = time.time()
    lines = ("failed\\rBackup finished successfully on x", "failed\\342\\200\\250Backup finished")
    command = f"printf '{lines[0]}\\n{lines[1]}\\n'"
    container = aio.container("talks", ["sh", "-c", command, str(aio.root)])
    aio.daemon.client.wait(container, timeout=20)
    said = Engine(aio.daemon.address).logs(container, since=began)
    assert said == [
        "failed\rBackup finished successfully on x",
        "failed\u2028Backup finished",
    ]


def test_frames_are_taken_apart_wherever_they_were_cut_up() -> None:
    frames = [b"one", b"", b"two" * 100, b"x"]
    data = b"".join(b"\x01\0\0\0" + len(frame).to_bytes(4, "big") + frame for frame in frames)
    for size in (1, 3, 8, 9, 11, 1000):
        pieces = (data[at : at + size] for at in range(0, len(data), size))
        assert b"".join(_unframed(pieces)) == b"".join(frames)
