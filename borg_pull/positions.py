"""On which line of a TOML document each key, table and array item stands.

tomli keeps no positions, so this reads a document again that tomli has accepted; imported only
once something is to be said about it.
"""

from __future__ import annotations

_SPACE = " \t\r"
_SCALAR_ENDS = ",]}# \t\r\n"


class Positions:
    """The lines of one document that is known to be valid TOML."""

    def __init__(self, text: str) -> None:
        scanner = _Scanner(text)
        scanner.document()
        self._lines = scanner.lines

    def line(self, key: str) -> int | None:
        """Line of ``key``, dotted and with array items as ``[0]``, else of the nearest table
        above it; None when neither is in the document."""
        while key:
            if key in self._lines:
                return self._lines[key]
            key = key[: max(key.rfind("."), key.rfind("["), 0)]
        return None

    def has(self, key: str) -> bool:
        """Whether ``key`` itself stands in the document."""
        return key in self._lines


class _Scanner:
    """Walks the grammar of TOML 1.0 and notes where things begin; values are skipped."""

    def __init__(self, text: str) -> None:
        self.lines: dict[str, int] = {}
        self._text = text
        self._at = 0
        self._line = 1
        self._counted = 0

    def document(self) -> None:
        try:
            self._statements()
        except RecursionError:
            # What was found so far is right; what lies that deep is no key of ours.
            return

    def _statements(self) -> None:
        table = ""
        while self._skip_blank():
            if self._here("["):
                start = self._at
                self._at += 2 if self._here("[[") else 1
                table = self._key("")
                self._note(table, start)
                while self._here("]"):
                    self._at += 1
            else:
                self._assignment(table)

    def _assignment(self, table: str) -> None:
        """``KEY = VALUE``"""
        start = self._at
        key = self._key(table)
        self._note(key, start)
        if self._here("="):
            self._at += 1
            self._skip(_SPACE)
            self._value(key)
        elif self._at == start:
            self._at += 1  # not TOML; go on all the same

    def _key(self, prefix: str) -> str:
        """A dotted key; the tables it passes through are noted as it is read."""
        start = self._at
        while True:
            self._skip(_SPACE)
            part = self._text[self._at : self._at + 1]
            if part and part in "\"'":
                name = self._string()
            else:
                begin = self._at
                while self._at < len(self._text) and self._text[self._at] not in ".=] \t\r\n":
                    self._at += 1
                name = self._text[begin : self._at]
            prefix = f"{prefix}.{name}" if prefix else name
            self._skip(_SPACE)
            if not self._here("."):
                return prefix
            self._note(prefix, start)
            self._at += 1

    def _value(self, key: str) -> None:
        if self._here('"') or self._here("'"):
            self._string()
        elif self._here("["):
            self._array(key)
        elif self._here("{"):
            self._inline_table(key)
        else:
            while self._at < len(self._text) and self._text[self._at] not in _SCALAR_ENDS:
                self._at += 1

    def _array(self, key: str) -> None:
        self._at += 1
        position = 0
        while self._skip_blank() and not self._here("]"):
            start = self._at
            item = f"{key}[{position}]"
            self._note(item, start)
            self._value(item)
            position += 1
            self._skip_blank()
            if self._here(",") or self._at == start:
                self._at += 1
        self._at += 1

    def _inline_table(self, key: str) -> None:
        self._at += 1
        while self._skip_blank() and not self._here("}"):
            self._assignment(key)
            self._skip_blank()
            if self._here(","):
                self._at += 1
        self._at += 1

    def _string(self) -> str:
        """The text between the quotes, escapes as they stand."""
        quote = self._text[self._at]
        if self._here(quote * 3):
            quote *= 3
        self._at += len(quote)
        start = self._at
        while self._at < len(self._text) and not self._here(quote):
            self._at += 2 if quote[0] == '"' and self._here("\\") else 1
        end = self._at
        self._at += len(quote)
        if len(quote) == 3:
            # Up to two quotes may stand before the closing three.
            while self._here(quote[0]):
                self._at += 1
        return self._text[start:end]

    def _skip_blank(self) -> bool:
        """Skip space, line ends and comments; whether something follows."""
        while True:
            self._skip(" \t\r\n")
            if not self._here("#"):
                return self._at < len(self._text)
            end = self._text.find("\n", self._at)
            self._at = len(self._text) if end < 0 else end

    def _skip(self, characters: str) -> None:
        while self._at < len(self._text) and self._text[self._at] in characters:
            self._at += 1

    def _here(self, text: str) -> bool:
        return self._text.startswith(text, self._at)

    def _note(self, key: str, start: int) -> None:
        """The first place counts: a table is where it begins, not where it is named again."""
        if start > self._counted:
            self._line += self._text.count("\n", self._counted, start)
            self._counted = start
        self.lines.setdefault(key, self._line)
