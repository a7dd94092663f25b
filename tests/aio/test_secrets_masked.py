"""Threat: a secret of AIO's configuration stands in what its programs write, which clients read.

And: a configuration that is made to have so many that looking for them takes for ever. The control
is a line that has none, which stays as it is.
"""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest

from borg_pull.aio.texts import Secrets
from borg_pull.errors import FailedError
from tests.aio.test_flow import Bench

KEY = "-----BEGIN KEY-----\nline-1-of-the-key\nline-2-of-the-key\n-----END KEY-----\n"
VALUES: dict[str, Any] = {
    "secrets": {
        "PLAIN": "plain-secret",
        "LONGER": "plain-secret-and-more",
        "NESTED": {"DEEPER": ["nested-secret"]},
        "QUOTED": 'quo"ted\\secret',
        "SLASH": "base64/secret/éè==",
        "KEY": KEY,
        "SHORT": "short",
    },
    "borg_restore_password": "of-the-restore",
    "services": [{"apiKey": {"value": "of-a-service"}, "name": "nextcloud"}],
    "timezone": "Europe/Zurich",
}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("nothing of Europe/Zurich, nextcloud or short", None),
        ("plain-secret, twice: plain-secret", "***, twice: ***"),
        ("plain-secret-and-more", "***"),
        ("nested-secret", "***"),
        ("of-the-restore", "***"),
        ("of-a-service", "***"),
        ('raw quo"ted\\secret', "raw ***"),
        ("json " + json.dumps('quo"ted\\secret'), 'json "***"'),
        ("raw base64/secret/éè==", "raw ***"),
        ("php base64\\/secret\\/\\u00e9\\u00e8==", "php ***"),
        ("php base64\\/secret\\/éè==", "php ***"),
        ("json " + json.dumps(KEY), 'json "***"'),
        ("line-2-of-the-key", "***"),
        ("split plain-\rsecret", "split ***"),
        ("50%\r100%\x07", None),
        ("ssh://borg:word@host/x", "ssh://***@host/x"),
    ],
)
def test_masked(line: str, told: str | None) -> None:
    assert Secrets(VALUES).masked(line) == (line if told is None else told)


@pytest.mark.needs_root
def test_in_the_output_of_a_run(aio: Any) -> None:
    bench = Bench(aio)
    aio.change(**VALUES | {"secrets": VALUES["secrets"] | aio.read()["secrets"]})
    aio.turn("stderr", "nested-secret\nof-the-restore\nplain-\rsecret\nharmless\n")
    assert bench.run().result == "success"
    assert bench.output("stderr") == ["***", "***", "***", "harmless"]


@pytest.mark.parametrize(
    "secrets",
    [
        {str(number): f"secret-number-{number}" for number in range(100_000)},
        {"ONE": "x" * (4 << 20)},
    ],
    ids=["many", "long"],
)
def test_more_than_can_be_looked_for(secrets: dict[str, str]) -> None:
    began = time.process_time()
    with pytest.raises(FailedError, match="more secrets, or longer ones"):
        Secrets({"secrets": secrets})
    assert time.process_time() - began < 5


@pytest.mark.needs_root
def test_run_without_masking_is_none(aio: Any) -> None:
    bench = Bench(aio)
    aio.change(secrets={str(number): f"secret-number-{number}" for number in range(2000)})
    outcome = bench.run()
    assert (outcome.result, "can be kept out" in str(outcome.error)) == ("fail", True)
    assert aio.calls() == []


@pytest.mark.parametrize("alphabet", ["a", "ab", "abcdefgh"])
def test_time_of_a_line(alphabet: str) -> None:
    """As many as there may be, that begin alike: a line of full length is still done at once."""
    chosen = random.Random(1)
    texts = {
        "".join(chosen.choices(alphabet, k=length)) + "!" for length in range(8, 900) for _ in "12"
    }
    secrets = Secrets({"secrets": sorted(texts)[:1000]})
    line = "".join(chosen.choices(alphabet, k=8000))
    began = time.process_time()
    for _ in range(10):
        assert secrets.masked(line) == line
    assert time.process_time() - began < 5


def test_keys_that_are_no_texts() -> None:
    assert (
        Secrets({"password": None, "secrets": [1, True, {"x": 2.5}]}).masked("1 True") == "1 True"
    )
