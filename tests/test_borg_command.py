"""The argv for borg, read by borg's own parsers, and what borg's exit codes mean."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from borg_pull.errors import RequestError
from borg_pull.settings import Runtime
from borg_pull.source import borg
from borg_pull.source.judge import Allowed, Context, Refused, expand, judge
from borg_pull.source.request import ENCRYPTION_MODES, VERBS, parse
from borg_pull.source.whitelist import ClientRules
from borg_pull.values import archive_fault
from tests.properties import restatement, strategies, words
from tests.properties.borg_parsers import VERSIONS, BorgParser, BorgParserError
from tests.properties.checks import EVERY_FEATURE, rules_of
from tests.properties.seen_by_borg import HOURS, check, compression

EPOCH = 1_795_222_312.0
TIME_ZONE = "Asia/Kathmandu"
RUNTIME = Runtime(socket_wrapper=None, socket_dir="/s", home="/h", borg="/usr/bin/borg")
WIDE = {
    "trees": ["/"],
    "allow": ["create", "init", "list", "info", "check", "prune", "restore"],
    "restore_to": "/srv/restored",
    "encryption": list(ENCRYPTION_MODES),
    "role": "admin",
    "passphrase_stdin": True,
    "flags": sorted(restatement.DEFAULT_FLAGS | {"exclude"}),
    "excludes": ["*.forced", "pf:/forced/too"],
}


@pytest.fixture(scope="module", params=VERSIONS)
def parser(request: pytest.FixtureRequest) -> Iterator[BorgParser]:
    """A borg's parser; it and this process are in the same time zone, which is not UTC."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = TIME_ZONE
    time.tzset()
    made = BorgParser(request.param, TIME_ZONE)
    yield made
    made.close()
    os.environ.pop("TZ")
    if before is not None:
        os.environ["TZ"] = before
    time.tzset()


def rules() -> ClientRules:
    return rules_of("luna", WIDE)


def context() -> Context:
    return Context(
        hostname=os.uname().nodename,
        local_time=time.localtime(EPOCH),
        utc_time=time.gmtime(EPOCH),
    )


def judged(command: bytes) -> Allowed | Refused | None:
    try:
        request = parse(command)
    except RequestError:
        return None
    if request.verb == "hello" or VERBS[request.verb].names is not None:
        return None
    return judge(request, "luna", rules(), EVERY_FEATURE, context())


def argv_of(command: bytes) -> tuple[str, ...]:
    """The words after ``borg`` for a request that must be allowed."""
    allowed = judged(command)
    assert isinstance(allowed, Allowed), (command, allowed)
    return borg.command(allowed, "luna", rules(), RUNTIME, "/usr/bin/wrap").argv[1:]


def test_borg_sees_what_was_judged_and_nothing_else(parser: BorgParser) -> None:
    seen: set[str] = set()

    @settings(max_examples=500, deadline=None)
    @given(strategies.requests())
    @example(b"create /re:po :a /home")
    @example(b"create /@repo -- a /home/--rsh=sh")
    @example(b"create -- /repo -a /home")
    @example(b"create -C obfuscate,110,auto,zstd,22 '/r p#?%41' 'a %41' '/home/a b' /x::y")
    @example(b"init -e repokey /r")
    @example(b"list /r")
    @example(b"info /r")
    @example(b"check /r")
    @example(b"restore /r a /home")
    @example(b"break-lock /r")
    @example(b"change-passphrase --log-json /r")
    @example(b"prune -a 'a[!b]*' --keep-within=100000y --keep-last=1000000 -H 1 -w 3 /r")
    def sees(command: bytes) -> None:
        allowed = judged(command)
        if not isinstance(allowed, Allowed):
            return
        asked = restatement.asked(command)
        check(parser, asked, "luna", WIDE, allowed.archive, argv_of(command))
        seen.add(asked.verb)

    sees()
    assert seen == {verb.name for verb in OF_BORG}


OF_BORG = [verb for verb in VERBS.values() if verb.names is None and verb.operands]

SOUND_VALUES = {
    "compression": "zstd,3", "comment": "x", "exclude": "*.o", "encryption": "repokey",
    "glob-archives": "web-*", "keep-within": "2d", "socket": words.NONCE,
}  # fmt: skip


