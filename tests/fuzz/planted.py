"""Bugs planted on purpose, each the loss of one rule: what a fuzzer is worth that misses them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from borg_pull import companion, values
from borg_pull.errors import RequestError
from borg_pull.pull import said
from borg_pull.source import judge, request
from tests.properties import restatement


@dataclass(frozen=True)
class Planted:
    """One bug."""

    what: str
    plant: Callable[[], None]
    found_as: str
    """What the fuzzer says, among other things, when it has found it: a regular expression."""
    target: str = "request"
    """In which it is to be found."""


def _relax(name: str, made: Callable[[Any], Any]) -> None:
    """Have a rule about values replaced by what ``made`` makes of it."""
    relaxed = made(getattr(values, name))
    for module in (values, request):
        if hasattr(module, name):
            setattr(module, name, relaxed)


def _leave_it_to_borg() -> None:
    """The rules written down twice would see it, too; borg alone must do."""
    restatement.check_syntax = lambda request: None


def _an_option_too_many() -> None:
    verb = request.VERBS["check"]
    repair = request.Option(name="repair", short=None, check=None, repeats=False)
    fields = {name: getattr(verb, name) for name in type(verb).__slots__}
    request.VERBS["check"] = request.Verb(**{**fields, "options": (*verb.options, repair)})
    request._TAKES_VALUE["--repair"] = False


def _abbreviations() -> None:
    class Nearly(dict[str, bool]):
        def get(self, spelling: str, default: Any = None) -> Any:
            fitting = [name for name in self if name.startswith(spelling)] if spelling[2:] else []
            return super().get(spelling, self[fitting[0]] if len(fitting) == 1 else default)

    request._TAKES_VALUE = Nearly(request._TAKES_VALUE)

    def option_of(verb: Any, spelling: str) -> Any:
        for option in verb.options:
            if f"--{option.name}".startswith(spelling) or spelling == f"-{option.short}":
                return option
        raise RequestError("no such option")

    request._option_of = option_of


def _a_colon_at_the_end() -> None:
    _leave_it_to_borg()
    _relax(
        "repository_fault",
        lambda rule: lambda text: rule(text.removesuffix(":")),
    )


def _an_archive_within_a_repository() -> None:
    _leave_it_to_borg()
    _relax("repository_fault", lambda rule: lambda text: rule(text.replace("::", "-")))


def _a_path_that_climbs() -> None:
    _relax("path_fault", lambda rule: lambda path: rule(path.replace("/..", "/x")))


def _a_path_of_two_slashes() -> None:
    _relax("path_fault", lambda rule: lambda path: rule(path.replace("//", "/")))


def _siblings_of_a_tree() -> None:
    def granting(path: str, rules: Any) -> str | None:
        return next((f"trees[0] {tree}" for tree in rules.trees if path.startswith(tree)), None)

    judge._granting_rule = granting


def _any_placeholder() -> None:
    _relax("PLACEHOLDERS", lambda known: (*known, "pid"))


def _any_character() -> None:
    _relax("is_control", lambda _rule: lambda character: character == "\0")


def _any_socket_directory() -> None:
    said._DIRECTORY = re.compile("/.*", re.DOTALL)


def _any_text_of_a_source() -> None:
    said.printable = lambda text: text  # type: ignore[attr-defined]


def _an_action_of_any_name() -> None:
    companion.action_name_fault = lambda name: None  # type: ignore[attr-defined]


def _any_text_of_a_session() -> None:
    companion.is_control = lambda character: False  # type: ignore[attr-defined]


BY_BORG = "SeenDifferentlyError|BorgParserError"
PLANTED = {
    planted.what: planted
    for planted in (
        Planted("an option of borg's that no rule names", _an_option_too_many, "--repair"),
        Planted("options may be shortened", _abbreviations, "Error"),
        Planted("a repository may end in a colon", _a_colon_at_the_end, BY_BORG),
        Planted("a repository may name an archive", _an_archive_within_a_repository, BY_BORG),
        Planted("a path may climb", _a_path_that_climbs, "Error"),
        Planted("a path may have two slashes", _a_path_of_two_slashes, "Error"),
        Planted("a tree has its siblings", _siblings_of_a_tree, "check_verdict"),
        Planted("archive names may have {pid}", _any_placeholder, "Error"),
        Planted("control characters pass", _any_character, "asked"),
        Planted("sockets may be anywhere", _any_socket_directory, "Error", "answers"),
        Planted("an action has any name", _an_action_of_any_name, "Error", "companion"),
        Planted("a session has any text", _any_text_of_a_session, "Error", "companion"),
        Planted("a source's words pass", _any_text_of_a_source, "Error", "answers"),
    )
}
