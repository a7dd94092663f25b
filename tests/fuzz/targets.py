"""All targets by name."""

from __future__ import annotations

from . import answers, companion, counts, logs, masking, peers, requests, runs, whitelists
from .target import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        requests.TARGET,
        whitelists.TARGET,
        runs.RUN,
        runs.LOCK_NOTE,
        logs.TARGET,
        counts.TARGET,
        masking.TARGET,
        peers.PASSPHRASE,
        peers.CALLER,
        peers.WRAP,
        answers.TARGET,
        companion.TARGET,
    )
}
