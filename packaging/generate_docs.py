"""Fill the generated sections of the documentation from the code.

usage: packaging/generate_docs.py [--check]

A section stands in a Markdown file between ``<!-- generated: NAME -->`` and
``<!-- end generated -->``. With ``--check`` nothing is written; what is out of date, missing or
unknown is named, and so is an exit code that two error classes claim. Exit code 0 or 1.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import pkgutil
import re
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

import borg_pull
from borg_pull import aio_policy, audit, errors, roles, schema, settings, values
from borg_pull.admin.doctor.settings import SETTINGS
from borg_pull.pull import config, fields
from borg_pull.pull.faults import table_of
from borg_pull.source import (
    outcome,
    passphrase,
    peer,
    relay,
    report,
    request,
    session,
    state,
    trail,
    whitelist,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

DOCS = Path(__file__).resolve().parent.parent / "docs"
SECTION = re.compile(
    r"(?P<start><!-- generated: (?P<name>[a-z-]+) -->\n).*?(?P<end><!-- end generated -->)",
    re.DOTALL,
)
BORG_CODES = {
    errors.BORG_SUCCESS: "borg ran: success",
    errors.BORG_WARNING: "borg ran: warning",
}


class GenerationError(Exception):
    """The documentation cannot be made from the code as it is."""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines
    )


def error_classes() -> Iterator[type[errors.BorgPullError]]:
    """Every error class of the package that has an exit code of its own."""
    for module in pkgutil.walk_packages(borg_pull.__path__, "borg_pull."):
        if not module.name.endswith(("__main__", "_kernel_build")):
            importlib.import_module(module.name)
    waiting = [errors.BorgPullError]
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        if "exit_code" in vars(cls):
            yield cls


def exit_codes() -> str:
    """The table of exit codes. Raises GenerationError for one that is claimed twice."""
    meanings = dict(BORG_CODES)
    owners = dict.fromkeys(BORG_CODES, "borg")
    for cls in error_classes():
        code = cls.exit_code
        if code in owners:
            raise GenerationError(
                f"exit code {code} is claimed by {owners[code]} and {cls.__name__}"
            )
        owners[code] = cls.__name__
        meanings[code] = cls.meaning
    return table(("exit", "meaning"), [(str(code), meanings[code]) for code in sorted(meanings)])


def configuration_keys(keys: Sequence[schema.Key]) -> str:
    """The table of one TOML table's keys."""
    return table(
        ("key", "type", "default", "meaning"),
        [(f"`{key.name}`", key.kind, key.default_text, key.doc) for key in keys],
    )


def verbs() -> str:
    """The table of the verbs, their operands and options."""
    return table(
        ("verb", "operands", "options"),
        [
            (
                f"`{request.spelling(verb.name)}`",
                f"`{verb.operands}`" if verb.operands else "",
                ", ".join(f"`--{option.name}`" for option in verb.options),
            )
            for verb in request.VERBS.values()
        ],
    )


def role_table() -> str:
    """The table of who may ask for what, with which switches."""
    rows = []
    for verb, needs in roles.NEEDS.items():
        cells = []
        for role in roles.ROLES:
            if roles.ROLES.index(role) < roles.ROLES.index(needs.role):
                cells.append("no")
            elif needs.switches:
                cells.append(", ".join(f"`{switch}`" for switch in needs.switches))
            else:
                cells.append("yes")
        listed = f"in `{needs.listed}`" if needs.listed else ""
        rows.append((f"`{request.spelling(verb)}`", listed, *cells))
    return table(("verb", "listed", *(f"`{role}`" for role in roles.ROLES)), rows)


def sshd_settings() -> str:
    """The table of what is set in sshd for the account."""
    return table(
        ("setting", "why"),
        [(f"`{setting.keyword} {setting.value}`", setting.why) for setting in SETTINGS],
    )


