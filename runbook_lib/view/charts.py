"""Charts for people: a check describes a chart, and `draw` draws all of them alike.

Labels are English, so that no font is missing anywhere. `Figure` is used without pyplot: no global state. matplotlib is
imported with the first figure: it takes a third of a second, which commands without one save.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from runbook_lib.book import messages
from runbook_lib.model.finding import Text, Threshold, say

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Role(Enum):
    """What a series or a line stands for, with its colour (of Okabe and Ito), dash pattern, width, hatch and marker."""

    LEVEL = ("#0072B2", "-", 1.8, "", "s")
    WARNING = ("#E69F00", "--", 1.4, "//", ">")
    OUT = ("#009E73", "--", 1.4, "\\\\", "o")
    IN = ("#999999", "-", 3.0, "..", "d")
    CRITICAL = ("#D55E00", ":", 1.4, "xx", "X")
    THROUGH = ("#0072B2", "-.", 1.4, "++", "s")
    MOMENT = ("black", "-", 1.2, "", "s")


@dataclass(frozen=True, eq=False)
class Series:
    """Values with their name in the legend, at times or numbers x.

    line: y at each x. steps, area: y between each two of the edges x; an area is filled from `base` on. bars: from
    `base` to y, from each x on. rows: from `base` to x, in row y. points: at x, in row y. band: all between two x.
    """

    label: str
    role: Role
    x: Any
    y: Any = ()
    kind: Literal["line", "points", "steps", "area", "bars", "rows", "band"] = "line"
    base: Any = 0.0
    width: Any = 0.8
    numbered: bool = False  # each bar has its number on it


@dataclass(frozen=True)
class Line:
    """A straight line: a limit, or a moment; at nan, a limit above the scale, which only the legend names."""

    at: Any
    label: str = ""
    role: Role = Role.MOMENT
    dash: str = ""  # that of the role


@dataclass(frozen=True, eq=False)
class Panel:
    """One pair of axes: a title, the unit of y, series, and the limits of y that they are compared with."""

    title: str
    unit: str
    series: Sequence[Series] = ()
    limits: Sequence[Line] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Chart(Panel):
    """A chart with its words: `alt` for who cannot see it, `caption` with its blind spots.

    `panels`, if any, have the series and limits, each with its own scale. `limits_of_x` and `moments` are vertical.
    `names` stand at 0, 1, 2, … of the x axis, or of the y axis for rows. `shown` is the range of x, if not that of all.
    """

    alt: Text
    caption: tuple[Text, ...] = ()
    panels: Sequence[Panel] = ()
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
        axis = next(filter(None, (self.unit, *(panel.unit for panel in self.panels), self.xlabel)), "")
        drawn = [*self.limits, *self.limits_of_x, *(limit for panel in self.panels for limit in panel.limits)]
        limits = ", ".join(dict.fromkeys(limit.label for limit in drawn))
        alt = messages.text(self.alt).rstrip(".。")  # a sentence follows
        return messages.text(say("chart.described", alt=alt, axis=axis, limits=limits))


def thresholds(limit: Threshold, place: Callable[[float], float] = lambda value: value) -> list[Line]:
    """Return a threshold's two limits, at the places of their values on the axis."""
    levels = ((limit.warning, Role.WARNING), (limit.critical, Role.CRITICAL))
    return [Line(place(n), f"{role.name.lower()} {n:g} {limit.unit}", role) for n, role in levels if n is not None]


def flows(edges: Any, values: Mapping[str, Any]) -> list[Series]:
    """Return steps between the same edges: what comes in, what passes through, what goes out, and what fails."""
    roles = (Role.IN, Role.THROUGH, Role.OUT, Role.CRITICAL)
    return [Series(name, role, edges, y, "steps") for (name, y), role in zip(values.items(), roles, strict=False)]


def stack(at: Any, values: pd.DataFrame, kind: Literal["bars", "rows"] = "bars", width: Any = 0.8) -> list[Series]:
    """Return bars or rows at these places, a series for each column, which begins where the one before ends."""
    found, ends = list[Series](), values.cumsum(axis=1)
    for name, role in zip(values.columns, Role, strict=False):
        x, y = (ends[name], at) if kind == "rows" else (at, ends[name])
        found.append(Series(str(name), role, x, y, kind, ends[name] - values[name], width))
    return found


