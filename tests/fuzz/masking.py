"""Credentials in what is kept or shown: whatever stands around one, it does not come through."""

from __future__ import annotations

from collections.abc import Iterable

from borg_pull.credentials import has_url_credentials, masked, masked_request

from .target import SEPARATOR, Target, parts

SECRET = "hunter2Xq"
PLANTED = (f"ssh://u:{SECRET}@h", f" BORG_PASSPHRASE={SECRET} ", f" --passphrase={SECRET} ")


def check(data: bytes) -> str:
    """What stands before a credential, and what behind it."""
    # The fuzzer learns the word from the comparison; alone it is no credential.
    before, after = (
        part.decode("utf-8", "surrogateescape").replace(SECRET, "") for part in parts(data, 2)
    )
    for text in (before, after):
        # What holds no credential is shown as it is.
        assert masked(text) == text or any(mark in text for mark in "=@:")
    for planted in PLANTED:
        text = f"{before}{planted}{after}"
        assert SECRET not in masked(text), text
        assert SECRET not in masked_request(text), text
    assert has_url_credentials(f"{before}{PLANTED[0]}{after}")
    return "shown" if masked(before) == before else "masked"


def seeds() -> Iterable[bytes]:
    """Requests and messages with something before and behind."""
    yield b"create --comment" + SEPARATOR + b"/x web-1 /home"
    yield b"option --comment: 'see " + SEPARATOR + b"' has a brace; try again"
    yield b'{"message": "' + SEPARATOR + b'", "levelname": "ERROR"}'
    yield b"https://a:b@c/d?e=f#" + SEPARATOR + b":22/x@y"


TARGET = Target(
    name="masking",
    check=check,
    reaches={"borg_pull.credentials": ()},
    weight=1,
    seeds=seeds,
    dictionary=(
        SEPARATOR, b"://", b"@", b"=", b":", b"PASSWORD=", b"--token ", b"'", b'"', b"\\", b" ",
        b"/", b"?", b"#", b"]", b"\xe2\x80\xa8", b"\xc2\xa0",
    ),
    max_length=512,
)  # fmt: skip
