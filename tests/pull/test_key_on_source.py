"""Repositories that only the source can read: this host has the bytes, the source has the key.

Threat: such a source is asked about what it may itself have deleted. Its word is taken for what
this host cannot know alone, and a lie about an archive's being there is found out.
"""

from __future__ import annotations

import json
import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from borg_pull.pull.ledger import Kind
from tests.harness.peer import PASSPHRASE, Repository
from tests.pull.conftest import BackupServer
from tests.pull.test_commands import Command, borg_pull, program
from tests.pull.test_run import last_error

__all__ = ["borg_pull", "program"]

pytestmark = pytest.mark.builds("frozen")

ALL = ["create", "list", "info", "check", "prune"]


@pytest.fixture
def data(server: BackupServer) -> Path:
    """A tree on the source, to go into an encrypted repository of whose key this host has none."""
    tree = server.site.source.tree()
    server.site.source.file(tree / "file", os.urandom(1 << 20))
    return tree


@pytest.fixture
def repository(server: BackupServer, data: Path) -> Repository:
    made = server.repository(encryption="repokey-blake2", key_on="source")
    del server.document["repository"]["repository"]["passphrase_file"]
    allow(server, data, ALL)
    return made


def allow(server: BackupServer, data: Path, verbs: list[str]) -> None:
    """A whitelist with these verbs, and the passphrase where only the source has it."""
    passphrase = server.site.source.directory / "passphrase"
    if not passphrase.exists():
        server.site.source.secret("passphrase", PASSPHRASE + "\n")
    server.site.allow(paths=[str(data)], allow=verbs, passphrase_file=str(passphrase))


def kinds(server: BackupServer) -> list[tuple[str, str | None]]:
    """What is on record, oldest first."""
    return [(run.kind, run.outcome) for run in reversed(server.ledger.runs("job"))]


def test_the_whole_life_of_it(
    server: BackupServer, data: Path, repository: Repository, borg_pull: Command
) -> None:
    server.job(paths=[str(data)], retention={"keep_last": 1}, check={"schedule": "yearly"})
    borg_pull("run", "job")
    borg_pull("run", "job")
    (name,) = repository.archives()
    create = server.ledger.last("job")
    assert create is not None
    assert create.original_size is not None
    assert create.original_size >= 1 << 20
    assert server.ledger.kept("job") == {create.archive_id: name}
    assert kinds(server) == [
        ("create", "success"),
        ("prune", "success"),
        ("check", "success"),
        ("create", "success"),
        ("prune", "success"),
    ]
    verbs = [record["verb"] for record in server.site.source.audit(event="complete")]
    # Each run: the pull, its look-up, retention's look before, prune, its look after.
    assert verbs == ["create", "list", "list", "prune", "list", "check"] + [
        "create",
        "list",
        "list",
        "prune",
        "list",
    ]
    assert name in borg_pull("archives", "job").stdout
    server.site.source.assert_nothing_left("luna")
    assert not list((server.directory / "run").iterdir())


def test_space_is_freed_without_the_key(
    server: BackupServer, data: Path, repository: Repository
) -> None:
    server.job(paths=[str(data)], retention={"keep_last": 1, "compact": False})
    assert server.run() == "success", server.events
    server.site.source.file(data / "file", os.urandom(4 << 20))
    assert server.run() == "success", server.events

    def size() -> int:
        return sum(path.stat().st_size for path in repository.path.rglob("*") if path.is_file())

    server.document["job"]["job"]["retention"]["compact"] = True
    assert server.run() == "success", server.events
    assert len(repository.archives()) == 1
    before = size()
    # Nothing changed but the third run's archive: what the first one alone had is gone.
    assert before < 5 << 20


def test_a_dry_run_says_what_prune_would_do(
    server: BackupServer, data: Path, repository: Repository, borg_pull: Command
) -> None:
    others = aged(repository, data, 2, "other")
    names = aged(repository, data, 4)
    server.job(paths=[str(data)], retention={"keep_daily": 2})
    assert "other-" not in borg_pull("archives", "job").stdout
    # Its borg would count them, whoever made them.
    assert (
        f"archives of its name were made by none of its runs: {names[0]}"
        in borg_pull("prune", "job", code=2).stderr
    )
    borg_pull("adopt", "job", "--yes")
    planned = borg_pull("prune", "job", "--dry-run").stdout.splitlines()
    assert planned == [
        *(f"would delete {name}" for name in names[:2]),
        "would delete 2 archives, kept 2",
    ]
    assert len(repository.archives()) == 6
    done = borg_pull("prune", "job").stdout.splitlines()
    assert done == [line.replace("would delete", "deleted") for line in planned]
    assert sorted(repository.archives()) == sorted([*others, *names[2:]])


