"""Charts: what stands in for the picture says which axis it is and which limits are drawn."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from runbook_lib.book import catalog, messages
from runbook_lib.checks.context import JudgeInput
from runbook_lib.model.finding import Threshold, say
from runbook_lib.packs.entitlement.checks import backlog
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
    sentence = charts.Chart(figure, say("verbatim", en="It ends.", ja="終わり。"))
    assert sentence.described("en").startswith("It ends. Axis: rows. ")


def test_each_limit_line_has_its_name_number_and_unit() -> None:
    figure, ax = charts.axes("Late deliveries", "% of events", "UTC")
    charts.limit_line(ax, 5.0, "limit of NOTI-B", "% of events")
    chart = charts.Chart(figure, say("chart.no_data"))
    assert [words.get_text() for words in ax.texts] == ["limit of NOTI-B 5 % of events"]
    assert chart.described("en").endswith("Limits: limit of NOTI-B 5 % of events")


@pytest.mark.parametrize(
    ("own", "looks", "lines", "old"),
    [
        ({}, "ooowcccc", [2.5, 3.5], "15 are older than 30 s"),
        ({"backlog.oldest_due": "5 / 60 s"}, "oowwwccc", [1.5, 4.5], "12 are older than 60 s"),
        ({"backlog.oldest_due": "20 / 45 s"}, "oooowccc", [3.0, 4.0], "12 are older than 60 s"),  # within a bar
    ],
)
def test_the_bars_of_ages_have_the_colours_of_the_thresholds(
    own: dict[str, str], looks: str, lines: list[float], old: str
) -> None:
    book = catalog.load().tuned(own)
    given = JudgeInput(book, pd.Timestamp("2025-01-31T03:00Z"), 60)
    ages = pd.DataFrame({"bucket": [0, 3, 4, 5, 10], "n": [1, 2, 3, 4, 8]})
    chart = backlog.draw_ages({"ages": ages}, given)
    assert chart is not None
    (ax,) = chart.figure.axes
    colours = {"o": charts.BLUE, "w": charts.ORANGE, "c": charts.RED}
    drawn = [to_hex(bar.get_facecolor()).upper() for bar in ax.patches[: len(looks)]]
    assert drawn == [colours[look].upper() for look in looks]
    assert [np.asarray(line.get_xdata())[0] for line in ax.lines] == lines
    limit = book.limits["backlog.oldest_due"]
    limits = f"Limits: warning {limit.warning:g} s, critical {limit.critical:g} s"
    assert old in chart.described("en") and chart.described("en").endswith(limits)
    assert f"WARNING from {limit.warning:g} s" in messages.text(chart.caption[0], "en")
