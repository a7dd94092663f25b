"""One client cannot take, use or block the socket of another on the same account (A against B).

Threat: nova (A) knows luna's (B's) client name, and sshd binds any name for any key that may
forward. nova binds luna's socket before luna does, in between, and while she runs, again and
again; leaves dead ones; fills the directory; opens hundreds of sessions. It wants luna's stream,
or luna never to be served again. The control is in each test: what luna's run is like with a name
of its own, or without nova.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import pytest

from tests.harness import processes
from tests.harness.builds import FROZEN_12, PROJECT
from tests.harness.disk import Disk
from tests.harness.fixtures import SiteMaker
from tests.harness.peer import Peer, Pull, Result
from tests.harness.sink import Sink
from tests.harness.site import Site
from tests.harness.wait import until

BOUND = 10.0  # seconds within which a run that is not served has ended
STREAM = b"the stream of luna\n" * 20_000
FORWARDS = 900  # of one session: sshd's limit of open files is 1024

# Sends its last argument's file through the socket wrap, and fails when that does, as borg does.
STAND_IN = """\
#!/bin/sh
[ "$1" != --version ] || exec echo borg 1.2.4
for path; do :; done
"$BORG_RSH" host borg serve < "$path/stream" || exit 2
"""
GO_ON = ("-o", "ExitOnForwardFailure=no")


class Scene:
    """luna and nova on one account; what luna's runs send is STREAM."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.luna, self.nova = site.peer("luna"), site.peer("nova")
        self.data = site.source.tree()
        site.source.file(self.data / "stream", STREAM)
        program = site.source.directory / "borg"
        program.write_text(STAND_IN)
        program.chmod(0o755)
        self._borg = str(program)
        self.allow()
        self.name = site.source.socket("luna")
        self._counter = 0

    def allow(self, **runtime: object) -> None:
        rules = {"paths": [str(self.data)]}
        self.site.source.write_whitelist(
            {"luna": rules, "nova": rules}, runtime={"borg": self._borg} | runtime
        )

    def sink(self, peer: Peer, **how: object) -> Sink:
        """A listener of that peer's."""
        self._counter += 1
        return Sink(peer.directory / f"s{self._counter}", **how)  # type: ignore[arg-type]

    def pull(self, *options: str, nonce: str | None = None) -> tuple[Result, int]:
        """A run of luna's, and the bytes that came to her."""
        with self.sink(self.luna) as sink:
            words = "" if nonce is None else f"--socket {nonce} "
            name = "luna" if nonce is None else f"luna.{nonce}"
            result = self.luna.start(
                f"create {words}/r a {self.data}",
                sink,
                remote_socket=self.site.source.socket(name),
                options=options,
            ).wait()
            return result, sink.received

    def squat(self, trap: Sink, *options: str, name: Path | None = None) -> Pull:
        """A session of nova's that holds luna's name; no forced command runs in it."""
        before = _bound(name or self.name)
        squatting = self.nova.start(
            "", trap, remote_socket=name or self.name, options=["-N", *options]
        )
        until(
            lambda: _bound(name or self.name) not in (None, before),
            seconds=20,
            what="nova's session to bind the name",
        )
        return squatting


def _bound(path: Path) -> tuple[int, int] | None:
    """What tells the socket from those before; an inode's number alone comes again at once."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


@contextmanager
def ended(session: Pull) -> Iterator[Pull]:
    """Ends the session of a peer's ssh that would stay."""
    try:
        yield session
    finally:
        session.kill()
        session.wait()


@pytest.fixture
def scene(make_site: SiteMaker) -> Scene:
    return Scene(make_site(FROZEN_12))


@pytest.fixture
def careless(make_site: SiteMaker) -> Scene:
    """Behind an sshd by whose settings a later session takes a name over."""
    return Scene(make_site(FROZEN_12, sshd=("StreamLocalBindUnlink yes",)))


