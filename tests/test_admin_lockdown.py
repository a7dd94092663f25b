"""``borg-pull-admin lockdown``: on, off and status; who is left running is for tests/e2e.

Whatever goes wrong leaves the host locked, and root leaves nothing in the account's log directory
that the account could not write to.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from borg_pull import audit
from borg_pull.admin import lockdown
from borg_pull.admin.audit import verify_files
from borg_pull.lockdown import MAX_REASON, Lockdown, reason_of
from tests.admin_host import Host
from tests.admin_runs import run, start
from tests.harness.site import Installations
from tests.harness.workplace import Account

REASON = "key of luna leaked"


@pytest.fixture
def host(installations: Installations) -> Iterator[Host]:
    account = installations.take_account()
    yield Host(installations, account)
    installations.return_account(account)


def test_on_and_off(host: Host) -> None:
    assert host.status()["locked"] is False
    answer = host.lockdown("on", "--reason", REASON, "--by", "ann")
    assert (answer.exit, answer.stderr) == (0, "")
    since = host.status()["since"]
    assert answer.stdout.splitlines() == [
        "locked down: every request is refused",
        f"since       {since}",
        "by          ann",
        f"reason      {REASON}",
    ]
    assert reason_of(str(host.config)) == f"locked down since {since} by ann: {REASON}"
    status = host.file.stat()
    assert (status.st_uid, status.st_mode & 0o7777) == (os.geteuid(), 0o644)
    assert host.lockdown("status").exit == 75
    answer = host.lockdown("off", "--by", "bob")
    assert (answer.exit, answer.stdout) == (0, "no longer locked down: requests are served\n")
    assert host.lockdown("status").exit == 0
    on, off = host.records()
    own = {"session": on["session"], "pid": os.getpid(), "by": "ann", "was_locked": False}
    assert own.items() <= on.items()
    assert {"reason": REASON, "since": since, "by": "bob"}.items() <= off.items()
    for record, event in ((on, "lockdown_on"), (off, "lockdown_off")):
        assert record["event"] == event
        assert [record[name] for name in ("client", "key", "address", "port")] == [None] * 4
    assert sorted(path.name for path in host.directory.iterdir()) == ["config.toml", "home", "run"]


@pytest.mark.needs_root
@pytest.mark.parametrize("umask", [0, 0o077])
def test_the_log_is_the_accounts(host: Host, umask: int) -> None:
    before = os.umask(umask)
    try:
        assert host.lockdown("on").exit == 0
    finally:
        os.umask(before)
    assert host.file.stat().st_mode & 0o7777 == 0o644
    for path in (host.log, Path(audit.sidecar_of(str(host.log)))):
        status = path.stat()
        assert (status.st_uid, status.st_gid) == (host.account.uid, host.account.gid)
        assert status.st_mode & 0o022 == 0
    _append_as(host.account, host.log)
    assert host.lockdown("off").exit == 0
    assert host.events() == ["lockdown_on", "start", "lockdown_off"]
    verdict = verify_files([str(host.log)], rotated=False, expect=None)
    assert (verdict.findings, verdict.records) == ([], 3)
    assert os.getresuid() == (0, 0, 0)


def _append_as(account: Account, log: Path) -> None:
    pid = os.fork()
    if pid == 0:
        os.setgid(account.gid)
        os.setuid(account.uid)
        common = audit.Common(
            session=audit.new_session(), client="luna", key=None, address=None, port=None, pid=1
        )
        audit.AuditLog(str(log), sync=False).append("start", common, {})
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.needs_root
def test_a_link_of_the_accounts_leads_root_nowhere(host: Host) -> None:
    """Threat: who took over the account has root's lockdown write where only root may."""
    precious = host.directory / "precious"
    precious.mkdir()
    (precious / "file").write_text("root's\n")
    home = host.directory / "home"
    log = home / "log/audit.jsonl"
    host.config.write_text(host.config.read_text() + f'[audit]\nfile = "{log}"\n')
    links = {
        log.parent: precious,
        log: precious / "file",
        Path(audit.sidecar_of(str(log))): precious / "file",
    }
    for link, target in links.items():
        if link != log.parent:
            log.parent.mkdir()
            os.chown(log.parent, host.account.uid, host.account.gid)
        link.symlink_to(target)
        assert host.lockdown("on").exit == 73, link
        link.unlink()
        subprocess.run(["rm", "-rf", log.parent], check=True)
    assert [path.name for path in precious.iterdir()] == ["file"]
    assert (precious / "file").read_text() == "root's\n"
    log.parent.mkdir()
    os.chown(log.parent, host.account.uid, host.account.gid)
    assert host.lockdown("off").exit == 0, "without a link it is recorded"
    assert log.stat().st_uid == host.account.uid


HOSTILE = ["", "  ", "two\nlines", "\x1b[2J", "a\rb", "\u202e", "\u2028", "x" * (MAX_REASON + 1)]


