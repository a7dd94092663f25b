"""Run by a borg's own interpreter: reads argv as JSON lines, answers what that borg makes of them.

A line is ``{"argv": [...]}`` for borg's argument parser, ``{"replace": TEXT, "at": EPOCH}`` for its
placeholders, ``{"exit_codes": true}`` or ``{"options": true}``. The answer to an argv is
``{"verb", "values"}`` with all that differs from the bare verb. In place of an answer there may be
an ``error``.
"""

import argparse
import contextlib
import datetime
import functools
import io
import json
import sys
from typing import Any

import borg.archiver  # type: ignore[import-not-found]
from borg.helpers import Location, parseformat  # type: ignore[import-not-found]

ARCHIVER = borg.archiver.Archiver()
PARSER = ARCHIVER.build_parser()
ARCHIVER.build_parser = lambda: PARSER


def parsed(argv: list[str]) -> dict[str, Any]:
    """The namespace borg would run with."""
    args = ARCHIVER.parse_args(argv)
    return {name: plain(value) for name, value in vars(args).items()}


def plain(value: Any) -> Any:
    """``value`` as JSON can carry it."""
    if isinstance(value, Location):
        names = ("proto", "user", "host", "port", "path", "archive")
        return {name: getattr(value, name) for name in names}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [plain(item) for item in value]
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if callable(value):
        return getattr(value, "__name__", "?")
    if hasattr(value, "pattern_orig"):
        return [type(value).PREFIX, value.pattern_orig]
    if hasattr(value, "compressor"):
        return compression(value)
    return str(value)


def compression(spec: Any) -> list[Any]:
    """A compression specification, inner ones included; makes the compressor, as borg will."""
    assert spec.compressor
    inner = getattr(spec, "inner", None)
    rest = compression(inner) if inner is not None else []
    return [spec.name, getattr(spec, "level", None), *rest]


def answer(question: dict[str, Any]) -> Any:
    """The answer to one line."""
    if "exit_codes" in question:
        return exit_codes()
    if "options" in question:
        return options()
    if "replace" in question:
        moment = question["at"]

        class Clock(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return datetime.datetime.fromtimestamp(moment, tz)

        parseformat.datetime = Clock
        return parseformat.replace_placeholders(question["replace"])
    argv = question["argv"]
    baseline = bare(*argv[: 2 if argv[0] == "key" else 1])
    found = parsed(argv)
    names = {name for name in found if found[name] != baseline.get(name)}
    always = {"location", "paths", "encryption"} & found.keys()
    return {"verb": found["func"], "values": {name: found[name] for name in names | always}}


def exit_codes() -> dict[str, list[int]]:
    """The codes of this borg's errors and warnings, none for one without codes of its own."""
    found: dict[str, list[int]] = {"errors": [], "warnings": []}
    waiting = [borg.helpers.Error, getattr(borg.helpers, "BorgWarning", borg.helpers.Error)]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        code = getattr(kind, "exit_mcode", None)
        if code is not None:
            warning = issubclass(kind, getattr(borg.helpers, "BorgWarning", ()))
            found["warnings" if warning else "errors"].append(code)
    return found


def options() -> dict[str, list[str]]:
    """Every spelling of every option of each verb."""
    (verbs,) = (a for a in PARSER._actions if isinstance(a, argparse._SubParsersAction))
    return {verb: sorted(one._option_string_actions) for verb, one in verbs.choices.items()}


@functools.cache
def bare(verb: str, *more: str) -> dict[str, Any]:
    """What borg makes of the verb without any option."""
    location = "ssh://h/r::a" if verb in ("create", "extract") else "ssh://h/r"
    options = ["--encryption=none"] if verb == "init" else []
    return parsed([verb, *more, *options, "--", location, *(["/"] if verb == "create" else [])])


def main() -> None:
    """Answer until there are no more questions."""
    for line in sys.stdin:
        errors = io.StringIO()
        try:
            with contextlib.redirect_stderr(errors):
                reply = {"answer": answer(json.loads(line))}
        except (SystemExit, Exception) as error:  # noqa: BLE001 - whatever it is, it is the answer
            reply = {"error": f"{type(error).__name__}: {error} {errors.getvalue()[-300:]}"}
        print(json.dumps(reply), flush=True)


main()
