"""A granted path that cannot be saved is a failure the peer sees, never an empty archive."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.harness.builds import Build
from tests.harness.fixtures import SiteMaker
from tests.harness.site import Site


def _refused(site: Site, path: Path | str, code: int, reason: str, **keys: object) -> None:
    site.allow(paths=[str(path)], **keys)
    repository = site.repository()
    result = site.pull(f"create {repository.path} a '{path}'", repository)
    assert (result.exit, result.stdout) == (code, b"")
    assert reason in result.errors
    assert result.errors.startswith("borg-pull-source: ")
    assert result.errors.count("\n") == 1
    assert repository.archives() == []
    (refused,) = site.source.audit()
    assert (refused["event"], refused["exit"]) == ("refused", code)
    assert reason in refused["reason"]
    site.source.assert_nothing_left("luna")


def test_a_missing_path(site: Site) -> None:
    _refused(site, site.source.directory / "missing", 71, "cannot be read: No such file")


def test_one_missing_path_of_two(site: Site) -> None:
    data = site.source.tree()
    missing = site.source.directory / "missing"
    site.allow(paths=[str(data), str(missing)])
    repository = site.repository()
    result = site.pull(f"create {repository.path} a {data} {missing}", repository)
    assert result.exit == 71
    assert repository.archives() == []


def test_an_empty_directory_that_must_not_be(site: Site) -> None:
    _refused(site, site.source.tree(), 71, "is empty", refuse_empty=True)


def test_an_empty_file_that_must_not_be(site: Site) -> None:
    path = site.source.file(site.source.tree() / "file", "")
    _refused(site, path, 71, "is empty", refuse_empty=True)


def test_an_empty_directory_is_saved_otherwise(site: Site) -> None:
    data = site.source.tree()
    site.allow(paths=[str(data)])
    repository = site.repository()
    assert site.pull(f"create {repository.path} a {data}", repository).exit == 0
    assert repository.archives() == ["a"]


@pytest.mark.needs_root
@pytest.mark.parametrize("kind", ["directory", "file"])
def test_a_path_the_account_cannot_read(make_site: SiteMaker, build: Build, kind: str) -> None:
    """Without the capability the account's own permissions decide."""
    site = make_site(build, capable=False)
    path = site.source.tree("secret")
    if kind == "file":
        path = site.source.file(path / "file", "content")
    os.chown(path, 0, 0)
    path.chmod(0o600)
    _refused(site, path, 71, "cannot be read: Permission denied")


@pytest.mark.parametrize("where", ["itself", "in the middle"])
def test_a_path_that_is_a_link_or_leads_through_one(site: Site, where: str) -> None:
    data = site.source.tree()
    site.source.file(data / "sub/file", "content")
    link = site.source.directory / "link"
    link.symlink_to(data)
    _refused(site, link if where == "itself" else link / "sub", 77, "symbolic link")


def test_a_warning_of_borgs_own_is_passed_on(site: Site) -> None:
    """A file that grows while it is read, or goes before it is: borg saves the rest and warns."""
    data = site.source.tree()
    site.source.file(data / "a file", os.urandom(12 << 20))
    site.source.file(data / "z goes", "content")
    site.allow(paths=[str(data)])
    repository = site.repository()
    peer = site.peer()
    with peer.listening(repository, hold_after=500_000) as listener:
        pull = peer.start(f"create {repository.path} a {data}", listener)
        listener.held()
        with (data / "a file").open("ab") as file:
            file.write(b"more")
        listener.release()
        result = pull.wait()
    assert result.exit == 1
    assert "a file: file changed while we backed it up" in result.errors
    assert repository.archives() == ["a"]
    (complete,) = site.source.audit(event="complete")
    assert (complete["result"], complete["exit"]) == ("warning", 1)
    assert complete["borg_code"] == {"1.2": 1, "1.4": 100}[site.build.borg]
