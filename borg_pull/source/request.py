"""From the bytes of SSH_ORIGINAL_COMMAND to a request: syntax only, no judgement.

The command is data. It is split with POSIX quoting rules and without any expansion; every option
comes from the table below, and what the table does not name is refused.
"""

from __future__ import annotations

from borg_pull.credentials import has_url_credentials
from borg_pull.errors import RequestError
from borg_pull.record import Record
from borg_pull.values import (
    MAX_PATHS,
    NOT_ABSOLUTE,
    action_name_fault,
    archive_fault,
    archive_glob_fault,
    compression_fault,
    count_fault,
    exclude_fault,
    interval_fault,
    is_control,
    job_fault,
    nonce_fault,
    path_fault,
    quoted,
    repository_fault,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_REQUEST = 64 * 1024  # bytes
MAX_COMMENT = 1024  # characters
MAX_OPTIONS = 200  # borg tries each --exclude on every file


class Option(Record):
    """One option of one verb."""

    name: str
    """Long spelling without dashes; the name the whitelist's ``flags`` use."""
    short: str | None
    """One letter, or None."""
    check: Callable[[str], str | None] | None
    """None for a switch; else returns what is wrong with a value, or None."""
    repeats: bool
    """Whether it may be given more than once."""


class Verb(Record):
    """One verb: what it takes."""

    name: str
    options: tuple[Option, ...]
    operands: str
    """Usage text of the operands, for messages and the docs."""
    least: int
    most: int | None
    names: Callable[[str], str | None] | None
    """None where the operands are repository, archive and paths; else what is wrong with a name."""


class Request(Record):
    """What a peer asks, well formed and not yet judged."""

    verb: str
    repository: str | None
    """Absolute path on the client."""
    archive: str | None
    """Archive name, possibly with placeholders."""
    paths: tuple[str, ...]
    """Absolute paths of the source; of `restore`, those in the archive, given the same way."""
    options: tuple[tuple[str, str | None], ...]
    """(long name, value) in the order given; the value of a switch is None."""
    name: str | None
    """Of an action or a target, or the ID of a job."""

    def value(self, name: str) -> str | None:
        """The value of a single-valued option, None when it was not given."""
        for given, value in self.options:
            if given == name:
                return value
        return None

    def has(self, name: str) -> bool:
        """Whether the option was given."""
        return any(given == name for given, _ in self.options)


def parse(command: bytes | None) -> Request:
    """The request in ``command``. Raises RequestError naming what is wrong."""
    if command is None:
        raise RequestError("no request was sent", "this account runs backups and offers no shell")
    words = split(decode(command))
    if words[:1] == ["--"]:
        del words[0]
    verb, given, operands = _sort_words(words)
    return _build(verb, _resolve_options(verb, given), operands)


def decode(command: bytes) -> str:
    """``command`` as text, surrogates for bytes that are not UTF-8.

    Raises RequestError for an oversized command and for control characters: a newline is what
    let other forced commands be split in two, an escape is meant for the reader of the log.
    """
    if len(command) > MAX_REQUEST:
        raise RequestError(f"the request has {len(command)} bytes", f"the limit is {MAX_REQUEST}")
    text = command.decode("utf-8", "surrogateescape")
    for position, character in enumerate(text):
        if is_control(character):
            raise RequestError(
                f"control character {ascii(character)[1:-1]} at position {position}",
                "requests are one line of printable text",
            )
    return text


def split(text: str) -> list[str]:
    """Words of ``text`` by the quoting rules of POSIX.1-2017, XCU 2.2, without expansion.

    Raises RequestError for an unclosed quote or a trailing backslash.
    """
    words: list[str] = []
    word: list[str] | None = None
    quote = ""
    escaped = False
    for character in text:
        if escaped:
            escaped = False
            if quote and character not in '$`"\\':
                word = _extended(word, "\\")
            word = _extended(word, character)
        elif character == "\\" and quote != "'":
            escaped = True
        elif quote:
            if character == quote:
                quote = ""
            else:
                word = _extended(word, character)
        elif character in "'\"":
            quote = character
            word = _extended(word, "")
        elif character == " ":
            if word is not None:
                words.append("".join(word))
                word = None
        else:
            word = _extended(word, character)
    if quote:
        raise RequestError(f"a {quote} is not closed")
    if escaped:
        raise RequestError("the request ends in a backslash")
    if word is not None:
        words.append("".join(word))
    return words


def _extended(word: list[str] | None, text: str) -> list[str]:
    if word is None:
        return [text]
    word.append(text)
    return word


def _sort_words(
    words: list[str],
) -> tuple[Verb, list[tuple[str, str | None]], list[str]]:
    """Verb, options as spelt with their values, operands."""
    verb: Verb | None = None
    given: list[tuple[str, str | None]] = []
    operands: list[str] = []
    remaining = iter(words)
    options_ended = False
    for word in remaining:
        if word == "--" and verb is not None and not options_ended:
            options_ended = True
        elif word.startswith("-") and not options_ended:
            given.append(_option_with_value(word, remaining))
        elif verb is None:
            verb = _verb(word, remaining)
        else:
            operands.append(word)
    if verb is None:
        raise RequestError("the request names no verb", "hello tells yours")
    return verb, given, operands


def _verb(word: str, remaining: Iterator[str]) -> Verb:
    """The verb that begins with ``word``; some have two."""
    if word in _FIRST_WORDS:
        second = next(remaining, None)
        joined = None if second is None else f"{word}-{second}"
        if joined not in VERBS:
            known = " ".join(
                name.partition("-")[2] for name in VERBS if name.startswith(f"{word}-")
            )
            said = word if second is None else f"{word} {second}"
            raise RequestError(f"unknown verb {quoted(said)}", f"{word} is followed by: {known}")
        word = joined
    verb = VERBS.get(word)
    if verb is None:
        raise RequestError(f"unknown verb {quoted(word)}", "hello tells yours")
    return verb


def spelling(verb: str) -> str:
    """How ``verb`` is asked for."""
    first, _, rest = verb.partition("-")
    return f"{first} {rest}" if first in _FIRST_WORDS else verb


def _option_with_value(word: str, remaining: Iterator[str]) -> tuple[str, str | None]:
    spelling, joined, value = word.partition("=") if word.startswith("--") else (word, "", "")
    takes_value = _TAKES_VALUE.get(spelling)
    if takes_value is None:
        raise RequestError(f"unknown option {quoted(spelling)}", "options are written in full")
    if not takes_value:
        if joined:
            raise RequestError(f"option {spelling} takes no value")
        return spelling, None
    if not joined:
        value = next(remaining, "")
    if not value or value.startswith("-"):
        raise RequestError(f"option {spelling} needs a value")
    return spelling, value


def _resolve_options(
    verb: Verb, given: list[tuple[str, str | None]]
) -> tuple[tuple[str, str | None], ...]:
    if len(given) > MAX_OPTIONS:
        raise RequestError(f"{len(given)} options are given", f"the limit is {MAX_OPTIONS}")
    resolved: list[tuple[str, str | None]] = []
    for spelling, value in given:
        option = _option_of(verb, spelling)
        if not option.repeats and any(name == option.name for name, _ in resolved):
            raise RequestError(f"option --{option.name} is given twice")
        if option.check is not None and value is not None:
            fault = option.check(value) or _credentials_fault(value)
            if fault is not None:
                raise RequestError(f"option --{option.name}: {quoted(value)} {fault}")
        resolved.append((option.name, value))
    return tuple(resolved)


def _option_of(verb: Verb, spelling: str) -> Option:
    for option in verb.options:
        if spelling == f"--{option.name}" or (option.short and spelling == f"-{option.short}"):
            return option
    raise RequestError(f"{verb.name} has no option {spelling}")


def _build(verb: Verb, options: tuple[tuple[str, str | None], ...], operands: list[str]) -> Request:
    count = len(operands)
    if count < verb.least or (verb.most is not None and count > verb.most):
        spelt = spelling(verb.name)
        usage = f"{spelt} {verb.operands}".rstrip()
        raise RequestError(f"{spelt} was given {count} operands", f"usage: {usage}")
    if verb.names is not None:
        for name in operands:
            _require("name", name, verb.names(name))
        return Request(
            verb=verb.name,
            repository=None,
            archive=None,
            paths=(),
            options=options,
            name=operands[0] if operands else None,
        )
    repository = operands[0] if operands else None
    archive = operands[1] if len(operands) > 1 else None
    paths = tuple(operands[2:])
    if repository is not None:
        _require("repository", repository, repository_fault(repository), alone=True)
    if archive is not None:
        _require("archive name", archive, archive_fault(archive))
    for path in paths:
        _require("path", path, path_fault(path), alone=len(paths) == 1)
    if len(paths) > MAX_PATHS:
        raise RequestError(f"{len(paths)} paths are given", f"the limit is {MAX_PATHS}")
    if len(set(paths)) != len(paths):
        raise RequestError("a path is given twice")
    return Request(
        verb=verb.name,
        repository=repository,
        archive=archive,
        paths=paths,
        options=options,
        name=None,
    )


def _require(what: str, value: str, fault: str | None, *, alone: bool = False) -> None:
    """Raises RequestError for a fault. ``alone``: it cannot be a part of what was one word."""
    if fault is not None:
        hint = None
        if fault == NOT_ABSOLUTE:
            hint = "give an absolute path"
            if not alone and value[:1] not in ("~", "."):
                hint += ", and quote a name with a space in it twice: ssh joins words with spaces"
        raise RequestError(f"{what} {quoted(value)} {fault}", hint)


ENCRYPTION_MODES = (
    "none",
    "authenticated",
    "authenticated-blake2",
    "repokey",
    "keyfile",
    "repokey-blake2",
    "keyfile-blake2",
)


def _encryption_fault(mode: str) -> str | None:
    return None if mode in ENCRYPTION_MODES else f"is not one of {', '.join(ENCRYPTION_MODES)}"


def _credentials_fault(value: str) -> str | None:
    if has_url_credentials(value):
        return "has a URL with credentials, which all of this host could read in borg's arguments"
    return None


def _comment_fault(comment: str) -> str | None:
    if len(comment) > MAX_COMMENT:
        return f"is longer than {MAX_COMMENT} characters"
    if not comment.isprintable():
        return "has characters that are not printable text"
    if "{" in comment or "}" in comment:
        return "has a brace, which borg would expand"
    return None


def _switch(name: str, short: str | None = None) -> Option:
    return Option(name=name, short=short, check=None, repeats=False)


def _valued(
    name: str,
    check: Callable[[str], str | None],
    short: str | None = None,
    repeats: bool = False,
) -> Option:
    return Option(name=name, short=short, check=check, repeats=repeats)


_SOCKET = _valued("socket", nonce_fault)
_PROGRESS = _switch("progress", "p")
_LOG_JSON = _switch("log-json")
_GLOB = _valued("glob-archives", archive_glob_fault, "a")

_DETACH = _switch("detach")


def _asking(
    name: str,
    operand: str = "",
    fault: Callable[[str], str | None] = action_name_fault,
    *options: Option,
) -> Verb:
    """A verb that borg has no part in."""
    count = 1 if operand else 0
    return Verb(name=name, operands=operand, least=count, most=count, options=options, names=fault)


_FIRST_WORDS = ("target", "lockdown")

VERBS: dict[str, Verb] = {
    verb.name: verb
    for verb in (
        Verb(
            name="create",
            operands="REPO_PATH ARCHIVE_NAME SOURCE_PATH...",
            least=3,
            most=None,
            options=(
                _valued("compression", compression_fault, "C"),
                _PROGRESS,
                _switch("one-file-system", "x"),
                _valued("comment", _comment_fault),
                _valued("exclude", exclude_fault, "e", repeats=True),
                _switch("json"),
                _LOG_JSON,
                _switch("stats", "s"),
                _switch("dry-run", "n"),
                _SOCKET,
            ),
            names=None,
        ),
        Verb(
            name="init",
            operands="REPO_PATH",
            least=1,
            most=1,
            options=(_valued("encryption", _encryption_fault, "e"), _LOG_JSON, _SOCKET),
            names=None,
        ),
        Verb(
            name="list",
            operands="REPO_PATH",
            least=1,
            most=1,
            options=(
                _GLOB,
                _valued("first", count_fault),
                _valued("last", count_fault),
                _switch("json"),
                _LOG_JSON,
                _SOCKET,
            ),
            names=None,
        ),
        Verb(
            name="info",
            operands="REPO_PATH [ARCHIVE_NAME]",
            least=1,
            most=2,
            options=(_switch("json"), _LOG_JSON, _SOCKET),
            names=None,
        ),
        Verb(
            name="check",
            operands="REPO_PATH",
            least=1,
            most=1,
            options=(
                _switch("repository-only"),
                _switch("archives-only"),
                _switch("verify-data"),
                _valued("max-duration", count_fault),
                _PROGRESS,
                _LOG_JSON,
                _SOCKET,
            ),
            names=None,
        ),
        Verb(
            name="prune",
            operands="REPO_PATH",
            least=1,
            most=1,
            options=(
                _GLOB,
                _valued("keep-within", interval_fault),
                _valued("keep-last", count_fault),
                _valued("keep-minutely", count_fault),
                _valued("keep-hourly", count_fault, "H"),
                _valued("keep-daily", count_fault, "d"),
                _valued("keep-weekly", count_fault, "w"),
                _valued("keep-monthly", count_fault, "m"),
                _valued("keep-yearly", count_fault, "y"),
                _switch("dry-run", "n"),
                _switch("list"),
                _switch("stats", "s"),
                _PROGRESS,
                _LOG_JSON,
                _SOCKET,
            ),
            names=None,
        ),
        Verb(
            name="restore",
            operands="REPO_PATH ARCHIVE_NAME PATH...",
            least=3,
            most=None,
            options=(
                _switch("dry-run", "n"),
                _switch("list"),
                _PROGRESS,
                _LOG_JSON,
                _SOCKET,
            ),
            names=None,
        ),
        Verb(
            name="break-lock",
            operands="REPO_PATH",
            least=1,
            most=1,
            options=(_LOG_JSON, _SOCKET),
            names=None,
        ),
        Verb(
            name="change-passphrase",
            operands="REPO_PATH",
            least=1,
            most=1,
            options=(_LOG_JSON, _SOCKET),
            names=None,
        ),
        Verb(name="hello", operands="", least=0, most=0, options=(), names=None),
        _asking("actions"),
        _asking("run", "ACTION", action_name_fault, _DETACH),
        _asking("jobs"),
        _asking("job", "ID", job_fault, _switch("follow"), _valued("from", count_fault)),
        _asking("cancel", "ID", job_fault),
        _asking("aio", "TARGET", action_name_fault, _switch("check"), _DETACH),
        _asking("aio-status"),
        _asking("health"),
        _asking("metrics"),
        _asking("target-show"),
        _asking("target-set", "NAME", action_name_fault),
        _asking("lockdown-on"),
        _asking("lockdown-off"),
        _asking("lockdown-status"),
    )
}


def _value_taking() -> dict[str, bool]:
    """Whether each spelling takes a value; one spelling must mean the same for every verb,
    since flags may stand before the verb."""
    spellings: dict[str, bool] = {}
    for verb in VERBS.values():
        for option in verb.options:
            takes_value = option.check is not None
            for spelling in (
                f"--{option.name}",
                f"-{option.short}" if option.short else None,
            ):
                if spelling is None:
                    continue
                if spellings.setdefault(spelling, takes_value) is not takes_value:
                    raise AssertionError(spelling)
    return spellings


_TAKES_VALUE = _value_taking()
