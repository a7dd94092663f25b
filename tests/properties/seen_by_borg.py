"""What borg's own parser must make of our argv: what was judged, by what the request asks for.

The request is read by `restatement`, not by the code under test.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from . import restatement
from .borg_parsers import BorgParser

# The name of each option in borg's own namespace, where it is not the option's.
NAMES = {
    "repository-only": "repo_only", "keep-within": "within", "keep-last": "secondly",
    "keep-minutely": "minutely", "keep-hourly": "hourly", "keep-daily": "daily",
    "keep-weekly": "weekly", "keep-monthly": "monthly", "keep-yearly": "yearly",
    "list": "output_list",
}  # fmt: skip
NUMBERS = {"first", "last", "max-duration", *restatement.KEEP}
HOURS = {"H": 1, "d": 24, "w": 24 * 7, "m": 24 * 31, "y": 24 * 365}


class SeenDifferentlyError(AssertionError):
    """Borg sees another repository, archive, path or option than was judged."""


def check(
    parser: BorgParser,
    asked: restatement.Asked,
    client: str,
    table: Mapping[str, Any],
    archive: str | None,
    argv: tuple[str, ...],
) -> None:
    """That ``argv``, borg's without its program, is to borg what ``asked`` asks for and the rules
    in ``table`` add. Raises SeenDifferentlyError, and BorgParserError when borg refuses it."""
    found = parser.parsed(argv)
    values = found["values"]
    if asked.verb not in ("create", "restore"):
        # The parsers of the other verbs have no paths, or paths of another meaning.
        values.setdefault("paths", [])
    wanted = {
        "verb": "do_extract" if asked.verb == "restore" else f"do_{asked.verb.replace('-', '_')}",
        "values": expected_values(asked, client, table.get("excludes", ()), archive),
    }
    if found != wanted:
        raise SeenDifferentlyError(f"borg sees {found}, what was judged is {wanted}")


def expected_values(
    asked: restatement.Asked,
    client: str,
    excludes: list[str] | tuple[str, ...],
    archive: str | None,
) -> dict[str, object]:
    """All that borg's namespace should hold beyond the bare verb."""
    values = {
        NAMES.get(name, name.replace("-", "_")): value(name, text)
        for name, text in asked.options
        if name not in ("socket", "exclude")
    }
    if asked.verb == "create":
        patterns = [pattern(text) for text in (*map(str, asked.values("exclude")), *excludes)]
        if patterns:
            values["patterns"] = patterns
        if values.get("compression") == ["lz4", None]:
            del values["compression"]
    if asked.verb in ("list", "info"):
        values["json"] = True
    values["paths"] = asked.operands[2:]
    if asked.verb == "restore":
        values["paths"] = restatement.members(asked.operands[2:])
    values["location"] = {
        "proto": "ssh",
        "user": None,
        "host": client,
        "port": None,
        "path": str(PurePosixPath(asked.operands[0])),
        "archive": archive,
    }
    return values


def value(name: str, text: str | None) -> object:
    """The value borg's namespace should hold for an option as it was asked for."""
    if text is None:
        return True
    if name in NUMBERS:
        return int(text)
    if name == "keep-within":
        return int(text[:-1]) * HOURS[text[-1]]
    return compression(text) if name == "compression" else text


def compression(spec: str) -> list[Any]:
    """A specification as the parsers' loop tells it: name and level, then the inner one."""
    name, *rest = spec.split(",")
    if name == "obfuscate":
        return [name, int(rest[0]), *compression(",".join(rest[1:]))]
    if name == "auto":
        return [name, None, *compression(",".join(rest))]
    levels = {"zstd": 3, "zlib": 6, "lzma": 6}
    return [name, int(rest[0]) if rest else levels.get(name)]


def pattern(text: str) -> list[object]:
    """An exclude pattern as the parsers' loop tells it."""
    style, colon, rest = text.partition(":")
    known = colon and style in ("fm", "sh", "pp", "pf")
    return [[style, rest] if known else ["fm", text], "IECommand.ExcludeNoRecurse"]
