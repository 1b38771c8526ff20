"""Imported last by the process that others are forked from: what each of them would do first is done once, here.

Templates are compiled, fonts found, documents parsed. No thread, no connection and nothing of any incident.
"""

from __future__ import annotations

import gc

import nbformat
import pandas as pd
import sqlalchemy

from runbook_lib import artifact, catalog, charts
from runbook_lib.finding import say

catalog.load()
sqlalchemy.create_engine("postgresql+psycopg://").dispose()
_figure, _ax = charts.axes("waiting", "rows", "time (UTC)")
_ax.plot(pd.date_range("2000-01-01", periods=2, freq="h", tz="UTC"), [0, 1], label="rows")
charts.clock_ticks(_ax)
charts.legend(_figure)
charts.Chart(_figure, say("chart.no_data")).display("en")
_cells = [nbformat.v4.new_markdown_cell("# words\n\n[a](b) `c`"), nbformat.v4.new_code_cell("rb = 1  # code")]
artifact.html(nbformat.v4.new_notebook(cells=_cells), "", "en")

# What is here stays: a fork that looks for garbage need not touch, and thereby copy, all of it.
del _figure, _ax, _cells
gc.collect()
gc.freeze()
