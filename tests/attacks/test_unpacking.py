"""A hostile source makes archives that, unpacked here, change what lies elsewhere.

borg follows what it has unpacked itself: a link that it could not take away, a hard link to one.
Landlock keeps it from writing elsewhere, not from setting modes and owners, and whoever unpacks can
write the repository. The list of the archive is looked at first; should borg unpack another thing
than it lists, no file but those in the directory can be changed.
"""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import _prctl  # type: ignore[import-not-found, unused-ignore]
import pytest

from borg_pull.errors import RequestError
from borg_pull.linux import mounts
from borg_pull.pull import tree
from borg_pull.pull.repository import Cell, LocalRepository
from tests.harness import made_archive
from tests.harness.child import said_by_child
from tests.pull.conftest import BackupServer, server
from tests.pull.test_commands import Command, borg_pull, program

__all__ = ["borg_pull", "program", "server"]  # fixtures

pytestmark = pytest.mark.builds("frozen")

OUTSIDE, FILE, REPOSITORY = "{outside}", "{outside}/secret", "{repository}/config"

Items = list[dict[str, Any]]


def _stuck(target: str, second: dict[str, Any]) -> Items:
    """``q`` has borg set the mode of ``p``, in which only root can then take the link away."""
    return [
        {"path": "p", "mode": 0o500},
        {"path": "p/1", "target": target},
        {"path": "q", "content": "q"},
        {"path": "p/1", **second},
    ]


HOSTILE: dict[str, Items] = {
    "a link that stays, then a directory": _stuck(OUTSIDE, {"mode": 0o777}),
    "a link that stays, then a file": _stuck(FILE, {"content": "planted", "mode": 0o666}),
    "a link into the repository that stays": _stuck(REPOSITORY, {"content": "planted"}),
    "below a hard link to a link": [
        {"path": "a", "target": OUTSIDE},
        {"path": "h", "same_as": "a"},
        {"path": "h/x", "content": "planted"},
    ],
    "a mode below a hard link to a link": [
        {"path": "a", "target": "{outside}/.."},
        {"path": "h", "same_as": "a"},
        {"path": "h/outside", "mode": 0o777},
    ],
    "a hard link to what is not in the archive": [{"path": "h", "same_as": "../outside/secret"}],
    "a link in the place of a directory": [
        {"path": "d/f", "content": "f"},
        {"path": "d", "target": OUTSIDE},
    ],
}

# Which of borg's versions is led where, and as whom, differs.
TRIED = ("a link into the repository that stays", "a mode below a hard link to a link")

HONEST: Items = [
    {"path": "d", "mode": 0o2750},
    {"path": "d/file", "content": "file"},
    {"path": "d/same", "same_as": "d/file"},
    {"path": "d/link", "target": "/nonexistent"},
    # As overlapping paths of a job give them.
    {"path": "d", "mode": 0o2750},
    {"path": "d/file", "content": "file"},
]


class Outside:
    """What must not change: a directory, a secret in it, the repository."""

    def __init__(self, server: BackupServer) -> None:
        self.path = server.directory / "outside"
        self.path.mkdir(mode=0o750)
        (self.path / "secret").write_text("secret")
        (self.path / "secret").chmod(0o600)
        self.repository = server.repository().path

    def archive(self, name: str, items: Items) -> None:
        """Make one whose links lead here."""
        filled = [
            item
            if "target" not in item
            else item
            | {"target": item["target"].format(outside=self.path, repository=self.repository)}
            for item in items
        ]
        made_archive.make(str(self.repository), name, filled)

    def state(self) -> dict[str, tuple[int, int, bytes]]:
        """Modes, owners and content of all."""
        found = {}
        for top in (self.path, self.repository):
            for place, _, names in os.walk(top):
                for path in (Path(place), *(Path(place, name) for name in names)):
                    status = path.stat()
                    content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
                    found[str(path)] = (status.st_mode, status.st_uid, content)
        return found


@pytest.mark.parametrize("name", HOSTILE)
def test_what_makes_no_tree_is_found(name: str) -> None:
    assert [fault for fault in _faults(HOSTILE[name]) if fault is not None]


def test_what_borg_makes_is_a_tree() -> None:
    assert not any(_faults(HONEST))
    part = tree.Tree(is_whole=False)
    assert part.fault("d/same", "h", "d/file") is None
    assert part.fault("d/other", "h", "../d/file") is not None


