"""Borg's own argument parser and placeholders, each version's in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.harness.builds import borg

LOOP = Path(__file__).with_name("borg_parse_loop.py")
VERSIONS = ("1.2", "1.4")


class BorgParserError(Exception):
    """Borg refused what it was given."""


class BorgParser:
    """One borg's parser."""

    def __init__(self, version: str, time_zone: str) -> None:
        # The first line of the program names the interpreter that has this borg's package.
        interpreter = borg(version).read_text(errors="replace").splitlines()[0].removeprefix("#!")
        self._process = subprocess.Popen(
            [*interpreter.split(), "-I", LOOP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": time_zone, "HOME": os.devnull},
            text=True,
            encoding="utf-8",
        )

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=30)

    def parsed(self, argv: tuple[str, ...]) -> dict[str, Any]:
        """``verb`` (the method's name) and ``values`` for borg's argv without its program."""
        answer = self._ask({"argv": list(argv)})
        assert isinstance(answer, dict)
        return answer

    def expanded(self, text: str, epoch: float) -> str:
        """``text`` with borg's placeholders replaced as at ``epoch``."""
        return str(self._ask({"replace": text, "at": epoch}))

    def exit_codes(self) -> dict[str, list[int]]:
        """Codes of borg's ``errors`` and ``warnings``."""
        answer = self._ask({"exit_codes": True})
        assert isinstance(answer, dict)
        return answer

    def options(self) -> dict[str, list[str]]:
        """Every spelling of every option of each verb."""
        answer = self._ask({"options": True})
        assert isinstance(answer, dict)
        return answer

    def _ask(self, question: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        reply = json.loads(self._process.stdout.readline())
        if "error" in reply:
            raise BorgParserError(f"{question}: {reply['error']}")
        return reply["answer"]
