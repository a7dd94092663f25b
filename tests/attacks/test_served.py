"""A hostile source talks to its ``borg serve`` in ways that borg's client does not.

Append-only keeps it from deleting, not from writing another key into the repository's config: the
archives would be lost with the old one. And what ``borg serve`` says of nonsense is as long as the
nonsense. The borgs of this test do both unasked.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from borg_pull.pull import log as module
from borg_pull.pull.config import Repository
from borg_pull.pull.log import Log
from borg_pull.pull.serve import Serving
from tests.harness.builds import FROZEN_12
from tests.harness.fixtures import SiteMaker
from tests.harness.wait import until
from tests.pull.conftest import backup_server, short_path
from tests.pull.test_run import data_of

__all__ = ["short_path"]  # fixture

CONFIG = "[repository]\nid = 1\nkey = of the archives\n"


def served(directory: Path, script: str) -> Serving:
    """What is left of a connection to a ``borg serve`` that is ``script``."""
    repository, runtime = directory / "repository", directory / "runtime"
    for path in (repository, runtime):
        path.mkdir(exist_ok=True)
    (repository / "config").write_text(CONFIG)
    (repository / "config").chmod(0o640)
    borg = directory / "borg"
    borg.write_text(f"#!/bin/sh\ncd {repository}\n{script}\n")
    borg.chmod(0o755)
    entry = Repository.model_validate({"path": str(repository), "borg": str(borg)})
    with (
        Log(directory / "log") as log,
        Serving(entry, runtime, log, append_only=True) as serving,
        socket.socket(socket.AF_UNIX) as connection,
    ):
        connection.connect(str(serving.path))
        assert serving.accept(os.getpid())
        connection.recv(1)
    assert [path.name for path in repository.glob("config*")] == ["config"]
    assert (repository / "config").read_text() == CONFIG
    assert (repository / "config").stat().st_mode & 0o777 == 0o640
    return serving


def test_the_key_is_put_back(short_path: Path) -> None:
    changed = served(short_path, "sed -i 's/^key.*/key = of the attacker/' config")
    assert changed.config_fault is not None
    assert "as before again" in changed.config_fault
    assert served(short_path, "rm config").config_fault is not None
    assert served(short_path, "touch data").config_fault is None


def test_its_words_are_bounded(short_path: Path) -> None:
    served(short_path, "echo borg-pull: all is well >&2; yes Traceback | head -c 40000000 >&2")
    text = (short_path / "log").read_bytes()
    assert len(text) <= module.LIMIT + 1000
    assert text.startswith(b"? borg-pull: all is well\nTraceback\n")
    assert text.endswith(b"which is not kept\n")


def test_a_pull_that_changes_the_key_fails(make_site: SiteMaker, tmp_path: Path) -> None:
    with backup_server(make_site(FROZEN_12), tmp_path) as server:
        repository = server.repository()
        server.job(paths=[data_of(server)])
        assert server.run() == "success", server.events
        config = repository.path / "config"
        before = config.read_bytes()
        evil = server.directory / "evil"
        evil.write_text(f'#!/bin/sh\n/usr/bin/borg "$@"\n[ $1 != serve ] || echo >>{config}\n')
        evil.chmod(0o755)
        server.document["repository"]["repository"]["borg"] = str(evil)
        assert server.run() == "failure"
        (run,) = server.ledger.runs(limit=1)
        assert "changed the repository's config" in (run.error or "")
        assert config.read_bytes() == before
        server.document["repository"]["repository"]["borg"] = "/usr/bin/borg"
        # The archive is there already that a run of the same second would make.
        until(lambda: int(time.time()) > run.started.timestamp() + 2, seconds=9, what="a second")
        assert server.run() == "success", server.events
