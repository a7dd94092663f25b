"""What keeps the companion from doing what the whitelist has it do on this host."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from borg_pull.aio.configuration import AioConfiguration
from borg_pull.aio.engine import Engine
from borg_pull.aio_policy import faults_of_grants
from borg_pull.configuration_files import client_directory, client_file, main_file
from borg_pull.errors import BorgPullError
from borg_pull.trust import Trust

if TYPE_CHECKING:
    from collections.abc import Iterator

    from borg_pull.aio_policy import AioPolicy

_SUFFIX = ".toml"


def faults_of_clients(config: str) -> list[str]:
    """What is wrong with what clients may name. Raises ConfigurationError."""
    trust = Trust(enforced=True, uid=os.geteuid())
    listed: list[str] = []
    with contextlib.suppress(FileNotFoundError):
        listed = sorted(os.listdir(client_directory(config)))
    files = {}
    for name in listed:
        if name.endswith(_SUFFIX):
            client = name.removesuffix(_SUFFIX)
            own = client_file(config, client, trust)
            if own is not None:
                files[client] = own
    return [fault.text() for fault in faults_of_grants(main_file(config, trust), files)]


def faults_of_host(policy: AioPolicy) -> Iterator[str]:
    """What is wrong with AIO, its configuration and its engine."""
    aio = policy.aio
    try:
        found = Engine(aio.engine).inspect(aio.mastercontainer)
        if found is None:
            yield f"there is no container {aio.mastercontainer}"
        elif not found.running:
            yield f"the container {aio.mastercontainer} does not run; start Nextcloud AIO"
    except BorgPullError as error:
        yield error.line()
    try:
        content = AioConfiguration(aio.configuration_file).read()
    except BorgPullError as error:
        yield error.line()
        return
    if not content.is_set_up:
        yield "Nextcloud AIO is not set up yet; finish that in its interface"
    if policy.targets or any(action.target is not None for action in policy.actions.values()):
        yield from _why_not_replaced(aio.configuration_file)


def _why_not_replaced(path: str) -> Iterator[str]:
    """AIO's target is switched by another file in place of this one."""
    for place in (os.path.dirname(path), path):
        # Root may write to all but what is mounted read-only, or made immutable.
        if not os.access(place, os.W_OK):
            yield (
                f"{place} cannot be written to, so AIO's target cannot be switched; is it mounted "
                "read-only, or immutable (lsattr)?"
            )
            return
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
        is_mounted = any(line.split(" ")[4] == path.replace(" ", "\\040") for line in mounts)
    if is_mounted:
        yield (
            f"{path} is mounted by itself and cannot be replaced, so AIO's target cannot be "
            "switched; name it in its own directory"
        )
