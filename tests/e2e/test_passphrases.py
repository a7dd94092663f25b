"""A passphrase reaches borg from a file, a command or the peer, and stands nowhere to be read."""

from __future__ import annotations

import os
import shlex

import pytest

from tests.harness import processes
from tests.harness.peer import PASSPHRASE
from tests.harness.site import Site

SOURCES = ("file", "command", "stdin")


def _allow(site: Site, source: str, passphrase: str, data: object) -> bytes | None:
    """Configure ``source``; what the peer has to send."""
    stored = site.source.secret("passphrase", passphrase + "\nsecond line\n")
    keys: dict[str, object] = {
        "file": {"passphrase_file": str(stored)},
        "command": {"passcommand": f"/bin/cat {shlex.quote(str(stored))}"},
        "stdin": {"passphrase_stdin": True},
    }
    site.allow(paths=[str(data)], **keys[source])  # type: ignore[arg-type]
    return passphrase.encode() + b"\nleft alone\n" if source == "stdin" else None


@pytest.mark.parametrize("source", SOURCES)
def test_the_right_passphrase_opens(site: Site, source: str) -> None:
    data = site.source.tree()
    repository = site.repository(encryption="repokey")
    stdin = _allow(site, source, PASSPHRASE, data)
    result = site.pull(f"create {repository.path} a {data}", repository, stdin=stdin)
    assert (result.exit, result.complaints) == (0, "")
    assert repository.archives() == ["a"]


@pytest.mark.parametrize("source", SOURCES)
def test_a_wrong_passphrase_fails_and_does_not_ask(site: Site, source: str) -> None:
    data = site.source.tree()
    repository = site.repository(encryption="repokey")
    stdin = _allow(site, source, "wrong", data)
    result = site.pull(f"create {repository.path} a {data}", repository, stdin=stdin)
    assert result.exit == 2
    assert "passphrase" in result.errors.lower()
    assert repository.archives() == []


def test_no_passphrase_fails_and_does_not_ask(site: Site) -> None:
    data = site.source.tree()
    repository = site.repository(encryption="repokey")
    site.allow(paths=[str(data)])
    result = site.pull(f"create {repository.path} a {data}", repository)
    assert result.exit == 2
    assert repository.archives() == []


def test_a_client_that_must_send_one_and_does_not(site: Site) -> None:
    data = site.source.tree()
    repository = site.repository(encryption="repokey")
    site.allow(paths=[str(data)], passphrase_stdin=True)
    result = site.pull(f"create {repository.path} a {data}", repository)
    assert result.exit == 64
    assert "this client must send its passphrase" in result.errors
    (refused,) = site.source.audit()
    assert (refused["event"], refused["exit"]) == ("refused", 64)


@pytest.mark.parametrize(
    "keys",
    [
        {"passphrase_file": "/nonexistent/passphrase"},
        {"passcommand": "/bin/false"},
        {"passcommand": "/nonexistent/program"},
        {"passcommand": "relative"},
    ],
)
def test_a_source_that_yields_none_is_a_fault_of_the_configuration(
    site: Site, keys: dict[str, object]
) -> None:
    data = site.source.tree()
    repository = site.repository(encryption="repokey")
    site.allow(paths=[str(data)], **keys)
    result = site.pull(f"create {repository.path} a {data}", repository)
    assert result.exit == 78
    assert result.errors.startswith("borg-pull-source: ")
    assert result.errors.count("\n") == 1
    assert [record["exit"] for record in site.source.audit()] == [78]


@pytest.mark.needs_root
@pytest.mark.builds("frozen")
def test_a_passphrase_file_others_can_read_is_not_used(site: Site) -> None:
    data = site.source.tree()
    repository = site.repository(encryption="repokey")
    _allow(site, "file", PASSPHRASE, data)
    (site.source.directory / "passphrase").chmod(0o644)
    result = site.pull(f"create {repository.path} a {data}", repository)
    assert result.exit == 78
    assert "can be read by others" in result.errors


@pytest.mark.parametrize("source", SOURCES)
def test_it_stands_in_no_argv_environment_or_record(site: Site, source: str) -> None:
    data = site.source.tree()
    site.source.file(data / "file", os.urandom(1 << 20))
    repository = site.repository(encryption="repokey")
    stdin = _allow(site, source, PASSPHRASE, data)
    secret = PASSPHRASE.encode()
    peer = site.peer()
    with peer.listening(repository, hold_after=300_000) as listener:
        pull = peer.start(f"create {repository.path} a {data}", listener, stdin=stdin)
        listener.held()
        running = pull.source_processes()
        assert any("create" in process.command for process in running)
        for process in running:
            assert PASSPHRASE not in process.command
            assert secret not in b"".join(processes.environment(process.pid).values())
        listener.release()
        result = pull.wait()
    assert (result.exit, result.complaints) == (0, "")
    for path in site.source.home.rglob("*"):
        if path.is_file():
            assert secret not in path.read_bytes(), path
