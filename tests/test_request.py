"""The grammar of requests, rule by rule."""

from __future__ import annotations

import pytest

from borg_pull.errors import RequestError
from borg_pull.source.request import MAX_COMMENT, MAX_REQUEST, VERBS, Request, parse, split
from borg_pull.values import (
    MAX_ARCHIVE_NAME,
    MAX_PATHS,
    archive_fault,
    archive_parts,
    compression_fault,
    exclude_fault,
    path_fault,
    quoted,
    repository_fault,
)

NONCE = "0123456789abcdef"


def refusal(command: bytes | str | None) -> str:
    encoded = command.encode() if isinstance(command, str) else command
    with pytest.raises(RequestError) as caught:
        parse(encoded)
    assert caught.value.exit_code == 64
    return caught.value.line()


def options(command: str) -> tuple[tuple[str, str | None], ...]:
    return parse(command.encode()).options


class TestForms:
    """The forms of the original tool, and the ones this one adds."""

    @pytest.mark.parametrize(
        "command",
        [
            "-C zstd,3 -p -x create /srv/repo web-1 /home",
            "-- -C zstd,3 -p -x create /srv/repo web-1 /home",
            "create -C zstd,3 -p -x /srv/repo web-1 /home",
            "create /srv/repo web-1 /home -C zstd,3 -p -x",
            "-C zstd,3 create -p /srv/repo -x web-1 /home",
            "-C zstd,3 -p -x create -- /srv/repo web-1 /home",
            "--compression zstd,3 --progress --one-file-system create /srv/repo web-1 /home",
            "--compression=zstd,3 --progress --one-file-system create /srv/repo web-1 /home",
            "  -C   'zstd,3' \"-p\" \\-x  cre'ate' /srv/repo web-1 /home  ",
        ],
    )
    def test_all_mean_the_same(self, command: str) -> None:
        assert parse(command.encode()) == Request(
            verb="create",
            repository="/srv/repo",
            archive="web-1",
            paths=("/home",),
            options=(("compression", "zstd,3"), ("progress", None), ("one-file-system", None)),
            name=None,
        )

    def test_several_paths_in_the_order_given(self) -> None:
        request = parse("create /r a /var/www '/home/a b' / /ü".encode())
        assert request.paths == ("/var/www", "/home/a b", "/", "/ü")

    def test_after_two_dashes_only_operands(self) -> None:
        request = parse(b"create -- /r -a /home")
        assert (request.archive, request.options) == ("-a", ())
        assert "is not absolute" in refusal("create /r a -- -p")
        # A second pair is an operand like any other.
        assert "path '--' is not absolute" in refusal("create -- /r a --")

    @pytest.mark.parametrize(
        ("command", "spaces"),
        [
            ("create /r a srv", False),
            ("create /r a ~", False),
            ("create /r a /srv ~/x", False),
            ("create r a /srv", False),
            ("list ~/r", False),
            ("create /r a /srv/my www", True),
            ("create /r my archive /srv", True),
        ],
    )
    def test_what_to_do_about_a_relative_one(self, command: str, *, spaces: bool) -> None:
        said = refusal(command)
        assert " is not absolute; give an absolute path" in said
        assert ("ssh joins words with spaces" in said) == spaces

    def test_two_dashes_before_the_verb_once(self) -> None:
        assert parse(b"-- hello").verb == "hello"
        assert "unknown option '--'" in refusal("-- -- hello")
        assert "unknown option '--'" in refusal("-p -- create /r a /home")

    def test_hello_alone(self) -> None:
        assert parse(b"hello") == Request(
            verb="hello", repository=None, archive=None, paths=(), options=(), name=None
        )

    def test_info_with_and_without_an_archive(self) -> None:
        assert parse(b"info /r").archive is None
        assert parse(b"info /r web-1").archive == "web-1"

    def test_exclude_repeats_and_keeps_its_order(self) -> None:
        found = options("create -e *.o --exclude=sh:**/x --exclude pp:/a /r a /home")
        assert found == (("exclude", "*.o"), ("exclude", "sh:**/x"), ("exclude", "pp:/a"))

    def test_values_and_switches_can_be_asked_for(self) -> None:
        request = parse(b"create -C lz4 -p /r a /home")
        assert request.value("compression") == "lz4"
        assert request.value("comment") is None
        assert request.has("progress")
        assert not request.has("stats")


