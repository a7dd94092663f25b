"""A borg that was taken over reads nothing that was not granted (D), nor what a link leads to (E).

Threat: the repository server speaks to the one process that may read every file. A stand-in for
borg does what code of the attacker's would do inside it, and reports. The control is the same
stand-in without Landlock: what the kernel then still denies is not Landlock's merit.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from borg_pull.linux import landlock
from borg_pull.source.state import places
from tests.harness import older_kernel, trees
from tests.harness.builds import FROZEN_12
from tests.harness.fixtures import SiteMaker
from tests.harness.peer import Result
from tests.harness.sink import Sink
from tests.harness.site import Installations, Site
from tests.harness.sshd import SshServer
from tests.harness.wait import until

pytestmark = [pytest.mark.needs_root, pytest.mark.builds("frozen")]

INTRUDER = Path(__file__).with_name("intruder.py")
OLDER_KERNEL = Path(older_kernel.__file__)

LANDLOCK = (
    *("read sibling", "read shadow", "read through link", "read through a link of its own"),
    *("read other state", "write other state", "move sibling into state"),
    *("read audit", "write audit", "read chain", "write chain"),
    *("read own lock", "write own lock", "read other lock", "write other lock", "list locks"),
    *("read sessions", "write sessions", "read own limits", "write own limits"),
    *("read other limits", "write other limits", "read configuration"),
    *("read disk", "read messages of the kernel", "read own environment", "list processes"),
    *("read parent's environ", "read parent's mem", "read parent's maps", "read parent's fdinfo/1"),
    *("list parents descriptors", "take a descriptor of the parents"),
    *("write granted", "create in granted", "rename granted"),
    *("create in tmp", "create in shared memory", "remove socket", "bind a socket of anothers"),
)
LANDLOCK_SCOPES = ("abstract", "ask whether a stranger lives")
SOCKETS = ("connect", "bind", "fast open", "multipath", "datagram", "ask the kernel by netlink")
FILTER = (
    *("read by handle", "read by handle below", "be told of files elsewhere"),
    *("truncate granted", "truncate while reading", "truncate without an access"),
    *("truncate audit", "change times", "change flags by path", "change flags"),
    *("lock a whole file", "lock a part", "lease a file"),
    *("signal the parent", "signal a stranger", "signal everybody", "signal a thread"),
    *("signal a thread of a process", "queue a signal", "queue a signal to a thread"),
    *("have a signal sent", "signal by descriptor", "trace the parent", "trace a stranger"),
    *("read the parents memory", "write the parents memory", "compare with the parent"),
    *("hold the parent", "take descriptors of a held process", "advise on memory of another"),
    *("limit the parent", "lower the priority of a stranger", "schedule a stranger last"),
    *("lower the disk priority of a stranger", "bind a stranger to a processor"),
    *("mount", "unmount", "leave the root", "swap the root", "call fsopen", "call open_tree"),
    *("call move_mount", "call mount_setattr", "make a namespace", "join a namespace"),
    *("start a child in a namespace", "call io_uring_setup", "call userfaultfd", "call bpf"),
    *("call perf_event_open", "call keyctl", "call add_key", "call request_key", "call syslog"),
    *("share memory by key", "make semaphores", "make a queue"),
    *("make a device", "become root", "join a group"),
)
BY_THE_FILTER = {
    **dict.fromkeys(SOCKETS, errno.EACCES),
    **dict.fromkeys(FILTER, errno.EPERM),
    "truncate by a call with hidden flags": errno.ENOSYS,
}
DENIED = {
    **dict.fromkeys(LANDLOCK, errno.EACCES),
    "link sibling into state": errno.EXDEV,
    **dict.fromkeys(LANDLOCK_SCOPES, errno.EPERM),
    **BY_THE_FILTER,
}
# The parent has given its capability up and is of the same account, but no process of this one's
# privilege may look into a program that was started with a capability; nor into any sshd.
DENIED_ANYWAY = (
    *("read parent's environ", "read parent's mem", "read parent's maps", "read parent's fdinfo/1"),
    *("take a descriptor of the parents", "trace the parent", "trace a stranger"),
    *("read the parents memory", "write the parents memory", "compare with the parent"),
    *("mount", "unmount", "leave the root", "swap the root", "make a device", "become root"),
    *("join a group", "call fsopen", "call open_tree", "call move_mount", "call syslog"),
    "read messages of the kernel",
)
# Asked with arguments that the kernel finds wrong, or denied where the host is set up so.
OTHERWISE = (
    *("signal by descriptor", "take descriptors of a held process", "advise on memory of another"),
    *("call mount_setattr", "join a namespace", "make a namespace", "start a child in a namespace"),
    *("call io_uring_setup", "call userfaultfd", "call bpf", "call perf_event_open"),
    *("call keyctl", "call add_key", "call request_key"),
)
# A change of mode is done in appearance only. Sockets with a path are reached: Landlock has had no
# rule for them, and the wrap needs one; docs/threat-model.md says what that leaves.
ALLOWED = (
    *("read granted", "list granted", "write state", "ask whether a child lives", "change modes"),
    "connect to a socket with a path",
)
EFFECTIVE_USER = "effective user of a set-user-ID program"


class Scene:
    """A granted tree, a sibling of it, another client's state and session, listeners to reach."""

    def __init__(self, site: Site, port: int, abstract: str) -> None:
        self.site = site
        source = site.source
        self.parent = source.tree("parent")
        self.granted = self._tree("granted")
        self.sibling = self._tree("sibling")
        (self.granted / "link").symlink_to(self.sibling / "file")
        # A bind mount below a granted path: its file system is open to handles as a whole.
        self.shadowed = self._tree("shadowed")
        self.mounted = self.granted / "mounted"
        self.mounted.mkdir()
        (self.shadowed / "inner").mkdir()
        subprocess.run(["mount", "--bind", self.shadowed / "inner", self.mounted], check=True)
        self.set_user_id = source.directory / "id"
        shutil.copy("/usr/bin/id", self.set_user_id)
        self.set_user_id.chmod(0o4755)
        program = source.directory / "borg"
        program.write_text(f"#!/usr/bin/python3 -I\n{INTRUDER.read_text()}")
        program.chmod(0o755)
        self.stranger_socket = source.socket("nova")
        own_lock, _ = places(str(source.home / "locks/luna"), "/r")
        self._plan = {
            "granted": str(self.granted),
            "sibling": str(self.sibling),
            "other": str(self._file(source.state("other") / "file").parent),
            "other lock": str(self._file(source.home / "locks/other/0.lock")),
            "other limits": str(self._file(source.home / "limits/other.limits")),
            "own lock": own_lock,
            "own limits": str(source.home / "limits/luna.limits"),
            "sessions": str(source.home / "limits/sessions"),
            "audit": str(source.audit_file),
            "chain": f"{source.audit_file}.chain",
            "configuration": str(source.configuration),
            "disk": _disk(),
            "shadowed": str(self.shadowed / "file"),
            "mounted": str(self.mounted),
            "set-user-ID": str(self.set_user_id),
            "stranger's socket": str(self.stranger_socket),
            "port": port,
            "abstract": abstract,
        }

    def _tree(self, name: str) -> Path:
        """A directory of the account's own, with a file of root's and one of the account's."""
        tree = self.parent / name
        tree.mkdir()
        self.site.source.give(tree)
        self.site.source.file(tree / "own", "the account's own")
        file = tree / "file"
        file.write_text(f"in {name}")
        file.chmod(0o600)
        return tree

    def _file(self, path: Path) -> Path:
        for directory in (path.parent.parent, path.parent):
            if not directory.exists():
                directory.mkdir(mode=0o700)
                self.site.source.give(directory)
        return self.site.source.file(path, "another client's")

    def run(self, mode: str, *, swap: bool = False) -> dict[str, int]:
        """Have the stand-in pull ``granted``; errno of each attempt, 0 for success."""
        result = self.asked(mode, swap=swap)
        report = self.site.source.state("luna") / "report.json"
        assert report.exists(), result.errors
        found: dict[str, int] = json.loads(report.read_text())
        return found

    def asked(self, mode: str, *, swap: bool = False) -> Result:
        source = self.site.source
        state = source.state("luna")
        for name in ("report.json", "ready", "swapped", "alive"):
            (state / name).unlink(missing_ok=True)
        source.write_whitelist(
            {"luna": {"paths": [str(self.granted)]}, "nova": {}},
            runtime={"borg": str(source.directory / "borg")},
            confine={"landlock": mode, "also_readable": [str(self.set_user_id)]},
        )
        with self._stranger() as stranger:
            plan = {**self._plan, "stranger": stranger, "swap": swap}
            (self.granted / "plan.json").write_text(json.dumps(plan))
            peer = self.site.peer()
            with Sink(peer.directory / "sink") as sink:
                pull = peer.start(f"create /r a {self.granted}", sink)
                if swap:
                    ready = (state / "ready").exists
                    until(ready, seconds=30, what="the stand-in is ready")
                    self.granted.rename(self.parent / "moved")
                    self.granted.symlink_to(self.sibling)
                    (state / "swapped").touch()
                return pull.wait()

    @contextmanager
    def _stranger(self) -> Iterator[int]:
        """A session of another client's; the pid of its sshd."""
        nova = self.site.peer("nova")
        with Sink(nova.directory / "sink") as sink:
            session = nova.start("", sink, options=["-N"])
            try:
                until(self.stranger_socket.exists, seconds=20, what="another client's session")
                (sshd,) = self.site.source.processes()
                yield sshd.pid
            finally:
                session.kill()
                session.wait()
                self.site.source.assert_nothing_left()
                self.stranger_socket.unlink(missing_ok=True)


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


