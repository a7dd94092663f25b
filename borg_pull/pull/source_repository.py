"""A repository that only its source can read: asked through the source's own verbs.

The source's word is taken for what this host cannot know, and checked where it can be: an
archive's id is the id of an object in the repository, which needs no key to be found there.
Every request is served append-only, prune too. What a source deletes is then final only when this
host compacts the repository, for which it needs no key either.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from borg_pull.errors import ConfigurationError, FailedError, NotAllowedError
from borg_pull.pull import said, source, ssh
from borg_pull.pull.log import LogFile
from borg_pull.pull.outcome import BUSY
from borg_pull.pull.places import Places
from borg_pull.pull.pull import Conversation, Task, hello, sent_secret, ssh_command, stall_of
from borg_pull.pull.repository import (
    LOCK_WAIT,
    Answer,
    Archive,
    Archives,
    LocalRepository,
    RepositoryError,
)
from borg_pull.pull.said import Greeting
from borg_pull.pull.serve import Serving
from borg_pull.pull.stop import Stop

ANSWER_LIMIT = 16 * 1024 * 1024
"""Bytes; some 50,000 archives. A hostile source may talk for ever."""

MANIFEST = "0" * 64
"""The id of an object that every repository has (borg's docs, "Data structures")."""

LONGEST_NAME = 1000
"""Characters, several times what a request's may have."""

_FIRST_PAUSE = 1.0

_NO_ANSWER = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What comes of reading as borg's what is something else."""


class SourceRepository(Archives):
    """The repository of ``task``, by what its source says of it.

    ``greeting`` is what is remembered of the source, if anything is.
    """

    def __init__(
        self,
        task: Task,
        places: Places,
        *,
        greeting: Greeting | None,
        passphrase: Callable[[], bytes | None],
        log: LogFile,
        stop: Stop,
    ) -> None:
        self.repository = task.repository
        self._task = task
        self._places = places
        self._greeting = greeting
        self._passphrase = passphrase
        self.log: LogFile = log
        self.stop: Stop = stop

    def prepare(self) -> None:
        """Raise NotAllowedError, ConfigurationError when the source would not list its archives."""
        self._granted("list")

    def archives(self, glob: str | None = None, *, opened: bool = False) -> list[Archive]:
        """Those that the source lists. Raises BorgPullError."""
        try:
            found = super().archives(glob or "*", opened=opened)
            if all(map(_is_sound, found)):
                return [one for one in found if fnmatchcase(one.name, glob or "*")]
        except _NO_ANSWER as error:
            raise self._senseless("list") from error
        raise self._senseless("list")

    def info(self, archive: str) -> dict[str, Any]:
        """What the source says of one archive. Raises BorgPullError."""
        try:
            return dict(super().info(archive))
        except _NO_ANSWER as error:
            raise self._senseless("info") from error

    def named(self, name: str, listed: Sequence[Archive]) -> Archive | None:
        """The one of that very name, of which there is more than the source's word."""
        found = super().named(name, listed)
        if found is not None and not is_stored(self._task, found.id):
            raise RepositoryError(
                f"source {self._task.source_name} lists the archive {name}, "
                f"which is not in {self.repository.path}"
            )
        return found

    def run(
        self, words: Sequence[str], *, on_line: Callable[[bytes], None] | None = None
    ) -> Answer:
        """Have the source run ``borg WORDS``, as far as its whitelist goes.

        A busy source is asked for as long as borg itself would wait for a lock.
        """
        verb, path = words[0], str(self.repository.path)
        operands = [path]
        if words[-1] != path:
            operands.append(words[-1].removeprefix(f"{path}::"))
        request = [verb, "--log-json", *words[1:-1], *operands]
        greeting = self._granted(verb)
        until, pause = time.monotonic() + LOCK_WAIT, _FIRST_PAUSE
        while True:
            answer, error = self._asked(greeting, request, on_line)
            if error is None:
                return answer
            if answer.code != BUSY or time.monotonic() >= until or self.stop.wait(pause):
                break
            pause *= 2
        if f"verb {verb} is not allowed" in error:
            raise self._not_allowed(verb, greeting)
        raise RepositoryError(f"source {self._task.source_name} could not {verb}: {error}")

    def _granted(self, verb: str) -> Greeting:
        """What the source says of itself, and that it allows ``verb``."""
        greeting = self._greeting
        if greeting is None or verb not in greeting.verbs:
            # What is remembered may be out of date.
            task = self._task
            known_hosts = self._places.known_hosts
            greeting = hello(task.source, task.source_name, known_hosts, self.stop, self.log)
            self._greeting = greeting
        if verb not in greeting.verbs:
            raise self._not_allowed(verb, greeting)
        return greeting

    def _not_allowed(self, verb: str, greeting: Greeting) -> NotAllowedError | ConfigurationError:
        task = self._task
        if greeting.protocol == source.ORIGINAL:
            return ConfigurationError(
                f"source {task.source_name} runs the original tool, which knows no {verb}",
                f"install borg-pull-source there, or give repository {task.repository_name} its "
                'passphrase here and key_on = "server"',
            )
        return NotAllowedError(
            f"source {task.source_name} does not allow {verb}, and it alone has the key of "
            f"repository {task.repository_name}",
            f'add "{verb}" to client.{greeting.client}.allow in the whitelist there',
        )

    def _senseless(self, verb: str) -> RepositoryError:
        name = self._task.source_name
        return RepositoryError(f"what source {name} answered to {verb} is no answer of borg's")

    def _asked(
        self,
        greeting: Greeting,
        words: Sequence[str],
        on_line: Callable[[bytes], None] | None,
    ) -> tuple[Answer, str | None]:
        """The answer to one request; with what went wrong, if it is none. Raises HostKeyError."""
        task = self._task
        lines: list[str] = []
        size = 0

        def hear(line: bytes) -> None:
            nonlocal size
            size += len(line)
            if size > ANSWER_LIMIT:
                return
            text = said.message(line)
            if text is None:
                return
            lines.append(text)
            if on_line is not None:
                on_line(text.encode())

        request = source.query(greeting, task.source, words)
        secret = sent_secret(task, greeting, self._passphrase)
        with Serving(
            self.repository, self._places.runtime_dir, self.log, append_only=True
        ) as serving:
            asked = Conversation(
                serving,
                self.stop,
                time.monotonic() + task.job.deadline.total_seconds(),
                self.log,
                on_line=hear,
                answer_limit=ANSWER_LIMIT,
                stall=stall_of(task, greeting),
            )
            asked.pull(ssh_command(task, self._places, request, serving), secret)
        if serving.config_fault is not None:
            raise FailedError(f"source {task.source_name}: {serving.config_fault}")
        code = ssh.CONNECTION_FAILED if asked.exit is None else asked.exit
        answer = Answer(code, asked.answer, "\n".join(lines))
        if asked.given_up is not None:
            return answer, asked.given_up
        if code in (0, 1):
            return answer, None
        refused = asked.host_key_fault(task.source_name)
        if refused is not None:
            raise refused
        result, complaints = asked.transcript.result, asked.transcript.complaints
        last = complaints[-1] if complaints else asked.ssh_said or f"exit {code}"
        return answer, (result and result.error) or last


def is_stored(task: Task, object_id: str) -> bool:
    """Whether the repository holds an object of that id; needs no key. Raises RepositoryError."""
    bare = LocalRepository(task.repository, lambda: None)

    def get(one: str) -> None:
        bare.run(["debug", "get-obj", str(task.repository.path), one, "/dev/null"])

    try:
        get(object_id)
    except RepositoryError:
        # Not there, or not to be read at all: borg's versions say the former in different ways.
        get(MANIFEST)
        return False
    return True


def _is_sound(archive: Archive) -> bool:
    """Whether it is made as borg makes them: what the source says ends up in arguments here."""
    is_id = re.fullmatch("[0-9a-f]{64}", archive.id) is not None
    return is_id and 0 < len(archive.name) <= LONGEST_NAME and archive.name.isprintable()