class TestNoRequest:
    def test_none(self) -> None:
        assert refusal(None) == "no request was sent; this account runs backups and offers no shell"

    @pytest.mark.parametrize("command", ["", " ", "--", "-p", "-C lz4"])
    def test_without_a_verb(self, command: str) -> None:
        assert "the request names no verb; hello tells yours" in refusal(command)

    @pytest.mark.parametrize("verb", ["serve", "delete", "Create", "creat", "create\u200b", "''"])
    def test_with_another_verb(self, verb: str) -> None:
        assert "unknown verb" in refusal(f"{verb} /r a /home")


class TestCounts:
    @pytest.mark.parametrize(
        ("command", "usage"),
        [
            ("create /r a", "create REPO_PATH ARCHIVE_NAME SOURCE_PATH..."),
            ("create", "create REPO_PATH ARCHIVE_NAME SOURCE_PATH..."),
            ("init", "init REPO_PATH"),
            ("init /r a", "init REPO_PATH"),
            ("list /r a", "list REPO_PATH"),
            ("info", "info REPO_PATH [ARCHIVE_NAME]"),
            ("info /r a b", "info REPO_PATH [ARCHIVE_NAME]"),
            ("check /r a", "check REPO_PATH"),
            ("prune", "prune REPO_PATH"),
            ("hello /r", "hello"),
        ],
    )
    def test_operands(self, command: str, usage: str) -> None:
        assert refusal(command).endswith(f"usage: {usage}")

    def test_a_path_twice(self) -> None:
        assert "a path is given twice" in refusal("create /r a /home /var /home")

    @pytest.mark.parametrize(
        ("verb", "word"),
        [
            (verb.name, f"--{option.name}" if option.check is None else f"--{option.name}=1H")
            for verb in VERBS.values()
            for option in verb.options
            if not option.repeats
        ],
    )
    def test_every_option_but_exclude_once(self, verb: str, word: str) -> None:
        said = refusal(f"{verb} {word} {word} /r a /home")
        assert "is given twice" in said or ": '1H'" in said
        if "=" not in word:
            assert "is given twice" in said

    def test_two_spellings_are_one_option(self) -> None:
        assert "--progress is given twice" in refusal("create -p --progress /r a /home")
        assert "--compression is given twice" in refusal("-C lz4 create /r a /h --compression=lz4")


class TestOptions:
    @pytest.mark.parametrize("word", ["--comp=lz4", "--prog", "--log", "--excl=x", "--one-file"])
    def test_are_never_shortened(self, word: str) -> None:
        assert "options are written in full" in refusal(f"create {word} /r a /home")

    @pytest.mark.parametrize(
        "word", ["-pC", "-px", "-Clz4", "-C=lz4", "-", "---", "--=", "--", "-p1"]
    )
    def test_are_never_joined(self, word: str) -> None:
        command = f"{word} create /r a /home"
        if word == "--":
            command = f"-p {command}"
        assert "unknown option" in refusal(command)

    @pytest.mark.parametrize("word", ["--progress=", "--progress=1", "--json=true"])
    def test_switches_take_no_value(self, word: str) -> None:
        assert "takes no value" in refusal(f"create {word} /r a /home")

    @pytest.mark.parametrize(
        "words", ["-C", "--compression=", "-C -p", "-C ''", "--comment --rsh=x"]
    )
    def test_values_must_be_there_and_be_no_option(self, words: str) -> None:
        assert "needs a value" in refusal(f"create /r a /home {words}")

    def test_a_value_with_a_dash_is_refused_even_when_joined(self) -> None:
        assert "needs a value" in refusal("create --comment=-x /r a /home")
        assert options("create --comment=a-x /r a /home") == (("comment", "a-x"),)

    @pytest.mark.parametrize(
        "command",
        [
            "list -C lz4 /r",
            "list --exclude=x /r",
            "hello --json",
            "info -a x /r",
            "check --repair /r",
            "create --encryption=none /r a /home",
            "create --keep-daily=1 /r a /home",
            "init -p /r",
        ],
    )
    def test_belong_to_their_verb(self, command: str) -> None:
        assert "option" in refusal(command)

    @pytest.mark.parametrize(
        "name",
        ["rsh", "remote-path", "patterns-from", "pattern", "paths-from-stdin", "stdin-name",
         "paths-from-command", "content-from-command", "read-special", "files-cache", "umask",
         "debug-profile", "repair", "append-only", "bypass-lock", "exclude-from", "timestamp"],
    )  # fmt: skip
    def test_of_borgs_that_could_do_harm_are_unknown(self, name: str) -> None:
        for word in (f"--{name}", f"--{name}=x", f"--{name} x"):
            assert f"unknown option '--{name}'" in refusal(f"create {word} /r a /home")

    def test_e_is_exclude_or_encryption_by_the_verb(self) -> None:
        assert options("init -e repokey /r") == (("encryption", "repokey"),)
        assert options("-e repokey init /r") == (("encryption", "repokey"),)
        assert options("-e repokey create /r a /home") == (("exclude", "repokey"),)


