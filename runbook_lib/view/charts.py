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
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from runbook_lib.book import messages
from runbook_lib.model.finding import Text, Threshold, say
from runbook_lib.model.usage import UsageError, did_you_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#6b6b6b"
#: How several columns are told apart: by dash, marker or hatch as well as by colour.
_STYLES = ((BLUE, "-", "o", ""), (RED, "--", "s", "//"), (GREEN, "-.", "^", ".."), (GREY, ":", "D", "xx"))
#: How the name of a limit begins: the label of its line, or the words on it.
_LIMITS = ("warning ", "critical ", "limit ", "usual limit ", "allowed ", "usable ", "configured lease ", "objective ")
KINDS = ("line", "bar", "scatter", "hist")
#: So many points have a marker each, so many letters stand beside each other.
FEW = 60
#: In days, as matplotlib counts.
HALF_SECOND = 0.5 / 86400
#: What pandas says that a column is.
_NUMBERS = ("integer", "floating", "decimal", "mixed-integer-float", "boolean", "empty")
_SPANS = ("timedelta64", "timedelta")
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

    def display(self, lang: str) -> list[dict[str, Any]]:
        """Return the figure, and its caption below, as mime bundles."""
        words = " ".join(messages.text(t, lang) for t in self.caption)
        image = {
            "image/png": base64.b64encode(self.png()).decode(),
            "text/plain": self.described(lang),
        }
        return [image] + ([{"text/html": f"<p><small>{words}</small></p>", "text/plain": words}] if words else [])

    def metadata(self, lang: str) -> dict[str, Any]:
        """Return the alt text as the metadata that notebook front ends read."""
        return {"image/png": {"alt": self.described(lang)}}

    def described(self, lang: str) -> str:
        """Return the alt text with the axis of the values, which names the unit, and the limits that are drawn."""
        axes = self.figure.axes
        labels = [self.figure.get_supylabel(), *(a.get_ylabel() for a in axes), *(a.get_xlabel() for a in axes)]
        axis = next(filter(None, labels), "")
        names = [str(line.get_label()) for ax in axes for line in ax.lines]
        names += [words.get_text() for ax in axes for words in ax.texts]
        limits = ", ".join(dict.fromkeys(name for name in names if name.startswith(_LIMITS)))
        alt = messages.text(self.alt, lang).rstrip(".。")  # a sentence follows
        return messages.text(say("chart.described", alt=alt, axis=axis, limits=limits), lang)


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


# A person's own frame ----------------------------------------------------------------------------------------


