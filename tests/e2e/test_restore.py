"""`restore`: files come back to the source, into a new directory of the staging directory."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.harness.peer import Repository
from tests.harness.site import Site


def saved(site: Site, **keys: Any) -> tuple[Path, Path, Repository]:
    """The tree that archive ``a`` holds, the staging directory, the repository."""
    data = site.source.tree()
    site.source.file(data / "deep" / "a b", b"spaced")
    site.source.file(data / "other", b"other")
    (data / "link").symlink_to("/etc/passwd")
    staging = site.source.tree("staging")
    rules = {"paths": [str(data)], "allow": ["create", "restore"], "restore_to": str(staging)}
    site.allow(**(rules | keys))
    repository = site.repository()
    assert site.pull(f"create {repository.path} a {data}", repository).exit == 0
    return data, staging, repository


def test_files_come_back_beside_the_old_ones(site: Site) -> None:
    data, staging, repository = saved(site)
    dry = site.pull(f"restore -n --list {repository.path} a {data}/deep", repository)
    assert (dry.exit, os.listdir(staging)) == (0, [])
    assert f"{data}/deep/a b"[1:] in dry.errors

    part = site.pull(f"restore {repository.path} a {data}/deep", repository)
    assert part.exit == 0, part.errors
    (made,) = staging.iterdir()
    assert f"borg-pull-source: what was restored is in {made}\n" in part.errors
    back = Path(f"{made}{data}")
    assert (back / "deep/a b").read_bytes() == b"spaced"
    assert os.listdir(back) == ["deep"]
    assert (made.stat().st_mode & 0o777, made.stat().st_uid) == (0o700, site.account.uid)

    whole = site.pull(f"restore --log-json {repository.path} a /", repository)
    assert whole.exit == 0, whole.errors
    result = json.loads(whole.errors.splitlines()[-1])
    assert Path(result["directory"]) in set(staging.iterdir()) - {made}
    back = Path(result["directory"] + str(data))
    assert (back / "other").read_bytes() == b"other"
    assert os.readlink(back / "link") == "/etc/passwd"

    starts = site.source.audit(event="start", verb="restore")
    assert [one["directory"] for one in starts] == [None, str(made), result["directory"]]
    assert starts[1]["members"] == [f"{data}/deep"]
    assert starts[1]["paths"] == []
    assert starts[1]["confinement"]["capability"] is False
    assert starts[1]["argv"][1] == "extract"


def test_without_the_key_or_the_verb_nothing_is_restored(site: Site) -> None:
    data, staging, repository = saved(site)
    request = f"restore {repository.path} a {data}"
    for rules in ({"allow": ["create", "restore"]}, {"restore_to": str(staging)}):
        site.allow(paths=[str(data)], **rules)
        refused = site.pull(request, repository)
        assert refused.exit == 77, refused.errors
    assert os.listdir(staging) == []
    assert not site.source.audit(event="start", verb="restore")


@pytest.mark.needs_root
def test_a_staging_directory_that_is_not_the_accounts_alone(site: Site) -> None:
    data, staging, repository = saved(site)
    link = staging.parent / "link"
    link.symlink_to(staging)
    others = staging.parent / "others"
    others.mkdir(mode=0o777)
    roots = staging.parent / "roots"
    roots.mkdir(mode=0o755)
    site.source.give(others)
    others.chmod(0o770)
    for directory, reason in (
        (link, "symbolic link"),
        (link / "below", "symbolic link"),
        (others, "can be written by others"),
        (roots, "belongs to uid 0"),
        (staging / "missing", "No such file"),
    ):
        site.allow(allow=["restore"], restore_to=str(directory))
        for switch in ("", "-n"):
            refused = site.pull(f"restore {switch} {repository.path} a {data}", repository)
            assert (refused.exit, reason in refused.errors) == (78, True), refused.errors
    assert [os.listdir(one) for one in (staging, others, roots)] == [[], [], []]


def test_nothing_is_left_of_a_restore_of_nothing(site: Site) -> None:
    _, staging, repository = saved(site)
    for archive, path, code in (("none", "/", 2), ("a", "/no/such", 1)):
        result = site.pull(f"restore {repository.path} {archive} {path}", repository)
        assert result.exit == code, result.errors
    assert os.listdir(staging) == []
