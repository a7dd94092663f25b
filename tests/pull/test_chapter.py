"""docs/backup-server.md, done command by command: a backup server that pulls from two sources."""

from __future__ import annotations

import http.server
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.harness.site import Installations
from tests.harness.wait import until
from tests.test_docs import (
    QUICKSTART,
    STARTS_SSHD,
    Command,
    TwoHosts,
    assert_as_shown,
    commands,
    follow,
)

pytestmark = pytest.mark.needs_root

CHAPTER = QUICKSTART.with_name("backup-server.md")
INSTALLS = ("2. Source: the programs", "4. Source: sshd")
PROGRAM = re.compile(r"(?<![\w/.-])borg-pull (?=[\w.-])")
NOTIFICATION_URL = "ntfys://ntfy.example.org/backups"


class Inbox:
    """A web hook in place of the service that the chapter names, which would need a network."""

    def __init__(self) -> None:
        messages: list[str] = []
        self.messages = messages

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                messages.append(json.loads(self.rfile.read(length))["message"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Keep the tests' output to the tests."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"json://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class ThreeHosts:
    """The chapter's hosts on this machine; the user of ``web1``'s quickstart is the one who pulls.

    What stands for what, beside what stands so in `TwoHosts`:

    =================================  =====================================================
    chapter                            here
    =================================  =====================================================
    web1.example.org, db1.example.org  127.0.0.1 and the port of a private sshd each
    SHA256:...                         the fingerprint that is read on the source just before
    ssh-ed25519 AAAA... ...-web1       the public key that add-source has made
    /opt/borg-pull on the server        web1's
    the notification service           a web hook of this test
    =================================  =====================================================
    """

    def __init__(self, installations: Installations, inbox: Inbox) -> None:
        self.inbox = inbox
        self.sources = {name: TwoHosts(installations.workplace) for name in ("web1", "db1")}
        self.server = self.sources["web1"]
        self.fingerprint = ""
        for source in self.sources.values():
            steps = [step for step in commands(QUICKSTART) if step.section in INSTALLS]
            follow(source, [step for step in steps if step.prompt == "source#" and settles(step)])
            source.sshd.stop()
            source.sshd.start()

    def translated(self, text: str) -> str:
        """``text`` of the chapter as the backup server has it."""
        for name, source in self.sources.items():
            text = text.replace(
                f"--host {name}.example.org",
                f"--host 127.0.0.1 --port {source.sshd.port} --user {source.account}",
            )
            public = self.server.home / f".local/state/borg-pull/keys/{name}.pub"
            if public.exists():
                text = text.replace(
                    f"ssh-ed25519 AAAA... borg-pull-luna-{name}", public.read_text().strip()
                )
        text = text.replace("--accept SHA256:...", f"--accept {self.fingerprint}")
        text = text.replace("/srv/db", str(self.sources["db1"].path("/srv/db")))
        text = text.replace(NOTIFICATION_URL, self.inbox.url)
        # The program's name is no account's.
        text = PROGRAM.sub("\0", text)
        return self.server.translated(text).replace("\0", "borg-pull ")

    def run(self, command: Command) -> None:
        """Do as the chapter says, and see what it shows."""
        name = command.prompt.removesuffix("#")
        source = self.sources.get(name)
        if source is None:
            said = self.server.run(command, text=self.translated(command.text))
            assert_as_shown(command, said, self.translated)
            return
        public = self.server.home / f".local/state/borg-pull/keys/{name}.pub"
        text = command.text.replace(
            f"ssh-ed25519 AAAA... borg-pull-luna-{name}",
            public.read_text().strip() if public.exists() else "",
        )
        said = source.run(replace(command, text=text))
        assert_as_shown(command, said, source.translated)
        if found := re.search(r"SHA256:\S+", said):
            self.fingerprint = found[0]

    def stop(self) -> None:
        for source in self.sources.values():
            source.sshd.stop()


def settles(step: Command) -> bool:
    """Whether a step of the quickstart puts in place what the chapter takes for granted."""
    return step.shown != STARTS_SSHD and "doctor" not in step.text


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    made = Inbox()
    yield made
    made.close()


@pytest.fixture
def hosts(installations: Installations, inbox: Inbox) -> Iterator[ThreeHosts]:
    made = ThreeHosts(installations, inbox)
    yield made
    made.stop()


def test_the_chapter(hosts: ThreeHosts) -> None:
    for command in commands(CHAPTER):
        if command.exception is None:
            hosts.run(command)
    failed, recovered = (text for text in hosts.inbox.messages if "web1" in text)
    assert "web1" in failed
    assert "is fine again" in recovered
    for name, source in hosts.sources.items():

        def over(source: TwoHosts = source) -> bool:
            return not source.processes()

        until(over, seconds=20, what=f"the end of all that was started for {name}")
