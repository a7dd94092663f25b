"""TOML parsing for the start-up path."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any


def loads(text: str) -> dict[str, Any]:
    """The parsed document. Raises ValueError whose text names line and column."""
    _defer_patterns()
    import tomli

    return tomli.loads(text)


class _DeferredPatterns:
    """Stands in for ``tomli._re`` until something has to be parsed that takes its patterns.

    tomli compiles them when imported, which loads ``re`` and ``datetime``: more than the rest of
    the forced command's start together, for values no whitelist needs. The whole numbers that it
    does need are read here. Upstream marks the import as lazy for the interpreters that support
    it (3.15); this does the same for ours.
    """

    def __getattr__(self, name: str) -> object:
        if name.startswith("RE_"):
            return _DeferredPattern(name)
        if name.startswith("match_to_"):
            return _deferred_function(name)
        raise AttributeError(name)


def _deferred_function(name: str) -> Callable[..., object]:
    def call(match: object, *arguments: object) -> object:
        if isinstance(match, _WholeNumber):
            return int(match.text)
        return getattr(_real_patterns(), name)(match, *arguments)

    return call


class _WholeNumber:
    """A match of plain decimal digits."""

    __slots__ = ("_end", "text")

    def __init__(self, text: str, end: int) -> None:
        self.text = text
        self._end = end

    def end(self) -> int:
        return self._end


_MAX_DIGITS = 18
_DIGITS = "0123456789"
# Anything else behind digits makes them part of another kind of number, a date or a time.
_BEHIND_A_VALUE = (" ", "\t", "\n", ",", "]", "}", "#", "")


def _whole_number(source: str, start: int) -> _WholeNumber | None:
    end = start
    while source[end : end + 1] in _DIGITS and end < len(source):
        end += 1
    text = source[start:end]
    if not 0 < len(text) <= _MAX_DIGITS or (text[0] == "0" and text != "0"):
        return None
    return _WholeNumber(text, end) if source[end : end + 1] in _BEHIND_A_VALUE else None


class _DeferredPattern:
    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def match(self, source: str, position: int) -> object:
        number = _whole_number(source, position)
        if number is not None:
            return number if self._name == "RE_NUMBER" else None
        return getattr(_real_patterns(), self._name).match(source, position)


_PATTERNS = "tomli._re"


def _defer_patterns() -> None:
    # Only the frozen program is sure to hold tomli's pure-Python form; the compiled wheel
    # reaches into its own modules past sys.modules.
    if getattr(sys, "frozen", False) and "tomli" not in sys.modules:
        sys.modules[_PATTERNS] = _DeferredPatterns()  # type: ignore[assignment]


def _real_patterns() -> ModuleType:
    if isinstance(sys.modules.get(_PATTERNS), _DeferredPatterns):
        del sys.modules[_PATTERNS]
    import tomli._re

    return tomli._re
