"""Every sample that is shipped loads; every bad one fails, and the message names file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from borg_pull.aio_policy import ACTION_KEYS, AIO_KEYS, TARGET_KEYS
from borg_pull.positions import Positions
from borg_pull.roles import FEATURE_KEYS
from borg_pull.settings import AUDIT_KEYS, RUNTIME_KEYS
from borg_pull.source.whitelist import CLIENT_KEYS, CONFINE_KEYS, LIMIT_KEYS
from tests.admin_runs import run

TESTS = Path(__file__).parent
CONTRIB = TESTS.parent / "contrib"
NO_WHITELISTS = {CONTRIB / "pull.example.toml"}
"""The backup server's, of which its own tests are."""
GOOD = sorted({*TESTS.glob("samples/good/*.toml"), *CONTRIB.rglob("*.toml")} - NO_WHITELISTS)
BAD = sorted(TESTS.glob("samples/bad/*.toml"))
EXPECT = "# expect: "


def name(path: Path) -> str:
    return path.stem


def test_the_globs_find_the_samples() -> None:
    assert len(BAD) > 30
    assert {"config.example", "original-example", "every-key"} <= set(map(name, GOOD))


@pytest.mark.parametrize("path", GOOD, ids=name)
def test_a_good_sample_loads(path: Path) -> None:
    answer = run("check", path)
    assert answer.exit == 0, answer.stdout
    assert f"{path}: sound: " in answer.stdout


@pytest.mark.parametrize("path", BAD, ids=name)
def test_a_bad_sample_fails(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith(EXPECT)
    answer = run("check", path)
    assert answer.exit == 78
    errors = [line for line in answer.stdout.splitlines() if ": warning: " not in line]
    assert all(line.startswith(f"{path}:") for line in errors), errors
    assert any(first.removeprefix(EXPECT) in line for line in errors), errors
    assert answer.stderr == f"the configuration is wrong: {len(errors)} error" + (
        "s" if len(errors) > 1 else ""
    )


def test_the_annotated_example_shows_every_key() -> None:
    path = CONTRIB / "config.example.toml"
    text = path.read_text()
    positions = Positions(text)
    tables = {
        "runtime": RUNTIME_KEYS,
        "audit": AUDIT_KEYS,
        "confine": CONFINE_KEYS,
        "limits": LIMIT_KEYS,
        "features": FEATURE_KEYS,
        "aio": AIO_KEYS,
    }
    for table, keys in tables.items():
        for key in keys:
            assert positions.has(f"{table}.{key.name}"), key.name
    for keys, places in (
        (CLIENT_KEYS, ("client.luna", "client.stella", "client.vega")),
        (TARGET_KEYS, ("aio.target.vault", "aio.target.disk")),
        (
            tuple(key for key in ACTION_KEYS if key.name != "remote_repo"),
            ("action.nightly", "action.check-disk"),
        ),
    ):
        for key in keys:
            assert any(positions.has(f"{place}.{key.name}") for place in places), key.name
