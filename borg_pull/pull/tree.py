"""Whether the items of an archive make a tree, as they do in any archive that borg makes honestly.

borg unpacks one item after the other, by its path, and follows whatever it has unpacked before. A
tree is what leads it nowhere else: nothing lies below anything but a directory, nothing takes the
place of something of another kind, and a hard link is one to a file of the archive.
"""

from __future__ import annotations

import hashlib
import os
from array import array

from borg_pull.errors import RequestError

MOST_ITEMS = 1 << 25
"""Of one unpacking: 512 MB is what it takes to remember the paths of that many."""

_DIRECTORY, _FILE, _LINK, _OTHER, _IMPLIED = range(1, 6)
_KINDS = {"d": _DIRECTORY, "-": _FILE, "l": _LINK}
_KIND_BITS = 7
# Overlapping paths of one job give the same item twice.
_REPEATED = (_DIRECTORY, _FILE, _LINK)


class Tree:
    """The items so far; one after the other, in the archive's order.

    ``is_whole`` is for all items of an archive, not just some of them.
    """

    def __init__(self, *, is_whole: bool) -> None:
        self._is_whole = is_whole
        self._kinds = _Kinds()
        self._parent = ""

    def fault(self, path: str, kind: str, source: str) -> str | None:
        """What keeps the next item from being part of a tree, if anything does.

        ``kind`` is its letter in borg's list, ``source`` what a link leads to. Raises RequestError
        for too many items.
        """
        parts = path.split("/")
        if not _are_names(parts):
            return "has no name to unpack it by"
        parent = path.rpartition("/")[0]
        if parent != self._parent:
            for depth in range(1, len(parts)):
                above = "/".join(parts[:depth])
                known = self._kinds.get(above)
                if known not in (0, _DIRECTORY, _IMPLIED):
                    return "lies below what is no directory"
                if known == 0:
                    self._kinds.put(above, _IMPLIED)
            self._parent = parent
        if kind == "h" and not self._is_file(source):
            return "is a hard link to no file before it"
        number, known = _KINDS.get(kind, _OTHER), self._kinds.get(path)
        if known == _IMPLIED and number != _DIRECTORY:
            return "is no directory, and has items below it"
        if known not in (0, _IMPLIED) and (known != number or number not in _REPEATED):
            return "is there twice"
        if known != number:
            self._kinds.put(path, number)
        return None

    def _is_file(self, path: str) -> bool:
        parts = path.split("/")
        known = self._kinds.get(path)
        if known == _FILE:
            return True
        if self._is_whole or known != 0 or not _are_names(parts):
            return False
        # borg unpacks the content of one that was not asked for with the first link to it.
        above = ("/".join(parts[:depth]) for depth in range(1, len(parts)))
        return all(self._kinds.get(one) in (0, _DIRECTORY, _IMPLIED) for one in above)


def _are_names(parts: list[str]) -> bool:
    return {"", ".", ".."}.isdisjoint(parts)


class _Kinds:
    """What kind the item of a path has, 0 where there is none.

    A table of hashes, twice as large as it must be: a dictionary takes ten times the room. Nobody
    can look for paths that share one, since they are made with a key of this process alone.
    """

    def __init__(self) -> None:
        self._key = os.urandom(16)
        self._table = array("Q", bytes(8 << 10))
        self._count = 0

    def get(self, path: str) -> int:
        return self._table[self._place(self._table, self._hash(path))] & _KIND_BITS

    def put(self, path: str, kind: int) -> None:
        value = self._hash(path)
        place = self._place(self._table, value)
        if self._table[place] == 0:
            self._count += 1
            if self._count > MOST_ITEMS:
                raise RequestError(
                    f"these are more than {MOST_ITEMS} items", "name parts of it, one by one"
                )
        self._table[place] = value | kind
        if self._count * 2 > len(self._table):
            self._grow()

    def _hash(self, path: str) -> int:
        encoded = path.encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(encoded, digest_size=8, key=self._key).digest()
        return int.from_bytes(digest) & ~_KIND_BITS

    def _place(self, table: array[int], value: int) -> int:
        """Where it is, or where there is room for it."""
        last = len(table) - 1
        place = (value >> 3) & last
        while table[place] != 0 and table[place] & ~_KIND_BITS != value:
            place = (place + 1) & last
        return place

    def _grow(self) -> None:
        table = array("Q", bytes(len(self._table) * 8 * 2))
        for entry in self._table:
            if entry:
                table[self._place(table, entry & ~_KIND_BITS)] = entry
        self._table = table
