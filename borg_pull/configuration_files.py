"""The files of the configuration: the main one, and those of single clients beside it.

All programs that obey them find and read them through these functions.
"""

from __future__ import annotations

import os

from borg_pull.errors import ConfigurationError
from borg_pull.schema import SourceFile
from borg_pull.trust import read_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from borg_pull.trust import Trust

MAX_MAIN_FILE = 16 * 1024 * 1024  # bytes
MAX_CLIENT_FILE = 1024 * 1024  # bytes


def main_file(config: str, trust: Trust) -> SourceFile:
    """The main configuration file. Raises ConfigurationError."""
    try:
        content = read_file(config, trust, limit=MAX_MAIN_FILE, own=False, secret=False)
    except ConfigurationError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            error.hint = "name another, or write one as in the quickstart, section 3"
        raise
    return SourceFile(name=config, content=content)


def client_directory(config: str) -> str:
    """Where the files of single clients stand."""
    return f"{os.path.dirname(config)}/clients.d"


def client_file(config: str, client: str, trust: Trust) -> SourceFile | None:
    """The client's own file, None when there is none. Raises ConfigurationError."""
    path = f"{client_directory(config)}/{client}.toml"
    if not os.path.lexists(path):
        return None
    content = read_file(path, trust, limit=MAX_CLIENT_FILE, own=False, secret=False)
    return SourceFile(name=path, content=content)
