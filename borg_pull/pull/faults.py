"""What is wrong with a configuration, in words for whoever wrote it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from borg_pull.errors import ConfigurationError, printable


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong."""

    file: str
    key: str
    """Dotted path; empty for the whole file."""
    message: str

    def text(self) -> str:
        """``FILE: KEY: MESSAGE``"""
        parts = (self.file, self.key, self.message)
        return printable(": ".join(part for part in parts if part))


class ConfigFaultsError(ConfigurationError):
    """The configuration cannot be used; ``faults`` holds everything that is wrong with it."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        super().__init__(
            f"the configuration is wrong: {faults[0].text()}{more}", "see borg-pull check-config"
        )
        self.faults = tuple(faults)


def faults_of(
    error: ValidationError, model: type[BaseModel], file: str, prefix: tuple[str, ...]
) -> Iterator[Fault]:
    """The faults in ``error``, which validating the table at ``prefix`` as ``model`` raised."""
    for detail in error.errors(include_url=False):
        location = detail["loc"]
        if detail["type"] == "extra_forbidden":
            message = _unknown(str(location[-1]), model, location[:-1])
        else:
            message = _message(detail)
        yield Fault(file=file, key=dotted((*prefix, *location)), message=message)


def dotted(location: Iterable[str | int]) -> str:
    """``location`` as TOML writes a key, with array items as ``[0]``."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if _is_bare(part) else f'"{part}"')
    return text


def _is_bare(part: str) -> bool:
    return part.isascii() and part.replace("-", "").replace("_", "").isalnum()


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean X?"`` where something is near, else what is known."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known are {', '.join(names)}" if names else ""


def _unknown(name: str, model: type[BaseModel], location: tuple[str | int, ...]) -> str:
    for part in location:
        table = table_of(model, str(part))
        assert table is not None, "only tables have keys"
        model = table
    return f"is unknown{nearest(name, model.model_fields)}"


def table_of(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The model of the table ``key``, or of each table by name in it; None for a plain value."""
    annotation = model.model_fields[key].annotation
    for each in (annotation, *get_args(annotation)):
        if isinstance(each, type) and issubclass(each, BaseModel):
            return each
    return None


_WANTED = {
    "bool_type": "a boolean",
    "dict_type": "a table",
    "float_type": "a number",
    "int_type": "an integer",
    "list_type": "an array",
    "model_type": "a table",
    "string_type": "a string",
}


def _message(detail: Mapping[str, Any]) -> str:
    kind = detail["type"]
    context = detail.get("ctx", {})
    if kind in _WANTED:
        return wrong_type(_WANTED[kind], detail["input"])
    if kind == "value_error":
        return str(context["error"])
    texts = {
        "missing": "is missing",
        "literal_error": "must be {expected}",
        "greater_than_equal": "must be at least {ge}",
        "less_than_equal": "must be at most {le}",
        "less_than": "must be less than {lt}",
        "too_short": "is empty",
        "too_long": "has {actual_length} items; the limit is {max_length}",
        "string_too_short": "is empty",
    }
    if kind in texts:
        return texts[kind].format(**context)
    message = str(detail["msg"])
    return message[:1].lower() + message[1:]


def wrong_type(wanted: str, value: object) -> str:
    """``must be ``wanted``, not ...``"""
    kinds = {
        bool: "a boolean",
        dict: "a table",
        float: "a number with a fraction",
        int: "an integer",
        list: "an array",
        str: "a string",
    }
    return f"must be {wanted}, not {kinds.get(type(value), 'a date or time')}"
