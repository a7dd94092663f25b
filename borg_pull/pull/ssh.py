"""The ssh that a pull runs through: every option said, nothing left to anybody's configuration."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from borg_pull.pull.config import Source

LOST_KEEP_ALIVES = 3

# AES in hardware outruns the default, chacha20, several times over; `make bench` has the figures.
CIPHERS = "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes256-ctr"

CONNECTION_FAILED = 255
"""ssh's own exit code; a forced command of ours never gives it."""


@dataclass(frozen=True)
class Forwarding:
    """One reverse-forwarded Unix socket."""

    remote: str
    local: Path


def command(
    source: Source, known_hosts: Path, request: str, forwarding: Forwarding | None
) -> list[str]:
    """The argv that sends ``request`` to ``source``.

    ssh_config(5) has the options. ``-F none`` keeps the user's and the system's configuration
    out; what has a default that the environment or the key could change is said as well.
    """
    options = {
        "BatchMode": "yes",
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "IdentityFile": _quoted(source.identity),
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": _quoted(known_hosts),
        "GlobalKnownHostsFile": "/dev/null",
        "VerifyHostKeyDNS": "no",
        "UpdateHostKeys": "no",
        "PreferredAuthentications": "publickey",
        "ExitOnForwardFailure": "yes",
        "ClearAllForwardings": "no",
        "ControlMaster": "no",
        "ControlPath": "none",
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "Tunnel": "no",
        "PermitLocalCommand": "no",
        "ProxyCommand": "none",
        "CanonicalizeHostname": "no",
        "EscapeChar": "none",
        "RequestTTY": "no",
        "Compression": "no",
        "Ciphers": source.ciphers or CIPHERS,
        "TCPKeepAlive": "yes",
        "ConnectTimeout": str(max(1, int(source.connect_timeout.total_seconds()))),
        "ConnectionAttempts": "1",
        "ServerAliveInterval": str(max(1, int(source.keep_alive.total_seconds()))),
        "ServerAliveCountMax": str(LOST_KEEP_ALIVES),
        # At ERROR it does not say that the connection was closed, reset, or timed out.
        "LogLevel": "INFO",
    }
    argv = ["ssh", "-F", "none", "-T", "-a", "-x", "-p", str(source.port)]
    for name, value in options.items():
        argv += ["-o", f"{name}={value}"]
    if forwarding is not None:
        argv += ["-R", f"{forwarding.remote}:{forwarding.local}"]
    return [*tied(argv), f"{source.user}@{source.host}", "--", request]


def remedy(name: str, said: Sequence[str]) -> str:
    """What to do about an ssh that failed by itself on its way to the source ``name``.

    ``said`` are its words: those of OpenSSH, of which no other part tells more.
    """
    words = "\n".join(said)
    if not said:
        return f"the command there was killed, or the connection cut; run: borg-pull doctor {name}"
    if "HOST IDENTIFICATION HAS CHANGED" in words:
        return (
            "it shows another host key than the pinned one: its system was installed anew, or "
            f"somebody is in between; if it is the former, run: borg-pull trust {name}"
        )
    if "host key is known for" in words:
        return f"its host key is not pinned; run: borg-pull trust {name}"
    if "Permission denied" in words:
        return f"it does not let our key in; run: borg-pull doctor {name}"
    return f"nothing there was asked yet; run: borg-pull doctor {name}"


def tied(argv: Sequence[str]) -> list[str]:
    """``argv`` so that it ends when the thread that starts it does, kill -9 included.

    setpriv is part of util-linux. Where it is missing ssh still ends: its peer's ``borg serve``
    is tied to us, and what it serves fails with it.
    """
    setpriv = shutil.which("setpriv")
    return [*argv] if setpriv is None else [setpriv, "--pdeathsig", "TERM", "--", *argv]


def _quoted(path: Path) -> str:
    # Within a value ssh expands % and ${...}, and splits at spaces.
    text = str(path).replace("%", "%%")
    return f'"{text}"'
