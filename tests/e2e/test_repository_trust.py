"""Borg's questions about a repository never hang a run: the whitelist answers them.

Threat: whoever holds the backup server swaps the repository for an unencrypted one, or for a copy
elsewhere, and the source sends its data there.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.harness.peer import PASSPHRASE, Repository
from tests.harness.site import Site


def test_an_unknown_unencrypted_repository_is_refused(site: Site) -> None:
    data = site.source.tree()
    repository = site.repository()
    site.allow(paths=[str(data)], allow_unknown_repository=False)
    result = site.pull(f"create {repository.path} a {data}", repository)
    assert result.exit == 2
    assert "allow_unknown_repository" in result.errors
    assert repository.archives() == []
    assert not repository.locked()


def test_an_unknown_repository_may_be_allowed_once(site: Site) -> None:
    """What has been accepted stays known when the key is taken back."""
    data = site.source.tree()
    repository = site.repository()
    site.allow(paths=[str(data)], allow_unknown_repository=True)
    first = site.pull(f"create {repository.path} a {data}", repository)
    assert (first.exit, first.complaints) == (0, "")
    site.allow(paths=[str(data)], allow_unknown_repository=False)
    second = site.pull(f"create {repository.path} b {data}", repository)
    assert (second.exit, second.complaints) == (0, "")


def _relocated(site: Site, data: Path, keys: dict[str, object]) -> Repository:
    """A repository that was pulled to once, and stands elsewhere now."""
    before = site.repository("before", encryption="repokey")
    site.allow(paths=[str(data)], **keys)
    result = site.pull(f"create {before.path} a {data}", before)
    assert result.exit == 0, result.errors
    after = site.peer().repository("after", encryption="repokey", initialised=False)
    shutil.move(before.path, after.path)
    return after


@pytest.mark.parametrize("allowed", [False, True])
def test_a_relocated_repository(site: Site, allowed: bool) -> None:
    data = site.source.tree()
    keys: dict[str, object] = {
        "passphrase_file": str(site.source.secret("passphrase", PASSPHRASE + "\n")),
    }
    repository = _relocated(site, data, keys)
    site.allow(paths=[str(data)], allow_relocated_repository=allowed, **keys)
    result = site.pull(f"create {repository.path} b {data}", repository)
    if allowed:
        assert result.exit == 0, result.errors
        assert repository.archives() == ["a", "b"]
    else:
        assert result.exit == 2
        assert "allow_relocated_repository" in result.errors
        assert repository.archives() == ["a"]
    assert not repository.locked()


def test_a_repository_swapped_for_an_unencrypted_one(site: Site) -> None:
    """The control of the attack: an encrypted repository is replaced at its own path."""
    data = site.source.tree()
    passphrase = str(site.source.secret("passphrase", PASSPHRASE + "\n"))
    repository = site.repository(encryption="repokey")
    site.allow(paths=[str(data)], passphrase_file=passphrase, allow_unknown_repository=False)
    assert site.pull(f"create {repository.path} a {data}", repository).exit == 0
    shutil.rmtree(repository.path)
    swapped = site.repository("other")
    shutil.move(swapped.path, repository.path)
    result = site.pull(f"create {repository.path} b {data}", repository)
    assert result.exit == 2
    assert "allow_unknown_repository" in result.errors


def test_a_repository_not_on_the_list(site: Site) -> None:
    data = site.source.tree()
    listed, other = site.repository("listed"), site.repository("other")
    site.allow(paths=[str(data)], repositories=[str(listed.path)])
    assert site.pull(f"create {other.path} a {data}", other).exit == 77
    assert site.pull(f"create {listed.path} a {data}", listed).exit == 0
