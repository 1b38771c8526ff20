"""Draw an event trace."""

from __future__ import annotations

import pandas as pd

from runbook_lib.model.finding import say
from runbook_lib.packs.entitlement.event_trace import EventTrace
from runbook_lib.view import charts

#: A shape and a colour for each mark.
_MARKS = {
    "passed": ("o", charts.GREEN),
    "here": (">", charts.ORANGE),
    "failed": ("X", charts.RED),
    "unseen": ("d", charts.GREY),
}


def draw(trace: EventTrace) -> charts.Chart | None:
    """Draw the stages over time: a row for each hop, and a bar from one stage to the next; None without any time."""
    known = [s for s in trace.stages if s.at is not None]
    if not known or trace.now is None:
        return None
    hops = list(dict.fromkeys(s.hop for s in trace.stages))
    figure, ax = charts.axes("Event trace", "", "UTC", (8.0, 1.2 + 0.35 * len(hops)))
    before = None
    drawn: set[str] = set()
    for stage in trace.stages:
        row = len(hops) - 1 - hops.index(stage.hop)
        waits = stage.mark in ("here", "failed") and stage is trace.stages[-1]
        end = trace.now if waits and stage.mark == "here" else stage.at
        if before is not None and end is not None and end > before:
            left, right = charts.days([before, end])
            ax.barh(row, right - left, left=left, height=0.3, color=charts.BLUE, alpha=0.4)
        at = end or before
        if at is not None:
            shape, colour = _MARKS[stage.mark]
            label = None if stage.mark in drawn else stage.mark
            ax.plot(charts.days([at]), [row], shape, color=colour, markersize=9, linestyle="none", label=label)
            drawn.add(stage.mark)
        before = stage.at or before
    ax.set_yticks(range(len(hops)), [h.replace("_", " ") for h in reversed(hops)])
    ax.set_ylim(-0.6, len(hops) - 0.4)
    times = [s.at for s in known if s.at] + ([trace.now] if trace.stages[-1].mark == "here" else [])
    # At least half a second, so that a single time does not get an axis of years.
    margin = max((max(times) - min(times)) * 0.03, pd.Timedelta(milliseconds=500))
    ax.set_xlim(*charts.days([min(times) - margin, max(times) + margin]))
    ax.xaxis_date()
    charts.clock_ticks(ax)
    charts.legend(figure)
    return charts.Chart(figure, say("journey.alt", headline=trace.headline, n=len(trace.stages)))
