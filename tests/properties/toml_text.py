"""Values written as TOML."""

from __future__ import annotations

import json
from typing import Any


def toml_string(text: str) -> str:
    """``text`` as a TOML string."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def toml_value(value: Any) -> str:
    """``value`` as TOML, tables inline."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return toml_string(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{toml_string(k)} = {toml_value(v)}" for k, v in value.items()) + "}"
        )
    return str(value)


def toml_table(header: str, table: dict[str, Any]) -> str:
    """A table with its header, or without one when ``header`` is empty."""
    lines = [f"{toml_string(name)} = {toml_value(value)}" for name, value in table.items()]
    return "\n".join([*([header] if header else []), *lines, ""])
