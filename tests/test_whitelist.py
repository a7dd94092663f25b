"""From TOML to rules: what loads, what each fault says and on which line it stands."""

from __future__ import annotations

import base64
import subprocess
import time
from pathlib import Path

import pytest

from borg_pull.schema import Fault, SourceFile, WhitelistError, nearest_name
from borg_pull.settings import AUDIT_KEYS, RUNTIME_KEYS
from borg_pull.source.whitelist import (
    CLIENT_KEYS,
    CONFINE_KEYS,
    CREATE_FLAGS,
    LIMIT_KEYS,
    Whitelist,
    load,
    load_settings,
    load_socket_dir,
    public_key_fault,
)

RUNTIME = '[runtime]\nsocket_dir = "/run/x"\nhome = "/var/lib/x"\n'  # three lines
ORIGINAL = """\
[runtime]
socket_wrapper = "/usr/local/bin/borg-socket-wrap"
socket_dir = "/run/borg-pull"
home = "/var/lib/borg-pull"

[client.luna]
paths = ["/", "/home", "/var/lib", "/var/www"]
"""


def file(name: str, text: str | bytes) -> SourceFile:
    return SourceFile(name=name, content=text.encode() if isinstance(text, str) else text)


def loaded(
    text: str | bytes, files: dict[str, str] | None = None, only: str | None = None
) -> Whitelist:
    others = {name: file(f"clients.d/{name}.toml", own) for name, own in (files or {}).items()}
    return load(file("main.toml", text), others, only)


def faults(
    text: str | bytes, files: dict[str, str] | None = None, only: str | None = None
) -> list[str]:
    """The texts of all faults; there must be some."""
    with pytest.raises(WhitelistError) as caught:
        loaded(text, files, only)
    assert caught.value.exit_code == 78
    assert caught.value.line().isprintable()
    return [fault.text() for fault in caught.value.faults]


def client(line: str) -> str:
    """A sound main file with one line in the table of luna, which is line 5."""
    return f"{RUNTIME}[client.luna]\n{line}\n"


class TestTheOriginalsExample:
    def test_loads_unchanged(self) -> None:
        whitelist = loaded(ORIGINAL)
        runtime = whitelist.settings.runtime
        assert runtime.socket_wrapper == "/usr/local/bin/borg-socket-wrap"
        assert (runtime.socket_dir, runtime.home) == ("/run/borg-pull", "/var/lib/borg-pull")
        assert whitelist.clients["luna"].paths == ("/", "/home", "/var/lib", "/var/www")

    def test_gets_defaults_that_allow_no_more_than_it_did(self) -> None:
        rules = loaded(ORIGINAL).clients["luna"]
        assert rules.allow == ("create",)
        assert rules.trees == ()
        assert set(rules.flags) == set(CREATE_FLAGS) - {"exclude"}
        assert not rules.allow_unknown_repository
        assert not rules.allow_relocated_repository
        assert not rules.passphrase_stdin

    @pytest.mark.parametrize(
        "text",
        [
            ORIGINAL.replace("\n", "\r\n"),
            "# a comment\n\n" + ORIGINAL,
            ORIGINAL.rstrip("\n"),
            ORIGINAL.replace("[client.luna]", '[client."luna"]'),
            ORIGINAL.replace("[client.luna]", "[client]\n[client.luna]"),
            ORIGINAL.replace("[client.luna]\npaths", "[client]\nluna.paths"),
            ORIGINAL.replace('"/home"', "'/home'"),
            ORIGINAL.replace('"/home"', '"\\u002fhome"'),
        ],
    )
    def test_however_it_is_written(self, text: str) -> None:
        assert loaded(text) == loaded(ORIGINAL)


