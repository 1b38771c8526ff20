"""`runbook backtest`: the past by another policy, as lines, as JSON and as a page."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from runbook_lib import messages, settings
from runbook_lib.archive import backtest
from runbook_lib.model.finding import Text, say
from runbook_lib.store import SEALED, Archive, OutputError, write_whole
from runbook_lib.view import render


def told(
    incidents: Sequence[str], given: Path, output: str | None, page: Path | None, as_json: bool, lang: str | None
) -> int:
    """Test, say what differs, and answer with the exit code."""
    config = settings.load()
    output, lang = output or config.output, lang or config.lang
    every = Archive(output, "").names()
    asked = incidents or [i for i in every if {*SEALED} & {*Archive(output, i).names()}]
    tested = backtest.run(output, asked, given)
    report = backtest.report(tested)
    if page:
        content = render.html(
            "backtest", lang, report=report, sums=_sums(report), times=_times(report), given=str(given)
        )
        try:
            write_whole(page.absolute(), content.encode())
        except OSError as e:
            raise OutputError(f"the page could not be written to {page}: {e.strerror}") from None
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False))
    else:
        for line in _lines(report):
            click.echo(messages.text(line, lang))
    for text in (text for t in tested for text in t.unread):
        click.echo(messages.text(text, lang), err=True)
    return int(bool(report["flips"] or report["not_replayable"]))


def _sums(report: dict[str, Any]) -> list[Text]:
    sums = [say("backtest.judged", **{name: report[name] for name in ("incidents", "runs", "steps")})]
    sums.append(say("backtest.alarms", **report["alarms"]))
    if not report["flips"]:
        sums.append(say("backtest.same"))
    if report["without_policy"]:
        sums.append(say("backtest.without_policy", n=report["without_policy"]))
    return sums


def _times(report: dict[str, Any]) -> list[Text]:
    def after(s: float | None) -> Text:
        return say("backtest.never") if s is None else say("backtest.after", s=s)

    return [
        say("backtest.detected", incident=d["incident"], was=after(d["was_s"]), now=after(d["now_s"]))
        for d in report["detected"]
    ]


def _lines(report: dict[str, Any]) -> list[Text]:
    lines = _sums(report)
    lines += [say("backtest.flip" if f["step"] else "backtest.verdict", **f) for f in report["flips"]]
    lines += _times(report)
    unsure = Counter((n["step"], ", ".join(n["numbers"])) for n in report["not_replayable"])
    lines += [say("backtest.not_replayable", step=step, numbers=names, n=n) for (step, names), n in unsure.items()]
    return lines
