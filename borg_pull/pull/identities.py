"""The keys that this host logs in with: one a source, so that one that leaks opens one."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import click

from borg_pull.errors import (
    BusyError,
    ConfigurationError,
    FailedError,
    SystemRefusedError,
    printable,
)
from borg_pull.output import print_table, put
from borg_pull.pull import ssh
from borg_pull.pull.config import Config, Source
from borg_pull.pull.host_keys import fingerprint, named_source
from borg_pull.pull.invocation import Invocation, configured

LOGIN_SECONDS = 60.0
"""Beyond the time to connect: what a source may take to let a key in."""


def client_name(source: Source) -> str:
    """This host's client name at ``source``: the one configured, else one made of its own name."""
    return source.client or this_host()


def this_host() -> str:
    """This host's name, without its domain and what no name may have."""
    label = socket.gethostname().partition(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]", "", label).lstrip("_-")[:64] or "backup"


def generate(name: str, identity: Path, comment: str) -> str:
    """Make a key pair at ``identity`` for the source ``name``; its public line.

    Raises ConfigurationError when there is one, SystemRefusedError, OSError.
    """
    if os.path.lexists(identity):
        raise ConfigurationError(
            f"{identity} exists",
            f"it is left as it is; to have another one, run: borg-pull keys rotate {name}",
        )
    public = _public(identity)
    if os.path.lexists(public):
        raise ConfigurationError(
            f"{public} exists, without its private half {identity}",
            f"put that back; if it is lost, rm {public}, and run this again",
        )
    identity.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _keygen("-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(identity))
    return public_line(name, identity)


def public_line(name: str, identity: Path) -> str:
    """The public half of the private key of the source ``name``, as authorized_keys has it.

    Raises ConfigurationError when that key cannot be used unattended.
    """
    unusable = ssh.key_fault(name, identity)
    if unusable is not None:
        raise unusable
    try:
        line = _keygen("-y", "-P", "", "-f", str(identity)).strip()
    except SystemRefusedError as error:
        raise ConfigurationError(
            f"{identity} is no private key, or has a passphrase, which nobody types at night",
            f"take the passphrase off with ssh-keygen -p -f {identity}, or move the file away and "
            f"run: borg-pull keys generate {name}",
        ) from error
    return line


def _keygen(*arguments: str) -> str:
    argv = ["ssh-keygen", *arguments]
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise SystemRefusedError(f"cannot run ssh-keygen: {error.strerror}") from error
    if done.returncode != 0:
        raise SystemRefusedError(f"ssh-keygen: {_last_line(done.stderr, done.returncode)}")
    return done.stdout


def _last_line(text: str, code: int) -> str:
    lines = text.strip().splitlines()
    return printable(lines[-1]) if lines else f"exit {code}"


def is_let_in(name: str, source: Source, known_hosts: Path, identity: Path) -> bool:
    """Whether the source takes this key. Raises FailedError when it cannot be asked."""
    asked = source.model_copy(update={"identity": identity})
    try:
        done = subprocess.run(
            ssh.command(asked, known_hosts, "hello", None),
            stdin=subprocess.DEVNULL,
            env=ssh.environment(),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=source.connect_timeout.total_seconds() + LOGIN_SECONDS,
        )
    except OSError as error:
        raise SystemRefusedError(f"cannot run ssh: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise FailedError(f"source {name} did not answer") from error
    # Any other code is the forced command's, which runs once the key has been let in.
    if done.returncode != ssh.CONNECTION_FAILED:
        return True
    if "Permission denied" in done.stderr:
        return False
    refused = ssh.host_key_fault(name, done.returncode, done.stderr.splitlines())
    if refused is not None:
        raise refused
    raise FailedError(f"source {name}: {_last_line(done.stderr, done.returncode)}")


def _public(identity: Path) -> Path:
    return identity.with_name(f"{identity.name}.pub")


def _successor(identity: Path) -> Path:
    return identity.with_name(f"{identity.name}.new")


def replace(identity: Path) -> None:
    """Put the successor in the place of ``identity``; whole after a crash at any point, and then
    done by the next call.
    """
    successor = _successor(identity)
    if successor.exists():
        # ssh offers the key it finds here, so none may stand beside the wrong private half.
        _public(identity).unlink(missing_ok=True)
        os.replace(successor, identity)
    if _public(successor).exists():
        os.replace(_public(successor), _public(identity))


# Commands


@click.group("keys", short_help="Make, replace and list the keys to log in with.")
def keys() -> None:
    """The keys that this host logs in to its sources with, one a source."""


@keys.command("generate", short_help="Make a source's key.")
@click.argument("source")
@configured
def generate_command(invocation: Invocation, source: str) -> None:
    """Make the key of SOURCE, where its identity says, and print its public half.

    One that exists is left as it is: to get another, see keys rotate.
    """
    chosen = named_source(invocation.config, source)
    line = generate(source, chosen.identity, comment(source, chosen))
    put(f"made {chosen.identity}\n")
    put(_to_list([line], chosen))


def comment(name: str, source: Source) -> str:
    """What a public key's line says of its use."""
    return f"borg-pull-{client_name(source)}-{name}"


@keys.command("rotate", short_help="Replace a source's key.")
@click.argument("source")
@configured
def rotate_command(invocation: Invocation, source: str) -> None:
    """Replace the key of SOURCE without a gap, in two calls.

    The first makes a new key and prints what to paste on the source. Once the source takes it,
    the second puts it in the place of the old one, which works until then.

    Exit code 0: replaced; 2: the source cannot be asked; 75: it does not know the new key yet.
    """
    chosen = named_source(invocation.config, source)
    identity, successor = chosen.identity, _successor(chosen.identity)
    if _public(successor).exists() and not successor.exists():
        # An earlier call was ended in between.
        replace(identity)
        put(f"source {source} has its new key, {_fingerprint(public_line(source, identity))}\n")
        return
    old = public_line(source, identity)
    if not successor.exists():
        generate(source, successor, comment(source, chosen))
    new = public_line(source, successor)
    if not is_let_in(source, chosen, invocation.places.known_hosts, successor):
        put(_to_list([old, new], chosen))
        raise BusyError(
            f"source {source} does not know the new key yet",
            "run this again once it does; until then the old one stays in use",
        )
    replace(identity)
    put(f"source {source} has its new key, {_fingerprint(new)}\n")
    put(f"Take the old one off the source's whitelist, {_fingerprint(old)}:\n  {old}\n")


def _to_list(lines: Sequence[str], source: Source) -> str:
    client = client_name(source)
    shown = "".join(f'    "{line}",\n' for line in lines)
    return (
        f"On the source, in its whitelist under [client.{client}]:\n\n"
        f"keys = [\n{shown}]\n\n"
        "and then let its sshd know:\n\n"
        "/opt/borg-pull/borg-pull-admin authorized-keys /etc/borg-pull/config.toml "
        "--output /etc/borg-pull/authorized_keys\n"
    )


def _fingerprint(line: str) -> str:
    return fingerprint(line.split()[1])


@dataclass(frozen=True)
class Listed:
    """One source's key."""

    source: str
    identity: str
    state: str
    """``ready``, else what is wrong with it."""
    fingerprint: str | None
    made: str | None
    """RFC 3339, UTC."""
    is_rotating: bool
    """Whether a new key waits for the source to know it."""
    shared_with: list[str]
    """Other sources with the same key."""


@keys.command("list", short_help="List the keys.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@configured
def list_command(invocation: Invocation, as_json: bool) -> None:
    """List the key of each source: its fingerprint, when it was made, and whether it is usable.

    With --json the answer is {type: "keys", version: 1, keys: [...]}; of each key source,
    identity, state, fingerprint, made, is_rotating and shared_with.
    """
    listed = _listed(invocation.config)
    if as_json:
        answer = {"type": "keys", "version": 1, "keys": [asdict(key) for key in listed]}
        put(json.dumps(answer) + "\n")
        return
    rows = [
        (
            (key.source, key.fingerprint or "-", (key.made or "-")[:10], _state(key)),
            "" if key.state == "ready" else "red",
        )
        for key in listed
    ]
    print_table(("SOURCE", "FINGERPRINT", "MADE", "STATE"), rows)


def _state(key: Listed) -> str:
    notes = [key.state]
    if key.is_rotating:
        notes.append("a new one waits")
    if key.shared_with:
        notes.append(f"also that of {', '.join(key.shared_with)}")
    return printable("; ".join(notes))


def _listed(config: Config) -> list[Listed]:
    listed = []
    for name, source in config.source.items():
        line = made = None
        try:
            line = public_line(name, source.identity)
            stamp = source.identity.stat().st_mtime
            made = datetime.fromtimestamp(stamp, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            state = "ready"
        except ConfigurationError as error:
            state = error.message.removeprefix(f"{source.identity} ")
        others = [
            other
            for other, its in config.source.items()
            if other != name and its.identity == source.identity
        ]
        listed.append(
            Listed(
                source=name,
                identity=str(source.identity),
                state=state,
                fingerprint=None if line is None else _fingerprint(line),
                made=made,
                is_rotating=_successor(source.identity).exists(),
                shared_with=others,
            )
        )
    return listed
