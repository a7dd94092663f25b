"""Getting files back on the backup server: what is there, what comes out, and what must not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from borg_pull.pull.repository import Cell, LocalRepository
from tests.harness import builds, made_archive
from tests.harness.builds import FROZEN_12
from tests.harness.fixtures import SiteMaker
from tests.harness.trees import differences
from tests.harness.wait import until
from tests.pull.conftest import BackupServer, backup_server
from tests.pull.runs import start
from tests.pull.test_commands import Command, borg_pull, configuration, program
from tests.pull.test_run import data_of

__all__ = ["borg_pull", "program"]  # fixtures


def pulled(server: BackupServer, borg_pull: Command) -> Path:
    """The tree on the source that the job's only archive has."""
    data = Path(data_of(server))
    server.site.source.file(data / "deep" / "a b", b"spaced")
    server.repository(encryption="repokey-blake2")
    server.site.allow(paths=[str(data)], passphrase_stdin=True)
    server.job(paths=[str(data)])
    borg_pull("run", "job")
    return data


def test_what_was_pulled_comes_back(server: BackupServer, borg_pull: Command) -> None:
    data = pulled(server, borg_pull)
    to = server.directory / "back"
    dry = borg_pull("extract", "job", "latest", str(data), "--to", str(to), "--dry-run")
    assert "would unpack" in dry.stdout
    assert not to.exists()
    done = json.loads(
        borg_pull(
            "extract", "job", "latest", str(data), "--to", str(to), "--attributes", "--json"
        ).stdout
    )
    assert done["warnings"] == []
    assert differences(data, to / str(data)[1:]) == []
    again = borg_pull("extract", "job", "latest", "/", "--to", str(to), code=64)
    assert "is not empty" in again.stderr
    one = server.directory / "one"
    borg_pull("extract", "job", done["archive"], f"{data}/deep/a b", "--to", str(one))
    files = [path for path in one.rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in files] == [b"spaced"]


def test_nobody_else_has_the_directory(server: BackupServer, borg_pull: Command) -> None:
    """Another user of the backup server would move about what is unpacked."""
    pulled(server, borg_pull)
    to = server.directory / "to"
    to.mkdir(mode=0o700)
    (server.directory / "link").symlink_to(to)
    for mode, user, path in ((0o777, 0, to), (0o700, 65534, to), (0o700, 0, to.parent / "link")):
        to.chmod(mode)
        os.chown(to, user, -1)
        borg_pull("extract", "job", "latest", "/", "--to", str(path), code=64)
        assert not list(to.iterdir())
    borg_pull("extract", "job", "latest", "/", "--to", str(to))


def test_what_is_not_there_is_said(server: BackupServer, borg_pull: Command) -> None:
    data = pulled(server, borg_pull)
    to = str(server.directory / "back")
    for archive, path in (
        ("nothing-like-it", str(data)),
        ("latest", "/no/such"),
        ("latest", "/.."),
    ):
        borg_pull("extract", "job", archive, path, "--to", to, code=64)
    assert not Path(to).exists()


def test_contents_are_listed(server: BackupServer, borg_pull: Command) -> None:
    data = pulled(server, borg_pull)
    listed = borg_pull("browse", "job", "latest", f"{data}/deep").stdout
    assert f"{data}/deep/a b\n" in listed
    assert f"{data}/file\n" not in listed
    lines = [json.loads(line) for line in borg_pull("browse", "job", "--json").stdout.splitlines()]
    (found,) = [line for line in lines if line["path"] == f"{data}/deep/a b"]
    assert (found["mode"][0], found["size"]) == ("-", 6)
    assert "holds no" in borg_pull("browse", "job", "latest", "/no/such", code=64).stderr


HOSTILE: dict[str, list[dict[str, Any]]] = {
    "through a link": [
        {"path": "out", "target": "{outside}"},
        {"path": "out/planted", "content": "planted"},
    ],
    "a directory's mode through a link": [
        {"path": "out", "target": "{outside}/.."},
        {"path": "out/outside", "mode": 0o777},
    ],
    "upwards": [{"path": "a/../../outside/planted", "content": "planted"}],
    "a name that is none": [
        {"path": "out", "target": "{outside}"},
        {"path": "./out/planted", "content": "planted"},
    ],
}


@pytest.mark.builds("frozen")
def test_no_archive_leads_out(server: BackupServer, borg_pull: Command) -> None:
    """A hostile source makes archives whose items lead out of where they are unpacked."""
    outside = server.directory / "outside"
    outside.mkdir(mode=0o750)
    repository = server.repository()
    server.job(paths=["/x"])
    for number, (name, items) in enumerate(HOSTILE.items()):
        filled = [
            {key: str(value).format(outside=outside) if key == "target" else value
             for key, value in item.items()}
            for item in items
        ]  # fmt: skip
        made_archive.make(str(repository.path), f"job-{number}", filled)
        to = server.directory / f"to-{number}"
        refused = borg_pull("extract", "job", f"job-{number}", "/", "--to", str(to), code=2)
        assert "lead out" in refused.stderr, name
        assert not to.exists()
    made_archive.make(
        str(repository.path),
        "job-honest",
        [{"path": "in", "target": "/x"}, {"path": "d/f", "content": "f"}],
    )
    borg_pull("extract", "job", "latest", "/", "--to", str(server.directory / "honest"))
    assert (server.directory / "honest/d/f").read_text() == "f"
    assert os.listdir(outside) == []
    assert outside.stat().st_mode & 0o777 == 0o750