@contextmanager
def scene_of(site: Site) -> Iterator[Scene]:
    with _listeners() as (port, abstract):
        scene = Scene(site, port, abstract)
        try:
            yield scene
        finally:
            mounted = scene.parent / "moved/mounted"
            subprocess.run(["umount", mounted if mounted.exists() else scene.mounted], check=True)


@pytest.fixture
def scene(site: Site) -> Iterator[Scene]:
    with scene_of(site) as made:
        yield made


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
    assert report.pop(EFFECTIVE_USER) == scene.site.account.uid
    assert report == DENIED | dict.fromkeys(ALLOWED, 0)
    confinement = _started(scene.site)["confinement"]
    assert (confinement["landlock"], confinement["seccomp"]) == (landlock.abi(), True)
    assert stat.S_IMODE(scene.site.source.audit_file.stat().st_mode) == 0o640


def test_control_without_landlock_each_attempt_would_have_succeeded(scene: Scene) -> None:
    report = scene.run("off")
    assert report.pop(EFFECTIVE_USER) == scene.site.account.uid
    asked = {name: error for name, error in report.items() if name not in OTHERWISE}
    assert {name for name, error in asked.items() if error != 0} == {*DENIED_ANYWAY}
    assert asked.keys() == {*ALLOWED, *DENIED} - {*OTHERWISE}
    assert all(DENIED[name] != report[name] for name in OTHERWISE[:5])
    assert _started(scene.site)["confinement"]["landlock"] is None
    assert stat.S_IMODE(scene.site.source.audit_file.stat().st_mode) == 0o666


