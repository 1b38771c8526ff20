"""Charts: what stands in for the picture says which axis it is and which limits are drawn; times are told apart."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from runbook_lib.book import catalog, messages
from runbook_lib.checks.context import JudgeInput
from runbook_lib.model.finding import Threshold, say
from runbook_lib.packs.entitlement.checks import backlog
from runbook_lib.view import charts
from runbook_lib.view.charts import Role, Series

ALT = say("chart.no_data")


def test_the_alt_text_names_axis_and_limits() -> None:
    limits = charts.thresholds(Threshold("backlog.due", "rows", 50, 500, False, "docs/slo.md"))
    chart = charts.Chart("Backlog", "rows", [Series("waiting", Role.LEVEL, [0, 1], [1, 2])], limits, alt=ALT)
    (image,) = chart.display()
    assert image["text/plain"].endswith("Axis: rows. Limits: warning 50 rows, critical 500 rows")
    assert charts.draw(chart).axes[0].get_ylim()[1] < 600
    assert chart.metadata()["image/png"]["alt"] == image["text/plain"]
    with messages.using("ja"):
        assert "しきい値: warning 50 rows" in chart.described()
    sentence = charts.Chart("Backlog", "rows", alt=say("verbatim", en="It ends.", ja="終わり。"))
    assert sentence.described().startswith("It ends. Axis: rows")


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
    chart = backlog.chart_ages({"ages": ages}, given)
    assert chart is not None
    roles = {"o": Role.LEVEL, "w": Role.WARNING, "c": Role.CRITICAL}
    assert [bar.role for bar in chart.series][: len(looks)] == [roles[look] for look in looks]
    assert [line.at for line in chart.limits_of_x] == lines
    limit = book.limits["backlog.oldest_due"]
    limits = f"Limits: warning {limit.warning:g} s, critical {limit.critical:g} s"
    assert old in chart.described() and chart.described().endswith(limits)
    assert f"WARNING from {limit.warning:g} s" in messages.text(chart.caption[0], "en")


@pytest.mark.parametrize("seconds", [0, 1e-5, 0.05, 0.4, 0.9, 5, 45, 90, 900, 86400, 5e5])
def test_no_two_ticks_say_the_same_time(seconds: float) -> None:
    at = pd.Timestamp("2025-01-31 03:00:00.1", tz="UTC") + pd.to_timedelta(np.linspace(0, seconds, 5), unit="s")
    chart = charts.Chart("A chart", "rows", [Series("", Role.LEVEL, at, range(5))], alt=ALT)
    (ax,) = (figure := charts.draw(chart)).axes
    figure.draw_without_rendering()
    labels = [label.get_text() for label in ax.xaxis.get_ticklabels()]
    said = [text for text in (*labels, ax.xaxis.get_offset_text().get_text()) if text]
    assert all(one != next_ for one, next_ in itertools.pairwise(said)), said
    assert any("2025" in t for t in said), "which day it was"
    if seconds < 1:
        assert len({t for t in said if "00." in t}) > 2, said
