"""Whether the companion is there for the clients whose rules speak of it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from borg_pull import accounts, aio_policy
from borg_pull.admin import host
from borg_pull.configuration_files import main_file
from borg_pull.errors import BorgPullError
from borg_pull.findings import Findings
from borg_pull.linux.sockets import listener_of
from borg_pull.roles import is_admin
from borg_pull.source.whitelist import ClientRules, Settings

_SECONDS = 5.0
_START = "systemctl enable --now borg-pull-aio.socket borg-pull-aio.service"


def look(
    findings: Findings,
    account: accounts.Account | None,
    config: str,
    settings: Settings,
    clients: Mapping[str, ClientRules],
) -> None:
    """Look at the companion's socket, where some client may ask for what it does."""
    asking = [
        name
        for name, rules in clients.items()
        if rules.actions or rules.aio_targets or is_admin(rules.role, settings.features)
    ]
    if not asking:
        return
    try:
        path = aio_policy.load(main_file(config, host.UNCHECKED)).aio.socket
    except BorgPullError:
        return  # `check` has said it
    why = f"what clients ask of it is refused with 69: {', '.join(asking)}"
    if os.geteuid() != 0:
        findings.unchecked("companion.socket", path, "only root may try it without being refused")
        return
    fault = _fault(path)
    if fault is not None:
        findings.wrong("error", "companion.socket", path, fault, why=why, remedy=_START)
        return
    findings.ok("companion.socket", path, "is the companion's")
    if account is None:
        return
    with accounts.acting_as(account):
        can_connect = os.access(path, os.W_OK, effective_ids=True)
    if can_connect:
        findings.ok("companion.access", path, f"is open to {account.name}")
        return
    findings.wrong(
        "error",
        "companion.access",
        path,
        f"is closed to {account.name}",
        needed=f"group {account.group}, mode 0660, in a directory that it may enter",
        why=why,
        remedy="set SocketGroup and SocketMode in borg-pull-aio.socket",
    )


def _fault(path: str) -> str | None:
    """What is wrong with the socket, as the forced command will find it."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_SECONDS)
        try:
            connection.connect(path)
            uid = listener_of(connection).uid
        except OSError as error:
            return f"nobody is there: {error.strerror or error}"
    return None if uid == 0 else f"uid {uid} listens there, not root"
