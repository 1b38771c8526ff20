"""Errors and costs of a source, as its callers see them."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from runbook_lib.model.finding import Reason
from runbook_lib.privacy.masking import Masker
from runbook_lib.sources.source import ReadCost, SourceError

A_PASSWORD = re.compile(r"[0-9a-f]{32}")  # as the servers' are


def a_read_cost() -> ReadCost:
    return ReadCost(Masker())


@contextmanager
def refused(source: str, reason: Reason, code: str) -> Iterator[pytest.ExceptionInfo[SourceError]]:
    """The block raises this SourceError, and no password of the run is in it."""
    with pytest.raises(SourceError) as caught:
        yield caught
    error = caught.value
    assert (error.source, error.reason, error.code) == (source, reason, code), error
    # What a notebook or a log could print of it.
    assert not A_PASSWORD.search("".join(traceback.format_exception(error)))


@contextmanager
def fails_with(reason: Reason, code: str | None = None) -> Iterator[None]:
    """Expect a SourceError of this reason, and of this code if one is given."""
    with pytest.raises(SourceError) as e:
        yield
    assert e.value.reason is reason and code in (None, e.value.code)
