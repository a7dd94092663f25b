"""Telling people: once for each change, again while it lasts, through a real service."""

from __future__ import annotations

import html
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from borg_pull.errors import ConfigurationError
from borg_pull.pull import notify
from borg_pull.pull.condition import Condition, State
from borg_pull.pull.ledger import HELD, Ledger, Run
from tests.pull.runs import run

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite")


def condition(state: State, job: str = "job") -> Condition:
    return Condition(
        job=job,
        state=state,
        last_success=None,
        age=None,
        stale_after=timedelta(hours=36),
        last=None,
        running=None,
        failed_care=(),
        sizes=(),
        next_due=None,
        is_ahead=False,
        last_verified=None,
        last_restored=None,
    )


class Post:
    """A service that takes what is sent, or fails."""

    def __init__(self) -> None:
        self.bodies: list[str] = []
        self.fails = False

    def __call__(self, _addresses: object, _title: str, body: str, *, is_bad: bool) -> None:
        if self.fails:
            raise notify.NotifyError("no way through")
        self.bodies.append(body)
        self.is_bad = is_bad


def tell(
    ledger: Ledger,
    post: Post,
    state: State | Condition,
    hours: float = 0,
    *,
    warnings: bool = True,
    **options: Any,
) -> list[notify.Message]:
    return notify.tell(
        [state if isinstance(state, Condition) else condition(state)],
        ledger,
        ["service://"],
        NOW + timedelta(hours=hours),
        repeat_every=DAY,
        warnings=warnings,
        digest_at=None,
        send=post,
        **options,
    )


def test_a_change_is_told_once(ledger: Ledger) -> None:
    post = Post()
    assert tell(ledger, post, "ok") == []
    (message,) = tell(ledger, post, "failing")
    assert message.kind == "failing"
    assert tell(ledger, post, "failing", 1) == []
    assert [one.kind for one in tell(ledger, post, "stale", 2)] == ["stale"]
    assert [one.kind for one in tell(ledger, post, "ok", 3)] == ["recovered"]
    assert tell(ledger, post, "ok", 100) == []
    assert len(post.bodies) == 3
    assert not post.is_bad


def test_an_alarm_is_told_though_the_job_fails_already(ledger: Ledger) -> None:
    """A host key that has changed may be an attack; that sshd was down before must not hide it."""
    post = Post()

    def fails(error: str, hours: float) -> list[str]:
        number = ledger.begin("job", "source", "repository", kind="create", log=None)
        ledger.finish(number, "failure", error=error)
        found = replace(condition("failing"), last=ledger.get(number))
        return [message.text for message in tell(ledger, post, found, hours)]

    changed = "THE HOST KEY OF SOURCE source HAS CHANGED: it shows SHA256:AAAA now"
    assert len(fails("Connection refused", 0)) == 1
    assert fails("Connection timed out", 1) == [], "control: another reason alone is no news"
    (told,) = fails(changed, 2)
    assert told == f"job fails: {changed}; last backup never"
    assert fails(changed, 3) == [], "once"
    assert fails(f"{changed}; still", 4) != []
    (told,) = fails("job job: 3 archives on record are missing from the repository: a", 5)
    assert "missing" in told
    assert [one.kind for one in tell(ledger, post, "ok", 6)] == ["recovered"]


def test_what_stays_bad_is_told_again(ledger: Ledger) -> None:
    post = Post()
    tell(ledger, post, "stale")
    assert tell(ledger, post, "stale", 23.9) == []
    assert [one.kind for one in tell(ledger, post, "stale", 24)] == ["reminder"]
    assert tell(ledger, post, "stale", 25) == []


def warned(shrunk: str | None = None) -> Condition:
    values: dict[str, Any] = dict.fromkeys(one.name for one in fields(Run))
    values |= {"id": 7, "job": "job", "started": NOW, "error": "why", "shrunk": shrunk}
    warning = Run(**values)
    return replace(condition("warning"), last_success=warning, last=warning)


