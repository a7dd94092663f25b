"""Texts that come from elsewhere: from AIO's configuration, the engine, a container's output."""

from __future__ import annotations

from borg_pull.errors import printable

MAX_TEXT = 800
"""Characters of an error, a hint, a piece of evidence."""
MAX_TARGET = 300
"""Characters of a target that is shown."""
_CUT = "..."


def brief(text: str, most: int = MAX_TEXT) -> str:
    """``text`` as one printable line of at most ``most`` characters."""
    line = printable(text[: most + 1])
    return line if len(line) <= most else line[: most - len(_CUT)] + _CUT
