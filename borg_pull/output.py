"""Printing: colours on a terminal, plain and uncut in a pipe, quiet when nobody reads."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

import click


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


def put(text: str | bytes) -> None:
    """Write ``text`` to standard output; a reader that has gone has seen enough of it."""
    try:
        click.echo(text, nl=False)
    except BrokenPipeError:
        abandon_output()


def abandon_output() -> None:
    """Have what is still buffered go nowhere, so that it does not fail once more at the end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
