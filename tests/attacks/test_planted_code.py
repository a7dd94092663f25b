"""What a taken-over borg leaves behind runs in nobody's name later (D).

Threat: a borg that was taken over writes in its client's state directory, which outlives the run.
Debian's borg is a Python program: an interpreter that takes the directory for its user's home runs
the ``.pth`` files in it, in the next request's borg, unconfined in the one that tells its version.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.harness.site import Site

pytestmark = [pytest.mark.needs_root, pytest.mark.builds("frozen")]


def _plant(site: Site, home: Path, mark: Path) -> None:
    packages = home / ".local/lib/python3.11/site-packages"
    made = [home, *reversed([path for path in packages.parents if home in path.parents]), packages]
    for directory in made:
        if not directory.exists():
            directory.mkdir(mode=0o700)
            site.source.give(directory)
    site.source.file(packages / "planted.pth", f"import os; open({str(mark)!r}, 'w').close()\n")


def test_nothing_planted_in_the_state_directory_runs(site: Site) -> None:
    data = site.source.tree()
    site.allow(paths=[str(data)], allow=["create", "list"])
    repository = site.repository()
    assert site.pull(f"create {repository.path} a {data}", repository).exit == 0
    state = site.source.state("luna")
    mark = state / "it-ran"
    _plant(site, state, mark)
    assert site.pull("hello").exit == 0
    assert site.pull(f"create {repository.path} b {data}", repository).exit == 0
    assert site.pull(f"list {repository.path}", repository).exit == 0
    assert not mark.exists()


def test_control_what_is_planted_in_a_home_does_run(site: Site) -> None:
    site.allow()
    home = site.source.tree("home-of-a-person")
    mark = home / "it-ran"
    _plant(site, home, mark)
    subprocess.run(
        ["/usr/bin/python3", "-c", ""],
        env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
        user=site.account.uid,
        group=site.account.gid,
        extra_groups=[],
        check=True,
    )
    assert mark.exists()
