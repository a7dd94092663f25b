"""Every request is on record: who, from where, with what key, what ran and how it ended."""

from __future__ import annotations

import os
import re
import subprocess
from datetime import UTC, datetime

import pytest

from tests.harness.peer import Peer
from tests.harness.site import Site

COMMON = ["time", "event", "seq", "session", "client", "key", "address", "port", "pid"]


def _fingerprint(peer: Peer) -> str:
    said = subprocess.run(
        ["ssh-keygen", "-l", "-f", "/dev/stdin"],
        input=peer.public_key,
        capture_output=True,
        text=True,
        check=True,
    )
    return said.stdout.split()[1]


def test_a_pull_leaves_start_and_complete(site: Site) -> None:
    data = site.source.tree()
    size = 1 << 20
    site.source.file(data / "file", os.urandom(size))
    site.allow(paths=[str(data)])
    repository = site.repository()
    before = datetime.now(UTC)
    result = site.pull(f"create --json -C lz4 {repository.path} a {data}", repository)
    after = datetime.now(UTC)
    assert result.exit == 0
    start, complete = site.source.audit()
    for record in (start, complete):
        assert list(record)[: len(COMMON)] == COMMON
        assert list(record)[-1] == "prev"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record["time"])
        told = datetime.fromisoformat(record["time"])
        assert before.timestamp() - 0.001 <= told.timestamp() <= after.timestamp()
        assert record["client"] == "luna"
        assert record["key"] == _fingerprint(site.peer())
        assert record["address"] == "127.0.0.1"
        assert isinstance(record["port"], int)
        assert record["verb"] == "create"
    assert start["session"] == complete["session"]
    assert start["pid"] == complete["pid"]
    assert start["argv"][0] == str(site.borg)
    assert start["argv"][-2:] == [f"ssh://luna{repository.path}::a", str(data)]
    assert (start["repository"], start["archive"], start["paths"]) == (
        str(repository.path),
        "a",
        [str(data)],
    )
    assert start["confinement"]["capability"] is site.source.programs.capable
    assert start["confinement"]["no_new_privs"] is True
    assert (complete["result"], complete["borg_code"], complete["exit"]) == ("success", 0, 0)
    assert complete["signal"] is None
    assert complete["error"] is None
    assert 0 < complete["duration"] < (after - before).total_seconds()
    assert complete["bytes_to_peer"] > size
    assert 0 < complete["bytes_from_peer"] < size
    assert complete["archive_stats"]["original_size"] >= size
    site.source.assert_chain()


def test_the_log_is_the_account_s_own(site: Site) -> None:
    site.allow(paths=["/data"])
    site.pull("nonsense")
    status = site.source.audit_file.stat()
    assert status.st_mode & 0o777 == 0o640
    assert status.st_uid == site.account.uid


@pytest.mark.parametrize(
    "line",
    [
        'create /r a "x',
        "\u202egnp.exe",
        '{"event":"complete"}',
        "a\\nb",
        "\ud800".encode(errors="surrogatepass").decode(errors="surrogateescape"),
    ],
)
def test_a_request_cannot_write_a_line_of_its_own(site: Site, line: str) -> None:
    site.allow(paths=["/data"])
    result = site.pull(line)
    assert result.exit in (64, 77)
    raw = site.source.audit_file.read_bytes()
    assert raw.count(b"\n") == 1
    assert raw.isascii()
    assert site.source.audit()[0]["request"] == line


def test_two_clients_of_one_account_are_told_apart(site: Site) -> None:
    site.source.write_whitelist({"luna": {"paths": ["/a"]}, "nova": {"paths": ["/b"]}})
    assert site.peer("luna").pull("create /r a /b").exit == 77
    assert site.peer("nova").pull("create /r a /a").exit == 77
    first, second = site.source.audit()
    assert (first["client"], first["key"]) == ("luna", _fingerprint(site.peer("luna")))
    assert (second["client"], second["key"]) == ("nova", _fingerprint(site.peer("nova")))
    site.source.assert_chain()


def test_the_admin_s_program_verifies_what_was_written(site: Site) -> None:
    data = site.source.tree()
    site.allow(paths=[str(data)])
    repository = site.repository()
    assert site.pull(f"create {repository.path} a {data}", repository).exit == 0
    assert site.pull("nonsense").exit == 64
    command = [str(site.source.programs.admin), "audit", "verify", str(site.source.audit_file)]
    sound = subprocess.run(command, capture_output=True, text=True, check=False)
    assert sound.returncode == 0, sound.stderr
    lines = site.source.audit_file.read_bytes().splitlines(keepends=True)
    site.source.audit_file.write_bytes(
        lines[0].replace(b'"create"', b'"CREATE"') + b"".join(lines[1:])
    )
    broken = subprocess.run(command, capture_output=True, text=True, check=False)
    assert broken.returncode != 0
    assert "1" in broken.stdout + broken.stderr
