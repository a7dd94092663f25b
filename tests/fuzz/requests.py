"""The request a peer sends: parse, judge, command, and what both borgs' parsers make of that."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from random import Random
from typing import Any

from borg_pull.errors import RequestError
from borg_pull.source import borg
from borg_pull.source.judge import Refused, judge
from borg_pull.source.request import ENCRYPTION_MODES, Request, parse
from borg_pull.source.whitelist import ClientRules
from tests.attacks.request_lines import LINES
from tests.properties import checks, restatement, seen_by_borg, words
from tests.properties.borg_parsers import VERSIONS, BorgParser

from .target import Target

CLIENT = "luna"
TABLES: tuple[dict[str, Any], ...] = (
    {
        "trees": ["/"],
        "allow": ["create", "init", "list", "info", "check", "prune", "restore"],
        "restore_to": "/srv/restored",
        "encryption": list(ENCRYPTION_MODES),
        "flags": sorted(restatement.DEFAULT_FLAGS | {"exclude"}),
        "excludes": ["*.forced", "pf:/forced/too"],
        "role": "admin",
        "passphrase_stdin": True,
    },
    {
        "paths": ["/var/www", "/home/a b", "/home/", "/"],
        "trees": ["/srv/data"],
        "repositories": ["/srv/repo"],
        "allow": ["create", "list", "prune", "restore"],
    },
    {
        "paths": ["/home"],
        "trees": ["/home/a", "/etc"],
        "allow": ["create", "init"],
        "encryption": ["repokey"],
        "flags": ["compression", "json", "exclude"],
        "required_flags": ["compression"],
        "compressions": ["zstd", "auto,lzma,6"],
    },
)


@functools.cache
def _rules() -> tuple[tuple[dict[str, Any], ClientRules], ...]:
    return tuple((table, checks.rules_of(CLIENT, table)) for table in TABLES)


@functools.cache
def _parsers() -> tuple[BorgParser, ...]:
    return tuple(BorgParser(version, "UTC") for version in VERSIONS)


def check(command: bytes) -> str:
    """Every whitelist's verdict; what is allowed, borg must see as it was judged."""
    request = _parsed(command)
    if request is None or request.verb == "hello" or request.verb in restatement.NAMES:
        checks.parsed(command)
        return "unparsed" if request is None else "asked"
    # Borg first: what it sees is what counts, whatever the rules written down twice say.
    allowed = [_check_what_borg_sees(command, request, *rules) for rules in _rules()]
    checks.parsed(command)
    for table, rules in _rules():
        checks.verdict(command, request, CLIENT, table, rules)
    return "allowed" if any(allowed) else "refused"


def _parsed(command: bytes) -> Request | None:
    try:
        return parse(command)
    except RequestError:
        return None


def _check_what_borg_sees(
    command: bytes, request: Request, table: dict[str, Any], rules: ClientRules
) -> bool:
    """Whether the request is allowed by these rules."""
    judged = judge(request, CLIENT, rules, checks.EVERY_FEATURE, checks.context())
    if isinstance(judged, Refused):
        return False
    asked = restatement.asked(command)
    argv = borg.command(judged, CLIENT, rules, checks.RUNTIME, "/usr/bin/wrap").argv[1:]
    for parser in _parsers():
        seen_by_borg.check(parser, asked, CLIENT, table, judged.archive, argv)
    return True


def seeds() -> Iterable[bytes]:
    """The corpus of attacks."""
    return [line.command for line in LINES]


def honest() -> Iterable[bytes]:
    """Its controls."""
    return [line.command for line in LINES if line.expected == "ok"]


PATHS = tuple(path for path in words.PATHS if len(path) < 100)
WORDS = (
    *words.HOSTILE, *PATHS, *words.REPOSITORIES, *words.ARCHIVES,
    *words.SWITCHES, *words.OPERANDS_OF,
)  # fmt: skip
PIECES = (
    "/", "..", ".", "-", "--", "=", "'", '"', "\\", " ", ":", "::", "{", "}", "{now}", "{pid}", "%",
    "*", "?", "[", ",", ";", "$", "`", "~", "@", "#", "\n", "\0", "\x1b", "\x7f", "\x85", "\u2028",
    "\u202e", "\u200b", "é", "e\u0301", "²", "７", "\udcff", "0", "1", "9", "a", "R ", "+ ", "fm:",
    "re:", ".checkpoint", "%Y", "zstd", "auto,",
)  # fmt: skip
QUOTINGS = (*words.QUOTINGS[:3], *words.QUOTINGS)


def mutate(data: bytes, random: Random) -> bytes:
    """``data`` with a word or two of it changed, or a request made anew."""
    kind = random.random()
    if kind < 0.2:
        request = _with_an_option_of_borg(random)
        changes = 0
    elif kind < 0.6:
        request = _made_anew(random.choice(VERBS), random, sound=random.random() < 0.7)
        changes = random.choice((0, 1, 1))
    else:
        request = restatement.words(data.decode("utf-8", "surrogateescape"))
        changes = random.choice((1, 1, 1, 2))
    for _ in range(changes):
        (_add_what_fits if random.random() < 0.4 else _change)(request, random)
    quoting = random.choice(QUOTINGS)
    text = " ".join(quoting(word) for word in request)
    return text.encode("utf-8", "surrogateescape")


