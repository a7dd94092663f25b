"""Capability sets of the running process; facts from capabilities(7)."""

from __future__ import annotations

import os

from borg_pull.errors import SystemRefusedError
from borg_pull.linux._kernel import ffi, lib
from borg_pull.record import Record

DAC_READ_SEARCH = 2  # include/uapi/linux/capability.h


class CapabilitySets(Record):
    """The three sets of one thread, each a bit mask with bit N for capability number N."""

    effective: int
    permitted: int
    inheritable: int


def current() -> CapabilitySets:
    """The calling thread's sets. Raises SystemRefusedError."""
    sets = ffi.new("uint64_t[3]")
    _check(lib.bp_capget(sets, sets + 1, sets + 2), "read the capability sets")
    return CapabilitySets(effective=sets[0], permitted=sets[1], inheritable=sets[2])


def is_permitted(capability: int) -> bool:
    """Whether the process may raise ``capability``."""
    return bool(current().permitted >> capability & 1)


def make_effective(capability: int | None) -> None:
    """Leave exactly ``capability`` (or nothing) in force and keep what is permitted."""
    sets = current()
    effective = 0 if capability is None else (1 << capability) & sets.permitted
    _check(
        lib.bp_capset(effective, sets.permitted, sets.inheritable),
        "set the capabilities in force",
    )


def drop_all() -> None:
    """Give up every capability for good; lowering the sets empties the ambient set as well."""
    _check(lib.bp_capset(0, 0, 0), "drop the capabilities")


def keep_only_across_exec(capability: int) -> None:
    """Reduce every set to ``capability`` and make it ambient, so that exec keeps it alone.

    Raises SystemRefusedError when the capability is not permitted.
    """
    mask = 1 << capability
    _check(lib.bp_capset(mask, mask, mask), "reduce the capabilities to one")
    _check(lib.bp_ambient_raise(capability), "raise the ambient capability")


def is_ambient(capability: int) -> bool:
    """Whether ``capability`` is in the ambient set."""
    result = lib.bp_ambient_is_set(capability)
    _check(min(result, 0), "read the ambient capabilities")
    return result == 1


def _check(result: int, what: str) -> None:
    if result < 0:
        raise SystemRefusedError(f"cannot {what}: {os.strerror(-result)}")
