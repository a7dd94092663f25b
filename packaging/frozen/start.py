"""Runs first in every frozen program, in place of PyInstaller's own bootstrap script."""

import sys

sys.frozen = True  # type: ignore[attr-defined]
