"""How much is tried: everything in `make test-all`, a part in `make test`."""

from __future__ import annotations

import os

#: Set by `make test-all`.
ALL = bool(os.environ.get("RUNBOOK_TEST_ALL"))


def examples(most: int) -> int:
    """Return how many examples a property is tried with: `most` in `make test-all`, a tenth in `make test`."""
    return most if ALL else max(most // 10, 5)
