"""Passphrases by file, command and credential: who may see them, and what is said without them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keyring
import pytest
from keyring.backend import KeyringBackend
from keyring.errors import KeyringLocked

from borg_pull.errors import ConfigurationError
from borg_pull.pull import secret
from borg_pull.pull.config import Repository
from tests.harness import processes
from tests.harness.wait import until

PASSPHRASE = "correct horse: battery 'staple' \"$x\" é"


def passphrase(**keys: Any) -> bytes | None:
    return secret.passphrase("web1", Repository.model_validate({"path": "/r", **keys}))


def refusal(**keys: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        passphrase(**keys)
    assert caught.value.exit_code == 78
    return caught.value.line()


def written(path: Path, content: bytes | str, mode: int = 0o600) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)
    return path


def test_a_repository_without_one() -> None:
    assert passphrase() is None


class TestFile:
    @pytest.mark.parametrize("end", ["", "\n", "\r\n", "\nsecond line\n"])
    def test_its_first_line(self, tmp_path: Path, end: str) -> None:
        path = written(tmp_path / "p", PASSPHRASE + end)
        assert passphrase(passphrase_file=str(path)) == PASSPHRASE.encode()

    @pytest.mark.parametrize("mode", [0o400, 0o600, 0o640])
    def test_modes_that_keep_it(self, tmp_path: Path, mode: int) -> None:
        path = written(tmp_path / "p", PASSPHRASE, mode)
        assert passphrase(passphrase_file=str(path)) == PASSPHRASE.encode()

    @pytest.mark.parametrize(
        ("mode", "fault"), [(0o644, "open"), (0o601, "open"), (0o660, "group")]
    )
    def test_modes_that_do_not(self, tmp_path: Path, mode: int, fault: str) -> None:
        path = written(tmp_path / "p", PASSPHRASE, mode)
        said = refusal(passphrase_file=str(path))
        assert fault in said
        assert f"run chmod {'g-w' if fault == 'group' else '0600'} {path}" in said
        assert PASSPHRASE not in said

    @pytest.mark.needs_root
    def test_another_users(self, tmp_path: Path) -> None:
        path = written(tmp_path / "p", PASSPHRASE)
        os.chown(path, 12345, 12345)
        assert "belongs to uid 12345" in refusal(passphrase_file=str(path))

    def test_what_is_no_file(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo", 0o600)
        assert "is not a regular file" in refusal(passphrase_file=str(tmp_path / "fifo"))
        assert "does not exist; put it back" in refusal(passphrase_file=str(tmp_path / "missing"))

    @pytest.mark.parametrize("content", ["", "\n", "\nsecond"])
    def test_an_empty_one(self, tmp_path: Path, content: str) -> None:
        path = written(tmp_path / "p", content)
        assert f"{path} yields no passphrase; its first line is empty" in refusal(
            passphrase_file=str(path)
        )

    def test_one_without_end(self, tmp_path: Path) -> None:
        path = written(tmp_path / "p", b"x" * (secret.MAX_SECRET + 1))
        assert "is larger than" in refusal(passphrase_file=str(path))

    def test_lines_of_a_file_of_urls(self, tmp_path: Path) -> None:
        path = written(tmp_path / "urls", "# mine\n\n ntfy://a/#b \nmailto://x\n")
        assert secret.lines(path) == ["ntfy://a/#b", "mailto://x"]
        written(path, b"\xff")
        with pytest.raises(ConfigurationError, match="is not UTF-8 text"):
            secret.lines(path)
        path.chmod(0o644)
        with pytest.raises(ConfigurationError, match="is open to others"):
            secret.lines(path)


class TestCommand:
    def test_its_first_line(self) -> None:
        command = ["/usr/bin/printf", "%s\\nmore\\n", PASSPHRASE]
        assert passphrase(passphrase_command=command) == PASSPHRASE.encode()

    def test_no_shell_looks_at_it(self, tmp_path: Path) -> None:
        word = f"$(touch {tmp_path}/made); `id` & *"
        assert passphrase(passphrase_command=["/usr/bin/printf", "%s", word]) == word.encode()
        assert list(tmp_path.iterdir()) == []

    def test_one_that_fails_gives_nothing_away(self, tmp_path: Path) -> None:
        script = written(tmp_path / "s", f'#!/bin/sh\necho "{PASSPHRASE}"\nexit 3\n', 0o700)
        said = refusal(passphrase_command=[str(script)])
        assert said == (
            f"repository.web1.passphrase_command: {script} ended with 3; run it by hand to see why"
        )

    def test_one_that_is_missing(self) -> None:
        said = refusal(passphrase_command=["/nonexistent/pass"])
        assert "cannot run /nonexistent/pass: No such file" in said

    def test_one_that_prints_nothing(self) -> None:
        assert "yields no passphrase" in refusal(passphrase_command=["/bin/true"])

    def test_it_has_nothing_to_read(self) -> None:
        assert "yields no passphrase" in refusal(passphrase_command=["/bin/cat"])

    def test_one_that_hangs_is_ended_with_all_it_started(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(secret, "COMMAND_SECONDS", 1.0)
        name = f"hang-{os.getpid()}-{tmp_path.name}"
        script = written(tmp_path / name, "#!/bin/sh\nsleep 600 & sleep 600\n", 0o700)
        before = time.monotonic()
        assert "gave nothing within 1 s" in refusal(passphrase_command=[str(script)])
        assert time.monotonic() - before < 30

        def left() -> list[processes.Process]:
            return [one for one in processes.snapshot() if processes.mentions(one, name)]

        until(lambda: not left(), seconds=10, what="the end of the command")


class Store(KeyringBackend):
    """A desktop's secret store that holds one secret."""

    priority = 1

    def __init__(self, answer: str | Exception | None) -> None:
        self.answer = answer
        self.asked: list[tuple[str, str]] = []

    def set_password(self, service: str, username: str, password: str) -> None:
        raise NotImplementedError

    def get_password(self, service: str, username: str) -> str | None:
        self.asked.append((service, username))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class TestCredential:
    @pytest.fixture(autouse=True)
    def other_store(self) -> Iterator[None]:
        before = keyring.get_keyring()
        yield
        keyring.set_keyring(before)

    @pytest.fixture
    def credentials(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        return tmp_path

    def test_systemds_comes_first(self, credentials: Path) -> None:
        store = Store("of the desktop")
        keyring.set_keyring(store)
        written(credentials / "web1", PASSPHRASE + "\n", 0o440)
        assert passphrase(passphrase_credential="web1") == PASSPHRASE.encode()
        assert store.asked == []

    def test_then_the_desktops(self, credentials: Path) -> None:
        store = Store(PASSPHRASE)
        keyring.set_keyring(store)
        written(credentials / "other", "of another\n")
        assert passphrase(passphrase_credential="web1") == PASSPHRASE.encode()
        assert store.asked == [("borg-pull", "web1")]

    def test_one_that_nobody_has(self) -> None:
        keyring.set_keyring(Store(None))
        said = refusal(passphrase_credential="web1")
        assert said.startswith("there is no credential web1; have systemd load it")
        assert said.endswith("secret-tool store --label=borg-pull service borg-pull username web1")

    @pytest.mark.parametrize("error", [KeyringLocked("locked"), OSError("locked")])
    def test_a_store_that_is_locked(self, error: Exception) -> None:
        keyring.set_keyring(Store(error))
        said = refusal(passphrase_credential="web1")
        assert said == "credential web1: the secret store does not answer: locked"

    def test_a_host_without_any_store(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from keyring.backends.fail import Keyring

        keyring.set_keyring(Keyring())  # type: ignore[no-untyped-call]
        monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
        assert "there is no credential web1" in refusal(passphrase_credential="web1")


def test_the_store_is_loaded_for_nobody_else() -> None:
    from tests.pull.runs import imported_by

    loaded = imported_by("import borg_pull.pull.secret")
    assert "borg_pull.pull.secret" in loaded
    assert {"keyring", "cryptography"} & loaded == set()
