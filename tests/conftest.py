"""Fixtures and hooks of all tests; the harness holds the end-to-end ones."""

from tests.harness.fixtures import (
    installations,
    make_site,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_generate_tests,
    pytest_pyfunc_call,
    site,
)

__all__ = [
    "installations",
    "make_site",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_generate_tests",
    "pytest_pyfunc_call",
    "site",
]
