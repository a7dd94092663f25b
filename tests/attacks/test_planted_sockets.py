"""Sockets in the place of files keep nobody from being served (A against B).

Threat: sshd has no rule for where ``-R`` may bind. nova (A) has it bind sockets in the place of
every file and directory that luna's (B's) runs will make and that nova can name in advance: her
directories, her lock, the wrap's report, the tables of limits, the audit log. borg, and we, would
fail on each of them, at every run. The control is what such a socket does to borg where nova
cannot put one, and what a careless sshd would let her remove.
"""

from __future__ import annotations

import secrets
import socket
import stat
import threading
from contextlib import chdir
from pathlib import Path
from typing import Self

import pytest

from borg_pull.source.state import places
from tests.harness.builds import FROZEN_12
from tests.harness.fixtures import SiteMaker
from tests.harness.peer import PASSPHRASE, Repository
from tests.harness.sink import Sink
from tests.harness.site import Site

# Writes in its state directory and sends a byte, as borg does.
STAND_IN = """\
#!/bin/sh
[ "$1" != --version ] || exec echo borg 1.2.4
echo > "$BORG_BASE_DIR/state" && echo | "$BORG_RSH" host borg serve > /dev/null || exit 2
"""


class Scene:
    """luna, whose borg is a stand-in unless said otherwise, and nova, who plants."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.home = site.source.home
        self.luna = site.peer("luna")
        # What her forced command does is all one here: sshd has bound the sockets before it.
        self.nova = site.peer("nova", command="/bin/true")
        self.data = site.source.tree()
        site.source.file(self.data / "file", "content")
        program = site.source.directory / "borg"
        program.write_text(STAND_IN)
        program.chmod(0o755)
        self.allow(borg=str(program))

    def allow(self, **runtime: object) -> None:
        passphrase = self.site.source.secret("passphrase", PASSPHRASE + "\n")
        rules = {
            "paths": [str(self.data)],
            "allow": ["create", "init"],
            "encryption": ["keyfile"],
            "passphrase_file": str(passphrase),
        }
        self.site.source.write_whitelist({"luna": rules}, runtime=runtime)

    def plant(self, *paths: Path) -> set[Path]:
        """Have sshd bind all of ``paths`` for nova; those that it did bind."""
        options = [f"-R{path}:/nonexistent" for path in paths]
        go_on = ("-oExitOnForwardFailure=no", "-oLogLevel=INFO")
        done = self.nova.start("", options=[*go_on, *options]).wait()
        assert done.exit == 0
        said = done.errors.splitlines()
        refusal = "Warning: remote port forwarding failed for listen path"
        return {path for path in paths if f"{refusal} {path}" not in said}

    def serve(self, repository: str = "/srv/luna") -> None:
        """A run of luna's, which nothing keeps from being served and recorded."""
        with Sink(self.luna.directory / secrets.token_hex(4)) as sink:
            result = self.luna.start(f"create {repository} a {self.data}", sink).wait()
        assert (result.exit, result.errors, sink.received) == (0, "", 1)

    def lock_and_report(self, repository: str) -> tuple[Path, Path]:
        lock, report = places(str(self.home / "locks/luna"), repository)
        return Path(lock), Path(report)

    def planted(self) -> set[Path]:
        """The sockets that are left."""
        return set(filter(_is_socket, self.home.rglob("*")))


def _is_socket(path: Path) -> bool:
    return stat.S_ISSOCK(path.lstat().st_mode)


@pytest.fixture
def scene(make_site: SiteMaker) -> Scene:
    return Scene(make_site(FROZEN_12))


def test_before_anything_has_run(scene: Scene) -> None:
    names = ("clients", "locks", "limits", "audit.jsonl", "audit.jsonl.chain")
    paths = [scene.home / name for name in names]
    assert scene.plant(*paths) == set(paths)
    scene.serve()
    assert not scene.planted()


def test_before_the_first_run_of_the_client(scene: Scene) -> None:
    """The directories are there: other clients have run."""
    for name in ("clients", "locks", "limits"):
        (scene.home / name).mkdir(mode=0o700)
        scene.site.source.give(scene.home / name)
    names = ("clients/luna", "locks/luna", "limits/luna.limits", "limits/sessions")
    paths = [scene.home / name for name in names]
    assert scene.plant(*paths) == set(paths)
    scene.serve()
    assert not scene.planted()


def test_before_the_first_run_on_a_repository(scene: Scene) -> None:
    scene.serve("/srv/other")
    paths = scene.lock_and_report("/srv/luna")
    assert scene.plant(*paths) == set(paths)
    scene.serve("/srv/luna")
    assert not scene.planted()


