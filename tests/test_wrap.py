"""The socket wrap: what it carries, whom it trusts, and how it ends.

Threats (docs/threat-model.md, promises 2, 3 and 6): another client or a local user listens at the
socket's name; the wrap is started with a capability, odd streams or a made-up environment; a peer
stops reading, hangs or goes. Each refusal has its control beside it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import pwd
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import processes
from tests.harness.builds import FROZEN_14, PROJECT, SOURCE_12
from tests.harness.site import Installations
from tests.harness.wait import until
from tests.harness.workplace import Account

SECONDS = 30
MEBIBYTE = 1 << 20
# Each way; set it to 256 for the long form.
BULK = int(os.environ.get("BORG_PULL_WRAP_TEST_MEBIBYTES", "24")) * MEBIBYTE
SOCKET_PATH = "BORGSOCKETWRAP_SOCKET_PATH"
SESSION_PROCESSES = "BORG_PULL_SESSION_PROCESSES"
REPORT = "BORG_PULL_WRAP_REPORT"
NOT_ON_THE_START_UP_PATH = {
    *("argparse", "collections", "dataclasses", "datetime", "enum", "functools", "hashlib"),
    *("inspect", "json", "logging", "pathlib", "re", "shlex", "signal", "socket", "subprocess"),
    *("threading", "typing", "uuid"),
}


class Stream:
    """One standard stream of the wrap: ``inner`` is what it inherits, ``outer`` the test's end."""

    def __init__(self, inner: int, outer: int) -> None:
        self.inner = inner
        self.outer = outer

    def close(self) -> None:
        """Close the test's end."""
        if self.outer >= 0:
            os.close(self.outer)
            self.outer = -1

    def close_inner(self) -> None:
        """Close the test's copy of the wrap's end."""
        if self.inner >= 0:
            os.close(self.inner)
            self.inner = -1


def pipes() -> tuple[Stream, Stream]:
    """Standard input and output as borg makes them."""
    stdin_reader, stdin_writer = os.pipe()
    stdout_reader, stdout_writer = os.pipe()
    return Stream(stdin_reader, stdin_writer), Stream(stdout_writer, stdout_reader)


def sockets() -> tuple[Stream, Stream]:
    """Standard input and output as a pair of sockets each."""
    first, second = socket.socketpair(), socket.socketpair()
    return (
        Stream(first[0].detach(), first[1].detach()),
        Stream(second[0].detach(), second[1].detach()),
    )


STREAMS = pytest.mark.parametrize("streams", [pipes, sockets], ids=["pipes", "sockets"])
StreamsMaker = Callable[[], tuple[Stream, Stream]]


