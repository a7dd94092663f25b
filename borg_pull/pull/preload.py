"""borg loaded before it is needed: that takes it as long as a small pull.

borg is most often a script of Python's. Such a one can be started, have all its modules imported,
and wait for the word to begin.
"""

from __future__ import annotations

import os

_IMPORT = """\
import os, runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
try:
    import borg.archiver
except Exception:
    pass  # what is wrong with it is told when it is run, below
"""

_RUN = """\
runpy.run_path(sys.argv[0], run_name="__main__")
"""

AT_A_CONNECTION = f"""\
{_IMPORT}
import array, socket
with socket.socket(fileno=os.dup(0)) as door:
    found = door.recvmsg(1, socket.CMSG_LEN(4))[1]
if not found:
    sys.exit(0)
connection = array.array("i", found[0][2][:4])[0]
os.dup2(connection, 0)
os.dup2(connection, 1)
os.close(connection)
{_RUN}"""
"""Runs the script it is given as the interpreter would, once a connection is handed to it."""

AT_A_BYTE = f"""\
{_IMPORT}
if not os.read(0, 1):
    sys.exit(0)
nothing = os.open(os.devnull, os.O_RDONLY)
os.dup2(nothing, 0)
os.close(nothing)
{_RUN}"""
"""The same, once it reads a byte."""


def command(argv: list[str], code: str) -> list[str] | None:
    """``argv``, run by ``code``; None when its program is no script, or asks for options.

    Raises OSError.
    """
    with open(argv[0], "rb") as file:
        mark, _, path = file.readline(256).rstrip(b"\n").partition(b"#!")
    name = os.path.basename(path)
    if mark or not path.startswith(b"/") or b" " in path or not name.startswith(b"python"):
        return None
    return [os.fsdecode(path), "-I", "-c", code, *argv]
