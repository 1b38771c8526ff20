"""A first chart and a first page, drawn by the process that others are forked from: fonts found, templates compiled."""

from __future__ import annotations

import nbformat
import pandas as pd

from runbook_lib.dossier import artifact
from runbook_lib.model.finding import say
from runbook_lib.view import charts


def use() -> None:
    """Use once what each section uses. Raises UsageError or CatalogError for a document or a pack with an error."""
    hours = pd.date_range("2000-01-01", periods=2, freq="h", tz="UTC")
    rows = charts.Series("rows", charts.Role.LEVEL, hours, [0, 1])
    charts.Chart("waiting", "rows", [rows], alt=say("chart.no_data")).display()
    cells = [nbformat.v4.new_markdown_cell("# words\n\n[a](b) `c`"), nbformat.v4.new_code_cell("rb = 1  # code")]
    artifact.html(nbformat.v4.new_notebook(cells=cells), "")
