"""Of what a borg said, the line that says how it ended."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# What borg prints around an exception: its report's head and foot, and the frames between.
_AROUND_AN_EXCEPTION = (
    "Local Exception",
    "Remote Exception",
    "Traceback (most recent call last):",
    "Platform: ",
    "Linux: ",
    "Borg: ",
    "PID: ",
    "sys.argv: ",
    "SSH_ORIGINAL_COMMAND: ",
    "If you reported",
    # It says so of a full disk, too.
    "self test failed",
    "Could be a bug either in Borg",
)


def last_words(lines: Sequence[str]) -> str | None:
    """borg's last line that says what happened; of a traceback, the exception."""
    said = [line for line in lines if line.strip()]
    for line in reversed(said):
        text = line.removeprefix("Remote: ").removeprefix("Borg server: ")
        if text.strip() and not text.startswith((" ", "\t", *_AROUND_AN_EXCEPTION)):
            return text
    return said[-1] if said else None
