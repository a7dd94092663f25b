"""Printing: colours on a terminal, plain and uncut in a pipe, quiet when nobody reads."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
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


def print_table(
    headings: Sequence[str],
    rows: Iterable[tuple[Sequence[str], str]],
    *,
    expendable: Sequence[str] = (),
    ends_in_prose: bool = True,
) -> None:
    """Print ``rows``, given as (printable cells, style). Nothing is cut, on any terminal.

    Where a terminal has too little room, columns are left out in the order in which ``expendable``
    has their headings, and that is said; those that stay go on in the next line. The last column,
    where the rows end in prose, folds, or goes below its row.
    """
    from rich.console import Console

    table = [(tuple(cells), style) for cells, style in rows]
    console = Console(highlight=False, markup=False, emoji=False)
    # A pipe has no width.
    room = console.width if console.is_terminal else sys.maxsize
    left_out: list[str] = []
    if _width(headings, table) > room:
        prose = headings[-1:] if ends_in_prose else []
        left_out = _left_out(headings, table, room, expendable, prose)
        kept = [place for place, heading in enumerate(headings) if heading not in left_out]
        headings = [headings[place] for place in kept]
        table = [(tuple(cells[place] for place in kept), style) for cells, style in table]
    widths = _widths(headings, table)
    if ends_in_prose and _width(headings, table) > room:
        if room - sum(widths[:-1]) - len(_GAP) * (len(widths) - 1) >= _LEAST_PROSE:
            _print_folded(headings, table)
        else:
            print_lines(_prose_below(headings, table))
    else:
        # What fits needs none of rich's layout, which takes a third of a second for a thousand
        # rows.
        print_lines(
            ((_joined(cells, widths), style),) for cells, style in [(headings, "bold"), *table]
        )
    if left_out:
        names = ", ".join(left_out)
        print_lines([((f"(not shown at this width: {names})", "dim"),)])


_GAP = "  "
_LEAST_PROSE = 40
"""Columns in which prose can still be read; with fewer it goes below its row."""

_Table = list[tuple[tuple[str, ...], str]]


def _widths(headings: Sequence[str], table: _Table) -> list[int]:
    from rich.cells import cell_len

    cells = [headings, *(cells for cells, _ in table)]
    return [max(map(cell_len, column)) for column in zip(*cells, strict=True)]


def _width(headings: Sequence[str], table: _Table) -> int:
    return sum(_widths(headings, table)) + len(_GAP) * (len(headings) - 1)


def _joined(cells: Sequence[str], widths: Sequence[int]) -> str:
    from rich.cells import cell_len

    padded = (
        cell + " " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True)
    )
    return _GAP.join(padded).rstrip()


def _left_out(
    headings: Sequence[str],
    table: _Table,
    room: int,
    expendable: Sequence[str],
    elsewhere: Sequence[str],
) -> list[str]:
    """As many of the expendable headings as it takes for the rest, but ``elsewhere``, to fit."""
    widths = dict(zip(headings, _widths(headings, table), strict=True))
    for heading in elsewhere:
        del widths[heading]
    gone: list[str] = []
    for heading in expendable:
        if sum(widths.values()) + len(_GAP) * (len(widths) - 1) <= room:
            break
        del widths[heading]
        gone.append(heading)
    return gone


def _prose_below(headings: Sequence[str], table: _Table) -> Iterator[tuple[tuple[str, str], ...]]:
    """Each row, then its last cell in a line of its own, which a terminal wraps and can copy."""
    widths = _widths(headings[:-1], [(cells[:-1], style) for cells, style in table])
    yield ((_joined(headings[:-1], widths), "bold"),)
    yield ((f"{_INDENT}{headings[-1]}", "bold"),)
    for cells, style in table:
        yield ((_joined(cells[:-1], widths), style),)
        if cells[-1]:
            yield ((f"{_INDENT}{cells[-1]}", style),)


_INDENT = "    "


def _print_folded(headings: Sequence[str], table: _Table) -> None:
    from rich.table import Table
    from rich.text import Text

    folded = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings[:-1]:
        folded.add_column(heading, no_wrap=True)
    folded.add_column(headings[-1], overflow="fold")
    for cells, style in table:
        folded.add_row(*(Text(cell, style=style) for cell in cells))
    put(_text(folded))


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