def assert_served(outcome: tuple[Result, int]) -> None:
    result, received = outcome
    assert (result.exit, result.errors, received) == (0, "", len(STREAM))


def assert_foreign(outcome: tuple[Result, int]) -> None:
    """It ended soon, and the line says why."""
    result, received = outcome
    (line,) = [line for line in result.errors.splitlines() if line.startswith("borg-pull-source")]
    assert (result.exit, received) == (69, 0), result
    assert "a foreign session holds" in line
    assert result.duration < BOUND


def nonce() -> str:
    return secrets.token_hex(16)


# The name is taken


@pytest.mark.parametrize("mood", ["reads", "silent", "deaf", "stopped", "full"])
def test_a_name_that_is_taken(scene: Scene, mood: str) -> None:
    how = mood if mood in ("reads", "silent", "deaf") else "reads"
    with ExitStack() as stack:
        trap = stack.enter_context(scene.sink(scene.nova, mood=how))
        stack.enter_context(ended(scene.squat(trap)))
        if mood in ("stopped", "full"):
            stack.enter_context(stopped(scene))
        if mood == "full":
            stack.enter_context(full_queue(scene.name))
        # ssh goes on without the forwarding, and the name is there: the wrap must find out whose.
        assert_foreign(scene.pull(*GO_ON))
        # ssh ends itself where it is told to: then its own line is all there is.
        result, received = scene.pull()
        assert (result.exit, received) == (255, 0)
        assert f"remote port forwarding failed for listen path {scene.name}" in result.errors
        assert result.duration < BOUND
        assert scene.name.exists()
        assert_served(scene.pull(nonce=nonce()))
        assert trap.received == 0
    assert scene.site.source.audit(client="luna", event="complete", exit=69)


def test_control_a_wrapper_that_does_not_ask_sends_the_stream_away(scene: Scene) -> None:
    wrapper = scene.site.source.directory / "socket-wrap.sh"
    wrapper.write_bytes((PROJECT / "contrib/socket-wrap.sh").read_bytes())
    wrapper.chmod(0o755)
    scene.allow(socket_wrapper=str(wrapper))
    with scene.sink(scene.nova) as trap, ended(scene.squat(trap)):
        result, received = scene.pull(*GO_ON)
        assert (result.exit, received, trap.received) == (0, 0, len(STREAM))


@contextmanager
def stopped(scene: Scene) -> Iterator[None]:
    """nova's sshd, the only one there is of this account, does not run meanwhile."""
    (session,) = [
        process for process in scene.site.source.processes() if process.name.startswith("sshd")
    ]
    session.send(signal.SIGSTOP)
    try:
        yield
    finally:
        session.send(signal.SIGCONT)


@contextmanager
def full_queue(path: Path) -> Iterator[None]:
    """As many connections wait at ``path`` as its listener allows."""
    with ExitStack() as waiting:
        while True:
            connection = waiting.enter_context(socket.socket(socket.AF_UNIX))
            connection.setblocking(False)
            try:
                connection.connect(str(path))
            except BlockingIOError:
                break
        yield


def test_a_name_that_a_dead_session_left(scene: Scene) -> None:
    with scene.sink(scene.nova) as trap:
        with ended(scene.squat(trap)):
            pass
        until(lambda: not _sessions(scene), seconds=20, what="nova's session to end")
        assert scene.name.exists()
        result, _ = scene.pull()
        assert result.exit == 255
        # Any request that reaches us frees it, be it with a name of its own.
        assert_served(scene.pull(nonce=nonce()))
        assert_served(scene.pull())
        with ended(scene.squat(trap)):
            pass
        until(lambda: not _sessions(scene), seconds=20, what="nova's session to end")
        result, received = scene.pull(*GO_ON)
        assert (result.exit, received) == (69, 0)
        assert "nobody listens on" in result.errors
        assert_served(scene.pull())
        assert trap.received == 0


def _sessions(scene: Scene) -> list[processes.Process]:
    return scene.site.source.processes()


