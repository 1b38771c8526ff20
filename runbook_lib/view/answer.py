"""The result of a step for a person's own cells: plain values and frames."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
from IPython.core.getipython import get_ipython
from IPython.display import display

from runbook_lib.book import messages
from runbook_lib.model.finding import Finding, Frames, Status
from runbook_lib.view import render


class StepResult:
    """A step's present finding; it is updated when the step runs again.

    A cell that ends with it shows its card, except the cell in which the step has shown it. User ids are masked in all
    of it.
    """

    def __init__(self, card: Callable[[], render.Card], about: str) -> None:
        """Ask `card` for the finding each time; `about` says which frames there are."""
        self._card, self._shown_in = card, _current_cell()
        self.about = about
        """The frames with their columns and units, in words."""

    @property
    def _finding(self) -> Finding:
        return self._card().finding

    def __repr__(self) -> str:
        with messages.using(self._card().lang):
            return render.finding_line(self._finding)

    def _ipython_display_(self) -> None:
        if _current_cell() != self._shown_in:
            display(self._card())

    @property
    def status(self) -> Status:
        """OK, WARNING, CRITICAL or UNKNOWN."""
        return self._finding.status

    @property
    def headline(self) -> str:
        """The answer in a sentence."""
        return messages.text(self._finding.headline, self._card().lang)

    @property
    def values(self) -> pd.DataFrame:
        """The observed values by name: value, unit, warning and critical (the limits of docs/slo.md), status."""
        columns = ["name", "value", "unit", "warning", "critical", "status"]
        rows = []
        for v in self._finding.values:
            limits = (v.threshold.warning, v.threshold.critical) if v.threshold else (None, None)
            rows.append((v.name, v.value, v.unit, *limits, v.status and v.status.name))
        return pd.DataFrame(rows, columns=columns).astype({"value": object}).set_index("name")

    @property
    def frames(self) -> Frames:
        """Copies of the frames that were judged, by name; `about` has their columns and units."""
        return {name: frame.copy() for name, frame in self._finding.frames.items()}

    @property
    def queries(self) -> pd.DataFrame:
        """The queries of the step: source, name, ms, rows, plan_cost, error, and the text as it was sent."""
        columns = ["source", "name", "ms", "rows", "plan_cost", "error", "text"]
        return pd.DataFrame([vars(q) for q in self._finding.queries], columns=columns)

    def explain(self) -> pd.DataFrame:
        """Return the evidence.

        Each observation of observations.md, what it is about, and its weight (-1 to 1).
        """
        rows = [(s.observation, s.about, s.weight) for s in self._finding.signals]
        return pd.DataFrame(rows, columns=["observation", "about", "weight"])


def _current_cell() -> int | None:
    """Return the number of the running cell; None outside a notebook."""
    shell = get_ipython()
    return None if shell is None else int(shell.execution_count)
