"""What is masked as a credential, and that nothing else is."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from borg_pull.credentials import masked, masked_request
from borg_pull.errors import RequestError
from borg_pull.source.request import parse

SECRET = "hunter2"

# Requests as people write them by mistake, and what stands on record of each.
REQUESTS = {
    f"create ssh://borg:{SECRET}@host:22/./r a /p": "create ssh://***@host:22/./r a /p",
    f"create ssh://{SECRET}@host/r a /p": "create ssh://***@host/r a /p",
    f"create 'ssh://u:{SECRET} x@host/r' a": "create 'ssh://***@host/r' a",
    f"create ssh://u:{SECRET}/x@host/r a": "create ssh://***@host/r a",
    f"create ssh://u:x@{SECRET}@host/r a": "create ssh://***@host/r a",
    f"create ssh://u:x'{SECRET}@host/r a /p": "create ssh://***@host/r a /p",
    f"create 'ssh://u:{SECRET}": "create 'ssh://***",
    f"create borg:{SECRET}@host:/r a /p": "create borg:***@host:/r a /p",
    f"create borg:{SECRET}@host/r a /p": "create borg:***@host/r a /p",
    f"create --comment=https://a/,https://u:{SECRET}@b/": "create --comment=https://a/,https://***@b/",
    f"BORG_PASSPHRASE={SECRET} create /r a /p": "BORG_PASSPHRASE=*** create /r a /p",
    f"BORG_PASSPHRASE='{SECRET} x' create": "BORG_PASSPHRASE=*** create",
    f"'BORG_PASSPHRASE={SECRET} x' create": "'BORG_PASSPHRASE=***' create",
    f"BORG_PASSPHRASE={SECRET}\\ x create": "BORG_PASSPHRASE=*** create",
    f'BORG_PASSPHRASE="x\\" {SECRET}" create': "BORG_PASSPHRASE=*** create",
    f"sh -c 'BORG_PASSPHRASE={SECRET} borg'": "sh -c 'BORG_PASSPHRASE=***'",
    f"AWS_SECRET_ACCESS_KEY={SECRET} create": "AWS_SECRET_ACCESS_KEY=*** create",
    f"create --passphrase {SECRET} /r": "create --passphrase *** /r",
    f"create '--passphrase' '{SECRET} x' /r": "create '--passphrase' *** /r",
    f"create --passphrase={SECRET} /r": "create --passphrase=*** /r",
    f"create --passcommand 'echo {SECRET}' /r": "create --passcommand *** /r",
    f"create --token  {SECRET}": "create --token  ***",
}

# What has nothing to hide stands as it is.
HARMLESS = (
    "",
    "hello",
    "create -C zstd,3 /srv/r web-{now} '/srv/w w' /etc",
    "create --exclude=sh:**/a=b /r a@b /home/a@b:c",
    "create /r web-12:30:00@nightly /p",
    "list --glob-archives 'web-*' /r",
    "init -e keyfile /r",
    "create ssh://luna/srv/r@home::a /p",
    "create ssh://host:22/r ssh://[::1]:22/r https://host?q=a@b",
    "prune --keep-daily=7 --keep-last 3 /r",
    "  two  blanks\tand a tab ",
    "an 'unclosed quote",
    "a backslash \\",
)


@pytest.mark.parametrize(("request_text", "expected"), REQUESTS.items(), ids=range(len(REQUESTS)))
def test_a_request_is_masked(request_text: str, expected: str) -> None:
    assert masked_request(request_text) == expected


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_harmless_is_left_alone(text: str) -> None:
    assert masked_request(text) == text
    assert masked(text) == text


@pytest.mark.parametrize("request_text", REQUESTS)
def test_the_refusal_of_a_request_tells_no_secret(request_text: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(request_text.encode())
    assert SECRET not in caught.value.line()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("option", ["--comment", "--exclude"])
def test_no_url_with_credentials_reaches_borgs_arguments(option: str) -> None:
    with pytest.raises(RequestError, match="has a URL with credentials"):
        parse(f"create {option} https://u:{SECRET}@host/ /r a /p".encode())
    assert parse(f"create {option} https://host/ /r a /p".encode()).verb == "create"


@given(
    before=st.text(" '\"\\=:/@ab-", max_size=12),
    user=st.text("ab.%", min_size=1, max_size=5),
    behind=st.text("ab/:? '\"", max_size=12),
)
def test_no_url_keeps_its_password(before: str, user: str, behind: str) -> None:
    for text in (
        f"{before} ssh://{user}:{SECRET}@host/{behind}",
        f"{before} BORG_PASSPHRASE={SECRET} {behind}",
    ):
        assert SECRET not in masked_request(text)
        assert SECRET not in masked(text)


@given(text=st.text(" '\"\\=:/@apswordh-", max_size=60))
def test_masking_once_is_enough(text: str) -> None:
    once = masked_request(text)
    assert masked_request(once) == once


@pytest.mark.parametrize(
    "piece", ["=", "a=", "://", "@:", ":", "x://u:", "pass=", "'", "- ", "--pass ", "x", "\\"]
)
def test_the_longest_request_takes_no_time(piece: str) -> None:
    text = piece * (64 * 1024 // len(piece))
    started = time.process_time()
    masked_request(text)
    assert time.process_time() - started < 2