class TestNumbers:
    @pytest.mark.parametrize("text", ["1", "0000001", "1000000"])
    def test_counts(self, text: str) -> None:
        assert options(f"prune --keep-daily={text} /r") == (("keep-daily", text),)

    @pytest.mark.parametrize(
        "text",
        ["0", "1000001", "00000001", "²", "٣", "７", "1_0", "+1", "'1 '", "1e3", "0x1", "1.0"],
    )
    def test_what_is_no_count(self, text: str) -> None:
        assert "is not a number from 1 to 1000000" in refusal(f"prune --keep-daily={text} /r")
        assert "is not a number from 1 to 1000000" in refusal(f"list --first {text} /r")

    @pytest.mark.parametrize("text", ["1H", "2d", "3w", "4m", "5y", "100000y"])
    def test_intervals(self, text: str) -> None:
        assert options(f"prune --keep-within={text} /r") == (("keep-within", text),)

    @pytest.mark.parametrize(
        "text", ["1", "H", "0d", "1h", "1M", "1S", "1D", "1dd", "²d", "100001y", "1_0d", "'1 d'"]
    )
    def test_what_is_no_interval(self, text: str) -> None:
        assert "is not a number with H, d, w, m or y behind it" in refusal(
            f"prune --keep-within={text} /r"
        )


class TestNonce:
    @pytest.mark.parametrize("text", ["a" * 16, "Z9" * 32, NONCE])
    def test_letters_and_digits(self, text: str) -> None:
        assert options(f"list --socket={text} /r") == (("socket", text),)

    @pytest.mark.parametrize(
        "text", ["a" * 15, "a" * 65, "../" * 6, "a" * 15 + ".", "é" * 16, "²" * 16, "Ａ" * 16]
    )
    def test_nothing_else(self, text: str) -> None:
        assert "is not 16 to 64 letters and digits" in refusal(f"list --socket={text} /r")


class TestLimits:
    def test_of_the_request(self) -> None:
        paths = b" /" + b"a" * 200
        command = b"create /r a" + b"".join(paths + b"%d" % n for n in range(400))
        assert len(command) > MAX_REQUEST
        with pytest.raises(RequestError, match=r"the request has \d+ bytes"):
            parse(command)
        fitting = command[:MAX_REQUEST].rpartition(b" ")[0]
        assert len(parse(fitting).paths) > 300

    def test_of_the_number_of_paths(self) -> None:
        """With more, no descriptor was left to record the refusal with."""
        paths = [f"/{number}" for number in range(MAX_PATHS + 1)]
        assert len(parse(f"create /r a {' '.join(paths[1:])}".encode()).paths) == MAX_PATHS
        assert "501 paths are given; the limit is 500" in refusal(f"create /r a {' '.join(paths)}")

    def test_of_ten_mebibytes(self) -> None:
        assert "the request has 10485760 bytes" in refusal(b"x" * 10 * 1024 * 1024)

    def test_of_the_archive_name(self) -> None:
        assert archive_fault("a" * MAX_ARCHIVE_NAME) is None
        assert archive_fault("a" * (MAX_ARCHIVE_NAME + 1)) == "is longer than 200 characters"

    def test_of_the_comment(self) -> None:
        assert options(f"create --comment={'c' * MAX_COMMENT} /r a /home")
        assert "is longer than 1024" in refusal(
            f"create --comment={'c' * (MAX_COMMENT + 1)} /r a /home"
        )

    def test_of_a_path(self) -> None:
        assert path_fault("/" + "n" * 255) is None
        assert path_fault("/" + "é" * 127) is None
        assert path_fault("/" + "n" * 256) == "has a component longer than 255 bytes"
        assert path_fault("/" + "é" * 128) == "has a component longer than 255 bytes"
        assert path_fault("/" + "n/" * 2047) is None
        assert path_fault("/" + "n/" * 2047 + "n") == "is longer than 4095 bytes"


class TestMessages:
    def test_show_what_they_quote_in_one_harmless_line(self) -> None:
        line = refusal("create /r a /home/../\u202e\u2028é")
        assert line.isascii()
        assert "\\u202e\\u2028\\xe9" in line

    def test_are_cut(self) -> None:
        assert len(refusal(b"create /r a " + b"x" * 60_000)) < 400
        assert quoted("x" * 1000).endswith("... (1000 characters)")
        assert quoted("short") == "'short'"


