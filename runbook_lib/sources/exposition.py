"""Metrics of a process in Prometheus' text format, read directly; no Prometheus is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
from prometheus_client.parser import text_string_to_metric_families

from runbook_lib.sources import ReadCost
from runbook_lib.sources.http import get, post_json, unexpected_answer


class Exposition:
    """One process of the system that answers over HTTP."""

    def __init__(self, name: str, url: str, read_cost: ReadCost) -> None:
        self._name, self._url, self._read_cost = name, url, read_cost

    def samples(self, path: str, wanted: Callable[[str], bool]) -> pd.DataFrame:
        """Return the series of `wanted` names at this moment: one row each, as `Prometheus.instant` returns them.

        Columns: `__name__`, the labels, `value`; empty if there is none. Raises SourceError.
        """
        return rows(self._name, get(self._name, self._read_cost, self._url, path), wanted)

    def post(self, path: str, content: object, headers: dict[str, str]) -> tuple[int, Any]:
        """Have it do something: the status of its answer, and the JSON in it. Raises SourceError."""
        return post_json(self._name, self._read_cost, self._url, path, content, headers)


def rows(source: str, text: bytes, wanted: Callable[[str], bool]) -> pd.DataFrame:
    """Parse the samples of a text in Prometheus' format. Raises SourceError for another text."""
    try:
        found = [
            {"__name__": sample.name, **sample.labels, "value": float(sample.value)}
            for family in text_string_to_metric_families(text.decode())
            for sample in family.samples
            if wanted(sample.name)
        ]
    except Exception:  # the parser has no error of its own: ValueError, KeyError, IndexError, by the kind of text
        raise unexpected_answer(source) from None
    return pd.DataFrame(found)