class TestDefaults:
    def test_of_the_settings(self) -> None:
        settings = loaded(RUNTIME).settings
        assert settings.runtime.borg == "/usr/bin/borg"
        assert settings.runtime.socket_wrapper is None
        assert settings.audit.file == "/var/lib/x/audit.jsonl"
        assert settings.audit.sync is False

    def test_of_the_audit_file_with_a_slash_behind_home(self) -> None:
        settings = loaded('[runtime]\nsocket_dir = "/s"\nhome = "/h/"\n').settings
        assert settings.audit.file == "/h/audit.jsonl"

    def test_without_clients(self) -> None:
        assert loaded(RUNTIME).clients == {}

    def test_of_a_client(self) -> None:
        rules = loaded(client("")).clients["luna"]
        for key in CLIENT_KEYS:
            assert getattr(rules, key.name) == key.default

    def test_every_key_has_a_text_for_people(self) -> None:
        for key in (*RUNTIME_KEYS, *AUDIT_KEYS, *CONFINE_KEYS, *LIMIT_KEYS, *CLIENT_KEYS):
            assert key.kind
            assert key.default_text
            assert key.doc.endswith(".")


class TestFilesOfSingleClients:
    def test_mean_what_a_table_means(self) -> None:
        line = 'trees = ["/srv"]\nallow = ["create", "list"]\n'
        assert loaded(RUNTIME, {"luna": line}) == loaded(client(line))

    def test_stand_beside_tables_of_others(self) -> None:
        whitelist = loaded(client('paths = ["/a"]'), {"sol": 'paths = ["/b"]'})
        assert {name: rules.paths for name, rules in whitelist.clients.items()} == {
            "luna": ("/a",),
            "sol": ("/b",),
        }

    def test_one_client_in_both_is_refused(self) -> None:
        (said,) = faults(client('paths = ["/a"]'), {"luna": 'paths = ["/b"]'})
        assert said == (
            "main.toml:4: client.luna: stands in clients.d/luna.toml too; keep one of them"
        )
        assert len(faults(client(""), {"luna": ""}, only="luna")) == 1

    def test_a_fault_names_the_file(self) -> None:
        (said,) = faults(RUNTIME, {"luna": 'paths = ["/a"]\npath = ["/b"]'})
        assert said == "clients.d/luna.toml:2: path: is unknown; did you mean paths?"

    def test_a_header_in_one_is_told_to_go(self) -> None:
        (said,) = faults(RUNTIME, {"luna": '[client.luna]\npaths = ["/a"]'})
        assert "clients.d/luna.toml:1: client: is unknown" in said
        assert "stand in no table" in said

    def test_settings_in_one_are_refused(self) -> None:
        (said,) = faults(RUNTIME, {"luna": '[runtime]\nborg = "/tmp/borg"'})
        assert "clients.d/luna.toml:1: runtime: is unknown" in said

    def test_broken_ones_do_not_hide_the_rest(self) -> None:
        said = faults(
            "[runtime]\n",
            {
                "luna": "[",
                "sol": "x = 1",
                "mars": "\n\n\udcff".encode("utf-8", "surrogateescape").decode("latin-1"),
            },
        )
        assert len(said) >= 4
        assert any("home: is missing" in text for text in said)
        assert any(text.startswith("clients.d/luna.toml:1: is not valid TOML") for text in said)


class TestOnlyOneClient:
    def test_others_are_not_looked_at(self) -> None:
        text = client('paths = ["/a"]') + "[client.sol]\nnonsense = 1\n[client.'../x']\n"
        assert set(loaded(text, only="luna").clients) == {"luna"}
        assert loaded(text, only="absent").clients == {}
        assert len(faults(text)) == 2

    def test_its_own_faults_are(self) -> None:
        assert faults(client("path = 1"), only="luna")

    def test_a_name_is_not_a_path_into_tables(self) -> None:
        text = client('paths = ["/a"]')
        assert loaded(text, only="luna.paths").clients == {}
        assert loaded(text, only="").clients == {}


