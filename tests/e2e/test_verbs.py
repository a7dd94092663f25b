"""Every verb does its work for a client whose ``allow`` names it, and nothing otherwise."""

from __future__ import annotations

import json
import os

import pytest

from tests.harness.peer import PASSPHRASE
from tests.harness.site import Site

VERBS = {
    "create": "create {repository} archive {data}",
    "init": "init {repository} -e none",
    "list": "list {repository}",
    "info": "info {repository}",
    "check": "check {repository}",
    "prune": "prune {repository} --keep-last 1 --glob-archives 'luna-*'",
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_not_allowed_is_refused(site: Site, verb: str) -> None:
    data = site.source.tree()
    site.allow(
        paths=[str(data)], encryption=["none"], allow=[other for other in VERBS if other != verb]
    )
    repository = site.peer().repository(initialised=False)
    result = site.pull(VERBS[verb].format(repository=repository.path, data=data), repository)
    assert result.exit == 77
    assert result.errors == (
        f"borg-pull-source: verb {verb} is not allowed to client luna; allowed are "
        + ", ".join([*(other for other in VERBS if other != verb), "hello"])
        + "\n"
    )
    assert result.stdout == b""
    (refused,) = site.source.audit()
    assert (refused["event"], refused["exit"], refused["verb"]) == ("refused", 77, verb)


@pytest.mark.parametrize("mode", ["none", "repokey", "keyfile", "authenticated-blake2"])
def test_init_then_create(site: Site, mode: str) -> None:
    data = site.source.tree()
    site.source.file(data / "file", "content")
    passphrase = (
        {}
        if mode == "none"
        else {"passphrase_file": str(site.source.secret("passphrase", PASSPHRASE + "\n"))}
    )
    site.allow(paths=[str(data)], allow=["create", "init"], encryption=[mode], **passphrase)
    repository = site.peer().repository(initialised=False)
    made = site.pull(f"init -e {mode} {repository.path}", repository)
    assert made.exit == 0, made.errors
    saved = site.pull(f"create {repository.path} a {data}", repository)
    assert (saved.exit, saved.complaints) == (0, "")
    keys = site.source.state("luna") / ".config/borg/keys"
    assert bool(list(keys.glob("*"))) is (mode == "keyfile")
    if mode != "keyfile":
        assert repository.archives() == ["a"]


def test_init_with_a_mode_not_allowed(site: Site) -> None:
    site.allow(allow=["init"], encryption=["repokey"])
    repository = site.peer().repository(initialised=False)
    for request, reason in (
        (f"init {repository.path} -e none", "encryption mode none is not allowed to client luna"),
        (f"init {repository.path}", "init needs --encryption"),
    ):
        result = site.pull(request, repository)
        assert result.exit == 77
        assert reason in result.errors
    assert not repository.path.exists()


def test_list_and_info_answer_with_one_object(site: Site) -> None:
    data = site.source.tree()
    site.source.file(data / "file", "content")
    site.allow(paths=[str(data)], allow=["create", "list", "info"])
    repository = site.repository()
    for archive in ("one", "two"):
        assert site.pull(f"create {repository.path} {archive} {data}", repository).exit == 0
    listed = site.pull(f"list {repository.path}", repository)
    assert listed.exit == 0, listed.errors
    assert [item["name"] for item in json.loads(listed.stdout)["archives"]] == ["one", "two"]
    last = site.pull(f"list {repository.path} --last 1", repository)
    assert [item["name"] for item in json.loads(last.stdout)["archives"]] == ["two"]
    told = site.pull(f"info {repository.path}", repository)
    assert "cache" in json.loads(told.stdout)
    told = site.pull(f"info {repository.path} one", repository)
    assert json.loads(told.stdout)["archives"][0]["stats"]["nfiles"] == 1


def test_check_finds_damage(site: Site) -> None:
    data = site.source.tree()
    site.source.file(data / "file", os.urandom(200_000))
    site.allow(paths=[str(data)], allow=["create", "check"])
    repository = site.repository()
    assert site.pull(f"create {repository.path} a {data}", repository).exit == 0
    assert site.pull(f"check {repository.path}", repository).exit == 0
    segment = max((repository.path / "data/0").iterdir(), key=lambda path: path.stat().st_size)
    damaged = bytearray(segment.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    segment.write_bytes(damaged)
    assert site.pull(f"check {repository.path}", repository).exit == 1
    assert [record["result"] for record in site.source.audit(event="complete")] == [
        "success",
        "success",
        "warning",
    ]


def test_prune_keeps_what_it_should(site: Site) -> None:
    data = site.source.tree()
    site.allow(paths=[str(data)], allow=["create", "prune"])
    repository = site.repository()
    for archive in ("luna-1", "luna-2", "other-1"):
        assert site.pull(f"create {repository.path} {archive} {data}", repository).exit == 0
    pruned = site.pull(
        f"prune {repository.path} --keep-last 1 --glob-archives 'luna-*'", repository
    )
    assert pruned.exit == 0, pruned.errors
    assert repository.archives() == ["luna-2", "other-1"]


@pytest.mark.parametrize(
    ("request_text", "code", "reason"),
    [
        ("prune {} --keep-last 1", 77, "prune needs --glob-archives"),
        ("prune {} --glob-archives 'luna-*'", 77, "prune needs at least one --keep option"),
        ("prune {} --keep-last 1 --glob-archives '*'", 64, "selects every archive"),
        ("prune {} --keep-last 1 --glob-archives 'l*' --force", 64, "unknown option"),
    ],
)
def test_prune_without_bounds_is_refused(
    site: Site, request_text: str, code: int, reason: str
) -> None:
    site.allow(allow=["prune"])
    repository = site.repository()
    result = site.pull(request_text.format(repository.path), repository)
    assert result.exit == code
    assert reason in result.errors


def test_append_only_serving_is_enough_for_create(site: Site) -> None:
    data = site.source.tree()
    site.allow(paths=[str(data)])
    repository = site.repository()
    result = site.peer().pull(f"create {repository.path} a {data}", repository, append_only=True)
    assert (result.exit, result.complaints) == (0, "")
    assert repository.archives() == ["a"]


def test_hello_tells_what_a_driver_needs(site: Site) -> None:
    site.allow(paths=["/data"], allow=["create", "list"])
    result = site.pull("hello")
    assert (result.exit, result.complaints) == (0, "")
    (line,) = result.stdout.splitlines()
    told = json.loads(line)
    assert set(told["verbs"]) == {"create", "list", "hello"}
    assert told["socket_directory"] == str(site.source.socket_dir)
    assert told["borg"].startswith(site.build.borg + ".")
    assert told["confinement"]["capability"] is site.source.programs.capable
    assert told["confinement"]["no_new_privs"] is True
    assert isinstance(told["protocol"], int)
    assert told["version"]
    (record,) = site.source.audit()
    assert (record["event"], record["verb"], record["exit"]) == ("answered", "hello", 0)
    assert record["argv"] == [str(site.borg), "--version"]
    assert record["duration"] > 0
    site.source.assert_chain()
