"""What makes a value unfit for a request, judged alike by whoever sends and whoever takes one.

Pure, and part of the start-up path.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# Each is opened, and the usual limit is 1024 descriptors; some must be left to record the end with.
MAX_PATHS = 500
MAX_ARCHIVE_NAME = 200  # characters before expansion
MAX_PATTERN = 1024  # characters of an --exclude
MAX_NAME = 255  # bytes of one path component, NAME_MAX in linux/limits.h
MAX_PATH = 4095  # bytes of a path, PATH_MAX in linux/limits.h less its NUL

NOT_ABSOLUTE = "is not absolute"


def path_fault(path: str) -> str | None:
    """What makes ``path`` unfit as a source path, or None.

    Borg strips what stands before ``/./`` from the paths in the archive and reads standard input
    for ``-``; ``..`` and doubled slashes would make a comparison with the whitelist meaningless.
    """
    if not path.startswith("/"):
        return NOT_ABSOLUTE
    if any(map(is_control, path)):
        return "has a control character"
    try:
        encoded = path.encode("utf-8")
    except UnicodeEncodeError:
        # Borg writes its own argv into the archive when all has been sent, and fails there.
        return "has bytes that are not UTF-8, with which borg cannot end; ask for what is above it"
    if len(encoded) > MAX_PATH:
        return f"is longer than {MAX_PATH} bytes"
    components = encoded.split(b"/")[1:]
    if components[-1] == b"":
        # One trailing slash is tolerated because the original tool matched it verbatim.
        components.pop()
    for component in components:
        if component == b"":
            return "has an empty component"
        if component in (b".", b".."):
            return f"has a component {component.decode()}"
        if len(component) > MAX_NAME:
            return f"has a component longer than {MAX_NAME} bytes"
    return None


def repository_fault(repository: str) -> str | None:
    """What makes ``repository`` unfit as the path part of borg's ssh:// URL, or None."""
    fault = path_fault(repository)
    if fault is not None:
        return fault
    if repository == "/":
        return "is the root directory"
    if not repository.isprintable():
        return "has characters that are not printable text"
    if "{" in repository or "}" in repository:
        return "has a brace, which borg would expand"
    if "::" in repository:
        return "has '::', which borg takes for an archive separator"
    if repository.endswith(":"):
        return "ends in a colon, which borg takes for a part of the archive separator"
    return None


PLACEHOLDERS = ("now", "utcnow", "hostname")
# Every strftime directive that yields only digits, letters and signs; %f is datetime's alone, and
# %D has slashes.
_STRFTIME_DIRECTIVES = "YmdHMSjyIpaAbBUWVGuwzZFTRs%"
_STRFTIME_LITERALS = "-_.:+T "


def archive_fault(name: str) -> str | None:
    """What makes ``name`` unfit as an archive name, or None."""
    if len(name) > MAX_ARCHIVE_NAME:
        return f"is longer than {MAX_ARCHIVE_NAME} characters"
    if not name or name != name.strip() or not name.isprintable():
        return "is empty or has characters at its ends or inside that are not printable text"
    if "/" in name or "\\" in name:
        return "has a slash or backslash"
    for literal, placeholder in archive_parts(name):
        if "{" in literal or "}" in literal or "::" in literal:
            return "has a stray brace or '::'"
        if placeholder is not None:
            fault = _placeholder_fault(placeholder)
            if fault is not None:
                return fault
    if ".checkpoint" in name:
        return "has '.checkpoint', by which borg knows what prune deletes and list hides"
    return None


def archive_parts(name: str) -> Iterator[tuple[str, str | None]]:
    """(literal text, inside of the placeholder that follows or None), in order."""
    rest = name
    while rest:
        literal, opened, after = rest.partition("{")
        inside, closed, rest = after.partition("}")
        if opened and not closed:
            yield literal + opened + inside, None
        else:
            yield literal, inside if opened else None


def _placeholder_fault(placeholder: str) -> str | None:
    name, colon, time_format = placeholder.partition(":")
    if name not in PLACEHOLDERS:
        return f"has the placeholder {{{name}}}; known are {', '.join(PLACEHOLDERS)}"
    if not colon:
        return None
    if name == "hostname" or not time_format:
        return f"has a format for {{{name}}} that it does not take"
    characters = iter(time_format)
    for character in characters:
        if character == "%":
            if next(characters, "") not in tuple(_STRFTIME_DIRECTIVES):
                return f"has a time format other than of %{_STRFTIME_DIRECTIVES}"
        elif not (character.isascii() and character.isalnum()) and (
            character not in _STRFTIME_LITERALS
        ):
            return f"has {character!r} in a time format"
    return None


