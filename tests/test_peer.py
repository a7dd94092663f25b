"""Whose a socket is, and the removing of one by name."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from borg_pull.source import peer
from tests.harness.builds import PROJECT


def bound(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    return made


def listening(path: Path) -> socket.socket:
    made = bound(path)
    made.listen()
    return made


def identity(path: Path) -> tuple[int, int, int]:
    found = peer._identity(os.fsencode(path))
    assert found is not None
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "luna.sock"


class TestHolder:
    """`holder` and the requests that ask it."""

    def test_of_a_listener_in_this_session(self, path: Path) -> None:
        """This process listens, and it is an ancestor of the one that asks."""
        ask = (
            "import sys; from borg_pull.source import peer; "
            "print(peer.holder(sys.argv[1].encode()))"
        )
        with listening(path):
            said = subprocess.run(
                [sys.executable, "-c", ask, path],
                cwd=PROJECT,
                capture_output=True,
                text=True,
                check=True,
            )
        assert said.stdout == "ours\n"

    def test_of_another_listener(self, path: Path) -> None:
        with listening(path):
            assert peer.holder(os.fsencode(path)) == peer.FOREIGN

    def test_of_a_listener_whose_queue_is_full(self, path: Path) -> None:
        with bound(path) as busy, socket.socket(socket.AF_UNIX) as waiting:
            busy.listen(0)
            waiting.connect(str(path))
            assert peer.holder(os.fsencode(path)) == peer.FOREIGN

    def test_of_one_that_is_about_to_listen(self, path: Path) -> None:
        """Between bind(2) and listen(2) it refuses connections like one that nobody has."""
        with bound(path):
            assert peer.holder(os.fsencode(path)) == peer.FOREIGN
            peer.remove_unless_foreign(str(path))
            peer.remove_deserted(str(path.parent))
            assert path.exists()

    def test_of_one_that_nobody_has(self, path: Path) -> None:
        bound(path).close()
        assert peer.holder(os.fsencode(path)) == peer.DESERTED
        peer.remove_unless_foreign(str(path))
        assert not path.exists()

    @pytest.mark.parametrize(
        ("table", "value"), [("_SOCKET_TABLE", "/nonexistent"), ("_MAX_BLOCKS", 0)]
    )
    def test_where_the_kernel_does_not_tell(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, table: str, value: object
    ) -> None:
        bound(path).close()
        monkeypatch.setattr(peer, table, value)
        assert peer.holder(os.fsencode(path)) == peer.FOREIGN
        peer.remove_deserted(str(path.parent))
        assert path.exists()


class TestRemoveDeserted:
    """`remove_deserted`, whose promise is to cost no listener anything."""

    def test_removes_what_nobody_has_and_that_alone(self, tmp_path: Path) -> None:
        run = tmp_path / "run"
        run.mkdir()
        (tmp_path / "alias").symlink_to(run)
        for name in ("luna.sock", "nova.0123456789abcdef.sock", "n\nova", "\udcff"):
            bound(run / name).close()
        (run / "file").touch()
        (run / "link").symlink_to(run / "file")
        with ExitStack() as living:
            # The same name elsewhere keeps none here in use.
            living.enter_context(listening(tmp_path / "luna.sock"))
            living.enter_context(bound(run / "sol.sock"))
            asked = [
                living.enter_context(listening(path))
                for path in (run / "mars.sock", tmp_path / "alias/venus 1.sock")
            ]
            peer.remove_deserted(str(run))
            names = sorted(os.listdir(run))
            assert names == ["file", "link", "mars.sock", "sol.sock", "venus 1.sock"]
            for live in asked:
                live.setblocking(False)
                with pytest.raises(BlockingIOError):
                    live.accept()

    def test_ends_however_many_there_are(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(peer, "_MAX_DESERTED", 10)
        for number in range(25):
            bound(tmp_path / str(number)).close()
        left = []
        for _ in range(3):
            peer.remove_deserted(str(tmp_path))
            left.append(len(os.listdir(tmp_path)))
        assert left == [15, 5, 0]

    def test_of_a_directory_that_is_not_there(self, tmp_path: Path) -> None:
        peer.remove_deserted(str(tmp_path / "run"))


class TestRemove:
    """A name that comes to be another's at the worst moment."""

    def test_another_at_the_name_stays(self, path: Path) -> None:
        bound(path).close()
        old = identity(path)
        path.unlink()
        with listening(path):
            peer._remove(os.fsencode(path), old)
            assert connects(path)

    def test_a_name_bound_anew_just_before_it_is_removed_stays(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bound(path).close()
        anew = Rebound(path)
        monkeypatch.setattr(os, "rename", anew.before(os.rename))
        peer._remove(os.fsencode(path), identity(path))
        assert anew.happened
        assert connects(path)
        assert os.listdir(path.parent) == [path.name]
        anew.close()

    def test_a_name_bound_anew_while_its_socket_is_away_is_nobody_else_s(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bound(path).close()
        old = identity(path)
        first, second = Rebound(path), Rebound(path)
        monkeypatch.setattr(os, "rename", first.before(os.rename))
        monkeypatch.setattr(os, "link", second.before(os.link))
        peer._remove(os.fsencode(path), old)
        assert first.happened
        assert second.happened
        assert second.serves()
        assert os.listdir(path.parent) == [path.name]
        first.close()
        second.close()

    def test_without_room_for_another_name(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        bound(path).close()
        monkeypatch.setattr(os, "rename", full)
        peer._remove(os.fsencode(path), identity(path))
        assert not path.exists()

    def test_a_file_of_another_kind_stays(self, path: Path) -> None:
        path.touch()
        peer.remove_unless_foreign(str(path))
        assert stat.S_ISREG(path.stat().st_mode)


class Rebound:
    """Somebody else's socket, bound to a name in the moment before a system call on it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket: socket.socket | None = None

    @property
    def happened(self) -> bool:
        return self._socket is not None

    def before(self, call: Callable[..., None]) -> Callable[..., None]:
        def called(*arguments: object) -> None:
            self._path.unlink(missing_ok=True)
            self._socket = listening(self._path)
            call(*arguments)

        return called

    def serves(self) -> bool:
        """Whether whoever connects by name reaches this one."""
        assert self._socket is not None
        with socket.socket(socket.AF_UNIX) as asking:
            asking.connect(str(self._path))
            self._socket.setblocking(False)
            self._socket.accept()[0].close()
        return True

    def close(self) -> None:
        assert self._socket is not None
        self._socket.close()


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as asking:
        return asking.connect_ex(str(path)) == 0
