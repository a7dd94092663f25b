"""``borg-pull add-source``: from nothing to a job, and what its source needs to know."""

from __future__ import annotations

import base64
import json
import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
from pydantic import TypeAdapter, ValidationError

from borg_pull.errors import BorgPullError, RequestError
from borg_pull.output import put
from borg_pull.pull import config, fields, host_keys, identities, secret
from borg_pull.pull.config import Config, Repository
from borg_pull.pull.faults import dotted
from borg_pull.pull.invocation import Invocation, configured
from borg_pull.pull.loading import directory_beside, examine
from borg_pull.pull.places import Places
from borg_pull.pull.repository import LocalRepository

PASSPHRASE_BYTES = 30
"""Random ones, which make 40 characters."""

UNENCRYPTED = "none"
ENCRYPTIONS = ("repokey-blake2", "repokey", "authenticated-blake2", "authenticated", UNENCRYPTED)
"""Modes whose key is in the repository, and none; the others are for who makes their own."""

NO_SCHEDULE = "never"


@dataclass(frozen=True)
class Answers:
    """What must be known of a new source."""

    name: str
    host: str
    user: str
    port: int
    client: str
    paths: tuple[str, ...]
    repository: Path
    encryption: str
    passphrase_file: Path | None
    schedule: str
    """A calendar expression or ``never``."""


@click.command("add-source", short_help="Add a source, and a job that pulls it.")
@click.argument("name")
@click.option("--host", help="Host name or address.")
@click.option("--user", default="borg-pull", show_default=True, help="Account there.")
@click.option("--port", default=22, show_default=True, help="Port of its sshd.")
@click.option("--client", help="This host's client name there.  [default: this host's name]")
@click.option("--path", "paths", multiple=True, help="What to back up; may be repeated.")
@click.option("--repository", help="Directory of the repository here, made when missing.")
@click.option(
    "--encryption",
    type=click.Choice(ENCRYPTIONS),
    default=ENCRYPTIONS[0],
    show_default=True,
    help="Of the repository, when it is made.",
)
@click.option(
    "--passphrase-file",
    help="File of its passphrase, made when missing.  [default: NAME.passphrase beside pull.toml]",
)
@click.option("--schedule", help=f"Calendar expression, or {NO_SCHEDULE}.")
@click.option("--accept", metavar="SHA256:...", help="Pin the host key with this fingerprint.")
@click.option(
    "--ask/--no-ask", default=None, help="Ask for what no option says.  [default: on a terminal]"
)
@configured
def add_source(
    invocation: Invocation,
    name: str,
    host: str | None,
    user: str,
    port: int,
    client: str | None,
    paths: tuple[str, ...],
    repository: str | None,
    encryption: str,
    passphrase_file: str | None,
    schedule: str | None,
    accept: str | None,
    ask: bool | None,
) -> None:
    """Add the source NAME with a job that pulls it, and print what to paste on the source.

    Makes a key for it, a repository and its passphrase unless they are there, and
    pull.d/NAME.toml; then shows the source's host key, to be compared and pinned. Called again
    after a failure it goes on with what it made.
    """
    if invocation.chosen is None:
        invocation.chosen = config.path_to_make()
    fault = fields.name_fault(name)
    if fault is not None:
        raise RequestError(f"{name!a} {fault}")
    main = invocation.path
    _begin(main)
    file = directory_beside(main) / f"{name}.toml"
    _refuse_known(invocation.config, name, file)
    asked = _Questions(asking=sys.stdin.isatty() if ask is None else ask)
    answers = Answers(
        name=name,
        host=host or asked.one("--host", "Its host name or address", fields.Host, name),
        user=user,
        port=port,
        client=client or identities.this_host(),
        paths=paths or asked.paths(),
        repository=Path(repository or asked.repository(name)).expanduser(),
        encryption=encryption,
        passphrase_file=_passphrase_file(main, name, passphrase_file, encryption),
        schedule=asked.schedule() if schedule is None else schedule,
    )
    places = invocation.places
    text = toml(tables(answers, places))
    _check(main, file, text)
    line = _key(places, answers)
    _repository(answers)
    file.parent.mkdir(mode=0o700, exist_ok=True)
    host_keys.replace(file, text)
    put(f"wrote {file}\n\n{introduction(answers, line)}\n")
    _trust(config.load(main), places, name, accept, asking=asked.asking)


def _begin(main: Path) -> None:
    """Make the main file, if there is none yet."""
    main.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.path.lexists(main):
        host_keys.replace(main, "# What borg-pull pulls; see also the files in pull.d.\n")
        put(f"made {main}\n")


def _refuse_known(known: Config, name: str, file: Path) -> None:
    for kind, names in (
        ("source", known.source),
        ("repository", known.repository),
        ("job", known.job),
    ):
        if name in names:
            raise RequestError(
                f"there is a {kind} {name} already", "see borg-pull check-config, or choose a name"
            )
    if os.path.lexists(file):
        raise RequestError(f"{file} exists", "choose another name")


