"""The program with the capability takes orders from nothing that others could have written (C).

Threat: a local user owns or can write one of the files it goes by, or a directory above one, or has
put a link, a FIFO, a socket or a device in its place; or could not when the first request was
served and can later. Each file and directory, with each of these defects, is refused with one line
that names it; beside the defect nothing differs from the control, which is served before and after.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.builds import FROZEN_14
from tests.harness.fixtures import SiteMaker
from tests.harness.site import Site
from tests.harness.source import toml

pytestmark = pytest.mark.needs_root

STRANGER = 54321  # needs no entry in the password file
SERVED = b"the stand-in ran"


class Scene:
    """A source each of whose files stands in a directory of its own, served by a stand-in."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.uid = site.account.uid
        self.gid = site.account.gid
        self.root = site.source.directory
        self.data = site.source.tree()
        self.main = self._file("main", "config.toml", "", 0o644)
        self.client = self._file("main/clients.d", "luna.toml", "", 0o644)
        self.borg = self._file("borg", "borg", f"#!/bin/sh\necho {SERVED.decode()}\n", 0o755)
        self.wrapper = self._file("wrapper", "wrapper", "#!/bin/sh\n", 0o755)
        self.passcommand = self._file("passcommand", "program", "#!/bin/sh\necho secret\n", 0o755)
        self.passphrase = self._file("passphrase", "file", "secret\n", 0o640)
        os.chown(self.passphrase, 0, self.gid)
        self.home = self._own("home-above/home")
        self.socket_dir = self._own("sockets-above/run")
        self.log = self._own("log-above/log") / "audit.jsonl"
        self._write()

    def _file(self, directory: str, name: str, content: str, mode: int) -> Path:
        path = self.root / directory / name
        path.parent.mkdir(exist_ok=True)
        path.parent.chmod(0o755)
        path.write_text(content)
        path.chmod(mode)
        return path

    def _own(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir()
        path.parent.chmod(0o755)
        path.mkdir(mode=0o700)
        os.chown(path, self.uid, self.gid)
        return path

    def _write(self) -> None:
        paths = [str(self.data)]
        self.main.write_text(
            toml(
                {
                    "runtime": {
                        "home": str(self.home),
                        "socket_dir": str(self.socket_dir),
                        "borg": str(self.borg),
                        "socket_wrapper": str(self.wrapper),
                    },
                    "audit": {"file": str(self.log)},
                    "confine": {"landlock": "off"},
                    "client": {"nova": {"paths": paths, "passcommand": str(self.passcommand)}},
                }
            )
        )
        self.client.write_text(toml({"paths": paths, "passphrase_file": str(self.passphrase)}))

    def run(self, client: str) -> subprocess.CompletedProcess[bytes]:
        """A request of ``client``'s, whose forwarded socket is in place."""
        path = self.socket_dir / f"{client}.sock"
        with socket.socket(socket.AF_UNIX) as listening:
            if path.parent.is_dir():
                path.unlink(missing_ok=True)
                listening.bind(str(path))
                listening.listen()
                os.chown(path, self.uid, self.gid)
            return subprocess.run(
                [self.site.source.programs.source, self.main, client],
                env={"SSH_ORIGINAL_COMMAND": f"create /r a {self.data}"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                user=self.uid,
                group=self.gid,
                extra_groups=[],
                timeout=60,
                check=False,
            )

    def assert_served(self, client: str) -> None:
        done = self.run(client)
        assert (done.returncode, done.stderr) == (0, b"")
        assert SERVED in done.stdout

    def assert_refused(self, client: str, path: Path, what: str) -> None:
        done = self.run(client)
        assert done.returncode == 78, (what, done)
        assert done.stderr.startswith(f"borg-pull-source: {path} ".encode()), (what, done.stderr)
        assert done.stderr.count(b"\n") == 1
        assert SERVED not in done.stdout


@pytest.fixture
def scene(make_site: SiteMaker) -> Scene:
    """One build is enough: which borg it would have been decides nothing here."""
    return Scene(make_site(FROZEN_14))


def _acl(path: Path) -> None:
    """Let the stranger write by an access control list (acl(5)); the mode's group bits show it."""
    entries = ((0x01, 7, -1), (0x02, 7, STRANGER), (0x04, 5, -1), (0x10, 7, -1), (0x20, 5, -1))
    packed = b"".join(
        struct.pack("<HHI", tag, mode, who & 0xFFFFFFFF) for tag, mode, who in entries
    )
    os.setxattr(path, "system.posix_acl_access", struct.pack("<I", 2) + packed)


def _link(path: Path) -> None:
    moved = path.with_name("moved")
    path.rename(moved)
    path.symlink_to(moved)


def _strangers_link(path: Path) -> None:
    _link(path)
    os.chown(path, STRANGER, STRANGER, follow_symlinks=False)


def _replaced(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        make(path)

    return replace


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        # Its path may be longer than a socket's name can be.
        directory = os.open(path.parent, os.O_PATH)
        bound.bind(f"/proc/self/fd/{directory}/{path.name}")
        os.close(directory)


def _mode(added: int) -> Callable[[Path], None]:
    return lambda path: path.chmod(path.stat().st_mode | added)


def _owner(uid: int) -> Callable[[Path], None]:
    return lambda path: os.chown(path, uid, -1)


WRITABLE: dict[str, Callable[[Path], None]] = {
    "a stranger's": _owner(STRANGER),
    "its group's to write": _mode(0o020),
    "everybody's to write": _mode(0o002),
    "everybody's to write, sticky": _mode(0o1002),
    "one stranger's to write": _acl,
}
REPLACED: dict[str, Callable[[Path], None]] = {
    "a FIFO": _replaced(os.mkfifo),
    "a socket": _replaced(_socket),
    "a device": _replaced(lambda path: os.mknod(path, 0o020644, os.makedev(1, 3))),
}
FILE = WRITABLE | REPLACED | {"a directory": _replaced(os.mkdir), "a link": _link}
SECRET = FILE | {"others' to read": _mode(0o004)}
PROGRAM = (
    WRITABLE
    | REPLACED
    | {
        "a directory": _replaced(os.mkdir),
        "a stranger's link": _strangers_link,
        "not executable": lambda path: path.chmod(0o644),
    }
)
ABOVE = WRITABLE | {"a link": _link}
# Programs may be linked by root, as Debian's alternatives are.
ABOVE_A_PROGRAM = WRITABLE | {"a stranger's link": _strangers_link}
OWN = WRITABLE | REPLACED | {"a link": _link, "root's": _owner(0), "a file": _replaced(Path.touch)}

Defects = dict[str, Callable[[Path], None]]
# Where it stands, what may be wrong with it, and whether it must be root's.
TARGETS: dict[str, tuple[str, Defects, bool]] = {
    "configuration": ("main/config.toml", FILE, True),
    "directory of the configuration": ("main", ABOVE, True),
    "client's file": ("main/clients.d/luna.toml", FILE, True),
    "directory of clients' files": ("main/clients.d", ABOVE, True),
    "borg": ("borg/borg", PROGRAM, True),
    "directory of borg": ("borg", ABOVE_A_PROGRAM, True),
    "socket wrapper": ("wrapper/wrapper", PROGRAM, True),
    "directory of the socket wrapper": ("wrapper", ABOVE_A_PROGRAM, True),
    "passcommand": ("passcommand/program", PROGRAM, True),
    "directory of the passcommand": ("passcommand", ABOVE_A_PROGRAM, True),
    "passphrase file": ("passphrase/file", SECRET, False),
    "directory of the passphrase file": ("passphrase", ABOVE, False),
    "home": ("home-above/home", OWN, False),
    "directory of home": ("home-above", ABOVE, False),
    "socket directory": ("sockets-above/run", OWN, False),
    "directory of the socket directory": ("sockets-above", ABOVE, False),
    "directory of the audit log": ("log-above/log", ABOVE, False),
    "directory above that of the audit log": ("log-above", ABOVE, False),
}


@pytest.mark.parametrize("name", TARGETS)
def test_each_defect_is_refused(scene: Scene, name: str) -> None:
    where, defects, is_roots = TARGETS[name]
    path = scene.root / where
    client = "nova" if "passcommand" in name else "luna"
    scene.assert_served(client)
    if is_roots:
        defects = defects | {"the account's": _owner(scene.uid)}
    for what, spoil in defects.items():
        with _kept(path):
            spoil(path)
            scene.assert_refused(client, path, what)
    scene.assert_served(client)


def test_each_defect_of_a_directory_in_home_is_refused(scene: Scene) -> None:
    """Which the first request has made."""
    scene.assert_served("luna")
    made = [path for path in scene.home.rglob("*") if path.is_dir()]
    assert {scene.home / "clients", scene.home / "locks" / "luna"} <= {*made}
    for path in made:
        for what, spoil in WRITABLE.items():
            with _kept(path):
                spoil(path)
                scene.assert_refused("luna", path, what)
    scene.assert_served("luna")


@pytest.mark.parametrize("name", ["passphrase file", "directory of the passphrase file"])
def test_a_passphrase_file_may_be_the_accounts_own(scene: Scene, name: str) -> None:
    os.chown(scene.root / TARGETS[name][0], scene.uid, scene.gid)
    scene.assert_served("luna")


@contextlib.contextmanager
def _kept(path: Path) -> Iterator[None]:
    """Have what stands at ``path`` there again afterwards."""
    kept, moved = path.with_name("kept"), path.with_name("moved")
    subprocess.run(["cp", "-a", path, kept], check=True)
    try:
        yield
    finally:
        subprocess.run(["rm", "-rf", path, moved], check=True)
        kept.rename(path)