class TestControlCharacters:
    @pytest.mark.parametrize("code", [*range(32), 127, *range(128, 160)])
    def test_are_refused_wherever_they_stand(self, code: int) -> None:
        character = chr(code).encode()
        for command in (b"%chello", b"hello%c", b"create /r a '/home%cx'"):
            said = refusal(command.replace(b"%c", character))
            assert "control character" in said
            assert said.isprintable()

    def test_bytes_that_only_look_like_them_are_not_text(self) -> None:
        # 0x9b alone is no UTF-8, and no terminal that speaks it acts on it.
        assert "not UTF-8" in refusal(b"create /r a /home/\x9b")


class TestWords:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", []),
            ("   ", []),
            ("a b", ["a", "b"]),
            ("'a b' \"c d\" e\\ f", ["a b", "c d", "e f"]),
            ("''", [""]),
            ("a''b", ["ab"]),
            ("'it'\\''s'", ["it's"]),
            ('"\\$HOME \\`id\\` \\"q\\" \\\\"', ['$HOME `id` "q" \\']),
            ('"\\a"', ["\\a"]),
            ("'\\'", ["\\"]),
            ("$HOME `id` $(id) ~ * ? # a;b|c&d>e<f", [
                "$HOME", "`id`", "$(id)", "~", "*", "?", "#", "a;b|c&d>e<f"]),
            ("\u00a0a\u3000b", ["\u00a0a\u3000b"]),
        ],
    )  # fmt: skip
    def test_are_split_and_never_expanded(self, text: str, words: list[str]) -> None:
        assert split(text) == words

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("'a", "a ' is not closed"),
            ('"a', 'a " is not closed'),
            ('"a\\"', 'a " is not closed'),
            ("a\\", "the request ends in a backslash"),
        ],
    )
    def test_must_be_finished(self, text: str, said: str) -> None:
        with pytest.raises(RequestError) as caught:
            split(text)
        assert caught.value.message == said


class TestPaths:
    @pytest.mark.parametrize(
        "path",
        ["/", "/home", "/home/", "/a b", "/é", "/e\u0301", "/..a", "/a..", "/...", "/-", "/--rsh=x",
         "/*", "/{now}", "/a::b", "/\u202e"],
    )  # fmt: skip
    def test_plain_ones(self, path: str) -> None:
        assert path_fault(path) is None

    @pytest.mark.parametrize(
        ("path", "fault"),
        [
            ("", "is not absolute"),
            ("home", "is not absolute"),
            ("-", "is not absolute"),
            ("./home", "is not absolute"),
            ("~", "is not absolute"),
            ("//", "has an empty component"),
            ("//home", "has an empty component"),
            ("/home//", "has an empty component"),
            ("/home//a", "has an empty component"),
            ("/.", "has a component ."),
            ("/./home", "has a component ."),
            ("/etc/./hostname", "has a component ."),
            ("/home/.", "has a component ."),
            ("/home/./", "has a component ."),
            ("/..", "has a component .."),
            ("/home/../etc", "has a component .."),
            ("/home/..", "has a component .."),
            ("/home/../", "has a component .."),
            ("/a\x00", "has a control character"),
            ("/a\n", "has a control character"),
            ("/a\x9b", "has a control character"),
        ],
    )
    def test_others(self, path: str, fault: str) -> None:
        assert path_fault(path) == fault

    @pytest.mark.parametrize("path", ["/\udcff", "/a/\udc80b"])
    def test_not_text(self, path: str) -> None:
        assert str(path_fault(path)).startswith("has bytes that are not UTF-8")


class TestRepositories:
    @pytest.mark.parametrize(
        "path", ["/r", "/r/", "/a b/c", "/é", "/a:b", "/~/x", "/@x", "/r#?%41", "/[x]"]
    )
    def test_plain_ones(self, path: str) -> None:
        assert repository_fault(path) is None

    @pytest.mark.parametrize(
        "path", ["/", "/r{now}", "/r}", "/a::b", "/::", "/a:", "/:", "/\u202e", "/a\u2028", "r",
                 "ssh://x/r", "/r/../x", "/\udcff", "", "-r", "host:/r"]
    )  # fmt: skip
    def test_others(self, path: str) -> None:
        assert repository_fault(path) is not None


