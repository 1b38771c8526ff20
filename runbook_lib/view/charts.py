"""Figures for people: units, thresholds, alt text, colours that colour-blind readers can tell apart.

Labels are English, so that no font is missing anywhere. `Figure` is used without pyplot: no global state,
and half a second less to import.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import matplotlib.dates
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from runbook_lib import messages
from runbook_lib.model.finding import Text, Threshold

# Okabe and Ito's palette.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#6b6b6b"

matplotlib.rcParams.update({"font.family": "DejaVu Sans", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3})


@dataclass(frozen=True)
class Chart:
    """A figure with its words: `alt` for who cannot see it, `caption` with its blind spots."""

    figure: Figure
    alt: Text
    caption: tuple[Text, ...] = ()

    def png(self) -> bytes:
        """The figure alone."""
        buffer = io.BytesIO()
        FigureCanvasAgg(self.figure).print_png(buffer, metadata={"Software": None})
        return buffer.getvalue()

    def display(self, lang: str) -> list[dict[str, Any]]:
        """The figure, and its caption below, as mime bundles."""
        words = " ".join(messages.text(t, lang) for t in self.caption)
        image = {
            "image/png": base64.b64encode(self.png()).decode(),
            "text/plain": messages.text(self.alt, lang),
        }
        return [image] + ([{"text/html": f"<p><small>{words}</small></p>", "text/plain": words}] if words else [])

    def metadata(self, lang: str) -> dict[str, Any]:
        """The alt text where notebook front ends look for it."""
        return {"image/png": {"alt": messages.text(self.alt, lang)}}


def axes(title: str, ylabel: str, xlabel: str = "", size: tuple[float, float] = (8.0, 2.8)) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, a title that says what is seen, and units on the axes."""
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    ax = figure.add_subplot()
    ax.set_title(title, loc="left", fontweight="bold")
    ax.set_ylabel(ylabel)
    ax.set_xlabel(xlabel)
    ax.spines[["top", "right"]].set_visible(False)
    return figure, ax


def panels(title: str, names: Sequence[str], ylabel: str, xlabel: str = "") -> tuple[Figure, list[Axes]]:
    """One narrow pair of axes for each name above the other, each with its own scale, over one x axis."""
    figure = Figure(figsize=(8.0, 0.9 + 0.85 * len(names)), dpi=100, layout="constrained")
    stacked = list(figure.subplots(len(names), sharex=True))
    for ax, name in zip(stacked, names, strict=True):
        ax.set_title(name, loc="left", fontsize=8, pad=2)
        ax.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize="medium")
    figure.supylabel(ylabel, fontsize="small")
    stacked[-1].set_xlabel(xlabel)
    return figure, stacked


def thresholds(ax: Axes, limit: Threshold) -> None:
    """Draw a threshold's two limits, told apart by dash pattern as well as by colour."""
    for value, colour, dash, name in (
        (limit.warning, ORANGE, "--", "warning"),
        (limit.critical, RED, ":", "critical"),
    ):
        if value is not None:
            ax.axhline(value, color=colour, linestyle=dash, linewidth=1.2, label=f"{name} {value:g} {limit.unit}")


def clock_ticks(ax: Axes) -> None:
    """Write the times of the x axis as hours and minutes, UTC."""
    ax.xaxis.set_major_formatter(matplotlib.dates.DateFormatter("%H:%M"))


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


def legend(figure: Figure) -> None:
    """Name what is drawn, below the axes, where it hides no data."""
    figure.legend(loc="outside lower left", ncols=4, fontsize=8, frameon=False)
