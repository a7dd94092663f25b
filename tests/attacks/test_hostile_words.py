"""A source that says what it likes harms no other, and gets nothing by it (A).

Threat: a source was broken into. What answers its backup server now says numbers beyond any
column, text that is no text, objects nested until a parser gives up, lines without end. It is after
the whole night's batch: the honest jobs beside it, their record, and the news of them. The controls
are an honest job in the very same batch, and honest words that come through as they are.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import click
import pytest

from borg_pull.errors import InternalError
from borg_pull.findings import Findings
from borg_pull.pull import batch, confined, doctor, hooks, repositories, said
from borg_pull.pull import run as run_
from borg_pull.pull.config import Config
from borg_pull.pull.invocation import Invocation
from borg_pull.pull.ledger import Ledger
from borg_pull.pull.log import Log
from borg_pull.pull.outcome import Outcome
from borg_pull.pull.places import Places
from borg_pull.pull.pull import Attempt, Conversation, Task
from borg_pull.pull.repository import Archive, Archives
from borg_pull.pull.stop import Stop
from tests.attacks.hostile_source import HELLO, Hostile, hello, run_all
from tests.harness.builds import Build
from tests.harness.fixtures import SiteMaker
from tests.pull.conftest import backup_server

SESSION = "0b0f2a5e-1111-4222-8333-444455556666"
DEEP = "[" * 900 + "]" * 900
RESULT: dict[str, Any] = {
    "type": "borg_pull_result",
    "session": SESSION,
    "exit": 2,
    "borg_code": 2,
    "error": "the disk is on fire",
}
ODD: dict[str, Any] = {
    "a number beyond any": 10**30,
    "one of another kind": -1.5e300,
    "no text": "x\ud800",
    "a NUL": "a\0b",
    "an escape": "\x1b]0;mine\x07",
    "a line": "one\ntwo",
    "length": "x" * 200_000,
    "an object": {"a": 1},
    "a list": ["create"],
    "nothing": None,
    "a truth": True,
}


def holds(text: str, most: int = said.LONGEST_SENTENCE) -> None:
    """It can be shown, mailed, given to a program and kept."""
    assert text.isprintable()
    assert len(text) <= most
    assert "\0" not in text
    text.encode()


# What is said, as values


def test_an_honest_hello_comes_through() -> None:
    greeting = said.greeting(hello(news={"of": ["a", "later", "version"]}))
    assert (greeting.client, greeting.socket_directory) == ("luna", HELLO["socket_directory"])
    assert greeting.verbs == ("create", "hello", "target-set")
    assert not greeting.passphrase_stdin
    assert said.remembered(greeting.to_json()) == greeting
    assert said.clock(hello()) == 1795226401.25


ODD_HELLOS = {
    f"{field}: {what}": (field, value)
    for field in HELLO
    for what, value in ODD.items()
    if (field, what) not in {("verbs", "a list"), ("passphrase_stdin", "a truth")}
}


@pytest.mark.parametrize(("field", "value"), ODD_HELLOS.values(), ids=ODD_HELLOS)
def test_an_odd_hello_is_refused_in_one_line(field: str, value: Any) -> None:
    answer = hello(**{field: value})
    if field == "time":
        assert said.clock(answer) is None
        return
    with pytest.raises(ValueError, match=r"hello|protocol") as refused:
        said.greeting(answer)
    holds(str(refused.value))


@pytest.mark.parametrize(
    "directory",
    [
        "/x/${HOME}", "/x/%u", "/x:127.0.0.1:22", "x", "/", "", "/a/../b", "/./a", "//a", "/a b",
        "/a\n", "/é", "~/x", "/" + "a" * 200,
    ],
)  # fmt: skip
def test_a_socket_directory_is_no_order_to_ssh(directory: str) -> None:
    with pytest.raises(ValueError, match="socket_directory"):
        said.greeting(hello(socket_directory=directory))


@pytest.mark.parametrize("client", ["../x", "a/b", "${HOME}", "%h", "a:b", "a b", "", "a" * 65])
def test_a_client_name_is_no_order_to_ssh(client: str) -> None:
    with pytest.raises(ValueError, match="client"):
        said.greeting(hello(client=client))


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"hello", b"[" * 10**6, b'{"type":' * 10**5, b"[]", b"1" * 10_000, b"\xff\xfe",
        hello()[:-1] + b',"confinement":' + DEEP.encode() * 1000 + b"}",
    ],
    ids=range(8),
)  # fmt: skip
def test_what_is_no_hello_is_refused(answer: bytes) -> None:
    with pytest.raises(ValueError, match="hello"):
        said.greeting(answer)
    assert said.clock(answer) is None
    assert said.made(answer) == said.Made(None, None, None)


@pytest.mark.parametrize("told", ["2026-11-21T02:00:01", "soon", "", "9" * 5000])
def test_a_time_that_is_none(told: str) -> None:
    assert said.clock(hello(time=told)) is None


def test_an_honest_transcript_comes_through() -> None:
    transcript = said.Transcript()
    progress = {"nfiles": 3, "original_size": 20, "deduplicated_size": 10}
    assert transcript.take(json.dumps({"type": "archive_progress"} | progress).encode()) == (
        said.Progress(3, 20, 10)
    )
    warning = {"type": "log_message", "levelname": "WARNING", "message": "/a: cannot be read"}
    transcript.take(json.dumps(warning).encode())
    transcript.take("für Menschen".encode())
    transcript.take(json.dumps(RESULT).encode())
    assert transcript.complaints == ["/a: cannot be read", "für Menschen"]
    assert transcript.result == said.Result(SESSION, 2, said.Sentence(RESULT["error"]), None)


@pytest.mark.parametrize("value", [*ODD.values(), json.loads(DEEP)], ids=[*ODD, "depth"])
def test_an_odd_line_leaves_what_can_be_kept(value: Any) -> None:
    transcript = said.Transcript()
    for line in (
        {"type": "borg_pull_result", **dict.fromkeys(RESULT.keys() - {"type"}, value)},
        {"type": "log_message", "levelname": "ERROR", "message": value},
        {"type": "log_message", "levelname": value, "message": value},
        {"type": "archive_progress", "nfiles": value, "original_size": value, "finished": False},
        {"type": value},
    ):
        encoded = json.dumps(line).encode()
        transcript.take(encoded)
        holds(said.message(encoded) or "", 10**6)
    result = transcript.result
    assert result is not None
    assert result.session is None
    assert result.borg_code is None
    for text in (result.error or "", *transcript.complaints):
        holds(text)
    with sqlite3.connect(":memory:") as database:
        database.execute("SELECT ?, ?", (result.error, transcript.progress and 1))
    claimed = said.made(
        json.dumps({"archive": dict.fromkeys(("name", "id", "stats"), value)}).encode()
    )
    holds(claimed.name or "")
    holds(claimed.id or "")
    assert not claimed.statistics or set(map(type, claimed.statistics.values())) == {int}


def test_a_transcript_does_not_grow() -> None:
    transcript = said.Transcript()
    for number in range(10_000):
        transcript.take(b"%d %s" % (number, b"x" * 5000))
    assert len(transcript.complaints) <= said.MOST_COMPLAINTS
    assert transcript.complaints[0].startswith("0 ")
    assert transcript.complaints[-1].startswith("9999 ")


# One batch


@pytest.fixture
def hostile(make_site: SiteMaker, build: Build, tmp_path: Path) -> Iterator[Hostile]:
    """With an honest job, ``honest``, in a repository of its own: nothing waits for anything."""
    with backup_server(make_site(build), tmp_path) as server:
        source = server.site.source
        data = source.tree()
        source.file(data / "file", os.urandom(1000))
        server.site.allow(paths=[str(data)])
        server.repository()
        server.job("honest", paths=[str(data)])
        server.repository("other")
        yield Hostile(server)


RESULTS = {
    "number": RESULT | {"borg_code": 10**30},
    "text": RESULT | {"error": "x\ud800"},
    "nul": RESULT | {"error": "a\0b"},
    "long": RESULT | {"error": "x" * 200_000},
    "session": RESULT | {"session": {"a": [10**30]}},
}


@pytest.mark.needs_root
@pytest.mark.builds("one")
def test_no_source_ends_the_batch(hostile: Hostile) -> None:
    server = hostile.server
    hostile.greets(
        hello(socket_directory=str(server.site.source.socket_dir))[:-1]
        + b',"confinement":%s}' % (b'{"a":' * 600 + b"1" + b"}" * 600)
    )
    for name, result in RESULTS.items():
        hostile.says(name, json.dumps(result).encode() + b"\n")
    hostile.says("depth", b'{"type":' * 50_000 + b"\n")
    hostile.says("lie", json.dumps(RESULT).encode() + b"\n", code=0)
    answer, metrics = run_all(server)
    assert answer.exit == 2, answer
    runs = {run.job: run for run in server.ledger.runs()}
    assert {name for name, run in runs.items() if run.outcome == "success"} == {"honest"}
    assert runs.keys() == server.document["job"].keys()
    for name, run in runs.items():
        holds(run.error or "")
        assert f'borg_pull_job_last_run_outcome{{job="{name}"' in metrics
        if name in RESULTS.keys() - {"session"}:
            assert run.session == SESSION
    assert runs["number"].borg_code is None
    assert runs["text"].error == "x\\ud800"
    holds(answer.stderr.replace("\n", ""), 10_000)


def test_ssh_is_given_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it could put into words of the source's is not there."""
    monkeypatch.setenv("HOME_SECRET", "secret")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/nowhere")
    talk = Conversation(None, None, time.monotonic() + 60, None)
    talk.pull(["env"], None)
    assert {line.split(b"=")[0] for line in talk.answer.splitlines()} <= {
        b"LC_ALL", b"PATH",
    }  # fmt: skip
    assert b"PATH=" in talk.answer, "control: it was told something"


