"""The differences between two samples as text, and of a backtest as text, page and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from runbook_lib.book import messages
from runbook_lib.diagnosis.snapshots import Difference, RunSnapshot, conclusion, difference
from runbook_lib.model.finding import Status, Text, Verdict, hop_text, say
from runbook_lib.view import render


@dataclass(frozen=True)
class Comparison:
    """Two snapshots and the differences between them."""

    before: RunSnapshot
    after: RunSnapshot

    @property
    def title(self) -> Text:
        """The title: the two runs that are compared."""
        return say("compare.title", before=self.before.name, after=self.after.name)

    @cached_property
    def changes(self) -> tuple[Difference, ...]:
        """The differences."""
        return difference(self.before, self.after)

    def lines(self) -> list[str]:
        """Return the comparison as text: the title, then a line per difference."""
        table = render.columns(self.table(), right=(1, 2))
        return [
            messages.text(self.title),
            *(f"  {line}" for line in table or [messages.text(say("compare.same"))]),
        ]

    def table(self) -> list[tuple[str, str, str]]:
        """Return a row per difference: what differs, before, after."""
        return [
            (self._format_name(c), self._format_side(c, c.before), self._format_side(c, c.after)) for c in self.changes
        ]

    def _format_name(self, c: Difference) -> str:
        if c.kind == "verdict":
            return messages.text(say("compare.verdict"))
        if c.kind == "mode":
            return f"{c.where} {render.mode_title(c.where)}"
        if c.kind == "hop":
            return f"{messages.text(hop_text(c.where))}: {messages.text(say(f'compare.{c.name}'))}"
        return f"{c.where}: {c.name}" if c.kind == "setting" else f"{c.where} {c.name}".strip()

    def _format_side(self, c: Difference, value: Any) -> str:
        if value is None:
            return "-"
        if isinstance(value, Status):
            return f"{render.MARKS[value.name]} {value.name}"
        if isinstance(value, Verdict):
            place = value.stuck_at and messages.text(hop_text(value.stuck_at))
            return " ".join(filter(None, (value.status.name, place)))
        return messages.quantity(value, c.unit)


def changed_judgement(c: Difference) -> dict[str, str]:
    """Return a changed judgement of the same evidence as JSON; the `step` of a verdict is ""."""
    was, now = (value.name if isinstance(value, Status) else conclusion(value) for value in (c.before, c.after))
    return {"step": c.where, "was": was, "now": now}


# The result of a backtest -------------------------------------------------------------------------------


def _summary_texts(report: Mapping[str, Any]) -> list[Text]:
    """Return the counts of a backtest and its overall result."""
    found = [say("backtest.judged", **{name: report[name] for name in ("incidents", "runs", "steps")})]
    found.append(say("backtest.alarms", **report["alarms"]))
    if not report["flips"]:
        found.append(say("backtest.same"))
    return found


def _detection_texts(report: Mapping[str, Any]) -> list[Text]:
    """Return when the incidents are detected that are detected at another time now."""

    def after(s: float | None) -> Text:
        return say("backtest.never") if s is None else say("backtest.after", s=s)

    return [
        say("backtest.detected", incident=d["incident"], was=after(d["was_s"]), now=after(d["now_s"]))
        for d in report["detected"]
    ]


def backtest_lines(report: Mapping[str, Any]) -> list[str]:
    """Return a backtest as text."""
    lines = _summary_texts(report)
    lines += [say("backtest.flip" if f["step"] else "backtest.verdict", **f) for f in report["flips"]]
    lines += _detection_texts(report)
    return [messages.text(line) for line in lines]


def backtest_page(report: Mapping[str, Any], given: Path | None) -> str:
    """Return a backtest as a page."""
    return render.html(
        "backtest",
        report=report,
        sums=_summary_texts(report),
        times=_detection_texts(report),
        given=given and str(given),
    )