class TestFaults:
    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ('path = ["/a"]', "5: client.luna.path: is unknown; did you mean paths?"),
            (
                "paths = '/a'",
                "5: client.luna.paths: must be an array of absolute paths, not a string",
            ),
            ('paths = ["a"]', "5: client.luna.paths[0]: 'a' is not absolute"),
            ('paths = ["/a/"]\ntrees = ["/a/"]', "6: client.luna.trees[0]: '/a/' ends in a slash"),
            ('paths = ["/a", 1]', "5: client.luna.paths[1]: must be a string, not a number"),
            (
                'paths = [\n"/a",\n"/b/../c"]',
                "7: client.luna.paths[1]: '/b/../c' has a component ..",
            ),
            ('paths = ["/a", "/a"]', "5: client.luna.paths[1]: '/a' stands there twice"),
            ('paths = ["/a\\u0000"]', "5: client.luna.paths[0]: '/a\\x00' has a control character"),
            ('paths = ["/a\\n"]', "5: client.luna.paths[0]: '/a\\n' has a control character"),
            ('paths = ["/\\u009b"]', "5: client.luna.paths[0]: '/\\x9b' has a control character"),
            (
                'passphrase_file = "/a\\u0000"',
                "5: client.luna.passphrase_file: '/a\\x00' has a control",
            ),
            ('repositories = ["/"]', "5: client.luna.repositories[0]: '/' is the root directory"),
            ('repositories = ["/a:"]', "5: client.luna.repositories[0]: '/a:' ends in a colon"),
            ('repositories = ["/a::b"]', "5: client.luna.repositories[0]: '/a::b' has '::'"),
            (
                "refuse_empty = 1",
                "5: client.luna.refuse_empty: must be true or false, not a number",
            ),
            (
                'refuse_empty = "no"',
                "5: client.luna.refuse_empty: must be true or false, not a string",
            ),
            ("max_sessions = 0", "5: client.luna.max_sessions: 0 is not between 1 and 4096"),
            ("max_sessions = 4097", "5: client.luna.max_sessions: 4097 is not between 1 and 4096"),
            ("request_burst = -1", "5: client.luna.request_burst: -1 is not between 1 and 1000000"),
            (
                f"requests_per_hour = 1{'0' * 4000}",
                "5: client.luna.requests_per_hour: the number is not between 1 and 1000000",
            ),
            (
                "request_burst = inf",
                "5: client.luna.request_burst: must be a whole number, not a fraction",
            ),
            (
                "request_burst = true",
                "5: client.luna.request_burst: must be a whole number, not a boolean",
            ),
            ('allow = ["hello"]', "5: client.luna.allow[0]: 'hello' is unknown"),
            (
                'allow = ["creat"]',
                "5: client.luna.allow[0]: 'creat' is unknown; did you mean create?",
            ),
            (
                'flags = ["--json"]',
                "5: client.luna.flags[0]: '--json' is unknown; did you mean json?",
            ),
            ('flags = ["socket"]', "5: client.luna.flags[0]: 'socket' is unknown"),
            ('compressions = ["zstd,23"]', "5: client.luna.compressions[0]: 'zstd,23' has a level"),
            ('excludes = ["re:x"]', "5: client.luna.excludes[0]: 're:x' has a style other"),
            ('excludes = ["r2:x"]', "5: client.luna.excludes[0]: 'r2:x' has a style other"),
            ('encryption = ["repokey-aes-ocb"]', "5: client.luna.encryption[0]: 'repokey-aes-ocb'"),
            ('allow = ["init"]', "client.luna.encryption: must name at least one mode"),
            (
                'flags = []\nrequired_flags = ["json"]',
                "6: client.luna.required_flags[0]: requires json",
            ),
            (
                'passcommand = "cat x"',
                "5: client.luna.passcommand: 'cat x' does not begin with an abs",
            ),
            ('passcommand = "/a \'b"', '5: client.luna.passcommand: "/a \'b" cannot be split'),
            ('passcommand = ""', "5: client.luna.passcommand: '' does not begin"),
            (
                'keys = ["ssh-ed25519 "]',
                "5: client.luna.keys[0]: 'ssh-ed25519 ' has a key that is cut",
            ),
            (
                'keys = ["ssh-ed25519 AAAA!"]',
                "5: client.luna.keys[0]: 'ssh-ed25519 AAAA!' has a key",
            ),
            (
                "paths = 1979-05-27",
                "5: client.luna.paths: must be an array of absolute paths, not date",
            ),
            ("paths = 1.5", "5: client.luna.paths: must be an array of absolute paths, not a f"),
            ("paths = {}", "5: client.luna.paths: must be an array of absolute paths, not a table"),
        ],
    )
    def test_of_a_client(self, line: str, said: str) -> None:
        (found,) = faults(client(line))
        assert said in found

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "main.toml: runtime.socket_dir: is missing"),
            ("runtime = 1\n", "main.toml:1: runtime: must be a table, not a number"),
            ("[[runtime]]\n", "main.toml:1: runtime: must be a table, not an array"),
            ("client = 1\n" + RUNTIME, "main.toml:1: client: must be a table, not a number"),
            (
                "client.luna = 1\n" + RUNTIME,
                "main.toml:1: client.luna: must be a table, not a number",
            ),
            (
                RUNTIME + "[clients.luna]\n",
                "main.toml:4: clients: is unknown; did you mean client?",
            ),
            (
                RUNTIME + 'brog = "/b"\n',
                "main.toml:4: runtime.brog: is unknown; did you mean borg?",
            ),
            (RUNTIME + 'borg = "borg"\n', "main.toml:4: runtime.borg: 'borg' is not absolute"),
            (RUNTIME + 'borg = "/b c"\n', "main.toml:4: runtime.borg: '/b c' has a space"),
            (
                RUNTIME + 'borg = "/b\\u0000"\n',
                "main.toml:4: runtime.borg: '/b\\x00' has a control",
            ),
            (RUNTIME + "[audit]\nsync = 1\n", "main.toml:5: audit.sync: must be true or false"),
            (RUNTIME + '[audit]\nfile = ""\n', "main.toml:5: audit.file: '' is not absolute"),
            (RUNTIME + "[client.'']\n", "client.: is no client name"),
            (RUNTIME + "[client.'../x']\n", "is no client name"),
            (RUNTIME + "[client.'a\\n']\n", "is no client name"),
            (RUNTIME + "[client.'²']\n", "is no client name"),
            (RUNTIME + f"[client.{'a' * 65}]\n", "is no client name"),
            (
                RUNTIME + f"[client.'luna.{'a' * 16}']\n",
                f"client.luna.{'a' * 16}: is no client name: its socket could be that of one run",
            ),
            (RUNTIME + "[client.web.example]\n", 'write [client."web.example"]'),
        ],
    )
    def test_of_the_rest(self, text: str, said: str) -> None:
        assert any(said in found for found in faults(text)), faults(text)

    def test_all_at_once(self) -> None:
        text = (
            "[runtime]\nhome = 1\nbrog = 2\n[audit]\nsync = 3\n[client.a]\npath = 4\n"
            "[client.b]\nallow = ['x', 'y']\n"
        )
        said = faults(text, {"c": "trees = ['x']\nfoo = 1"})
        assert [found.partition(": ")[0] for found in said if "is missing" not in found] == [
            "main.toml:2",
            "main.toml:3",
            "main.toml:5",
            "main.toml:7",
            "main.toml:9",
            "main.toml:9",
            "clients.d/c.toml:1",
            "clients.d/c.toml:2",
        ]
        with pytest.raises(WhitelistError) as caught:
            loaded(text)
        assert "(and " in caught.value.line()
        assert "see borg-pull-admin check" in caught.value.line()

    def test_a_name_made_of_escapes_stays_on_one_line(self) -> None:
        with pytest.raises(WhitelistError) as caught:
            loaded(RUNTIME + '"a\\nb\\u001b[2J" = 1\n')
        assert "\\n" in caught.value.line()
        assert caught.value.line().isprintable()

    def test_texts(self) -> None:
        fault = Fault(file="f", line=None, key="", message="m")
        assert fault.text() == "f: m"
        assert Fault(file="f", line=3, key="a.b", message="m").text() == "f:3: a.b: m"


