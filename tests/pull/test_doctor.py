"""``borg-pull doctor`` against a real sshd: each fault is named, and nothing else is."""

from __future__ import annotations

import json
import re
import shlex
import socket
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from borg_pull import __version__
from borg_pull.audit import timestamp
from borg_pull.errors import SystemRefusedError
from borg_pull.findings import Findings
from borg_pull.pull import doctor
from borg_pull.pull.ledger import Ledger
from borg_pull.pull.places import Places
from tests.harness.builds import PROJECT
from tests.harness.disk import Disk
from tests.harness.sshd import make_key
from tests.pull.conftest import BackupServer
from tests.pull.runs import Answer, run
from tests.pull.test_commands import Command, borg_pull, configuration, program
from tests.pull.test_run import data_of
from tests.test_docs import commands, pattern_of

__all__ = ["borg_pull", "program"]

pytestmark = pytest.mark.builds("frozen")


@pytest.fixture
def sound(server: BackupServer) -> BackupServer:
    """A backup server with one job, of which the doctor has nothing to say."""
    data = data_of(server)
    server.repository()
    server.job(paths=[data])
    return server


def asked(server: BackupServer, *words: str) -> Answer:
    """The doctor's answer."""
    return run("doctor", *words, "--config", configuration(server))


def findings(server: BackupServer, *, code: int = 78) -> dict[str, dict[str, Any]]:
    """What is not ok, by code."""
    answer = asked(server, "--json")
    assert answer.exit == code, answer
    report = json.loads(answer.stdout)
    assert (report["type"], report["version"], report["ok"]) == ("doctor", 1, code == 0)
    for finding in report["findings"]:
        assert finding["level"] == "ok" or finding["remedy"], finding
    return {one["code"]: one for one in report["findings"] if one["level"] != "ok"}


def only(server: BackupServer, code: str, level: str = "error") -> str:
    """What is found of ``code``, which is all that is amiss."""
    found = findings(server, code=78 if level == "error" else 0)
    assert list(found) == [code], found
    assert found[code]["level"] == level
    return str(found[code]["found"])


def stand_in(server: BackupServer, command: str, *options: str) -> None:
    """Have the source run ``command`` for a key of its own, which is now ours."""
    key = server.directory / "stand-in"
    line = make_key(key)
    granted = ",".join(("restrict", *options, f'command="{command}"'))
    server.site.server.authorize(server.site.account, f"{granted} {line}")
    server.document["source"]["source"]["identity"] = str(key)


def says(server: BackupServer, **changes: object) -> str:
    """A command that answers as the source does, but for ``changes``."""
    hello = {
        "type": "hello",
        "program": "borg-pull-source",
        "version": __version__,
        "protocol": 1,
        "borg": "1.2.4",
        "client": "luna",
        "verbs": ["create", "hello"],
        "socket_directory": str(server.site.source.socket_dir),
        "passphrase_stdin": False,
        "time": timestamp(time.time()),
        "confinement": {},
        **changes,
    }
    script = server.site.source.directory / "stand-in.json"
    script.write_text(json.dumps(hello))
    script.chmod(0o644)
    answer = f"cat {shlex.quote(str(script))}"
    return f"case $SSH_ORIGINAL_COMMAND in hello) {answer};; *) exit 69;; esac"


@pytest.mark.builds("every")
def test_nothing_is_amiss(sound: BackupServer, borg_pull: Command) -> None:
    said = borg_pull("doctor").stdout
    assert re.search(r": sound: \d+ ok, 0 errors, 0 warnings\n$", said), said
    report = json.loads(borg_pull("doctor", "source", "--json", "--strict").stdout)
    seen = {finding["code"] for finding in report["findings"]}
    assert {
        *(f"source.{one}" for one in ("reached", "host-key", "key", "command", "verbs")),
        *(f"source.{one}" for one in ("version", "borg", "forwarding", "clock", "request")),
        *(f"repository.{one}" for one in ("present", "opens", "writable", "borg")),
        *("storage.room", "ledger.sound", "timers.installed"),
    } <= seen
    assert not list((sound.directory / "run").glob("doctor-*"))
    sockets = list(Path(sound.site.source.socket_dir).iterdir())
    assert sockets == [], "the forwarded socket is gone again"
    assert "there is no source sorce" in borg_pull("doctor", "sorce", code=64).stderr


