"""Every sample loads, every bad one fails by the name of its key, and the schema knows them too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tomli
from pydantic import BaseModel

from borg_pull.pull.check_config import json_schema
from borg_pull.pull.config import Config
from borg_pull.pull.faults import table_of
from tests.harness.builds import PROJECT
from tests.pull.runs import run

SAMPLES = Path(__file__).parent / "samples"
EXAMPLE = PROJECT / "contrib/pull.example.toml"
GOOD = [*sorted(SAMPLES.glob("good/*.toml")), EXAMPLE]
BAD = sorted(SAMPLES.glob("bad/*.toml"))
EXPECT = "# expect: "


def name(path: Path) -> str:
    return path.stem


def ours(sample: Path, directory: Path) -> Path:
    """A copy with the mode a configuration must have, whatever umask the checkout had."""
    copy = directory / "pull.toml"
    shutil.copyfile(sample, copy)
    copy.chmod(0o600)
    return copy


def test_the_globs_find_the_samples() -> None:
    assert len(BAD) > 50
    assert {"smallest", "original-tool", "pull.example"} <= set(map(name, GOOD))


@pytest.mark.parametrize("sample", GOOD, ids=name)
def test_a_good_sample_loads(sample: Path, tmp_path: Path) -> None:
    answer = run("check-config", "--config", ours(sample, tmp_path))
    assert (answer.exit, answer.stderr) == (0, ""), answer.stdout
    assert f"{tmp_path}/pull.toml: sound: " in answer.stdout


@pytest.mark.parametrize("sample", BAD, ids=name)
def test_a_bad_sample_fails_once(sample: Path, tmp_path: Path) -> None:
    first = sample.read_text().splitlines()[0]
    assert first.startswith(EXPECT)
    path = ours(sample, tmp_path)
    answer = run("check-config", "--config", path)
    assert answer.exit == 78
    faults = answer.stdout.splitlines()
    assert all(fault.startswith(f"{path}: ") for fault in faults), faults
    assert any(fault.startswith(f"{path}: {first.removeprefix(EXPECT)}") for fault in faults), (
        faults
    )
    # With the second one that what was misspelt is missing.
    assert len(faults) == 1 or sample.stem in ("misspelt-key", "unknown-table"), faults
    errors = "error" if len(faults) == 1 else "errors"
    assert answer.stderr == f"the configuration is wrong: {len(faults)} {errors}"


def test_the_schema_is_one() -> None:
    schema = json.loads(run("config", "schema").stdout)
    assert schema == json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    with pytest.raises(jsonschema.SchemaError):
        jsonschema.Draft202012Validator.check_schema({**schema, "type": "pull"})


@pytest.mark.parametrize("sample", GOOD, ids=name)
def test_the_schema_takes_a_good_sample(sample: Path) -> None:
    jsonschema.Draft202012Validator(json_schema()).validate(tomli.loads(sample.read_text()))


@pytest.mark.parametrize("sample", BAD, ids=name)
def test_the_schema_refuses_a_bad_sample(sample: Path) -> None:
    """But for what only the whole can tell, or has a meaning that no pattern has."""
    text = sample.read_text()
    try:
        document = tomli.loads(text)
    except tomli.TOMLDecodeError:
        assert sample.stem == "not-toml"
        return
    is_valid = jsonschema.Draft202012Validator(json_schema()).is_valid(document)
    assert is_valid == ("\n# the schema takes it\n" in text)


def test_the_annotated_example_shows_every_key() -> None:
    assert shown_keys(tomli.loads(uncommented(EXAMPLE))) == every_key(Config)


def uncommented(path: Path) -> str:
    """The example with what it shows in comments, ``# key = value``, as if it were written."""
    lines = []
    for line in path.read_text().splitlines():
        key = line.removeprefix("# ").partition(" = ")
        lines.append(line.removeprefix("# ") if key[1] and key[0].isidentifier() else line)
    return "\n".join(lines)


def shown_keys(table: dict[str, Any], prefix: str = "") -> set[str]:
    keys = set()
    for key, value in table.items():
        named = not prefix and key in ("storage", "source", "repository", "job")
        for content in value.values() if named else [value]:
            if isinstance(content, dict):
                keys |= shown_keys(content, f"{prefix}{key}.")
            else:
                keys.add(prefix + key)
    return keys


def every_key(model: type[BaseModel], prefix: str = "") -> set[str]:
    keys = set()
    for key in model.model_fields:
        nested = table_of(model, key)
        if nested is None:
            keys.add(prefix + key)
        else:
            keys |= every_key(nested, f"{prefix}{key}.")
    return keys