def _faults(items: Items) -> Iterator[str | None]:
    found = tree.Tree(is_whole=True)
    for item in items:
        kinds = {"content": "-", "target": "l", "same_as": "h"}
        kind = next((kind for key, kind in kinds.items() if key in item), "d")
        yield found.fault(item["path"], kind, item.get("same_as") or item.get("target", ""))


def test_what_makes_no_tree_is_not_unpacked(server: BackupServer, borg_pull: Command) -> None:
    outside = Outside(server)
    server.job(paths=["/x"])
    for number, name in enumerate(TRIED):
        outside.archive(f"job-{number}", HOSTILE[name])
        to = server.directory / f"to-{number}"
        refused = borg_pull("extract", "job", f"job-{number}", "/", "--to", str(to), code=2)
        assert "lead out" in refused.stderr, name
        assert not to.exists()
    outside.archive("job-honest", HONEST)
    to = server.directory / "honest"
    borg_pull("extract", "job", "job-honest", "/", "--to", str(to))
    assert (to / "d/file").read_text() == (to / "d/same").read_text() == "file"
    assert stat.S_IMODE((to / "d").stat().st_mode) == 0o2750
    part = server.directory / "part"
    borg_pull("extract", "job", "job-honest", "/d/same", "--to", str(part))
    assert (part / "d/same").read_text() == "file"


def test_what_the_list_does_not_show_the_kernel_forbids(server: BackupServer) -> None:
    outside = Outside(server)
    repository = LocalRepository(server.config().repository["repository"], lambda: None)
    for number, name in enumerate(TRIED):
        outside.archive(f"job-{number}", HOSTILE[name])
        before = outside.state()
        _unpack(server, repository, f"job-{number}")
        assert outside.state() == before, name
    outside.archive("job-honest", HONEST[:4])
    to = _unpack(server, repository, "job-honest")
    assert (to / "d/same").read_text() == "file"
    assert stat.S_IMODE((to / "d").stat().st_mode) == 0o2750


def _unpack(server: BackupServer, repository: LocalRepository, archive: str) -> Path:
    to, own = server.directory / f"to-{archive}", server.directory / f"own-{archive}"
    to.mkdir()
    own.mkdir()
    location = f"{repository.repository.path}::{archive}"
    process = repository.start(
        ["extract", location], stdout=subprocess.DEVNULL, confined_to=Cell(to, own)
    )
    process.communicate()
    return to


@pytest.mark.needs_root
@pytest.mark.parametrize("user", [0, 65534])
def test_only_the_directory_can_be_changed(user: int) -> None:
    """An ordinary user has it from a user namespace, where the system gives him one."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as top:
        inside, outside = Path(top, "inside"), Path(top, "outside")
        for path in (Path(top), inside, outside):
            path.mkdir(exist_ok=True)
            os.chown(path, user, user)

        def confined() -> None:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            # As after exec: its own /proc is its user's.
            _prctl.prctl(_prctl.PR_SET_DUMPABLE, 1)
            is_sealed = mounts.keep_writable([str(inside)])
            inside.chmod(0o711)
            (inside / "file").write_text("file")
            if user != 0 and not is_sealed:
                return  # the list alone stands guard there
            changes: tuple[Callable[[], None], ...] = (
                lambda: outside.chmod(0o777),
                lambda: os.chown(outside, user, user),
                lambda: os.utime(outside),
                lambda: (outside / "file").touch(),
            )
            for change in changes:
                with pytest.raises(OSError, match="Read-only file system"):
                    change()

        assert said_by_child(confined) == ""
        assert (inside / "file").exists()


def test_a_tree_is_remembered_at_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Millions of claimed paths are not a way to this host's memory."""
    found = tree.Tree(is_whole=True)
    for number in range(20000):
        assert found.fault(f"d/{number % 100}/{number}", "-", "") is None
    assert found.fault("d/0/0", "l", "/etc") == "is there twice"
    assert found.fault("d/0/0/x", "-", "") == "lies below what is no directory"
    monkeypatch.setattr(tree, "MOST_ITEMS", 20200)
    with pytest.raises(RequestError, match="more than 20200 items"):
        [found.fault(f"e/{number}", "-", "") for number in range(200)]
