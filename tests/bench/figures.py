"""What was measured, the ratios drawn from it, and how both are shown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

SCHEMA = 1


@dataclass(frozen=True)
class Measure:
    """One thing measured several times; ``unit`` is ``ms``, ``s``, ``us``, ``MiB``, ``MiB/s``..."""

    name: str
    unit: str
    values: Sequence[float]

    @property
    def median(self) -> float:
        """The middle of all repeats."""
        return statistics.median(self.values)

    @property
    def minimum(self) -> float:
        """The least, which on a busy machine is nearest to the undisturbed cost."""
        return min(self.values)

    @property
    def maximum(self) -> float:
        """The greatest."""
        return max(self.values)

    def as_json(self) -> dict[str, Any]:
        """The measure as docs/benchmarks.md describes it."""
        return {
            "name": self.name,
            "unit": self.unit,
            "repeats": len(self.values),
            "minimum": round(self.minimum, 4),
            "median": round(self.median, 4),
            "maximum": round(self.maximum, 4),
        }


@dataclass(frozen=True)
class Aim:
    """What a figure should be: at most, or at least, ``bound``."""

    at_most: bool
    bound: float

    def is_met_by(self, value: float) -> bool:
        """Whether ``value``, to two decimals as the table shows it, keeps to the bound."""
        shown = round(value, 2)
        return shown <= self.bound if self.at_most else shown >= self.bound

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.bound:g}"


@dataclass(frozen=True)
class Ratio:
    """``ours`` over ``reference``, both measured in the same run; without an aim it only informs.

    Costs are divided best by best and median by median, rates (more is better) likewise.
    """

    name: str
    ours: Measure
    reference: Measure
    aim: Aim | None
    rate: bool = False

    @property
    def of_medians(self) -> float:
        """The figure that is compared with the aim."""
        return self.ours.median / self.reference.median

    @property
    def of_best(self) -> float:
        """The same of the best repeat of each."""
        if self.rate:
            return self.ours.maximum / self.reference.maximum
        return self.ours.minimum / self.reference.minimum

    def as_json(self) -> dict[str, Any]:
        """The ratio as docs/benchmarks.md describes it."""
        return {
            "name": self.name,
            "ours": self.ours.name,
            "reference": self.reference.name,
            "of_medians": round(self.of_medians, 4),
            "of_best": round(self.of_best, 4),
            "aim": None if self.aim is None else str(self.aim),
            "met": None if self.aim is None else self.aim.is_met_by(self.of_medians),
        }


@dataclass(frozen=True)
class Limit:
    """A measure whose own median has an aim."""

    measure: Measure
    aim: Aim

    def as_json(self) -> dict[str, Any]:
        """The limit as docs/benchmarks.md describes it."""
        return {
            "measure": self.measure.name,
            "aim": str(self.aim),
            "met": self.aim.is_met_by(self.measure.median),
        }


@dataclass
class Section:
    """One lettered part of the benchmarks."""

    letter: str
    title: str
    measures: list[Measure] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The section as docs/benchmarks.md describes it."""
        return {
            "title": self.title,
            "measures": [measure.as_json() for measure in self.measures],
            "ratios": [ratio.as_json() for ratio in self.ratios],
            "limits": [limit.as_json() for limit in self.limits],
            "notes": self.notes,
        }

    def table(self) -> str:
        """The section for people."""
        lines = [f"({self.letter}) {self.title}", ""]
        rows = [("", "unit", "best", "median", "worst")]
        for measure in self.measures:
            best, worst = measure.minimum, measure.maximum
            if measure.unit.endswith("/s"):
                best, worst = worst, best
            rows.append(
                (measure.name, measure.unit, _number(best), _number(measure.median), _number(worst))
            )
        lines += _columns(rows)
        if self.ratios or self.limits:
            rows = [("", "best", "median", "aim", "")]
            for ratio in self.ratios:
                rows.append(
                    (
                        ratio.name,
                        f"{ratio.of_best:.2f} x",
                        f"{ratio.of_medians:.2f} x",
                        "" if ratio.aim is None else str(ratio.aim),
                        _verdict(ratio.aim, ratio.of_medians),
                    )
                )
            for limit in self.limits:
                measure = limit.measure
                rows.append(
                    (
                        f"{measure.name}, {measure.unit}",
                        _number(measure.minimum),
                        _number(measure.median),
                        str(limit.aim),
                        _verdict(limit.aim, measure.median),
                    )
                )
            lines += ["", *_columns(rows)]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines) + "\n"


def _verdict(aim: Aim | None, value: float) -> str:
    if aim is None:
        return ""
    return "met" if aim.is_met_by(value) else "MISSED"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.2f}"


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        ).rstrip()
        for row in rows
    ]
