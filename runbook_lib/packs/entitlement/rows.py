"""Kinds of rows that several topics read (see `runbook_lib.rows`); others stand beside their judge."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Count:
    """A question that only counts; None where it was not answered."""

    n: int | None = None