def test_a_warning_is_told_once_and_nothing_is_fine_before_it_is_gone(ledger: Ledger) -> None:
    post = Post()
    tell(ledger, post, "failing")
    (message,) = tell(ledger, post, warned(), 1)
    assert message.kind == "warning"
    assert message.text == "job made a backup, but: why; last backup 2026-11-21T12:00:00Z"
    assert tell(ledger, post, warned(), 100) == []
    assert [one.kind for one in tell(ledger, post, "ok", 101)] == ["recovered"]


def test_a_shrunken_archive_is_told_as_long_as_it_stands(ledger: Ledger) -> None:
    post = Post()
    assert [one.kind for one in tell(ledger, post, warned(), 0)] == ["warning"]
    shrunk = warned(HELD)
    assert [one.kind for one in tell(ledger, post, shrunk, 1)] == ["shrunk"]
    assert [one.kind for one in tell(ledger, post, shrunk, 25)] == ["reminder"]
    assert [one.kind for one in tell(ledger, post, "ok", 26)] == ["recovered"]


def test_warnings_need_not_be_told(ledger: Ledger) -> None:
    post = Post()
    assert tell(ledger, post, warned(), warnings=False) == []
    assert [one.kind for one in tell(ledger, post, warned(HELD), warnings=False)] == ["shrunk"]
    (message,) = tell(ledger, post, warned(), warnings=False)
    assert message.kind == "warning", "it is not fine again"
    assert [one.kind for one in tell(ledger, post, "ok", warnings=False)] == ["recovered"]


def test_what_could_not_be_delivered_is_news_again(ledger: Ledger) -> None:
    post = Post()
    post.fails = True
    with pytest.raises(notify.NotifyError):
        tell(ledger, post, "failing")
    post.fails = False
    assert [one.kind for one in tell(ledger, post, "failing", 0.1)] == ["failing"]


def test_a_new_job_has_its_time_before_it_is_stale(ledger: Ledger) -> None:
    post = Post()
    assert tell(ledger, post, "never") == []
    assert tell(ledger, post, "never", 36) == []
    assert [one.kind for one in tell(ledger, post, "never", 36.1)] == ["stale"]


def test_a_new_job_has_no_more_than_its_time_when_the_clock_is_set_back(ledger: Ledger) -> None:
    post = Post()
    assert tell(ledger, post, "never", 10_000) == []
    assert tell(ledger, post, "never", 0) == []
    assert [one.kind for one in tell(ledger, post, "never", 36.1)] == ["stale"]


def test_a_clock_set_back_silences_no_reminder(ledger: Ledger) -> None:
    post = Post()
    tell(ledger, post, "stale", 10_000)
    assert tell(ledger, post, "stale", 0) == []
    assert [one.kind for one in tell(ledger, post, "stale", 24)] == ["reminder"]


def test_the_digest_has_the_bad_ones_first(ledger: Ledger) -> None:
    post = Post()
    found = [condition("ok", "a"), condition("stale", "z")]

    def run(now: datetime) -> None:
        notify.tell(
            *(found, ledger, [], now),
            repeat_every=DAY,
            warnings=True,
            digest_at="06:00 UTC",
            send=post,
        )

    run(NOW)
    sent = len(post.bodies)
    run(NOW + timedelta(hours=1))
    assert len(post.bodies) == sent
    run(NOW + timedelta(hours=20))
    digest = post.bodies[-1].splitlines()
    assert digest[0].endswith("1 not fine")
    assert [line.partition(":")[0] for line in digest[1:]] == ["z", "a"]
    run(NOW + timedelta(days=400))
    sent = len(post.bodies)
    run(NOW)
    assert len(post.bodies) == sent + 1, "the clock was set back"
    run(NOW + timedelta(hours=1))
    assert len(post.bodies) == sent + 1