class Scene:
    """A socket with the test listening on it, and one wrap."""

    def __init__(self, program: Path, directory: Path) -> None:
        self.program = program
        self.directory = directory
        self.path = directory / "luna.sock"
        self.report = directory / "report"
        self.environment = {SOCKET_PATH: str(self.path), REPORT: str(self.report)}
        self._cleanup = contextlib.ExitStack()
        self.report.touch()

    def listen(self) -> None:
        self.listener = self._cleanup.enter_context(socket.socket(socket.AF_UNIX))
        self.listener.settimeout(SECONDS)
        self.listener.bind(str(self.path))
        self.listener.listen(4)

    def start(
        self, streams: StreamsMaker = pipes, *arguments: str, prefix: tuple[str, ...] = ()
    ) -> None:
        self.stdin, self.stdout = streams()
        self.process = subprocess.Popen(
            [*prefix, self.program, *arguments],
            stdin=self.stdin.inner,
            stdout=self.stdout.inner,
            stderr=subprocess.PIPE,
            env=self.environment,
            text=True,
        )
        self._cleanup.callback(self._end_process)
        for stream in (self.stdin, self.stdout):
            self._cleanup.callback(stream.close)
            self._cleanup.callback(stream.close_inner)

    def accept(self) -> socket.socket:
        """The peer's end of the wrap's connection; from here on only the wrap holds its streams."""
        connection = self._cleanup.enter_context(self.listener.accept()[0])
        connection.settimeout(SECONDS)
        self.stdin.close_inner()
        self.stdout.close_inner()
        return connection

    def join(self, streams: StreamsMaker = pipes) -> socket.socket:
        self.listen()
        self.start(streams)
        return self.accept()

    def run(
        self,
        prefix: tuple[str, ...] = (),
        preexec: Callable[[], None] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a wrap that is not expected to get as far as waiting for anything."""
        return subprocess.run(
            [*prefix, self.program],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self.environment,
            preexec_fn=preexec,
            timeout=SECONDS,
            check=False,
        )

    def wait(self) -> tuple[int, str]:
        """Exit code and standard error of the wrap, which ends by itself."""
        _, said = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, said

    def finish(self, peer: socket.socket) -> tuple[int, str]:
        """End both directions as borg and its repository do, borg first."""
        self.stdin.close()
        assert peer.recv(1) == b""
        peer.close()
        return self.wait()

    def reported(self) -> list[str]:
        """The report's lines without the pid, which is checked."""
        lines = self.report.read_text().splitlines()
        pids = {line.partition(" ")[0] for line in lines}
        assert len(pids) <= 1
        return [line.partition(" ")[2] for line in lines]

    def close(self) -> None:
        self._cleanup.close()

    def _end_process(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()


@pytest.fixture(params=[SOURCE_12, FROZEN_14], ids=["source", "frozen"])
def program(request: pytest.FixtureRequest, installations: Installations) -> Path:
    """The wrap of each build."""
    return installations.programs(request.param, capable=False).wrap


@pytest.fixture
def scene(program: Path, installations: Installations) -> Iterator[Scene]:
    made = Scene(program, installations.workplace.directory("w"))
    yield made
    made.close()


@pytest.fixture
def account(installations: Installations) -> Iterator[Account]:
    taken = installations.take_account()
    yield taken
    installations.return_account(taken)


def read_all(descriptor: int) -> bytes:
    """All up to the end, within the time limit."""
    content = bytearray()
    while block := read_some(descriptor):
        content += block
    return bytes(content)


def read_some(descriptor: int) -> bytes:
    """What is there, empty at the end, within the time limit."""
    readable, _, _ = select.select([descriptor], [], [], SECONDS)
    assert readable, "nothing came"
    return os.read(descriptor, MEBIBYTE)


def write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def in_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def refused(scene: Scene, exit_code: int, *words: str) -> None:
    """Run the wrap and see it refuse, in one line for people and one for the forced command."""
    done = scene.run()
    assert_refusal(done.returncode, done.stderr, exit_code, *words)
    assert done.stdout == ""
    if scene.environment.get(REPORT) == str(scene.report):
        message = done.stderr.removeprefix("borg-pull-socket-wrap: ").rstrip("\n")
        assert scene.reported() == [f"end 0 0 {exit_code} {message}"]


def assert_refusal(code: int, said: str, exit_code: int, *words: str) -> None:
    assert code == exit_code, said
    assert said.startswith("borg-pull-socket-wrap: ")
    assert said.count("\n") == 1
    assert said.endswith("\n")
    for word in words:
        assert word in said


# What it carries


@STREAMS
def test_joins_both_directions(scene: Scene, streams: StreamsMaker) -> None:
    peer = scene.join(streams)
    os.write(scene.stdin.outer, b"from borg")
    assert peer.recv(100) == b"from borg"
    peer.sendall(b"to borg")
    assert read_some(scene.stdout.outer) == b"to borg"
    assert scene.finish(peer) == (0, "")
    assert scene.reported() == ["connected 0 0 0", "end 9 7 0 "]
    assert scene.report.read_text().startswith(f"{scene.process.pid} ")


@STREAMS
def test_big_amounts_both_ways_at_once(scene: Scene, streams: StreamsMaker) -> None:
    """Neither side reads before it has written, but for the threads that stand for the other."""
    there, back = os.urandom(BULK), os.urandom(BULK)
    received = hashlib.sha256()
    peer = scene.join(streams)

    def send_there() -> None:
        write_all(scene.stdin.outer, there)
        scene.stdin.close()

    def send_back() -> None:
        peer.sendall(back)
        peer.shutdown(socket.SHUT_WR)

    def receive() -> None:
        while block := peer.recv(MEBIBYTE):
            received.update(block)

    threads = [in_thread(work) for work in (send_there, send_back, receive)]
    returned = read_all(scene.stdout.outer)
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()
    assert received.digest() == hashlib.sha256(there).digest()
    assert hashlib.sha256(returned).digest() == hashlib.sha256(back).digest()
    assert scene.wait() == (0, "")
    assert scene.reported()[-1] == f"end {BULK} {BULK} 0 "


@STREAMS
def test_end_of_borgs_input_leaves_the_other_direction_open(
    scene: Scene, streams: StreamsMaker
) -> None:
    peer = scene.join(streams)
    os.write(scene.stdin.outer, b"last")
    scene.stdin.close()
    assert read_all(peer.fileno()) == b"last"
    peer.sendall(b"answer")
    assert read_some(scene.stdout.outer) == b"answer"
    assert scene.process.poll() is None
    peer.close()
    assert read_all(scene.stdout.outer) == b""
    assert scene.wait() == (0, "")


@STREAMS
def test_end_of_peers_output_leaves_the_other_direction_open(
    scene: Scene, streams: StreamsMaker
) -> None:
    peer = scene.join(streams)
    peer.sendall(b"last")
    peer.shutdown(socket.SHUT_WR)
    assert read_all(scene.stdout.outer) == b"last"
    os.write(scene.stdin.outer, b"still here")
    assert peer.recv(100) == b"still here"
    assert scene.process.poll() is None
    scene.stdin.close()
    assert peer.recv(100) == b""
    assert scene.wait() == (0, "")


def test_one_socket_for_both_streams(scene: Scene) -> None:
    def one_socket() -> tuple[Stream, Stream]:
        inner, outer = (end.detach() for end in socket.socketpair())
        return Stream(inner, outer), Stream(os.dup(inner), os.dup(outer))

    peer = scene.join(one_socket)
    borg = socket.socket(fileno=os.dup(scene.stdin.outer))
    with borg:
        borg.sendall(b"there")
        borg.shutdown(socket.SHUT_WR)
        assert read_all(peer.fileno()) == b"there"
        peer.sendall(b"back")
        peer.close()
        assert read_all(borg.fileno()) == b"back"
    assert scene.wait() == (0, "")


@STREAMS
def test_a_peer_that_never_reads_holds_up_one_direction_only(
    scene: Scene, streams: StreamsMaker
) -> None:
    peer = scene.join(streams)
    fill_up(scene.stdin.outer)
    sender = in_thread(lambda: peer.sendall(bytes(8 * MEBIBYTE)))
    got = 0
    while got < 8 * MEBIBYTE:
        got += len(read_some(scene.stdout.outer))
    sender.join(SECONDS)
    assert got == 8 * MEBIBYTE


@STREAMS
def test_a_borg_that_never_reads_holds_up_one_direction_only(
    scene: Scene, streams: StreamsMaker
) -> None:
    peer = scene.join(streams)
    fill_up(peer.fileno())
    sender = in_thread(lambda: write_all(scene.stdin.outer, bytes(8 * MEBIBYTE)))
    got = 0
    while got < 8 * MEBIBYTE:
        got += len(read_some(peer.fileno()))
    sender.join(SECONDS)
    assert got == 8 * MEBIBYTE


def fill_up(descriptor: int) -> None:
    """Write until nothing has been taken for a while; the end is then what nobody reads."""
    os.set_blocking(descriptor, False)
    while select.select([], [descriptor], [], 0.3)[1]:
        with contextlib.suppress(BlockingIOError):
            os.write(descriptor, bytes(65536))
    os.set_blocking(descriptor, True)


@STREAMS
@pytest.mark.parametrize("blocking", [True, False])
def test_shared_streams_stay_blocking_or_not(
    scene: Scene, streams: StreamsMaker, blocking: bool
) -> None:
    """O_NONBLOCK belongs to the open file description, which others may share."""

    def made() -> tuple[Stream, Stream]:
        pair = streams()
        for stream in pair:
            os.set_blocking(stream.inner, blocking)
        return pair

    scene.listen()
    scene.start(made)
    copies = [os.dup(stream.inner) for stream in (scene.stdin, scene.stdout)]
    peer = scene.accept()
    sender = in_thread(lambda: peer.sendall(bytes(2 * MEBIBYTE)))
    got = len(read_some(scene.stdout.outer))
    assert [os.get_blocking(copy) for copy in copies] == [blocking, blocking]
    while got < 2 * MEBIBYTE:
        got += len(read_some(scene.stdout.outer))
    sender.join(SECONDS)
    sender = in_thread(lambda: write_all(scene.stdin.outer, bytes(2 * MEBIBYTE)))
    taken = 0
    while taken < 2 * MEBIBYTE:
        taken += len(read_some(peer.fileno()))
    sender.join(SECONDS)
    assert (got, taken) == (2 * MEBIBYTE, 2 * MEBIBYTE)
    for copy in copies:
        assert os.get_blocking(copy) is blocking
        os.close(copy)


def test_arguments_are_ignored(scene: Scene) -> None:
    scene.listen()
    scene.start(pipes, "--help", "-o", "ProxyCommand=false", "luna", "borg", "serve", "\udcff")
    peer = scene.accept()
    assert scene.finish(peer) == (0, "")


def test_progress_is_reported_while_data_flows(scene: Scene) -> None:
    peer = scene.join()
    os.write(scene.stdin.outer, b"12345")
    assert peer.recv(100) == b"12345"
    until(lambda: "progress 5 0 0" in scene.reported(), seconds=SECONDS, what="a line of progress")
    peer.sendall(b"123")
    until(lambda: "progress 5 3 0" in scene.reported(), seconds=SECONDS, what="more progress")
    assert scene.finish(peer) == (0, "")
    assert scene.reported() == [
        "connected 0 0 0",
        "progress 5 0 0",
        "progress 5 3 0",
        "end 5 3 0 ",
    ]


def test_works_without_report_or_session(scene: Scene) -> None:
    """As any program does that knows the original tool's one variable."""
    scene.environment = {SOCKET_PATH: str(scene.path)}
    peer = scene.join()
    peer.sendall(b"x")
    assert read_some(scene.stdout.outer) == b"x"
    assert scene.finish(peer) == (0, "")
    assert scene.reported() == []


def test_a_report_that_cannot_be_written_ends_no_backup(scene: Scene) -> None:
    """A full disk: /dev/full is no regular file, so a limit on file size stands for it."""
    limited = ("prlimit", "--fsize=10", "--")
    scene.listen()
    scene.start(pipes, prefix=limited)
    peer = scene.accept()
    peer.sendall(b"x")
    assert read_some(scene.stdout.outer) == b"x"
    assert scene.finish(peer) == (0, "")


# How it ends


def test_peer_that_closes_first_is_a_failure(scene: Scene) -> None:
    """Standard input stays open, as that of a borg which has more to send."""
    peer = scene.join()
    peer.sendall(b"x")
    peer.close()
    assert read_all(scene.stdout.outer) == b"x"
    code, said = scene.wait()
    assert_refusal(code, said, 69, "the peer closed the connection before borg had finished")
    assert scene.reported()[-1].startswith("end 0 1 69 the peer closed")


def test_peer_that_goes_with_data_unread_is_a_failure(scene: Scene) -> None:
    peer = scene.join()
    fill_up(scene.stdin.outer)
    peer.close()
    assert read_all(scene.stdout.outer) == b""
    assert_refusal(*scene.wait(), 69, "the peer closed the connection before borg had finished")
    with pytest.raises(BrokenPipeError):
        os.write(scene.stdin.outer, b"x")


def test_peer_that_stops_reading_is_told_to_borg(scene: Scene) -> None:
    """Borg must not block for ever on a pipe that nobody will empty."""
    peer = scene.join()
    peer.shutdown(socket.SHUT_RD)
    os.write(scene.stdin.outer, b"x")

    def is_told() -> bool:
        try:
            os.write(scene.stdin.outer, b"x")
        except BrokenPipeError:
            return True
        return False

    until(is_told, seconds=SECONDS, what="the broken pipe")
    peer.sendall(b"but talks")
    assert read_some(scene.stdout.outer) == b"but talks"
    peer.close()
    assert_refusal(*scene.wait(), 69)


@STREAMS
def test_borg_that_stops_reading_is_told_to_the_peer(scene: Scene, streams: StreamsMaker) -> None:
    peer = scene.join(streams)
    scene.stdout.close()

    def is_told() -> bool:
        try:
            peer.send(b"x")
        except BrokenPipeError:
            return True
        return False

    until(is_told, seconds=SECONDS, what="the broken pipe")
    os.write(scene.stdin.outer, b"but talks")
    assert peer.recv(100) == b"but talks"
    scene.stdin.close()
    assert peer.recv(100) == b""
    assert scene.wait() == (0, "")


@STREAMS
def test_borg_that_has_gone_ends_it_whatever_the_peer_does(
    scene: Scene, streams: StreamsMaker
) -> None:
    """Also that of a borg which was dead before the wrap could be tied to it."""
    peer = scene.join(streams)
    scene.stdin.close()
    scene.stdout.close()
    assert scene.wait() == (0, "")
    assert peer.recv(100) == b""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_it_with_its_report_written(scene: Scene, number: signal.Signals) -> None:
    peer = scene.join()
    for word in (b"four", b"fives"):
        os.write(scene.stdin.outer, word)
        assert peer.recv(100) == word
    scene.process.send_signal(number)
    assert_refusal(*scene.wait(), 128 + number, f"ended by signal {number:d}")
    # The last write may be under way: it counts once the thread that made it runs again.
    assert scene.reported() in (
        ["connected 0 0 0", f"end {sent} 0 {128 + number} ended by signal {number:d}"]
        for sent in (4, 9)
    )
    assert peer.recv(100) == b""


def test_dies_with_its_parent(scene: Scene) -> None:
    """Borg starts it in a session of its own, and may be killed."""
    scene.listen()
    parent = (
        sys.executable,
        "-c",
        "import subprocess, sys; subprocess.run(sys.argv[1:], start_new_session=True)",
    )
    scene.start(pipes, prefix=parent)
    scene.accept()
    wrap = until(
        lambda: [
            process
            for process in processes.descendants(scene.process.pid)
            if "borg-pull-socket-wrap" in process.command
        ],
        seconds=SECONDS,
        what="the wrap",
    )[0]
    until(lambda: scene.reported() == ["connected 0 0 0"], seconds=SECONDS, what="the connection")
    assert wrap.alive()
    scene.process.kill()
    until(lambda: not wrap.alive(), seconds=SECONDS, what="the end of the wrap")
    assert scene.reported() == ["connected 0 0 0"]


# Whom it refuses


def test_missing_socket(scene: Scene) -> None:
    refused(scene, 69, "no forwarded socket at", "; forward one with ssh -R")


def test_missing_directory(scene: Scene) -> None:
    scene.environment[SOCKET_PATH] = str(scene.directory / "none" / "luna.sock")
    refused(scene, 69, "no forwarded socket at")


def test_stale_socket(scene: Scene) -> None:
    scene.listen()
    scene.listener.close()
    refused(scene, 69, "nobody listens on", "; its session has ended")


@pytest.mark.parametrize("kind", ["file", "directory", "fifo"])
def test_no_socket(scene: Scene, kind: str) -> None:
    make: dict[str, Callable[[Path], None]] = {
        "file": Path.touch,
        "directory": Path.mkdir,
        "fifo": os.mkfifo,
    }
    make[kind](scene.path)
    refused(scene, 69, "is not a socket", "; remove it")


def test_socket_of_another_kind(scene: Scene) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(scene.path))
        refused(scene, 69, "cannot connect to")


def test_listener_that_accepts_nothing(scene: Scene) -> None:
    with contextlib.ExitStack() as waiting:
        scene.listener = waiting.enter_context(socket.socket(socket.AF_UNIX))
        scene.listener.bind(str(scene.path))
        scene.listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                client = waiting.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(str(scene.path))
        refused(scene, 69, "a foreign session holds", "or this one is stopped")


def test_listener_that_is_late_to_accept(scene: Scene) -> None:
    """The control: a queue that is full for a moment is waited for."""
    with contextlib.ExitStack() as waiting:
        scene.listener = waiting.enter_context(socket.socket(socket.AF_UNIX))
        scene.listener.bind(str(scene.path))
        scene.listener.listen(0)
        first = waiting.enter_context(socket.socket(socket.AF_UNIX))
        first.connect(str(scene.path))
        scene.start()
        time.sleep(0.3)
        scene.listener.accept()[0].close()
        peer = scene.accept()
        os.write(scene.stdin.outer, b"late, but in time")
        assert peer.recv(100) == b"late, but in time"
        assert scene.finish(peer) == (0, "")


@pytest.mark.needs_root
def test_no_permission(scene: Scene, account: Account) -> None:
    scene.listen()
    scene.path.chmod(0o600)
    del scene.environment[REPORT]
    done = scene.run(as_account(account.uid, account.gid))
    assert_refusal(done.returncode, done.stderr, 69, "no permission to connect to")


@pytest.mark.parametrize("length", [107, 108, 4000])
def test_path_too_long_for_a_socket(scene: Scene, length: int) -> None:
    path = str(scene.directory) + "/"
    path += "s" * (length - len(path))
    scene.environment[SOCKET_PATH] = path
    if length == 107:
        refused(scene, 69, "no forwarded socket at")
    else:
        refused(scene, 64, f"is {length} bytes long, 107 is the most")


@pytest.mark.parametrize("value", [None, ""])
def test_no_path(scene: Scene, value: str | None) -> None:
    del scene.environment[SOCKET_PATH]
    if value is not None:
        scene.environment[SOCKET_PATH] = value
    refused(scene, 64, "BORGSOCKETWRAP_SOCKET_PATH is not set; ")


def test_path_meant_for_a_terminal(scene: Scene) -> None:
    scene.environment[SOCKET_PATH] = "/nowhere/\x1b[31m\n\udcff"
    refused(scene, 69, r"/nowhere/\x1b[31m\n\udcff")


@pytest.mark.parametrize(
    "value", ["", ",", "1", "1:", ":1", "1:2,", "1:2:3", "-1:2", "1:2\n", "\udcb2:1", "1: 2", "x:y"]
)
def test_malformed_session_processes(scene: Scene, value: str) -> None:
    scene.listen()
    scene.environment[SESSION_PROCESSES] = value
    refused(scene, 64, "BORG_PULL_SESSION_PROCESSES is malformed")


def as_account(uid: int, gid: int, *options: str) -> tuple[str, ...]:
    """The words that start a program as this account."""
    return ("setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", *options)


def identity(pid: int) -> str:
    process = processes.read(pid)
    assert process is not None
    return f"{pid}:{process.start}"


def test_listener_of_this_session(scene: Scene) -> None:
    """The control of the three below: the test is an ancestor and listens."""
    me = identity(os.getpid())
    scene.environment[SESSION_PROCESSES] = f"{identity(1)},{me},{identity(os.getppid())}"
    peer = scene.join()
    os.write(scene.stdin.outer, b"for my own sshd")
    assert peer.recv(100) == b"for my own sshd"
    assert scene.finish(peer) == (0, "")


def test_foreign_listener(scene: Scene) -> None:
    scene.environment[SESSION_PROCESSES] = identity(os.getppid())
    assert_nothing_sent(scene, f"pid {os.getpid()} listens there")


def test_listener_with_the_pid_of_a_process_that_has_ended(scene: Scene) -> None:
    pid, _, start = identity(os.getpid()).partition(":")
    scene.environment[SESSION_PROCESSES] = f"{pid}:{int(start) - 1}"
    assert_nothing_sent(scene, f"pid {os.getpid()} listens there")


@pytest.mark.needs_root
@pytest.mark.parametrize("told", [True, False])
def test_listener_of_another_user(scene: Scene, account: Account, told: bool) -> None:
    """Whoever can bind the name first would have the backup."""
    scene.listener = socket.socket(socket.AF_UNIX)
    scene.listener.bind(str(scene.path))
    pid = os.fork()
    if pid == 0:
        os.setresuid(account.uid, account.uid, account.uid)
        scene.listener.listen(4)
        signal.pause()
        os._exit(0)
    try:
        until(lambda: listens(scene.path), seconds=SECONDS, what="the other user's listener")
        if told:
            scene.environment[SESSION_PROCESSES] = identity(pid)
        refused(scene, 69, f"pid {pid} of uid {account.uid} listens there", "nothing was sent")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        scene.listener.close()


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) != errno.ECONNREFUSED


