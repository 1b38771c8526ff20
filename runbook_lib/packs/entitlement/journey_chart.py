"""The way of one event as a picture. Apart, since who only asks where it is need not wait for matplotlib."""

from __future__ import annotations

import pandas as pd
from matplotlib.dates import DateFormatter, date2num, num2date

from runbook_lib.model.finding import say
from runbook_lib.packs.entitlement.journey import Journey
from runbook_lib.view import charts

#: A shape and a colour for each mark.
_MARKS = {
    "passed": ("o", charts.GREEN),
    "here": (">", charts.ORANGE),
    "failed": ("X", charts.RED),
    "unseen": ("d", charts.GREY),
}


def draw(journey: Journey) -> charts.Chart | None:
    """Its way over time: a row for each hop, a bar from one stage to the next, and where it is now."""
    known = [s for s in journey.stops if s.at is not None]
    if not known or journey.now is None:
        return None
    hops = list(dict.fromkeys(s.hop for s in journey.stops))
    figure, ax = charts.axes("The way of the event, stage by stage", "", "UTC", (8.0, 1.2 + 0.35 * len(hops)))
    before = None
    drawn: set[str] = set()
    for stop in journey.stops:
        row = len(hops) - 1 - hops.index(stop.hop)
        waits = stop.mark in ("here", "failed") and stop is journey.stops[-1]
        end = journey.now if waits and stop.mark == "here" else stop.at
        if before is not None and end is not None and end > before:
            ax.barh(
                row, date2num(end) - date2num(before), left=date2num(before), height=0.3, color=charts.BLUE, alpha=0.4
            )
        at = end or before
        if at is not None:
            shape, colour = _MARKS[stop.mark]
            label = None if stop.mark in drawn else stop.mark
            ax.plot([date2num(at)], [row], shape, color=colour, markersize=9, linestyle="none", label=label)
            drawn.add(stop.mark)
        before = stop.at or before
    ax.set_yticks(range(len(hops)), [h.replace("_", " ") for h in reversed(hops)])
    ax.set_ylim(-0.6, len(hops) - 0.4)
    times = [s.at for s in known if s.at] + ([journey.now] if journey.stops[-1].mark == "here" else [])
    # Half a second beside it, so that one moment alone is no century.
    margin = max((max(times) - min(times)) * 0.03, pd.Timedelta(milliseconds=500))
    ax.set_xlim(*date2num([min(times) - margin, max(times) + margin]))
    ax.xaxis_date()
    if max(times) - min(times) < pd.Timedelta(seconds=5):  # several ticks within a second
        ax.xaxis.set_major_formatter(lambda at, _: f"{num2date(at):%H:%M:%S.%f}"[:-5])
    else:
        ax.xaxis.set_major_formatter(DateFormatter("%H:%M:%S"))
    charts.legend(figure)
    return charts.Chart(figure, say("journey.alt", headline=journey.headline, n=len(journey.stops)))