class _Questions:
    """Asks a person for what no option said, or says which option that was."""

    def __init__(self, *, asking: bool) -> None:
        self.asking = asking

    def one(self, option: str, text: str, kind: Any, default: str | None = None) -> str:
        """An answer of the type ``kind``, asked for until it is. Raises RequestError."""
        if not self.asking:
            raise RequestError(f"{option} is missing", "give it, or --ask")

        def fitting(answer: str) -> str:
            try:
                TypeAdapter(kind).validate_python(answer)
            except ValidationError as error:
                detail = error.errors()[0]
                said = detail.get("ctx", {}).get("error", detail["msg"])
                raise click.BadParameter(str(said)) from error
            return answer

        answer: str = click.prompt(text, default=default, value_proc=fitting)
        return answer

    def paths(self) -> tuple[str, ...]:
        found = [self.one("--path", "Path to back up", fields.SourcePath)]
        while click.confirm("Another path?"):
            found.append(self.one("--path", "Path to back up", fields.SourcePath))
        return tuple(found)

    def repository(self, name: str) -> str:
        return self.one(
            "--repository",
            "Directory of its repository here",
            fields.RepositoryPath,
            f"~/backup/{name}",
        )

    def schedule(self) -> str:
        """Not demanded: a job without one is run when asked for."""
        if not self.asking:
            return NO_SCHEDULE
        kind = fields.Calendar | Literal["never"]
        return self.one("--schedule", "When, as systemd.time(7) has it", kind, "*-*-* 02:00")


def _passphrase_file(main: Path, name: str, given: str | None, encryption: str) -> Path | None:
    if given is not None:
        return Path(given).expanduser().absolute()
    return None if encryption == UNENCRYPTED else main.parent / f"{name}.passphrase"


def tables(answers: Answers, places: Places) -> dict[tuple[str, str], dict[str, Any]]:
    """The tables of the new file, by kind and name."""
    source: dict[str, Any] = {"host": answers.host}
    if answers.user != "borg-pull":
        source["user"] = answers.user
    if answers.port != 22:
        source["port"] = answers.port
    source |= {"identity": str(places.keys / answers.name), "client": answers.client}
    repository = {"path": str(answers.repository)}
    if answers.passphrase_file is not None:
        repository["passphrase_file"] = str(answers.passphrase_file)
    job: dict[str, Any] = {
        "source": answers.name,
        "repository": answers.name,
        "paths": list(answers.paths),
    }
    if answers.schedule != NO_SCHEDULE:
        job["schedule"] = answers.schedule
    return {
        ("source", answers.name): source,
        ("repository", answers.name): repository,
        ("job", answers.name): job,
    }


def toml(content: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    """Tables of printable text, numbers and arrays of text, as TOML."""
    written = []
    for location, table in content.items():
        # What JSON escapes of printable text, quote and backslash, TOML does alike.
        keys = (
            f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in table.items()
        )
        written.append(f"[{dotted(location)}]\n{''.join(keys)}")
    return "\n".join(written)


def _check(main: Path, file: Path, text: str) -> None:
    """Check what would be the configuration. Raises RequestError for what does not fit."""
    try:
        reading = examine(main, (file, text))
    except ValueError as error:
        raise RequestError(f"an answer has what no text can hold: {error}") from error
    if reading.faults:
        raise RequestError("; ".join(f"{fault.key} {fault.message}" for fault in reading.faults))


def _key(places: Places, answers: Answers) -> str:
    """The public half of the source's key, made unless it is there."""
    identity = places.keys / answers.name
    if identity.exists():
        return identities.public_line(answers.name, identity)
    line = identities.generate(answers.name, identity, f"borg-pull-{answers.client}-{answers.name}")
    put(f"made the key {identity}\n")
    return line


def _repository(answers: Answers) -> None:
    """Make the repository and its passphrase, unless they are there."""
    repository = Repository.model_validate(
        {
            "path": str(answers.repository),
            "passphrase_file": None
            if answers.passphrase_file is None
            else str(answers.passphrase_file),
        }
    )
    if (answers.repository / "config").exists():
        if answers.passphrase_file is not None:
            secret.passphrase(answers.name, repository)
        return
    if answers.passphrase_file is not None and not os.path.lexists(answers.passphrase_file):
        random = base64.b64encode(secrets.token_bytes(PASSPHRASE_BYTES)).decode("ascii")
        host_keys.replace(answers.passphrase_file, f"{random}\n")
        put(f"made the passphrase {answers.passphrase_file}\n")
    answers.repository.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    local = LocalRepository(repository, lambda: secret.passphrase(answers.name, repository))
    local.run(["init", "--encryption", answers.encryption, str(answers.repository)])
    put(f"made the repository {answers.repository} ({answers.encryption})\n")
    if answers.passphrase_file is not None:
        put(
            "Keep copies of its passphrase and of its key elsewhere: without them nobody can read "
            f"the backup.\n  borg key export {answers.repository} FILE\n"
        )


def introduction(answers: Answers, line: str) -> str:
    """What to do on the source, with the lines for its whitelist."""
    # A disk that is not mounted would be backed up as nothing.
    table: dict[str, Any] = {"paths": list(answers.paths), "refuse_empty": True}
    if answers.passphrase_file is not None:
        table["passphrase_stdin"] = True
    else:
        # borg asks before it first uses an unencrypted repository.
        table["allow_unknown_repository"] = True
    table["keys"] = [line]
    whitelist = toml({("client", answers.client): table})
    return (
        "On the source, as root, add to /etc/borg-pull/config.toml:\n\n"
        f"{whitelist}\n"
        "then let its sshd know:\n\n"
        "/opt/borg-pull/borg-pull-admin check /etc/borg-pull/config.toml\n"
        "/opt/borg-pull/borg-pull-admin authorized-keys /etc/borg-pull/config.toml "
        "--output /etc/borg-pull/authorized_keys\n"
    )


def _trust(known: Config, places: Places, name: str, accept: str | None, *, asking: bool) -> None:
    """Pin the host key, as far as somebody says which."""
    if accept is None and not asking:
        put(f"Its host key is not pinned; before the first run: borg-pull trust {name}\n")
        return
    try:
        host_keys.establish(places, name, known.source[name], accept, click.confirm)
    except BorgPullError:
        put(f"The source is added; pin its host key later: borg-pull trust {name}\n")
        raise
    put(f"Then pull it: borg-pull run {name}\n")
