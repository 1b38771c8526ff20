"""Charts: what stands in for the picture says which axis it is and which limits are drawn."""

from __future__ import annotations

from runbook_lib.model.finding import Threshold, say
from runbook_lib.view import charts


def test_the_alt_text_names_axis_and_limits() -> None:
    figure, ax = charts.axes("Backlog", "rows", "UTC")
    ax.plot([0, 1], [1, 2], label="waiting")
    charts.thresholds(ax, Threshold("backlog.due", "rows", 50, 500, False, "docs/slo.md"))
    chart = charts.Chart(figure, say("chart.no_data"))
    (image,) = chart.display("en")
    assert image["text/plain"].endswith("Axis: rows. Limits: warning 50 rows, critical 500 rows")
    assert chart.metadata("en")["image/png"]["alt"] == image["text/plain"]
    assert "しきい値: warning 50 rows" in chart.described("ja")
