"""A stand-in for the original tool's forced command, made from what its users' documents say.

    original_tool.py CONFIG_FILE CLIENT_NAME

It knows ``[-C COMPRESSION] [-p] [-x] create REPO_PATH ARCHIVE_NAME SOURCE_PATH``, with or without
a leading ``--``, and nothing else; paths are compared verbatim; the socket is ``CLIENT.sock``, and
its file is left behind; every refusal is a line on standard error and exit code 1; else it becomes
borg, whose exit code is then that of ssh.

Its limits: it is no copy, so the words of its refusals are not the original's, and what that does
beyond these documents is not here. Of the configuration it reads what it needs. It tells borg that
unencrypted repositories are all right, which the original leaves to the account. Each request is
noted in the file ``requests`` beside the configuration, for the tests.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tomllib
from pathlib import Path
from typing import NoReturn


class Arguments(argparse.ArgumentParser):
    """Refuses with 1, as everything is refused here."""

    def error(self, message: str) -> NoReturn:
        """Refuse."""
        refuse(message)


def refuse(message: str) -> NoReturn:
    """End with the one exit code there is."""
    sys.exit(f"original-tool: {message}")


def main() -> None:
    """Serve the request of SSH_ORIGINAL_COMMAND."""
    configuration, client = Path(sys.argv[1]), sys.argv[2]
    rules = tomllib.loads(configuration.read_text())
    runtime = rules["runtime"]
    request = os.environ.get("SSH_ORIGINAL_COMMAND", "")
    with (configuration.parent / "home/requests").open("a") as requests:
        requests.write(f"{request}\n")
    words = shlex.split(request)
    if words[:1] == ["--"]:
        del words[0]
    parser = Arguments(add_help=False, allow_abbrev=False)
    parser.add_argument("-C", "--compression", default="lz4")
    parser.add_argument("-p", "--progress", action="store_true")
    parser.add_argument("-x", "--one-file-system", action="store_true")
    parser.add_argument("verb", choices=["create"])
    parser.add_argument("repository")
    parser.add_argument("archive")
    parser.add_argument("path")
    asked = parser.parse_args(words)
    if asked.path not in rules["client"][client]["paths"]:
        refuse(f"path not allowed: {asked.path}")
    options = ["--compression", asked.compression]
    options += ["--progress"] if asked.progress else []
    options += ["--one-file-system"] if asked.one_file_system else []
    location = f"ssh://{client}{asked.repository}::{asked.archive}"
    environment = {
        "PATH": "/usr/bin:/bin",
        "LC_ALL": "C.UTF-8",
        "HOME": runtime["home"],
        "BORG_RSH": runtime["socket_wrapper"],
        "BORGSOCKETWRAP_SOCKET_PATH": f"{runtime['socket_dir']}/{client}.sock",
        "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
    }
    borg = runtime["borg"]
    os.execve(borg, [borg, "create", *options, location, asked.path], environment)


if __name__ == "__main__":
    main()
