"""AIO's configuration file: replaced whole or not at all, and no key but the target's differs."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from borg_pull.aio.configuration import AioConfiguration, Content, keys_of, shown
from borg_pull.errors import ConfigurationError, SystemRefusedError
from tests.harness.disk import Disk

FIRST = keys_of(host_location="/backup/first", remote_repo=None)
SECOND = keys_of(host_location=None, remote_repo="ssh://borg@far:22/aio")
OTHERS = {"a": [], "b": {}, "c": 1.5, "d": None, "e": "ü/\u2028", "f": True, "g": {"h": [1, "2"]}}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "configuration.json").write_text(json.dumps(OTHERS | FIRST))
    return tmp_path


def the(place: Path) -> AioConfiguration:
    return AioConfiguration(str(place / "configuration.json"))


def test_target_is_replaced(place: Path) -> None:
    assert the(place).replace_target(FIRST, SECOND)
    now = json.loads((place / "configuration.json").read_text())
    assert now == OTHERS | SECOND
    assert list(now) == list(OTHERS | FIRST)
    assert the(place).replace_target(SECOND, FIRST)
    assert the(place).read().values == OTHERS | FIRST


def test_key_that_was_not_there_is_not_there_again(place: Path) -> None:
    path = place / "configuration.json"
    path.write_text('{"borg_backup_host_location": "/backup/first"}')
    before = the(place).read().target
    assert the(place).replace_target(before, SECOND)
    assert the(place).replace_target(SECOND, before)
    assert json.loads(path.read_text()) == {"borg_backup_host_location": "/backup/first"}


def test_what_somebody_else_has_set_stays(place: Path) -> None:
    third = keys_of(host_location="/backup/third", remote_repo=None)
    before = (place / "configuration.json").read_bytes()
    assert not the(place).replace_target(third, SECOND)
    assert (place / "configuration.json").read_bytes() == before


@pytest.mark.needs_root
def test_owner_mode_and_attributes_are_kept(place: Path) -> None:
    path = place / "configuration.json"
    os.chown(path, 33, 33)
    path.chmod(0o640)
    subprocess.run(["setfacl", "-m", "u:1:r", path], check=True)
    the(place).replace_target(FIRST, SECOND)
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (33, 33, 0o640)
    listed = subprocess.run(
        ["getfacl", "-cn", path], check=True, capture_output=True, text=True
    ).stdout
    assert "user:1:r--" in listed


def test_rewritten_between_reading_and_replacing(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What AIO writes meanwhile is kept, and the target is replaced in that."""
    path = place / "configuration.json"
    read = AioConfiguration._read
    times: list[int] = []

    def read_and_have_it_rewritten(self: AioConfiguration, directory: int) -> Content:
        content = read(self, directory)
        if not times:
            times.append(1)
            path.write_text(json.dumps(OTHERS | FIRST | {"new": 1}))
        return content

    monkeypatch.setattr(AioConfiguration, "_read", read_and_have_it_rewritten)
    assert the(place).replace_target(FIRST, SECOND)
    assert json.loads(path.read_text()) == OTHERS | SECOND | {"new": 1}
    assert [entry.name for entry in place.iterdir()] == ["configuration.json"]


@pytest.mark.needs_root
@pytest.mark.parametrize("what", ["blocks", "inodes"])
def test_full_disk(tmp_path: Path, what: str) -> None:
    disk = Disk(tmp_path)
    try:
        path = tmp_path / "configuration.json"
        path.write_text(json.dumps(OTHERS | FIRST))
        disk.fill() if what == "blocks" else disk.take_inodes()
        before = path.read_bytes()
        with pytest.raises(SystemRefusedError, match="No space left on device"):
            the(tmp_path).replace_target(FIRST, SECOND)
        assert path.read_bytes() == before
        disk.empty()
        assert the(tmp_path).replace_target(FIRST, SECOND)
    finally:
        disk.unmount()


def test_draft_of_one_that_was_killed_is_removed(place: Path) -> None:
    (place / ".borg-pull-draft-0011223344556677").write_text("half")
    the(place).replace_target(FIRST, SECOND)
    assert [entry.name for entry in place.iterdir()] == ["configuration.json"]


def test_half_written_one_is_looked_at_again(place: Path) -> None:
    path = place / "configuration.json"
    whole = path.read_text()
    path.write_text(whole[:20])
    writer = threading.Timer(0.3, path.write_text, (whole,))
    writer.start()
    assert the(place).replace_target(FIRST, SECOND)
    writer.join()


