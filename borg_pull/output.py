"""Printing: colours on a terminal, plain and uncut in a pipe, quiet when nobody reads."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TextIO

import click

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


def print_lines(lines: Iterable[tuple[tuple[str, str], ...]]) -> None:
    """Print each line, given as (text, style) pieces; the caller has made them printable.

    ``NO_COLOR`` and everything that is no terminal get the text alone.
    """
    # rich costs more than all the rest of this program, which sshd starts at every login when it
    # asks for authorized keys.
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    with console.capture() as captured:
        for line in lines:
            console.print(Text.assemble(*line))
    put(captured.get())


def print_table(headings: Sequence[str], rows: Iterable[tuple[Sequence[str], str]]) -> None:
    """Print ``rows``, given as (printable cells, style); on a terminal the last column folds."""
    from rich.cells import cell_len
    from rich.console import Console

    styled = [(headings, "bold"), *rows]
    widths = [
        max(map(cell_len, column)) for column in zip(*(cells for cells, _ in styled), strict=True)
    ]
    console = Console(highlight=False, markup=False, emoji=False)
    if console.is_terminal and sum(widths) + len(_GAP) * (len(widths) - 1) > console.width:
        _print_folded(headings, styled[1:])
        return
    # What fits needs none of rich's layout, which takes a third of a second for a thousand rows.
    print_lines(
        (
            (
                _GAP.join(
                    cell + " " * (width - cell_len(cell))
                    for cell, width in zip(cells, widths, strict=True)
                ).rstrip(),
                style,
            ),
        )
        for cells, style in styled
    )


_GAP = "  "


def _print_folded(headings: Sequence[str], rows: Iterable[tuple[Sequence[str], str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings[:-1]:
        table.add_column(heading, no_wrap=True)
    table.add_column(headings[-1], overflow="fold")
    for cells, style in rows:
        table.add_row(*(Text(cell, style=style) for cell in cells))
    put(_text(table))


def print_line(text: str, style: str) -> None:
    """Print one printable line of a table that grows, at once. Raises BrokenPipeError."""
    from rich.text import Text

    sys.stdout.write(_text(Text(text, style=style)))
    sys.stdout.flush()


def print_error(text: str, style: str) -> None:
    """Print one printable line to standard error."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
    console.print(text, style=style)


_LINE_END = re.compile(r"(?:\x1b\[[0-9;]*m| )+$", re.MULTILINE)


def _text(what: Table | Text) -> str:
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        # A pipe has no width; nothing may be cut or wrapped for it.
        console.width = 1 << 20
    with console.capture() as capture:
        console.print(what, soft_wrap=not console.is_terminal)
    # It fills every line up to the longest.
    return _LINE_END.sub(lambda found: found[0].replace(" ", ""), capture.get())


def put(text: str | bytes) -> None:
    """Write ``text`` to standard output; a reader that has gone has seen enough of it."""
    try:
        click.echo(text, nl=False)
    except BrokenPipeError:
        abandon_output()


def abandon_output(stream: TextIO | None = None) -> None:
    """Have what is still buffered go nowhere, so that it does not fail once more at the end.

    ``stream`` is standard output unless given.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, (stream or sys.stdout).fileno())
    os.close(null)