def assert_nothing_sent(scene: Scene, *words: str) -> None:
    scene.listen()
    scene.start()
    write_all(scene.stdin.outer, b"secret")
    peer = scene.accept()
    assert peer.recv(100) == b""
    assert_refusal(*scene.wait(), 69, "a foreign session holds", "nothing was sent", *words)
    assert scene.reported()[-1].startswith("end 0 0 69 ")
    assert "connected 0 0 0" not in scene.reported()


# A process listens, leaves the socket to its child and ends; another then gets its pid.
RECYCLED_PID = """
import os, socket, subprocess, sys
path, program, recycle = sys.argv[1:]
ready_reader, ready = os.pipe()
stay, end = os.pipe()
listening = os.fork()
if listening == 0:
    os.close(end)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(4)
    if recycle == "no" or os.fork() == 0:
        os.write(ready, b".")
        listener.accept()[0].recv(100)
        os.read(stay, 1)
    os._exit(0)
os.read(ready_reader, 1)
if recycle == "yes":
    os.waitpid(listening, 0)
    with open("/proc/sys/kernel/ns_last_pid", "w") as last:
        last.write(str(listening - 1))
    if (again := os.fork()) == 0:
        os.close(end)
        os.read(stay, 1)
        os._exit(0)
    assert again == listening, (again, listening)
start = open(f"/proc/{listening}/stat").read().rpartition(")")[2].split()[19]
environment = {
    "BORGSOCKETWRAP_SOCKET_PATH": path,
    "BORG_PULL_SESSION_PROCESSES": f"{listening}:{start}",
}
streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
wrap = subprocess.Popen([program], env=environment, **streams)
wrap.stdout.close()
sys.exit(wrap.wait())
"""


