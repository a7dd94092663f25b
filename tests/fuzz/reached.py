"""Which lines of a module a set of inputs reaches, by the interpreter's own trace hook."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
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


Modules = Mapping[str, tuple[str, ...]]
Check = Callable[[bytes], object]
Step = tuple[str, int, int]
"""A file, and two lines of it that ran one after the other in one function."""


def reached(modules: Modules, check: Check, inputs: Iterable[bytes]) -> list[Reached]:
    """What ``check`` reaches of the functions of each module with all of ``inputs``."""
    steps: set[Step] = set()
    for data in inputs:
        steps |= _steps(modules, check, data)
    found = []
    for file, name in _files(modules).items():
        lines = set(_lines(file, modules[name]))
        seen = {line for where, _, line in steps if where == file}
        found.append(Reached(name, len(lines), tuple(sorted(lines - seen))))
    return found


def fewest(modules: Modules, check: Check, inputs: Iterable[bytes]) -> list[bytes]:
    """Few and short ones of ``inputs`` that together take every step that all of them take."""
    chosen: dict[bytes, set[Step]] = {}
    times: Counter[Step] = Counter()
    for data in sorted(set(inputs), key=lambda data: (len(data), data)):
        steps = _steps(modules, check, data)
        if not steps <= times.keys():
            chosen[data] = steps
            times.update(steps)
    for data, steps in list(chosen.items()):
        if all(times[step] > 1 for step in steps):
            times.subtract(steps)
            del chosen[data]
    return list(chosen)


def _files(modules: Modules) -> dict[str, str]:
    return {str(importlib.import_module(name).__file__): name for name in modules}


def _steps(modules: Modules, check: Check, data: bytes) -> set[Step]:
    files = _files(modules)
    steps: set[Step] = set()

    def each_call(frame: FrameType, _event: str, _argument: object) -> Any:
        file = frame.f_code.co_filename
        if file not in files:
            return None
        last = 0

        def each_line(frame: FrameType, event: str, _argument: object) -> Any:
            nonlocal last
            if event == "line":
                steps.add((file, last, frame.f_lineno))
                last = frame.f_lineno
            return each_line

        return each_line

    before = sys.gettrace()
    sys.settrace(each_call)
    try:
        check(data)
    finally:
        sys.settrace(before)
    return steps


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
