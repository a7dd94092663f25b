"""Printing for people: colours on a terminal, plain and uncut in a pipe."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text


def print_lines(lines: Iterable[Iterable[tuple[str, str]]]) -> None:
    """Print each line, given as (text, style) pieces; the caller has made them printable.

    ``NO_COLOR`` and everything that is no terminal get the text alone.
    """
    # rich costs more than all the rest of this program, which sshd starts at every login when it
    # asks for authorized keys.
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    for line in lines:
        console.print(_text(line))


def _text(pieces: Iterable[tuple[str, str]]) -> Text:
    from rich.text import Text

    return Text.assemble(*pieces)