@pytest.mark.needs_root
@pytest.mark.builds("one")
def test_a_hello_gets_nothing_of_the_environment(hostile: Hostile) -> None:
    hostile.greets(hello(socket_directory="/x/${HOME_SECRET}"))
    hostile.says("secret", b"")
    answer, _metrics = run_all(hostile.server, HOME_SECRET="for-us-alone")
    run = hostile.server.ledger.last("secret")
    assert run is not None
    assert run.outcome == "failure"
    assert "its hello has no socket_directory" in (run.error or "")
    assert "for-us-alone" not in f"{answer}{run}"
    honest = hostile.server.ledger.last("honest")
    assert honest is not None
    assert honest.outcome == "success"


@pytest.mark.parametrize(
    ("says", "finding"),
    [
        ("head -c 50000000 /dev/zero", "the answer is no hello"),
        ("head -c 1000000 /dev/zero | tr '\\0' '['", "the answer is no hello"),
        ("printf '\\033]0;mine\\007' >&2; exit 64", "\\x1b]0;mine\\x07"),
        ("head -c 50000000 /dev/zero | tr '\\0' x >&2; exit 64", "x" * 497 + "..."),
    ],
)
def test_the_doctor_survives_what_it_hears(
    says: str, finding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks all sources, one after the other: none may end that, or take its memory."""
    monkeypatch.setattr("borg_pull.pull.ssh.command", lambda *_arguments: ["sh", "-c", says])
    document = {"source": {"evil": {"host": "localhost", "identity": "/key"}}}
    source = Config.model_validate(document).source["evil"]
    places, findings = Places(tmp_path, tmp_path / "run"), Findings()
    assert doctor._greeted(findings, "evil", source, places) is None
    (found,) = [one for one in findings.found if one.level == "error"]
    assert found.found == finding
    said_ = doctor._asked(source, places)
    assert said_ is not None
    assert len(said_.stdout) <= 1 << 20


def test_a_hook_is_run_whatever_was_said(tmp_path: Path) -> None:
    """Its environment takes no NUL, no lone surrogate and not any length; or it would not run."""
    told = tmp_path / "told"
    script = tmp_path / "hook"
    script.write_text(f'#!/bin/sh\nprintf %s "$BORG_PULL_ERROR" >{told}\n')
    script.chmod(0o755)
    document: dict[str, Any] = {
        "source": {"source": {"host": "localhost", "identity": "/key"}},
        "repository": {"repository": {"path": "/srv/repository"}},
        "job": {
            "job": {
                "source": "source",
                "repository": "repository",
                "paths": ["/srv"],
                "hooks": {"after": [str(script)]},
            }
        },
    }
    task, stop = run_.task(Config.model_validate(document), "job"), Stop()
    with Log(tmp_path / "log") as log:
        for error, heard in {
            "it is down": "it is down",
            "a\0b\ud800\x1b": "a\\x00b\\ud800\\x1b",
            "x" * 200_000: "x" * hooks.LONGEST_VALUE,
        }.items():
            hooks.run(task, "after", {"ERROR": error}, log, stop)
            assert told.read_text() == heard
    stop.close()


def test_names_of_archives_are_shown_as_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a hostile source named an archive does nothing to the terminal."""
    made = [Archive("a" * 64, "job-\x1b]0;mine\x07", datetime.now(UTC)) for _ in range(2)]

    class Listed(Archives):
        def archives(self, _glob: str | None = None, *, opened: bool = False) -> list[Archive]:  # noqa: ARG002
            return made

    @contextmanager
    def opened(*_arguments: object) -> Iterator[tuple[None, Archives, None]]:
        yield None, Listed(), None

    monkeypatch.setattr(repositories, "opened", opened)
    invocation = mock.Mock(spec=Invocation)
    invocation.config.archive_glob.return_value = "job-*"
    context = click.Context(repositories.archives, obj=invocation)
    with context:
        context.invoke(repositories.archives, name="job", as_json=False)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert shown.count("job-\\x1b]0;mine\\x07") == 2


def test_a_kernel_that_confines_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("borg_pull.linux.landlock.abi", lambda: None)
    monkeypatch.setattr("borg_pull.linux.process.set_no_new_privileges", lambda: None)
    order = confined.Order(["/usr/bin/borg"], {}, [], [], umask=0o077)
    confined._confine(order)
    assert "no Landlock: /usr/bin/borg is not confined" in capsys.readouterr().err


def test_no_record_ends_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should something get through to the ledger all the same, it is that job's fault alone."""
    document: dict[str, Any] = {"source": {}, "repository": {}, "job": {}}
    for name in ("evil", "honest"):
        document["source"][name] = {"host": "localhost", "identity": "/key"}
        document["repository"][name] = {"path": f"/srv/{name}"}
        document["job"][name] = {"source": name, "repository": name, "paths": ["/srv"]}
    config = Config.model_validate(document)
    places = Places(tmp_path, tmp_path / "run")
    monkeypatch.setattr("borg_pull.pull.places.runtime_dir_fault", lambda _path: None)
    places.prepare()
    greeting = said.greeting(hello())
    monkeypatch.setattr(batch, "hello", lambda *_arguments: greeting)

    def attempt(task: Task, *_arguments: Any, **_options: Any) -> Attempt:
        size = 10**30 if task.name == "evil" else 5
        return Attempt(Outcome("success", None, 0), archive="a", original_size=size)

    def show(event: dict[str, Any]) -> None:
        if event["job"] == "evil":
            raise ValueError("not to be shown")

    monkeypatch.setattr(batch, "attempt", attempt)
    ledger, stop = Ledger(places.ledger), Stop()
    run = batch.Batch(
        config, ledger, places, workers=2, passphrase=lambda _task: None, emit=show, stop=stop
    )
    run.run([run_.task(config, name) for name in config.job])
    ends = {name: ledger.last(name) for name in config.job}
    ledger.close()
    stop.close()
    assert {name: end and end.outcome for name, end in ends.items()} == {
        "evil": "failure",
        "honest": "success",
    }
    assert ends["evil"] is not None
    assert "OverflowError" in (ends["evil"].error or "")
    assert {type(fault) for fault in run.faults} == {InternalError}
