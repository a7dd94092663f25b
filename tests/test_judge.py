"""Which requests which rules allow, and what exactly is then granted."""

from __future__ import annotations

import time
from typing import Any, ClassVar

import pytest

from borg_pull.schema import SourceFile
from borg_pull.source.judge import Allowed, Context, Grant, Refused, expand, judge
from borg_pull.source.request import parse
from borg_pull.source.whitelist import ClientRules, load
from tests.properties.checks import EVERY_FEATURE
from tests.properties.toml_text import toml_table

MOMENT = time.struct_time((2026, 11, 21, 9, 5, 8, 5, 325, 0))
UTC_MOMENT = time.struct_time((2026, 11, 21, 0, 17, 8, 5, 325, 0))
CONTEXT = Context(hostname="source-1", local_time=MOMENT, utc_time=UTC_MOMENT)
NONCE = "0123456789abcdef"


def rules(**keys: Any) -> ClientRules:
    text = '[runtime]\nsocket_dir = "/s"\nhome = "/h"\n' + toml_table("[client.luna]", keys)
    return load(SourceFile(name="w", content=text.encode()), {}).clients["luna"]


def judged(command: str, context: Context = CONTEXT, **keys: Any) -> Allowed | Refused:
    return judge(parse(command.encode()), "luna", rules(**keys), EVERY_FEATURE, context)


def allowed(command: str, **keys: Any) -> Allowed:
    verdict = judged(command, **keys)
    assert isinstance(verdict, Allowed), verdict
    return verdict


def refused(command: str, **keys: Any) -> Refused:
    verdict = judged(command, **keys)
    assert isinstance(verdict, Refused), verdict
    return verdict


def allows(command: str, **keys: Any) -> bool:
    return isinstance(judged(command, **keys), Allowed)


class TestVerbs:
    def test_create_alone_by_default(self) -> None:
        assert allowed("create /r a /home", paths=["/home"]).rule == "allow[0]"
        for command in ("list /r", "info /r", "check /r", "prune /r", "init /r"):
            said = refused(command)
            assert said.rule == "allow"
            assert said.reason == f"verb {command.split()[0]} is not allowed to client luna"
            assert said.hint == "allowed are create, hello"

    def test_the_rule_that_allows_is_named(self) -> None:
        assert allowed("list /r", allow=["create", "list"]).rule == "allow[1]"

    def test_none(self) -> None:
        assert refused("create /r a /home", paths=["/home"], allow=[]).hint == "allowed are hello"