def chart_frame(frame: pd.DataFrame, x: str, y: Sequence[str], kind: str = "line", title: str = "") -> Chart | None:
    """Draw columns `y` over `x`, or for "hist" how often the values of `x` occur; return None if no row can be drawn.

    Times in UTC, spans in s, rows by `x` unless it is text. Raises UsageError.
    """
    if kind not in KINDS:
        raise UsageError(f"unknown kind '{kind}': {did_you_mean(kind, list(KINDS))}")
    if (kind == "hist" and y) or (kind != "hist" and not 0 < len(y) <= len(_STYLES)):
        takes = "x alone" if kind == "hist" else f"x, and one to {len(_STYLES)} columns as y"
        raise UsageError(f"a chart of kind '{kind}' takes {takes}")
    columns = {name: _typed_column(frame, name) for name in (x, *y)}
    for name in y or [x]:
        if columns[name].dtype.kind not in ("f" if y else "fM"):
            raise UsageError(f"column '{name}' cannot be drawn as '{kind}': it has no numbers")
    data = pd.DataFrame(columns).dropna(subset=[x])
    data = data.dropna(subset=list(y), how="all") if y else data
    if data.empty:
        return None
    texts = data[x].dtype.kind == "O"
    data = data if texts else data.sort_values(x, kind="stable")
    title = title or (f"{', '.join(y)} by {x}" if y else f"How often each {x} occurs")
    ylabel = ("value" if y[1:] else _axis_label(frame, y[0])) if y else "rows"
    figure, ax = axes(_escape_dollars(title), ylabel, _axis_label(frame, x))
    at = _x_positions(ax, data[x])
    width = 0.8 * (np.diff(np.unique(at)).min() if len(set(at)) > 1 else 1.0) / max(len(y), 1)
    for n, (name, (colour, dash, marker, hatch)) in enumerate(zip(y, _STYLES, strict=False)):
        look: dict[str, Any] = {"color": colour, "label": _axis_label(frame, name)}
        if kind == "line":
            ax.plot(at, data[name], linestyle=dash, marker=marker, markersize=3 if len(at) <= FEW else 0, **look)
        elif kind == "scatter":
            ax.scatter(at, data[name], s=14, marker=marker, **look)
        else:
            ax.bar(at + (n - (len(y) - 1) / 2) * width, data[name], width, hatch=hatch, **look)
    if not y:
        ax.hist(at, bins=min(FEW // 2, len(at)), color=BLUE)
    if data[x].dtype.kind == "M":
        clock_ticks(ax)
    if len(y) > 1:
        legend(figure)
    spans = ", ".join(f"{name} {_format_range(c.min(), c.max())}" for name, c in data.items() if c.dtype.kind != "O")
    return Chart(figure, say("chart.own", title=title, n=len(data), spans=spans))


def _typed_column(frame: pd.DataFrame, name: str) -> pd.Series:
    """Convert a column to floats, to times in UTC, or else to text; unknown values are missing."""
    if (n := list(frame.columns).count(name)) != 1:
        meant = f"{n} columns have that name" if n else did_you_mean(str(name), [str(c) for c in frame.columns])
        raise UsageError(f"the frame has no one column '{name}': {meant}")
    column, kind = frame[name].astype(object), pd.api.types.infer_dtype(frame[name])
    if kind in ("datetime64", "datetime", "date"):
        return pd.to_datetime(column, utc=True)
    if kind in _SPANS:
        return pd.to_timedelta(column).dt.total_seconds()
    if kind in _NUMBERS:
        return pd.to_numeric(column, errors="coerce").astype(float).replace([np.inf, -np.inf], np.nan)
    return column.map(str, na_action="ignore").astype(object)


def _axis_label(frame: pd.DataFrame, name: str) -> str:
    """Return a column's name with its unit, if its values have one."""
    kind = pd.api.types.infer_dtype(frame[name])
    unit = " (UTC)" if kind.startswith("date") else " (s)" if kind in _SPANS else ""
    return _escape_dollars(name + unit)


def _x_positions(ax: Axes, column: pd.Series) -> np.ndarray:
    """Return the x positions of a column's values; names become ticks."""
    if column.dtype.kind == "M":
        return days(column.dt.tz_convert(None).to_numpy())
    if column.dtype.kind == "f":
        return column.to_numpy()
    places, names = pd.factorize(column)
    every = -(-len(names) // 30)
    ax.set_xticks(range(0, len(names), every), [_escape_dollars(name[:30]) for name in names[::every]])
    if sum(map(len, names)) > FEW:
        ax.tick_params(axis="x", rotation=30)
    return np.asarray(places)


def _format_range(low: Any, high: Any) -> str:
    """Format the smallest and the largest value; times as finely as needed to tell them apart."""
    if not isinstance(low, pd.Timestamp):
        return f"{low:,.6g} - {high:,.6g}"
    apart_s = (high - low).total_seconds()
    finest: Literal["seconds", "milliseconds", "microseconds"]
    finest = "seconds" if apart_s >= 60 else "milliseconds" if apart_s >= 0.01 or not apart_s else "microseconds"
    first, last = (t.tz_convert(None).isoformat(sep=" ", timespec=finest) for t in (low, high))
    return f"{first} UTC - {last} UTC"


def _escape_dollars(text: str) -> str:
    """Escape dollar signs, between which matplotlib would read mathematics."""
    return text.replace("$", r"\$")