# It changes hands meanwhile, which sshd allows only with StreamLocalBindUnlink


def test_a_name_bound_anew_between_the_forwarding_and_the_request(careless: Scene) -> None:
    scene = careless
    request = f"create /r a {scene.data}"

    @contextmanager
    def forwarded(sink: Sink, control: Path) -> Iterator[list[str]]:
        """A connection of luna's that has forwarded and not asked yet; ssh's options to ask by."""
        connection = scene.luna.start("", sink, options=["-N", "-M", "-S", str(control)])
        with ended(connection):
            until(
                lambda: control.exists() and scene.name.exists(),
                seconds=20,
                what="luna's session to bind the name",
            )
            yield ["-S", str(control)]

    with scene.sink(scene.luna) as sink, forwarded(sink, scene.luna.directory / "c1") as options:
        assert_served((scene.luna.start(request, options=options).wait(), sink.received))
    with scene.sink(scene.nova) as trap, scene.sink(scene.luna) as sink:
        with forwarded(sink, scene.luna.directory / "c2") as options, ended(scene.squat(trap)):
            result = scene.luna.start(request, options=options).wait()
        assert_foreign((result, sink.received))
        assert all(line.startswith("borg-pull-") for line in result.errors.splitlines())
        assert trap.received == 0


def test_a_name_bound_anew_during_the_run(careless: Scene) -> None:
    """The connection is made: it stays luna's, and her run does not remove what is not hers."""
    scene = careless
    held = len(STREAM) // 4
    with scene.sink(scene.nova) as trap, scene.sink(scene.luna, hold_after=held) as sink:
        pull = scene.luna.start(f"create /r a {scene.data}", sink)
        until(lambda: sink.received >= held, seconds=20, what="the stream to stand still")
        with ended(scene.squat(trap)):
            bound = _bound(scene.name)
            sink.release()
            assert_served((pull.wait(), sink.received))
            assert _bound(scene.name) == bound
        assert trap.received == 0


def test_control_sshd_as_it_should_be_lets_nobody_take_over_a_name(scene: Scene) -> None:
    held = len(STREAM) // 4
    with scene.sink(scene.nova) as trap, scene.sink(scene.luna, hold_after=held) as sink:
        pull = scene.luna.start(f"create /r a {scene.data}", sink)
        until(lambda: sink.received >= held, seconds=20, what="the stream to stand still")
        refused = scene.nova.start("", trap, remote_socket=scene.name, options=["-N"]).wait()
        assert refused.exit == 255
        sink.release()
        assert_served((pull.wait(), sink.received))
        assert not scene.name.exists()
        assert trap.received == 0


class Contender:
    """nova, binding luna's name and letting go of it without end."""

    def __init__(self, scene: Scene, trap: Sink) -> None:
        self.bound = 0
        self._scene = scene
        self._trap = trap
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def _run(self) -> None:
        name = self._scene.name
        while not self._ended.is_set():
            before = _bound(name)
            with ended(
                self._scene.nova.start("", self._trap, remote_socket=name, options=["-N"])
            ) as session:
                while session.ssh.poll() is None and _bound(name) in (None, before):
                    time.sleep(0.002)
                self.bound += session.ssh.poll() is None

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(20)


# What luna may be told by a name that nova takes, drops and takes again.
LINES = ("a foreign session holds", "nobody listens on", "no forwarded socket at")


@pytest.mark.parametrize("unlink", [False, True], ids=["kept", "taken over"])
def test_a_name_bound_again_and_again(unlink: bool, request: pytest.FixtureRequest) -> None:
    """With a plain name each run is served or ends soon; with one of its own each is served."""
    scene: Scene = request.getfixturevalue("careless" if unlink else "scene")
    with scene.sink(scene.nova) as trap:
        with Contender(scene, trap) as contender:
            for number in range(8):
                result, received = scene.pull(*(GO_ON if number % 2 else ()))
                assert result.duration < BOUND
                if result.exit == 69:
                    assert any(line in result.errors for line in LINES)
                    assert received == 0
                elif result.exit != 255:
                    assert_served((result, received))
                # A name that nova dropped is freed by any request.
                assert scene.luna.pull("hello").exit == 0
            for _ in range(4):
                assert_served(scene.pull(nonce=nonce()))
        assert contender.bound >= 3
        assert trap.received == 0


