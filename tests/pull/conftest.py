"""Fixtures of the backup server's side: a site's source, and a backup server that is ours whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from borg_pull.pull.batch import Batch
from borg_pull.pull.config import Config
from borg_pull.pull.ledger import Ledger
from borg_pull.pull.places import Places
from borg_pull.pull.pull import Task
from borg_pull.pull.stop import Stop
from tests.harness.builds import Build
from tests.harness.fixtures import SiteMaker
from tests.harness.peer import PASSPHRASE, Repository
from tests.harness.site import Site


@dataclass
class BackupServer:
    """A backup server that pulls from one site with the code under test."""

    site: Site
    directory: Path
    ledger: Ledger
    document: dict[str, Any]
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def can_mount(self) -> bool:
        """Debian's borg can, where the kernel can; borg 1.4 is built without llfuse here."""
        return Path("/dev/fuse").exists() and "borg1.2" in self.site.build.name

    def config(self) -> Config:
        """The configuration as it is now."""
        return Config.model_validate(self.document)

    def repository(self, name: str = "repository", **options: Any) -> Repository:
        """A new repository, entered in the configuration."""
        encryption = options.pop("encryption", "none")
        # The harness's are copies of one, id included; borg takes a second for the first, moved.
        is_first = not self.document["repository"]
        made = self.site.peer().repository(name, encryption=encryption, initialised=is_first)
        if not is_first:
            made.init()
        secret = self.directory / "passphrase"
        secret.write_text(PASSPHRASE + "\n")
        secret.chmod(0o600)
        self.document["repository"][name] = {
            "path": str(made.path),
            "borg": str(self.site.borg),
            "passphrase_file": str(secret),
            **options,
        }
        return made

    def job(self, name: str = "job", **keys: Any) -> None:
        """A job of the one source."""
        self.document["job"][name] = {"source": "source", "repository": "repository"} | keys

    def tasks(self, *names: str) -> list[Task]:
        """The jobs' tasks; all without a name."""
        config = self.config()
        return [
            Task(
                name,
                job,
                job.source,
                config.source[job.source],
                job.repository,
                config.repository[job.repository],
            )
            for name, job in config.job.items()
            if not names or name in names
        ]

    def batch(self, stop: Stop | None = None, workers: int = 4) -> Batch:
        """A batch that notes its events here."""
        config = self.config()
        places = Places(self.directory, self.directory / "runtime")
        places.prepare()
        return Batch(
            config,
            self.ledger,
            places,
            workers=workers,
            passphrase=lambda task: PASSPHRASE.encode(),
            emit=self.events.append,
            stop=stop or Stop(),
        )

    def run(self, *names: str) -> str:
        """Run jobs as one batch; the verdict."""
        return self.batch().run(self.tasks(*names))


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose path leaves room for sockets below it, as a test's own does not."""
    directory = Path(tempfile.mkdtemp(prefix="bp-", dir="/var/tmp"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def server(make_site: SiteMaker, build: Build, tmp_path: Path) -> Iterator[BackupServer]:
    """A backup server with one source, ``source``, and no job yet."""
    with backup_server(make_site(build), tmp_path) as made:
        yield made


@contextmanager
def backup_server(site: Site, tmp_path: Path) -> Iterator[BackupServer]:
    """A backup server with this one source, and no job yet."""
    peer = site.peer()
    # A test's own directory is too deep for a socket in it.
    directory = Path(tempfile.mkdtemp(prefix="bp-", dir="/var/tmp"))
    (directory / "known_hosts").write_text(site.server.known_hosts_line)
    ledger = Ledger(directory / "ledger.sqlite")
    document: dict[str, Any] = {
        "source": {
            "source": {
                "host": "127.0.0.1",
                "port": site.server.port,
                "user": site.account.name,
                "identity": str(peer._key),
            }
        },
        "repository": {},
        "job": {},
    }
    # Of this one alone: the repositories of several are copies of one, and borg remembers by id.
    with mock.patch.dict(os.environ, {"BORG_BASE_DIR": str(tmp_path / "borg")}):
        yield BackupServer(site=site, directory=directory, ledger=ledger, document=document)
    ledger.close()
    shutil.rmtree(directory)