def _made_anew(verb: str, random: Random, *, sound: bool = False) -> list[str]:
    """A request that is sound, or sound but for one operand or value."""
    required = {"init": ("-e",), "prune": ("-a", "--keep-daily")}.get(verb, ())
    optional = [name for name in words.OPTIONS_OF[verb] if random.random() < 0.2]
    options = list(dict.fromkeys((*required, *optional)))
    operands = words.OPERANDS_OF[verb]
    odd = "" if sound else random.choice(("", *operands, *options))
    request = [verb]
    for name in options:
        request += _option(verb, name, random, good=name != odd)
    request += [name for name in words.SWITCHES_OF[verb] if random.random() < 0.2]
    for kind in operands:
        every, good = OPERANDS[kind]
        request.append(random.choice(every if kind == odd else every[:good]))
    return request


OPERANDS = {
    "REPO": (words.REPOSITORIES, 3), "ARCHIVE": (words.ARCHIVES, 5), "PATH": (PATHS, 7),
}  # fmt: skip
"""All operands of a kind, and how many of them, from the first, are sound."""


def _option(verb: str | None, name: str, random: Random, *, good: bool) -> list[str]:
    values = words.VALUES[name]
    if good:
        values = MODES if (verb, name) == ("init", "-e") else values[: GOOD.get(name, 2)]
    chosen = random.choice(values)
    joined = name.startswith("--") and random.random() < 0.5
    return [f"{name}={chosen}"] if joined else [name, chosen]


VERBS = ("create", "create", *words.OPERANDS_OF)
MODES = ("repokey", "none", "keyfile-blake2")
GOOD = {"--socket": 1, "--compression": 4, "-C": 4, "--comment": 2, "--exclude": 5, "-e": 5}
"""How many of an option's values, from the first, are sound."""


def _add_what_fits(request: list[str], random: Random) -> None:
    """One more option of the verb's, or one more path."""
    verb = next((word for word in request if word in words.OPERANDS_OF), None)
    if verb is None:
        request[:] = _made_anew(random.choice(VERBS), random)
        return
    options = (*words.OPTIONS_OF[verb], *words.SWITCHES_OF[verb])
    name = random.choice(options or words.SWITCHES)
    if verb in ("create", "restore") and random.random() < 0.3:
        request.append(random.choice(PATHS[:7]))
    elif name in words.VALUES:
        place = request.index(verb) + 1
        request[place:place] = _option(verb, name, random, good=True)
    else:
        request.insert(request.index(verb) + 1, name)


def _change(request: list[str], random: Random) -> None:
    """Anything anywhere."""
    place = random.randrange(len(request) + 1)
    kind = random.randrange(8)
    if kind == 0:
        name = random.choice(list(words.VALUES))
        request[place:place] = _option(None, name, random, good=False)
    elif kind == 1:
        request.insert(
            place,
            random.choice((random.choice(WORDS), _option_of_borg(random.choice(VERBS), random))),
        )
    elif not request:
        request.append(random.choice(WORDS))
    elif kind == 2:
        del request[place - 1]
    elif kind == 3:
        request[place - 1] = random.choice(WORDS)
    elif kind == 4:
        other = random.randrange(len(request))
        request[place - 1], request[other] = request[other], request[place - 1]
    elif kind == 5:
        request.insert(place, random.choice(request))
    else:
        request[place - 1] = _edited(request[place - 1], random)


@functools.cache
def _options_of_borg(verb: str) -> tuple[str, ...]:
    """Every option of the verb that any borg knows: what must not get through unjudged."""
    known = (parser.options().get(verb, ()) for parser in _parsers())
    return tuple(sorted({"--version", *itertools.chain(*known)}))


def _option_of_borg(verb: str, random: Random) -> str:
    """One of borg's own options, perhaps cut short, as borg allows it, perhaps with a value."""
    option = random.choice(_options_of_borg(verb))
    if random.random() < 0.2:
        option = option[: random.randrange(3, 3 + len(option))]
    return option + random.choice(("", "", "", "=1", "=/etc/passwd"))


def _with_an_option_of_borg(random: Random) -> list[str]:
    """A sound request and, somewhere in it, an option that borg knows."""
    verb = random.choice([verb for verb in words.OPERANDS_OF if verb != "hello"])
    request = _made_anew(verb, random, sound=True)
    place = random.choice((1, len(request), random.randrange(len(request))))
    request.insert(place, _option_of_borg(verb, random))
    return request


def _edited(word: str, random: Random) -> str:
    at = random.choice((0, len(word), random.randrange(len(word) + 1)))
    end = at + random.choice((0, 0, 1, 1, 3))
    new: Sequence[str] = ("", random.choice(PIECES), word[at : at + 4] * 2, random.choice(PATHS))
    return word[:at] + random.choice(new) + word[end:]


TARGET = Target(
    name="request",
    check=check,
    reaches={
        "borg_pull.source.request": (),
        "borg_pull.values": (),
        "borg_pull.source.judge": (),
        "borg_pull.source.borg": ("command", "base_environment", "socket_path"),
    },
    weight=8,
    seeds=seeds,
    honest=honest,
    mutate=mutate,
)