@pytest.mark.parametrize("option", ["--reason", "--by"])
@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_text_that_is_no_line_is_refused(host: Host, option: str, text: str) -> None:
    answer = host.lockdown("on", option, text)
    assert answer.exit == 64
    assert answer.stderr.isprintable()
    assert option in answer.stderr
    assert host.found() is None
    assert host.events() == []


def test_text_that_is_not_utf_8_is_refused(host: Host) -> None:
    answer = start("lockdown", str(host.config), "on", b"--reason", b"caf\xe9")
    assert answer.exit == 64
    assert host.found() is None


def test_any_line_can_be_a_reason(host: Host) -> None:
    reason = "é: \"quoted\" 'n' {braces} \\n since: x"
    assert host.lockdown("on", "--reason", f" {reason} ").exit == 0
    assert host.status()["reason"] == reason
    assert host.records()[0]["reason"] == reason
    shown = run("audit", "show", host.log).stdout
    assert f": {reason}\n" in shown


@pytest.mark.parametrize("action", ["off", "status"])
def test_a_reason_goes_with_on_alone(host: Host, action: str) -> None:
    answer = host.lockdown(action, "--reason", REASON)
    assert answer.exit == 64
    assert answer.stderr == f"--reason is no option of lockdown {action}; see --help"


def test_on_again_changes_nothing_and_is_recorded(host: Host) -> None:
    host.lockdown("on", "--reason", REASON, "--by", "ann")
    before = host.file.read_bytes()
    again = host.lockdown("on", "--by", "bob", "--json")
    assert (again.exit, json.loads(again.stdout)["changed"]) == (0, False)
    assert host.file.read_bytes() == before
    assert [record["was_locked"] for record in host.records()] == [False, True]
    assert [record["by"] for record in host.records()] == ["ann", "bob"]


def test_on_again_with_another_reason(host: Host) -> None:
    host.file.write_text("since: 2026-11-21T00:17:08Z\nby: ann\nreason: one\n")
    assert host.lockdown("on", "--reason", "two", "--by", "bob").exit == 0
    assert host.found() == Lockdown(
        since="2026-11-21T00:17:08Z", by="bob", reason="two", client=None, fault=None
    )


def test_off_again_is_harmless(host: Host) -> None:
    answer = host.lockdown("off")
    assert (answer.exit, answer.stdout) == (0, "not locked down: requests are served\n")
    assert host.events() == []


def test_a_file_made_by_hand(host: Host) -> None:
    host.file.touch()
    assert host.status()["locked"] is True
    assert host.lockdown("on", "--reason", REASON).exit == 0
    assert host.status()["reason"] == REASON
    assert host.lockdown("off").exit == 0
    assert host.status()["locked"] is False


def _log_is_a_link(host: Host) -> None:
    host.log.symlink_to("/dev/null")


def _home_is_missing(host: Host) -> None:
    shutil.rmtree(host.directory / "home")


def _configuration_is_wrong(host: Host) -> None:
    host.config.write_text("x = 1\n")


def _sidecar_is_open_to_others(host: Host) -> None:
    sidecar = Path(audit.sidecar_of(str(host.log)))
    sidecar.touch()
    sidecar.chmod(0o666)
    os.chown(sidecar, host.account.uid, host.account.gid)


OBSTACLES = [
    _log_is_a_link,
    _home_is_missing,
    _configuration_is_wrong,
    _sidecar_is_open_to_others,
]


@pytest.mark.parametrize("obstacle", OBSTACLES, ids=lambda one: one.__name__.strip("_"))
def test_what_cannot_be_recorded_leaves_the_host_locked(
    host: Host, obstacle: Callable[[Host], None]
) -> None:
    obstacle(host)
    on = host.lockdown("on", "--reason", REASON)
    assert on.exit == 73
    assert on.stderr.startswith("locked down, but that is not on record: ")
    assert host.status()["locked"] is True
    off = host.lockdown("off")
    assert off.exit == 73
    assert off.stderr.startswith("still locked down, because the end is not on record: ")
    assert host.status()["reason"] == REASON


