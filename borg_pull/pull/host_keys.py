"""Host keys of the sources: asked for once, confirmed by a person, pinned from then on.

A run takes the key that is pinned and no other. So what is pinned is one key a source, the one that
a person has compared with what the source itself says.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from borg_pull.errors import (
    BusyError,
    ConfigurationError,
    FailedError,
    NotAllowedError,
    RequestError,
    SystemRefusedError,
)
from borg_pull.output import put
from borg_pull.pull.config import Config, Source
from borg_pull.pull.faults import nearest
from borg_pull.pull.invocation import Invocation, configured
from borg_pull.pull.places import Places
from borg_pull.pull.ssh import environment

KINDS = {
    "ssh-ed25519": "ed25519",
    "ecdsa-sha2-nistp256": "ecdsa",
    "ecdsa-sha2-nistp384": "ecdsa",
    "ecdsa-sha2-nistp521": "ecdsa",
    "ssh-rsa": "rsa",
}
"""The kinds asked for, the preferred one first, and what the source calls the file of each."""


@dataclass(frozen=True)
class HostKey:
    """One public host key."""

    kind: str
    blob: str
    """Base64, as in known_hosts."""

    @property
    def fingerprint(self) -> str:
        """As ``ssh-keygen -l`` prints it."""
        return fingerprint(self.blob)

    @property
    def file(self) -> str:
        """The public key's usual file on the source."""
        return f"/etc/ssh/ssh_host_{KINDS[self.kind]}_key.pub"


def fingerprint(blob: str) -> str:
    """The fingerprint of a public key in Base64."""
    digest = hashlib.sha256(base64.b64decode(blob)).digest()
    return "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")


def known_name(source: Source) -> str:
    """What ssh looks up in known_hosts for ``source``."""
    host = source.host.lower()
    return host if source.port == 22 else f"[{host}]:{source.port}"


def offered(source: Source) -> list[HostKey]:
    """The host keys that the source shows now, the preferred one first; nothing is proven of them.

    Empty when it does not answer. Raises SystemRefusedError.
    """
    seconds = max(1, int(source.connect_timeout.total_seconds()))
    kinds = ",".join(dict.fromkeys(KINDS.values()))
    argv = ["ssh-keyscan", "-T", str(seconds), "-t", kinds, "-p", str(source.port), source.host]
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            env=environment(),
            # One connection for each kind of key, and each may take the time given.
            timeout=seconds * (len(KINDS) + 1),
        )
    except OSError as error:
        raise SystemRefusedError(f"cannot run ssh-keyscan: {error.strerror}") from error
    except subprocess.TimeoutExpired:
        return []
    keys = {_key(line.split()) for line in done.stdout.decode("ascii", "replace").splitlines()}
    order = list(KINDS)
    return sorted((key for key in keys if key), key=lambda key: (order.index(key.kind), key.blob))


def _key(words: Sequence[str]) -> HostKey | None:
    """The key of a line of known_hosts, ``NAME KIND BLOB``; None for any other line."""
    if len(words) < 3 or words[0].startswith(("#", "@")) or words[1] not in KINDS:
        return None
    try:
        base64.b64decode(words[2], validate=True)
    except binascii.Error:
        return None
    return HostKey(words[1], words[2])


def pinned(known_hosts: Path, source: Source) -> list[HostKey]:
    """The keys pinned for ``source``. Raises ConfigurationError."""
    lines = [line.split() for line in _lines(known_hosts)]
    name = known_name(source)
    return [key for words in lines if words and words[0] == name and (key := _key(words))]


def pin(places: Places, source: Source, key: HostKey) -> None:
    """Have ``key``, and no other, be that of ``source``. Raises ConfigurationError, BusyError."""
    name = known_name(source)
    with (places.locks / "known_hosts").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError("another process is pinning a host key", "run this again") from error
        kept = [line for line in _lines(places.known_hosts) if line.split()[:1] != [name]]
        text = "".join(f"{line}\n" for line in (*kept, f"{name} {key.kind} {key.blob}"))
        replace(places.known_hosts, text)


def replace(path: Path, text: str) -> None:
    """Write ``path``, of mode 0600, so that at any instant it is the old file or the new one."""
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(descriptor)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


def _lines(known_hosts: Path) -> list[str]:
    try:
        return known_hosts.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{known_hosts} is not UTF-8 text") from error


def named_source(config: Config, name: str) -> Source:
    """The source of that name. Raises RequestError."""
    if name not in config.source:
        raise RequestError(f"there is no source {name}{nearest(name, config.source)}")
    return config.source[name]


@click.command(short_help="Show and pin a source's host key.")
@click.argument("source")
@click.option(
    "--accept",
    metavar="SHA256:...",
    help="Pin the key with this fingerprint, if the source has it, and ask nobody.",
)
@configured
def trust(invocation: Invocation, source: str, accept: str | None) -> None:
    """Show the host key of SOURCE, and pin it once you have compared it.

    Nothing is pulled from a source whose key is not pinned, or that shows another one. Get the
    fingerprint from the source itself, by another way than the network in between.

    Exit code 0: pinned; 2: the source does not answer; 77: not confirmed, or no such key.
    """
    chosen = named_source(invocation.config, source)
    establish(invocation.places, source, chosen, accept, click.confirm)


def establish(
    places: Places,
    name: str,
    source: Source,
    accept: str | None,
    confirm: Callable[[str], bool],
) -> None:
    """Pin the source's key, when it has the fingerprint ``accept``, else when ``confirm`` agrees.

    Raises FailedError, NotAllowedError, RequestError, ConfigurationError, BusyError.
    """
    keys = offered(source)
    if not keys:
        raise FailedError(
            f"source {name} shows no host key on {known_name(source)}",
            "is it on, and its sshd reachable from here?",
        )
    before = pinned(places.known_hosts, source)
    if accept is None:
        key = next((key for key in keys if key in before), keys[0])
        if key not in before:
            _show(name, key, before)
            if not _confirmed(confirm):
                raise NotAllowedError(f"the host key of source {name} was not confirmed")
    else:
        found = [key for key in keys if key.fingerprint == accept]
        if not found:
            shown = ", ".join(key.fingerprint for key in keys)
            raise NotAllowedError(
                f"source {name} shows no host key {accept}, but {shown}",
                "if that is not what the source itself says, somebody is in between",
            )
        [key] = found
    if before == [key]:
        put(f"source {name} still has the key {key.fingerprint}, which is pinned\n")
        return
    pin(places, source, key)
    put(f"pinned {key.fingerprint} ({KINDS[key.kind]}) for source {name}\n")


def _show(name: str, key: HostKey, before: Sequence[HostKey]) -> None:
    if before:
        put(f"THE HOST KEY OF SOURCE {name} HAS CHANGED. Pinned is\n")
        put("".join(f"  {old.fingerprint} ({KINDS[old.kind]})\n" for old in before))
        put("Unless its system was installed anew, somebody is in between. It now shows\n")
    else:
        put(f"Source {name} shows the host key\n")
    put(f"  {key.fingerprint} ({KINDS[key.kind]})\n")
    put(f"Compare it with what this prints on the source: ssh-keygen -l -f {key.file}\n")


def _confirmed(confirm: Callable[[str], bool]) -> bool:
    try:
        return confirm("Are they the same?")
    except click.Abort as error:
        if sys.stdin.isatty():
            raise
        raise RequestError("nobody answers", "give --accept FINGERPRINT") from error
