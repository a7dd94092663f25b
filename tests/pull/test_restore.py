"""Files go back to the source: by `borg-pull restore`, from end to end."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import IO

import pytest

from borg_pull.pull.repository import LocalRepository, RepositoryError
from tests.harness.builds import PROJECT
from tests.harness.peer import PASSPHRASE, Repository
from tests.pull.conftest import BackupServer
from tests.pull.runs import run as pull_run
from tests.pull.test_commands import Command, borg_pull, configuration, program
from tests.pull.test_run import data_of
from tests.test_docs import commands

__all__ = ["borg_pull", "program"]  # fixtures


def test_files_go_back_to_the_source(server: BackupServer, borg_pull: Command) -> None:
    data = Path(data_of(server))
    spaced = server.site.source.file(data / "deep" / "a b", b"spaced", mode=0o664)
    os.utime(spaced, (1_000_000_000, 1_000_000_000))
    lending = server.site.source.file(data / "lending", b"#!/bin/sh")
    lending.chmod(0o4755)  # once it is the account's: chown takes the bit away
    assert lending.stat().st_mode & 0o7777 == 0o4755
    repository = server.repository(encryption="repokey-blake2")
    rules = {"paths": [str(data)], "passphrase_stdin": True}
    server.site.allow(**rules)
    server.job(paths=[str(data)])
    borg_pull("run", "job")

    refused = borg_pull("restore", "job", "latest", str(data), code=77)
    assert 'add "restore" to client.luna.allow' in refused.stderr
    assert [run.kind for run in server.ledger.runs()] == ["create"]

    staging = server.site.source.tree("staging")
    server.site.allow(**rules, allow=["create", "restore"], restore_to=str(staging))
    dry = borg_pull("restore", "job", "latest", f"{data}/deep/a b", "--dry-run")
    assert "would restore 1 item of" in dry.stdout
    assert os.listdir(staging) == []
    done = borg_pull("restore", "job", "latest", f"{data}/deep/a b", "--json")
    told = json.loads(done.stdout)
    assert (told["items"], told["warnings"]) == (1, [])
    made = Path(told["directory"])
    assert made.parent == staging
    back = Path(f"{made}{data}/deep/a b")
    assert back.read_bytes() == b"spaced"
    assert back.stat().st_mode & 0o7777 == 0o664
    assert back.stat().st_mtime == 1_000_000_000
    assert back.stat().st_uid == server.site.account.uid
    done = borg_pull("restore", "job", "latest", f"{data}/lending", "--json")
    lent = Path(f"{json.loads(done.stdout)['directory']}{data}/lending")
    assert lent.stat().st_mode & 0o7777 == 0o600, "no identity is lent"
    assert f"they are in {staging}/luna-" in borg_pull("restore", "job", "latest", "/").stdout
    assert not repository.locked()
    for options in ([], ["--dry-run"]):
        nothing = borg_pull("restore", "job", "latest", "/no/such", *options, code=64)
        assert "has nothing of what was named" in nothing.stderr
        run = server.ledger.last("job", kind="restore")
        assert run is not None
        assert (run.outcome, run.files) == ("failure", 0)
    assert "there is no archive" in borg_pull("restore", "job", "nothing", "/", code=64).stderr
    borg_pull("restore", "job", "latest", "relative", code=64)
    run = server.ledger.last("job", kind="restore", outcomes=["success"])
    assert run is not None
    assert run.session is not None
    assert json.loads(borg_pull("status", "--json").stdout)["jobs"][0]["state"] == "ok"


@pytest.mark.builds("frozen")
def test_progress_is_for_terminals(
    server: BackupServer, borg_pull: Command, program: list[str]
) -> None:
    """What gets files back shows how far it is, and says the same on standard output."""
    data = data_of(server)
    staging = server.site.source.tree("staging")
    server.site.allow(paths=[data], allow=["create", "restore"], restore_to=str(staging))
    server.repository()
    server.job(paths=[data])
    borg_pull("run", "job")
    config = str(configuration(server))
    for words in (("restore",), ("extract", "--to", str(server.directory / "to"))):
        said = {}
        ours, theirs = pty.openpty()
        with os.fdopen(ours, "rb", buffering=0) as screen:
            done = subprocess.run(
                [*program, "--config", config, *words, "job", "latest", "/", "--dry-run", "--json"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=theirs,
                env=os.environ | {"TERM": "xterm", "COLUMNS": "120"},
                check=True,
            )
            os.close(theirs)
            shown = until_closed(screen)
        said["terminal"] = json.loads(done.stdout)
        plain = borg_pull(*words, "job", "latest", "/", "--dry-run", "--json")
        assert plain.stderr == ""
        said["file"] = json.loads(plain.stdout)
        assert said["terminal"]["archive"].encode() in shown
        assert b"\x1b[" in shown
        for one in said.values():
            one.pop("session", None)
        assert said["terminal"] == said["file"]


def until_closed(screen: IO[bytes]) -> bytes:
    """All that was written to a terminal that is closed by now."""
    shown = b""
    with contextlib.suppress(OSError):  # EIO is its end
        while block := screen.read(65536):
            shown += block
    return shown


def test_a_source_that_alone_has_the_key(server: BackupServer, borg_pull: Command) -> None:
    data = data_of(server)
    secret = server.site.source.secret("passphrase", "secret of the source\n")
    staging = server.site.source.tree("staging")
    server.site.allow(
        paths=[data],
        allow=["create", "init", "list", "restore"],
        encryption=["repokey"],
        passphrase_file=str(secret),
        restore_to=str(staging),
    )
    server.repository()
    path = server.directory / "blind"
    server.document["repository"]["blind"] = {
        "path": str(path),
        "borg": str(server.site.borg),
        "key_on": "source",
    }
    made = server.site.peer().repository("for-the-listener", initialised=False)
    made.path = path
    assert server.site.pull(f"init -e repokey {path}", made).exit == 0
    server.job(paths=[data], repository="blind")
    borg_pull("run", "job")
    assert "run: borg-pull restore" in borg_pull("verify", "job", code=78).stderr
    told = json.loads(borg_pull("restore", "job", "latest", f"{data}/file", "--json").stdout)
    back = Path(f"{told['directory']}{data}/file")
    assert back.read_bytes() == Path(data, "file").read_bytes()


def name_of(repository: Repository) -> str:
    """The id that borg's directories are named after."""
    found = re.search("^id = (.*)$", (repository.path / "config").read_text(), re.MULTILINE)
    assert found
    return found[1]


