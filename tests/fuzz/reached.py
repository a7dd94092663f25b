"""Which lines of a module a set of inputs reaches, by the interpreter's own trace hook."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any


@dataclass(frozen=True)
class Reached:
    """Lines of the functions of one module."""

    module: str
    lines: int
    missed: tuple[int, ...]

    def text(self) -> str:
        """``MODULE: N of M lines``, and which were missed."""
        missed = f", not {', '.join(map(str, self.missed))}" if self.missed else ""
        return f"{self.module}: {self.lines - len(self.missed)} of {self.lines} lines{missed}"


def reached(
    modules: Mapping[str, tuple[str, ...]],
    check: Callable[[bytes], object],
    inputs: Iterable[bytes],
) -> list[Reached]:
    """What ``check`` reaches of the functions of each module with all of ``inputs``."""
    files = {str(importlib.import_module(name).__file__): name for name in modules}
    seen: dict[str, set[int]] = {file: set() for file in files}

    def each_line(frame: FrameType, event: str, _argument: object) -> Any:
        if event == "line":
            seen[frame.f_code.co_filename].add(frame.f_lineno)
        return each_line

    def each_call(frame: FrameType, _event: str, _argument: object) -> Any:
        return each_line if frame.f_code.co_filename in seen else None

    before = sys.gettrace()
    sys.settrace(each_call)
    try:
        for data in inputs:
            check(data)
    finally:
        sys.settrace(before)
    found = []
    for file, name in files.items():
        lines = set(_lines(file, modules[name]))
        found.append(Reached(name, len(lines), tuple(sorted(lines - seen[file]))))
    return found


def _lines(file: str, functions: tuple[str, ...]) -> Iterator[int]:
    """The lines of these functions, or of all; what stands outside them runs at the import."""
    with open(file, "rb") as stream:
        module = compile(stream.read(), file, "exec")
    for code in _functions(module):
        if functions and code.co_name not in functions:
            continue
        for _start, _end, line in code.co_lines():
            # A function's own line is its definition.
            if line is not None and line != code.co_firstlineno:
                yield line


def _functions(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            # A class's body runs at the import, its methods do not.
            if constant.co_flags & CO_OPTIMIZED:
                yield constant
            yield from _functions(constant)


CO_OPTIMIZED = 1
