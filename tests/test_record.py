"""Frozen records: all fields, by keyword, and none changes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from borg_pull.record import Record


class Point(Record):
    x: int
    y: int

    def total(self) -> int:
        return self.x + self.y


class Place(Record):
    x: int
    y: int


class Nothing(Record):
    pass


def test_fields_are_what_was_given() -> None:
    point = Point(x=1, y=2)
    assert (point.x, point.y, point.total()) == (1, 2, 3)
    assert repr(point) == "Point(x=1, y=2)"
    assert repr(Nothing()) == "Nothing()"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "Point: field x is missing"),
        ({"x": 1}, "Point: field y is missing"),
        ({"x": 1, "y": 2, "z": 3}, "Point: no such field: z"),
        ({"x": 1, "Y": 2}, "Point: field y is missing"),
    ],
)
def test_fields_are_those_and_no_others(fields: dict[str, int], said: str) -> None:
    with pytest.raises(TypeError, match=f"^{said}$"):
        Point(**fields)  # type: ignore[arg-type]


def test_fields_have_names() -> None:
    with pytest.raises(TypeError):
        Point(1, 2)  # type: ignore[call-arg, arg-type]


def test_nothing_changes_afterwards() -> None:
    point = Point(x=1, y=2)
    with pytest.raises(AttributeError, match=r"Point\.x is read-only"):
        point.x = 3  # type: ignore[misc]
    with pytest.raises(AttributeError, match=r"Point\.z is read-only"):
        point.z = 3
    with pytest.raises(AttributeError, match=r"Point\.x is read-only"):
        del point.x
    assert (point.x, point.y) == (1, 2)
    assert not hasattr(point, "__dict__")


def test_records_are_equal_by_type_and_fields() -> None:
    assert Point(x=1, y=2) == Point(x=1, y=2)
    assert Point(x=1, y=2) != Point(x=1, y=3)
    assert Point(x=1, y=2) != Place(x=1, y=2)
    assert Point(x=1, y=2) != (1, 2)
    with pytest.raises(TypeError, match="unhashable"):
        hash(Point(x=1, y=2))


def test_importing_it_loads_nothing_that_costs() -> None:
    script = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "import borg_pull.record\n"
        "print(*sorted(set(sys.modules) - before))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["borg_pull", "borg_pull.record"]
