"""The project's PEP 517 backend: setuptools, after writing the C source of the kernel module.

cffi's own setuptools hook needs a ``setup.py``. Here the C source is generated first and then
compiled as the plain extension module that ``pyproject.toml`` names.
"""

from __future__ import annotations

import runpy
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import (
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

LINUX = Path(__file__).resolve().parent.parent / "borg_pull" / "linux"

Settings = dict[str, str | list[str] | None] | None


def emit_kernel_source() -> None:
    """Write ``borg_pull/linux/_kernel.c``; unchanged, it keeps its time, so nothing rebuilds."""
    runpy.run_path(str(LINUX / "_kernel_build.py"))["ffibuilder"].emit_c_code(
        str(LINUX / "_kernel.c")
    )


def build_wheel(
    wheel_directory: str,
    config_settings: Settings = None,
    metadata_directory: str | None = None,
) -> str:
    """Build a wheel; the file's name."""
    emit_kernel_source()
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str,
    config_settings: Settings = None,
    metadata_directory: str | None = None,
) -> str:
    """Compile the kernel module beside its source and build the editable wheel; its name."""
    emit_kernel_source()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)


def build_sdist(sdist_directory: str, config_settings: Settings = None) -> str:
    """Build a source distribution; the file's name."""
    emit_kernel_source()
    return build_meta.build_sdist(sdist_directory, config_settings)