def test_the_source_is_down(sound: BackupServer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        sound.document["source"]["source"]["port"] = taken.getsockname()[1]
        assert "is not reached" in only(sound, "source.reached")


def test_no_host_key_is_pinned(sound: BackupServer) -> None:
    (sound.directory / "known_hosts").write_text("")
    assert "no host key pinned" in only(sound, "source.host-key")


def test_another_host_key(sound: BackupServer) -> None:
    name, kind, _key = sound.site.server.known_hosts_line.split()
    other = make_key(sound.directory / "other").split()[1]
    (sound.directory / "known_hosts").write_text(f"{name} {kind} {other}\n")
    assert "SHA256:" in only(sound, "source.host-key")


def test_what_a_run_would_be_refused(sound: BackupServer) -> None:
    """A path that the whitelist has not; nothing is run to find that out."""
    before = len(sound.site.source.audit(event="start"))
    sound.job("other", paths=["/etc/shadow"])
    found = only(sound, "source.request")
    assert "path '/etc/shadow' is not allowed to client luna" in found
    sound.document["job"].pop("other")
    assert findings(sound, code=0) == {}, "control: the job that is allowed"
    assert len(sound.site.source.audit(event="start")) == before


def test_nonsense_among_the_notification_urls(sound: BackupServer) -> None:
    urls = sound.directory / "notify.urls"
    urls.write_text("json://localhost/\n")
    urls.chmod(0o600)
    sound.document["notify"] = {"urls_file": str(urls)}
    assert findings(sound, code=0) == {}
    urls.write_text("json://localhost/\nnonsense\n")
    assert "URL 2 of the notification URLs" in only(sound, "configuration.notify")


def test_our_key_is_refused(sound: BackupServer) -> None:
    key = sound.directory / "unknown"
    line = make_key(key)
    sound.document["source"]["source"]["identity"] = str(key)
    found = findings(sound)
    assert list(found) == ["source.key"]
    assert "Permission denied" in found["source.key"]["found"]
    assert line.split()[1] in found["source.key"]["remedy"], "what to paste on the source"


def test_our_key_cannot_be_used(sound: BackupServer) -> None:
    key = sound.directory / "open"
    make_key(key)
    key.chmod(0o644)
    sound.document["source"]["source"]["identity"] = str(key)
    assert "open to others" in only(sound, "source.identity")


def test_the_forced_command_refuses(sound: BackupServer) -> None:
    sound.site.allow("another", paths=["/srv"])
    assert "luna" in only(sound, "source.command")


def test_another_program_answers(sound: BackupServer) -> None:
    stand_in(sound, "echo hello")
    assert only(sound, "source.command")


def test_forwarding_is_not_allowed(sound: BackupServer) -> None:
    stand_in(sound, says(sound))
    assert "forwarding failed" in only(sound, "source.forwarding")


def test_create_is_not_allowed(sound: BackupServer) -> None:
    sound.site.allow(paths=["/srv"], allow=["list"])
    assert only(sound, "source.verbs") == "allows list, hello"


@pytest.mark.parametrize(("seconds", "word"), [(3600, "ahead of"), (-3600, "behind")])
def test_clocks_differ(sound: BackupServer, seconds: int, word: str) -> None:
    hello = says(sound, time=timestamp(time.time() + seconds))
    stand_in(sound, hello, "port-forwarding")
    assert word in only(sound, "source.clock", "warning")


@pytest.mark.parametrize("told", [None, 5, "soon"])
def test_a_source_that_does_not_tell_its_time(sound: BackupServer, told: object) -> None:
    stand_in(sound, says(sound, time=told), "port-forwarding")
    only(sound, "source.clock", "unchecked")
    assert asked(sound, "--strict").exit == 78


@pytest.mark.parametrize(
    ("key", "value"), [("version", "0.0.9"), ("borg", "2.0.0"), ("borg", "\x1b[2J")]
)
def test_versions_differ(sound: BackupServer, key: str, value: str) -> None:
    stand_in(sound, says(sound, **{key: value}), "port-forwarding")
    if not value.isprintable():
        assert "\x1b" not in only(sound, "source.command")
    else:
        assert value in only(sound, f"source.{key}", "warning")


def test_the_repository_is_missing(sound: BackupServer) -> None:
    sound.document["repository"]["repository"]["path"] = str(sound.directory / "nowhere")
    assert "no repository" in only(sound, "repository.present")


def test_the_passphrase_is_wrong(server: BackupServer) -> None:
    data = data_of(server)
    server.repository(encryption="repokey-blake2")
    server.site.allow(paths=[data])
    server.job(paths=[data])
    wrong = server.directory / "wrong"
    wrong.write_text("not it\n")
    wrong.chmod(0o600)
    server.document["repository"]["repository"]["passphrase_file"] = str(wrong)
    assert "assphrase" in only(server, "repository.opens")
    wrong.chmod(0o644)
    assert "open to others" in only(server, "repository.opens")


def test_the_quota_is_used_up(sound: BackupServer) -> None:
    repository = sound.document["repository"]["repository"]
    repository["quota"] = "10 MB"
    segment = Path(repository["path"]) / "data/0/999"
    segment.write_bytes(b"x" * 9_500_000)
    assert "used" in only(sound, "storage.quota", "warning")
    segment.write_bytes(b"x" * 10_500_000)
    assert "used" in only(sound, "storage.quota")


@pytest.mark.needs_root
def test_the_disk_is_full(sound: BackupServer) -> None:
    place = sound.directory / "disk"
    place.mkdir()
    disk = Disk(place, kibibytes=4096)
    try:
        (place / "config").write_text("[repository]\n")
        (place / "data").mkdir()
        sound.document["repository"]["repository"]["path"] = str(place)
        found = findings(sound)
        assert found["storage.room"]["level"] == "error"
    finally:
        disk.unmount()


def test_the_ledger_is_damaged(sound: BackupServer) -> None:
    sound.ledger.close()
    for path in sound.directory.glob("ledger.sqlite-*"):
        path.unlink()
    (sound.directory / "ledger.sqlite").write_bytes(b"SQLite format 3\0" + b"x" * 8192)
    assert "damaged" in only(sound, "ledger.sound")
    with pytest.raises(SystemRefusedError) as refused:
        Ledger(sound.directory / "ledger.sqlite")
    assert refused.value.hint == "it is damaged; borg-pull doctor says what to do"


def test_a_ledger_that_a_full_disk_keeps_shut_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moved away, as a damaged one must be, its history would be lost for nothing."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_SHMSIZE

    def connect(*_arguments: object, **_options: object) -> None:
        raise error

    (tmp_path / "ledger.sqlite").touch()
    monkeypatch.setattr(sqlite3, "connect", connect)
    found = Findings()
    doctor._look_at_ledger(found, Places(tmp_path, tmp_path))
    (finding,) = found.found
    assert (finding.code, finding.level) == ("ledger.sound", "error")
    assert finding.found == "cannot be looked at: disk I/O error"
    assert str(finding.remedy).startswith("leave it where it is; is there room on its disk")


def test_this_host_s_clock_was_set_back(sound: BackupServer) -> None:
    sound.ledger.begin("job", "source", "repository", log=None)
    database = sqlite3.connect(sound.directory / "ledger.sqlite")
    with database:
        database.execute("UPDATE run SET started = started + 86400")
    database.close()
    assert "before the last run" in only(sound, "ledger.clock", "warning")


def test_secrets_and_places_open_to_others(sound: BackupServer) -> None:
    urls = sound.directory / "urls"
    urls.write_text("json://localhost\n")
    urls.chmod(0o644)
    sound.document["notify"] = {"urls_file": str(urls)}
    assert "open to others" in only(sound, "configuration.secret")
    urls.chmod(0o600)
    sound.directory.chmod(0o755)
    assert "open to others" in only(sound, "configuration.places")


def test_no_timer(sound: BackupServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("borg_pull.pull.timers.OF_SYSTEM", tmp_path / "system")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    sound.document["job"]["job"]["schedule"] = "daily"
    assert "no timer" in only(sound, "timers.installed", "warning")
    directory = tmp_path / "systemd/user"
    words = ("--config", configuration(sound), "--user", "--directory", directory)
    assert run("timers", "install", *words).exit == 0
    assert findings(sound, code=0) == {}
    sound.document["job"]["job"]["schedule"] = "weekly"
    assert "job-job.timer" in only(sound, "timers.installed", "warning")


def test_the_document(sound: BackupServer, borg_pull: Command) -> None:
    """Every command of docs/pull-doctor.md, of a source whose host key is not pinned."""
    document = sound.document
    document["source"]["web1"] = document["source"].pop("source")
    document["job"]["job"]["source"] = "web1"
    (sound.directory / "known_hosts").write_text("")
    for command in commands(PROJECT / "docs/pull-doctor.md"):
        name, *words = shlex.split(command.text)
        assert name == "borg-pull"
        said = borg_pull(*words, code=78)

        def here(text: str) -> str:
            return text.replace("/etc/borg-pull/pull.toml", str(sound.directory / "pull.toml"))

        pattern = pattern_of(command.output, here)
        assert pattern.fullmatch(said.stdout + said.stderr), said
