"""TOML on the start-up path: what the frozen program defers still parses as plain tomli does."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest
import tomli

from borg_pull.toml import loads

# Runs in an interpreter of its own, because what is imported cannot be imported again.
SCRIPT = """
import sys
frozen = sys.argv[1] == "frozen"
if frozen:
    sys.frozen = True
sys.path[:0] = sys.argv[2:]
before = set(sys.modules)
from borg_pull.toml import loads
answers = []
for text in eval(sys.stdin.read()):
    try:
        answer = repr(loads(text))
    except ValueError as error:
        answer = f"{type(error).__name__}: {error}"
    costly = sorted({"re", "datetime", "enum"} & (set(sys.modules) - before))
    answers.append([answer, costly])
import tomli
print(ascii((answers, type(sys.modules["tomli._re"]).__name__)))
"""

PLAIN = [
    "",
    '[runtime]\nhome = "/h"\n',
    'a = ["x", \'y\', """z\nz"""]\nb = true\nc = {d = false}\n"e.f".g = "\\u00e9"\n',
    "a = 0\nb = 1#\nc = [64, 1,\n600 ]\nd = {e = 7}\nf = 999999999999999999\t\n",
    "a = \n",
    "[a]\n[a]\n",
    "a = 'x' 'y'\n",
]
NUMBERS_AND_DATES = [
    "a = 1",
    "a = -0",
    "a = 0xff_ff",
    "a = 0o17",
    "a = 0b101",
    "a = 1_000",
    "a = 1000000000000000000",
    "a = 00000000000000000000",
    "a = +1",
    "a = 1\r\nb = 2\r",
    "a = 0e1",
    "a = 1.5",
    "a = 6.02e23",
    "a = inf",
    "a = -nan",
    "a = 1979-05-27T07:32:00Z",
    "a = 1979-05-27T07:32:00.999999-07:00",
    "a = 1979-05-27 07:32:00",
    "a = 1979-05-27",
    "a = 07:32:00.5",
    "a = [1, 2.5, 1979-05-27, 'x']",
    "a = {b = 1}",
    "a = 1\nb = 2\nc = 2020-01-01\nd = 'x'",
]
BROKEN = [
    "a = 01",
    "a = 1\x0b",
    "a = ١",
    "a = 1٢",
    "a = 1x",
    "a = 1\u2028",
    "a = 1__0",
    "a = 1.",
    "a = .5",
    "a = 0x",
    "a = 2021-02-30",
    "a = 2021-13-01",
    "a = 25:00:00",
    "a = 1979-05-27T",
    "a = 1 2",
    "a = x",
    "a = +",
    "a = 2020-01-01T00:00:00+24:00",
    "a = " + "9" * 5000,
    "a",
    "= 1",
    "a = tru",
    "a = [1, 2",
    "\ufeffa = 1",
]


@functools.cache
def run(kind: str, texts: tuple[str, ...]) -> tuple[list[list[object]], str]:
    directories = [str(Path(__file__).parents[1]), str(Path(tomli.__file__).parents[1])]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", SCRIPT, kind, *directories],
        input=ascii(texts),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers, patterns = ast.literal_eval(done.stdout)
    return answers, patterns


def test_tomli_here_is_its_pure_form() -> None:
    """The compiled form reaches past what the frozen program defers, and would prove nothing."""
    assert tomli._parser.__file__.endswith(".py")


def test_with_whole_numbers_nothing_costly_is_imported() -> None:
    answers, patterns = run("frozen", tuple(PLAIN[:4]))
    assert [costly for _, costly in answers] == [[], [], [], []]
    assert patterns == "_DeferredPatterns"
    # The control: plain tomli imports it all at once.
    answers, patterns = run("plain", tuple(PLAIN[:3]))
    assert answers[0][1] == ["datetime", "enum", "re"]
    assert patterns == "module"


@pytest.mark.parametrize(
    "texts", [PLAIN, NUMBERS_AND_DATES, BROKEN], ids=["plain", "values", "broken"]
)
@pytest.mark.parametrize("order", [1, -1], ids=["forwards", "backwards"])
def test_deferred_answers_are_the_same(texts: list[str], order: int) -> None:
    chosen = tuple(texts[::order])
    deferred, _ = run("frozen", chosen)
    plain, _ = run("plain", chosen)
    assert [answer for answer, _ in deferred] == [answer for answer, _ in plain]


@pytest.mark.parametrize("text", NUMBERS_AND_DATES + BROKEN)
def test_the_first_document_alone_gives_the_same_answer(text: str) -> None:
    """Each in an interpreter that has not met a number before."""
    deferred, _ = run("frozen", (text,))
    try:
        expected = repr(tomli.loads(text))
    except ValueError as error:
        expected = f"{type(error).__name__}: {error}"
    assert deferred[0][0] == expected


@pytest.mark.parametrize("text", BROKEN)
def test_errors_are_value_errors_and_name_a_place(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"\(at (line 1, column \d+|end of document)\)|4300 digits"
    ):
        loads(text)


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 100_000, "a = " + "{b = " * 100_000, "a" + ".a" * 100_000 + " = 1"]
)
def test_depth_ends_in_an_error_not_in_a_crash(text: str) -> None:
    with pytest.raises((RecursionError, ValueError)):
        loads(text)
