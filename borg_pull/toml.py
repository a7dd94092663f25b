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
    """Stands in for ``tomli._re`` until a number or a date has to be parsed.

    tomli compiles its patterns when imported, which loads ``re`` and ``datetime``: more than the
    rest of the forced command's start together, for values no whitelist needs. Upstream marks
    the import as lazy for the interpreters that support it (3.15); this does the same for ours.
    """

    def __getattr__(self, name: str) -> object:
        if name.startswith("RE_"):
            return _DeferredPattern(name)
        if name.startswith("match_to_"):
            return _deferred_function(name)
        raise AttributeError(name)


def _deferred_function(name: str) -> Callable[..., object]:
    def call(*arguments: object) -> object:
        return getattr(_real_patterns(), name)(*arguments)

    return call


class _DeferredPattern:
    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def match(self, *arguments: object) -> object:
        return getattr(_real_patterns(), self._name).match(*arguments)


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
