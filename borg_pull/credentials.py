"""Credentials that people write where they do not belong, masked in text that is kept or shown.

A request may hold some by mistake: a URL in place of a path, an assignment before the verb, an
option of a borg that is run directly. What cannot be told from a credential is masked with it.
"""

from __future__ import annotations

MASK = "***"

# Parts of the names of variables and options that hold a secret.
_SECRET = ("pass", "pwd", "secret", "token", "credential", "apikey", "_key", "-key")
_MAX_NAME = 64  # characters of a name that are looked at


def masked(text: str) -> str:
    """A message without the values of secret variables, and without the credentials of URLs."""
    if "=" not in text and "@" not in text and "://" not in text:
        return text
    return "".join(_without_credentials(piece) for piece in _pieces(text))


def masked_request(text: str) -> str:
    """The same of a request, in which the word behind an option can be the secret."""
    pieces = []
    is_expected = False
    for piece in _pieces(text):
        if piece.isspace():
            pieces.append(piece)
            continue
        bare = piece.lstrip("'\"\\")
        is_option = bare.startswith("-")
        pieces.append(MASK if is_expected and not is_option else _without_credentials(piece))
        is_expected = is_option and "=" not in bare and is_secret_name(bare)
    return "".join(pieces)


def has_url_credentials(text: str) -> bool:
    """Whether a URL in ``text`` names a user, with or without a password."""
    return _without_userinfo(text) != text


def _pieces(text: str) -> list[str]:
    """Words by the quoting rules of the shell, as written, and the blanks between them."""
    pieces: list[str] = []
    start = 0
    quote = ""
    is_escaped = False
    is_blank = False
    for position, character in enumerate(text):
        if not quote and not is_escaped and character.isspace() is not is_blank:
            if position > start:
                pieces.append(text[start:position])
            start = position
            is_blank = not is_blank
        if is_escaped:
            is_escaped = False
        elif character == "\\" and quote != "'":
            is_escaped = True
        elif quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
    pieces.append(text[start:])
    return pieces


def _without_credentials(word: str) -> str:
    position = word.find("=")
    while position >= 0:
        if is_secret_name(_name_before(word, position)):
            return f"{_without_passwords(word[: position + 1])}{MASK}{_closing(word)}"
        position = word.find("=", position + 1)
    return _without_passwords(word)


def _without_passwords(word: str) -> str:
    return _without_password(_without_userinfo(word))


def _closing(word: str) -> str:
    """The quote that ends ``word``, with a message's punctuation behind it."""
    quote = word[0]
    end = word.rfind(quote)
    is_closed = quote in "'\"" and end > 0 and not word[end + 1 :].strip(";:,.)")
    return word[end:] if is_closed else ""


def _name_before(word: str, end: int) -> str:
    start = end
    while start > max(0, end - _MAX_NAME) and (
        word[start - 1].isalnum() or word[start - 1] in "_-"
    ):
        start -= 1
    return word[start:end]


def is_secret_name(name: str) -> bool:
    """Whether a variable, an option or a key of that name holds a secret."""
    lower = name.lower()
    return any(part in lower for part in _SECRET)


def _without_userinfo(text: str) -> str:
    """``SCHEME://USER:PASSWORD@HOST`` without what stands before the host."""
    first, *rest = text.split("://")
    return "://".join((first, *map(_without_user, rest)))


def _without_user(location: str) -> str:
    """What stands behind ``://``, up to the next URL."""
    end = min(
        (found for found in map(location.find, "/?#") if found >= 0),
        default=len(location),
    )
    _, at, host = location[:end].rpartition("@")
    if at:
        return f"{MASK}@{host}{location[end:]}"
    # A password with a slash that is not escaped ends what looks like the host. A port is digits.
    _, colon, port = location[:end].rpartition("]")[2].partition(":")
    if colon and not port.rstrip("'\";,.)").isdigit():
        return f"{MASK}@{location.rpartition('@')[2]}" if "@" in location else MASK
    return location


def _without_password(word: str) -> str:
    """``USER:PASSWORD@HOST:PATH`` without the password."""
    user, colon, rest = word.partition(":")
    password, at, host = rest.rpartition("@")
    if not (colon and at) or "/" in user or "://" in word or not (":" in host or "/" in host):
        return word
    return f"{user}:{MASK}@{host}" if password else word
