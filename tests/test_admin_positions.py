"""Line numbers: found in any TOML, never by the shape of a line, never at the cost of a crash."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from borg_pull.positions import Positions

DOCUMENT = '''\
# [client.comment]
title = "[client.string]"

[runtime] # with a comment
socket_dir = "/run" # home = "/comment"
text = """
[client.in_a_string]
home = "/string" \\""" still
"""""
raw = \'\'\'
home = "/raw"\'\'\'
home = '/home'

[client]
luna.paths = [ # comment ]
    "/a", "/b",

    # "/comment",
    ["/c",
     "/d"],
    { x = 1,  y = 2 },
]
[client."web1.example.org"]
"trees" = []
[client.\'q\']
[[array]]
x = 1.5e3
[ client . spaced ]
y = 1979-05-27 07:32:00
'''


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("title", 2),
        ("runtime", 4),
        ("runtime.socket_dir", 5),
        ("runtime.text", 6),
        ("runtime.raw", 10),
        ("runtime.home", 12),
        ("client", 14),
        ("client.luna", 15),
        ("client.luna.paths", 15),
        ("client.luna.paths[0]", 16),
        ("client.luna.paths[1]", 16),
        ("client.luna.paths[2]", 19),
        ("client.luna.paths[2][1]", 20),
        ("client.luna.paths[3].y", 21),
        ("client.web1.example.org", 23),
        ("client.web1.example.org.trees", 24),
        ("client.q", 25),
        ("array.x", 27),
        ("client.spaced.y", 29),
    ],
)
def test_finds_the_line(key: str, line: int) -> None:
    tomllib.loads(DOCUMENT)
    positions = Positions(DOCUMENT)
    assert positions.line(key) == line
    assert positions.has(key)


@pytest.mark.parametrize("key", ["client.comment", "client.string", "client.in_a_string"])
def test_finds_nothing_in_comments_and_strings(key: str) -> None:
    assert not Positions(DOCUMENT).has(key)


def test_a_missing_key_is_placed_at_its_table() -> None:
    positions = Positions(DOCUMENT)
    assert positions.line("runtime.borg") == 4
    assert positions.line("client.luna.paths[9]") == 15
    assert positions.line("client.web1.example.org.paths") == 23
    assert positions.line("audit.file") is None


def test_lines_end_where_toml_ends_them() -> None:
    """A line separator inside a comment or string ends a line for ``str.splitlines`` only."""
    assert Positions("# \u2028 \x85\r\n a = 1\r\n").line("a") == 2


def test_nesting_as_deep_as_the_parser_takes() -> None:
    depth = 200
    text = f"a = 1\nb = {'[' * depth}{']' * depth}\nc = 3\n"
    tomllib.loads(text)
    assert Positions(text).line("c") == 3
    # Deeper than the stack: what came before is still known.
    assert Positions(f"a = 1\nb = {'[' * 100_000}").line("a") == 1


@given(st.text(st.sampled_from("ab.=[]{}\"'\\#,\n\r\t 1")))
def test_any_text_ends(text: str) -> None:
    positions = Positions(text)
    line = positions.line("a.b")
    assert line is None or 1 <= line <= text.count("\n") + 1


names = st.text(
    st.characters(codec="utf-8", exclude_characters='"\\.[]\x7f', min_codepoint=32), min_size=1
)
strings = st.text(st.characters(codec="utf-8", exclude_characters="\x7f", min_codepoint=32))


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[str, int]]:
    """A document of quoted keys with arrays of strings, and the line of each key and item."""
    text, lines, number = "", {}, 1
    for name in draw(st.lists(names, unique=True, max_size=4)):
        gap = draw(st.integers(0, 2))
        text += "# [x]\n" * gap
        number += gap
        lines[name] = number
        text += f'"{name}" = ['
        for position, item in enumerate(draw(st.lists(strings, max_size=3))):
            if draw(st.booleans()):
                text += " # ] comment\n"
                number += 1
            lines[f"{name}[{position}]"] = number
            escaped = item.replace("\\", "\\\\").replace('"', '\\"')
            text += f'"{escaped}",'
        text += "]\n"
        number += 1
    return text, lines


@given(documents())
def test_finds_every_key_and_item(made: tuple[str, dict[str, int]]) -> None:
    text, lines = made
    tomllib.loads(text)
    positions = Positions(text)
    assert {key: positions.line(key) for key in lines} == lines
