"""The fuzzer's corpus, and what made its checks fail once, without the fuzzer.

Threat: whoever can send bytes (a client whose key leaked, a repository server that took borg over)
sends those that some reader of ours takes for something else, or dies of. The control: of each
target's inputs some are accepted and some are not, so that neither side is never looked at.
"""

from __future__ import annotations

from collections import Counter

import pytest

from . import inputs
from .targets import TARGETS

# What a target says of inputs that it took for what they should be.
GOOD = {
    "request": {"allowed", "asked"},
    "whitelist": {"loaded"},
    "run": {"success", "warning", "error", "killed"},
    "lock_note": {"recorded", "none"},
    "audit": {"continued", "empty"},
    "passphrase": {"accepted"},
    "caller": {"key", "address"},
    "masking": {"shown", "masked"},
    "limits": {"run", "session"},
    "wrap": {"accepted"},
    "answers": {"hello", "made"},
    "companion": {"taken"},
}
MOST = 48 * 1024  # bytes of a corpus that people can still look at


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_breaks_no_promise(name: str) -> None:
    target = TARGETS[name]
    kept = inputs.corpus(name)
    assert kept
    assert sum(map(len, kept)) < MOST
    said = Counter(target.check(data) for data in (*target.seeds(), *kept))
    assert set(said) >= GOOD[name]
    assert len(said) > 1


@pytest.mark.parametrize("name", TARGETS)
def test_what_failed_once_does_not_fail_again(name: str) -> None:
    """By glob: what ``make fuzz`` finds is here from then on."""
    for path in inputs.crashes(name):
        TARGETS[name].check(path.read_bytes())


def test_nothing_is_kept_for_a_target_that_is_gone() -> None:
    kept = {path.stem for path in inputs.CORPUS.iterdir()}
    kept |= {path.name for path in inputs.CRASHES.iterdir()}
    assert kept == set(TARGETS)


@pytest.mark.parametrize("data", [bytes(range(256)), b"\\x41", b"\\\\", b"", "é\n".encode()])
def test_a_kept_input_comes_back_as_it_was(data: bytes) -> None:
    line = inputs.escaped(data)
    assert line.isascii()
    assert line.isprintable()
    assert inputs.unescaped(line) == data