@pytest.mark.needs_root
@pytest.mark.parametrize(("recycle", "exit_code"), [("no", 0), ("yes", 69)])
def test_listener_whose_pid_has_another_process_now(
    scene: Scene, recycle: str, exit_code: int
) -> None:
    """In a pid namespace of its own, where pids can be chosen. Told apart since Linux 6.5."""
    if recycle == "yes" and not knows_peer_pidfd():
        pytest.skip("before Linux 6.5 a listener that has ended cannot be told from its successor")
    done = subprocess.run(
        [
            *("unshare", "--pid", "--fork", "--mount-proc", "--kill-child"),
            *(sys.executable, "-c", RECYCLED_PID, scene.path, scene.program, recycle),
        ],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == exit_code, done.stderr
    if exit_code:
        assert_refusal(done.returncode, done.stderr, exit_code, "a foreign session holds")


def knows_peer_pidfd() -> bool:
    first, second = socket.socketpair()
    with first, second:
        try:
            os.close(first.getsockopt(socket.SOL_SOCKET, 77))
        except OSError as error:
            return error.errno != errno.ENOPROTOOPT
    return True


# Where it is started


@pytest.mark.parametrize("descriptor", [0, 1, 2])
def test_closed_standard_stream(scene: Scene, descriptor: int) -> None:
    """The socket would take its number."""
    scene.listen()
    done = scene.run(preexec=lambda: os.close(descriptor))
    assert done.returncode == 64
    if descriptor != 2:
        assert_refusal(done.returncode, done.stderr, 64, f"standard stream {descriptor} is closed")


def test_no_descriptors_left(scene: Scene) -> None:
    """Set once it runs, for the interpreter needs some to start."""
    program = (
        "import resource, sys\n"
        "from borg_pull.wrap import main\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (4, 4))\n"
        "sys.exit(main.main())\n"
    )
    scene.listen()
    done = run_in_interpreter(scene, program)
    assert_refusal(done.returncode, done.stderr, 71, "Too many open files")


def test_fault_of_its_own_is_one_line(scene: Scene) -> None:
    program = (
        "import sys\n"
        "from borg_pull.wrap import main\n"
        "main.join = lambda *_: 1 // 0\n"
        "sys.exit(main.main())\n"
    )
    scene.listen()
    done = run_in_interpreter(scene, program)
    assert_refusal(done.returncode, done.stderr, 70, "ZeroDivisionError")
    assert scene.reported()[-1].startswith("end 0 0 70 ")


def test_fault_in_a_direction_is_one_line(scene: Scene) -> None:
    program = (
        "import sys\n"
        "from borg_pull.wrap import directions, main\n"
        "directions._Direction._carry = lambda _: 1 // 0\n"
        "sys.exit(main.main())\n"
    )
    scene.listen()
    done = run_in_interpreter(scene, program)
    assert_refusal(done.returncode, done.stderr, 70, "ZeroDivisionError")


def test_no_thread_to_be_had(scene: Scene) -> None:
    program = (
        "import sys\n"
        "from borg_pull.wrap import directions, main\n"
        'def refuse(*_): raise RuntimeError("can\'t start new thread")\n'
        "directions.start_new_thread = refuse\n"
        "sys.exit(main.main())\n"
    )
    scene.listen()
    done = run_in_interpreter(scene, program)
    assert_refusal(done.returncode, done.stderr, 71, "can't start new thread")


def run_in_interpreter(scene: Scene, program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=PROJECT,
        env=scene.environment,
        timeout=SECONDS,
        check=False,
    )


@pytest.mark.parametrize("kind", ["fifo", "directory", "link", "missing", "device"])
def test_report_that_is_no_plain_file(scene: Scene, kind: str) -> None:
    scene.listen()
    path = scene.directory / "other"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(scene.report)
    elif kind == "device":
        path = Path("/dev/null")
    scene.environment[REPORT] = str(path)
    done = scene.run()
    expected = 64 if kind == "device" else 71
    assert_refusal(done.returncode, done.stderr, expected, str(path))
    assert scene.reported() == []


@pytest.mark.needs_root
def test_gives_up_the_capability_it_inherits(scene: Scene) -> None:
    """As it inherits it from a borg that reads every file, by the ambient set."""
    nobody = pwd.getpwnam("nobody")
    capability = "+dac_read_search"
    scene.listen()
    scene.path.chmod(0o777)
    os.chown(scene.report, nobody.pw_uid, nobody.pw_gid)
    scene.environment[SESSION_PROCESSES] = identity(os.getpid())
    as_nobody = as_account(
        nobody.pw_uid,
        nobody.pw_gid,
        f"--inh-caps={capability}",
        f"--ambient-caps={capability}",
    )
    control = subprocess.run(
        [*as_nobody, "grep", "^Cap", "/proc/self/status"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert capability_sets(control.stdout) == dict.fromkeys(SETS, 1 << 2)
    scene.start(pipes, prefix=as_nobody)
    scene.accept()
    until(lambda: scene.reported() == ["connected 0 0 0"], seconds=SECONDS, what="the connection")
    status = Path("/proc", str(scene.process.pid), "status").read_text()
    assert f"Uid:\t{nobody.pw_uid}\t{nobody.pw_uid}\t" in status
    assert capability_sets(status) == dict.fromkeys(SETS, 0)
    for task in Path("/proc", str(scene.process.pid), "task").iterdir():
        assert capability_sets((task / "status").read_text()) == dict.fromkeys(SETS, 0)


SETS = ("CapInh", "CapPrm", "CapEff", "CapAmb")


def capability_sets(status: str) -> dict[str, int]:
    lines = dict(line.split(":\t", 1) for line in status.splitlines() if line.startswith("Cap"))
    return {name: int(lines[name], 16) for name in SETS}


def test_starts_with_few_modules() -> None:
    program = (
        "import sys; before = set(sys.modules); sys.path.insert(0, sys.argv[1])\n"
        "import borg_pull.wrap.main; print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, PROJECT],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert "borg_pull.wrap.directions" in loaded
    assert not loaded & NOT_ON_THE_START_UP_PATH