def compression_fault(spec: str) -> str | None:
    """What is wrong with a compression specification (``borg help compression``), or None."""
    parts = spec.split(",")
    if parts[0] == "obfuscate":
        if len(parts) < 3 or not (_is_number(parts[1], 1, 6) or _is_number(parts[1], 110, 123)):
            return "is not obfuscate,LEVEL,ALGORITHM with a level of 1 to 6 or 110 to 123"
        parts = parts[2:]
    if parts[0] == "auto":
        parts = parts[1:]
    levels = {
        "none": None,
        "lz4": None,
        "zstd": (1, 22),
        "zlib": (0, 9),
        "lzma": (0, 9),
    }
    if not parts or parts[0] not in levels:
        return f"is not one of {', '.join(levels)}"
    bounds = levels[parts[0]]
    if len(parts) == 1:
        return None
    if len(parts) > 2 or bounds is None:
        return f"has more than {parts[0]} takes"
    if not _is_number(parts[1], *bounds):
        return f"has a level outside {bounds[0]} to {bounds[1]}"
    return None


def exclude_fault(pattern: str) -> str | None:
    """What makes ``pattern`` unfit for borg's --exclude, or None (see ``borg help patterns``)."""
    style, colon, rest = pattern.partition(":")
    if not pattern:
        return "is empty"
    if len(pattern) > MAX_PATTERN:
        return f"is longer than {MAX_PATTERN} characters"
    if colon and len(style) == 2 and style.isalnum():
        if style not in ("fm", "sh", "pp", "pf"):
            return "has a style other than fm:, sh:, pp: and pf:"
        if not rest:
            return "is empty"
    if not pattern.isprintable():
        return "has characters that are not printable text"
    return None


def archive_glob_fault(pattern: str) -> str | None:
    """What makes ``pattern`` unfit for borg's --glob-archives, or None."""
    if len(pattern) > MAX_ARCHIVE_NAME:
        return f"is longer than {MAX_ARCHIVE_NAME} characters"
    if not pattern.isprintable():
        return "has characters that are not printable text"
    if "{" in pattern or "}" in pattern:
        return "has a brace, which borg would expand"
    if pattern[0] in "*?[":
        return "does not begin with a letter or sign of its own, so it selects every archive"
    return None


def count_fault(text: str) -> str | None:
    """What makes ``text`` unfit for a ``--keep-`` option, or None."""
    return None if _is_number(text, 1, 1_000_000) else "is not a number from 1 to 1000000"


def interval_fault(text: str) -> str | None:
    """What makes ``text`` unfit for --keep-within, or None."""
    if text[-1] in "Hdwmy" and _is_number(text[:-1], 1, 100_000):
        return None
    return "is not a number with H, d, w, m or y behind it"


def _is_number(text: str, least: int, most: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 7 and least <= int(text) <= most


def is_control(character: str) -> bool:
    """Whether a terminal could act on it."""
    return character < " " or "\x7f" <= character <= "\x9f"


def quoted(value: str) -> str:
    """``value`` for a message: ASCII, one line, at most 200 characters."""
    text = ascii(value)
    return text if len(text) <= 200 else f"{text[:160]}... ({len(value)} characters)"


def nonce_fault(nonce: str) -> str | None:
    """What makes ``nonce`` unfit for the name of one run's socket, or None."""
    if 16 <= len(nonce) <= 64 and nonce.isascii() and nonce.isalnum():
        return None
    return "is not 16 to 64 letters and digits"


def client_name_fault(name: str) -> str | None:
    """What makes ``name`` unfit: it becomes part of a socket's and a directory's name and the host
    of borg's URL."""
    if not (
        0 < len(name) <= 64
        and name.isascii()
        and name[0].isalnum()
        and all(character.isalnum() or character in "._-" for character in name)
    ):
        return "is no client name (letters, digits, '.', '_', '-', up to 64)"
    other, _, nonce = name.rpartition(".")
    if other and nonce_fault(nonce) is None:
        return (
            f"is no client name: its socket could be that of one run of a client {other}; "
            "shorten what follows the last dot to 15 characters, or put a '-' or '_' in it"
        )
    return None


def action_name_fault(name: str) -> str | None:
    """What makes ``name`` unfit for an action or a target, or None."""
    if (
        0 < len(name) <= 64
        and name.isascii()
        and name[0].isalnum()
        and all(character.isalnum() or character in "_-" for character in name)
    ):
        return None
    return "is no name (letters, digits, '_', '-', up to 64)"


def is_session(text: str) -> bool:
    """Whether ``text`` has the form of what `new_session` makes."""
    parts = text.split("-")
    return [len(part) for part in parts] == [8, 4, 4, 4, 12] and not "".join(parts).strip(
        "0123456789abcdef"
    )


def job_fault(job: str) -> str | None:
    """What makes ``job`` unfit for a job's ID, or None."""
    return None if is_session(job) else "is not the ID of a job"