# The types of values in pull.toml, in words.
KINDS: list[tuple[Any, str]] = [
    (fields.AbsolutePath, "absolute path"),
    (fields.Calendar, "calendar expression"),
    (fields.Command, "array of program and arguments"),
    (fields.Duration, "time span"),
    (fields.Memory, "size"),
    (fields.MetricsFile, "absolute path"),
    (fields.NameReference, "name"),
    (fields.PositiveDuration, "time span"),
    (fields.Quota, "size"),
    (fields.RepositoryPath, "absolute path"),
    (fields.RuntimeDirectory, "absolute path"),
    (fields.ShortDuration, "time span"),
    (fields.Size, "size"),
    (fields.SourcePath, "absolute path"),
    (fields.RemoteDirectory, "absolute path"),
    (bool, "boolean"),
    (float, "number"),
    (int, "integer"),
    (str, "string"),
]


def kind_of(hint: Any) -> str:
    """The type ``hint`` of a key in pull.toml, in words."""
    for known, text in KINDS:
        if hint == known:
            return text
    if get_origin(hint) in (Union, types.UnionType):
        return kind_of(next(each for each in get_args(hint) if each is not type(None)))
    if get_origin(hint) is Literal:
        return ", ".join(f'`"{value}"`' for value in get_args(hint))
    if get_origin(hint) is list:
        return f"array of {kind_of(get_args(hint)[0])}s"
    if hasattr(hint, "__metadata__"):
        return kind_of(get_args(hint)[0])
    raise GenerationError(f"no words for the type {hint}")


def pull_keys(model: type[BaseModel]) -> str:
    """The table of one table's keys in pull.toml, but those that are tables."""
    hints = get_type_hints(model, include_extras=True)
    rows = []
    for name, field in model.model_fields.items():
        if table_of(model, name) is not None:
            continue
        if not field.description:
            raise GenerationError(f"{model.__name__}.{name} has no description")
        rows.append((f"`{name}`", kind_of(hints[name]), default_of(field), field.description))
    return table(("key", "type", "default", "meaning"), rows)


def default_of(field: FieldInfo) -> str:
    """The default of a key, as it would be written."""
    if field.is_required():
        return "required"
    value = field.default
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def sizes() -> str:
    """The table of all that a peer can make large, and what bounds it."""
    lines = [
        ("a request", f"{request.MAX_REQUEST:,} bytes", "refused (64)"),
        ("its options, repeated ones too", f"{request.MAX_OPTIONS}", "refused (64)"),
        ("its paths", f"{values.MAX_PATHS}", "refused (64)"),
        (
            "a path; one component of it",
            f"{values.MAX_PATH:,}; {values.MAX_NAME} bytes",
            "refused (64)",
        ),
        (
            "an archive name or `--glob-archives`",
            f"{values.MAX_ARCHIVE_NAME} characters",
            "refused (64)",
        ),
        ("a comment", f"{request.MAX_COMMENT:,} characters", "refused (64)"),
        ("an `--exclude`", f"{values.MAX_PATTERN:,} characters", "refused (64)"),
        (
            "the passphrase on standard input",
            f"{passphrase.MAX_PASSPHRASE:,} bytes in {passphrase.STDIN_TIMEOUT:.0f} seconds",
            "refused (64)",
        ),
        (
            "the request in its record",
            f"{trail.MAX_REQUEST_RECORDED:,} characters",
            "cut; `request_truncated` says so",
        ),
        ("a record", f"{audit.MAX_RECORD_BYTES:,} bytes", "nothing runs (73)"),
        (
            "borg's output that waits for a slow peer",
            f"{relay.MAX_PENDING:,} bytes",
            "borg waits",
        ),
        (
            "borg's output with `create --json`, for the record",
            f"{session.STDOUT_KEPT:,} bytes",
            "passed on; no statistics in the record",
        ),
        (
            "borg's last words, for the record",
            f"{session.STDERR_KEPT:,} bytes, of which {outcome.MAX_WORDS} characters are recorded",
            "cut",
        ),
        (
            "the socket wrap's report",
            f"{2 * report.PART:,} bytes, a message of {report.MAX_MESSAGE} characters",
            "its beginning and end are read",
        ),
        (
            "locks of repositories that nobody pulls to",
            f"{state.MAX_LOCKS} a client",
            "removed",
        ),
        ("what sshd tells of the key", f"{peer.MAX_USER_AUTH:,} bytes", "not recorded"),
        (
            "a client's sessions and requests, all sessions",
            "[as configured](configuration.md)",
            "refused (75)",
        ),
    ]
    return table(("what", "at most", "beyond that"), lines)