def test_borg_is_confined_to_where_it_unpacks(server: BackupServer) -> None:
    """What the listing of an archive does not show, the kernel still forbids."""
    outside = server.directory / "outside"
    outside.mkdir()
    to = server.directory / "to"
    to.mkdir()
    made = server.repository()
    items = [
        {"path": "honest", "content": "f"},
        {"path": "out", "target": str(outside)},
        {"path": "out/planted", "content": "planted"},
    ]
    made_archive.make(str(made.path), "a", items)
    repository = LocalRepository(server.config().repository["repository"], lambda: None)
    own = server.directory / "own"
    own.mkdir()
    process = repository.start(["extract", f"{made.path}::a"], confined_to=Cell(to, own))
    _, said = process.communicate()
    assert (to / "honest").read_text() == "f"
    assert (to / "out").is_symlink()
    # borg 1.4 sees it by itself.
    assert b"Read-only file system" in said or b"a parent directory is a symlink" in said
    assert os.listdir(outside) == []


@pytest.mark.builds("frozen")
def test_mounting(server: BackupServer, borg_pull: Command) -> None:
    """Where borg and the host can, archives are there to read; else one line says what lacks."""
    data = pulled(server, borg_pull)
    place = server.directory / "mounted"
    place.mkdir()
    if not server.can_mount:
        lacking = borg_pull("mount", "job", str(place), code=71)
        assert "apt-get install fuse3" in lacking.stderr
        assert borg_pull("umount", str(place), code=2).stderr
        return
    borg_pull("mount", "job", str(place))
    (archive,) = place.iterdir()
    assert (archive / f"{data}/deep/a b"[1:]).read_bytes() == b"spaced"
    assert "is not an empty directory" in borg_pull("mount", "job", str(place), code=64).stderr
    borg_pull("umount", str(place))
    assert not list(place.iterdir())


HELD = """\
#!/usr/bin/python3
# borg itself, which stops at the first file that it unpacks.
import os, sys, time
import borg.archive
from borg.archiver import main
def held(*arguments, **options):
    open("begun", "w").write(str(os.getpid()))
    time.sleep(1000)
if "extract" in sys.argv:
    borg.archive.Archive.extract_item = held
main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("verb", ["extract", "verify"])
def test_a_signal_leaves_nothing_of_it(
    make_site: SiteMaker, tmp_path: Path, verb: str, number: signal.Signals
) -> None:
    """borg is waited for, and what a verification has restored does not stay."""
    with backup_server(make_site(FROZEN_12), tmp_path) as server:
        data = data_of(server)
        repository = server.repository()
        server.job(paths=[data])
        assert server.run() == "success", server.events
        begun = server.directory / {"extract": "to", "verify": "verify-job/kept"}[verb] / "begun"
        held = server.directory / "held"
        held.write_text(HELD)
        held.chmod(0o755)
        server.document["repository"]["repository"]["borg"] = str(held)
        words = [verb, "job"]
        if verb == "extract":
            words += ["latest", "/", "--to", str(server.directory / "to")]
        before = {*server.directory.iterdir()}
        argv = [
            str(builds.frozen_bundle() / "borg-pull"),
            "--config",
            str(configuration(server)),
            *words,
        ]
        with subprocess.Popen(
            argv, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as running:
            until(lambda: begun.exists() and begun.read_text(), seconds=30, what="borg's work")
            borg = begun.read_text()
            os.killpg(running.pid, number)
            _, said = running.communicate(timeout=30)
        assert (running.returncode, said) == (2, f"borg-pull: ended by {number.name}\n")
        assert not Path("/proc", borg).exists(), "it was waited for"
        assert not repository.locked()
        assert not (repository.path / "lock.roster").exists()
        left = {path.name for path in {*server.directory.iterdir()} - before}
        assert left <= {"to", "pull.toml", "logs", "locks", "keys", "run"}
        if verb == "verify":
            (run,) = server.ledger.runs(limit=1)
            assert (run.kind, run.outcome) == ("verify", "failure")
            assert run.error == f"ended by {number.name}"


@pytest.mark.builds("one")
def test_times_are_of_no_place(server: BackupServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """UTC, and said to be, as everywhere."""
    data = Path(data_of(server))
    os.utime(data / "file", (1_000_000_000, 1_000_000_000))
    server.repository()
    server.job(paths=[str(data)])
    assert server.run() == "success", server.events
    config = str(configuration(server))
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "Europe/Berlin")
        time.tzset()
        words = ("job", "latest", f"{data}/file", "--config", config)
        shown = start("browse", *words).stdout
        told = json.loads(start("browse", *words, "--json").stdout)
    time.tzset()
    assert " 2001-09-09T01:46:40Z /" in shown
    assert datetime.fromisoformat(told["mtime"]) == datetime.fromtimestamp(1_000_000_000, UTC)
