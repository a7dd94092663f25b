"""``borg-pull-admin authorized-keys``: the lines that let the clients' keys log in."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shlex
from collections.abc import Iterator, Mapping

import click

from borg_pull.admin import host
from borg_pull.configuration_files import main_file
from borg_pull.errors import ConfigurationError, RequestError, SystemRefusedError
from borg_pull.output import put
from borg_pull.replacing import replace
from borg_pull.roles import NEEDS, ROLES
from borg_pull.source.installation import program_beside
from borg_pull.source.whitelist import ClientRules, load, public_key_blob
from borg_pull.trust import Trust

_SSHD = """\
For sshd to ask at every login, in contrib/sshd/borg-pull.conf, in place of the two lines it has
there for AuthorizedKeysFile and AuthorizedKeysCommand:

\b
AuthorizedKeysFile none
# on one line:
AuthorizedKeysCommand /opt/borg-pull/borg-pull-admin
    authorized-keys --fingerprint %f /etc/borg-pull/config.toml
AuthorizedKeysCommandUser borg-pull

Nowhere but below its Match: otherwise sshd asks for every account, and the keys open each.
"""

KEY_OPTIONS = 'restrict,port-forwarding,permitopen="localhost:1",permitlisten="localhost:1"'
"""What a key may do besides its forced command, where borg is to reach its peer.

``port-forwarding`` is what ssh -R of a socket takes, and by itself allows every -L and -R. There
is no word for none of them: so the one TCP port that may be asked for, either way, is one that
nobody serves and no account can listen on. Unix sockets are then refused to -L, too.
"""


def key_options(rules: ClientRules) -> str:
    """The options of the lines of a client's keys: one whose role has no borg run forwards nothing,
    and leaves no socket behind."""
    has_borg = ROLES.index(rules.role) >= ROLES.index(NEEDS["create"].role)
    return KEY_OPTIONS if has_borg else "restrict"


@click.command("authorized-keys", epilog=_SSHD, short_help="Print the lines that let keys log in.")
@click.argument("config", type=click.Path(readable=False))
@click.option(
    "--program",
    type=click.Path(),
    help="The forced command.  [default: the borg-pull-source beside this program]",
)
@click.option("--fingerprint", metavar="SHA256:...", help="Only the key with this fingerprint.")
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(),
    help="Write them to FILE instead: all of them at once, or nothing.",
)
def authorized_keys(
    config: str, program: str | None, fingerprint: str | None, output: str | None
) -> None:
    """Print a line for authorized_keys for each key in the whitelist CONFIG.

    Each lets its key run the forced command for its client, whatever the client asks for, and
    forward sockets if its role takes that: read and action do not.

    Nothing but lines goes to standard output. When anything is wrong with the configuration,
    clients.d included, nothing is printed and the exit code is 78, upon which sshd accepts no
    key: no client gets in by rules of which a part could not be read. FILE of --output then stays
    as it is, as it does when there is no key at all. Where PROGRAM holds its file capability,
    CONFIG must be root's alone to write, as the forced command demands.
    """
    config = host.absolute(config)
    program = program or program_beside("borg-pull-source")
    if not program.startswith("/"):
        raise RequestError(f"--program {program} is not absolute")
    if fingerprint is not None and re.fullmatch(r"SHA256:[A-Za-z0-9+/]{43}", fingerprint) is None:
        raise RequestError(
            f"--fingerprint {fingerprint} is not one", "it is SHA256: and 43 characters of Base64"
        )
    if fingerprint is not None and output is not None:
        raise RequestError(
            "--output stands beside --fingerprint", "a file that sshd reads has the keys of all"
        )
    trust = Trust(enforced=host.has_capability(program), uid=os.geteuid())
    clients = _clients(config, trust)
    lines = [
        line
        for client, rules in clients.items()
        for line in _lines(program, config, client, rules, fingerprint)
    ]
    content = b"".join(line + b"\n" for line in lines)
    if output is not None:
        _write(os.path.abspath(output), content)
        return
    if not any(rules.keys for rules in clients.values()):
        click.echo("borg-pull-admin: no client has keys", err=True)
    put(content)


def _write(path: str, content: bytes) -> None:
    """Put ``content`` at ``path``. Raises ConfigurationError when it would let nobody in."""
    if not content:
        raise ConfigurationError(
            f"no client has keys, so {path} is left as it is",
            "list them in keys; to lock everybody out, see borg-pull-admin lockdown",
        )
    try:
        replace(path, content)
    except OSError as error:
        hint = "run this as root" if isinstance(error, PermissionError) else None
        raise SystemRefusedError(f"cannot write {path}: {error.strerror}", hint) from error


def _clients(config: str, trust: Trust) -> Mapping[str, ClientRules]:
    """The rules of all clients. Raises ConfigurationError for anything wrong anywhere."""
    main = main_file(config, trust)
    found = host.client_files(config, trust)
    for _, error in found.unusable:
        raise error
    return load(main, found.files).clients


def _lines(
    program: str, config: str, client: str, rules: ClientRules, fingerprint: str | None
) -> Iterator[bytes]:
    command = forced_command(program, config, client)
    for key in rules.keys:
        if fingerprint is None or fingerprint == fingerprint_of(key):
            options = key_options(rules).encode()
            yield b'%b,command="%b" %b' % (options, command, key.encode("utf-8"))


def forced_command(program: str, config: str, client: str) -> bytes:
    r"""The value of ``command=``: words quoted for the shell that sshd runs it with, and then
    for the line, in which only ``\"`` is special (sshd(8)).

    Raises ConfigurationError for a path that would end the line.
    """
    for path in (program, config):
        if any(character < " " or character == "\x7f" for character in path):
            raise ConfigurationError(
                f"{path!a} has a control character, which no line of authorized_keys can hold"
            )
    return os.fsencode(shlex.join((program, config, client)).replace('"', '\\"'))


def fingerprint_of(key: str) -> str:
    """Fingerprint of a public key line, as ``ssh-keygen -l`` prints it."""
    digest = hashlib.sha256(public_key_blob(key)).digest()
    return "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")
