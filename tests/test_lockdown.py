"""The file ``lockdown`` beside the configuration: whatever stands there locks."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from borg_pull.lockdown import MAX_REASON, file_beside, read, reason_of

TEXT = "since: 2026-11-21T00:17:08Z\nby: ann\nreason: key of luna leaked\n"
LINE = "locked down since 2026-11-21T00:17:08Z by ann: key of luna leaked"


@pytest.fixture
def config(tmp_path: Path) -> str:
    return str(tmp_path / "config.toml")


@pytest.fixture
def file(config: str) -> Path:
    return Path(file_beside(config))


def test_without_the_file_nothing_is_locked(config: str) -> None:
    assert reason_of(config) is None


def test_what_a_refused_request_is_told(config: str, file: Path) -> None:
    file.write_text(TEXT)
    assert reason_of(config) == LINE


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "locked down"),
        ("anything at all", "locked down"),
        ("reason: \nby: \n", "locked down"),
        ("reason: a: b\n", "locked down: a: b"),
        ("by: ann\n", "locked down by ann"),
        (TEXT.replace("\n", "\n\n"), LINE),
        (TEXT.rstrip("\n"), LINE),
    ],
)
def test_any_content_locks(config: str, file: Path, text: str, line: str) -> None:
    file.write_text(text)
    assert reason_of(config) == line


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"reason: a\x1b[2J\rb\x00\n", "locked down: a\\x1b[2J\\rb\\x00"),
        ("reason: é\u202e\u2028x\n".encode(), "locked down: é\\u202e\\u2028x"),
        (b"reason: caf\xe9\n", "locked down: caf�"),
    ],
)
def test_no_content_reaches_a_terminal_raw(
    config: str, file: Path, content: bytes, line: str
) -> None:
    file.write_bytes(content)
    assert reason_of(config) == line


def test_no_content_is_too_long(config: str, file: Path) -> None:
    file.write_text("reason: " + "x" * 1_000_000)
    assert reason_of(config) == "locked down: " + "x" * MAX_REASON


def _directory(file: Path) -> None:
    file.mkdir()


def _fifo(file: Path) -> None:
    os.mkfifo(file)


def _link(file: Path) -> None:
    file.symlink_to("/nonexistent")


def _socket(file: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(file))


@pytest.mark.parametrize("make", [_directory, _fifo, _link, _socket])
def test_whatever_stands_there_locks(
    config: str, file: Path, make: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)  # the path of a socket is short
    assert callable(make)
    make(Path(file.name))
    said = reason_of(config)
    assert said is not None
    assert said.startswith("locked down")


def test_what_cannot_be_read_locks(
    config: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of descriptors, of memory, of rights: none of it opens the host."""
    file.write_text(TEXT)

    def refuses(*_arguments: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("borg_pull.lockdown.os.open", refuses)
    assert reason_of(config) == ("locked down for a reason that cannot be read: permission denied")


def test_a_configuration_in_the_working_directory(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(TEXT)
    monkeypatch.chdir(file.parent)
    assert reason_of("config.toml") == LINE


def test_what_the_admin_is_shown(config: str, file: Path) -> None:
    file.write_text(TEXT)
    found = read(config)
    assert found is not None
    assert (found.since, found.by, found.reason, found.fault) == (
        "2026-11-21T00:17:08Z",
        "ann",
        "key of luna leaked",
        None,
    )
