"""Frozen records for the start-up path.

``typing.NamedTuple`` and ``dataclasses`` import ``re`` and ``inspect``, which together cost more
than the whole rest of the forced command's start. A record here is a class whose annotations are
its fields: all are required, by keyword, and none can be set afterwards.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn, dataclass_transform
else:

    def dataclass_transform(**_kwargs):
        return lambda cls: cls


_set = object.__setattr__


def _misfit(kind: str, names: tuple[str, ...], fields: dict[str, Any]) -> TypeError:
    for name in names:
        if name not in fields:
            return TypeError(f"{kind}: field {name} is missing")
    unknown = ", ".join(name for name in fields if name not in names)
    return TypeError(f"{kind}: no such field: {unknown}")


@dataclass_transform(kw_only_default=True, frozen_default=True, eq_default=True)
class _RecordType(type):
    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> _RecordType:
        if bases:
            namespace["__slots__"] = tuple(namespace.get("__annotations__", ()))
        return super().__new__(mcs, name, bases, namespace)


class Record(metaclass=_RecordType):
    """Base of all frozen records. Raises TypeError for a missing or an unknown field."""

    __slots__: tuple[str, ...] = ()

    if not TYPE_CHECKING:

        def __init__(self, **fields: Any) -> None:
            names = self.__slots__
            if len(fields) != len(names):
                raise _misfit(type(self).__name__, names, fields)
            for name in names:
                # No `try`: in Python 3.11 one that ends by want of memory may never end at all.
                if name not in fields:
                    raise _misfit(type(self).__name__, names, fields)
                _set(self, name, fields[name])

    def __setattr__(self, name: str, _value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name} is read-only")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name} is read-only")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and all(
            getattr(self, name) == getattr(other, name) for name in self.__slots__
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__name__}({fields})"