# Every section there is, and the file it must stand in.
SECTIONS: dict[str, tuple[str, Callable[[], str]]] = {
    "exit-codes": ("protocol.md", exit_codes),
    "verbs": ("protocol.md", verbs),
    "sizes": ("protocol.md", sizes),
    "runtime-keys": ("configuration.md", lambda: configuration_keys(settings.RUNTIME_KEYS)),
    "audit-keys": ("configuration.md", lambda: configuration_keys(settings.AUDIT_KEYS)),
    "confine-keys": ("configuration.md", lambda: configuration_keys(whitelist.CONFINE_KEYS)),
    "limit-keys": ("configuration.md", lambda: configuration_keys(whitelist.LIMIT_KEYS)),
    "roles": ("configuration.md", role_table),
    "feature-keys": ("configuration.md", lambda: configuration_keys(roles.FEATURE_KEYS)),
    "aio-keys": ("configuration.md", lambda: configuration_keys(aio_policy.AIO_KEYS)),
    "target-keys": ("configuration.md", lambda: configuration_keys(aio_policy.TARGET_KEYS)),
    "action-keys": ("configuration.md", lambda: configuration_keys(aio_policy.ACTION_KEYS)),
    "sshd-settings": ("sshd.md", sshd_settings),
    "client-keys": ("configuration.md", lambda: configuration_keys(whitelist.CLIENT_KEYS)),
    "pull-settings-keys": ("pull-configuration.md", lambda: pull_keys(config.Settings)),
    "pull-source-keys": ("pull-configuration.md", lambda: pull_keys(config.Source)),
    "pull-repository-keys": ("pull-configuration.md", lambda: pull_keys(config.Repository)),
    "pull-storage-keys": ("pull-configuration.md", lambda: pull_keys(config.Storage)),
    "pull-job-keys": ("pull-configuration.md", lambda: pull_keys(config.Job)),
    "pull-retention-keys": ("pull-configuration.md", lambda: pull_keys(config.Retention)),
    "pull-check-keys": ("pull-configuration.md", lambda: pull_keys(config.Check)),
    "pull-hooks-keys": ("pull-configuration.md", lambda: pull_keys(config.Hooks)),
    "pull-notify-keys": ("pull-configuration.md", lambda: pull_keys(config.Notify)),
    "pull-metrics-keys": ("pull-configuration.md", lambda: pull_keys(config.Metrics)),
}


def generated(file: str, text: str) -> str:
    """``text`` of ``docs/file`` with its sections filled. Raises GenerationError."""
    found = [match["name"] for match in SECTION.finditer(text)]
    wanted = [name for name, (home, _content) in SECTIONS.items() if home == file]
    if sorted(found) != sorted(wanted):
        raise GenerationError(
            f"docs/{file}: has the sections {found}, wants {wanted}"
            " (<!-- generated: NAME --> ... <!-- end generated -->)"
        )
    return SECTION.sub(
        lambda match: match["start"] + SECTIONS[match["name"]][1]() + match["end"], text
    )


def main(arguments: Sequence[str]) -> int:
    """Write or check all sections; the exit code."""
    parser = argparse.ArgumentParser(description="Fill the generated sections of docs/*.md.")
    parser.add_argument("--check", action="store_true", help="write nothing, name what is stale")
    check = parser.parse_args(arguments).check
    status = 0
    for file in sorted({home for home, _content in SECTIONS.values()}):
        path = DOCS / file
        try:
            old = path.read_text(encoding="utf-8")
            new = generated(file, old)
        except (OSError, GenerationError) as error:
            print(f"generate_docs: {error}", file=sys.stderr)
            status = 1
            continue
        if new != old and check:
            print(
                f"generate_docs: docs/{file} is stale; run packaging/generate_docs.py",
                file=sys.stderr,
            )
            sys.stderr.writelines(
                difflib.unified_diff(
                    old.splitlines(keepends=True), new.splitlines(keepends=True), "is", "wants", n=0
                )
            )
            status = 1
        elif new != old:
            path.write_text(new, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
