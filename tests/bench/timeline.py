"""Where the time of a triage goes: its first screen, and each section's cells, as a picture."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

#: How a cell begins, and what it is; the colours are Okabe and Ito's.
KINDS = {"open_section": "open", "rb.step": "step", "rb.chart": "chart", "": "words, verdict"}
COLOURS = {"start": "#999999", "open": "#E69F00", "step": "#0072B2", "chart": "#56B4E9", "words, verdict": "#009E73"}
#: A step that takes at least so many seconds has its number on its bar.
NAMED_S = 0.15


@dataclass(frozen=True)
class Bar:
    """What ran in a section's notebook, in seconds from Enter."""

    section: str
    kind: str
    begin: float
    seconds: float
    step: str = ""


def bars(folder: Path, began: float) -> list[Bar]:
    """Read the executed notebooks of a folder; `began` is Enter, by this machine's clock."""
    found = []
    for file in sorted(folder.glob("*.ipynb")):
        section, begin = file.name.split("-")[1], None
        for cell in json.loads(file.read_bytes())["cells"]:
            ran = cell["metadata"].get("papermill") or {}
            if cell["cell_type"] != "code" or not ran.get("start_time"):
                continue
            at = datetime.fromisoformat(ran["start_time"]).replace(tzinfo=UTC).timestamp() - began
            begin = begin or at
            source = "".join(cell["source"])
            kind = next(kind for sign, kind in KINDS.items() if sign in source)
            step = source.split('"')[1] if kind == "step" else ""
            found.append(Bar(section, kind, at, ran["duration"] or 0.0, step))
    return found


def draw(found: list[Bar], first_screen: float, verdict: float, file: Path) -> None:
    """Draw the sections below each other, in the order in which they began."""
    rows = list(dict.fromkeys(bar.section for bar in sorted(found, key=lambda b: b.begin)))
    figure = Figure(figsize=(9.0, 1.4 + 0.45 * len(rows)), dpi=100, layout="constrained")
    ax = figure.add_subplot()
    ax.barh(0, min(b.begin for b in found), color=COLOURS["start"])
    ax.set_yticks(range(len(rows) + 1), ["process", *(f"section {section}" for section in rows)])
    for bar in found:
        row = 1 + rows.index(bar.section)
        ax.barh(row, bar.seconds, left=bar.begin, color=COLOURS[bar.kind], edgecolor="white")
        if bar.step and bar.seconds >= NAMED_S:
            ax.text(bar.begin + bar.seconds / 2, row, bar.step, ha="center", va="center", size=7, color="white")
    for at, name in ((first_screen, "first screen"), (verdict, "verdict")):
        ax.axvline(at, color="#D55E00", linestyle="--", linewidth=1.2)
        ax.annotate(f"{name} {at:.1f} s", (at, 1), xycoords=("data", "axes fraction"), ha="right", va="bottom", size=8)
    ax.invert_yaxis()
    ax.set_xlim(0, verdict * 1.02)
    ax.set_xlabel("seconds from Enter")
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(
        handles=[Patch(color=c, label=n) for n, c in COLOURS.items()], loc="outside lower center", ncols=5, fontsize=8
    )
    FigureCanvasAgg(figure).print_png(str(file), metadata={"Software": None})
