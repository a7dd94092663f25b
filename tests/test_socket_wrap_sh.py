"""contrib/socket-wrap.sh: a working stand-in for the socket wrap, within what its head says."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import processes
from tests.harness.builds import PROJECT
from tests.harness.site import Installations
from tests.harness.wait import until

SCRIPT = PROJECT / "contrib/socket-wrap.sh"
SOCKET_PATH = "BORGSOCKETWRAP_SOCKET_PATH"
SECONDS = 30
BULK = 8 << 20
DAC_READ_SEARCH = 1 << 2
NOBODY = 65534
CAPABLE_NOBODY = (
    *("setpriv", f"--reuid={NOBODY}", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)


class Scene:
    """A socket with the test listening on it, and one run of a copy of the script."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "luna.sock"
        self.script = Path(shutil.copy(SCRIPT, directory))
        self.environment = {"PATH": os.environ["PATH"], SOCKET_PATH: str(self.path)}
        self._cleanup = contextlib.ExitStack()

    def join(self, *prefix: str) -> socket.socket:
        """Start the script; the peer's end of its connection."""
        listener = self._cleanup.enter_context(socket.socket(socket.AF_UNIX))
        listener.settimeout(SECONDS)
        listener.bind(str(self.path))
        self.path.chmod(0o777)
        listener.listen(1)
        self.process = subprocess.Popen(
            [*prefix, self.script, "luna", "borg", "serve", "--umask=077"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self.environment,
        )
        self._cleanup.callback(self._end_process)
        peer = self._cleanup.enter_context(listener.accept()[0])
        peer.settimeout(SECONDS)
        return peer

    def run(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.script],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=SECONDS,
            check=False,
        )

    def without(self, program: str) -> None:
        """Hide ``program`` from the script."""
        tools = self.directory / "bin"
        tools.mkdir()
        for name in {"sh", "setpriv", "socat", "sleep"} - {program}:
            found = shutil.which(name)
            assert found is not None
            (tools / name).symlink_to(found)
        self.environment["PATH"] = str(tools)

    def write(self, content: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(content)
        self.process.stdin.flush()

    def read(self, size: int) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.read(size)

    def close_stdin(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def close(self) -> None:
        self._cleanup.close()

    def _end_process(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


@pytest.fixture
def scene(installations: Installations) -> Iterator[Scene]:
    made = Scene(installations.workplace.directory("s"))
    yield made
    made.close()


def read_exactly(peer: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        block = peer.recv(size - len(content))
        assert block
        content += block
    return content


@pytest.mark.parametrize("hidden", [None, "setpriv"])
def test_joins_both_directions(scene: Scene, hidden: str | None) -> None:
    if hidden is not None:
        scene.without(hidden)
    there, back = os.urandom(BULK), os.urandom(BULK)
    peer = scene.join()
    scene.write(there[:1000])
    assert read_exactly(peer, 1000) == there[:1000]
    peer.sendall(back[:1000])
    assert scene.read(1000) == back[:1000]

    sender = threading.Thread(target=peer.sendall, args=(back[1000:],))
    sender.start()
    assert scene.read(BULK - 1000) == back[1000:]
    sender.join()
    sender = threading.Thread(target=scene.write, args=(there[1000:],))
    sender.start()
    assert read_exactly(peer, BULK - 1000) == there[1000:]
    sender.join()

    scene.close_stdin()
    assert peer.recv(1) == b""
    peer.close()
    assert scene.process.wait(SECONDS) == 0


def test_end_of_borgs_input_leaves_the_other_direction_open(scene: Scene) -> None:
    """Socat by itself would wait half a second and then cut it off."""
    peer = scene.join()
    scene.close_stdin()
    assert peer.recv(1) == b""
    with pytest.raises(subprocess.TimeoutExpired):
        scene.process.wait(1.0)
    peer.sendall(b"answer")
    peer.close()
    assert scene.read(100) == b"answer"
    assert scene.process.wait(SECONDS) == 0


def refused(scene: Scene, exit_code: int, words: str) -> None:
    done = scene.run()
    assert done.returncode == exit_code, done.stderr
    assert done.stderr.startswith("socket-wrap.sh: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("value", [None, ""])
def test_no_path(scene: Scene, value: str | None) -> None:
    del scene.environment[SOCKET_PATH]
    if value is not None:
        scene.environment[SOCKET_PATH] = value
    refused(scene, 64, "BORGSOCKETWRAP_SOCKET_PATH is not set; ")


@pytest.mark.parametrize(
    "odd", [",fork", ":1", "!!x", "\\", '"', "'", "(", "[", "{", " ", "\n", "$"]
)
def test_path_that_socat_would_interpret(scene: Scene, odd: str) -> None:
    scene.environment[SOCKET_PATH] += odd
    refused(scene, 64, "holds a character that socat would interpret")


def test_missing_socket(scene: Scene) -> None:
    refused(scene, 69, "no forwarded socket at")


def test_no_socket(scene: Scene) -> None:
    scene.path.touch()
    refused(scene, 69, "is not a socket")


def test_no_socat(scene: Scene) -> None:
    listener = socket.socket(socket.AF_UNIX)
    with listener:
        listener.bind(str(scene.path))
        scene.without("socat")
        refused(scene, 71, "socat is missing; install it")


def test_stale_socket_is_a_failure(scene: Scene) -> None:
    """With socat's own words and code, as the head says."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(scene.path))
    done = scene.run()
    assert done.returncode == 1
    assert "Connection refused" in done.stderr


@pytest.mark.parametrize("hidden", [None, "setpriv"])
def test_dies_with_its_parent_where_setpriv_is(scene: Scene, hidden: str | None) -> None:
    if hidden is not None:
        scene.without(hidden)
    program = "import subprocess, sys; subprocess.run(sys.argv[1:], start_new_session=True)"
    peer = scene.join(sys.executable, "-c", program)
    [socat] = [
        process
        for process in processes.descendants(scene.process.pid)
        if process.command.startswith("socat ")
    ]
    scene.process.kill()
    scene.process.wait()
    if hidden is None:
        until(lambda: not socat.alive(), seconds=SECONDS, what="the end of socat")
    else:
        peer.sendall(b"still there")
        assert scene.read(11) == b"still there"
        socat.send(signal.SIGKILL)


@pytest.mark.needs_root
@pytest.mark.parametrize(("hidden", "kept"), [(None, 0), ("setpriv", DAC_READ_SEARCH)])
def test_gives_up_the_capability_where_setpriv_is(
    scene: Scene, hidden: str | None, kept: int
) -> None:
    prefix = (shutil.which("setpriv") or "setpriv", *CAPABLE_NOBODY[1:])
    if hidden is not None:
        scene.without(hidden)
    scene.join(*prefix)
    status = Path("/proc", str(scene.process.pid), "status").read_text()
    lines = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert lines["Name"] == "socat"
    assert lines["Uid"].split() == [str(NOBODY)] * 4
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(lines[name], 16) == kept
