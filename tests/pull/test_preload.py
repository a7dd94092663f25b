"""A look-up whose borg was loaded before it was needed answers like any other."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from borg_pull.pull.repository import LocalRepository, RepositoryError
from tests.harness import processes
from tests.harness.peer import PASSPHRASE
from tests.harness.wait import until
from tests.pull.conftest import BackupServer
from tests.pull.test_run import data_of

pytestmark = pytest.mark.builds("one")


def pulled(server: BackupServer) -> LocalRepository:
    """A repository with the archive ``one``."""
    server.repository()
    server.job(paths=[data_of(server)], archive="one")
    assert server.run() == "success"
    return local(server)


def local(server: BackupServer) -> LocalRepository:
    repository = server.config().repository["repository"]
    return LocalRepository(repository, PASSPHRASE.encode)


def waiting() -> list[processes.Process]:
    """The borgs that wait for a word of this process."""
    return [one for one in processes.descendants(os.getpid()) if "os.read(0, 1)" in one.command]


def test_what_was_expected_is_found(server: BackupServer) -> None:
    repository = pulled(server)
    repository.expect("one")
    assert len(waiting()) == 1
    (archive,) = repository.archives("one", opened=True)
    assert archive.name == "one"
    assert waiting() == []
    assert [archive] == repository.archives("one", opened=True), "asked anew"
    assert waiting() == []


def test_another_than_expected_is_found(server: BackupServer) -> None:
    repository = pulled(server)
    repository.expect("two")
    assert len(repository.archives("one", opened=True)) == 1
    assert len(waiting()) == 1
    repository.dismiss()
    assert waiting() == []
    repository.dismiss()


def test_a_borg_that_is_no_script_is_not_waited_for(server: BackupServer, tmp_path: Path) -> None:
    wrapper = tmp_path / "wrapper"
    wrapper.write_text(f'#!/bin/sh\nexec {server.site.borg} "$@"\n')
    wrapper.chmod(0o755)
    pulled(server)
    server.document["repository"]["repository"]["borg"] = str(wrapper)
    repository = local(server)
    repository.expect("one")
    assert waiting() == []
    assert len(repository.archives("one", opened=True)) == 1


def test_a_fault_is_told_when_it_is_asked_in_earnest(server: BackupServer) -> None:
    repository = pulled(server)
    Path(server.document["repository"]["repository"]["path"]).rename(server.directory / "moved")
    repository.expect("one")
    with pytest.raises(RepositoryError, match="does not exist"):
        repository.archives("one", opened=True)


def test_killed_while_it_waits_is_a_fault(server: BackupServer) -> None:
    repository = pulled(server)
    repository.expect("one")
    (ready,) = waiting()
    ready.send(signal.SIGKILL)
    until(lambda: not ready.alive(), seconds=10, what="its end")
    with pytest.raises(RepositoryError):
        repository.archives("one", opened=True)