def test_a_stopped_writer_delays_the_record_only(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threat: who took over the account holds the log's lock."""
    monkeypatch.setattr(audit, "LOCK_SECONDS", 0.2)
    host.lockdown("on")
    with Path(audit.sidecar_of(str(host.log))).open() as sidecar:
        fcntl.flock(sidecar, fcntl.LOCK_EX)
        assert host.lockdown("off").exit == 73
        assert host.lockdown("on").exit == 73
        assert host.status()["locked"] is True
    assert host.lockdown("off").exit == 0


@pytest.mark.needs_root
def test_whose_log_it_is_must_be_known(host: Host) -> None:
    os.chown(host.directory / "home", 0, 0)
    os.chown(host.directory / "run", 0, 0)
    answer = host.lockdown("on")
    assert answer.exit == 73
    assert "name it with --user" in answer.stderr
    assert not host.log.exists()
    os.chown(host.directory / "home", host.account.uid, host.account.gid)
    assert host.lockdown("off", "--user", "root").exit == 73
    assert host.lockdown("off", "--user", "no-such-account").exit == 73
    assert host.events() == []
    assert host.lockdown("off", "--user", host.account.name).exit == 0
    assert host.log.stat().st_uid == host.account.uid


@pytest.mark.needs_root
def test_another_user_cannot_lock_down_and_can_ask(host: Host) -> None:
    host.config.chmod(0o644)
    nobody = 65534
    answer = start("lockdown", str(host.config), "on", uid=nobody)
    assert (answer.exit, host.found()) == (71, None)
    assert answer.stderr.endswith("Permission denied; run this as root\n")
    assert start("lockdown", str(host.config), "status", uid=nobody).exit == 0
    host.lockdown("on")
    assert start("lockdown", str(host.config), "status", uid=nobody).exit == 75
    for uid in (nobody, host.account.uid):
        answer = start("lockdown", str(host.config), "off", uid=uid)
        assert (answer.exit, host.status()["locked"]) == (71, True)
        assert answer.stderr.endswith("permission denied; run this as root\n")
    assert host.events() == ["lockdown_on"]


@pytest.mark.parametrize("action", ["on", "off", "status"])
def test_a_configuration_that_is_not_there(host: Host, action: str) -> None:
    """A mistyped path must not look like a host that is locked down."""
    answer = run("lockdown", host.directory / "run/config.toml", action)
    assert answer.exit == 78
    assert list((host.directory / "run").iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    answer = host.lockdown("on")
    assert answer.exit == 71
    assert answer.stderr.endswith("any file of this name locks the host down")
    assert sorted(path.name for path in host.directory.iterdir()) == ["config.toml", "home", "run"]
    assert host.events() == []


def test_what_cannot_be_removed_is_on_record_as_locked(host: Host) -> None:
    host.file.mkdir()
    assert host.status()["fault"] == "is a directory"
    off = host.lockdown("off")
    assert off.exit == 71
    assert f"cannot remove {host.file}: Is a directory" in off.stderr
    assert host.events() == ["lockdown_off", "lockdown_on"]
    assert host.lockdown("on").exit == 71
    assert host.status()["locked"] is True


def test_locked_anew_while_it_is_lifted(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two admins at once: the one who locks down wins, and the log says so last."""
    host.lockdown("on", "--reason", "one")
    record = lockdown._record

    def slow(*arguments: Any) -> object:
        result = record(*arguments)
        monkeypatch.setattr(lockdown, "_record", record)
        assert host.lockdown("on", "--reason", "two").exit == 0
        return result

    monkeypatch.setattr(lockdown, "_record", slow)
    off = host.lockdown("off")
    assert off.exit == 75
    assert "somebody else locked the host down anew" in off.stderr
    assert host.status()["reason"] == "two"
    assert host.events() == ["lockdown_on", "lockdown_off", "lockdown_on", "lockdown_on"]
    assert host.records()[-1]["reason"] == "two"


def test_lifted_while_it_is_locked(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    record = lockdown._record

    def slow(*arguments: Any) -> object:
        monkeypatch.setattr(lockdown, "_record", record)
        result = record(*arguments)
        assert host.lockdown("off").exit == 0
        return result

    monkeypatch.setattr(lockdown, "_record", slow)
    on = host.lockdown("on")
    assert on.exit == 75
    assert "somebody else lifted the lockdown meanwhile" in on.stderr


@pytest.mark.parametrize(
    ("sudo_user", "by"), [("ann", "ann"), ("x\x1b[2J\n", "x\\x1b[2J\\n"), ("y" * 99, "y" * 64)]
)
def test_who_locks_down(host: Host, sudo_user: str, by: str) -> None:
    answer = start("lockdown", str(host.config), "on", environment={"SUDO_USER": sudo_user})
    assert answer.exit == 0
    assert host.status()["by"] == by
    assert host.records()[0]["by"] == by


def test_who_locks_down_without_sudo(host: Host) -> None:
    environment = {"SUDO_USER": ""}
    assert start("lockdown", str(host.config), "on", environment=environment).exit == 0
    assert host.status()["by"]


def test_the_schema_is_stated(host: Host) -> None:
    stated = start("lockdown", "--help").stdout
    said = host.status()
    assert list(lockdown.Report.__annotations__) == list(said)
    for name in said:
        assert name in stated, name


def test_the_file_is_whole_at_every_moment(host: Host) -> None:
    """Readers see no half-written reason while it is changed again and again."""
    host.lockdown("on", "--reason", "x" * MAX_REASON)
    change = (
        "import sys; from borg_pull.locking_down import write; "
        "from borg_pull.lockdown import Lockdown\n"
        "for letter in 'ab' * 40:\n"
        f"    write(sys.argv[1], Lockdown(since='s', by='b', reason=letter * {MAX_REASON}, "
        "client=None, fault=None))\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", change, host.file])
    seen = set()
    while writer.poll() is None:
        found = host.found()
        assert found is not None
        assert found.reason is not None
        assert len(found.reason) == MAX_REASON
        seen.add(found.reason[0])
    assert writer.returncode == 0
    assert {"a", "b"} <= seen