@pytest.mark.parametrize(
    ("text", "set_up"),
    [("true", True), ("1", True), ('"1"', True), ("false", False), ("0", False), ('""', False)],
)
def test_whether_aio_is_set_up(place: Path, text: str, set_up: bool) -> None:
    (place / "configuration.json").write_text(f'{{"wasStartButtonClicked": {text}}}')
    assert the(place).read().is_set_up is set_up


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "is not JSON"),
        ("[]", "is not a JSON object"),
        ("{", "is not JSON"),
        ('{"a": NaN}', "is not JSON"),
        ('{"a": 1e999}', "is not JSON"),
        ('{"a": -1e999}', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        (" " * (5 << 20), "is larger than"),
    ],
)
def test_what_is_no_configuration(place: Path, text: str, fault: str) -> None:
    (place / "configuration.json").write_text(text)
    with pytest.raises(ConfigurationError, match=fault):
        the(place).replace_target(FIRST, SECOND)
    assert (place / "configuration.json").read_text() == text


def test_numbers_that_end_where_doubles_do(place: Path) -> None:
    """The largest is a number; what is larger is refused, and written by nobody."""
    path = place / "configuration.json"
    path.write_text('{"a": 1e308, "borg_backup_host_location": "/backup/first"}')
    assert the(place).replace_target(FIRST, SECOND)
    assert the(place).read().values["a"] == 1e308


def test_what_would_grow_too_large_is_not_written(place: Path) -> None:
    """Escaped as AIO writes it, it would be larger than what is read."""
    path = place / "configuration.json"
    text = json.dumps({"a": "é" * (1 << 20)} | FIRST, ensure_ascii=False)
    path.write_text(text)
    with pytest.raises(ConfigurationError, match="would become larger"):
        the(place).replace_target(FIRST, SECOND)
    assert path.read_text() == text
    assert [entry.name for entry in place.iterdir()] == ["configuration.json"]
    path.write_text(json.dumps({"a": "é" * (1 << 18)} | FIRST, ensure_ascii=False))
    assert the(place).replace_target(FIRST, SECOND)
    assert the(place).read().target == SECOND


def _link_to_it(place: Path) -> Path:
    (place / "elsewhere").mkdir()
    (place / "configuration.json").rename(place / "elsewhere/configuration.json")
    (place / "configuration.json").symlink_to("elsewhere/configuration.json")
    return place


def _link_above_it(place: Path) -> Path:
    (place / "link").symlink_to(".")
    return place / "link"


def _fifo(place: Path) -> Path:
    (place / "configuration.json").unlink()
    os.mkfifo(place / "configuration.json")
    return place


@pytest.mark.needs_root
def test_device_is_not_opened(place: Path) -> None:
    """Opening one may do something: this one makes a terminal. With the file for a control."""
    path = place / "configuration.json"
    opened: list[str] = []
    with watched(opened):
        the(place).read()
    assert opened == ["configuration.json", "/proc/self/fd"]
    path.unlink()
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(5, 2))
    del opened[:]
    with watched(opened), pytest.raises(ConfigurationError, match="not a regular file"):
        the(place).read()
    assert opened == ["configuration.json"]


@contextmanager
def watched(opened: list[str]) -> Iterator[None]:
    """Have ``opened`` hold what os.open is given; the first one only looks."""
    plain = os.open

    def noting(path: str, flags: int, *more: Any, **options: Any) -> int:
        if opened or options:
            assert bool(flags & os.O_PATH) is (path == "configuration.json")
            opened.append(path if "/proc" not in path else os.path.dirname(path))
        return plain(path, flags, *more, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("borg_pull.aio.configuration.os.open", noting)
        yield


def test_lease_on_it_keeps_nobody_waiting(place: Path) -> None:
    """Who holds one has the system keep others from opening the file, for most of a minute."""
    path = place / "configuration.json"
    script = (
        "import fcntl, signal, sys, time; signal.signal(signal.SIGIO, signal.SIG_IGN);"
        "file = open(sys.argv[1], 'r+'); fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK);"
        "print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        began = time.monotonic()
        with pytest.raises(ConfigurationError, match="cannot be used"):
            the(place).read()
        assert time.monotonic() - began < 5
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert the(place).read().target == FIRST


@pytest.mark.needs_root
def test_read_only_file_system(tmp_path: Path) -> None:
    """What is refused says what to do."""
    disk = Disk(tmp_path)
    try:
        (tmp_path / "configuration.json").write_text(json.dumps(OTHERS | FIRST))
        mount = ("/usr/bin/mount", "-o", "remount,ro", tmp_path)
        subprocess.run(mount, check=True)
        with pytest.raises(SystemRefusedError, match="Read-only file system") as caught:
            the(tmp_path).replace_target(FIRST, SECOND)
        assert "mount its file system writable" in str(caught.value.hint)
    finally:
        disk.unmount()


@pytest.mark.parametrize("plant", [_link_to_it, _link_above_it, _fifo])
def test_link_that_the_container_planted(place: Path, plant: Any) -> None:
    """Its directory belongs to an account inside a container: root follows nothing there."""
    with pytest.raises(ConfigurationError):
        the(plant(place)).replace_target(FIRST, SECOND)


def test_target_is_shown_without_credentials() -> None:
    assert shown(SECOND) == "ssh://***@far:22/aio"
    assert shown(FIRST) == "/backup/first"
    assert shown({}) is None
