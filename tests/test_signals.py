"""Signals to the forced command: what is on record as its end is its end."""

from __future__ import annotations

import subprocess
import sys

import pytest

# In place of serving a request, with the signals watched as when one is served.
PROGRAM = """
import os, sys
from borg_pull.errors import BusyError
from borg_pull.linux.signals import ENDING, watch_endings
from borg_pull.source import main as program

def served(*_arguments):
    watch_endings()
    return 1

def refused(*_arguments):
    watch_endings()
    error = BusyError("busy")
    error.is_recorded = True
    raise error

program._serve = {serve}
code = program.main()

class AtTheVeryEnd:
    kill, pid, signals = os.kill, os.getpid(), ENDING
    def __del__(self):
        for number in self.signals:
            self.kill(self.pid, number)

sys.kept = AtTheVeryEnd()
for number in ENDING:
    os.kill(os.getpid(), number)
sys.exit(code)
"""


@pytest.mark.parametrize(("serve", "code"), [("served", 1), ("refused", 75)])
def test_none_changes_the_exit_code_that_is_on_record(serve: str, code: int) -> None:
    """An admin who ends all that runs comes upon some that are just done."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(serve=serve)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