class TestArchiveNames:
    @pytest.mark.parametrize(
        "name",
        ["a", "web-1", "2026-11-21T00:17:08", "a b", "é", "a:b", ":a", "a:", "-a", "~", "*", "%Y",
         "{now}", "{utcnow}", "{hostname}", "x-{hostname}-{now:%Y-%m-%dT%H:%M:%S}-{utcnow:%s}",
         "{now:%%}", "{now:T}", "a.check", "checkpoint"],
    )  # fmt: skip
    def test_plain_ones(self, name: str) -> None:
        assert archive_fault(name) is None

    @pytest.mark.parametrize(
        "name",
        ["", " a", "a ", "a/b", "a\\b", "a::b", "::", "a.checkpoint", "a.checkpoint.1",
         ".checkpointx", "a\u2028", "\u202ea", "a\u00a0", "a\udcff", "\u200b", "{", "}", "{now",
         "now}", "{{now}}", "{}", "{pid}", "{user}", "{fqdn}", "{uuid4}", "{NOW}", "{ now}",
         "{now }", "{now!r}", "{now!s}", "{now.year}", "{now[0]}", "{0}", "{hostname:x}",
         "{hostname:}", "{now:}", "{now:%}", "{now:%f}", "{now:%D}", "{now:%c}", "{now:%x}",
         "{now:%n}", "{now:%t}", "{now:%-d}", "{now:%Ey}", "{now:%Od}", "{now:%10Y}",
         "{now:%é}", "{now:é}", "{now:²}", "{now:/}", "{now:{pid}}",
         "{now:{pid.__class__.__name__}}", "{pid:>3000000000}", "{now:%Y}{pid}", "{now:>30}",
         "{now:}}"],
    )  # fmt: skip
    def test_others(self, name: str) -> None:
        assert archive_fault(name) is not None

    def test_parts(self) -> None:
        assert list(archive_parts("a{now}b{x:y}")) == [("a", "now"), ("b", "x:y")]
        assert list(archive_parts("a")) == [("a", None)]
        assert list(archive_parts("{now}c")) == [("", "now"), ("c", None)]
        assert list(archive_parts("a{b")) == [("a{b", None)]
        assert list(archive_parts("")) == []


class TestValues:
    @pytest.mark.parametrize(
        "spec",
        ["none", "lz4", "zstd", "zstd,1", "zstd,22", "zlib,0", "zlib,9", "lzma,6", "auto,lz4",
         "auto,zstd,3", "obfuscate,1,none", "obfuscate,6,lz4", "obfuscate,110,auto,zstd,3",
         "obfuscate,123,lz4"],
    )  # fmt: skip
    def test_compressions(self, spec: str) -> None:
        assert compression_fault(spec) is None

    @pytest.mark.parametrize(
        "spec",
        ["", ",", "LZ4", "lz4,1", "none,0", "zstd,", "zstd,0", "zstd,23", "zstd,3,3", "zstd,²",
         "zstd,３", "zstd, 3", "zstd,+3", "zstd,1_0", "zlib,10", "lzma,10", "auto", "auto,",
         "auto,auto,lz4", "obfuscate", "obfuscate,1", "obfuscate,0,lz4", "obfuscate,7,lz4",
         "obfuscate,109,lz4", "obfuscate,124,lz4", "obfuscate,250,lz4", "obfuscate,lz4",
         "obfuscate,1,obfuscate,1,lz4", "auto,obfuscate,1,lz4", "brotli", "zstd,00000003"],
    )  # fmt: skip
    def test_other_compressions(self, spec: str) -> None:
        assert compression_fault(spec) is not None

    @pytest.mark.parametrize(
        "text",
        ["*.o", "/a/b", "fm:*", "sh:**/x", "pp:/a", "pf:/a", "é", "a:b", "abc:d", "{now}",
         "R /etc", "!x", ":x", "a b"],
    )  # fmt: skip
    def test_excludes(self, text: str) -> None:
        assert exclude_fault(text) is None

    @pytest.mark.parametrize(
        "text", ["", "re:.*", "r2:x", "²²:x", "ab:c", "éé:c", "fm:", "x\u2028", "\udcff"]
    )
    def test_other_excludes(self, text: str) -> None:
        assert exclude_fault(text) is not None

    @pytest.mark.parametrize("text", ["web-*", "w", "a[!b]*", "sh:*", "é*", "w?b"])
    def test_globs(self, text: str) -> None:
        assert options(f"prune -a '{text}' /r") == (("glob-archives", text),)

    @pytest.mark.parametrize("text", ["*", "?eb", "[a]*", "**/x", "w{now}", "w\u202e", "w" * 201])
    def test_other_globs(self, text: str) -> None:
        assert "--glob-archives" in refusal(f"prune -a '{text}' /r")

    @pytest.mark.parametrize("text", ["{now}", "a}", "\u2028", "\u00a0"])
    def test_other_comments(self, text: str) -> None:
        assert "--comment" in refusal(f"create --comment='{text}' /r a /home")
