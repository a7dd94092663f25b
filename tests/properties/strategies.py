"""Requests and whitelists that are nearly right, which is where mistakes live."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from .toml_text import toml_string, toml_table
from .words import (
    ARCHIVES,
    COMPRESSIONS,
    EXCLUDES,
    HOSTILE,
    NAMES,
    OPERANDS_OF,
    OPTIONS_OF,
    PATHS,
    QUOTINGS,
    REPOSITORIES,
    SWITCHES,
    SWITCHES_OF,
    VALUES,
    VERBS,
)


def _value(values: tuple[str, ...], good: int, sound: bool) -> st.SearchStrategy[str]:
    """One of the first ``good`` values; unless it must be ``sound``, maybe any, or anything."""
    likely = st.sampled_from(values[:good])
    return likely if sound else st.one_of(likely, st.sampled_from(values), st.text(max_size=8))


@st.composite
def _given(draw: st.DrawFn, name: str, sound: bool) -> list[str]:
    value = draw(_value(VALUES[name], 1 if name == "--socket" else 2, sound))
    if name.startswith("--") and draw(st.booleans()):
        return [f"{name}={value}"]
    return [name, value]


@st.composite
def _options(draw: st.DrawFn, verb: str, sound: bool) -> list[list[str]]:
    names = list(
        draw(
            st.lists(
                st.sampled_from(
                    OPTIONS_OF.get(verb, ()) + SWITCHES_OF.get(verb, ()) or ("--json",)
                ),
                max_size=3,
                unique=True,
            )
        )
    )
    if not sound:
        names += draw(st.lists(st.sampled_from(tuple(VALUES) + SWITCHES), max_size=1))
    options = [draw(_given(name, sound)) if name in VALUES else [name] for name in names]
    if verb == "init" and "-e" not in names:
        mode = draw(st.sampled_from(("repokey", "none", "keyfile")))
        options.append(["-e", mode] if sound else [f"--encryption={mode}"])
    if verb == "prune":
        options += [draw(_given("--glob-archives", sound)), draw(_given("--keep-weekly", sound))]
    return options


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Requests that are right, wrong in one word, or wrong anywhere."""
    wrong = draw(st.sampled_from(("nowhere", "in one word", "anywhere")))
    sound = wrong != "anywhere"
    verb = draw(st.sampled_from(VERBS))
    parts: list[list[str]] = [verb.split(" ")]
    if verb in ("run", "job", "cancel", "aio", "target set"):
        parts.append([draw(st.sampled_from(NAMES))])
    elif verb in OPERANDS_OF and verb != "hello":
        parts.append([draw(_value(REPOSITORIES, 3, sound))])
    if verb in ("create", "restore") or (verb == "info" and draw(st.booleans())):
        parts.append([draw(_value(ARCHIVES, 5, sound))])
    if verb in ("create", "restore"):
        paths = st.lists(_value(PATHS, 7, sound), min_size=1, max_size=3, unique=sound)
        parts += [[path] for path in draw(paths)]
    for option in draw(_options(verb, sound)):
        parts.insert(draw(st.integers(0, len(parts))), option)
    words = [word for part in parts for word in part]
    if draw(st.booleans()):
        words.insert(0, "--")
    if wrong == "in one word":
        place = draw(st.integers(0, len(words) - 1))
        words[place] = draw(st.sampled_from(HOSTILE + PATHS + REPOSITORIES + ARCHIVES + EXCLUDES))
    return written(draw, words, damaged=wrong == "anywhere" and draw(st.booleans()))


def written(draw: st.DrawFn, words: list[str], damaged: bool) -> bytes:
    """``words`` as a command, each quoted in one of several ways."""
    quoting = st.sampled_from(QUOTINGS if damaged else QUOTINGS[:3])
    text = draw(st.sampled_from((" ", "  "))).join(draw(quoting)(word) for word in words)
    if damaged:
        place = draw(st.integers(0, len(text)))
        text = (
            text[:place]
            + draw(st.sampled_from("\\'\" -\n\x00=\x7f\x85\u2028\ud800#"))
            + text[place:]
        )
    return text.encode("utf-8", "surrogatepass")


