"""Figures for people: units, thresholds, alt text, colours that colour-blind readers can tell apart.

Labels are English, so that no font is missing anywhere. `Figure` is used without pyplot: no global state. matplotlib is
imported with the first figure: it takes a third of a second, which commands without one save.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from runbook_lib.book import messages
from runbook_lib.model.finding import Text, Threshold, say

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#6b6b6b"
#: How the name of a limit begins: the label of its line, or the words on it.
_LIMITS = ("warning ", "critical ", "limit ", "usual limit ", "allowed ", "usable ", "configured lease ", "objective ")
#: In days, as matplotlib counts.
HALF_SECOND = 0.5 / 86400
_DEFAULTS: dict[Any, Any] = {"font.family": "DejaVu Sans", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}


@dataclass(frozen=True)
class Chart:
    """A figure with its words: `alt` for who cannot see it, `caption` with its blind spots."""

    figure: Figure
    alt: Text
    caption: tuple[Text, ...] = ()

    def png(self) -> bytes:
        """Return the figure as PNG."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        buffer = io.BytesIO()
        FigureCanvasAgg(self.figure).print_png(buffer, metadata={"Software": None})
        return buffer.getvalue()

    def display(self) -> list[dict[str, Any]]:
        """Return the figure, and its caption below, as mime bundles."""
        words = " ".join(messages.text(t) for t in self.caption)
        image = {
            "image/png": base64.b64encode(self.png()).decode(),
            "text/plain": self.described(),
        }
        return [image] + ([{"text/html": f"<p><small>{words}</small></p>", "text/plain": words}] if words else [])

    def metadata(self) -> dict[str, Any]:
        """Return the alt text as the metadata that notebook front ends read."""
        return {"image/png": {"alt": self.described()}}

    def described(self) -> str:
        """Return the alt text with the axis of the values, which names the unit, and the limits that are drawn."""
        axes = self.figure.axes
        labels = [self.figure.get_supylabel(), *(a.get_ylabel() for a in axes), *(a.get_xlabel() for a in axes)]
        axis = next(filter(None, labels), "")
        names = [str(line.get_label()) for ax in axes for line in ax.lines]
        names += [words.get_text() for ax in axes for words in ax.texts]
        limits = ", ".join(dict.fromkeys(name for name in names if name.startswith(_LIMITS)))
        alt = messages.text(self.alt).rstrip(".。")  # a sentence follows
        return messages.text(say("chart.described", alt=alt, axis=axis, limits=limits))


def new_figure(size: tuple[float, float]) -> Figure:
    """Return an empty figure of this size in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update(_DEFAULTS)
    return Figure(figsize=size, dpi=100, layout="constrained")


def axes(title: str, ylabel: str, xlabel: str = "", size: tuple[float, float] = (8.0, 2.8)) -> tuple[Figure, Axes]:
    """Return a figure with one pair of axes, a title, and units on the axes."""
    figure = new_figure(size)
    ax = figure.add_subplot()
    ax.set_title(title, loc="left", fontweight="bold")
    ax.set_ylabel(ylabel)
    ax.set_xlabel(xlabel)
    ax.spines[["top", "right"]].set_visible(False)
    return figure, ax


def panels(title: str, names: Sequence[str], ylabel: str, xlabel: str = "") -> tuple[Figure, list[Axes]]:
    """Return one narrow pair of axes for each name, stacked over one x axis, each with its own scale."""
    figure = new_figure((8.0, 0.9 + 0.85 * len(names)))
    stacked = list(figure.subplots(len(names), sharex=True))
    for ax, name in zip(stacked, names, strict=True):
        ax.set_title(name, loc="left", fontsize=8, pad=2)
        ax.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize="medium")
    figure.supylabel(ylabel, fontsize="small")
    stacked[-1].set_xlabel(xlabel)
    return figure, stacked


def thresholds(ax: Axes, limit: Threshold, x_of: Callable[[float], float] | None = None) -> None:
    """Draw a threshold's two limits, told apart by dash pattern as well as by colour.

    They are values of the y axis; with `x_of` they are vertical lines at the x positions that it returns.
    """
    for value, colour, dash, name in (
        (limit.warning, ORANGE, "--", "warning"),
        (limit.critical, RED, ":", "critical"),
    ):
        if value is None:
            continue
        drawn: dict[str, Any] = {"color": colour, "linestyle": dash, "linewidth": 1.2}
        drawn["label"] = f"{name} {value:g} {limit.unit}"
        if x_of is None:
            ax.axhline(value, **drawn)
        else:
            ax.axvline(x_of(value), **drawn)


def limit_line(ax: Axes, value: float, name: str, unit: str) -> None:
    """Draw a limit, with its name, number and unit on the line: for panels that share one legend."""
    ax.axhline(value, color=ORANGE, linestyle=":", linewidth=1.4)
    words = f"{name} {value:,.4g} {unit}"
    above_lines: Any = {"zorder": 5, "bbox": {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}}
    ax.text(0.995, value, words, fontsize=7, ha="right", va="bottom", transform=ax.get_yaxis_transform(), **above_lines)


def clock_ticks(ax: Axes) -> None:
    """Write the times of the x axis, in UTC and as finely as their span asks for; after they are drawn."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    low, high = ax.dataLim.intervalx
    if ax.get_autoscalex_on() and 0 <= high - low < 1e-9:  # a moment alone would be amid four years
        ax.set_xlim(low - HALF_SECOND, high + HALF_SECOND)
    locator = AutoDateLocator(tz=UTC)
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=UTC))


def days(moments: Sequence[pd.Timestamp] | pd.DatetimeIndex | np.ndarray) -> np.ndarray:
    """Return the x positions of moments: in days, as matplotlib counts."""
    from matplotlib.dates import date2num

    return np.asarray(date2num(moments))


def flows(
    ax: Axes, ends: Sequence[pd.Timestamp], waiting: pd.Series, rates: pd.DataFrame, names: tuple[str, str, str]
) -> None:
    """Draw what waited at each of these times, and `came` and `gone` per minute of the stretches that are over."""
    backlog, came, left = names
    times = pd.DatetimeIndex(list(ends))
    ax.plot(times, waiting, color=BLUE, linewidth=1.8, label=backlog)
    ax.plot(times[: len(rates)], rates["came"], color=GREY, linewidth=0.9, label=came)
    ax.plot(times[: len(rates)], rates["gone"], color=GREEN, linewidth=0.9, linestyle="--", label=left)
    ax.set_ylim(bottom=0)
    clock_ticks(ax)


def legend(figure: Figure, columns: int = 4) -> None:
    """Name what is drawn, below the axes, where it hides no data."""
    figure.legend(loc="outside lower left", ncols=columns, fontsize=8, frameon=False)
