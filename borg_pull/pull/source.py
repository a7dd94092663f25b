"""What is said to a source: requests. `borg_pull.pull.said` has its answers.

``docs/protocol.md`` is the contract. A source that runs the original tool has no ``hello``; it
understands ``create`` with ``-C``, ``-p`` and ``-x``, one path, and a socket named ``CLIENT.sock``.
"""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

from borg_pull.errors import ConfigurationError
from borg_pull.pull.config import Job, Source
from borg_pull.pull.said import Greeting

ORIGINAL = 0
"""The protocol number that stands for the original tool."""

_NONCE_BYTES = 16


def original_greeting(name: str, source: Source, said: str | None = None) -> Greeting:
    """What must be known of a source that runs the original tool. Raises ConfigurationError.

    ``said`` is what it answered to ``hello``, if it was asked.
    """
    if source.client is None or source.socket_dir is None:
        answer = "" if said is None else f" (it said: {said})"
        raise ConfigurationError(
            f"source {name} does not know hello{answer}",
            "is borg-pull-source its forced command? If it runs the original tool, give client and "
            f"socket_dir in [source.{name}], as its configuration has them",
        )
    return Greeting(
        protocol=ORIGINAL,
        client=source.client,
        socket_directory=str(source.socket_dir),
        verbs=("create",),
        passphrase_stdin=False,
        version=None,
        borg=None,
    )


@dataclass(frozen=True)
class Request:
    """One request and the name its socket has at the source."""

    line: str
    socket: str


def create(greeting: Greeting, source: Source, job: Job, repository: Path, archive: str) -> Request:
    """The request that backs ``job``'s paths up into ``repository`` as ``archive``.

    Raises ConfigurationError for what the original tool cannot do.
    """
    nonce = secrets.token_hex(_NONCE_BYTES)
    directory = str(source.socket_dir or greeting.socket_directory).rstrip("/")
    options: list[str] = []
    if job.compression is not None:
        options += ["--compression", job.compression]
    if job.one_file_system:
        options.append("--one-file-system")
    operands = [str(repository), archive, *job.paths]
    if greeting.protocol == ORIGINAL:
        if len(job.paths) != 1 or job.exclude:
            raise ConfigurationError(
                "the original tool backs up one path and knows no exclude",
                "make it one job a path, or install borg-pull-source there",
            )
        if "{hostname}" in archive:
            raise ConfigurationError(
                "the original tool does not tell what it named an archive with {hostname}",
                "leave it out of job's archive, or install borg-pull-source there",
            )
        words = [{"--compression": "-C", "--one-file-system": "-x"}.get(w, w) for w in options]
        line = shlex.join([*words, "create", *operands])
        return Request(line=line, socket=f"{directory}/{greeting.client}.sock")
    for pattern in job.exclude:
        options += ["--exclude", pattern]
    options += ["--socket", nonce, "--log-json", "--progress", "--json"]
    return Request(
        line=shlex.join(["create", *options, *operands]),
        socket=f"{directory}/{greeting.client}.{nonce}.sock",
    )


def with_advice(error: str | None, greeting: Greeting) -> str | None:
    """What went wrong, and what to do where the original tool stands in its own way."""
    if greeting.protocol == ORIGINAL and error and "remote port forwarding failed" in error:
        return (
            f"{error}; the original tool leaves its socket behind: remove it at the source, or set "
            "StreamLocalBindUnlink yes in its sshd_config"
        )
    return error


def query(greeting: Greeting, source: Source, words: Sequence[str]) -> Request:
    """A request of another verb, ``words[0]``, with a socket of its own."""
    nonce = secrets.token_hex(_NONCE_BYTES)
    directory = str(source.socket_dir or greeting.socket_directory).rstrip("/")
    return Request(
        line=shlex.join([words[0], "--socket", nonce, *words[1:]]),
        socket=f"{directory}/{greeting.client}.{nonce}.sock",
    )


def archive_name(template: str, job: str, source: str, now: datetime) -> str:
    """``template`` with everything put in that does not depend on the source.

    ``{job}``, ``{source}``, ``{now}`` and ``{utcnow}`` with an optional strftime format. Borg's own
    ``{hostname}`` stays for the source. Raises ValueError for any other brace.
    """
    parts: list[str] = []
    rest = template
    while rest:
        literal, brace, rest = rest.partition("{")
        parts.append(literal)
        if not brace:
            break
        name, closing, rest = rest.partition("}")
        if not closing:
            raise ValueError("has an unclosed brace")
        parts.append(_filled(name, job, source, now))
    return "".join(parts)


def is_named(made: str, asked: str) -> bool:
    """Whether an archive of the name ``made`` can be what was ``asked`` for."""
    literals = asked.split("{hostname}")
    return "/" not in made and fnmatchcase(made, "*".join(map(escaped, literals)))


def escaped(text: str) -> str:
    """``text`` as a glob that matches nothing else."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)


def _filled(placeholder: str, job: str, source: str, now: datetime) -> str:
    name, colon, form = placeholder.partition(":")
    moments = {"now": now.astimezone(), "utcnow": now.astimezone(UTC)}
    if name in moments:
        return moments[name].strftime(form if colon else "%Y-%m-%dT%H:%M:%S")
    plain = {"job": job, "source": source, "hostname": "{hostname}"}
    if colon or name not in plain:
        raise ValueError(f"has the unknown placeholder {{{placeholder}}}")
    return plain[name]
