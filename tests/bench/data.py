"""Deterministic trees to back up: every run on every machine saves the same bytes."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

MEBIBYTE = 1 << 20
LARGE_FILE = 32 * MEBIBYTE
SMALL_FILE_MOST = 16 * 1024
TINY_FILE_MOST = 4096
FILES_PER_DIRECTORY = 250
# Of the bytes of a mixed tree; the rest are small files.
TEXT_SHARE, NOISE_SHARE = 0.4, 0.45


def mixed(root: Path, mebibytes: int) -> None:
    """Fill ``root`` with text, noise that does not compress, and small files of text."""
    chance = random.Random(1)
    lines = _lines(chance)
    text = int(mebibytes * TEXT_SHARE * MEBIBYTE)
    noise = int(mebibytes * NOISE_SHARE * MEBIBYTE)
    _large_files(root / "text", text, lambda size: _text(chance, lines, size))
    _large_files(root / "noise", noise, chance.randbytes)
    _small_files(root / "small", chance, lines, mebibytes * MEBIBYTE - text - noise)


def many(root: Path, files: int) -> None:
    """Fill ``root`` with ``files`` files of up to 4 KiB."""
    chance = random.Random(2)
    pool = chance.randbytes(MEBIBYTE)
    for number in range(files):
        size = chance.randrange(64, TINY_FILE_MOST)
        start = chance.randrange(len(pool) - size)
        _numbered(root, number).write_bytes(pool[start : start + size])


def give(root: Path, uid: int, gid: int) -> None:
    """Make ``root`` and all below it one account's own."""
    os.chown(root, uid, gid)
    for directory, names, files in os.walk(root):
        for name in (*names, *files):
            os.chown(os.path.join(directory, name), uid, gid)


def _lines(chance: random.Random) -> list[bytes]:
    """Lines of made-up language, of few words, so that it compresses about as prose does."""
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    weights = range(len(letters), 0, -1)
    words = [
        "".join(chance.choices(letters, weights, k=chance.randrange(2, 11))) for _ in range(4000)
    ]
    return [
        (" ".join(chance.choices(words, k=chance.randrange(4, 14))) + "\n").encode()
        for _ in range(20_000)
    ]


def _text(chance: random.Random, lines: list[bytes], size: int) -> bytes:
    # In ever new order: borg would store what comes twice only once.
    mean = sum(map(len, lines)) // len(lines)
    return b"".join(chance.choices(lines, k=size * 11 // (mean * 10) + 64))[:size]


def _large_files(root: Path, size: int, content: Callable[[int], bytes]) -> None:
    root.mkdir()
    for number in range((size + LARGE_FILE - 1) // LARGE_FILE):
        rest = min(LARGE_FILE, size - number * LARGE_FILE)
        (root / f"file-{number}").write_bytes(content(rest))


def _small_files(root: Path, chance: random.Random, lines: list[bytes], size: int) -> None:
    pool = _text(chance, lines, min(size, LARGE_FILE) + SMALL_FILE_MOST)
    number = 0
    while size > 0:
        part = min(size, chance.randrange(64, SMALL_FILE_MOST))
        start = chance.randrange(len(pool) - part)
        _numbered(root, number).write_bytes(pool[start : start + part])
        size -= part
        number += 1


def _numbered(root: Path, number: int) -> Path:
    directory = root / f"{number // FILES_PER_DIRECTORY:04}"
    if number % FILES_PER_DIRECTORY == 0:
        directory.mkdir(parents=True)
    return directory / f"file-{number}"