def test_control_the_set_user_id_program_is_one(scene: Scene) -> None:
    """Without no_new_privs, which holds whatever Landlock's mode is."""
    said = subprocess.run(
        [scene.set_user_id, "-u"],
        user=scene.site.account.uid,
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == "0\n"


def test_nothing_stays_behind(scene: Scene) -> None:
    """A grandchild in a session of its own kept a descriptor, and ignores all but SIGKILL."""
    scene.run("required")
    alive = scene.site.source.state("luna") / "alive"
    before = alive.read_text()
    scene.site.source.assert_nothing_left()
    assert alive.read_text() == before


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


# All that borg tells of an item but its inode, the time it was read, and the names of its owners:
# a test beside this one that makes accounts replaces /etc/passwd by a file no rule knows.
LISTED = (
    "{type} {mode} {uid} {gid} {size} {num_chunks} {unique_chunks} {sha256} "
    "{isomtime} {isoctime} {flags} {health} {path} {source} {linktarget}{NL}"
)


def test_a_backup_is_the_same_as_an_unconfined_one(site: Site, tmp_path: Path) -> None:
    """Every kind of file, of the account's, of root's and of nobody else's to read."""
    data = site.source.tree()
    for name, owner in (("account's", site.account.uid), ("root's", 0)):
        (data / name).mkdir()
        trees.build(data / name, uid=owner, gid=owner)
    locked = data / "locked"
    locked.mkdir()
    (locked / "file").write_bytes(os.urandom(9 << 20))
    for path in (locked / "file", locked):
        path.chmod(0)
    rules = {"paths": [str(data)], "allow_unknown_repository": True}
    lists = []
    # Two clients, so that neither's borg knows from the other's what has not changed.
    for client, mode in (("luna", "required"), ("nova", "off")):
        site.source.write_whitelist({client: rules}, confine={"landlock": mode})
        peer = site.peer(client)
        repository = peer.repository()
        result = peer.pull(f"create {repository.path} a {data}", repository)
        assert (result.exit, result.complaints) == (0, "")
        lists.append(repository.run("list", "--format", LISTED, f"{repository.path}::a"))
        restored = repository.extract("a", tmp_path / client) / data.relative_to("/")
        assert trees.differences(data, restored) == []
    confined, unconfined = lists
    assert confined.count("\n") > 2 * len(trees.ODD_NAMES)
    assert confined == unconfined
    modes = [record["confinement"]["landlock"] for record in site.source.audit(event="start")]
    assert modes == [landlock.abi(), None]


TELLS_ITS_VERSION = """\
#!/usr/bin/python3 -I
import errno, socket, sys
def outcome(action, *arguments):
    try:
        action(*arguments)
        return "done"
    except OSError as error:
        return errno.errorcode[error.errno]
found = [outcome(open, path) for path in {paths!r}] + [outcome(open, "/tmp/{name}", "w")]
print(*found, outcome(socket.socket, socket.AF_INET), file=sys.stderr)
print("borg 1.2.4")
"""


@pytest.mark.parametrize("mode", ["required", "off"])
def test_a_borg_that_tells_its_version_has_nothing_granted(site: Site, mode: str) -> None:
    """What runs for hello is the same program; off is the control."""
    data = site.source.tree()
    directories = (data, site.source.state("luna"))
    paths = [site.source.file(directory / "file", "x") for directory in directories]
    program = site.source.directory / "borg"
    mark = Path("/tmp") / f"borg-pull-test-{secrets.token_hex(8)}"
    program.write_text(
        TELLS_ITS_VERSION.format(paths=[str(path) for path in paths], name=mark.name)
    )
    program.chmod(0o755)
    rules = {"paths": [str(data)]}
    site.source.write_whitelist(
        {"luna": rules}, runtime={"borg": str(program)}, confine={"landlock": mode}
    )
    try:
        result = site.pull("hello")
    finally:
        mark.unlink(missing_ok=True)
    assert (result.exit, json.loads(result.stdout)["borg"]) == (0, "1.2.4")
    denied = mode == "required"
    assert result.errors.split() == ["EACCES" if denied else "done"] * 4


# Older kernels. What calls the kernel really gets is asked of this one, which knows them all.


@pytest.fixture
def older(
    make_site: SiteMaker, installations: Installations
) -> Callable[[int], AbstractContextManager[Scene]]:
    """Makes the scene on a kernel of that level of Landlock, 0 for one without."""

    @contextmanager
    def made(level: int) -> Iterator[Scene]:
        server = SshServer(
            installations.workplace, under=[sys.executable, OLDER_KERNEL, str(level)]
        )
        server.start()
        site = make_site(FROZEN_12)
        site.server = server
        try:
            with scene_of(site) as scene:
                yield scene
        finally:
            server.stop()

    return made


@pytest.mark.parametrize("level", range(1, landlock.abi() or 1))
def test_each_older_level_denies_what_it_knows(
    older: Callable[[int], AbstractContextManager[Scene]], level: int
) -> None:
    with older(level) as scene:
        report = scene.run("required")
        start = _started(scene.site)
        hello = scene.site.pull("hello")
    assert report.pop(EFFECTIVE_USER) == scene.site.account.uid
    expected = DENIED | dict.fromkeys(ALLOWED, 0)
    if level < 6:
        expected |= dict.fromkeys(LANDLOCK_SCOPES, 0)
    assert report == expected
    assert (start["confinement"]["landlock"], start["confinement"]["seccomp"]) == (level, True)
    assert json.loads(hello.stdout)["confinement"]["landlock_abi"] == level


def test_a_kernel_without(older: Callable[[int], AbstractContextManager[Scene]]) -> None:
    """``auto`` runs and says so, ``required`` runs nothing, ``off`` does not even filter calls."""
    with older(0) as scene:
        report = scene.run("auto")
        assert report.pop(EFFECTIVE_USER) == scene.site.account.uid
        denied = {name for name, error in report.items() if error != 0}
        assert denied == {*BY_THE_FILTER, *DENIED_ANYWAY}
        assert {name: report[name] for name in BY_THE_FILTER} == BY_THE_FILTER
        confinement = _started(scene.site)["confinement"]
        assert (confinement["landlock"], confinement["seccomp"]) == (None, True)
        report = scene.run("off")
        assert all(report[name] == 0 for name in SOCKETS)
        confinement = _started(scene.site)["confinement"]
        assert (confinement["landlock"], confinement["seccomp"]) == (None, False)
        scene.site.source.audit_file.chmod(0o640)  # as an attempt has left it
        result = scene.asked("required")
    assert result.exit == 71
    assert "the kernel has no Landlock, which confine.landlock requires" in result.errors
    assert not (scene.site.source.state("luna") / "report.json").exists()
    assert scene.site.source.audit(event="refused", exit=71)


def test_an_older_level_is_asked_no_more_than_it_knows() -> None:
    """The control of the emulation: this kernel's own ruleset is too much for each older one."""
    newest = struct.pack("QQQ", *older_kernel.attributes(landlock.abi() or 0))
    for level in (1, 2, 3, 4, 5):
        assert older_kernel.fault(level, newest) in (errno.EINVAL, errno.E2BIG)
        assert older_kernel.fault(level, struct.pack("QQQ", *older_kernel.attributes(level))) == 0