class TestPaths:
    def test_are_compared_verbatim(self) -> None:
        table = {"paths": ["/", "/home", "/var/www/"]}
        for path, rule in (("/", 0), ("/home", 1), ("/var/www/", 2)):
            found = allowed(f"create /r a {path}", **table)
            assert found.grants == (Grant(path=path, rule=f"paths[{rule}]"),)
        for path in ("/home/a", "/homes", "/hom", "/HOME", "/var"):
            said = refused(f"create /r a {path}", **table)
            assert (said.rule, said.hint) == (
                "paths, trees",
                "paths are compared verbatim: allowed are '/', '/home', '/var/www/'",
            )
        for path, listed in (("/home/", "/home"), ("/var/www", "/var/www/")):
            said = refused(f"create /r a {path}", **table)
            assert said.hint == f"paths are compared verbatim: '{listed}' is"

    def test_what_is_allowed_is_named_but_not_without_end(self) -> None:
        some = {"paths": ["/etc"], "trees": ["/srv"]}
        assert refused("create /r a /x", **some).hint == (
            "paths are compared verbatim: allowed are '/etc', all below '/srv'"
        )
        assert refused("create /r a /x", paths=[]).hint == (
            "paths are compared verbatim: allowed are none"
        )
        many = refused("create /r a /x", paths=[f"/p{number}" for number in range(50)]).hint
        assert many is not None
        assert many.endswith("'/p7', 42 more")

    def test_look_alikes_are_other_paths(self) -> None:
        table = {"paths": ["/caf\u00e9"]}
        assert allows("create /r a /caf\u00e9", **table)
        for path in ("/cafe\u0301", "/cafe", "/caf\u00e9\u200b", "/caf\uff45"):
            assert not allows(f"create /r a {path}", **table)

    def test_trees_grant_what_is_below_and_nothing_beside(self) -> None:
        table = {"trees": ["/srv/data", "/home"]}
        for path, rule in (
            ("/srv/data", 0),
            ("/srv/data/", 0),
            ("/srv/data/x/y", 0),
            ("/home/a b", 1),
            ("/home/..a", 1),
        ):
            assert allowed(f"create /r a '{path}'", **table).grants[0].rule == f"trees[{rule}]"
        for path in ("/srv", "/", "/srv/data2", "/srv/dat", "/homes", "/srv/DATA/x"):
            assert refused(f"create /r a {path}", **table).rule == "paths, trees"

    def test_the_tree_of_all(self) -> None:
        for path in ("/", "/home", "/home/", "/a/b/c"):
            assert allowed(f"create /r a {path}", trees=["/"]).grants[0].path == path

    def test_all_must_be_granted(self) -> None:
        table = {"paths": ["/home"], "trees": ["/srv"]}
        assert [grant.rule for grant in allowed("create /r a /home /srv/x", **table).grants] == [
            "paths[0]",
            "trees[0]",
        ]
        assert "'/etc'" in refused("create /r a /home /etc /srv/x", **table).reason

    def test_none(self) -> None:
        assert refused("create /r a /home").rule == "paths, trees"


class TestRepositories:
    def test_any_unless_some_are_named(self) -> None:
        assert allows("create /anything a /home", paths=["/home"])
        assert refused("list /other", allow=["list"], repositories=["/r"]).rule == "repositories"

    def test_a_trailing_slash_means_the_same(self) -> None:
        for named in ("/r", "/r/"):
            for asked in ("/r", "/r/"):
                found = allowed(f"list {asked}", allow=["list"], repositories=[named])
                assert found.repository == asked
        for other in ("/r2", "/r/x", "/R", "/"):
            if other != "/":
                assert not allows(f"list {other}", allow=["list"], repositories=["/r"])

    def test_hold_for_every_verb(self) -> None:
        verbs = ["create", "init", "list", "info", "check", "prune", "restore"]
        table: dict[str, Any] = {"allow": verbs, "repositories": ["/r"], "restore_to": "/s"}
        table |= {"encryption": ["none"], "paths": ["/h"]}
        tails = {"create": "a /h", "init": "-e none", "prune": "-a x --keep-last 1"}
        tails |= {"restore": "a /h"}
        for verb in verbs:
            assert allowed(f"{verb} /r {tails.get(verb, '')}", **table).verb == verb
            assert refused(f"{verb} /q {tails.get(verb, '')}", **table).rule == "repositories"


class TestRestore:
    TABLE: ClassVar[dict[str, Any]] = {"allow": ["restore"], "restore_to": "/s"}

    def test_grants_nothing_of_the_source(self) -> None:
        found = allowed("restore /r a /etc '/home/a b/'", **self.TABLE)
        assert (found.grants, found.staging) == ((), "/s")
        assert found.members == ("pp:etc", "pp:home/a b")

    def test_the_root_is_all(self) -> None:
        assert allowed("restore /r a /etc /", **self.TABLE).members == ()

    def test_needs_the_verb_and_the_directory(self) -> None:
        assert refused("restore /r a /etc", allow=["restore"]).rule == "restore_to"
        assert refused("restore /r a /etc", restore_to="/s").rule == "allow"

    def test_no_other_verb_has_them(self) -> None:
        found = allowed("create /r a /h", paths=["/h"], restore_to="/s")
        assert (found.members, found.staging) == ((), None)