def draw(chart: Chart) -> Figure:
    """Return the chart as a figure: y from 0 on, times in UTC as fine as their span asks for, the legend below."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"font.family": "DejaVu Sans", "font.size": 9})
    matplotlib.rcParams.update({"axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True})
    figure = Figure(dpi=100, layout="constrained")
    panels = chart.panels or [chart]
    axes: list[Axes] = [*figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]]
    for ax, panel in zip(axes, panels, strict=True):
        _draw_panel(ax, panel, chart)
    if chart.panels:
        figure.suptitle(chart.title, x=0.01, ha="left", fontweight="bold", fontsize="large")
        figure.supylabel(chart.unit, fontsize="medium")
    ax, last, rows = axes[-1], panels[-1], max(3, len(chart.names))
    ax.set_xlabel(chart.xlabel)
    height = 0.5 + 1.25 * len(panels) if chart.panels else 2.5
    if any(series.kind in ("rows", "points") for series in last.series):
        ax.set_yticks(range(len(chart.names)), chart.names)
        ax.set_ylim(-0.6, rows - 0.4)
        height = 0.9 + 0.35 * rows
    elif chart.names:
        ax.set_xticks(range(len(chart.names)), chart.names, fontsize=8)
    if chart.shown:
        ax.set_xlim(*chart.shown)
    if any(isinstance(x, datetime) for series in last.series for x in [*series.x][:1]):
        _write_times(ax)
    named = {name: handle for ax in axes for handle, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    sizes = [len(name) + 8 for name in named] or [0]  # in characters: a row has 115
    columns = next(n for n in range(len(sizes), 0, -1) if n == 1 or sum(map(max, np.array_split(sizes, n))) <= 115)
    figure.legend(named.values(), named, loc="outside lower left", ncols=columns, fontsize=8, frameon=False)
    figure.set_size_inches(8.0, height + 0.2 * -(-len(named) // columns))
    return figure


def _draw_panel(ax: Axes, panel: Panel, chart: Chart) -> None:
    many = panel is not chart  # then its limits have their labels on them: all panels share the legend
    ax.set_title(panel.title, loc="left", fontweight="bold", fontsize="medium" if many else "large")
    ax.set(ylabel=panel.unit, xmargin=0.03)
    ax.spines[["top", "right"]].set_visible(False)
    for series in filter(lambda series: len(series.x), panel.series):
        _draw_series(ax, series)
    for limit in panel.limits:
        ax.axhline(limit.at, **_stroke(limit.role, "" if many else limit.label, limit.dash))
        if many:
            at_right: Any = {"transform": ax.get_yaxis_transform(), "ha": "right", "va": "bottom", "fontsize": 7}
            ax.text(0.995, limit.at, limit.label, bbox={"fc": "white", "ec": "none", "pad": 0.5}, **at_right)
    for line in (*chart.limits_of_x, *chart.moments):
        ax.axvline(line.at, **_stroke(line.role, line.label, line.dash))
    ax.set_ylim(0, max(1.0, 1.15 * ax.dataLim.y1, *(1.6 * limit.at for limit in panel.limits if many)))


def _draw_series(ax: Axes, series: Series) -> None:
    colour, _, _, hatch, marker = series.role.value
    x, y, label, line = [*series.x], series.y, series.label, _stroke(series.role, series.label)
    bar: Any = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.3, "label": label}
    match series.kind:
        case "line":
            ax.plot(x, y, marker="" if len(x) > 2 else ".", **line)  # a point alone has no line
        case "points":
            ax.plot(x, y, marker, color=colour, markersize=9, label=label, clip_on=False)
        case "steps":
            ax.stairs(y, x, baseline=None, **line)
        case "area":
            ax.stairs(y, x, baseline=series.base, color=colour, alpha=0.6, fill=True)
            ax.stairs(y, x, baseline=None, color=colour, label=label)
        case "bars":
            drawn = ax.bar(x, np.subtract(y, series.base), series.width, series.base, align="edge", **bar)
            if series.numbered:
                ax.bar_label(drawn, [f"{n:,.0f}" if n else "" for n in y], fontsize=8)
        case "rows":
            ax.barh(y, [*(pd.Index(x) - pd.Index(series.base))], 0.4, [*series.base], **bar)
        case "band":
            ax.axvspan(*x, facecolor=colour, edgecolor=colour, hatch=hatch, alpha=0.2, linewidth=0, label=label)


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
