"""A pull brings the whole tree back: every kind of file, every form of the request that says so."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from tests.harness import trees
from tests.harness.site import Site


@pytest.mark.builds("every")
def test_everything_comes_back(site: Site, tmp_path: Path) -> None:
    data = site.source.tree()
    trees.build(data, uid=site.account.uid, gid=site.account.gid)
    site.allow(paths=[str(data)])
    repository = site.repository()

    first = site.pull(f"create {repository.path} first {data}", repository)
    assert (first.exit, first.complaints) == (0, "")
    (data / "text").write_text("changed\n")
    (data / "added").write_text("new\n")
    second = site.pull(f"create {repository.path} second {data}", repository)
    assert (second.exit, second.complaints) == (0, "")

    assert repository.archives() == ["first", "second"]
    restored = repository.extract("second", tmp_path / "out") / data.relative_to("/")
    assert trees.differences(data, restored) == []
    repository.check()
    site.source.assert_nothing_left("luna")
    assert [record["result"] for record in site.source.audit(event="complete")] == ["success"] * 2
    site.source.assert_chain()


@pytest.mark.needs_root
@pytest.mark.builds("frozen")
def test_what_only_root_can_read_comes_back(site: Site, tmp_path: Path) -> None:
    data = site.source.tree()
    trees.build(data, uid=0, gid=0)
    (data / "deep").chmod(0o700)
    site.allow(paths=[str(data)])
    repository = site.repository()
    result = site.pull(f"create {repository.path} first {data}", repository)
    assert (result.exit, result.complaints) == (0, "")
    restored = repository.extract("first", tmp_path / "out") / data.relative_to("/")
    assert trees.differences(data, restored) == []


def test_several_paths_and_names_in_quotes(site: Site, tmp_path: Path) -> None:
    names = ["plain", "with space", 'quote\'d "twice"', "back\\slash", "$(id) `x` *"]
    paths = [site.source.tree(name) for name in names]
    for path in paths:
        site.source.file(path / "content", path.name)
    site.allow(paths=list(map(str, paths)))
    repository = site.repository()
    quoted = " ".join(
        "'" + str(path).replace("'", "'\\''") + "'" if number % 2 else _double_quoted(path)
        for number, path in enumerate(paths)
    )
    result = site.pull(f"create {repository.path} all {quoted}", repository)
    assert (result.exit, result.complaints) == (0, "")
    out = repository.extract("all", tmp_path / "out")
    for path in paths:
        assert (out / path.relative_to("/") / "content").read_text() == path.name
    (start,) = site.source.audit(event="start")
    assert start["paths"] == list(map(str, paths))


def _double_quoted(path: Path) -> str:
    return '"' + re.sub(r'(["\\$`])', r"\\\1", str(path)) + '"'


def test_a_path_that_is_not_text(site: Site) -> None:
    """Borg cannot end a run that was given one; what is above it brings it along."""
    tree = site.source.tree()
    odd = os.path.join(os.fsencode(tree), b"caf\xe9")
    os.mkdir(odd)
    site.source.give(Path(os.fsdecode(odd)))
    site.allow(trees=[str(tree)])
    repository = site.repository()
    result = site.pull(b"create %s odd %s" % (os.fsencode(repository.path), odd))
    assert result.exit == 64
    assert "ask for what is above it" in result.errors
    result = site.pull(f"create {repository.path} whole {tree}", repository)
    assert (result.exit, result.complaints) == (0, "")
    assert "caf" in repository.run("list", "--short", f"{repository.path}::whole")


def test_a_single_file_is_a_path_too(site: Site) -> None:
    path = site.source.file(site.source.tree() / "one file", "content")
    site.allow(paths=[str(path)])
    repository = site.repository()
    assert site.pull(f"create {repository.path} a '{path}'", repository).exit == 0
    assert repository.run("list", "--short", f"{repository.path}::a").splitlines() == [
        str(path)[1:]
    ]


def test_flags_before_and_after_the_verb(site: Site) -> None:
    data = site.source.tree()
    site.source.file(data / "kept", "kept")
    site.source.file(data / "left.tmp", "left out")
    site.allow(
        paths=[str(data)],
        flags=["compression", "comment", "exclude", "json", "stats", "progress", "log-json"],
    )
    repository = site.repository()
    result = site.pull(
        f"--comment 'two words' create -C zstd,5 --json --exclude '*.tmp' "
        f"{repository.path} a {data}",
        repository,
    )
    assert result.exit == 0, result.errors
    said = json.loads(result.stdout)
    assert said["archive"]["name"] == "a"
    stored = json.loads(repository.run("info", "--json", f"{repository.path}::a"))
    assert stored["archives"][0]["comment"] == "two words"
    assert "left.tmp" not in repository.run("list", "--short", f"{repository.path}::a")
    (complete,) = site.source.audit(event="complete")
    assert complete["archive_stats"]["nfiles"] == 1


def test_progress_and_statistics_reach_the_peer(site: Site) -> None:
    data = site.source.tree()
    site.source.file(data / "file", os.urandom(1 << 20))
    site.allow(paths=[str(data)])
    repository = site.repository()
    result = site.pull(f"create --log-json -p --stats {repository.path} a {data}", repository)
    assert result.exit == 0
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    assert {"archive_progress", "log_message"} <= {line["type"] for line in lines}


def test_the_modern_exit_code_comes_last(site: Site) -> None:
    """With --log-json the last line tells borg's own code, which ssh's exit cannot."""
    data = site.source.tree()
    site.allow(paths=[str(data)])
    repository = site.peer().repository(initialised=False)
    result = site.pull(f"create --log-json {repository.path} a {data}", repository)
    assert result.exit == 2
    last = json.loads(result.stderr.splitlines()[-1])
    (complete,) = site.source.audit(event="complete")
    assert complete["borg_code"] == {"1.2": 2, "1.4": 13}[site.build.borg]
    assert complete["borg_code"] in last.values()
    assert complete["exit"] == 2


def test_dry_run_saves_nothing(site: Site) -> None:
    data = site.source.tree()
    site.allow(paths=[str(data)])
    repository = site.repository()
    assert site.pull(f"create --dry-run {repository.path} a {data}", repository).exit == 0
    assert repository.archives() == []


def test_placeholders_in_the_archive_name(site: Site) -> None:
    data = site.source.tree()
    site.allow(paths=[str(data)])
    repository = site.repository()
    name = "{hostname}-{now:%Y-%m-%d}-{utcnow}"
    result = site.pull(f"create {repository.path} '{name}' {data}", repository)
    assert (result.exit, result.complaints) == (0, "")
    (archive,) = repository.archives()
    assert re.fullmatch(
        re.escape(os.uname().nodename) + r"-\d{4}-\d\d-\d\d-\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", archive
    )
    assert site.source.audit(event="start")[0]["archive"] == archive


def test_one_file_system(site: Site) -> None:
    data = site.source.tree()
    site.source.file(data / "file", "content")
    site.allow(paths=[str(data)], required_flags=["one-file-system"])
    repository = site.repository()
    assert site.pull(f"create {repository.path} a {data}", repository).exit == 77
    assert site.pull(f"-x create {repository.path} a {data}", repository).exit == 0


def test_forced_excludes_hold(site: Site) -> None:
    data = site.source.tree()
    site.source.file(data / "secret.key", "secret")
    site.source.file(data / "kept", "kept")
    site.allow(paths=[str(data)], excludes=["*.key"])
    repository = site.repository()
    assert site.pull(f"create {repository.path} a {data}", repository).exit == 0
    names = repository.run("list", "--short", f"{repository.path}::a")
    assert "kept" in names
    assert "secret" not in names


def test_a_socket_of_the_run_alone(site: Site) -> None:
    """--socket NONCE gives each run a name of its own, so that none waits for another's."""
    data = site.source.tree()
    site.allow(paths=[str(data)])
    repository = site.repository()
    nonce = "0123456789abcdefXYZ"
    remote = site.source.socket(f"luna.{nonce}")
    result = site.peer().pull(
        f"create --socket {nonce} {repository.path} a {data}", repository, remote_socket=remote
    )
    assert (result.exit, result.complaints) == (0, "")
    assert not remote.exists()