class TestFlags:
    def test_all_but_exclude_by_default(self) -> None:
        words = "-C lz4 -p -x --comment=c --json --log-json --stats --dry-run"
        assert allows(f"create {words} /r a /h", paths=["/h"])
        said = refused("create --exclude=x /r a /h", paths=["/h"])
        assert (said.rule, said.reason) == ("flags", "flag --exclude is not allowed to client luna")
        assert allows("create --exclude=x /r a /h", paths=["/h"], flags=["exclude"])

    def test_a_list_is_exact(self) -> None:
        table = {"paths": ["/h"], "flags": ["progress"]}
        assert allows("create -p /r a /h", **table)
        for word in ("-x", "-C lz4", "--json", "--stats", "--comment=c", "--dry-run"):
            assert refused(f"create {word} /r a /h", **table).rule == "flags"

    def test_a_socket_of_its_own_is_always_allowed(self) -> None:
        found = allowed(f"create --socket={NONCE} /r a /h", paths=["/h"], flags=[])
        assert found.nonce == NONCE
        assert not any("socket" in option for option in found.options)

    def test_required_ones(self) -> None:
        table = {"paths": ["/h"], "required_flags": ["compression", "one-file-system"]}
        assert allows("create -C lz4 -x /r a /h", **table)
        said = refused("create -x /r a /h", **table)
        assert (said.rule, said.reason) == (
            "required_flags",
            "flag --compression is required of client luna",
        )

    def test_are_rules_for_create_alone(self) -> None:
        table = {"allow": ["list"], "flags": ["progress"], "required_flags": ["progress"]}
        assert allows("list --json /r", **table)


class TestCompressions:
    @pytest.mark.parametrize(
        ("asked", "named", "fits"),
        [
            ("zstd", ["zstd"], True),
            ("zstd,3", ["zstd"], True),
            ("zstd,3", ["zstd,3"], True),
            ("zstd,4", ["zstd,3"], False),
            ("zstd", ["zstd,3"], False),
            ("lz4", ["zstd"], False),
            ("auto,zstd", ["zstd"], False),
            ("obfuscate,1,zstd", ["zstd"], False),
            ("auto,zstd,3", ["auto,zstd,3"], True),
            ("zlib,9", ["lz4", "zlib"], True),
            ("lzma,9", [], True),
        ],
    )
    def test_named_ones(self, asked: str, named: list[str], fits: bool) -> None:
        verdict = judged(f"create -C {asked} /r a /h", paths=["/h"], compressions=named)
        assert isinstance(verdict, Allowed) is fits
        if isinstance(verdict, Refused):
            assert verdict.rule == "compressions"

    def test_none_asked_for(self) -> None:
        assert allowed("create /r a /h", paths=["/h"], compressions=["zstd"]).options == ()


class TestOtherVerbs:
    def test_init_needs_an_allowed_mode(self) -> None:
        table = {"allow": ["init"], "encryption": ["repokey", "keyfile"]}
        assert allowed("init -e keyfile /r", **table).options == ("--encryption=keyfile",)
        assert refused("init -e none /r", **table).rule == "encryption"
        said = refused("init /r", **table)
        assert (said.rule, said.reason) == ("encryption", "init needs --encryption")

    def test_prune_needs_a_filter_and_something_to_keep(self) -> None:
        table = {"allow": ["prune"]}
        assert allows("prune -a 'web-*' --keep-daily 7 /r", **table)
        assert allows("prune -a 'web-*' --keep-within 7d /r", **table)
        assert "needs --glob-archives" in refused("prune --keep-daily 7 /r", **table).reason
        assert "needs at least one --keep" in refused("prune -a x /r", **table).reason
        assert "needs at least one --keep" in refused("prune -a x -n --list /r", **table).reason

    def test_check_takes_what_fits_together(self) -> None:
        table = {"allow": ["check"]}
        assert allows("check /r", **table)
        assert allows("check --archives-only --verify-data /r", **table)
        assert allows("check --repository-only --max-duration=60 /r", **table)
        for words in (
            "--repository-only --archives-only",
            "--repository-only --verify-data",
            "--max-duration=60",
            "--archives-only --max-duration=60",
        ):
            assert refused(f"check {words} /r", **table).rule == "check"

    def test_list_takes_the_first_or_the_last(self) -> None:
        table = {"allow": ["list"]}
        assert allows("list --first 3 /r", **table)
        assert allows("list --last 3 /r", **table)
        assert refused("list --first 3 --last 3 /r", **table).rule == "list"

    def test_queries_answer_in_json_asked_or_not(self) -> None:
        table = {"allow": ["list", "info"]}
        assert allowed("list /r", **table).options == ("--json",)
        assert allowed("list --json /r", **table).options == ("--json",)
        assert allowed("info --log-json /r a", **table).options == ("--log-json", "--json")


