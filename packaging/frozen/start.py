"""Runs first in every frozen program, in place of PyInstaller's own bootstrap script.

The modules that a program needs each time it starts lie in one file beside the runtime, so that
importing one is a look-up in a table instead of a search of directories. Modules that are not in
that file are found the ordinary way, in ``_internal``.
"""

import sys
from posix import _exit, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

_NAME = sys.executable.rpartition("/")[2]
_HOME: str = sys._MEIPASS  # type: ignore[attr-defined]  # set by the bootloader


def _cannot_start(kind: "type[BaseException]", error: BaseException, _trace: object) -> None:
    """Where memory or descriptors do not suffice to load the program: one line, and 71 instead of
    1, which would be borg's warning."""
    line = f"{_NAME}: cannot start: {kind.__name__} {error}".rstrip()
    write(2, line.encode("ascii", "backslashreplace") + b"\n")
    _exit(71)


class _PackFinder:
    """Finds modules in a pack: an index of name -> (kind, start, end) or ("extension", file)."""

    def __init__(self, pack: "memoryview") -> None:
        size = int.from_bytes(pack[:4], "little")
        self._index = loads(pack[4 : 4 + size])
        self._code = pack[4 + size :]

    def find_spec(
        self, name: str, _path: "Any" = None, _target: "Any" = None
    ) -> "ModuleSpec | None":
        """The import protocol's find_spec; None leaves the module to the next finder."""
        entry = self._index.get(name)
        if entry is None:
            return None
        kind = entry[0]
        if kind == "extension":
            file = f"{_HOME}/{entry[1]}"
            return ModuleSpec(name, ExtensionFileLoader(name, file), origin=file)
        spec = ModuleSpec(name, self, is_package=kind == "package")  # type: ignore[arg-type]
        if kind == "package":
            spec.submodule_search_locations = [f"{_HOME}/{name.replace('.', '/')}"]
        return spec

    def create_module(self, _spec: "ModuleSpec") -> None:
        """The import protocol's create_module: None asks for an ordinary module."""
        return None

    def exec_module(self, module: "ModuleType") -> None:
        """The import protocol's exec_module."""
        _kind, start, end = self._index[module.__name__]
        exec(loads(self._code[start:end]), module.__dict__)


sys.frozen = True  # type: ignore[attr-defined]
# What these two say goes to the peer. The others are people's.
if _NAME in ("borg-pull-source", "borg-pull-socket-wrap"):
    sys.excepthook = _cannot_start
try:
    _file = open(f"{_HOME}/{_NAME}.pack", "rb", buffering=0)
except OSError:
    pass  # started under another name: correct all the same, only slower
else:
    import gc
    from _frozen_importlib import ModuleSpec
    from _frozen_importlib_external import ExtensionFileLoader
    from marshal import loads

    # Each module of ours asks for it, for the compiler's sake; nothing looks inside.
    future = type(sys)("__future__")
    future.annotations = None  # type: ignore[attr-defined]
    sys.modules["__future__"] = future

    # Importing makes thousands of objects and no garbage: looking for some five times over takes
    # 3 % of the start.
    gc.set_threshold(100_000)
    with _file:
        # One read, of which each module's code is a view: every page touched is a page fault.
        sys.meta_path.insert(0, _PackFinder(memoryview(_file.read())))
