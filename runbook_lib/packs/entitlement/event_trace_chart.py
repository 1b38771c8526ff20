"""The chart of an event trace."""

from __future__ import annotations

from runbook_lib.model.finding import say
from runbook_lib.packs.entitlement.event_trace import EventTrace
from runbook_lib.view import charts

_ROLE_OF_MARK = {
    **{"passed": charts.Role.OUT, "here": charts.Role.WARNING},
    **{"failed": charts.Role.CRITICAL, "unseen": charts.Role.IN},
}


def chart_trace(trace: EventTrace) -> charts.Chart | None:
    """Return the chart of the stages: a row for each hop, and a bar between two stages; None without any time."""
    if trace.now is None or all(s.at is None for s in trace.stages):
        return None
    hops = list(dict.fromkeys(s.hop for s in reversed(trace.stages)))
    before, bars, points = None, [], []
    for stage in trace.stages:
        row = [hops.index(stage.hop)]
        end = trace.now if stage.mark == "here" and stage is trace.stages[-1] else stage.at
        if before is not None and end is not None and end > before:
            bars.append(charts.Series("", charts.Role.LEVEL, [end], row, "rows", [before]))
        if (at := end or before) is not None:
            points.append(charts.Series(stage.mark, _ROLE_OF_MARK[stage.mark], [at], row, "points"))
        before = stage.at or before
    return charts.Chart(
        "Event trace",
        "",
        [*bars, *points],
        alt=say("journey.alt", headline=trace.headline, n=len(trace.stages)),
        names=[hop.replace("_", " ") for hop in hops],
    )