@st.composite
def honest_requests(draw: st.DrawFn, table: dict[str, Any]) -> bytes:
    """Requests that the rules in ``table`` allow."""
    below = [f"{tree.rstrip('/')}/sub dir/é" for tree in table["trees"]]
    paths = [*table["paths"], *table["trees"], *below]
    chosen = draw(st.lists(st.sampled_from(paths), min_size=1, max_size=3, unique=True))
    switches = ("-p", "-x", "--json", "--log-json", "-s")
    options = [
        [name] for name in draw(st.lists(st.sampled_from(switches), unique=True, max_size=3))
    ]
    if draw(st.booleans()):
        specifications = ("lz4", "zstd,3", "auto,lzma,6", "obfuscate,3,none")
        options.append(["-C", draw(st.sampled_from(specifications))])
    if draw(st.booleans()):
        options.append([f"--comment={draw(st.sampled_from(('nightly', 'it is ‘quoted’')))}"])
    archives = ("a", "web-{now}", "{hostname} {utcnow:%Y-%m-%dT%H:%M}", "été")
    parts = [["create"], ["/srv/repo"], [draw(st.sampled_from(archives))], *([p] for p in chosen)]
    for option in options:
        parts.insert(draw(st.integers(0, len(parts))), option)
    words = [*draw(st.sampled_from(([], ["--"]))), *(word for part in parts for word in part)]
    return written(draw, words, damaged=False)


def some(values: tuple[str, ...]) -> st.SearchStrategy[list[str]]:
    """A few different ones of ``values``."""
    return st.lists(st.sampled_from(values), max_size=4, unique=True)


def client_tables() -> st.SearchStrategy[dict[str, Any]]:
    """A client's table without a fault."""
    sound = {
        "paths": some(("/", "/home", "/home/", "/home/a b", "/srv/data", "/home/ü")),
        "trees": some(("/", "/home", "/srv/data", "/etc")),
        "allow": some(("create", "create", "list", "info", "check", "prune", "restore")).map(
            lambda names: sorted({*names, "create"})
        ),
        "compressions": st.sampled_from(([], ["zstd"], ["zstd,3", "lz4"], ["auto,zstd,3"])),
        "excludes": st.sampled_from(([], ["*.tmp", "sh:**/cache"])),
        "repositories": st.sampled_from(([], ["/srv/repo"], ["/srv/repo/", "/re:po"])),
        "flags": st.sampled_from(
            (
                ["compression", "exclude", "progress"],
                [
                    "exclude",
                    "comment",
                    "json",
                    "stats",
                    "dry-run",
                    "one-file-system",
                    "log-json",
                    "compression",
                    "progress",
                ],
            )
        ),
        "encryption": st.sampled_from((["none"], ["repokey", "keyfile-blake2"])),
        "restore_to": st.sampled_from(("/", "/srv/restored/")),
    }
    return st.fixed_dictionaries({}, optional=sound)


_SCALARS = st.one_of(
    st.text(max_size=10),
    st.sampled_from(PATHS + COMPRESSIONS + EXCLUDES).filter(lambda text: "\udcff" not in text),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from(("create", "exclude", "repokey", "/home", "/", "ssh-ed25519 AAAA")),
)
_KEYS = (
    "paths", "trees", "allow", "flags", "required_flags", "compressions", "excludes",
    "encryption", "repositories", "passphrase_file", "passcommand", "passphrase_stdin",
    "allow_unknown_repository", "refuse_empty", "keys", "path", "Paths", "alow", "socket_dir",
    "home", "borg", "socket_wrapper", "file", "sync", "runtime", "client", "audit", "luna",
)  # fmt: skip
_NAMES = st.one_of(
    st.sampled_from(_KEYS),
    st.text(max_size=6),
)
_JSON_LIKE = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(_NAMES, inner, max_size=3)
    ),
    max_leaves=6,
)


_ODDITIES = (
    "", "# comment\r\n", "\ufeff", "\x00", "a.b.c = 1\n", "x = 1979-05-27T07:32:00Z\n",
    "y = 2021-02-30\n", "n = " + "9" * 5000 + "\n", "z = " + "[" * 500,
)  # fmt: skip


@st.composite
def documents(draw: st.DrawFn) -> str:
    """Whitelists that are nearly right."""
    extra = st.dictionaries(_NAMES, _JSON_LIKE, max_size=2)
    one_more = st.dictionaries(_NAMES, _JSON_LIKE, max_size=1)
    parts = [
        toml_table("[runtime]", {"socket_dir": "/s", "home": "/h", **draw(one_more)}),
        toml_table("[audit]", draw(one_more)),
        toml_table("[client.luna]", {**draw(client_tables()), **draw(extra)}),
        toml_table(f"[client.{toml_string(draw(_NAMES))}]", draw(extra)),
        draw(st.sampled_from(_ODDITIES)),
    ]
    text = "".join(draw(st.permutations(parts)))
    if draw(st.integers(0, 3)) == 0 and text:
        place = draw(st.integers(0, len(text) - 1))
        text = (
            text[:place]
            + draw(
                st.sampled_from(
                    ("", "[", "]", '"', "'", "=", "\n", "\\", "{", "}", '"""', "\x0c", "\u2028")
                )
            )
            + text[place + 1 :]
        )
    return text
