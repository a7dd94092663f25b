"""Texts that come from elsewhere: from AIO's configuration, the engine, a container's output."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from borg_pull.credentials import MASK, is_secret_name, masked
from borg_pull.errors import FailedError, printable

MAX_TEXT = 800
"""Characters of an error, a hint, a piece of evidence."""
MAX_TARGET = 300
"""Characters of a target that is shown."""
_CUT = "..."
_MIN_SECRET = 8  # characters: shorter ones are words, too
_MAX_SECRET = 8000  # more than a line of output may have
_MAX_FORMS = 1000  # each is looked for in each line of output
_CONTROLS = dict.fromkeys((*range(32), 127))


def brief(text: str, most: int = MAX_TEXT) -> str:
    """``text`` as one printable line of at most ``most`` characters."""
    line = printable(text[: most + 1])
    return line if len(line) <= most else line[: most - len(_CUT)] + _CUT


class Secrets:
    """The secrets in AIO's configuration, to be masked in what its programs write."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        """Raises FailedError when they are more than can be looked for in each line."""
        forms: set[str] = set()
        for text in _secrets(values):
            forms.update(form for form in _forms(text) if len(form) >= _MIN_SECRET)
            if len(text) > _MAX_SECRET or len(forms) > _MAX_FORMS:
                raise FailedError(
                    "AIO's configuration has more secrets, or longer ones, than can be kept out of "
                    "the output",
                    "is that configuration AIO's own work?",
                )
        # The longest first: one may be the beginning of another.
        self._forms = sorted(forms, key=len, reverse=True)

    def masked(self, line: str) -> str:
        """``line`` without them, and without credentials of URLs."""
        line = self._without(line)
        bare = line.translate(_CONTROLS)
        # What goes back to the beginning of a line may do so in the middle of a secret.
        if bare != line and any(form in bare for form in self._forms):
            line = self._without(bare)
        return masked(line)

    def _without(self, line: str) -> str:
        for form in self._forms:
            line = line.replace(form, MASK)
        return line


def _secrets(values: Mapping[str, Any]) -> Iterator[str]:
    """All texts at or below a key that has a secret's name, such as ``secrets``."""
    left: list[tuple[Any, bool]] = [(values, False)]
    while left:
        value, is_secret = left.pop()
        if isinstance(value, dict):
            left += [(one, is_secret or is_secret_name(key)) for key, one in value.items()]
        elif isinstance(value, list):
            left += [(one, is_secret) for one in value]
        elif isinstance(value, str) and is_secret:
            yield value


def _forms(secret: str) -> Iterator[str]:
    """As it may stand in one line: line by line, and as JSON has it, also PHP's."""
    yield from secret.splitlines()
    for is_ascii in (True, False):
        text = json.dumps(secret, ensure_ascii=is_ascii)[1:-1]
        yield text
        yield text.replace("/", "\\/")