def test_hello_removes_what_lies_where_no_socket_belongs(scene: Scene) -> None:
    """They take up inodes of the disk that holds the log and every client's state."""
    scene.serve()
    home = scene.home
    below = ("", "clients", "clients/luna", "locks", "locks/luna", "limits")
    paths = [home / directory / str(number) for directory in below for number in range(100)]
    assert scene.plant(*paths) == set(paths)
    files = {path for path in home.rglob("*") if path.is_file()}
    assert scene.luna.pull("hello").exit == 0
    assert not scene.planted()
    assert {path for path in home.rglob("*") if path.is_file()} == files


def test_after_the_log_was_rotated_away(scene: Scene) -> None:
    scene.serve()
    log = scene.site.source.audit_file
    log.rename(log.with_name("audit.jsonl.1"))
    assert scene.plant(log) == {log}
    scene.serve()
    assert log.is_file()


class Planting:
    """nova, who plants the same sockets again and again."""

    def __init__(self, scene: Scene, *paths: Path) -> None:
        self.times = 0
        self._scene = scene
        self._paths = paths
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._ended.is_set():
            self.times += bool(self._scene.plant(*self._paths))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(20)


def test_again_and_again_while_the_client_runs(scene: Scene) -> None:
    """The report is made anew by each run, so its name is free between two."""
    scene.serve("/srv/other")
    lock, report = scene.lock_and_report("/srv/luna")
    clients = [scene.home / f"clients/luna/{name}" for name in (".cache", "0" * 32)]
    with Planting(scene, lock, report, *clients) as planting:
        for _ in range(8):
            scene.serve("/srv/luna")
    assert planting.times >= 2


def _own_repository(scene: Scene) -> Repository:
    """A repository whose key is in luna's state directory, by the real borg."""
    scene.allow()
    repository = scene.luna.repository(encryption="keyfile", initialised=False)
    result = scene.luna.pull(f"init -e keyfile {repository.path}", repository)
    assert result.exit == 0, result.errors
    return repository


def test_where_borg_keeps_what_is_the_client_s(scene: Scene) -> None:
    """nova knows every name but that of the state directory, and sshd lists none for her."""
    repository = _own_repository(scene)
    client = scene.home / "clients/luna"
    guesses = [
        client / ".config",
        client / ".config/borg/keys/a",
        client / ".cache/borg/a",
        client / ("0" * 32),
        client / "*/.config/borg/keys/a",
        # No socket's path is longer than 107 bytes, so this is as deep as a guess can reach here.
        *(client / secrets.token_hex(16) / "a" for _ in range(8)),
    ]
    assert scene.plant(*guesses) == {guesses[0], guesses[3]}
    result = scene.luna.pull(f"create {repository.path} a {scene.data}", repository)
    assert result.exit == 0, result.errors


def test_control_one_among_the_keys_would_stop_every_run(scene: Scene) -> None:
    repository = _own_repository(scene)
    keys = scene.site.source.state("luna") / ".config/borg/keys"
    for name in map(str, range(100)):
        with socket.socket(socket.AF_UNIX) as planted, chdir(keys):
            planted.bind(name)
        scene.site.source.give(keys / name)
        # borg opens them as they are listed, until one is the key.
        if _is_socket(next(keys.iterdir())):
            break
    for _ in range(2):
        result = scene.luna.pull(f"create {repository.path} a {scene.data}", repository)
        assert result.exit == 2
        assert "No such device or address" in result.errors


def test_what_sshd_makes_and_what_it_does_not(scene: Scene) -> None:
    """It makes sockets where the account may make files, and takes the place of nothing."""
    scene.serve()
    source = scene.site.source
    mark = secrets.token_hex(8)
    writable = [source.home, source.socket_dir, Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")]
    others = [
        *(source.directory, source.configuration.parent, source.programs.directory),
        *map(Path, ("/", "/etc", "/etc/ssh", "/run", "/usr/bin", "/root", "/proc/self/cwd")),
    ]
    try:
        bound = scene.plant(*(path / mark for path in (*writable, *others)))
        assert bound == {path / mark for path in writable}
    finally:
        for path in writable:
            (path / mark).unlink(missing_ok=True)
    taken = [path for path in source.home.rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in taken}
    assert {path.name for path in taken} >= {"audit.jsonl", "audit.jsonl.chain", "state"}
    assert scene.plant(*taken, *(path for path in source.home.rglob("*") if path.is_dir())) == set()
    assert {path: path.read_bytes() for path in taken} == before


def test_control_a_careless_sshd_removes_what_it_binds_over(make_site: SiteMaker) -> None:
    """Which is why the settings that ship forbid it, and the doctor looks."""
    scene = Scene(make_site(FROZEN_12, sshd=("StreamLocalBindUnlink yes",)))
    scene.serve()
    log = scene.site.source.audit_file
    assert scene.plant(log) == {log}
    assert _is_socket(log)
