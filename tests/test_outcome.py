"""How a run's end becomes an exit code, a result and a line."""

from __future__ import annotations

import json

import pytest

from borg_pull.source.judge import Allowed, Grant
from borg_pull.source.outcome import Finding, finding
from borg_pull.source.report import WrapReport
from borg_pull.source.session import Ending
from borg_pull.source.whitelist import CLIENT_KEYS, ClientRules


def ending(
    code: int | None = 0,
    *,
    signal: int | None = None,
    cause: str | None = None,
    stderr: bytes = b"",
) -> Ending:
    return Ending(
        borg_code=code,
        signal=signal,
        cause=cause,
        duration=1.0,
        stdout=None,
        stderr_tail=stderr,
    )


def allowed(*paths: str) -> Allowed:
    return Allowed(
        verb="create",
        repository="/r",
        archive="a",
        grants=tuple(Grant(path=path, rule="paths[0]") for path in paths),
        members=(),
        staging=None,
        options=(),
        nonce=None,
        json=False,
        log_json=False,
        rule="allow[0]",
    )


def wrap_report(*, connected: bool, failure: tuple[int, str] | None) -> WrapReport:
    return WrapReport(connected=connected, bytes_to_peer=0, bytes_from_peer=0, failure=failure)


def found(
    end: Ending,
    report: WrapReport | None = None,
    paths: tuple[str, ...] = ("/srv",),
    lost: tuple[str, ...] = (),
    lockdown: str | None = None,
    **rules: bool,
) -> Finding:
    return finding(end, report, allowed(*paths), "luna", rules_with(**rules), lost, lockdown)


def rules_with(**given: bool) -> ClientRules:
    """A client's rules: the defaults, but for ``given``."""
    defaults = {key.name: key.default for key in CLIENT_KEYS}
    return ClientRules(**(defaults | given))  # type: ignore[arg-type]


def test_every_exit_code_of_borg() -> None:
    for code in range(256):
        end = found(ending(code, stderr=b"one\nlast words\n"))
        warning = code == 1 or 100 <= code <= 127
        assert end.exit == (0 if code == 0 else 1 if warning else 2)
        assert end.result == ("success" if code == 0 else "warning" if warning else "error")
        assert end.error == (None if end.exit < 2 else "last words")
        assert end.message is None  # borg has said it already


@pytest.mark.parametrize("number", [1, 9, 11, 15])
def test_a_signal_ends_in_an_error_that_says_so(number: int) -> None:
    end = found(ending(None, signal=number))
    assert (end.exit, end.result) == (2, "killed")
    assert end.message == f"borg was ended by signal {number}"


@pytest.mark.parametrize("code", [0, 1, 2, None])
def test_what_we_ended_is_never_a_success(code: int | None) -> None:
    end = found(ending(code, cause="the connection closed"))
    assert (end.exit, end.result) == (2, "killed")
    assert end.error == "the run was ended: the connection closed"


def test_a_run_ended_by_a_signal_names_the_lockdown_it_may_be_due_to() -> None:
    by_signal = ending(2, cause="signal 2")
    assert by_signal.is_by_signal()
    assert not ending(2, cause="the connection closed").is_by_signal()
    assert not ending(2).is_by_signal()
    assert found(by_signal).error == "the run was ended: signal 2"
    end = found(by_signal, lockdown="this host is locked down: break-in")
    assert (end.exit, end.result) == (2, "killed")
    assert end.error == "the run was ended: signal 2; this host is locked down: break-in"
    assert end.message == end.error


@pytest.mark.parametrize("code", [64, 69, 70, 71])
def test_a_wrap_that_never_connected_gives_the_code(code: int) -> None:
    report = wrap_report(connected=False, failure=(code, "what it said"))
    end = found(ending(2, stderr=b"Connection closed by remote host"), report)
    assert (end.exit, end.result, end.error) == (code, "error", "what it said")


def test_a_peer_that_went_in_the_middle_is_named_and_borg_too() -> None:
    report = WrapReport(
        connected=True, bytes_to_peer=9, bytes_from_peer=9, failure=(69, "the peer closed")
    )
    end = found(ending(2, stderr=b"BrokenPipeError: [Errno 32] Broken pipe\n"), report)
    assert (end.exit, end.message) == (2, "the peer closed")
    assert end.error == "the peer closed (borg: BrokenPipeError: [Errno 32] Broken pipe)"


def test_a_wrap_that_fails_once_it_is_connected_is_not_the_peer_s_fault() -> None:
    report = wrap_report(connected=True, failure=(71, "cannot start a thread"))
    end = found(ending(2, stderr=b"Connection closed by remote host.\n"), report)
    assert (end.exit, end.message) == (71, "cannot start a thread")


def test_a_peer_that_never_said_a_word_serves_nothing() -> None:
    report = wrap_report(connected=True, failure=(69, "the peer closed"))
    end = found(ending(2, stderr=b"Connection closed by remote host.\n"), report)
    assert end.exit == 69
    assert end.message is not None
    assert "start the listener" in end.message


TRACEBACK = b"""Remote Exception
Traceback (most recent call last):
  File "/usr/lib/python3/dist-packages/borg/remote.py", line 248, in serve
    res = f(**args)
OSError: [Errno 28] No space left on device

Platform: Linux vm 6.1
Borg: 1.4.5  Python: CPython 3.11.2
PID: 12  CWD: /
sys.argv: ['/usr/bin/borg', 'create']
SSH_ORIGINAL_COMMAND: None
"""