class TestOptions:
    def test_are_joined_in_order_and_forced_ones_come_last(self) -> None:
        found = allowed(
            "create -e '*.o' -p /r a /h --comment 'a b' -C zstd,3",
            paths=["/h"],
            flags=["exclude", "progress", "comment", "compression"],
            excludes=["sh:**/cache", "*.tmp"],
        )
        assert found.options == (
            "--exclude=*.o",
            "--progress",
            "--comment=a b",
            "--compression=zstd,3",
            "--exclude=sh:**/cache",
            "--exclude=*.tmp",
        )

    def test_forced_excludes_are_for_create(self) -> None:
        assert allowed("list /r", allow=["list"], excludes=["x"]).options == ("--json",)

    def test_output_forms_are_told(self) -> None:
        found = allowed("create --json --log-json /r a /h", paths=["/h"])
        assert (found.json, found.log_json) == (True, True)
        found = allowed("create /r a /h", paths=["/h"])
        assert (found.json, found.log_json) == (False, False)

    def test_the_socket_is_the_clients(self) -> None:
        assert allowed("create /r a /h", paths=["/h"]).nonce is None


class TestArchiveNames:
    @pytest.mark.parametrize(
        ("name", "expanded"),
        [
            ("a", "a"),
            ("{now}", "2026-11-21T09:05:08"),
            ("{utcnow}", "2026-11-21T00:17:08"),
            ("x-{hostname}-{now:%Y-%m-%d}-y", "x-source-1-2026-11-21-y"),
            ("{utcnow:%H:%M}", "00:17"),
            ("{now:%%Y}", "%Y"),
            ("{utcnow:%Z %%Z}", "UTC %Z"),
            ("%Y", "%Y"),
        ],
    )
    def test_are_expanded(self, name: str, expanded: str) -> None:
        assert expand(name, CONTEXT) == expanded
        assert allowed(f"create /r '{name}' /h", paths=["/h"]).archive == expanded

    @pytest.mark.parametrize(
        "name",
        ["x.{now:checkpoint}", "a.check{now:point}", "a{now:.}checkpoint", "a:{now::}", "{now:::}",
         "{now: }", "a{now: }", "{now: %Y}", "{now:%B%B%B%B%B%B}" * 8],
    )  # fmt: skip
    def test_are_judged_again_when_expanded(self, name: str) -> None:
        said = refused(f"create /r '{name}' /h", paths=["/h"])
        assert said.rule == "request"
        assert "archive name" in said.reason

    @pytest.mark.parametrize("hostname", ["a/b", "a{b", "a::b", "a.checkpoint", "", " "])
    def test_a_hostname_can_spoil_one(self, hostname: str) -> None:
        context = Context(hostname=hostname, local_time=MOMENT, utc_time=UTC_MOMENT)
        verdict = judged("create /r '{hostname}' /h", context, paths=["/h"])
        assert isinstance(verdict, Refused)

    def test_hold_for_info_too(self) -> None:
        assert allowed("info /r '{now:%Y}'", allow=["info"]).archive == "2026"
        assert allowed("info /r", allow=["info"]).archive is None


def test_a_verdict_does_not_change() -> None:
    verdict = allowed("create /r a /h", paths=["/h"])
    with pytest.raises(AttributeError, match="read-only"):
        verdict.repository = "/other"  # type: ignore[misc]
    assert isinstance(verdict.grants, tuple)
    assert isinstance(verdict.options, tuple)
