"""Charts for people: a check describes a chart, and `draw` draws all of them alike.

Labels are English, so that no font is missing anywhere. `Figure` is used without pyplot: no global state. matplotlib is
imported with the first figure: it takes a third of a second, which commands without one save.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from runbook_lib.book import messages
from runbook_lib.model.finding import Text, Threshold, say

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Role(Enum):
    """What a series or a line stands for, with its colour (of Okabe and Ito), dash pattern, width and hatch."""

    LEVEL = ("#0072B2", "-", 1.8, "")
    WARNING = ("#E69F00", "--", 1.4, "//")
    OUT = ("#009E73", "--", 1.4, "\\\\")
    IN = ("#999999", "-", 3.0, "..")
    CRITICAL = ("#D55E00", ":", 1.4, "xx")
    THROUGH = ("#0072B2", "-.", 1.4, "++")
    MOMENT = ("black", "-", 1.2, "")


@dataclass(frozen=True, eq=False)
class Series:
    """Values with their name in the legend, at times or numbers x.

    line: y at each x. steps: y between each two of the edges x. bars: from 0 to y, from each x on.
    """

    label: str
    role: Role
    x: Any
    y: Any
    kind: Literal["line", "steps", "bars"] = "line"
    width: Any = 0.8
    numbered: bool = False  # each bar has its number on it


@dataclass(frozen=True)
class Line:
    """A straight line: a limit, or a moment."""

    at: Any
    label: str = ""
    role: Role = Role.MOMENT
    dash: str = ""  # that of the role


@dataclass(frozen=True, eq=False)
class Chart:
    """A title, the unit of y, series, the limits of y, and words: `alt` for who cannot see it, `caption` below it.

    `limits_of_x` and `moments` are vertical. `names` stand at 0, 1, 2, … of the x axis. `shown` is the range of x, if
    not that of all.
    """

    title: str
    unit: str
    series: Sequence[Series] = ()
    limits: Sequence[Line] = ()
    _: KW_ONLY
    alt: Text
    caption: tuple[Text, ...] = ()
    limits_of_x: Sequence[Line] = ()
    moments: Sequence[Line] = ()
    xlabel: str = "UTC"
    names: Sequence[str] = ()
    shown: tuple[Any, Any] | None = None

    def png(self) -> bytes:
        """Return the figure as PNG."""
        buffer = io.BytesIO()
        draw(self).savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()

    def display(self) -> list[dict[str, Any]]:
        """Return the figure, and its caption below, as mime bundles."""
        words = " ".join(messages.text(t) for t in self.caption)
        image = {"image/png": base64.b64encode(self.png()).decode(), "text/plain": self.described()}
        return [image] + ([{"text/html": f"<p><small>{words}</small></p>", "text/plain": words}] if words else [])

    def metadata(self) -> dict[str, Any]:
        """Return the alt text as the metadata that notebook front ends read."""
        return {"image/png": {"alt": self.described()}}

    def described(self) -> str:
        """Return the alt text with the axis of the values, which names the unit, and the limits that are drawn."""
        limits = ", ".join(dict.fromkeys(limit.label for limit in (*self.limits, *self.limits_of_x)))
        alt = messages.text(self.alt).rstrip(".。")  # a sentence follows
        return messages.text(say("chart.described", alt=alt, axis=self.unit, limits=limits))


def thresholds(limit: Threshold, place: Callable[[float], float] = lambda value: value) -> list[Line]:
    """Return a threshold's two limits, at the places of their values on the axis."""
    levels = ((limit.warning, Role.WARNING), (limit.critical, Role.CRITICAL))
    return [
        Line(place(n), f"{role.name.lower()} {messages.quantity(n, limit.unit, 'en')}", role)
        for n, role in levels
        if n is not None
    ]


def flows(edges: Any, values: Mapping[str, Any]) -> list[Series]:
    """Return steps between the same edges: what comes in, what passes through, what goes out, and what fails."""
    roles = (Role.IN, Role.THROUGH, Role.OUT, Role.CRITICAL)
    return [Series(name, role, edges, y, "steps") for (name, y), role in zip(values.items(), roles, strict=False)]


def draw(chart: Chart) -> Figure:
    """Return the chart as a figure: y from 0 on, times in UTC as fine as their span asks for, the legend below."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"font.family": "DejaVu Sans", "font.size": 9})
    matplotlib.rcParams.update({"axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True})
    figure = Figure(dpi=100, layout="constrained")
    ax = figure.subplots()
    ax.set_title(chart.title, loc="left", fontweight="bold", fontsize="large")
    ax.set(xlabel=chart.xlabel, ylabel=chart.unit, xmargin=0.03)
    ax.spines[["top", "right"]].set_visible(False)
    for series in filter(lambda series: len(series.x), chart.series):
        _draw_series(ax, series)
    for limit in chart.limits:
        ax.axhline(limit.at, **_stroke(limit.role, limit.label, limit.dash))
    for line in (*chart.limits_of_x, *chart.moments):
        ax.axvline(line.at, **_stroke(line.role, line.label, line.dash))
    ax.set_ylim(0, max(1.0, 1.15 * ax.dataLim.y1))
    if chart.names:
        ax.set_xticks(range(len(chart.names)), chart.names, fontsize=8)
    if chart.shown:
        ax.set_xlim(*chart.shown)
    if any(isinstance(x, datetime) for series in chart.series for x in [*series.x][:1]):
        _write_times(ax)
    named = {name: handle for handle, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    sizes = [len(name) + 8 for name in named] or [0]  # in characters: a row has 115
    columns = next(n for n in range(len(sizes), 0, -1) if n == 1 or sum(map(max, np.array_split(sizes, n))) <= 115)
    figure.legend(named.values(), named, loc="outside lower left", ncols=columns, fontsize=8, frameon=False)
    figure.set_size_inches(8.0, 2.5 + 0.2 * -(-len(named) // columns))
    return figure


def _draw_series(ax: Axes, series: Series) -> None:
    colour, _, _, hatch = series.role.value
    x, y, line = [*series.x], series.y, _stroke(series.role, series.label)
    match series.kind:
        case "line":
            ax.plot(x, y, marker="" if len(x) > 2 else ".", **line)  # a point alone has no line
        case "steps":
            ax.stairs(y, x, baseline=None, **line)
        case "bars":
            look: Any = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.3}
            drawn = ax.bar(x, y, series.width, align="edge", label=series.label, **look)
            if series.numbered:
                ax.bar_label(drawn, [messages.quantity(n) if n else "" for n in y], fontsize=8)


def _stroke(role: Role, label: str, dash: str = "") -> dict[str, Any]:
    colour, own, width, *_ = role.value
    return {"color": colour, "linestyle": dash or own, "linewidth": width, "label": label}


def _write_times(ax: Axes) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    low, high = ax.dataLim.intervalx
    if ax.get_autoscalex_on() and 0 <= high - low < 1e-9:  # a moment alone would be amid four years
        ax.set_xlim(low - 0.5 / 86400, high + 0.5 / 86400)  # days: half a second
    locator = AutoDateLocator(tz=UTC)
    ax.xaxis.set(major_locator=locator, major_formatter=ConciseDateFormatter(locator, tz=UTC))