@pytest.mark.parametrize("prefix", [b"", b"Remote: ", b"Borg server: "])
def test_of_a_traceback_the_exception_is_recorded(prefix: bytes) -> None:
    tail = b"".join(prefix + line for line in TRACEBACK.splitlines(keepends=True))
    assert found(ending(2, stderr=tail)).error == "OSError: [Errno 28] No space left on device"


def test_a_self_test_that_found_no_room_is_no_bug_of_borg_s() -> None:
    said = (
        b"self test test_resize (borg.testsuite.hashindex) FAILED:\n"
        b"  File hashindex.pyx, line 119\n"
        b"OSError: [Errno 28] No space left on device\n\n"
        b"self test failed\nCould be a bug either in Borg, the package or your hardware.\n"
    )
    end = found(ending(2, stderr=said))
    assert end.message == (
        "borg's test of itself failed (OSError: [Errno 28] No space left on device); "
        "see that there is room on the disk of runtime.home, and memory"
    )
    assert (end.exit, end.error) == (2, end.message)


@pytest.mark.parametrize(
    ("said", "word"),
    [
        (b"Failed to create/acquire the lock /r/lock.exclusive (timeout).\n", "break-lock"),
        (
            b"Traceback (most recent call last):\n  File ...\nborg.locking.LockFailed: Failed to "
            b"create/acquire the lock /r/lock.exclusive ([Errno 13] Permission denied: '/r/l.tmp')."
            b"\n\nPlatform: Linux\nSSH_ORIGINAL_COMMAND: None\n",
            "could not be locked, and is not: borg.locking.LockFailed: Failed to create/acquire "
            "the lock /r/lock.exclusive ([Errno 13] Permission denied: '/r/l.tmp'); see owner",
        ),
        (b"passphrase supplied in BORG_PASSPHRASE, by BORG_PASSCOMMAND or", "is wrong"),
        (b"Passphrase supplied in BORG_PASSPHRASE, by BORG_PASSCOMMAND, or", "is wrong"),
    ],
)
def test_what_happens_to_everybody_is_said_in_a_line(said: bytes, word: str) -> None:
    end = found(ending(2, stderr=said))
    assert end.exit == 2
    assert end.message is not None
    assert word in end.message


def test_a_wrap_s_failure_does_not_unmake_a_success() -> None:
    # The control: a run that succeeded is not made a failure by what a wrap said.
    report = wrap_report(connected=False, failure=(69, "reset"))
    assert found(ending(0), report).exit == 0


@pytest.mark.parametrize(
    ("variable", "key"),
    [
        ("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "allow_unknown_repository"),
        ("BORG_RELOCATED_REPO_ACCESS_IS_OK", "allow_relocated_repository"),
    ],
)
def test_a_question_of_borgs_names_the_key(variable: str, key: str) -> None:
    said = f"no (from {variable})\nCache, or information obtained...\n".encode()
    end = found(ending(2, stderr=said))
    assert end.exit == 2
    assert end.message is not None
    where = "in the whitelist on the source, below [client.luna]"
    assert f"{where}, for one run: {key} = true" in end.message
    assert found(ending(0, stderr=said)).message is None


def test_a_question_answered_yes_is_not_what_failed() -> None:
    said = b"yes (from BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK)\nKeyError: 999\n"
    end = found(ending(2, stderr=said), allow_unknown_repository=True)
    assert end.message is None
    assert end.error == "KeyError: 999"


def plain(path: str) -> bytes:
    shown = path.encode("utf-8", "replace").decode()
    return f"{shown}: stat: [Errno 2] No such file or directory: {path!r}\n".encode()


def in_json(path: str) -> bytes:
    message = f"{path}: stat: [Errno 2] No such file or directory: {path!r}"
    line = {"type": "log_message", "time": 1.5, "message": message, "levelname": "WARNING"}
    return json.dumps(line).encode() + b"\n"


@pytest.mark.parametrize("code", [1, 107, 100])
@pytest.mark.parametrize("line_of", [plain, in_json])
@pytest.mark.parametrize("path", ["/srv", "/srv/", "/", "/srv/a b", "/srv/é", '/srv/"q"', "/s\\x"])
def test_a_root_that_borg_missed_is_an_error(code: int, line_of: object, path: str) -> None:
    assert callable(line_of)
    shown = path.rstrip("/") or "/"
    tail = b"first\n" + line_of(shown) + b"terminating with warning status\n"
    end = found(ending(code, stderr=tail), paths=("/other", path))
    assert (end.exit, end.result) == (2, "error")
    assert end.error is not None
    assert "is incomplete" in end.error
    assert ascii(path) in end.error


@pytest.mark.parametrize("line_of", [plain, in_json])
def test_a_file_below_a_root_that_vanished_is_a_warning(line_of: object) -> None:
    assert callable(line_of)
    tail = line_of("/srv/gone") + line_of("/srv2") + line_of('/srv/"/srv')
    end = found(ending(107, stderr=tail))
    assert (end.exit, end.result, end.error) == (1, "warning", None)


def test_a_root_no_longer_in_place_fails_even_a_success() -> None:
    end = found(ending(0), lost=("/srv",))
    assert (end.exit, end.result) == (2, "error")
    assert end.message is not None
    assert "'/srv'" in end.message


def test_the_last_line_is_cut_and_of_progress_the_last_state() -> None:
    assert found(ending(2, stderr=b"a\rb\rthe last\r\n\n")).error == "the last"
    assert found(ending(2, stderr=b"x" * 5000)).error == "x" * 500
    assert found(ending(2, stderr=b"\xff\xfe")).error == "\ufffd\ufffd"
    assert found(ending(2)).error is None
