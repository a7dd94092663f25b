"""The wrap's report: what an honest wrap wrote is read, and nothing else is believed."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from borg_pull.source.report import WrapReport, look_at, parse, take

SERVED = "7 connected 0 0 0\n7 progress 10 20 0\n7 end 100 200 0 \n"


def report(
    connected: bool, to_peer: int, from_peer: int, failure: tuple[int, str] | None
) -> WrapReport:
    return WrapReport(
        connected=connected, bytes_to_peer=to_peer, bytes_from_peer=from_peer, failure=failure
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SERVED, report(True, 100, 200, None)),
        # Killed while data flowed: the last it told stands.
        ("7 connected 0 0 0\n7 progress 10 20 0\n", report(True, 10, 20, None)),
        ("7 end 0 0 69 no socket at /x\n", report(False, 0, 0, (69, "no socket at /x"))),
        ("7 connected 0 0 0\n7 end 5 6 69 lost\n", report(True, 5, 6, (69, "lost"))),
        # borg starts a second wrap when it reconnects.
        (SERVED + SERVED.replace("7 ", "8 "), report(True, 200, 400, None)),
        ("7 end 0 0 69\n", report(False, 0, 0, (69, ""))),
        ("", None),
        ("\n\n", None),
    ],
)
def test_what_an_honest_wrap_writes(text: str, expected: WrapReport | None) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    "line",
    [
        "7 end 1 2",
        "7 end x 2 0 ",
        "7 end -1 2 0 ",
        "7 end 1 ² 0 ",
        "7 end 1 ７ 0 ",
        "7 end 1_0 2 0 ",
        "7 end  1 2 0 ",
        f"7 end {'9' * 5000} 2 0 ",
        f"7 end 1 {'9' * 19} 0 ",
        f"7 end 1 2 {'9' * 5000} message",
        "garbage",
    ],
)
def test_a_malformed_line_is_as_if_it_were_not_there(line: str) -> None:
    assert parse(line) is None
    assert parse(SERVED + line + "\n") == parse(SERVED)


@pytest.mark.parametrize("code", [1, 2, 63, 73, 77, 128, 143, 255, 256, 320, 64 + 256])
def test_only_the_wraps_own_codes_are_passed_on(code: int) -> None:
    assert parse(f"7 end 0 0 {code} message") == report(False, 0, 0, None)


@pytest.mark.parametrize("code", [64, 69, 70, 71])
def test_the_wraps_own_codes_are_passed_on(code: int) -> None:
    assert parse(f"7 end 0 0 {code} message") == report(False, 0, 0, (code, "message"))


def test_a_message_is_cut_to_what_fits_a_record() -> None:
    found = parse("7 end 0 0 69 " + "x" * 1_000_000)
    assert found is not None
    assert found.failure == (69, "x" * 500)


@given(st.text())
@example("1 connected 0 0 0\u20282 end 0 0 69 x")
def test_any_text(text: str) -> None:
    found = parse(text)
    if found is not None:
        assert found.bytes_to_peer >= 0
        assert found.bytes_from_peer >= 0
        assert found.failure is None or found.failure[0] in (64, 69, 70, 71)


def test_taking_it_removes_it(tmp_path: Path) -> None:
    path = tmp_path / "report"
    path.write_text(SERVED)
    assert take(str(path)) == parse(SERVED)
    assert not path.exists()
    assert take(str(path)) is None


def test_looking_at_it_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "report"
    path.write_text(SERVED)
    assert look_at(str(path)) == parse(SERVED)
    assert path.exists()


@pytest.mark.parametrize("lines", [1, 4_000, 7_000, 100_000])
def test_the_end_of_a_long_run_counts(tmp_path: Path, lines: int) -> None:
    """Of 130 KiB, 260 KiB and more: the first lines and the last are read, whole ones only."""
    path = tmp_path / "report"
    progress = "".join(f"7 progress {number:015d} {number:015d} 0\n" for number in range(lines))
    path.write_text(f"7 connected 0 0 0\n{progress}7 end 123 456 69 lost\n")
    assert take(str(path)) == report(True, 123, 456, (69, "lost"))


def test_an_empty_report_is_none_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "report"
    path.touch()
    assert take(str(path)) is None
    assert not path.exists()


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "report"
    path.write_bytes(b"\xff\xfe\x00\n" + SERVED.encode())
    assert take(str(path)) == parse(SERVED)


@pytest.mark.parametrize("kind", ["fifo", "link", "directory", "socket", "missing"])
def test_what_is_planted_in_its_place_is_neither_read_nor_waited_for(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "r"
    target = tmp_path / "target"
    target.write_text(SERVED)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(target)
    elif kind == "directory":
        path.mkdir()
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    assert look_at(str(path)) is None
    assert take(str(path)) is None
    assert target.read_text() == SERVED