@pytest.mark.parametrize(
    ("verb", "option"),
    [(verb.name, option.name) for verb in OF_BORG for option in verb.options],
)
def test_every_option_of_the_table_is_known_to_borg(
    parser: BorgParser, verb: str, option: str
) -> None:
    taken = {"init": "-e none", "prune": "-a x --keep-last 1"}.get(verb, "")
    taken = "" if option in ("encryption", "glob-archives", "keep-last") else taken
    if verb == "prune" and option in ("glob-archives", "keep-last"):
        taken = "--keep-daily 1" if option == "glob-archives" else "-a x"
    if option == "max-duration":
        taken += " --repository-only"
    has_value = next(o for o in VERBS[verb].options if o.name == option).check is not None
    word = f"--{option}={SOUND_VALUES.get(option, '5')}" if has_value else f"--{option}"
    operands = "/r a /home" if verb in ("create", "restore") else "/r"
    found = parser.parsed(argv_of(f"{verb} {taken} {word} {operands}".encode()))
    method = "extract" if verb == "restore" else verb.replace("-", "_")
    assert found["verb"] == f"do_{method}"


def every_compression() -> Iterator[str]:
    plain = ["none", "lz4", "zstd", "zlib", "lzma"]
    plain += [f"zstd,{level}" for level in range(24)]
    plain += [f"{name},{level}" for name in ("zlib", "lzma", "lz4") for level in range(11)]
    for spec in plain:
        yield from (spec, f"auto,{spec}", f"obfuscate,2,{spec}", f"obfuscate,2,auto,{spec}")
    yield from (f"obfuscate,{level},zstd" for level in range(256))
    yield from ("auto", "obfuscate", "obfuscate,1", "auto,auto,lz4", "auto,obfuscate,1,lz4", "lz5")


def test_every_compression_that_parses_works(parser: BorgParser) -> None:
    accepted = 0
    for spec in every_compression():
        allowed = judged(f"create -C {spec} /r a /home".encode())
        if isinstance(allowed, Allowed):
            values = parser.parsed(argv_of(f"create -C {spec} /r a /home".encode()))["values"]
            if compression(spec) != ["lz4", None]:
                assert values["compression"] == compression(spec)
            accepted += 1
    assert accepted > 100


@pytest.mark.parametrize("unit", [*HOURS, "M", "S", "h", "D", ""])
def test_an_interval_is_refused_or_borg_knows_it(parser: BorgParser, unit: str) -> None:
    allowed = judged(f"prune -a x --keep-within=3{unit} /r".encode())
    if unit not in HOURS:
        assert allowed is None
        return
    values = parser.parsed(argv_of(f"prune -a x --keep-within=3{unit} /r".encode()))["values"]
    assert values["within"] == 3 * HOURS[unit]


@pytest.mark.parametrize("mode", ENCRYPTION_MODES)
def test_every_encryption_mode_is_known_to_borg(parser: BorgParser, mode: str) -> None:
    values = parser.parsed(argv_of(f"init -e {mode} /r".encode()))["values"]
    assert values["encryption"] == mode


NAMES_WITH_PLACEHOLDERS = st.lists(
    st.one_of(
        st.sampled_from(("a", "-", "ü", " ", ":", ".", "{hostname}", "{now}", "{utcnow}")),
        st.lists(
            st.sampled_from([f"%{letter}" for letter in restatement.DIRECTIVES] + list("T-:. +x1")),
            min_size=1,
            max_size=5,
        ).map(lambda parts: "{now:" + "".join(parts) + "}"),
    ),
    min_size=1,
    max_size=5,
).map("".join)


def test_placeholders_stand_for_what_they_stand_for_in_borg(parser: BorgParser) -> None:
    @settings(max_examples=300, deadline=None)
    @given(NAMES_WITH_PLACEHOLDERS, st.integers(0, 4_000_000_000))
    @example("{now:%" + "%".join(restatement.DIRECTIVES) + "}", 1_795_222_312)
    def agree(name: str, epoch: int) -> None:
        if archive_fault(name) is not None:
            return
        at = Context(
            hostname=os.uname().nodename,
            local_time=time.localtime(epoch),
            utc_time=time.gmtime(epoch),
        )
        assert expand(name, at) == parser.expanded(name, epoch)

    agree()


@pytest.mark.parametrize("letter", sorted(restatement.DIRECTIVES))
def test_the_utc_placeholder_stands_for_what_it_stands_for_in_borg(
    parser: BorgParser, letter: str
) -> None:
    name = f"{{utcnow:%{letter}}}"
    assert expand(name, context()) == parser.expanded(name, EPOCH)


def test_borg_would_have_expanded_what_is_refused(parser: BorgParser) -> None:
    """The control: these names are not refused for nothing."""
    for name in ("{pid}", "{now:{pid.__class__.__name__}}", "{user}", "{borgversion}"):
        assert archive_fault(name) is not None
        assert parser.expanded(name, EPOCH) != name


