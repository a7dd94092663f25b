"""A hostile source writes a little that this host's borg reads as gigabytes, or as hours of work.

A manifest of a few kilobytes unpacks to any size, an archive claims any number of files. borg here
works with all locks held, so no other backup comes into that repository meanwhile, and a host out
of memory ends what it likes. The borgs of this test are scripts that behave as borg then does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from borg_pull.errors import FailedError
from borg_pull.pull import contents
from borg_pull.pull import repository as module
from borg_pull.pull.config import Repository
from borg_pull.pull.repository import LocalRepository, RepositoryError
from borg_pull.pull.verify import _restore
from tests.harness import made_archive
from tests.pull.conftest import BackupServer, server

__all__ = ["server"]  # fixture

SECONDS = 20.0
"""More than any of it takes here, much less than what is asked for."""

Action = Callable[[LocalRepository], object]
ACTIONS: dict[str, Action] = {
    "run": lambda repository: repository.run(["list", "x"]),
    "stream": lambda repository: [*repository.stream(["list", "x"])],
}


def repository(tmp_path: Path, script: str) -> LocalRepository:
    """One whose borg is ``script``."""
    borg = tmp_path / "borg"
    borg.write_text(f"#!/usr/bin/python3\nimport signal, sys, time\n{script}\n")
    borg.chmod(0o755)
    keys = {"path": "/srv/borg", "borg": str(borg), "memory": "512 MiB", "lookup_deadline": "2s"}
    return LocalRepository(Repository.model_validate(keys), lambda: None)


@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
def test_memory_is_bounded(action: Action, tmp_path: Path) -> None:
    # What is wrong with it borg says with a traceback and 2; 1 is a warning.
    said = (
        "try: found = bytearray(1 << {bits})\n"
        "except MemoryError: sys.stderr.write('MemoryError\\n'); sys.exit(2)"
    )
    with pytest.raises(RepositoryError, match="wants more memory than 512"):
        action(repository(tmp_path, said.format(bits=30)))
    action(repository(tmp_path, said.format(bits=28)))


@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
def test_every_borg_ends(action: Action, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one that does not listen, because a library of it works."""
    monkeypatch.setattr(module, "_KILL_SECONDS", 1.0)
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    started = time.monotonic()
    with pytest.raises(RepositoryError, match="did not end within 2 s"):
        action(repository(tmp_path, deaf))
    assert time.monotonic() - started < SECONDS


@pytest.mark.parametrize(
    ("action", "script", "error"),
    [
        ("run", "while True: print('x' * 65536)", "says more than 64 MB"),
        ("stream", "while True: sys.stdout.write('x' * 65536)", "a line of 1048576 bytes"),
    ],
)
def test_what_it_says_is_bounded(action: str, script: str, error: str, tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=error):
        ACTIONS[action](repository(tmp_path, script))


@pytest.mark.builds("frozen")
def test_borg_itself_needs_less(server: BackupServer) -> None:
    """The least that can be configured is enough for a small repository."""
    server.repository(memory="512 MiB")
    made = LocalRepository(server.config().repository["repository"], lambda: None)
    assert made.archives() == []
    for words in (["check"], ["compact"]):
        made.run([*words, str(made.repository.path)])


@pytest.mark.builds("frozen")
def test_a_sample_is_no_larger_than_claimed(server: BackupServer) -> None:
    """A verification takes files by the size that the archive claims, as much as there is room."""
    made = server.repository()
    lie: dict[str, Any] = {"path": "a", "content": "x" * 200_000, "size": 5}
    honest: dict[str, Any] = {"path": "b", "content": "honest"}
    for name, items in (("lie", [lie, honest]), ("honest", [lie | {"size": 200_000}, honest])):
        made_archive.make(str(made.path), name, items)
        local = LocalRepository(server.config().repository["repository"], lambda: None)
        sample = [*contents.items(local, name, ())]
        assert sum(item.size for item in sample) == (11 if name == "lie" else 200_006)
        to = server.directory / name
        if name == "honest":
            _restore(local, name, sample, to)
            assert (to / "b").read_text() == "honest"
            continue
        with pytest.raises(FailedError, match="holds more than the 11 B"):
            _restore(local, name, sample, to)
