"""What a source says, as checked values: nothing else of it gets any further.

A source may be hostile. What it says ends in the ledger, in mail and on terminals, in arguments, in
the environment of hooks, and in the decision what a run came to. So all of it is made into the
types of this module first, which hold only what each of these can take.

``docs/protocol.md`` is the contract. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import NewType

from borg_pull.errors import printable
from borg_pull.values import client_name_fault

PROTOCOL = 1

Sentence = NewType("Sentence", str)
"""One line of at most `LONGEST_SENTENCE` printable characters."""

LONGEST_SENTENCE = 500
"""Characters. A message to many jobs' people must not be too long because of one."""
LONGEST_DIRECTORY = 107
"""Bytes: the longest path of a socket (unix(7))."""
MOST_VERBS = 100
MOST_COMPLAINTS = 100

# ssh expands % and ${...} in what it is told to forward, and splits it at colons.
_DIRECTORY = re.compile(r"(/[A-Za-z0-9_.-]+)+/?")
_VERB = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_VERSION = re.compile(r"[A-Za-z0-9.+~_-]{0,64}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def sentence(text: str) -> Sentence:
    """``text`` as one."""
    shown = printable(text[: LONGEST_SENTENCE + 1])
    if len(shown) > LONGEST_SENTENCE:
        shown = f"{shown[: LONGEST_SENTENCE - 3]}..."
    return Sentence(shown)


def count(value: object) -> int | None:
    """A number of bytes or files that the ledger can hold."""
    return value if type(value) is int and 0 <= value < 2**63 else None


def json_object(text: bytes) -> dict[str, object] | None:
    """The JSON object that ``text`` is, None if it is anything else, however deep or long."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


# hello


@dataclass(frozen=True)
class Greeting:
    """What a source says of itself; also what is remembered between runs."""

    protocol: int
    client: str
    """Fit as a part of a socket's name."""
    socket_directory: str
    """Absolute, of letters, digits and ``/_.-`` alone when it is the source's word."""
    verbs: tuple[str, ...]
    passphrase_stdin: bool
    version: str | None
    borg: str | None

    def to_json(self) -> str:
        """For the memory between runs."""
        return json.dumps(asdict(self))


def greeting(answer: bytes) -> Greeting:
    """The ``hello`` in ``answer``. Raises ValueError for what is none, or is unfit."""
    said = json_object(answer)
    if said is None or said.get("type") != "hello":
        raise ValueError("the answer is no hello")
    protocol = said.get("protocol")
    if type(protocol) is not int:
        raise ValueError("its hello does not say which protocol it speaks")
    if protocol != PROTOCOL:
        raise ValueError(f"it speaks protocol {protocol % 10**9}, this program {PROTOCOL}")
    return Greeting(
        protocol=PROTOCOL,
        client=_client(said),
        socket_directory=_directory(said),
        verbs=_verbs(said),
        passphrase_stdin=_flag(said, "passphrase_stdin"),
        version=_matching(said, "version", _VERSION),
        borg=_matching(said, "borg", _VERSION),
    )


def remembered(text: str | None) -> Greeting | None:
    """The greeting of `Greeting.to_json`, None when there is none that can be used."""
    if text is None:
        return None
    try:
        fields = json.loads(text)
        return Greeting(**{**fields, "verbs": tuple(fields["verbs"])})
    except (ValueError, TypeError, KeyError):
        return None


def clock(answer: bytes) -> float | None:
    """When the source says that it answered ``hello``, in seconds since 1970."""
    said = json_object(answer) or {}
    told = said.get("time")
    try:
        moment = datetime.fromisoformat(told) if isinstance(told, str) else None
        # Without a zone it would be taken for this host's.
        return None if moment is None or moment.tzinfo is None else moment.timestamp()
    except (ValueError, OverflowError):
        return None


def _unfit(name: str) -> ValueError:
    return ValueError(f"its hello has no {name} of the kind that protocol {PROTOCOL} has")


def _matching(said: Mapping[str, object], name: str, pattern: re.Pattern[str]) -> str:
    value = said.get(name)
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise _unfit(name)
    return value


def _client(said: Mapping[str, object]) -> str:
    value = said.get("client")
    if not isinstance(value, str) or client_name_fault(value) is not None:
        raise _unfit("client")
    return value


def _directory(said: Mapping[str, object]) -> str:
    name = "socket_directory"
    value = _matching(said, name, _DIRECTORY)
    if len(value) > LONGEST_DIRECTORY or {".", ".."} & set(value.split("/")):
        raise _unfit(name)
    return value


def _verbs(said: Mapping[str, object]) -> tuple[str, ...]:
    value = said.get("verbs")
    if not isinstance(value, list) or len(value) > MOST_VERBS:
        raise _unfit("verbs")
    verbs = [verb for verb in value if isinstance(verb, str) and _VERB.fullmatch(verb)]
    if len(verbs) < len(value):
        raise _unfit("verbs")
    return tuple(verbs)


def _flag(said: Mapping[str, object], name: str) -> bool:
    value = said.get(name)
    if not isinstance(value, bool):
        raise _unfit(name)
    return value


# What comes while a request is served


@dataclass(frozen=True)
class Progress:
    """How far borg has come, by its own word."""

    files: int
    read_bytes: int
    new_bytes: int


@dataclass(frozen=True)
class Result:
    """The result line."""

    session: str | None
    """UUID."""
    borg_code: int | None
    """0 to 255."""
    error: Sentence | None
    directory: str | None
    """Where a restore has put the files: printable, for people."""


@dataclass
class Transcript:
    """What a source said during a run, line by line."""

    progress: Progress | None = None
    result: Result | None = None
    complaints: list[Sentence] = field(default_factory=list)
    """Lines for people that tell of something amiss: how they began, and how they ended."""
    is_finishing: bool = False
    """Whether borg has read all it will read."""

    def take(self, line: bytes) -> Progress | None:
        """Note one line of standard error; the progress if it tells of some."""
        said = json_object(line) if line.startswith(b"{") else None
        if said is None:
            text = line.decode("utf-8", "replace").strip()
            if text:
                self._complain(text)
            return None
        kind = said.get("type")
        if kind == "archive_progress" and said.get("finished"):
            self.is_finishing = True
        elif kind == "archive_progress":
            self.progress = Progress(
                files=count(said.get("nfiles")) or 0,
                read_bytes=count(said.get("original_size")) or 0,
                new_bytes=count(said.get("deduplicated_size")) or 0,
            )
            return self.progress
        elif kind == "borg_pull_result":
            self.result = _result(said)
        elif kind == "log_message" and said.get("levelname") in _AMISS:
            message = said.get("message")
            self._complain(message if isinstance(message, str) else "")
        return None

    def _complain(self, text: str) -> None:
        # A hostile source may talk for hours.
        if len(self.complaints) >= MOST_COMPLAINTS:
            del self.complaints[MOST_COMPLAINTS // 2]
        self.complaints.append(sentence(text))


_AMISS = ["WARNING", "ERROR", "CRITICAL"]
"""A list: what is looked for in it may be of any type."""


def _result(said: Mapping[str, object]) -> Result:
    session, code, error = said.get("session"), count(said.get("borg_code")), said.get("error")
    directory = said.get("directory")
    is_session = isinstance(session, str) and _UUID.fullmatch(session) is not None
    return Result(
        session=str(session) if is_session else None,
        borg_code=code if code is not None and code <= 255 else None,
        error=sentence(error) if isinstance(error, str) else None,
        directory=printable(directory[:4096]) if isinstance(directory, str) else None,
    )


def message(line: bytes) -> str | None:
    """What a line says to people, printable: of those of ``--log-json`` borg's messages do."""
    said = json_object(line) if line.startswith(b"{") else None
    if said is None:
        return printable(line.decode("utf-8", "replace"))
    text = said.get("message")
    is_message = said.get("type") == "log_message" and isinstance(text, str)
    return printable(str(text)) if is_message else None


@dataclass(frozen=True)
class Made:
    """The archive that ``create --json`` says it has made."""

    name: Sentence | None
    id: Sentence | None
    statistics: dict[str, int] | None
    """Numbers that the ledger can hold, by borg's names."""


def made(answer: bytes) -> Made:
    """What ``answer`` says of the new archive; of all of it nothing is known yet to be true."""
    archive = (json_object(answer) or {}).get("archive")
    if not isinstance(archive, dict):
        return Made(None, None, None)
    stats = archive.get("stats")
    return Made(
        name=_claimed(archive.get("name")),
        id=_claimed(archive.get("id")),
        statistics=statistics(stats) if isinstance(stats, dict) and stats else None,
    )


def statistics(stats: object) -> dict[str, int]:
    """Those of borg's ``stats`` that are numbers."""
    pairs = stats.items() if isinstance(stats, dict) else ()
    return {name: known for name, value in pairs if (known := count(value)) is not None}


def _claimed(value: object) -> Sentence | None:
    """None for what is not said; for what is no text, text that is nothing's name or id."""
    if value is None:
        return None
    return sentence(value) if isinstance(value, str) else Sentence("")
