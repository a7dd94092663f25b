"""Tables of the configuration and how they are checked: every fault at once, with its line.

Pure, and part of the start-up path.
"""

from __future__ import annotations

from borg_pull.errors import ConfigurationError
from borg_pull.record import Record
from borg_pull.toml import loads
from borg_pull.values import path_fault, quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from borg_pull.positions import Positions


class SourceFile(Record):
    """One configuration file as read."""

    name: str
    """Path, for messages."""
    content: bytes


class Fault(Record):
    """One thing that is wrong with the configuration."""

    file: str
    line: int | None
    key: str
    """Dotted key path; empty for a fault of the whole file."""
    message: str

    def text(self) -> str:
        """``FILE:LINE: KEY: MESSAGE``"""
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.key}: {self.message}" if self.key else f"{place}: {self.message}"


class WhitelistError(ConfigurationError):
    """The configuration cannot be used; ``faults`` holds everything that is wrong with it."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        first = faults[0].text()
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        super().__init__(f"the configuration is wrong: {first}{more}", "see borg-pull-admin check")
        self.faults = tuple(faults)


class Key(Record):
    """One key of the configuration: how it is checked and what the docs say of it."""

    name: str
    kind: str
    """TOML type for messages and the docs."""
    faults: Callable[[object], Wrong]
    default: object
    """Value when absent; ``REQUIRED`` when there is none."""
    default_text: str
    """The default as the docs show it."""
    doc: str


REQUIRED = object()

if TYPE_CHECKING:
    # What is wrong with a value: (position as in ``[2]``, empty for the whole value; message).
    Wrong = Sequence[tuple[str, str]]


def string(what: str, fault: Callable[[str], str | None]) -> Callable[[object], Wrong]:
    """Checks a string, which ``fault`` looks at."""

    def check(value: object) -> Wrong:
        if not isinstance(value, str):
            return [("", wrong_type(what, value))]
        wrong = fault(value)
        return [] if wrong is None else [("", f"{quoted(value)} {wrong}")]

    return check


def boolean(value: object) -> Wrong:
    """Checks that it is true or false."""
    return [] if isinstance(value, bool) else [("", wrong_type("true or false", value))]


def whole_number(least: int, most: int) -> Callable[[object], Wrong]:
    """Checks a whole number within bounds."""

    def check(value: object) -> Wrong:
        if isinstance(value, bool) or not isinstance(value, int):
            return [("", wrong_type("a whole number", value))]
        if least <= value <= most:
            return []
        # A number of thousands of digits is not worth writing out, and Python refuses to.
        shown = str(value) if abs(value) < 10**18 else "the number"
        return [("", f"{shown} is not between {least} and {most}")]

    return check


def each(what: str, fault: Callable[[str], str | None]) -> Callable[[object], Wrong]:
    """Checks an array of different strings, each of which ``fault`` looks at."""

    def check(value: object) -> Wrong:
        if not isinstance(value, list):
            return [("", wrong_type(f"an array of {what}", value))]
        wrong: list[tuple[str, str]] = []
        seen: set[str] = set()
        for position, item in enumerate(value):
            if not isinstance(item, str):
                wrong.append((f"[{position}]", wrong_type("a string", item)))
                continue
            message = "stands there twice" if item in seen else fault(item)
            seen.add(item)
            if message is not None:
                wrong.append((f"[{position}]", f"{quoted(item)} {message}"))
        return wrong

    return check


def wrong_type(expected: str, value: object) -> str:
    """That a value is not of the type ``expected``."""
    names = {
        bool: "a boolean",
        str: "a string",
        int: "a number",
        float: "a fraction",
        list: "an array",
        dict: "a table",
    }
    return f"must be {expected}, not {names.get(type(value), type(value).__name__)}"


def parsed(file: SourceFile, faults: list[Fault]) -> dict[str, object] | None:
    """The document, None when it is none; then ``faults`` says why."""
    try:
        return loads(file.content.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = file.content.count(b"\n", 0, error.start) + 1
        faults.append(Fault(file=file.name, line=line, key="", message="is not UTF-8 text"))
    except ValueError as error:
        faults.append(
            Fault(
                file=file.name,
                line=_line_of_error(str(error), file.content),
                key="",
                message=f"is not valid TOML: {error}",
            )
        )
    except RecursionError:
        faults.append(Fault(file=file.name, line=None, key="", message="is nested too deeply"))
    return None


def _line_of_error(message: str, content: bytes) -> int | None:
    """tomli ends its messages in ``(at line L, column C)`` or ``(at end of document)``."""
    if message.endswith("(at end of document)"):
        return content.rstrip().count(b"\n") + 1
    digits = message.rpartition("(at line ")[2].partition(",")[0]
    return int(digits) if digits.isdigit() else None


class Check:
    """Checks tables of one file against the key tables and collects the faults.

    ``unknown`` says what is wrong with a key that no table has: (name, value, prefix, known names).
    """

    def __init__(
        self,
        file: SourceFile,
        faults: list[Fault],
        unknown: Callable[[str, object, str, tuple[str, ...]], str],
    ) -> None:
        self._file = file
        self._faults = faults
        self._unknown = unknown
        self._positions: Positions | None = None

    def fault(self, key: str, message: str) -> None:
        """Note what is wrong with ``key``."""
        if self._positions is None:
            from borg_pull.positions import Positions

            self._positions = Positions(self._file.content.decode("utf-8"))
        line = self._positions.line(key)
        self._faults.append(Fault(file=self._file.name, line=line, key=key, message=message))

    def values(
        self, table: object, keys: tuple[Key, ...], prefix: str
    ) -> tuple[dict[str, object], frozenset[str]] | None:
        """Value of every key, the default for one that is wrong, and the names of what is wrong;
        None when there is no table."""
        if not isinstance(table, dict):
            self.fault(prefix, wrong_type("a table", table))
            return None
        wrong: set[str] = set()
        values: dict[str, object] = {}
        for key in keys:
            values[key.name] = key.default
            if key.name not in table:
                faults: Wrong = [("", "is missing")] if key.default is REQUIRED else []
            else:
                value = table[key.name]
                faults = key.faults(value)
                if not faults:
                    values[key.name] = tuple(value) if isinstance(value, list) else value
            for position, message in faults:
                wrong.add(key.name)
                self.fault(f"{joined(prefix, key.name)}{position}", message)
        for name, value in table.items():
            if name not in values:
                wrong.add(name)
                self.fault(joined(prefix, name), self._unknown(name, value, prefix, tuple(values)))
        return values, frozenset(wrong)


def unknown_key(name: str, _value: object, _prefix: str, names: tuple[str, ...]) -> str:
    """What is wrong with a key that is not in ``names``."""
    near = nearest_name(name, names)
    return f"is unknown{near}" if near else f"is unknown; known are {', '.join(names)}"


def joined(prefix: str, name: str) -> str:
    """``name`` below ``prefix``, as a dotted key."""
    return f"{prefix}.{name}" if prefix else name


def nearest_name(name: str, known: tuple[str, ...]) -> str:
    """``"; did you mean X?"``, empty when nothing is near."""
    # Costs `re`; imported only once something is wrong already.
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def one_of(names: tuple[str, ...]) -> Callable[[str], str | None]:
    """Checks that it is one of ``names``."""

    def check(item: str) -> str | None:
        if item in names:
            return None
        nearest = nearest_name(item, names)
        return f"is unknown{nearest}; known are {', '.join(names)}"

    return check


absolute_path = string("an absolute path", path_fault)
