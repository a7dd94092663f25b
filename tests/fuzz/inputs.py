"""Where inputs are kept: small ones as lines of a text file, those that crashed as they were.

``corpus/TARGET.txt`` holds one input a line, ``\\xNN`` for one byte, ``\\\\`` for a backslash.
``crashes/TARGET/`` holds what once made a check fail, one input a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
CRASHES = HERE / "crashes"


def escaped(data: bytes) -> str:
    """``data`` as one line of printable ASCII."""
    return "".join(
        "\\\\" if byte == 0x5C else chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}"
        for byte in data
    )


def unescaped(line: str) -> bytes:
    """The bytes that `escaped` wrote."""

    def character(found: re.Match[str]) -> str:
        return "\\" if found[0] == "\\\\" else chr(int(found[1], 16))

    return re.sub(r"\\\\|\\x([0-9a-f]{2})", character, line).encode("latin-1")


def corpus(target: str) -> list[bytes]:
    """The inputs that together reach all that was ever reached."""
    path = CORPUS / f"{target}.txt"
    return [unescaped(line) for line in path.read_text(encoding="ascii").splitlines()]


def write_corpus(target: str, inputs: Iterable[bytes]) -> None:
    """Replace the corpus, shortest first so that a change shows as what it is."""
    lines = [escaped(data) for data in sorted(set(inputs), key=lambda data: (len(data), data))]
    (CORPUS / f"{target}.txt").write_text("".join(f"{line}\n" for line in lines), "ascii")


def crashes(target: str) -> list[Path]:
    """The files that once made the target's check fail."""
    return sorted((CRASHES / target).glob("*"))


def files(directory: Path) -> list[bytes]:
    """The inputs in a directory as the fuzzer keeps it."""
    return [path.read_bytes() for path in sorted(directory.iterdir())]
