"""``borg-pull notify test``: whether those who are to be told can be."""

from __future__ import annotations

import socket

import click

from borg_pull.errors import ConfigurationError
from borg_pull.findings import many
from borg_pull.output import put
from borg_pull.pull import secret
from borg_pull.pull.invocation import Invocation, tolerant
from borg_pull.pull.notify import NotifyError, named, send_to


@click.group("notify", short_help="Try the notifications.")
def notify_group() -> None:
    """What is to tell people that something is wrong."""


@notify_group.command("test", short_help="Send a message to each URL.")
@tolerant
def test(invocation: Invocation) -> None:
    """Send a test message to each URL of notify.urls_file, and say of each how that went.

    Exit code: 0 when each has taken it, 2 when not, 78 when there is none, or one is no URL.
    """
    file = invocation.config.notify.urls_file
    if file is None:
        raise ConfigurationError("nobody is notified", "set urls_file in [notify]")
    addresses = secret.lines(file)
    if not addresses:
        raise ConfigurationError(f"there is no URL in {file}", "add one a line")
    body = f"a test from {socket.gethostname()}: notifications of borg-pull arrive here"
    unknown: ConfigurationError | None = None
    failed = 0
    for number, address in enumerate(addresses, start=1):
        which = named(number, address)
        try:
            reason = send_to(address, number, "borg-pull: test", body, is_bad=False)
        except ConfigurationError as error:
            unknown = unknown or error
            continue
        failed += reason is not None
        put(f"{which}: {reason or 'sent'}\n")
    if unknown is not None:
        raise unknown
    if failed:
        raise NotifyError(f"{failed} of {many(len(addresses), 'URL')} did not take the message")
