"""Where the passphrase comes from, and the output of a command within its bounds."""

from __future__ import annotations

import os
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from borg_pull.errors import (
    BorgPullError,
    ConfigurationError,
    EndedError,
    RequestError,
    SystemRefusedError,
)
from borg_pull.schema import SourceFile
from borg_pull.source import confine, passphrase
from borg_pull.source.capture import output_of
from borg_pull.source.passphrase import MAX_PASSPHRASE, obtain
from borg_pull.source.whitelist import ClientRules, load
from borg_pull.trust import Trust
from tests.harness.wait import until
from tests.properties.toml_text import toml_table

# For a test of a command: what ends that ends all children of its process.
OWN_PROCESS = pytest.mark.own_process

TRUST = Trust(enforced=False, uid=os.getuid())
WATCH, _WRITER = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)  # of signals, of which there are none
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "MARK": "from the environment it is given"}


def rules(**keys: object) -> ClientRules:
    text = '[runtime]\nsocket_dir = "/s"\nhome = "/h"\n' + toml_table("[client.luna]", keys)
    return load(SourceFile(name="w", content=text.encode()), {}).clients["luna"]


def program(directory: Path, body: str) -> str:
    path = directory / "command"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


class StandardInput:
    """A pipe in place of descriptor 0."""

    def __init__(self) -> None:
        reader, self.writer = os.pipe()
        self._kept = os.dup(0)
        os.dup2(reader, 0)
        os.close(reader)

    def send(self, content: bytes) -> None:
        os.write(self.writer, content)

    def end(self) -> None:
        os.close(self.writer)
        self.writer = -1

    def rest(self) -> bytes:
        return os.read(0, 65536) if select.select([0], [], [], 0)[0] else b""

    def restore(self) -> None:
        if self.writer >= 0:
            os.close(self.writer)
        os.dup2(self._kept, 0)
        os.close(self._kept)


@pytest.fixture
def standard_input() -> Iterator[StandardInput]:
    made = StandardInput()
    yield made
    made.restore()


def test_no_source_no_passphrase() -> None:
    assert obtain(rules(), TRUST, ENVIRONMENT, WATCH) is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"secret\n", b"secret"),
        (b"secret", b"secret"),
        (b"secret\r\nsecond line\n", b"secret"),
        (b" with spaces \n", b" with spaces "),
        ("gehëim\n".encode(), "gehëim".encode()),
        (b"x" * (MAX_PASSPHRASE - 1) + b"\n", b"x" * (MAX_PASSPHRASE - 1)),
    ],
)
class TestWhatIsTaken:
    def test_from_a_file(self, tmp_path: Path, content: bytes, expected: bytes) -> None:
        path = tmp_path / "secret"
        path.write_bytes(content)
        assert obtain(rules(passphrase_file=str(path)), TRUST, ENVIRONMENT, WATCH) == expected

    @OWN_PROCESS
    def test_from_a_command(self, tmp_path: Path, content: bytes, expected: bytes) -> None:
        (tmp_path / "with space").write_bytes(content)
        command = f"/bin/cat '{tmp_path}/with space'"
        assert obtain(rules(passcommand=command), TRUST, ENVIRONMENT, WATCH) == expected

    def test_from_standard_input(
        self, standard_input: StandardInput, content: bytes, expected: bytes
    ) -> None:
        standard_input.send(content)
        standard_input.end()
        assert obtain(rules(passphrase_stdin=True), TRUST, ENVIRONMENT, WATCH) == expected


BAD_CONTENTS = [b"", b"\n", b"\r\n", b"\nsecond\n", b"\xff\xfe\n", b"x" * (MAX_PASSPHRASE + 1)]


