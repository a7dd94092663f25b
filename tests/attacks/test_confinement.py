"""A borg that was taken over reads nothing that was not granted (D), nor what a link leads to (E).

Threat: the repository server speaks to the one process that may read every file. A stand-in for
borg does what code of the attacker's would do inside it, and reports. The control is the same
stand-in without Landlock: what the kernel then still denies is not Landlock's merit.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from borg_pull.errors import SystemRefusedError
from borg_pull.linux import landlock
from borg_pull.source import confine
from tests.harness.site import Site
from tests.harness.wait import until

pytestmark = [pytest.mark.needs_root, pytest.mark.builds("frozen")]

STAND_IN = """\
#!/usr/bin/python3 -I
import ctypes, json, os, signal, socket, sys, time
plan = json.loads({plan!r})
state = os.environ["BORG_BASE_DIR"]
libc = ctypes.CDLL(None, use_errno=True)
def attempt(action):
    try:
        action()
        return 0
    except OSError as error:
        return error.errno
def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result
def read(path):
    with open(path, "rb") as file:
        file.read(64)
def write(path):
    with open(path, "ab"):
        pass
def tcp_connect():
    with socket.socket() as peer:
        peer.connect(("127.0.0.1", plan["port"]))
def tcp_bind():
    with socket.socket() as peer:
        peer.bind(("127.0.0.1", 0))
def abstract():
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect("\\0" + plan["abstract"])
class Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * 128)]
def by_handle(path, below=None):
    handle, mount = Handle(bytes=128), ctypes.c_int()
    to_fill = ctypes.byref(handle), ctypes.byref(mount)
    checked(libc.name_to_handle_at(-100, path.encode(), *to_fill, 0))
    at = os.open(below or plan["granted"], os.O_RDONLY)
    opened = checked(libc.open_by_handle_at(at, ctypes.byref(handle), os.O_RDONLY))
    os.read(opened, 64)
def limit_parent():
    import resource
    resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (64, 64))
def fast_open():
    with socket.socket() as peer:
        peer.sendto(b"x", socket.MSG_FASTOPEN, ("127.0.0.1", plan["port"]))
def multipath():
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) as peer:
        peer.connect(("127.0.0.1", plan["port"]))
