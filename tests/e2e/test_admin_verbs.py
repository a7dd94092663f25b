"""What the role admin has borg do: break a lock, change a passphrase. Each takes its switch.

Threat: a new passphrase is seen by others than borg, in its arguments, in a log, in a record, or in
the environment of a process of the same account.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.harness.peer import PASSPHRASE, Repository
from tests.harness.site import Site
from tests.harness.wait import until

pytestmark = pytest.mark.builds("frozen")

NEW = "a new: passphrase 'with' \"$signs\" ü"
SENT = f"{PASSPHRASE}\n{NEW}\n".encode()


def allow(site: Site, *switches: str, confine: str = "auto", **client: object) -> None:
    keys = {"role": "admin", "allow": ["create", "list"], "allow_unknown_repository": True}
    site.source.write_whitelist(
        {"luna": keys | client},
        features=dict.fromkeys(switches, True),
        confine={
            "landlock": confine,
            "also_readable": [str(path) for path in site.source.programs.loads],
        },
    )


def lock(repository: Repository) -> Path:
    """What a borg leaves that died with the lock, on a host that is no more."""
    held = repository.path / "lock.exclusive"
    held.mkdir()
    (held / "gone@1234567890.99999-0").touch()
    roster = '{"exclusive": [["gone@1234567890", 99999, 0]]}'
    (repository.path / "lock.roster").write_text(roster)
    return held


def test_break_lock(site: Site) -> None:
    allow(site, "enable_admin", "enable_break_lock")
    repository = site.repository()
    held = lock(repository)
    result = site.pull(f"break-lock {repository.path}", repository)
    assert (result.exit, result.complaints) == (0, "")
    assert not held.exists()
    start, complete = site.source.audit()
    assert (start["verb"], complete["result"]) == ("break-lock", "success")
    assert start["confinement"]["capability"] is False
    data = site.source.tree()
    allow(site, paths=[str(data)])
    assert site.pull(f"create {repository.path} a {data}", repository).exit == 0


@pytest.mark.builds("one")
def test_break_lock_keeps_to_the_repositories(site: Site) -> None:
    allow(site, "enable_admin", "enable_break_lock", repositories=["/srv/other"])
    repository = site.repository()
    held = lock(repository)
    result = site.pull(f"break-lock {repository.path}", repository)
    assert result.exit == 77
    assert held.exists()


@pytest.mark.parametrize("encryption", ["repokey", "keyfile-blake2"])
def test_change_passphrase(site: Site, encryption: str) -> None:
    allow(
        site,
        "enable_admin",
        "enable_passphrase_change",
        passphrase_stdin=True,
        allow=["init", "list"],
        encryption=[encryption],
    )
    repository = site.peer().repository(encryption=encryption, initialised=False)
    made = site.pull(
        f"init {repository.path} -e {encryption}", repository, stdin=f"{PASSPHRASE}\n".encode()
    )
    assert made.exit == 0, made.errors
    result = site.pull(f"change-passphrase {repository.path}", repository, stdin=SENT)
    assert result.exit == 0, result.errors
    for passphrase, expected in ((NEW, 0), (PASSPHRASE, 2)):
        listed = site.pull(f"list {repository.path}", repository, stdin=f"{passphrase}\n".encode())
        assert listed.exit == expected, listed.errors
    said = result.stdout + result.stderr + site.source.audit_file.read_bytes()
    assert NEW.encode() not in said
    assert NEW.encode("ascii", "backslashreplace") not in said
    assert b"a new: passphrase" not in said
    for path in site.source.home.rglob("*"):
        assert not path.is_file() or b"a new: passphrase" not in path.read_bytes(), path


@pytest.mark.builds("one")
@pytest.mark.parametrize(
    ("stdin", "said"),
    [
        (f"{PASSPHRASE}\n".encode(), "this client must send its new passphrase"),
        (f"{PASSPHRASE}\n\n".encode(), "this client must send its new passphrase"),
        (f"{PASSPHRASE}\na\0b\n".encode(), "the new passphrase has a NUL"),
        (f"{PASSPHRASE}\n\xff\n".encode("latin-1"), "passphrase is not UTF-8"),
    ],
)
def test_without_a_new_one_that_is_fit(site: Site, stdin: bytes, said: str) -> None:
    allow(site, "enable_admin", "enable_passphrase_change", passphrase_stdin=True)
    repository = site.repository(encryption="repokey")
    result = site.pull(f"change-passphrase {repository.path}", repository, stdin=stdin)
    assert result.exit == 64
    assert said in result.errors


@pytest.mark.builds("one")
def test_not_where_runs_of_borg_see_each_other(site: Site) -> None:
    allow(site, "enable_admin", "enable_passphrase_change", confine="off", passphrase_stdin=True)
    repository = site.repository(encryption="repokey")
    result = site.pull(f"change-passphrase {repository.path}", repository, stdin=SENT)
    assert result.exit == 71
    assert "keep runs of borg apart" in result.errors


@pytest.mark.builds("one")
def test_not_by_a_client_that_is_not_to_know_it(site: Site) -> None:
    """Threat: the passphrase rests on the source to be kept from the client; by choosing a new
    one the client would know it."""
    secret = site.source.secret("passphrase", PASSPHRASE + "\n")
    allow(site, "enable_admin", "enable_passphrase_change", passphrase_file=str(secret))
    repository = site.repository(encryption="repokey")
    result = site.pull(
        f"change-passphrase {repository.path}", repository, stdin=f"{NEW}\n".encode()
    )
    assert result.exit == 77
    assert "does not send the passphrase" in result.errors


SPY = """
import sys
with open(f"/proc/{sys.argv[1]}/environ", "rb") as file:
    print(file.read())
"""


@pytest.mark.needs_root
@pytest.mark.builds("one")
def test_who_sees_the_new_one_while_borg_runs(site: Site) -> None:
    """In no argument of any process; in an environment that other accounts cannot read."""
    allow(site, "enable_admin", "enable_passphrase_change", passphrase_stdin=True)
    repository = site.repository(encryption="repokey")
    with site.peer().listening(repository, hold_after=0) as listener:
        pull = site.peer().start(f"change-passphrase {repository.path}", listener, stdin=SENT)
        borg = pull.running("change-passphrase")
        listener.held()
        environ = Path(f"/proc/{borg.pid}/environ")
        seen = environ.read_bytes  # by root
        until(lambda: NEW.encode() in seen(), seconds=20, what="borg's environment")
        for process in site.source.processes():
            assert NEW not in process.command
        stranger = subprocess.run(
            ["/usr/bin/python3", "-I", "-c", SPY, str(borg.pid)],
            user=65534,
            group=65534,
            extra_groups=[],
            capture_output=True,
            text=True,
            check=False,
        )
        assert stranger.returncode != 0
        assert "PermissionError" in stranger.stderr
        listener.release()
        assert pull.wait().exit == 0