class TestLines:
    """Counted as TOML counts them, which is by the line feed alone."""

    @pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\u00a0"])
    def test_other_separators_do_not_count(self, separator: str) -> None:
        text = f"# {separator} a\n{RUNTIME}[client.luna]\npaths = ['/{separator}x', 'y']\n"
        assert any("main.toml:6: client.luna.paths[1]" in found for found in faults(text))

    def test_carriage_returns_do_not_count(self) -> None:
        (said,) = faults(client("path = 1").replace("\n", "\r\n"))
        assert said.startswith("main.toml:5: client.luna.path:")

    def test_text_that_looks_like_an_assignment_does_not_count(self) -> None:
        text = client('excludes = ["""\npaths = 1\n[client.luna]\npath = 2"""]\npath = 3')
        said = faults(text)
        assert any(found.startswith("main.toml:9: client.luna.path:") for found in said), said


class TestDocumentsThatAreNone:
    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (b"\xff", "main.toml:1: is not UTF-8 text"),
            (b"# a\n# b\n# \xc3(\n", "main.toml:3: is not UTF-8 text"),
            (b"\xef\xbb\xbf" + RUNTIME.encode(), "main.toml:1: is not valid TOML"),
            (RUNTIME.encode("utf-16"), "main.toml:1: is not UTF-8 text"),
            (b"a = 1\na = 2\n", "main.toml:2: is not valid TOML: Cannot overwrite a value"),
            (b"[a]\n[b]\n[a]\n", "main.toml:3: is not valid TOML: Cannot declare"),
            (b"a = {b = 1, b = 2}\n", "main.toml:1: is not valid TOML: Duplicate inline table key"),
            (b"a = \x00\n", "main.toml:1: is not valid TOML"),
            (b"a = '\x00'\n", "main.toml:1: is not valid TOML"),
            (b"a = '\x1b'\n", "main.toml:1: is not valid TOML"),
            (b"a = '\x7f'\n", "main.toml:1: is not valid TOML"),
            (b"# \x0c\n", "main.toml:1: is not valid TOML"),
            (b'a = "\\ud800"\n', "main.toml:1: is not valid TOML"),
            (b'a = "\\q"\n', "main.toml:1: is not valid TOML"),
            (b"a = 1\r", "main.toml:1: is not valid TOML"),
            (b"a = 2021-02-30\n", "main.toml:1: is not valid TOML: Invalid date"),
            (b"a\n", "main.toml:1: is not valid TOML"),
            (b"a = [\n1,\n", "main.toml:2: is not valid TOML"),
            (b"a = " + b"9" * 5000, "main.toml: is not valid TOML: Exceeds the limit"),
            (b"a = " + b"[" * 100_000, "main.toml: is nested too deeply"),
            (b"a = " + b"{a=" * 100_000, "main.toml: is nested too deeply"),
            (b"a" + b".a" * 100_000 + b"=1", "main.toml: is nested too deeply"),
        ],
        ids=range(22),
    )  # fmt: skip
    def test_are_refused_in_one_line(self, text: bytes, said: str) -> None:
        (found,) = faults(text)
        assert found.startswith(said), found

    def test_and_their_settings_are_none(self) -> None:
        for text in (b"\xff", b"a = ", b"runtime = 1", b"[runtime]\n"):
            assert load_settings(file("w", text)) is None


