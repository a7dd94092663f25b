"""Retention against a source that was taken over.

Threat: the source deletes archives, through the connection that a pull gives it or with another
key of the repository. Append-only keeps that from being final; pruning and compacting by this
host would make it so. So nothing more is deleted, and people are told.
"""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.builds import FROZEN_12, FROZEN_14
from tests.harness.fixtures import SiteMaker
from tests.harness.peer import Repository
from tests.pull.conftest import BackupServer, backup_server
from tests.pull.test_commands import Command, borg_pull, program
from tests.pull.test_run import data_of

__all__ = ["borg_pull", "program"]


@pytest.fixture(params=[FROZEN_12, FROZEN_14], ids=["borg1.2", "borg1.4"])
def server(
    make_site: SiteMaker, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[BackupServer]:
    with backup_server(make_site(request.param), tmp_path) as made:
        yield made


@pytest.fixture
def told(server: BackupServer) -> Iterator[list[str]]:
    """What people are told, by a web hook."""
    messages: list[str] = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            messages.append(said["message"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook) as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        urls = server.directory / "urls"
        urls.write_text(f"json://127.0.0.1:{service.server_port}/\n")
        urls.chmod(0o600)
        server.document["notify"] = {"urls_file": str(urls)}
        yield messages
        service.shutdown()


def deletes(server: BackupServer, repository: Repository, name: str, *options: str) -> None:
    """The source's own borg deletes, through a `borg serve` with these options."""
    served = server.directory / "served"
    served.write_text(
        f"#!/bin/sh\nexec {server.site.borg} serve --restrict-to-repository {repository.path} "
        f"{' '.join(options)}\n"
    )
    served.chmod(0o755)
    subprocess.run(
        [server.site.borg, "delete", f"ssh://here{repository.path}::{name}"],
        env=repository.environment() | {"BORG_RSH": str(served)},
        check=True,
        capture_output=True,
    )


def segments(repository: Repository) -> dict[int, Path]:
    """The repository's log."""
    return {int(path.name): path for path in (repository.path / "data").glob("*/*")}


@pytest.mark.parametrize("append_only", [True, False], ids=["append-only", "not-append-only"])
def test_a_deletion_stops_retention_and_is_told(
    server: BackupServer, borg_pull: Command, told: list[str], *, append_only: bool
) -> None:
    data = data_of(server)
    repository = server.repository()
    retention = {"keep_last": 1}
    server.job(paths=[data], append_only=append_only)
    borg_pull("run", "job")
    os.truncate(f"{data}/file", (1 << 20) - 1)
    borg_pull("run", "job")
    before = segments(repository)
    first, second = repository.archives()
    deletes(server, repository, first, *(["--append-only"] if append_only else []))
    server.job(paths=[data], append_only=append_only, retention=retention)

    failed = borg_pull("run", "job", code=2)
    assert failed.stderr
    prune, create = server.ledger.runs("job", limit=2)
    assert (create.kind, create.outcome) == ("create", "success")
    assert (prune.kind, prune.outcome) == ("prune", "failure")
    error = str(prune.error)
    assert f"1 archives on record are missing from the repository: {first}" in error
    assert "nothing was deleted" in error
    (message,) = told
    assert message.startswith("job fails: job job: 1 archives on record are missing")
    assert second in repository.archives()
    assert "failing" in borg_pull("status", code=1).stdout
    # By hand it is no other; and a dry run says so, too.
    assert first in borg_pull("prune", "job", code=2).stderr
    assert first in borg_pull("prune", "job", "--dry-run", code=2).stderr
    assert len(repository.archives()) == 2
    assert told == [message], "once"

    if append_only:
        # As promised it can be had back: borg's log without what came after.
        assert all(path.exists() for path in before.values())
        copy = Repository(
            server.directory / "copy",
            repository.borg,
            server.directory / "copy-base",
            encryption="none",
            passphrase="",
        )
        shutil.copytree(repository.path, copy.path)
        for number, path in segments(copy).items():
            if number not in before:
                path.unlink()
        for kind in ("index", "hints", "integrity"):
            for path in copy.path.glob(f"{kind}.*"):
                path.unlink()
        assert copy.archives() == [first, second]

    # The control: a person says that it is all right, and all goes on.
    borg_pull("forget", "job", "--yes")
    borg_pull("run", "job")
    assert len(repository.archives()) == 1
    assert told[1:] == [told[-1]]
    assert told[-1].startswith("job is fine again")


def test_a_deletion_is_told_without_retention(
    server: BackupServer, borg_pull: Command, told: list[str]
) -> None:
    """Nobody prunes, so nobody would look, until a restore is wanted."""
    data = data_of(server)
    repository = server.repository()
    server.job(paths=[data], archive="old-{utcnow}")
    borg_pull("run", "job")
    server.job(paths=[data])
    borg_pull("run", "job")
    assert server.ledger.last("job", kind="lookup") is None, "the old name's is not looked for"
    old, first = repository.archives()
    deletes(server, repository, first, "--append-only")
    failed = borg_pull("run", "job", code=2)
    assert "job: lookup failed: job job: 1 archives on record are missing" in failed.stderr
    create = server.ledger.last("job")
    assert create is not None
    assert create.outcome == "success"
    (message,) = told
    assert message.startswith("job fails: job job: 1 archives on record are missing")
    assert "lookup failed" in borg_pull("status", code=1).stdout
    assert len(repository.archives()) == 2
    # The control: a person says that it is all right.
    assert old not in borg_pull("forget", "job", "--yes").stdout
    borg_pull("run", "job")
    borg_pull("status")
    looks = [run.outcome for run in server.ledger.runs("job") if run.kind == "lookup"]
    assert looks == ["success", "failure"], "on record is what changes"
    assert told[-1].startswith("job is fine again")
    assert old in repository.archives()


def test_a_check_is_due_whatever_came_of_the_pull(server: BackupServer) -> None:
    """Else a source that is away, or makes each pull fail, keeps damage here from being seen."""
    data_of(server)
    server.repository()
    server.job(paths=["/etc/shadow"], check={"schedule": "yearly"}, retention={"keep_last": 1})
    assert server.run() == "failure"
    assert [(run.kind, run.outcome) for run in server.ledger.runs("job")] == [
        ("check", "success"),
        ("create", "failure"),
    ]
    assert server.run() == "failure"
    assert len(server.ledger.runs("job")) == 3, "it is not due any more"
