"""What is judged Allowed keeps to the rules, and what keeps to the rules is allowed."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from borg_pull.source.judge import Allowed, Refused
from borg_pull.source.request import parse

from . import checks, restatement, strategies, words


def verdict(command: bytes, client: str, table: dict[str, Any]) -> Allowed | Refused | None:
    """The verdict, checked against the rules written down twice; None for hello and no request."""
    request = checks.parsed(command)
    if request is None or request.verb == "hello" or request.verb in restatement.NAMES:
        return None
    judged = checks.verdict(command, request, client, table, checks.rules_of(client, table))
    return judged if isinstance(judged, Refused) else judged[0]


WIDE: dict[str, Any] = {
    "trees": ["/"],
    "allow": ["create", "init", "list", "info", "check", "prune", "restore"],
    "restore_to": "/srv/restored",
    "encryption": ["repokey", "none"],
    "role": "admin",
    "passphrase_stdin": True,
    "flags": sorted(restatement.DEFAULT_FLAGS | {"exclude"}),
}


def test_what_is_allowed_keeps_to_the_rules() -> None:
    seen: set[tuple[str, str]] = set()

    @settings(max_examples=800, deadline=None)
    @given(
        strategies.requests(),
        st.sampled_from(words.CLIENTS),
        st.one_of(st.just(WIDE), strategies.client_tables()),
    )
    @example(b"create /srv/repo x{now:.checkpoint} /home", "luna", WIDE)
    @example(b"create /srv/repo x{now:::} /home", "luna", WIDE)
    @example(b"create /srv/repo {now:%D} /home", "luna", WIDE)
    @example(b"create /repo: a /home", "luna", WIDE)
    @example(b"init /srv/repo -e none", "luna", WIDE)
    @example(b"init /srv/repo", "luna", WIDE)
    @example(b"list /srv/repo", "luna", WIDE)
    @example(b"info /srv/repo", "luna", WIDE)
    @example(b"check /srv/repo", "luna", WIDE)
    @example(b"prune /srv/repo -a x* -d 1", "luna", WIDE)
    @example(b"prune /srv/repo", "luna", WIDE)
    @example(b"restore /srv/repo a /", "luna", WIDE)
    @example(b"break-lock /srv/repo", "luna", WIDE)
    @example(b"break-lock /srv/repo", "luna", {})
    @example(b"change-passphrase /srv/repo", "luna", WIDE)
    @example(b"change-passphrase /srv/repo", "luna", {"role": "admin"})
    def keeps(command: bytes, client: str, table: dict[str, Any]) -> None:
        judged = verdict(command, client, table)
        if judged is not None:
            seen.add((type(judged).__name__, parse(command).verb))

    keeps()
    # Otherwise it would hold of nothing.
    assert {verb for name, verb in seen if name == "Allowed"} == {
        *WIDE["allow"],
        "break-lock",
        "change-passphrase",
    }
    assert {"create", "init", "prune"} <= {verb for name, verb in seen if name == "Refused"}


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_what_keeps_to_the_rules_is_allowed(data: st.DataObject) -> None:
    table = {
        "paths": ["/home/a b", "/var/www/", "/ü"],
        "trees": data.draw(st.sampled_from(([], ["/"], ["/srv/data", "/home"]))),
        "repositories": data.draw(st.sampled_from(([], ["/srv/repo/"]))),
        "excludes": data.draw(st.sampled_from(([], ["*.tmp"]))),
    }
    command = data.draw(strategies.honest_requests(table))
    judged = verdict(command, "luna", table)
    assert isinstance(judged, Allowed), (command, judged)
