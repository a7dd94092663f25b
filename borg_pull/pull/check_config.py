"""``borg-pull check-config`` and ``borg-pull config``: what is wrong, and what can be written."""

from __future__ import annotations

import json
from typing import Literal, TypedDict

import click
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import NullableSchema, WithDefaultSchema

from borg_pull.errors import ConfigurationError, printable
from borg_pull.output import print_lines, put
from borg_pull.pull.config import Config
from borg_pull.pull.invocation import Invocation, configured
from borg_pull.pull.loading import Reading, examine

_ANSWER = """\
With --json the answer is

\b
  type          "check-config"
  version       1
  config        path of the main file
  ok            whether nothing is wrong
  files         all files read
  sources, repositories, jobs
                names of those that are sound by themselves
  errors        list of {file, key, message}; key is "" for a whole file
"""


class FaultObject(TypedDict):
    """A fault in a `Report`; the fields are those of `faults.Fault`."""

    file: str
    key: str
    message: str


class Report(TypedDict):
    """The answer of ``check-config --json``."""

    type: Literal["check-config"]
    version: Literal[1]
    config: str
    ok: bool
    files: list[str]
    sources: list[str]
    repositories: list[str]
    jobs: list[str]
    errors: list[FaultObject]


@click.command("check-config", epilog=_ANSWER, short_help="Check the configuration.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@configured
def check_config(invocation: Invocation, as_json: bool) -> None:
    """Check pull.toml and the files of pull.d beside it, and name everything that is wrong.

    Nothing but these files is looked at. Exit code 0, or 78 when anything is wrong.
    """
    reading = examine(invocation.path)
    if as_json:
        put(json.dumps(_report(str(invocation.path), reading)) + "\n")
    elif reading.faults:
        print_lines(((fault.text(), "red"),) for fault in reading.faults)
    else:
        counts = (
            _count(len(reading.named[kind]), kind) for kind in ("source", "repository", "job")
        )
        files = _count(len(reading.files), "file")
        text = f"{printable(str(invocation.path))}: sound: {', '.join(counts)} in {files}"
        print_lines([((text, "green"),)])
    if reading.faults:
        errors = _count(len(reading.faults), "error")
        raise ConfigurationError(f"the configuration is wrong: {errors}")


@click.group("config", short_help="What a configuration can hold.")
def config_group() -> None:
    """What a configuration can hold."""


@config_group.command("schema")
def schema() -> None:
    """Print the JSON Schema of pull.toml, for editors."""
    put(json.dumps(json_schema(), indent=2) + "\n")


class _TomlSchema(GenerateJsonSchema):
    """Without what TOML cannot say, null, and without titles that repeat the keys."""

    def nullable_schema(self, schema: NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: WithDefaultSchema) -> JsonSchemaValue:
        if schema.get("default", ...) is None:
            return self.generate_inner(schema["schema"])
        return super().default_schema(schema)

    def field_title_should_be_set(self, _schema: object) -> bool:
        return False


def json_schema() -> dict[str, object]:
    """The JSON Schema of pull.toml."""
    return {
        "$schema": _TomlSchema.schema_dialect,
        **Config.model_json_schema(schema_generator=_TomlSchema),
        "title": "pull.toml",
    }


def _report(path: str, reading: Reading) -> Report:
    return Report(
        type="check-config",
        version=1,
        config=path,
        ok=not reading.faults,
        files=[str(file) for file in reading.files],
        sources=list(reading.named["source"]),
        repositories=list(reading.named["repository"]),
        jobs=list(reading.named["job"]),
        errors=[
            FaultObject(file=fault.file, key=fault.key, message=fault.message)
            for fault in reading.faults
        ],
    )


def _count(number: int, what: str) -> str:
    plural = f"{what[:-1]}ies" if what.endswith("y") else f"{what}s"
    return f"{number} {what if number == 1 else plural}"
