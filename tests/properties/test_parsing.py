"""The request parser: its own error or a request, whatever the bytes."""

from __future__ import annotations

import shlex

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from borg_pull.errors import RequestError
from borg_pull.source.request import split

from . import restatement, strategies
from .checks import parsed
from .words import QUOTINGS


def accepted(command: bytes) -> bool:
    """Whether ``command`` parses, either way checked."""
    return parsed(command) is not None


@given(st.binary(max_size=200))
def test_any_bytes(command: bytes) -> None:
    accepted(command)


@given(st.text(max_size=100), st.sampled_from(("", "create /r a ", "prune -a x ", "-C ")))
def test_any_text(text: str, start: str) -> None:
    accepted((start + text).encode("utf-8", "surrogatepass"))


@settings(max_examples=700, deadline=None)
@given(strategies.requests())
@example(b"create --exclude=\xc2\xb2\xc2\xb2:x /r a /a")
@example(b"create /r: a /a")
@example(b"prune /r -a x* --keep-within=1M")
@example(b"create -C obfuscate,77,lz4 /r a /a")
@example(b"create /r a /home/\xff")
def test_requests_that_are_nearly_right(command: bytes) -> None:
    accepted(command)


@settings(max_examples=400)
@given(st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=40))
@example("a' 'b\" \"c\\ d")
@example("''")
@example('"a\\b\\"c\\\\"')
@example("#a b")
def test_words_are_split_as_the_standard_library_splits_them(text: str) -> None:
    # Inside double quotes shlex unescapes only the quote and the backslash, POSIX $ and ` as well.
    assume("\\$" not in text and "\\`" not in text)
    try:
        expected = shlex.split(text, comments=False, posix=True)
    except ValueError:
        expected = None
    try:
        found: list[str] | None = split(text)
    except RequestError:
        found = None
    assert found == expected


@settings(max_examples=400)
@given(st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=40))
@example('"\\$HOME" "\\`id\\`"')
def test_words_are_split_as_a_regular_expression_splits_them(text: str) -> None:
    try:
        found = split(text)
    except RequestError:
        return
    assert found == restatement.words(text)


@given(
    st.lists(st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=20), max_size=6),
    st.data(),
)
def test_a_quoted_word_comes_back_as_it_was(words: list[str], data: st.DataObject) -> None:
    quoted = " ".join(data.draw(st.sampled_from(QUOTINGS[:3]))(word) for word in words)
    assert split(quoted) == words


def test_the_strategy_reaches_both_answers() -> None:
    """Otherwise the properties above would hold of nothing."""
    seen: set[bool] = set()

    @given(strategies.requests())
    def collect(command: bytes) -> None:
        seen.add(accepted(command))

    collect()
    assert seen == {True, False}
