"""Whether this host serves anybody at all: the file ``lockdown`` beside the configuration.

Root alone can put it there or take it away. That it exists is what locks; what it says is for
people, but for who may lift it: lines ``since: TIME``, ``by: NAME``, ``client: NAME`` when a client
asked for it over ssh, ``reason: TEXT``.
"""

from __future__ import annotations

import errno
import os

from borg_pull.errors import printable
from borg_pull.record import Record

FILE = "lockdown"
MAX_REASON = 300
"""Longest reason, in characters."""
MAX_NAME = 64
"""Longest name of who locked down, in characters."""
_MAX_FILE = 4096  # bytes; the longest that borg-pull-admin writes has 1.6 KiB


class Lockdown(Record):
    """What the file says, in one printable line each; None for what it does not."""

    since: str | None
    """RFC 3339 in UTC."""
    by: str | None
    """Name of the admin."""
    reason: str | None
    client: str | None
    """Who asked for it over ssh, and may lift it again; None for the host's admin."""
    fault: str | None
    """Why none of it could be read."""

    def line(self) -> str:
        """The one line that a refused request is told."""
        if self.fault is not None:
            return f"locked down for a reason that cannot be read: {self.fault}"
        since = "" if self.since is None else f" since {self.since}"
        by = "" if self.by is None else f" by {self.by}"
        reason = "" if self.reason is None else f": {self.reason}"
        return f"locked down{since}{by}{reason}"


def file_beside(config: str) -> str:
    """Path of the file for the configuration at ``config``."""
    return os.path.join(os.path.dirname(config), FILE)


def reason_of(config: str) -> str | None:
    """Why nothing may run now under the configuration at ``config``; None when all may."""
    found = read(config)
    return None if found is None else found.line()


def read(config: str) -> Lockdown | None:
    """The lockdown in force, None when there is none. Whatever stands there locks."""
    try:
        # Without O_NOFOLLOW a dangling link would look like no file.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        descriptor = os.open(file_beside(config), flags)
    except OSError as error:
        return None if error.errno == errno.ENOENT else _unreadable(error)
    try:
        content = os.read(descriptor, _MAX_FILE)
    except OSError as error:
        return _unreadable(error)
    finally:
        os.close(descriptor)
    said = {}
    for line in content.decode("utf-8", "replace").split("\n"):
        key, _, value = line.partition(": ")
        said[key] = printable(value[:MAX_REASON])
    return Lockdown(
        since=said.get("since") or None,
        by=said.get("by") or None,
        reason=said.get("reason") or None,
        client=said.get("client") or None,
        fault=None,
    )


def _unreadable(error: OSError) -> Lockdown:
    return Lockdown(
        since=None, by=None, reason=None, client=None, fault=os.strerror(error.errno or 0).lower()
    )