def aged(repository: Repository, data: Path, days: int, job: str = "job") -> list[str]:
    """Archives of the last days, oldest first."""
    names = []
    for ago in range(days, 0, -1):
        moment = f"{datetime.now(UTC) - timedelta(days=ago):%Y-%m-%dT%H:%M:%S}"
        names.append(f"{job}-{moment}")
        repository.run("create", "--timestamp", moment, f"{repository.path}::{names[-1]}", data)
    return names


def test_a_verb_that_the_source_does_not_allow(
    server: BackupServer, data: Path, repository: Repository
) -> None:
    """One line says which key of its whitelist to change; nothing is pulled that cannot be looked
    up; and it works at once when that is done."""
    server.job(paths=[str(data)], retention={"keep_last": 5})

    def refused(verb: str, kind: Kind) -> None:
        assert server.run() == "failure"
        run = server.ledger.last("job", kind=kind)
        assert run is not None
        assert run.error == (
            f"source source does not allow {verb}, and it alone has the key of repository "
            f'repository; add "{verb}" to client.luna.allow in the whitelist there'
        )

    allow(server, data, ["create"])
    refused("list", "create")
    assert repository.archives() == []
    allow(server, data, ["create", "list"])
    refused("prune", "prune")
    assert len(repository.archives()) == 1
    allow(server, data, ALL)
    assert server.run() == "success", server.events
    # What the source allowed is remembered, but it is the source that decides.
    allow(server, data, ["create", "list"])
    refused("prune", "prune")


def test_a_source_that_deletes_what_is_on_record(
    server: BackupServer, data: Path, repository: Repository, borg_pull: Command
) -> None:
    """It has the key and a connection that may write: append-only does not keep it from that."""
    server.job(paths=[str(data)], retention={"keep_last": 5}, check={"schedule": "yearly"})
    assert server.run() == "success", server.events
    (name,) = repository.archives()
    segments = {path.name for path in (repository.path / "data").rglob("*") if path.is_file()}
    deleted_by_source(server, repository, name)
    assert repository.archives() == []
    failed = borg_pull("run", "job", code=2)
    assert name in server.ledger.runs("job", limit=1)[0].error  # type: ignore[operator]
    assert failed.stderr
    left = {path.name for path in (repository.path / "data").rglob("*") if path.is_file()}
    assert segments <= left, "nothing was made final"
    # The control: once a person has said that it is all right, retention goes on.
    assert name in borg_pull("forget", "job", "--yes").stdout
    borg_pull("run", "job")


def deleted_by_source(server: BackupServer, repository: Repository, name: str) -> None:
    """What a source that was taken over can do during a run: delete through `borg serve`."""
    served = server.directory / "served.sh"
    served.write_text(f"#!/bin/sh\nexec {server.site.borg} serve --append-only\n")
    served.chmod(0o755)
    environment = repository.environment() | {"BORG_RSH": str(served)}
    subprocess.run(
        [server.site.borg, "delete", f"ssh://here{repository.path}::{name}"],
        env=environment,
        check=True,
        capture_output=True,
    )


LIAR = """\
#!/usr/bin/python3
# A source that was taken over: it deletes an archive, and says ever after that it is there.
import json, os, shlex, subprocess, sys
words = shlex.split(os.environ["SSH_ORIGINAL_COMMAND"])
argv = {argv!r}
if words[0] != "list":
    os.execv(argv[0], argv)
listing = subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout
kept = {kept!r}
if os.path.exists(kept):
    listing = open(kept, "rb").read()
else:
    open(kept, "wb").write(listing)
sys.stdout.buffer.write(listing)
"""


def liar(server: BackupServer) -> Path:
    """Put a forced command in place that answers `list` with what it first answered."""
    source = server.site.source
    program = source.directory / "liar"
    argv = [str(source.programs.source), str(source.configuration), "luna"]
    kept = source.home / "kept"
    program.write_text(LIAR.format(argv=argv, kept=str(kept)))
    instead(server, program)
    return kept


def instead(server: BackupServer, program: Path) -> None:
    """Have the source answer with ``program``."""
    program.chmod(0o755)
    peer = server.site.peer("impostor", str(program))
    server.document["source"]["source"]["identity"] = str(peer._key)


def test_a_lie_about_an_archive_is_found_out(
    server: BackupServer, data: Path, repository: Repository, borg_pull: Command
) -> None:
    """The source goes on listing an archive that is gone: its id is in the repository no more."""
    server.job(paths=[str(data)], retention={"keep_last": 1})
    kept = liar(server)
    assert "deleted 0" in borg_pull("prune", "job").stdout
    kept.unlink()
    server.document["job"]["job"].pop("retention")
    assert server.run() == "success", server.events
    (name,) = repository.archives()
    server.document["job"]["job"]["retention"] = {"keep_last": 1}
    assert "deleted 0" in borg_pull("prune", "job").stdout, "the control: it is there"
    deleted_by_source(server, repository, name)
    assert name in borg_pull("archives", "job").stdout, "so it says"
    assert name in borg_pull("prune", "job", code=2).stderr