# The directory is full


def _flood(scene: Scene, trap: Sink, count: int) -> list[Pull]:
    """Sessions of nova's that bind ``count`` names of luna's form."""
    sessions = []
    for first in range(0, count, FORWARDS):
        names = [f"luna.{first + number:032d}" for number in range(min(FORWARDS, count - first))]
        options = [f"-R{scene.site.source.socket(name)}:{trap.path}" for name in names]
        sessions.append(scene.nova.start("", options=["-N", *options]))
    return sessions


def test_thousands_of_sockets(scene: Scene) -> None:
    """They cost luna little while they live, and go when nobody has them any more."""
    count = 3 * FORWARDS

    def left() -> int:
        return len(list(scene.site.source.socket_dir.iterdir()))

    with scene.sink(scene.nova) as trap:
        sessions = _flood(scene, trap, count)
        until(lambda: left() == count, seconds=60, what="nova's sockets")
        for _ in range(2):
            outcome = scene.pull(nonce=nonce())
            assert_served(outcome)
            assert outcome[0].duration < BOUND
        assert_served(scene.pull())
        assert left() == count
        for session in sessions:
            session.kill()
            session.wait()
        until(lambda: not _sessions(scene), seconds=20, what="nova's sessions to end")
        assert_served(scene.pull())
        assert left() == count - 1000
        for _ in range(2):
            assert scene.luna.pull("hello").exit == 0
        assert left() == 0
        assert trap.received == 0


@pytest.mark.needs_root
def test_a_file_system_without_room(scene: Scene) -> None:
    """ssh cannot forward then, whatever the name; once nova is gone luna helps herself."""
    directory = scene.site.source.socket_dir
    disk = Disk(directory, inodes=64)
    try:
        with scene.sink(scene.nova) as trap:
            assert_served(scene.pull())
            (session,) = _flood(scene, trap, 100)
            with ended(session):
                until(lambda: _is_full(directory), seconds=20, what="the directory to be full")
                for name in (None, nonce()):
                    result, received = scene.pull(nonce=name)
                    assert (result.exit, received) == (255, 0)
                    assert result.duration < BOUND
                    result, received = scene.pull(*GO_ON, nonce=name)
                    assert (result.exit, received) == (69, 0)
                    assert "no forwarded socket at" in result.errors
            until(lambda: not _sessions(scene), seconds=20, what="nova's session to end")
            assert _is_full(directory)
            assert scene.luna.pull("hello").exit == 0
            assert_served(scene.pull())
            assert trap.received == 0
    finally:
        scene.site.source.assert_nothing_left()
        disk.unmount()


def _is_full(directory: Path) -> bool:
    return os.statvfs(directory).f_ffree == 0


# Sessions without end


def test_two_hundred_sessions(scene: Scene) -> None:
    """Idle forwards, and requests that are never served to their end; luna's are."""
    run, idle = scene.site.source.socket_dir, 180
    with scene.sink(scene.nova, mood="silent") as trap, ExitStack() as stack:
        for number in range(200):
            own = f"{number:016d}"
            asks = f"create --socket {own} /r{number} a {scene.data}"
            session = scene.nova.start(
                "" if number < idle else asks,
                trap,
                remote_socket=run / f"nova.{own}.sock",
                options=["-N"] if number < idle else [],
            )
            stack.enter_context(ended(session))
        until(lambda: len(list(run.iterdir())) > idle, seconds=90, what="nova's sessions")
        for name in (None, nonce()):
            outcome = scene.pull(nonce=name)
            assert_served(outcome)
            assert outcome[0].duration < BOUND
