"""A repository that cannot be used is said to be just that, with owner and mode.

Threat: whoever reads "is locked, run borg break-lock" of a repository that merely belongs to
another account breaks the lock of a borg that is writing to it.
"""

from __future__ import annotations

import json
import os
import pwd
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from borg_pull.findings import Findings
from borg_pull.pull import doctor
from borg_pull.pull.config import Repository
from borg_pull.pull.obstacles import AccessError, access_fault, holders, lock_fault
from borg_pull.pull.repository import LocalRepository, RepositoryError
from tests.pull.conftest import BackupServer
from tests.pull.test_run import data_of, last_error

pytestmark = [pytest.mark.needs_root, pytest.mark.builds("frozen")]

NOBODY = pwd.getpwnam("nobody")


def as_nobody(act: Callable[[], None]) -> None:
    """Do it as an account that owns nothing; raises what that raises."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(NOBODY.pw_gid, NOBODY.pw_gid, NOBODY.pw_gid)
            os.setresuid(NOBODY.pw_uid, NOBODY.pw_uid, NOBODY.pw_uid)
            act()
            code = 0
        finally:
            traceback.print_exc()
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


def made(short_path: Path, mode: int) -> Path:
    short_path.chmod(0o755)
    repository = short_path / "r"
    for directory in (repository, repository / "data"):
        directory.mkdir()
        directory.chmod(mode)
    (repository / "config").write_text("[repository]\n")
    return repository


@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_the_owner_is_named(short_path: Path, mode: int) -> None:
    repository = made(short_path, mode)
    assert access_fault(repository) is None

    def look() -> None:
        fault = access_fault(repository)
        assert fault is not None
        assert fault.line() == (
            f"{repository} belongs to root, with mode {mode:04o}: this account, nobody, may not "
            "read and write it, or its disk is read-only; if the repository is this account's: "
            f"chown -R nobody {repository}"
        )

    as_nobody(look)


def test_what_is_not_there_is_none_of_it(tmp_path: Path) -> None:
    assert access_fault(tmp_path / "none") is None


def test_a_lock_is_one_only_if_there_is_one(tmp_path: Path) -> None:
    timeout = f"Failed to create/acquire the lock {tmp_path}/lock.exclusive (timeout)."
    other = "Failed to create/acquire the lock /root/.cache/borg/1/lock.exclusive (timeout)."
    denied = timeout.replace("timeout", "[Errno 13] Permission denied: '/x'")
    assert lock_fault(tmp_path, [denied]) is None
    assert lock_fault(tmp_path, [other]) is None
    found = lock_fault(tmp_path, [timeout])
    assert found is not None
    assert found.line() == (
        f"repository {tmp_path} is locked; if nothing uses it any more: borg break-lock {tmp_path}"
    )
    (tmp_path / "lock.roster").write_text(json.dumps({"shared": [["h@1", 7, 0]], "exclusive": []}))
    assert holders(tmp_path) == ["h@1.7-0"]
    (tmp_path / "lock.exclusive").mkdir()
    (tmp_path / "lock.exclusive/h@1.8-0").touch()
    found = lock_fault(tmp_path, [timeout])
    assert found is not None
    assert f"{tmp_path} is locked by h@1.8-0" in found.message


def test_doctor_says_so_and_goes_on(short_path: Path) -> None:
    repository = made(short_path, 0o700)
    above = Repository(path=repository / "data/below", borg=Path("/usr/bin/borg"))
    entry = Repository(path=repository, borg=Path("/usr/bin/borg"))

    def look() -> None:
        findings = Findings()
        doctor._look_at_repository(findings, "r", entry)
        doctor._look_at_repository(findings, "above", above)
        said = [one.found for one in findings.found if one.code == "repository.writable"]
        assert len(said) == 2, findings
        assert said[0].startswith(f"{repository} belongs to root"), said
        assert said[1].startswith(f"{above.path} is not within reach of this account"), said

    as_nobody(look)


def test_a_run_says_so_before_the_source_is_asked(
    server: BackupServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.repository()
    server.job(paths=[data_of(server)])
    fault = AccessError("it belongs to root")
    monkeypatch.setattr("borg_pull.pull.obstacles.access_fault", lambda _path: fault)
    assert server.run() == "failure"
    assert last_error(server) == "it belongs to root"
    assert server.site.source.audit(verb="create") == []
    with pytest.raises(AccessError):
        LocalRepository(server.config().repository["repository"], lambda: None).check("list", 2, "")


def test_borg_s_last_words_are_those_of_the_exception(server: BackupServer) -> None:
    server.repository()
    local = LocalRepository(server.config().repository["repository"], lambda: None)
    with pytest.raises(RepositoryError) as failed:
        local.check(
            "list",
            2,
            "Traceback:\n  x\nPermissionError: no\n\nPID: 1\nSSH_ORIGINAL_COMMAND: None\n",
        )
    assert failed.value.message.endswith(": PermissionError: no")
