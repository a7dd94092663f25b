"""The demo shows what it claims, and leaves nothing however it ends."""

from __future__ import annotations

import os
import pty
import pwd
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness import processes
from tests.harness.builds import PROJECT, frozen_bundle
from tests.harness.site import Installations
from tests.harness.workplace import IS_ROOT

DEMO = PROJECT / "packaging/demo.py"
SECONDS = 120.0  # the most a demo may take once all is set up
STEPS = 9


@dataclass(frozen=True)
class Viewer:
    """Who runs the demo, and the bundle it shows."""

    is_root: bool
    bundle: Path
    prefix: tuple[str, ...]
    temporary: Path

    def start(
        self, bundle: Path | None = None, *, stdout: int = subprocess.PIPE, **environment: str
    ) -> subprocess.Popen[str]:
        """A running demo."""
        return subprocess.Popen(
            [*self.prefix, sys.executable, DEMO, "--bundle", bundle or self.bundle],
            env={"PATH": "/usr/bin:/bin", "HOME": str(self.temporary)}
            | {"TMPDIR": str(self.temporary)}
            | environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def copy_of_bundle(self, to: Path) -> Path:
        """A bundle of this viewer's own, to break."""
        copied(self.bundle, to, os.stat(self.temporary).st_uid)
        return to


def copied(bundle: Path, to: Path, uid: int) -> None:
    shutil.copytree(bundle, to, symlinks=True, copy_function=shutil.copy)
    for path in (to, *to.rglob("*")):
        os.chown(path, uid, -1, follow_symlinks=False)
    (to / "borg-pull-source").chmod(0o755)


def viewer_as(user: str, installations: Installations) -> Viewer:
    """``root``, or an ordinary user with a bundle built without root."""
    temporary = installations.workplace.directory("demo")
    if user == "root" or not IS_ROOT:
        return Viewer(IS_ROOT, frozen_bundle(), (), temporary)
    account = installations.take_account()
    os.chown(temporary, account.uid, account.gid)
    bundle = temporary / "bundle"
    copied(frozen_bundle(), bundle, account.uid)
    identity = (f"--reuid={account.uid}", f"--regid={account.gid}", "--clear-groups")
    return Viewer(False, bundle, ("setpriv", *identity), temporary)


@pytest.fixture(params=[pytest.param("root", marks=pytest.mark.needs_root), "ordinary"])
def viewer(request: pytest.FixtureRequest, installations: Installations) -> Viewer:
    return viewer_as(request.param, installations)


@pytest.fixture
def ordinary(installations: Installations) -> Viewer:
    return viewer_as("ordinary", installations)


def place(output: str) -> str:
    """The directory that the demo said it worked in."""
    found = re.search(r"below D=(\S+);", output)
    assert found, output
    return found[1]


def assert_nothing_left(output: str) -> None:
    directory = place(output)
    assert not Path(directory).exists()
    assert [one for one in processes.snapshot() if processes.mentions(one, directory)] == []
    assert [entry for entry in pwd.getpwall() if entry.pw_dir.startswith(directory)] == []


def test_shows_real_pulls_and_leaves_nothing(viewer: Viewer) -> None:
    demo = viewer.start()
    output, _ = demo.communicate(timeout=SECONDS)
    assert demo.returncode == 0, output
    for number in range(1, STEPS + 1):
        assert f"\n{number}. " in output
    for essential in (
        "ok: borg made archive first",
        "ok: borg made archive second",
        "is refused: exit code 77, and on record",
        "files and directories are equal",
        "intact: 7 records",
        "ok: an altered record is found",
    ):
        assert essential in output
    assert re.search(r"/whitelist.toml: sound: 1 client in 1 file, \d warnings?\n", output), output
    if viewer.is_root:
        assert "root-only.txt: Permission denied" in output
        assert "ok: root's file was pulled, by the capability alone" in output
        assert "left out" not in output
    else:
        assert "Not root, so left out:" in output
        assert "root-only.txt" not in output
    assert f'"capability": {"true" if viewer.is_root else "false"}' in output
    assert "\033" not in output, "colour without a terminal"
    assert_nothing_left(output)


@pytest.mark.parametrize(
    ("step", "number"),
    [
        ("1. The source", signal.SIGINT),
        ("5. The first backup", signal.SIGINT),
        ("8. The backup server", signal.SIGTERM),
    ],
)
def test_interrupted_leaves_nothing(viewer: Viewer, step: str, number: signal.Signals) -> None:
    demo = viewer.start()
    assert demo.stdout is not None
    seen = ""
    for line in demo.stdout:
        seen += line
        if line.startswith(step):
            demo.send_signal(number)
            break
    rest, _ = demo.communicate(timeout=SECONDS)
    assert demo.returncode == 130, seen + rest
    assert "demo: interrupted" in rest
    assert_nothing_left(seen + rest)


def test_a_reader_that_has_seen_enough_leaves_nothing(viewer: Viewer) -> None:
    demo = viewer.start()
    assert demo.stdout is not None
    seen = ""
    while "\n5. " not in seen:
        seen += demo.stdout.readline()
    demo.stdout.close()
    assert demo.wait(SECONDS) != 0
    assert_nothing_left(seen)


def test_failure_leaves_nothing(viewer: Viewer) -> None:
    bundle = broken(viewer)
    demo = viewer.start(bundle)
    output, _ = demo.communicate(timeout=SECONDS)
    assert demo.returncode == 1, output
    assert "demo: exit code 3 instead of 0 of:" in output
    assert_nothing_left(output)


def test_no_bundle_is_one_line(viewer: Viewer) -> None:
    demo = viewer.start(viewer.temporary / "nowhere")
    output, _ = demo.communicate(timeout=SECONDS)
    assert demo.returncode == 1
    assert "demo: no frozen bundle at" in output
    assert "Traceback" not in output
    assert_nothing_left(output)


@pytest.mark.parametrize(
    ("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)], ids=["plain", "NO_COLOR"]
)
def test_colour_only_on_a_terminal_that_wants_it(
    ordinary: Viewer, environment: Mapping[str, str], coloured: bool
) -> None:
    ours, theirs = pty.openpty()
    demo = ordinary.start(broken(ordinary), stdout=theirs, **environment)
    os.close(theirs)
    output = b""
    while block := read_terminal(ours):
        output += block
    os.close(ours)
    assert demo.wait(SECONDS) == 1
    assert (b"\033[" in output) is coloured


def read_terminal(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # EIO: the other side has closed
        return b""


def broken(viewer: Viewer) -> Path:
    """A bundle whose admin's program fails."""
    bundle = viewer.copy_of_bundle(viewer.temporary / "broken")
    admin = bundle / "borg-pull-admin"
    admin.unlink()
    admin.write_text("#!/bin/sh\nexit 3\n")
    admin.chmod(0o755)
    return bundle