@pytest.fixture
def service() -> Iterator[tuple[str, list[Any], list[int]]]:
    """A web service on loopback: its address, what it was sent, and what it answers."""
    received: list[Any] = []
    answers = [200]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            received.append(json.loads(self.rfile.read(length)))
            self._answer()

        def do_GET(self) -> None:
            received.append(self.path)
            self._answer()

        def _answer(self) -> None:
            self.send_response(answers[-1])
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", received, answers
    server.shutdown()
    server.server_close()


def test_a_message_through_a_web_hook(service: tuple[str, list[Any], list[int]]) -> None:
    address, received, answers = service
    notify.deliver([f"json://{address}/hook"], "title", "body", is_bad=True)
    assert (received[0]["title"], received[0]["message"]) == ("title", "body")
    assert received[0]["type"] == "failure"
    answers.append(500)
    urls = ["nonsense://secret", f"json://user:secret@{address}/", f"json://{address}/"]
    with pytest.raises(ConfigurationError, match="URL 1 of"):
        notify.deliver(urls, "t", "b", is_bad=False)
    assert len(received) == 3, "the others are told all the same"
    with pytest.raises(notify.NotifyError) as failed:
        notify.deliver(urls[1:], "t", "b", is_bad=False)
    assert failed.value.message == (
        "not everybody was notified: URL 1 (json): the service answered 500 Internal Server Error; "
        "URL 2 (json): the service answered 500 Internal Server Error"
    )


def test_notifications_can_be_tried(
    service: tuple[str, list[Any], list[int]], short_path: Path
) -> None:
    address, received, answers = service
    urls = short_path / "urls"
    main = short_path / "pull.toml"
    main.write_text("")
    main.chmod(0o600)
    assert run("notify", "test", "--config", main).exit == 78
    main.write_text(f'[notify]\nurls_file = "{urls}"\n')
    urls.write_text(f"json://me:secret@{address}/token\n")
    urls.chmod(0o600)
    tried = run("notify", "test", "--config", main)
    assert (tried.exit, tried.stdout, tried.stderr) == (0, "URL 1 (json): sent\n", "")
    assert received[0]["title"] == "borg-pull: test"
    answers.append(404)
    urls.write_text(urls.read_text() + "json://me:secret@127.0.0.1:1/token\n")
    tried = run("notify", "test", "--config", main)
    assert tried.exit == 2
    assert tried.stderr == "2 of 2 URLs did not take the message"
    assert "URL 1 (json): the service answered 404 Not Found\n" in tried.stdout
    assert "URL 2 (json): the service was not reached" in tried.stdout
    assert "secret" not in tried.stderr + tried.stdout
    assert "token" not in tried.stderr + tried.stdout
    urls.write_text(urls.read_text() + "nonsense://secret\n")
    assert run("notify", "test", "--config", main).exit == 78


def test_a_source_s_words_are_text_for_a_service_that_takes_html(
    service: tuple[str, list[Any], list[int]],
) -> None:
    """Threat: an error of a hostile source comments out the news of all other jobs, or shows a
    link of its own. The control: what is not markup arrives as it is."""
    address, received, _answers = service
    body = "evil fails: <!-- <a href='http://evil'>borg-pull</a>\nhonest fails: it is down"
    notify.deliver([f"json://{address}/?format=html"], "title", body, is_bad=True)
    (said,) = (one["message"] for one in received)
    assert "<!--" not in said
    assert "<a" not in said
    assert "honest fails: it is down" in html.unescape(said).replace("\xa0", " ")


def test_a_long_message_is_sent_in_parts(service: tuple[str, list[Any], list[int]]) -> None:
    """Threat: one source's words make a message so long that its service refuses all of it."""
    address, received, _answers = service
    lines = [f"job{number} fails: {'x' * 400}" for number in range(200)]
    notify.deliver([f"json://{address}/"], "title", "\n".join(lines), is_bad=True)
    assert len(received) > 1, "control: it is too long for one"
    said = "".join(one["message"] for one in received)
    assert all(f"job{number} fails" in said for number in range(200))