class TestSettingsAlone:
    def test_are_sound_though_a_client_is_not(self) -> None:
        text = client("nonsense = 1")
        settings = load_settings(file("w", text))
        assert settings is not None
        assert settings == loaded(RUNTIME).settings
        assert faults(text)


class TestCost:
    def test_of_one_client_among_many_faults(self) -> None:
        items = ", ".join(f'"relative-{number}"' for number in range(5000))
        started = time.monotonic()
        assert len(faults(client(f"paths = [{items}]"))) == 5000
        assert time.monotonic() - started < 5

    def test_of_many_sound_paths(self) -> None:
        items = ", ".join(f'"/path/{number}"' for number in range(50_000))
        started = time.monotonic()
        assert len(loaded(client(f"paths = [{items}]")).clients["luna"].paths) == 50_000
        assert time.monotonic() - started < 5

    def test_of_a_long_unknown_name(self) -> None:
        started = time.monotonic()
        (said,) = faults(client(f"{'x' * 1_000_000} = 1"))
        assert "is unknown" in said
        assert time.monotonic() - started < 5


def test_the_nearest_name() -> None:
    assert nearest_name("pahts", ("paths", "trees")) == "; did you mean paths?"
    assert nearest_name("zzz", ("paths", "trees")) == ""


class TestPublicKeys:
    """What a slip of a copy leaves is no key; sshd would say nothing, and let nobody in."""

    @pytest.mark.parametrize(
        "arguments",
        [("ed25519",), ("rsa",), ("ecdsa", "-b256"), ("ecdsa", "-b384"), ("ecdsa", "-b521")],
    )
    def test_whole_and_cut_anywhere(self, tmp_path: Path, arguments: tuple[str, ...]) -> None:
        path = tmp_path / "key"
        subprocess.run(["ssh-keygen", "-q", "-N", "", "-f", path, "-t", *arguments], check=True)
        line = path.with_suffix(".pub").read_text().strip()
        assert public_key_fault(line) is None
        kind, key = line.split(" ")[:2]
        sound = [end for end in range(len(key)) if public_key_fault(f"{kind} {key[:end]}") is None]
        assert sound == []
        assert public_key_fault(f"{kind} {key}AAAA") is not None

    def test_on_tokens(self) -> None:
        ed25519 = "sk-ssh-ed25519@openssh.com"
        ecdsa = "sk-ecdsa-sha2-nistp256@openssh.com"
        assert public_key_fault(key_of(ed25519, bytes(32), b"ssh:")) is None
        assert public_key_fault(key_of(ed25519, bytes(32))) is not None
        assert public_key_fault(key_of(ed25519, bytes(32), b"")) is not None
        point = b"\4" + bytes(64)
        assert public_key_fault(key_of(ecdsa, b"nistp256", point, b"ssh:")) is None
        assert public_key_fault(key_of(ecdsa, b"nistp256", point)) is not None

    @pytest.mark.parametrize(
        ("kind", "fields"),
        [
            ("ssh-ed25519", ()),
            ("ssh-ed25519", (bytes(31),)),
            ("ssh-ed25519", (bytes(33),)),
            ("ssh-ed25519", (bytes(32), b"")),
            ("ecdsa-sha2-nistp256", (b"nistp384", b"\4" + bytes(64))),
            ("ecdsa-sha2-nistp256", (b"nistp256", b"\2" + bytes(64))),
            ("ecdsa-sha2-nistp256", (b"nistp256", b"\2" + bytes(32))),
            ("ssh-rsa", (b"\1\0\1",)),
            ("ssh-rsa", (b"\1\0\1", b"")),
            ("ssh-rsa", (b"\1\0\1", b"\xff" * 256)),
            ("ssh-rsa", (b"\1\0\1", b"\x7f" * 127)),
            ("ssh-dss", (b"1", b"1", b"1", b"1")),
            ("ssh-new", (b"1",)),
        ],
    )
    def test_of_other_make(self, kind: str, fields: tuple[bytes, ...]) -> None:
        assert public_key_fault(key_of(kind, *fields)) is not None

    def test_rsa_of_enough_bits(self) -> None:
        assert public_key_fault(key_of("ssh-rsa", b"\1\0\1", b"\0" + b"\xff" * 128)) is None


def key_of(kind: str, *fields: bytes) -> str:
    parts = (kind.encode(), *fields)
    blob = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return f"{kind} {base64.b64encode(blob).decode()}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (RUNTIME, "/run/x"),
        (f"{RUNTIME}borgg = 1\n[client]\nx = 1\n[x]\n", "/run/x"),
        ('runtime = { socket_dir = "/a" }\n', "/a"),
        ('runtime = { socket_dir = "run" }\n', None),
        ('runtime = { socket_dir = "/a/../b" }\n', None),
        ("runtime = { socket_dir = 1 }\n", None),
        ("runtime = 1\n", None),
        ("", None),
        ("[", None),
        (b"\xff", None),
    ],
)
def test_socket_directory_of_what_is_wrong(text: str | bytes, expected: str | None) -> None:
    assert load_socket_dir(file("main.toml", text)) == expected