def test_borg_takes_a_colon_before_the_separator_for_the_archives(parser: BorgParser) -> None:
    """The control for refusing repositories that end in a colon."""
    found = parser.parsed(("create", "--", "ssh://luna/repo:::a", "/home"))["values"]
    assert (found["location"]["path"], found["location"]["archive"]) == ("/repo", ":a")
    with pytest.raises(RequestError, match="ends in a colon"):
        parse(b"create /repo: a /home")


def test_a_parser_that_refuses_says_so(parser: BorgParser) -> None:
    with pytest.raises(BorgParserError, match="Invalid location format"):
        parser.parsed(("create", "--", "ssh://luna/repo::a/b", "/home"))


def test_the_environment_is_built_from_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BORG_REPO", "BORG_PASSCOMMAND", "LD_PRELOAD", "PYTHONPATH", "BORG_LOGGING_CONF"):
        monkeypatch.setenv(name, "hostile")
    allowed = judged(b"create /srv/repo a /home")
    assert isinstance(allowed, Allowed)
    made = borg.command(allowed, "luna", rules(), RUNTIME, "/opt/it's here/wrap")
    suffix = made.environment.pop("BORG_FILES_CACHE_SUFFIX")
    assert len(suffix) == 16
    assert shlex.split(made.environment.pop("BORG_RSH")) == ["/opt/it's here/wrap"]
    assert made.environment == {
        "PATH": "/usr/bin:/bin",
        "HOME": "/nonexistent",
        "PYTHONNOUSERSITE": "1",
        "BORG_HOST_ID": "borg-pull",
        "LOGNAME": "borg-pull",
        "LC_ALL": "C.UTF-8",
        "BORG_EXIT_CODES": "modern",
        "BORGSOCKETWRAP_SOCKET_PATH": "/s/luna.sock",
        "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "no",
        "BORG_RELOCATED_REPO_ACCESS_IS_OK": "no",
    }


@pytest.mark.parametrize(
    "wrapper", ["/usr/bin/wrap", "/a b", "/it's", '/a"b', "/a\\b", "/$x", "/a;b", "/ü", "/a'b'c d"]
)
def test_the_wrapper_is_one_word_to_borg(wrapper: str) -> None:
    allowed = judged(b"list /r")
    assert isinstance(allowed, Allowed)
    made = borg.command(allowed, "luna", rules(), RUNTIME, wrapper)
    assert shlex.split(made.environment["BORG_RSH"]) == [wrapper]


@pytest.mark.parametrize("verb", ["list", "info"])
def test_times_that_name_no_zone_are_utc(verb: str) -> None:
    allowed = judged(f"{verb} /r".encode())
    assert isinstance(allowed, Allowed)
    assert borg.command(allowed, "luna", rules(), RUNTIME, "/w").environment["TZ"] == "UTC"


def test_the_files_cache_is_one_per_set_of_paths() -> None:
    def suffix(command: bytes) -> str:
        allowed = judged(command)
        assert isinstance(allowed, Allowed)
        made = borg.command(allowed, "luna", rules(), RUNTIME, "/w")
        return made.environment["BORG_FILES_CACHE_SUFFIX"]

    assert suffix(b"create /r a /x /y") == suffix(b"create -p /r b /y /x")
    assert suffix(b"create /r a /x") != suffix(b"create /r a /x /y")
    assert suffix(b"create /r a /xy") != suffix(b"create /r a /x /y")


def test_every_exit_code_has_one_meaning() -> None:
    meaning = {code: borg.exit_of(code) for code in range(256)}
    assert [code for code in meaning if meaning[code] == 0] == [0]
    assert [code for code in meaning if meaning[code] == 1] == [1, *range(100, 128)]
    assert set(meaning.values()) == {0, 1, 2}


def test_borgs_own_codes_mean_what_we_take_them_for(parser: BorgParser) -> None:
    """Only borg 1.4 has codes beyond 2; `BORG_EXIT_CODES=modern` turns them on."""
    codes = parser.exit_codes()
    assert (len(codes["errors"]), len(codes["warnings"])) > (40, 3) or not codes["errors"]
    assert {borg.exit_of(code) for code in codes["errors"]} <= {2}
    assert {borg.exit_of(code) for code in codes["warnings"]} <= {1}


def test_a_signal_told_by_a_shell_is_an_error() -> None:
    assert {borg.exit_of(128 + number) for number in range(1, 65)} == {2}