def test_no_job_keeps_back_another_s_news(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threat: what is on record of one job is so long, or so odd, that nothing is told of any."""
    found = [condition("failing", "evil"), condition("failing", "long"), condition("failing")]
    number = ledger.begin("long", "source", "repository", kind="create", log=None)
    ledger.finish(number, "failure", error="x" * 200_000)
    found[1] = replace(found[1], last=ledger.get(number))
    known = notify.text

    def text(one: Condition, state: notify.Told) -> str:
        return known(one, state) if one.job != "evil" else str(1 / 0)

    monkeypatch.setattr(notify, "text", text)
    post = Post()
    notify.tell(found, ledger, [], NOW, repeat_every=DAY, warnings=True, digest_at=None, send=post)
    (body,) = post.bodies
    evil, long, honest = body.splitlines()
    assert "unexpected ZeroDivisionError" in evil
    assert len(long) < 600
    assert honest == known(found[2], "failing"), "control"


def test_a_ping(service: tuple[str, list[Any], list[int]], tmp_path: Path) -> None:
    address, received, answers = service
    file = tmp_path / "ping"
    file.write_text(f"http://{address}/secret-uuid\n")
    file.chmod(0o600)
    notify.ping(file)
    assert received == ["/secret-uuid"]
    answers.append(404)
    with pytest.raises(notify.NotifyError) as failed:
        notify.ping(file)
    assert "secret-uuid" not in str(failed.value)


def test_urls_that_others_can_read_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "urls"
    file.write_text("# mine\njson://localhost\n\n")
    file.chmod(0o640)
    with pytest.raises(ConfigurationError, match="read by others"):
        notify.urls(file)
    file.chmod(0o600)
    assert notify.urls(file) == ["json://localhost"]


def test_an_unknown_service_is_named_by_its_number_alone() -> None:
    with pytest.raises(ConfigurationError) as refused:
        notify.deliver(["nonsense://secret"], "t", "b", is_bad=True)
    assert "secret" not in str(refused.value)


def test_a_hostile_error_line_stays_one_line() -> None:
    bad = replace(condition("failing"), job="j\x1b[2J\nother: fine")
    assert notify.text(bad, "failing").isprintable()


def test_a_ledger_that_cannot_be_used_is_told_once(
    service: tuple[str, list[Any], list[int]], short_path: Path
) -> None:
    """What was told stands in the ledger; without it people must hear all the same."""
    address, received, _ = service
    urls = short_path / "urls"
    urls.write_text(f"json://{address}/\n")
    urls.chmod(0o600)
    main = short_path / "pull.toml"
    main.write_text(
        f'[settings]\nstate_dir = "{short_path}/state"\n[notify]\nurls_file = "{urls}"\n'
        '[source.s]\nhost = "127.0.0.1"\nport = 1\nidentity = "/none"\n'
        f'[repository.r]\npath = "{short_path}/r"\n'
        '[job.job]\nsource = "s"\nrepository = "r"\npaths = ["/srv"]\n'
    )
    main.chmod(0o600)
    (short_path / "state").mkdir(mode=0o700)
    damaged = short_path / "state/ledger.sqlite"
    damaged.write_bytes(b"SQLite format 3\0" + b"x" * 8192)
    for words in (["run", "job"], ["status", "--tell"], ["run", "--all"]):
        assert run(*words, "--config", main).exit == 71
    (message,) = received
    assert message["message"].startswith("this host cannot record what is pulled, so nothing may")
    assert "is damaged" in message["message"]
    assert run("status", "--config", main).exit == 71

    damaged.unlink()
    run("run", "job", "--config", main)
    assert [one["message"] for one in received[1:]][-1] == "what is pulled is on record again"
    told = len(received)
    run("run", "job", "--config", main)
    assert len(received) == told
