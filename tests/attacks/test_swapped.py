"""Components of a granted path, swapped as fast as the kernel can, lead nowhere else (E).

Threat: someone may write in a directory above the path that is asked for. In a loop he exchanges
one of its components for a symbolic link to where root's secrets are, and back: between any two
looks at the path, ours or borg's. 200 runs of the forced command under that loop read nothing of
the secret.

Most runs are of the forced command alone, started as sshd would, whose borg is a stand-in that
opens all it can by the path for as long as it is let; the last ones go over ssh, with the real
borg, into a repository that is searched afterwards. The control is the same stand-in without
Landlock, to which the loop does give the secret.
"""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness.builds import FROZEN_12
from tests.harness.fixtures import SiteMaker
from tests.harness.peer import Repository
from tests.harness.site import Site

pytestmark = pytest.mark.needs_root

RUNS, OF_BORG = 200, 10
SECRET, OPEN = b"secret-" + secrets.token_hex(16).encode(), b"open-" + b"x" * 32

# Reads by the path, and by the directory it opens by it, some thousand times.
STAND_IN = """\
#!/usr/bin/python3 -I
import os, sys, time
path, seen, end = sys.argv[-1], set(), time.monotonic() + 0.025
while time.monotonic() < end:
    for below in (None, path):
        try:
            at = None if below is None else os.open(below, os.O_RDONLY)
            file = os.open(path + "/file" if at is None else "file", os.O_RDONLY, dir_fd=at)
            seen.add(os.read(file, 100))
            os.close(file)
            if at is not None:
                os.close(at)
        except OSError:
            pass
with open(os.environ["BORG_BASE_DIR"] + "/seen", "ab") as file:
    file.write(b"".join(content + b"\\n" for content in seen))
"""
SWAPPER = """\
import ctypes, sys
exchange, (one, other) = ctypes.CDLL(None).renameat2, map(str.encode, sys.argv[1:])
while exchange(-100, one, -100, other, 2) == 0:
    pass
"""


class Scene:
    """A granted path of which one component is swapped, and the secret that the link leads to."""

    def __init__(self, site: Site) -> None:
        self.site = site
        source = site.source
        parent = source.tree("parent")
        self.path = parent / "middle/data"
        self._tree(self.path, OPEN)
        secret = source.directory / "secret"
        self._tree(secret / "data", SECRET)
        secret.chmod(0o700)
        # Component, and the link it changes places with.
        self.components = [
            (parent / "middle", self._link(parent / "away", secret)),
            (self.path, self._link(parent / "middle/away", secret / "data")),
        ]
        self._stand_in = source.directory / "borg"
        self._stand_in.write_text(STAND_IN)
        self._stand_in.chmod(0o755)
        self._socket = source.socket("luna")
        self._count = 0

    def _tree(self, path: Path, content: bytes) -> None:
        path.mkdir(parents=True)
        (path / "file").write_bytes(content)
        (path / "file").chmod(0o600)

    def _link(self, path: Path, target: Path) -> Path:
        path.symlink_to(target)
        return path

    def allow(self, landlock: str, **runtime: object) -> None:
        rules = {
            "paths": [str(self.path)],
            "allow_unknown_repository": True,
            "requests_per_hour": 100_000,
            "request_burst": 1000,
        }
        self.site.source.write_whitelist(
            {"luna": rules}, runtime=runtime, confine={"landlock": landlock}
        )

    def allow_stand_in(self, landlock: str) -> None:
        self.allow(landlock, borg=str(self._stand_in))

    def run(self) -> int:
        """One run of the forced command as sshd starts it; its exit code."""
        account = self.site.account
        with socket.socket(socket.AF_UNIX) as forwarded:
            forwarded.bind(str(self._socket))
            forwarded.listen()
            self.site.source.give(self._socket)
            ended = subprocess.run(
                [self.site.source.programs.source, self.site.source.configuration, "luna"],
                env={"SSH_ORIGINAL_COMMAND": f"create /r a {self.path}", "PATH": "/usr/bin:/bin"},
                user=account.uid,
                group=account.gid,
                extra_groups=[],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
            )
        self._socket.unlink(missing_ok=True)
        return ended.returncode

    def pull(self, repository: Repository) -> int:
        """A run of the real borg over ssh; its exit code."""
        self._count += 1
        request = f"create -C none {repository.path} {self._count} {self.path}"
        return self.site.pull(request, repository).exit

    def seen(self) -> Counter[bytes]:
        """What the stand-ins of all runs have read, and in how many."""
        path = self.site.source.state("luna") / "seen"
        found = Counter(path.read_bytes().splitlines())
        path.unlink()
        return found


def content(repository: Repository) -> bytes:
    """What is in the repository, which neither compresses nor encrypts."""
    return b"".join(
        path.read_bytes() for path in (repository.path / "data").rglob("*") if path.is_file()
    )


@contextmanager
def swapping(one: Path, other: Path) -> Iterator[None]:
    swapper = subprocess.Popen([sys.executable, "-c", SWAPPER, one, other])
    try:
        yield
        assert swapper.poll() is None, "the swapping has ended"
    finally:
        swapper.kill()
        swapper.wait()
        if one.is_symlink():
            one.rename(other.with_name("link"))
            other.rename(one)
            other.with_name("link").rename(other)


@pytest.fixture
def scene(make_site: SiteMaker) -> Scene:
    return Scene(make_site(FROZEN_12))


def test_nothing_of_the_secret_in_200_runs(scene: Scene) -> None:
    scene.allow_stand_in("required")
    ends: Counter[int] = Counter()
    for one, other in scene.components:
        with swapping(one, other):
            ends.update(scene.run() for _ in range((RUNS - OF_BORG) // 2))
    # Refused for the link, ended with the path elsewhere, or neither: the loop hit every moment.
    assert set(ends) == {77, 2, 0}, ends
    seen = scene.seen()
    assert set(seen) == {OPEN}
    assert seen[OPEN] > RUNS / 5, ends

    scene.allow("required")
    repository = scene.site.repository()
    assert scene.pull(repository) == 0
    assert OPEN in content(repository)
    for number in range(OF_BORG):
        with swapping(*scene.components[number % 2]):
            assert scene.pull(repository) in (77, 2, 0)
    assert SECRET not in content(repository)


def test_control_without_landlock_the_loop_gives_the_secret(scene: Scene) -> None:
    scene.allow_stand_in("off")
    for one, other in scene.components:
        with swapping(one, other):
            for _ in range(30):
                scene.run()
        assert set(scene.seen()) == {OPEN, SECRET}


def test_control_without_landlock_borg_itself_takes_the_secret(scene: Scene) -> None:
    scene.allow("off")
    repository = scene.site.repository()
    with swapping(*scene.components[0]):
        # It takes the link at the one moment and none at two others: one run in eight or so.
        for _ in range(100):
            scene.pull(repository)
            if SECRET in content(repository):
                return
    raise AssertionError("the loop gave nothing")
