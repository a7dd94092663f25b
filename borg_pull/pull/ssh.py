"""The ssh that a pull runs through: every option said, nothing left to anybody's configuration."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from borg_pull.errors import ConfigurationError, FailedError
from borg_pull.pull.config import Source

LOST_KEEP_ALIVES = 3

# AES in hardware outruns the default, chacha20, several times over; `make bench` has the figures.
CIPHERS = "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes256-ctr"

CONNECTION_FAILED = 255
"""ssh's own exit code; a forced command of ours never gives it."""

HAS_CHANGED = "HAS CHANGED"
"""In every message of a host key that is another one than before."""


class HostKeyError(FailedError):
    """ssh has not accepted the source's host key."""


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


def key_fault(name: str, identity: Path) -> ConfigurationError | None:
    """Why ssh could not use the private key of the source ``name``, as far as its file tells.

    Of a key that it cannot use, ssh says no more than that the source let us not in.
    """
    public = identity.with_name(f"{identity.name}.pub")
    try:
        mode = identity.stat().st_mode
    except FileNotFoundError:
        lost = f"rm {public}, since its private half is lost, and then " if public.exists() else ""
        return ConfigurationError(
            f"{identity} does not exist",
            f"put the key of source {name} back, or make a new one: {lost}"
            f"borg-pull keys generate {name}",
        )
    except OSError as error:
        return ConfigurationError(
            f"{identity} cannot be used: {error.strerror}", "give it to the account that runs this"
        )
    if mode & 0o077:
        return ConfigurationError(
            f"{identity} is open to others (mode {mode & 0o7777:04o}), and ssh refuses it",
            f"chmod 600 {identity}; if others could read it, replace it, too: "
            f"borg-pull keys rotate {name}",
        )
    if not os.access(identity, os.R_OK):
        return ConfigurationError(
            f"{identity} cannot be read by this account", "give it to the account that runs this"
        )
    return None


def environment() -> dict[str, str]:
    """What ssh is given of an environment: made from nothing, for it expands variables in words of
    the source's, and no key of ours is in an agent."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}


def remedy(name: str, said: Sequence[str]) -> str:
    """What to do about an ssh that failed by itself on its way to the source ``name``, but for its
    host key.

    ``said`` are its words: those of OpenSSH, of which no other part tells more.
    """
    words = "\n".join(said)
    if not said:
        return f"the command there was killed, or the connection cut; run: borg-pull doctor {name}"
    if "Permission denied" in words:
        return f"it does not let our key in; run: borg-pull doctor {name}"
    return f"nothing there was asked yet; run: borg-pull doctor {name}"


def host_key_fault(name: str, code: int | None, said: Sequence[str]) -> HostKeyError | None:
    """What is wrong with the host key of source ``name``, if an ssh that has ``said`` this and
    ended with ``code`` did not accept it.

    Its own words tell (its sshconnect.c). A source that has let us in can say the same; then it
    is a false alarm of its own making, and `borg-pull trust` finds the key that is pinned.
    """
    if code != CONNECTION_FAILED or "Host key verification failed." not in said:
        return None
    words = "\n".join(said)
    if "REVOKED HOST KEY" in words:
        return HostKeyError(
            f"THE HOST KEY OF SOURCE {name} IS MARKED AS REVOKED in known_hosts: somebody else may "
            "have it",
            "nothing was sent; have its admin make a new one, compare that, and then: "
            f"borg-pull trust {name}",
        )
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in words:
        shown = re.search("SHA256:[A-Za-z0-9+/]+", words)
        now = "" if shown is None else f": it shows {shown[0]} now"
        return HostKeyError(
            f"THE HOST KEY OF SOURCE {name} {HAS_CHANGED}{now}",
            "its system was installed anew, or somebody is in between; nothing was sent; compare "
            f"it with what the source itself says, and only then: borg-pull trust {name}",
        )
    if "host key is known for" in words:
        return HostKeyError(
            f"source {name} has no host key pinned",
            f"compare it with what the source itself says, and pin it: borg-pull trust {name}",
        )
    return HostKeyError(
        f"the host key of source {name} was not accepted", f"see borg-pull doctor {name}"
    )


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
