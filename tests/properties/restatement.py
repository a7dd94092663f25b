"""The rules of the forced command, written down a second time and in another way.

Nothing here calls the code under test: words are cut by one regular expression, options are read by
``getopt``, paths are compared by ``pathlib``, placeholders are replaced by ``re`` and ``datetime``.
"""

from __future__ import annotations

import datetime
import getopt
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

WORD = re.compile(r"""(?:[^ '"\\]|\\.|'[^']*'|"(?:[^"\\]|\\.)*")+""")
PIECE = re.compile(
    r"""'(?P<single>[^']*)'|"(?P<double>(?:[^"\\]|\\.)*)"|\\(?P<escaped>.)|(?P<plain>.)"""
)

SHORT = {
    "-C": "compression", "-p": "progress", "-x": "one-file-system", "-s": "stats",
    "-n": "dry-run", "-a": "glob-archives", "-H": "keep-hourly", "-d": "keep-daily",
    "-w": "keep-weekly", "-m": "keep-monthly", "-y": "keep-yearly",
}  # fmt: skip
SWITCHES = {
    "create": {"progress", "one-file-system", "json", "log-json", "stats", "dry-run"},
    "init": {"log-json"},
    "list": {"json", "log-json"},
    "info": {"json", "log-json"},
    "check": {"repository-only", "archives-only", "verify-data", "progress", "log-json"},
    "prune": {"dry-run", "list", "stats", "progress", "log-json"},
    "restore": {"dry-run", "list", "progress", "log-json"},
    "break-lock": {"log-json"},
    "change-passphrase": {"log-json"},
    "hello": set[str](),
    "run": {"detach"},
    "job": {"follow"},
    "aio": {"check", "detach"},
    **{
        verb: set[str]()
        for verb in ("actions", "jobs", "cancel", "aio-status", "health", "metrics", "target-show",
                     "target-set", "lockdown-on", "lockdown-off", "lockdown-status")
    },
}  # fmt: skip
NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
JOB = "-".join(f"[0-9a-f]{{{count}}}" for count in (8, 4, 4, 4, 12))
NAMES = {
    "run": NAME, "aio": NAME, "target-set": NAME, "job": JOB, "cancel": JOB,
    **dict.fromkeys(
        ("actions", "jobs", "aio-status", "health", "metrics", "target-show", "lockdown-on",
         "lockdown-off", "lockdown-status"),
        None,
    ),
}  # fmt: skip
COUNT = r"0*[1-9][0-9]{0,5}|0*1000000"
KEEP = {f"keep-{unit}ly" for unit in ("minute", "hour", "dai", "week", "month", "year")} | {
    "keep-last"
}
TEXT = r"[^{}]{1,1024}"
VALUES = {
    "create": {
        "compression": r"(?:obfuscate,0*(?:[1-6]|11[0-9]|12[0-3]),)?(?:auto,)?"
        r"(?:none|lz4|zstd(?:,0*(?:[1-9]|1[0-9]|2[0-2]))?|zlib(?:,0*[0-9])?|lzma(?:,0*[0-9])?)",
        "comment": TEXT,
        "exclude": r"(?=.{1,1024}\Z)(?:(?:fm|sh|pp|pf):.+|(?![^\W_]{2}:).+)",
    },
    "init": {"encryption": r"none|authenticated(?:-blake2)?|(?:repokey|keyfile)(?:-blake2)?"},
    "list": {"glob-archives": r"[^{}*?\[][^{}]{0,199}", "first": COUNT, "last": COUNT},
    "info": {},
    "check": {"max-duration": COUNT},
    "prune": {
        "glob-archives": r"[^{}*?\[][^{}]{0,199}",
        "keep-within": r"(?:0*[1-9][0-9]{0,4}|0*100000)[Hdwmy]",
        **dict.fromkeys(KEEP, COUNT),
    },
    "restore": {},
    **{verb: {} for verb in ("break-lock", "change-passphrase", "hello", *NAMES)},
    "job": {"from": COUNT},
}
OPERANDS = {
    "create": 3,
    "init": 1,
    "list": 1,
    "info": 1,
    "check": 1,
    "prune": 1,
    "restore": 3,
    "break-lock": 1,
    "change-passphrase": 1,
    "hello": 0,
    **{verb: 0 if form is None else 1 for verb, form in NAMES.items()},
}
DIRECTIVES = "YmdHMSjyIpaAbBUWVGuwzZFTRs%"
DEFAULT_FLAGS = {
    "compression", "progress", "one-file-system", "comment", "json", "log-json", "stats", "dry-run",
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A request as read by this module."""

    verb: str
    options: list[tuple[str, str | None]]
    operands: list[str]

    def values(self, name: str) -> list[str | None]:
        """All values given for one option."""
        return [value for given, value in self.options if given == name]


def words(text: str) -> list[str]:
    """The words of ``text``."""
    return ["".join(map(_unquoted, PIECE.finditer(word))) for word in WORD.findall(text)]


def _unquoted(piece: re.Match[str]) -> str:
    if piece["double"] is not None:
        return re.sub(r'\\(["$`\\])', r"\1", piece["double"])
    return next(
        part for part in (piece["single"], piece["escaped"], piece["plain"], "") if part is not None
    )


def asked(command: bytes) -> Asked:
    """What ``command`` asks for. Only for commands that were accepted; fails on others."""
    text = command.decode("utf-8", "surrogateescape")
    assert len(command) <= 65536
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", text)
    rest = words(text)
    if rest and rest[0] == "--":
        rest = rest[1:]
    every = {name for verb in SWITCHES.values() for name in verb}
    valued = {name for verb in VALUES.values() for name in verb} | {"socket"}
    given, operands = getopt.gnu_getopt(
        rest, "C:pxe:snH:d:w:m:y:a:", [*every, *(f"{name}=" for name in valued)]
    )
    verb, *operands = operands
    if verb in ("target", "lockdown"):
        verb, *operands = f"{verb}-{operands[0]}", *operands[1:]
    short = SHORT | {"-e": "encryption" if verb == "init" else "exclude"}
    options: list[tuple[str, str | None]] = []
    for spelling, value in given:
        name = short.get(spelling) or spelling.removeprefix("--")
        has_socket = name == "socket" and verb not in NAMES
        assert name in SWITCHES[verb] or name in VALUES[verb] or has_socket, spelling
        options.append((name, None if name in SWITCHES[verb] else value))
    # getopt lets an option be shortened; a request may not.
    assert not [word for word in rest if re.match("--[a-z]", word)] or all(
        any(word.partition("=")[0] == f"--{name}" for name in every | valued)
        for word in rest[: rest.index("--") if "--" in rest else None]
        if re.match("--[a-z]", word)
    )
    return Asked(verb, options, operands)


def check_syntax(request: Asked) -> None:
    """That the request keeps to the grammar of its verb."""
    least = OPERANDS[request.verb]
    most = {"create": 10**6, "restore": 10**6, "info": 2}.get(request.verb, least)
    assert least <= len(request.operands) <= most
    for name, value in request.options:
        assert value is None or not value.startswith("-")
        if name == "socket":
            assert value is not None
            assert re.fullmatch("[A-Za-z0-9]{16,64}", value)
        elif value is not None:
            assert re.fullmatch(VALUES[request.verb][name], value), (name, value)
            assert value.isprintable()
        if name != "exclude":
            assert len(request.values(name)) == 1
    if request.verb in NAMES:
        form = NAMES[request.verb]
        assert all(form and re.fullmatch(form, name) for name in request.operands)
        return
    for path in (*request.operands[:1], *request.operands[2:]):
        check_path(path)
    if request.operands:
        assert re.fullmatch(r"/(?!.*(?:::|[{}])).*[^:]", request.operands[0])
        assert request.operands[0].isprintable()
    assert len(request.operands[2:]) == len(set(request.operands[2:])) <= 500
    assert len(request.options) <= 200


def check_path(path: str) -> None:
    """That ``path`` is one plain absolute path."""
    pure = PurePosixPath(path)
    assert pure.is_absolute()
    assert ".." not in pure.parts
    # pathlib drops what a path need not have: nothing but one last slash may have been dropped.
    assert str(pure) == (path[:-1] if path.endswith("/") and path != "/" else path)
    assert 0 < len(path.encode()) <= 4095
    assert all(len(part.encode()) <= 255 for part in pure.parts)


def expanded(name: str, epoch: float, hostname: str) -> str:
    """The archive name that ``name`` stands for at ``epoch``."""
    local = datetime.datetime.fromtimestamp(epoch).astimezone()
    moments = {"now": local, "utcnow": local.astimezone(datetime.UTC)}

    def value(found: re.Match[str]) -> str:
        if found["name"] == "hostname":
            assert found["format"] is None
            return hostname
        return moments[found["name"]].strftime(found["format"] or "%Y-%m-%dT%H:%M:%S")

    form = rf"(?:%[{DIRECTIVES}]|[A-Za-z0-9_.:+ -])+"
    return re.sub(rf"\{{(?P<name>now|utcnow|hostname)(?::(?P<format>{form}))?\}}", value, name)


def check_verdict(
    request: Asked, client: str, table: Mapping[str, Any], socket_name: str, grants: list[str]
) -> None:
    """That the rules in ``table`` (a client's table as TOML gives it) allow ``request``."""
    if request.verb in ("break-lock", "change-passphrase"):
        assert table.get("role") == "admin"
    else:
        assert table.get("role", "backup") in ("backup", "admin")
        assert request.verb in table.get("allow", ["create"])
    if request.verb == "change-passphrase":
        assert table.get("passphrase_stdin")
    repository = request.operands[0]
    if table.get("repositories"):
        assert PurePosixPath(repository) in map(PurePosixPath, table["repositories"])
    if request.verb == "restore":
        # What is asked for is in the archive; of this host nothing is granted.
        assert grants == []
        assert table.get("restore_to") is not None
    else:
        assert grants == request.operands[2:]
    for path in grants:
        below = (
            tree for tree in table.get("trees", []) if PurePosixPath(path).is_relative_to(tree)
        )
        assert path in table.get("paths", []) or any(below)
    if request.verb == "create":
        names = {name for name, _ in request.options} - {"socket"}
        assert names <= set(table.get("flags", DEFAULT_FLAGS))
        assert names >= set(table.get("required_flags", []))
        for compression in request.values("compression"):
            wanted = table.get("compressions") or [compression]
            assert compression in wanted or str(compression).split(",")[0] in wanted
    elif request.verb == "init":
        assert request.values("encryption")[0] in table["encryption"]
    elif request.verb == "prune":
        assert request.values("glob-archives")
        assert any(name in KEEP | {"keep-within"} for name, _ in request.options)
    nonce = request.values("socket")
    assert socket_name == ".".join([client, *map(str, nonce), "sock"])
    assert "/" not in socket_name


def check_command(
    request: Asked,
    client: str,
    table: Mapping[str, Any],
    archive: str | None,
    argv: tuple[str, ...],
) -> None:
    """That ``argv`` does what was asked, with what the rules add, and nothing else."""
    wanted = [
        f"--{name}" if value is None else f"--{name}={value}"
        for name, value in request.options
        if name != "socket"
    ]
    if request.verb == "create":
        wanted += [f"--exclude={pattern}" for pattern in table.get("excludes", [])]
    if request.verb in ("list", "info") and "--json" not in wanted:
        wanted.append("--json")
    location = f"ssh://{client}{request.operands[0]}" + ("" if archive is None else f"::{archive}")
    verb, paths = request.verb, request.operands[2:]
    if verb == "restore":
        verb, paths = "extract", members(paths)
    words = ["key", verb] if verb == "change-passphrase" else [verb]
    assert list(argv[1:]) == [*words, *wanted, "--", location, *paths]


def members(paths: list[str]) -> list[str]:
    """What borg is to take out of an archive for ``paths`` of the source: all when one is all."""
    relative = [str(PurePosixPath(path).relative_to("/")) for path in paths]
    return [] if "." in relative else [f"pp:{path}" for path in relative]


def check_archive(archive: str) -> None:
    """That ``archive`` is a name borg takes as it stands."""
    assert re.fullmatch(r"(?!.*::)(?!.*\.checkpoint)(?! )[^/\\{}]{1,200}(?<! )", archive)
    assert archive.isprintable()