PUT_BACK = "A repository put back from a copy"


@pytest.mark.needs_root
@pytest.mark.builds("pairs")
def test_a_repository_put_back_from_a_copy(server: BackupServer) -> None:
    """It is refused at both ends, and the document says the way on; whoever plays an old repository
    gets no further than that."""
    source = server.site.source
    data = data_of(server)
    secret = source.secret("passphrase", PASSPHRASE + "\n")
    server.site.allow(paths=[data], passphrase_file=str(secret))
    repository = server.repository(encryption="repokey")
    server.job("www", paths=[data])
    assert server.run() == "success", server.events
    copy = server.directory / "copy"
    shutil.copytree(repository.path, copy)
    assert server.run() == "success", server.events
    shutil.rmtree(repository.path)
    shutil.move(copy, repository.path)
    assert server.run() == "failure"
    run = server.ledger.last("www")
    assert run is not None
    assert run.error is not None
    assert f'as docs/restore.md says under "{PUT_BACK}"' in run.error
    config = str(configuration(server))
    local = LocalRepository(server.config().repository["repository"], lambda: None)
    with pytest.raises(RepositoryError) as told:
        local.check("prune", 2, "Cache is newer than repository - do you have multiple repos\n")
    assert PUT_BACK in told.value.line(), "here, too, where borg has a cache"

    places = {
        "/srv/backup/www": str(repository.path),
        "/var/lib/borg-pull/clients": str(source.home / "clients"),
        "~": os.environ["BORG_BASE_DIR"],
    }
    asked = []
    for command in commands(PROJECT / "docs/restore.md"):
        if command.section != PUT_BACK:
            continue
        text = command.text
        for shown, here in places.items():
            text = text.replace(shown, here)
        words = [*shlex.split(text.replace("name ID", f"name {name_of(repository)}"))]
        if words[0] == "borg-pull":
            asked.append(words[1])
            more = ["--yes"] if words[1] == "forget" else []
            answer = pull_run(*words[1:], *more, "--config", config)
            assert answer.exit == 0, answer
        else:
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    assert asked == ["status", "run", "forget"]
    assert len(repository.archives()) == 2
    assert server.run() == "success", "control: nothing stands in the way of the next"


@pytest.mark.needs_root
@pytest.mark.builds("frozen")
def test_the_commands_of_the_document(server: BackupServer, borg_pull: Command) -> None:
    """In their order, with the places of this test for those of the document."""
    data = Path(data_of(server))
    server.site.source.file(data / "html" / "index.html", b"<p>")
    staging = server.site.source.directory / "restored"
    account = server.site.account
    server.repository()
    server.job("www", paths=[str(data)])
    server.site.allow(trees=[str(data)], allow=["create", "restore"], restore_to=str(staging))
    borg_pull("run", "www")
    lacking = {} if server.can_mount else {"mount": 71, "umount": 2}
    places = {
        "/var/www": str(data),
        "/tmp/": f"{server.directory}/out-",
        "/mnt/www": str(server.directory / "mounted"),
        "/srv/restored": str(staging),
        "-o borg-pull -g borg-pull": f"-o {account.uid} -g {account.gid}",
    }
    (server.directory / "mounted").mkdir()
    run = []
    for command in commands(PROJECT / "docs/restore.md"):
        if command.section == PUT_BACK:
            continue  # by the test below
        text = command.text
        for shown, here in places.items():
            text = text.replace(shown, here)
        words = shlex.split(text)
        if command.prompt == "source#":
            subprocess.run(words, check=True)
            continue
        assert words[0] == "borg-pull"
        borg_pull(*words[1:], code=lacking.get(words[1], 0))
        run.append(words[1])
    wanted = {"archives", "browse", "mount", "umount", "extract", "restore", "verify", "status"}
    assert set(run) == wanted
    assert (server.directory / "out-www" / f"{data}/html/index.html"[1:]).read_bytes() == b"<p>"
    assert len(list(staging.iterdir())) == 2