@pytest.mark.usefixtures("repository")
def test_an_old_archive_is_no_new_one(server: BackupServer, data: Path) -> None:
    """A source that makes no archive, and names one of before, is not believed."""
    server.job(paths=[str(data)])
    assert server.run() == "success", server.events
    run = server.ledger.last("job")
    assert run is not None
    answer = {"archive": {"name": run.archive, "id": run.archive_id, "stats": {"nfiles": 3}}}
    program = server.site.source.directory / "lazy"
    source = server.site.source
    program.write_text(
        "#!/bin/sh\n"
        f'case "$SSH_ORIGINAL_COMMAND" in create*) echo {json.dumps(json.dumps(answer))};;\n'
        f"*) exec {source.programs.source} {source.configuration} luna;; esac\n"
    )
    instead(server, program)
    assert server.run() == "failure"
    assert "not the archive" in last_error(server)


def test_damage_is_found_here_without_the_key(
    server: BackupServer, data: Path, repository: Repository, borg_pull: Command
) -> None:
    server.job(paths=[str(data)], check={"max_duration": "1h"})
    assert server.run() == "success", server.events
    segment = max((repository.path / "data/0").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 0xFF
    segment.write_bytes(content)
    assert "found damage" in borg_pull("check", "job", code=2).stderr


def test_damage_is_found_by_the_source(
    server: BackupServer, data: Path, repository: Repository, borg_pull: Command
) -> None:
    """An object is gone from a repository that is sound in itself: only the key's holder sees."""
    server.job(paths=[str(data)], check={"verify_data": True})
    assert server.run() == "success", server.events
    assert "no damage" in borg_pull("check", "job").stdout
    run = server.ledger.last("job")
    assert run is not None
    chunks = chunks_of(server, repository, str(run.archive))
    repository.run("debug", "delete-obj", repository.path, chunks[0])
    assert "found damage" in borg_pull("check", "job", code=2).stderr


def chunks_of(server: BackupServer, repository: Repository, archive: str) -> list[str]:
    """The ids of what the archive's files consist of."""
    dump = server.directory / "dump.json"
    repository.run("debug", "dump-archive", f"{repository.path}::{archive}", dump)
    items = json.loads(dump.read_text())["_items"]
    return [chunk[0].lstrip("\x7f") for item in items for chunk in item.get("chunks", [])]


def test_with_the_passphrase_sent_along(
    server: BackupServer, data: Path, repository: Repository, borg_pull: Command
) -> None:
    """A source that keeps no passphrase is sent it for each of its verbs."""
    server.site.allow(paths=[str(data)], allow=ALL, passphrase_stdin=True)
    server.job(paths=[str(data)], retention={"keep_last": 1})
    secret = server.directory / "passphrase"
    server.document["repository"]["repository"]["passphrase_file"] = str(secret)
    borg_pull("run", "job")
    borg_pull("run", "job")
    assert len(repository.archives()) == 1


@pytest.mark.usefixtures("repository")
def test_what_reads_archives_here_says_who_can(
    server: BackupServer, data: Path, tmp_path: Path, borg_pull: Command
) -> None:
    """One line, with the command that has the source do it; the source is not even asked."""
    server.job(paths=[str(data)])
    to = tmp_path / "to"
    said = "borg-pull: repository repository is for the source alone to read (key_on); run: "
    for words, instead in {
        ("extract", "job", "latest", "/", "--to", str(to)): "restore job latest PATH...",
        ("browse", "job"): "restore job latest PATH...",
        ("mount", "job", str(tmp_path)): "restore job ARCHIVE PATH...",
        ("verify", "job"): (
            "restore job latest / --dry-run, which has the source read and check it all"
        ),
    }.items():
        assert borg_pull(*words, code=78).stderr == f"{said}borg-pull {instead}\n"
    assert not to.exists()
    assert server.ledger.runs() == []
    assert server.site.source.audit() == []


def test_a_source_that_prunes_more_than_it_was_to(
    server: BackupServer, data: Path, repository: Repository
) -> None:
    source = server.site.source
    program = source.directory / "greedy"
    program.write_text(
        "#!/bin/sh\n"
        'asked=$(printf %s "$SSH_ORIGINAL_COMMAND" | sed "s/keep-last 5/keep-last 1/")\n'
        'export SSH_ORIGINAL_COMMAND="$asked"\n'
        f"exec {source.programs.source} {source.configuration} luna\n"
    )
    server.job(paths=[str(data)], retention={"keep_last": 5})
    assert [server.run(), server.run()] == ["success", "success"], server.events
    assert len(repository.archives()) == 2, "the control"
    before = {path for path in (repository.path / "data").rglob("*") if path.is_file()}
    instead(server, program)
    assert server.run() == "failure"
    run = server.ledger.last("job", kind="prune")
    assert run is not None
    assert "the source deleted archives that retention keeps" in str(run.error)
    assert "is not freed yet" in str(run.error)
    assert all(path.exists() for path in before)
    assert len(server.ledger.kept("job")) == 3
