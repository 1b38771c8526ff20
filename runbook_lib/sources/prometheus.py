"""Prometheus, where a target has it, and the metrics of a process in its text format, read without Prometheus."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
from prometheus_client.parser import text_string_to_metric_families

from runbook_lib.sources.http import HttpServer, unexpected_answer
from runbook_lib.sources.source import Opening


class Prometheus(HttpServer):
    """Instant queries."""

    @classmethod
    def declared(cls, opening: Opening) -> Prometheus | None:
        """Return the target's Prometheus; None where it declares none."""
        url = opening.target.url("prometheus_url")
        return cls("prometheus", url, opening.read_cost) if url else None

    def instant(self, promql: str, at: pd.Timestamp) -> pd.DataFrame:
        """Return the vector at a moment: one row per series, its labels as columns and `value`; empty if absent."""
        reply = self.get_json("api/v1/query", {"query": promql, "time": at.isoformat()})
        try:
            return pd.DataFrame([{**s["metric"], "value": float(s["value"][1])} for s in reply["data"]["result"]])
        except (KeyError, TypeError, ValueError, IndexError):
            raise unexpected_answer(self.source) from None


class Exposition(HttpServer):
    """One process of the system that answers over HTTP."""

    def samples(self, path: str, wanted: Callable[[str], bool]) -> pd.DataFrame:
        """Return the series of `wanted` names at this moment: one row each, as `Prometheus.instant` returns them.

        Columns: `__name__`, the labels, `value`; empty if there is none. Raises SourceError.
        """
        return rows(self.source, self.get(path), wanted)


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
