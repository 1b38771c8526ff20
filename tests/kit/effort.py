"""How much is tried: everything in `make test-all`, a part in `make test`."""

from __future__ import annotations

import os
from collections.abc import Iterable

import pytest
from _pytest.mark.structures import ParameterSet

#: Set by `make test-all`.
ALL = bool(os.environ.get("RUNBOOK_TEST_ALL"))


def examples(most: int) -> int:
    """Return how many examples a property is tried with: `most` in `make test-all`, a tenth in `make test`."""
    return most if ALL else max(most // 10, 5)


def a_quarter(names: Iterable[str]) -> list[ParameterSet]:
    """Return a parameter per name; `make test` tries each fourth, and `make test-all` the others as well."""
    return [pytest.param(name, marks=[pytest.mark.slow] if n % 4 else []) for n, name in enumerate(names)]
