"""borg run here, on a repository of this host, with an environment made from nothing."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from borg_pull.errors import FailedError, printable
from borg_pull.pull.config import Repository
from borg_pull.pull.source import escaped
from borg_pull.pull.ssh import tied

LOCK_WAIT = 60
"""Seconds a borg of ours waits for somebody else's lock."""


class RepositoryError(FailedError):
    """borg could not do what was asked of it here."""


@dataclass(frozen=True)
class Archive:
    """One archive, as borg lists it."""

    id: str
    name: str
    time: datetime
    """When it was made, UTC."""


@dataclass(frozen=True)
class Answer:
    """How one borg ended."""

    code: int
    """borg's modern code."""
    stdout: bytes
    stderr: str


class LocalRepository:
    """A repository and the secret that opens it, got when it is first needed."""

    def __init__(self, repository: Repository, passphrase: Callable[[], bytes | None]) -> None:
        self.repository = repository
        self._passphrase = passphrase

    def archives(self, glob: str | None = None) -> list[Archive]:
        """Its archives, oldest first, of those whose names match ``glob``.

        Raises RepositoryError.
        """
        words = ["list", "--json", "--consider-checkpoints"] if glob is None else ["list", "--json"]
        if glob is not None:
            words += ["--glob-archives", glob]
        answer = self.run([*words, str(self.repository.path)])
        return [_archive(entry) for entry in json.loads(answer.stdout)["archives"]]

    def archive(self, name: str) -> Archive | None:
        """The one of that very name."""
        return next((one for one in self.archives(escaped(name)) if one.name == name), None)

    def info(self, archive: str) -> dict[str, Any]:
        """What ``borg info --json`` says of one archive."""
        answer = self.run(["info", "--json", f"{self.repository.path}::{archive}"])
        found: dict[str, Any] = json.loads(answer.stdout)["archives"][0]
        return found

    def run(
        self,
        words: Sequence[str],
        *,
        cwd: Path | None = None,
        on_line: Callable[[bytes], None] | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Run ``borg WORDS``; warnings pass. Raises RepositoryError for an error of borg's.

        ``on_line`` is given each line of standard error as it comes.
        """
        passphrase = self._passphrase()
        environment = self._environment()
        reader: int | None = None
        if passphrase is not None:
            reader, writer = os.pipe()
            # Fits the pipe: a passphrase is short, and nobody reads yet.
            os.write(writer, passphrase + b"\n")
            os.close(writer)
            environment["BORG_PASSPHRASE_FD"] = str(reader)
        argv = [str(self.repository.borg), words[0], "--lock-wait", str(LOCK_WAIT), *words[1:]]
        try:
            process = subprocess.Popen(
                tied(argv),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=() if reader is None else (reader,),
                env=environment,
                cwd=cwd or "/",
            )
        except OSError as error:
            raise RepositoryError(f"cannot run {argv[0]}: {error.strerror}") from error
        finally:
            if reader is not None:
                os.close(reader)
        stdout, stderr = _output(process, on_line, timeout)
        answer = Answer(process.returncode, stdout, stderr)
        if not is_done(answer.code):
            last = printable((stderr.strip().splitlines() or ["no message"])[-1])
            raise RepositoryError(f"borg {words[0]} on {self.repository.path}: {last}")
        return answer

    def _environment(self) -> dict[str, str]:
        environment = {
            "PATH": "/usr/bin:/bin",
            "LC_ALL": "C.UTF-8",
            "PYTHONNOUSERSITE": "1",
            "BORG_EXIT_CODES": "modern",
            # The path is the configuration's: nobody but the admin can have moved or made it.
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }
        # borg's keys, cache and security data are those of whoever else uses borg as this user.
        for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "TMPDIR", "BORG_BASE_DIR"):
            if name in os.environ:
                environment[name] = os.environ[name]
        return environment


def is_done(code: int) -> bool:
    """Whether borg's exit code, modern or not, is success or a warning."""
    return code in (0, 1) or 100 <= code <= 127


def _output(
    process: subprocess.Popen[bytes],
    on_line: Callable[[bytes], None] | None,
    timeout: float | None,
) -> tuple[bytes, str]:
    if on_line is None:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.terminate()
            stdout, stderr = process.communicate()
        return stdout, stderr.decode("utf-8", "replace")
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        on_line(line)
        lines.append(line.decode("utf-8", "replace"))
    assert process.stdout is not None
    stdout = process.stdout.read()
    process.wait()
    return stdout, "".join(lines[-100:])


def _archive(entry: dict[str, Any]) -> Archive:
    # borg 1 gives local time without a zone.
    moment = datetime.fromisoformat(entry["time"]).astimezone(UTC)
    return Archive(id=entry["id"], name=entry["archive"], time=moment)
