"""The repository passphrase: from a file, a command, or the first line of standard input.

It travels in memory and through pipes only: never in argv, never in an environment.
"""

from __future__ import annotations

import os
import time

from borg_pull.errors import ConfigurationError, RequestError, SystemRefusedError
from borg_pull.source import confine
from borg_pull.source.capture import output_of, wait_for
from borg_pull.source.request import split
from borg_pull.trust import check_program, read_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from borg_pull.source.whitelist import ClientRules
    from borg_pull.trust import Trust

MAX_PASSPHRASE = 4096  # bytes
STDIN_TIMEOUT = 30.0  # seconds
COMMAND_TIMEOUT = 60.0  # seconds


def obtain(
    rules: ClientRules, trust: Trust, environment: dict[str, str], watch: int
) -> bytes | None:
    """The passphrase without its line end, None when the rules name no source for one.

    ``environment`` is for the command. Raises ConfigurationError for a file or command that does
    not yield one, RequestError when standard input does not, and EndedError for a signal that
    ``watch`` notes meanwhile.
    """
    if rules.passphrase_file is not None:
        content = read_file(
            rules.passphrase_file, trust, limit=MAX_PASSPHRASE, own=True, secret=True
        )
        return _first_line(content, f"passphrase_file {rules.passphrase_file}")
    if rules.passcommand is not None:
        return _first_line(_output_of(rules.passcommand, trust, environment, watch), "passcommand")
    if rules.passphrase_stdin:
        return _line_of_standard_input(watch)
    return None


def obtain_new(watch: int) -> bytes:
    """The new passphrase, the line of standard input behind the present one. Raises as `obtain`."""
    line = _line_of_standard_input(watch, "new passphrase", "second")
    if b"\0" in line:
        raise RequestError("the new passphrase has a NUL", "no environment can hold one")
    return line


def _first_line(content: bytes, source: str) -> bytes:
    line = content.partition(b"\n")[0].rstrip(b"\r")
    if not line:
        raise ConfigurationError(f"{source} yields no passphrase", "its first line is empty")
    fault = _fault(line)
    if fault is not None:
        raise ConfigurationError(f"{source} yields a passphrase that {fault}")
    return line


def _fault(passphrase: bytes) -> str | None:
    """What keeps borg, which reads it as a line of a text file, from taking it as it stands."""
    try:
        passphrase.decode("utf-8")
    except UnicodeDecodeError:
        return "is not UTF-8 text"
    return "has a carriage return, which borg takes for a line end" if b"\r" in passphrase else None


def _line_of_standard_input(watch: int, what: str = "passphrase", place: str = "first") -> bytes:
    """Read up to the first line end and no further, byte by byte: the rest is not ours."""
    line = b""
    deadline = time.monotonic() + STDIN_TIMEOUT
    hint = f"send it as the {place} line of standard input"
    while len(line) <= MAX_PASSPHRASE:
        try:
            wait_for(0, deadline, watch)
        except TimeoutError:
            message = f"no {what} arrived within {STDIN_TIMEOUT:.0f} seconds"
            raise RequestError(message, hint) from None
        try:
            byte = os.read(0, 1)
        except OSError as error:
            raise RequestError(f"standard input cannot be read: {error.strerror}", hint) from error
        if byte in (b"", b"\n"):
            line = line.rstrip(b"\r")
            if not line:
                raise RequestError(f"this client must send its {what}", hint)
            fault = _fault(line)
            if fault is not None:
                raise RequestError(f"the {what} {fault}", hint)
            return line
        line += byte
    raise RequestError(f"the {what} is longer than {MAX_PASSPHRASE} bytes", hint)


def _output_of(command: str, trust: Trust, environment: dict[str, str], watch: int) -> bytes:
    try:
        argv = split(command)
    except RequestError as error:
        raise ConfigurationError(f"passcommand: {error.message}") from error
    if not argv or not argv[0].startswith("/"):
        raise ConfigurationError("passcommand does not begin with an absolute path")
    check_program(argv[0], trust)
    try:
        return output_of(
            tuple(argv),
            environment,
            confinement=confine.OF_ADMINS_PROGRAMS,
            rules=None,
            timeout=COMMAND_TIMEOUT,
            limit=MAX_PASSPHRASE,
            watch=watch,
        )
    except SystemRefusedError as error:
        raise ConfigurationError(f"passcommand: {error.message}") from error