@pytest.mark.parametrize("content", BAD_CONTENTS)
class TestWhatIsRefused:
    def test_from_a_file(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "secret"
        path.write_bytes(content)
        with pytest.raises(ConfigurationError) as caught:
            obtain(rules(passphrase_file=str(path)), TRUST, ENVIRONMENT, WATCH)
        assert_tells_no_secret(caught.value, content)

    def test_from_standard_input(self, standard_input: StandardInput, content: bytes) -> None:
        standard_input.send(content)
        standard_input.end()
        with pytest.raises(RequestError) as caught:
            obtain(rules(passphrase_stdin=True), TRUST, ENVIRONMENT, WATCH)
        assert_tells_no_secret(caught.value, content)


def assert_tells_no_secret(error: BorgPullError, content: bytes) -> None:
    assert "xxxx" not in error.line()
    assert "\\xff" not in error.line()
    assert error.line().isprintable()
    assert len(content) < 100 or str(MAX_PASSPHRASE) in error.line()


def test_standard_input_is_read_to_the_first_line_end_and_no_further(
    standard_input: StandardInput,
) -> None:
    standard_input.send(b"secret\nthe rest is not ours")
    assert obtain(rules(passphrase_stdin=True), TRUST, ENVIRONMENT, WATCH) == b"secret"
    assert standard_input.rest() == b"the rest is not ours"


def test_a_peer_that_sends_nothing_is_not_waited_for_for_good(
    standard_input: StandardInput, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passphrase, "STDIN_TIMEOUT", 0.2)
    standard_input.send(b"half a passphra")
    with pytest.raises(RequestError, match="no passphrase arrived") as caught:
        obtain(rules(passphrase_stdin=True), TRUST, ENVIRONMENT, WATCH)
    assert "half" not in caught.value.line()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("exit 3", "failed with exit code 3"),
        ("kill -9 $$", "failed with exit code -9"),
        (":", "yields no passphrase"),
        ("echo secret; exit 1", "failed with exit code 1"),
    ],
)
@OWN_PROCESS
def test_a_command_that_fails(tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        obtain(rules(passcommand=program(tmp_path, body)), TRUST, ENVIRONMENT, WATCH)
    assert "secret" not in caught.value.line()


@OWN_PROCESS
def test_a_command_that_is_not_there() -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        obtain(rules(passcommand="/no/such/command x"), TRUST, ENVIRONMENT, WATCH)


@OWN_PROCESS
def test_a_command_gets_its_words_and_no_shell(tmp_path: Path) -> None:
    command = program(tmp_path, 'printf "%s|" "$@"') + " '$(id)' \"a b\" *"
    assert obtain(rules(passcommand=command), TRUST, ENVIRONMENT, WATCH) == b"$(id)|a b|*|"


def _output_of(*argv: str, timeout: float = 30, limit: int = 100) -> bytes:
    return output_of(
        argv,
        ENVIRONMENT,
        confinement=confine.OF_ADMINS_PROGRAMS,
        rules=None,
        timeout=timeout,
        limit=limit,
        watch=WATCH,
    )


@OWN_PROCESS
def test_a_command_gets_the_given_environment_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BASH_ENV", "hostile")
    found = _output_of("/usr/bin/env", "-0", limit=4096)
    assert dict(entry.split("=", 1) for entry in found.decode().split("\0")[:-1]) == ENVIRONMENT


@OWN_PROCESS
def test_a_command_gets_no_descriptors() -> None:
    leaked = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(leaked, True)
    try:
        # 3 is where ls itself has the directory open.
        found = obtain(rules(passcommand="/bin/ls -m /proc/self/fd"), TRUST, ENVIRONMENT, WATCH)
    finally:
        os.close(leaked)
    assert found == b"0, 1, 2, 3"


@OWN_PROCESS
def test_output_beyond_the_limit_ends_the_command() -> None:
    with pytest.raises(SystemRefusedError, match="failed with exit code -13"):
        _output_of("/usr/bin/yes")


@pytest.mark.parametrize(
    "body", ["sleep 1000", "exec >&-; sleep 1000", "echo x; exec >&- ; sleep 1000"]
)
@OWN_PROCESS
def test_a_command_that_does_not_end_is_ended_with_what_it_started(
    tmp_path: Path, body: str
) -> None:
    path = program(tmp_path, f"echo $$ > {tmp_path}/pid; {body}")
    started = time.monotonic()
    with pytest.raises(SystemRefusedError, match="did not end within"):
        _output_of(path, timeout=0.5)
    assert time.monotonic() - started < 20
    group = int((tmp_path / "pid").read_text())

    def gone() -> bool:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        return False

    until(gone, seconds=10, what="the end of the command and its children")


@pytest.fixture
def told_to_end() -> Iterator[int]:
    """Where a signal has been noted, and another that is no reason to end."""
    reader, writer = os.pipe2(os.O_NONBLOCK)
    os.write(writer, bytes((signal.SIGALRM, signal.SIGTERM)))
    yield reader
    os.close(reader)
    os.close(writer)


@pytest.mark.usefixtures("standard_input")
def test_a_signal_ends_the_wait_for_standard_input(told_to_end: int) -> None:
    with pytest.raises(EndedError, match="ended by signal 15 before it was served") as caught:
        obtain(rules(passphrase_stdin=True), TRUST, ENVIRONMENT, told_to_end)
    assert caught.value.exit_code == 75


@pytest.mark.parametrize("body", ["sleep 1000", "exec >&-; sleep 1000"])
@OWN_PROCESS
def test_a_signal_ends_a_command(tmp_path: Path, told_to_end: int, body: str) -> None:
    started = time.monotonic()
    with pytest.raises(EndedError):
        obtain(rules(passcommand=program(tmp_path, body)), TRUST, ENVIRONMENT, told_to_end)
    assert time.monotonic() - started < 20
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_other_signals_are_no_reason_to_end(
    monkeypatch: pytest.MonkeyPatch, standard_input: StandardInput
) -> None:
    monkeypatch.setattr(passphrase, "STDIN_TIMEOUT", 0.2)
    reader, writer = os.pipe2(os.O_NONBLOCK)
    os.write(writer, bytes((signal.SIGALRM, signal.SIGCHLD)))
    with pytest.raises(RequestError, match="no passphrase arrived"):
        obtain(rules(passphrase_stdin=True), TRUST, ENVIRONMENT, reader)
    standard_input.send(b"secret\n")
    assert obtain(rules(passphrase_stdin=True), TRUST, ENVIRONMENT, reader) == b"secret"
    os.close(reader)
    os.close(writer)


@OWN_PROCESS
def test_a_command_runs_without_any_privilege_to_gain(tmp_path: Path) -> None:
    body = "grep -h NoNewPrivs /proc/$$/status"
    found = obtain(rules(passcommand=program(tmp_path, body)), TRUST, ENVIRONMENT, WATCH)
    assert found == b"NoNewPrivs:\t1"


def test_the_secret_is_in_no_argument_list(tmp_path: Path) -> None:
    """From a file it is read in this very process; nothing is started for it."""
    path = tmp_path / "secret"
    path.write_bytes(b"secret\n")
    path.chmod(stat.S_IRUSR)
    script = (
        "import os, sys\n"
        "from borg_pull.source.passphrase import obtain\n"
        "from tests.test_passphrase import rules, TRUST\n"
        "import subprocess\n"
        "os.fork = subprocess.Popen = None\n"
        f"assert obtain(rules(passphrase_file={str(path)!r}), TRUST, {{}}, 0) == b'secret'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
