"""The whitelist loader: WhitelistError or rules, whatever the documents."""

from __future__ import annotations

import re

import tomli
from hypothesis import example, given, settings
from hypothesis import strategies as st

from borg_pull.values import client_name_fault

from . import strategies
from .checks import check_rules, loaded
from .toml_text import toml_table

RUNTIME = '[runtime]\nsocket_dir = "/s"\nhome = "/h"\n'


@settings(max_examples=300)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes(content: bytes, after_sound: bool) -> None:
    loaded((RUNTIME.encode() if after_sound else b"") + content, {})


@given(st.text(max_size=80))
def test_any_text(text: str) -> None:
    loaded((RUNTIME + text).encode("utf-8", "surrogatepass"), {})


@settings(max_examples=400, deadline=None)
@given(strategies.documents(), st.sampled_from((None, "luna", "absent")))
@example(RUNTIME + '[client.luna]\npaths = ["/home/\\u0000"]\n', None)
@example(RUNTIME + "x" + ".a" * 5000 + " = 1", None)
@example(RUNTIME + "x = " + "[" * 5000, None)
@example(RUNTIME + "x = " + "{a=" * 5000, None)
@example(RUNTIME + "x = " + "9" * 5000, None)
@example("runtime = 1", None)
@example("[[runtime]]\n[[client]]\n", "luna")
@example("client = [1]\nclient.luna = 2", None)
def test_documents_that_are_nearly_right(text: str, only: str | None) -> None:
    whitelist = loaded(text.encode(), {}, only)
    if whitelist is not None and only is None:
        check_rules(whitelist, tomli.loads(text))


@settings(max_examples=200, deadline=None)
@given(strategies.client_tables(), st.text(max_size=20), st.sampled_from(("luna", "sol")))
def test_a_clients_own_file(table: dict[str, object], damage: str, name: str) -> None:
    content = toml_table("", table)
    whitelist = loaded(RUNTIME.encode(), {name: content.encode()})
    assert whitelist is not None
    same = loaded(RUNTIME.encode() + toml_table(f"[client.{name}]", table).encode(), {})
    assert same is not None
    assert whitelist.clients == same.clients
    loaded(RUNTIME.encode(), {name: (content + damage).encode("utf-8", "surrogatepass")})


@given(st.text(max_size=70))
@example("²")
@example("a\n")
@example("a" * 65)
@example("..")
@example("luna." + "a" * 15)
@example("luna." + "a" * 16)
@example("luna.b." + "a" * 16)
@example("luna." + "a" * 8 + "-" + "a" * 8)
@example("a" * 64)
def test_client_names(name: str) -> None:
    fits = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name)
    of_one_run = re.search(r"\.[A-Za-z0-9]{16,64}\Z", name)
    assert (client_name_fault(name) is None) is bool(fits and not of_one_run)


def test_the_strategy_reaches_both_answers() -> None:
    seen: set[bool] = set()

    @settings(max_examples=300, deadline=None)
    @given(strategies.documents())
    def collect(text: str) -> None:
        seen.add(loaded(text.encode(), {}) is not None)

    collect()
    assert seen == {True, False}