def datagram():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.sendto(b"x", ("127.0.0.1", plan["port"]))
def lock_audit():
    import fcntl
    with open(plan["granted"] + "/file", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
def ptrace():
    checked(libc.ptrace(16, os.getppid(), None, None))
report = {{
    "read granted": attempt(lambda: read(plan["granted"] + "/file")),
    "list granted": attempt(lambda: os.listdir(plan["granted"])),
    "write state": attempt(lambda: write(state + "/mark")),
    "read sibling": attempt(lambda: read(plan["sibling"] + "/file")),
    "read shadow": attempt(lambda: read("/etc/shadow")),
    "read through link": attempt(lambda: read(plan["granted"] + "/link")),
    "read by handle": attempt(lambda: by_handle(plan["sibling"] + "/file")),
    "read other state": attempt(lambda: read(plan["other"] + "/file")),
    "write other state": attempt(lambda: write(plan["other"] + "/file")),
    "read audit": attempt(lambda: read(plan["audit"])),
    "write audit": attempt(lambda: write(plan["audit"])),
    "remove socket": attempt(lambda: os.unlink(os.environ["BORGSOCKETWRAP_SOCKET_PATH"])),
    "read disk": attempt(lambda: read(plan["disk"])),
    "read environment": attempt(lambda: read("/proc/%d/environ" % os.getppid())),
    "list processes": attempt(lambda: os.listdir("/proc")),
    "change modes": attempt(lambda: os.chmod(plan["audit"], 0o666)),
    "change times": attempt(lambda: os.utime(plan["audit"])),
    "limit parent": attempt(limit_parent),
    "fast open": attempt(fast_open),
    "multipath": attempt(multipath),
    "datagram": attempt(datagram),
    "lock": attempt(lock_audit),
    "read by handle below": attempt(lambda: by_handle(plan["shadowed"], plan["mounted"])),
    "connect": attempt(tcp_connect),
    "bind": attempt(tcp_bind),
    "abstract": attempt(abstract),
    "signal": attempt(lambda: os.kill(os.getppid(), 0)),
    "ptrace": attempt(ptrace),
}}
if plan["swap"]:
    write(state + "/ready")
    while not os.path.exists(state + "/swapped"):
        time.sleep(0.01)
    report["read swapped"] = attempt(lambda: read(plan["granted"] + "/file"))
with open(state + "/report.json", "w") as file:
    json.dump(report, file)
"""

# The attempts that only Landlock and the filter of system calls deny, and by which error.
DENIED_BY_LANDLOCK = {
    "change times": errno.EPERM,
    "limit parent": errno.EPERM,
    "fast open": errno.EACCES,
    "multipath": errno.EACCES,
    "datagram": errno.EACCES,
    "lock": errno.EPERM,
    "read by handle below": errno.EPERM,
    "read sibling": errno.EACCES,
    "read shadow": errno.EACCES,
    "read through link": errno.EACCES,
    "read by handle": errno.EPERM,
    "read other state": errno.EACCES,
    "write other state": errno.EACCES,
    "read audit": errno.EACCES,
    "write audit": errno.EACCES,
    "remove socket": errno.EACCES,
    "read disk": errno.EACCES,
    "list processes": errno.EACCES,
    "connect": errno.EACCES,
    "bind": errno.EACCES,
    "abstract": errno.EPERM,
    "signal": errno.EPERM,
}
# The parent has given its capability up and is of the same account, but no process of this one's
# privilege may look into a program that was started with a capability.
DENIED_ANYWAY = ("read environment", "ptrace")
# A change of mode is done in appearance only.
ALLOWED = ("read granted", "list granted", "write state", "change modes")


class Scene:
    """A granted tree, a sibling of it, another client's state, and listeners to reach."""

    def __init__(self, site: Site, port: int, abstract: str) -> None:
        self.site = site
        self.parent = site.source.tree("parent")
        self.granted = self._tree("granted")
        self.sibling = self._tree("sibling")
        (self.granted / "link").symlink_to(self.sibling / "file")
        # A bind mount below a granted path: its file system is open to handles as a whole.
        self.shadowed = self._tree("shadowed")
        self.mounted = self.granted / "mounted"
        self.mounted.mkdir()
        (self.shadowed / "inner").mkdir()
        subprocess.run(["mount", "--bind", self.shadowed / "inner", self.mounted], check=True)
        self.other = site.source.state("other")
        site.source.file(self.other / "file", "another client's")
        self._port = port
        self._abstract = abstract

    def _tree(self, name: str) -> Path:
        tree = self.parent / name
        tree.mkdir()
        file = tree / "file"
        file.write_text(f"in {name}")
        file.chmod(0o600)
        return tree

    def run(self, mode: str, *, swap: bool = False) -> dict[str, int]:
        """Have the stand-in pull ``granted``; errno of each attempt, 0 for success."""
        state = self.site.source.state("luna")
        for name in ("report.json", "ready", "swapped"):
            (state / name).unlink(missing_ok=True)
        plan = {
            "granted": str(self.granted),
            "sibling": str(self.sibling),
            "other": str(self.other),
            "audit": str(self.site.source.audit_file),
            "disk": _disk(),
            "shadowed": str(self.shadowed / "file"),
            "mounted": str(self.mounted),
            "port": self._port,
            "abstract": self._abstract,
            "swap": swap,
        }
        program = self.site.source.directory / "borg"
        program.write_text(STAND_IN.format(plan=json.dumps(plan)))
        program.chmod(0o755)
        self.site.source.write_whitelist(
            {"luna": {"paths": [str(self.granted)]}},
            runtime={"borg": str(program)},
            confine={"landlock": mode},
        )
        peer = self.site.peer()
        with peer.listening(self.site.repository(f"r-{mode}-{swap}")) as listener:
            pull = peer.start(f"create /r a {self.granted}", listener)
            if swap:
                until(lambda: (state / "ready").exists(), seconds=30, what="the stand-in is ready")
                self.granted.rename(self.parent / "moved")
                self.granted.symlink_to(self.sibling)
                (state / "swapped").touch()
            result = pull.wait()
        assert (state / "report.json").exists(), result.errors
        report: dict[str, int] = json.loads((state / "report.json").read_text())
        return report


def _disk() -> str:
    """A block device of this machine, which CAP_DAC_READ_SEARCH lets anybody read."""
    for name in sorted(os.listdir("/sys/class/block")):
        device = f"/dev/{name}"
        try:
            with open(device, "rb") as opened:
                opened.read(1)
        except OSError:
            continue
        return device
    raise AssertionError("no block device to try to read")


@pytest.fixture
def scene(site: Site) -> Iterator[Scene]:
    with _listeners() as (port, abstract):
        scene = Scene(site, port, abstract)
        yield scene
        mounted = scene.parent / "moved/mounted"
        subprocess.run(["umount", mounted if mounted.exists() else scene.mounted], check=True)


@contextmanager
def _listeners() -> Iterator[tuple[int, str]]:
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        abstract = f"borg-pull-test-{os.getpid()}-{tcp.getsockname()[1]}"
        unix.bind(f"\0{abstract}")
        unix.listen()
        yield tcp.getsockname()[1], abstract


def _started(site: Site) -> dict[str, Any]:
    start: dict[str, Any] = site.source.audit(event="start")[-1]
    return start


def test_nothing_is_reached_that_was_not_granted(scene: Scene) -> None:
    report = scene.run("required")
    assert {name: report[name] for name in ALLOWED} == dict.fromkeys(ALLOWED, 0)
    assert {name: report[name] for name in DENIED_BY_LANDLOCK} == DENIED_BY_LANDLOCK
    assert all(report[name] in (errno.EACCES, errno.EPERM) for name in DENIED_ANYWAY)
    confinement = _started(scene.site)["confinement"]
    assert (confinement["landlock"], confinement["seccomp"]) == (landlock.abi(), True)
    assert stat.S_IMODE(scene.site.source.audit_file.stat().st_mode) == 0o640


def test_control_without_landlock_each_attempt_would_have_succeeded(scene: Scene) -> None:
    report = scene.run("off")
    succeeded = {name for name in (*ALLOWED, *DENIED_BY_LANDLOCK) if report[name] == 0}
    assert succeeded == {*ALLOWED, *DENIED_BY_LANDLOCK}
    assert all(report[name] != 0 for name in DENIED_ANYWAY)
    assert _started(scene.site)["confinement"]["landlock"] is None
    assert stat.S_IMODE(scene.site.source.audit_file.stat().st_mode) == 0o666


def test_a_link_swapped_in_during_the_run_leads_nowhere(scene: Scene) -> None:
    report = scene.run("required", swap=True)
    assert report["read granted"] == 0
    assert report["read swapped"] == errno.EACCES
    complete = scene.site.source.audit(event="complete")[-1]
    assert complete["result"] == "error"
    assert "was not there for the whole run" in complete["error"]


def test_control_without_landlock_the_link_would_have_been_followed(scene: Scene) -> None:
    report = scene.run("off", swap=True)
    assert report["read swapped"] == 0


def test_required_runs_nothing_on_a_kernel_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel here has Landlock; that one without is told by the same question is landlock(7)'s
    word, not this test's."""
    monkeypatch.setattr(landlock, "abi", lambda: None)
    with pytest.raises(SystemRefusedError, match="Landlock"):
        confine.planned("required")
    assert confine.planned("auto").landlock is None
