"""The whitelist as the companion reads it: the very files that the forced command obeys."""

from __future__ import annotations

import os

from borg_pull.aio_policy import AioPolicy, load
from borg_pull.configuration_files import client_file, main_file
from borg_pull.trust import Trust

USUAL_CONFIG = "/etc/borg-pull/config.toml"


def load_for(config: str, client: str | None) -> AioPolicy:
    """The policy, with what ``client`` may name. Raises ConfigurationError, all faults at once."""
    trust = Trust(enforced=True, uid=os.geteuid())
    own = None if client is None else client_file(config, client, trust)
    return load(main_file(config, trust), own, client)
