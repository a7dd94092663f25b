"""The types of the configuration's values: what each takes, and what it says of anything else.

Durations are written as systemd does (``90s``, ``60min``, ``36h``, ``2d``, ``1h 30min``),
sizes with IEC or SI units (``500 GiB``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ByteSize,
    Field,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)

from borg_pull.pull.faults import wrong_type
from borg_pull.values import (
    compression_fault,
    exclude_fault,
    interval_fault,
    path_fault,
    repository_fault,
)

LONGEST_RUNTIME_DIR = 80
"""Bytes. A socket's path has 107 (unix(7)); a run's own directory and the socket need the rest."""

SMALLEST_QUOTA = 10_000_000  # bytes, borg's own limit
SMALLEST_MEMORY = 512 << 20  # bytes

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
NO_NAME = "is no name (letters, digits, '.', '_', '-', first a letter or digit, up to 64)"

_UNITS = {
    "": 1,
    "s": 1,
    "sec": 1,
    "second": 1,
    "seconds": 1,
    "m": 60,
    "min": 60,
    "minute": 60,
    "minutes": 60,
    "h": 3600,
    "hr": 3600,
    "hour": 3600,
    "hours": 3600,
    "d": 86400,
    "day": 86400,
    "days": 86400,
    "w": 604800,
    "week": 604800,
    "weeks": 604800,
}
LONGEST_SECONDS = 50 * 366 * 86400
"""Fits an int of C, in which ssh and borg count seconds, and any date that it is added to."""
LONGEST_WAIT = timedelta(days=1)
"""For an answer of the network; more would fit no poll(2), which counts milliseconds."""

_SPAN = re.compile(r"\s*([0-9]{1,9})\s*([a-z]*)")
_A_DURATION = "a time span such as 36h or 1h 30min"
_A_SIZE = "a size such as 500 GiB"


def duration(value: object) -> timedelta:
    """The time span in ``value`` (systemd.time(7), "PARSING TIME SPANS"); a number is seconds.

    Raises ValueError.
    """
    if isinstance(value, timedelta):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(wrong_type(_A_DURATION, value))  # noqa: TRY004 - pydantic's way
    return _span(str(value))


@cache
def _span(text: str) -> timedelta:
    seconds = at = 0
    while match := _SPAN.match(text, at):
        if match[2] not in _UNITS:
            raise ValueError(f"has the unit {match[2]!r}; known are s, min, h, d and w")
        seconds += int(match[1]) * _UNITS[match[2]]
        at = match.end()
    if at == 0 or text[at:].strip():
        raise ValueError(f"must be {_A_DURATION}")
    if seconds > LONGEST_SECONDS:
        raise ValueError("is longer than 50 years")
    return timedelta(seconds=seconds)


def _positive(value: timedelta) -> timedelta:
    if not value:
        raise ValueError("must be longer than nothing")
    return value


def _short(value: timedelta) -> timedelta:
    if value > LONGEST_WAIT:
        raise ValueError("is longer than a day")
    return value


_BYTES: TypeAdapter[ByteSize] = TypeAdapter(ByteSize)


def _size(value: object) -> ByteSize:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(wrong_type(_A_SIZE, value))  # noqa: TRY004 - pydantic's way
    try:
        return _BYTES.validate_python(value)
    except ValidationError as error:
        raise ValueError(f"must be {_A_SIZE}") from error


@cache
def _calendar(value: str) -> str:
    from oncalendar import OnCalendar, OnCalendarError

    try:
        next(OnCalendar(value, datetime.now(UTC)))
    except OnCalendarError as error:
        raise ValueError(f"is no calendar expression: {error}; see systemd.time(7)") from error
    except StopIteration as error:
        raise ValueError("names no moment that is still to come") from error
    return value


def _absolute(value: object) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str):
        raise ValueError(wrong_type("an absolute path", value))  # noqa: TRY004 - pydantic's way
    if not value.isprintable():
        raise ValueError("has characters that are not printable text")
    try:
        path = Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError("begins with the home of an unknown account") from error
    if not path.is_absolute():
        raise ValueError("must be an absolute path")
    return path


def _unless(fault: Callable[[str], str | None]) -> AfterValidator:
    """Refuses the values of which ``fault`` says what is wrong."""

    def check(value: str) -> str:
        found = fault(value)
        if found is not None:
            raise ValueError(found)
        return value

    return AfterValidator(check)


def _text_fault(value: str) -> str | None:
    if not value:
        return "is empty"
    return None if value.isprintable() else "has characters that are not printable text"


def _operand_fault(value: str) -> str | None:
    return "begins with a dash" if value.startswith("-") else _text_fault(value)


def _host_fault(value: str) -> str | None:
    # ssh would take more for a host name, among it what its own options begin with.
    fits = re.fullmatch(r"[A-Za-z0-9_:][A-Za-z0-9_.:%-]*", value)
    return None if fits else "is no host name or address"


def _user_fault(value: str) -> str | None:
    fits = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*", value)
    return None if fits else "is no account's name"


def _remote_directory_fault(value: str) -> str | None:
    # ssh splits what it is told to forward at colons, and expands %u and ${NAME}.
    odd = next((sign for sign in ":%$" if sign in value), None)
    return path_fault(value) if odd is None else f"has a '{odd}', of which ssh would make more"


def _umask_fault(value: str) -> str | None:
    return None if re.fullmatch("0?[0-7]{3}", value) else "must be three octal digits, as 077"


def name_fault(value: str) -> str | None:
    """What makes ``value`` unfit as a name in the configuration, or None."""
    return None if re.fullmatch(NAME_PATTERN, value) else NO_NAME


def _program(command: list[str]) -> list[str]:
    if not command[0].startswith(("/", "~/")):
        raise ValueError("must begin with the absolute path of a program")
    return [os.path.expanduser(command[0]), *command[1:]]


def _repository_path(path: Path) -> Path:
    fault = repository_fault(str(path))
    if fault is not None:
        raise ValueError(fault)
    return path


def runtime_dir_fault(path: Path) -> str | None:
    """What makes ``path`` unfit for directories of sockets, or None."""
    length = len(os.fsencode(path))
    if length <= LONGEST_RUNTIME_DIR:
        return None
    return (
        f"is too long for a directory of sockets ({length} bytes; "
        f"the limit is {LONGEST_RUNTIME_DIR})"
    )


def _runtime_dir(path: Path) -> Path:
    fault = runtime_dir_fault(path)
    if fault is not None:
        raise ValueError(fault)
    return path


def _metrics_file(path: Path) -> Path:
    if path.suffix != ".prom":
        raise ValueError("must end in .prom, else the collector leaves it aside")
    return path


def _large_enough(quota: int) -> int:
    if quota < SMALLEST_QUOTA:
        raise ValueError("is less than the 10 MB that borg demands")
    return quota


def _enough(memory: int) -> int:
    if memory < SMALLEST_MEMORY:
        raise ValueError("is less than the 512 MiB that borg starts with")
    return memory


def unique(values: list[str]) -> list[str]:
    """``values``; raises ValueError when one is there twice."""
    for position, value in enumerate(values):
        if value in values[:position]:
            raise ValueError(f"has {value!a} twice")
    return values


Text = Annotated[str, _unless(_text_fault), WithJsonSchema({"type": "string", "minLength": 1})]
Operand = Annotated[
    str, _unless(_operand_fault), WithJsonSchema({"type": "string", "pattern": "^[^-]"})
]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
NameReference = Annotated[
    str, _unless(name_fault), WithJsonSchema({"type": "string", "pattern": NAME_PATTERN})
]
AbsolutePath = Annotated[
    Path, BeforeValidator(_absolute), WithJsonSchema({"type": "string", "pattern": "^[/~]"})
]
RepositoryPath = Annotated[AbsolutePath, AfterValidator(_repository_path)]
RuntimeDirectory = Annotated[AbsolutePath, AfterValidator(_runtime_dir)]
MetricsFile = Annotated[AbsolutePath, AfterValidator(_metrics_file)]
SourcePath = Annotated[
    str, _unless(path_fault), WithJsonSchema({"type": "string", "pattern": "^/"})
]
RemoteDirectory = Annotated[
    str, _unless(_remote_directory_fault), WithJsonSchema({"type": "string", "pattern": "^/"})
]
Host = Annotated[Operand, _unless(_host_fault)]
User = Annotated[Operand, _unless(_user_fault)]
Umask = Annotated[
    str, _unless(_umask_fault), WithJsonSchema({"type": "string", "pattern": "^0?[0-7]{3}$"})
]
Compression = Annotated[Text, _unless(compression_fault)]
Pattern = Annotated[Text, _unless(exclude_fault)]
Interval = Annotated[
    Text,
    _unless(interval_fault),
    WithJsonSchema({"type": "string", "pattern": "^[1-9][0-9]*[Hdwmy]$"}),
]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Calendar = Annotated[Text, AfterValidator(_calendar)]
Command = Annotated[list[Text], Field(min_length=1), AfterValidator(_program)]

_SPAN_SCHEMA = {
    "type": ["string", "integer"],
    "minimum": 0,
    "pattern": "^ *[0-9][0-9a-z ]*$",
}
Duration = Annotated[timedelta, BeforeValidator(duration), WithJsonSchema(_SPAN_SCHEMA)]
PositiveDuration = Annotated[Duration, AfterValidator(_positive)]
ShortDuration = Annotated[PositiveDuration, AfterValidator(_short)]
Size = Annotated[
    ByteSize,
    BeforeValidator(_size),
    WithJsonSchema({"type": ["string", "integer"], "minimum": 0, "pattern": "^[0-9. ]+[A-Za-z]*$"}),
]
Memory = Annotated[Size, AfterValidator(_enough)]
Quota = Annotated[Size, AfterValidator(_large_enough)]
