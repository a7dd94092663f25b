"""Which files are trusted: each refusal beside the nearest thing that is not refused."""

from __future__ import annotations

import functools
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from borg_pull.errors import ConfigurationError
from borg_pull.trust import (
    Trust,
    check_directories,
    check_own_directory,
    check_program,
    read_file,
)

ACCOUNT = 54321  # needs no entry in the password file
STRANGER = 54322
ENFORCED = Trust(enforced=True, uid=ACCOUNT)
LENIENT = Trust(enforced=False, uid=ACCOUNT)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with nothing but root's own, closed directories above it."""
    path = Path(tempfile.mkdtemp(prefix="borg-pull-trust-", dir="/var/lib"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def made(path: Path, content: bytes = b"content", mode: int = 0o644, uid: int = 0) -> Path:
    path.write_bytes(content)
    os.chown(path, uid, uid)
    path.chmod(mode)
    return path


def folder(path: Path, mode: int = 0o755, uid: int = 0) -> Path:
    path.mkdir()
    os.chown(path, uid, uid)
    path.chmod(mode)
    return path


def read(path: Path, trust: Trust = ENFORCED, *, own: bool = False, secret: bool = False) -> bytes:
    return read_file(str(path), trust, limit=100, own=own, secret=secret)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ConfigurationError) as caught:
        call()
    return caught.value.line()


def test_the_account_is_named_where_it_has_a_name(place: Path) -> None:
    path = folder(place / "home", 0o700, STRANGER)
    said = refusal(lambda: check_own_directory(str(path), Trust(enforced=True, uid=0)))
    assert said.endswith(f" run chown root {path}")


class TestAnyFile:
    """What holds for every caller, privileged or not."""

    def test_content_up_to_the_limit(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        for size in (0, 1, 99, 100):
            path.write_bytes(b"x" * size)
            assert read(path, LENIENT) == b"x" * size
        path.write_bytes(b"x" * 101)
        assert "is larger than 100 bytes" in refusal(lambda: read(path, LENIENT))

    def test_only_regular_files(self, tmp_path: Path) -> None:
        made_by = {"fifo": os.mkfifo, "directory": os.mkdir}
        for name, make in made_by.items():
            make(tmp_path / name)
            said = refusal(functools.partial(read, tmp_path / name, LENIENT))
            assert "is not a regular file" in said
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(tmp_path / "socket"))
        assert "cannot be used" in refusal(lambda: read(tmp_path / "socket", LENIENT))
        assert "is not a regular file" in refusal(lambda: read(Path("/dev/null"), LENIENT))

    def test_no_link_in_the_last_component(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"content")
        (tmp_path / "link").symlink_to("file")
        assert read(tmp_path / "file", LENIENT) == b"content"
        assert "is a symbolic link" in refusal(lambda: read(tmp_path / "link", LENIENT))

    def test_a_missing_file(self, tmp_path: Path) -> None:
        said = refusal(lambda: read(tmp_path / "none", LENIENT))
        assert said == f"{tmp_path}/none cannot be used: No such file or directory"

    def test_unprivileged_owner_and_mode_do_not_matter(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"content")
        path.chmod(0o666)
        assert read(path, LENIENT, secret=True) == b"content"
        check_own_directory(str(tmp_path), LENIENT)


@pytest.mark.needs_root
class TestTrustedFiles:
    def test_roots_file_that_nobody_else_can_write(self, place: Path) -> None:
        assert read(made(place / "file")) == b"content"
        assert read(made(place / "closed", mode=0o600), secret=True) == b"content"

    @pytest.mark.parametrize("mode", [0o664, 0o646, 0o666, 0o620, 0o602])
    def test_a_file_others_can_write(self, place: Path, mode: int) -> None:
        path = made(place / "file", mode=mode)
        said = refusal(lambda: read(path))
        assert said == f"{path} can be written by others; run chmod go-w {path}"

    @pytest.mark.parametrize("uid", [ACCOUNT, STRANGER])
    def test_a_file_of_somebody_elses(self, place: Path, uid: int) -> None:
        path = made(place / "file", uid=uid)
        assert refusal(lambda: read(path)) == (
            f"{path} belongs to uid {uid}, not to root; if you trust what is in it, "
            f"run chown root {path}"
        )

    def test_the_accounts_own_file_where_that_is_allowed(self, place: Path) -> None:
        assert read(made(place / "mine", uid=ACCOUNT), own=True) == b"content"
        path = made(place / "theirs", uid=STRANGER)
        assert "not to root or this account" in refusal(lambda: read(path, own=True))
        path = made(place / "open", uid=ACCOUNT, mode=0o664)
        assert "can be written by others" in refusal(lambda: read(path, own=True))

    @pytest.mark.parametrize("mode", [0o644, 0o604, 0o601, 0o641])
    def test_a_secret_others_can_reach(self, place: Path, mode: int) -> None:
        path = made(place / "secret", mode=mode)
        assert read(path) == b"content"
        assert "can be read by others" in refusal(lambda: read(path, secret=True))

    def test_a_secret_its_group_can_read(self, place: Path) -> None:
        """Root's file, readable by the account through its group."""
        assert read(made(place / "secret", mode=0o640), secret=True) == b"content"


@pytest.mark.needs_root
class TestDirectoriesAbove:
    @pytest.mark.parametrize("mode", [0o775, 0o757, 0o777, 0o1777])
    def test_one_others_can_write(self, place: Path, mode: int) -> None:
        outer = folder(place / "outer")
        path = made(folder(outer / "inner") / "file")
        assert read(path) == b"content"
        outer.chmod(mode)
        assert f"{outer} can be written by others" in refusal(lambda: read(path))

    def test_one_of_somebody_elses(self, place: Path) -> None:
        outer = folder(place / "outer", uid=STRANGER)
        path = made(outer / "file")
        assert f"{outer} belongs to uid {STRANGER}" in refusal(lambda: read(path, own=True))
        os.chown(outer, ACCOUNT, 0)
        assert f"{outer} belongs to uid {ACCOUNT}" in refusal(lambda: read(path))
        assert read(path, own=True) == b"content"

    def test_one_that_is_a_link(self, place: Path) -> None:
        made(folder(place / "real") / "file")
        (place / "link").symlink_to("real")
        assert read(place / "real/file") == b"content"
        assert "links are not followed" in refusal(lambda: read(place / "link/file"))

    def test_one_that_is_missing_or_no_directory(self, place: Path) -> None:
        made(place / "file")
        said = refusal(lambda: read(place / "none/file"))
        assert said == f"{place}/none cannot be used: No such file or directory"
        assert f"{place}/file is not a directory" in refusal(lambda: read(place / "file/x"))

    def test_a_common_place_is_not_trusted(self, place: Path) -> None:
        path = made(Path("/tmp") / place.name)
        try:
            assert "/tmp can be written by others" in refusal(lambda: read(path))
        finally:
            path.unlink()

    def test_dots_in_the_path_do_not_hide_a_directory(self, place: Path) -> None:
        folder(place / "open", mode=0o777)
        path = made(place / "file")
        roundabout = f"{place}/open/../{path.name}"
        said = refusal(lambda: check_directories(roundabout, ENFORCED, own=False))
        assert f"{place}/open can be written by others" in said
        check_directories(f"{place}/./file", ENFORCED, own=False)


@pytest.mark.needs_root
class TestOwnDirectory:
    def test_the_accounts_own(self, place: Path) -> None:
        check_own_directory(str(folder(place / "home", 0o700, ACCOUNT)), ENFORCED)
        # Below its own directories, too.
        check_own_directory(str(folder(place / "home/run", 0o750, ACCOUNT)), ENFORCED)

    @pytest.mark.parametrize("uid", [0, STRANGER])
    def test_somebody_elses(self, place: Path, uid: int) -> None:
        path = folder(place / "home", 0o700, uid)
        said = refusal(lambda: check_own_directory(str(path), ENFORCED))
        assert f"{path} does not belong to this account; " in said
        assert said.endswith(f" run chown {ACCOUNT} {path}")

    @pytest.mark.parametrize("mode", [0o770, 0o702, 0o1777])
    def test_one_others_can_write(self, place: Path, mode: int) -> None:
        path = folder(place / "home", mode, ACCOUNT)
        assert "can be written by others" in refusal(
            lambda: check_own_directory(str(path), ENFORCED)
        )

    def test_no_directory(self, place: Path) -> None:
        path = made(place / "file", uid=ACCOUNT)
        link = place / "link"
        link.symlink_to(folder(place / "home", 0o700, ACCOUNT))
        for wrong in (path, link):
            said = refusal(functools.partial(check_own_directory, str(wrong), ENFORCED))
            assert "is not a directory" in said
        missing = str(place / "none")
        assert "No such file" in refusal(lambda: check_own_directory(missing, ENFORCED))


def test_own_directory_must_be_one_even_without_privilege(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "is not a directory" in refusal(
        lambda: check_own_directory(str(tmp_path / "file"), LENIENT)
    )


class TestProgram:
    def test_an_executable_file(self, tmp_path: Path) -> None:
        path = tmp_path / "program"
        path.write_text("#!/bin/sh\n")
        assert "is not an executable file" in refusal(lambda: check_program(str(path), LENIENT))
        path.chmod(0o755)
        check_program(str(path), LENIENT)
        assert "is not an executable file" in refusal(lambda: check_program(str(tmp_path), LENIENT))
        assert "No such file" in refusal(lambda: check_program(str(tmp_path / "none"), LENIENT))

    def test_links_that_go_round(self, tmp_path: Path) -> None:
        (tmp_path / "a").symlink_to("b")
        (tmp_path / "b").symlink_to("a")
        said = refusal(lambda: check_program(str(tmp_path / "a"), LENIENT))
        assert "has too many symbolic links" in said

    def test_a_long_but_finite_chain(self, tmp_path: Path) -> None:
        program = tmp_path / "0"
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        for number in range(1, 41):
            (tmp_path / str(number)).symlink_to(str(number - 1))
        check_program(str(tmp_path / "40"), LENIENT)
        (tmp_path / "41").symlink_to("40")
        assert "too many" in refusal(lambda: check_program(str(tmp_path / "41"), LENIENT))

    def test_relative_targets_with_dots(self, tmp_path: Path) -> None:
        (tmp_path / "bin").mkdir()
        program = tmp_path / "program"
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        (tmp_path / "bin/link").symlink_to("./../bin/.././program")
        check_program(str(tmp_path / "bin/link"), LENIENT)


@pytest.mark.needs_root
class TestTrustedProgram:
    def test_the_systems_own(self) -> None:
        # /bin is a link of root's on merged systems, and /usr/bin holds chains of alternatives.
        check_program("/bin/sh", ENFORCED)
        check_program("/usr/bin/awk", ENFORCED)

    @pytest.mark.parametrize("uid", [ACCOUNT, STRANGER])
    def test_one_that_is_not_roots(self, place: Path, uid: int) -> None:
        path = made(place / "program", mode=0o755, uid=uid)
        assert f"belongs to uid {uid}, not to root" in refusal(
            lambda: check_program(str(path), ENFORCED)
        )
        os.chown(path, 0, 0)
        check_program(str(path), ENFORCED)

    def test_one_others_can_write(self, place: Path) -> None:
        path = made(place / "program", mode=0o775)
        assert "can be written by others" in refusal(lambda: check_program(str(path), ENFORCED))

    def test_one_below_a_directory_that_is_not_roots(self, place: Path) -> None:
        inner = folder(place / "bin", uid=ACCOUNT)
        path = made(inner / "program", mode=0o755)
        assert f"{inner} belongs to uid {ACCOUNT}" in refusal(
            lambda: check_program(str(path), ENFORCED)
        )
        os.chown(inner, 0, 0)
        inner.chmod(0o777)
        assert f"{inner} can be written" in refusal(lambda: check_program(str(path), ENFORCED))

    def test_one_behind_a_link(self, place: Path) -> None:
        made(folder(place / "bin") / "program", mode=0o755)
        link = place / "link"
        link.symlink_to("bin/program")
        check_program(str(link), ENFORCED)
        os.chown(link, STRANGER, STRANGER, follow_symlinks=False)
        assert "is a link that does not belong to root" in refusal(
            lambda: check_program(str(link), ENFORCED)
        )

    def test_one_behind_a_link_into_an_open_directory(self, place: Path) -> None:
        made(folder(place / "open", mode=0o777) / "program", mode=0o755)
        link = place / "link"
        link.symlink_to(place / "open" / "program")
        assert f"{place}/open can be written" in refusal(lambda: check_program(str(link), ENFORCED))

    def test_one_behind_a_link_to_a_directory(self, place: Path) -> None:
        made(folder(place / "v2") / "program", mode=0o755)
        (place / "current").symlink_to("v2")
        check_program(str(place / "current/program"), ENFORCED)
        (place / "v2").chmod(0o775)
        assert f"{place}/v2 can be written" in refusal(
            lambda: check_program(str(place / "current/program"), ENFORCED)
        )
