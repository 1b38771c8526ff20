"""5.1.1: how often a process fails, and with what; by its log, and by what the tables say of its tries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import matplotlib.dates
import numpy as np
import pandas as pd

from runbook_lib.actions import proposals
from runbook_lib.analysis import stats
from runbook_lib.analysis.diagnosis import signals_of_silence
from runbook_lib.catalog import Phrase
from runbook_lib.checks.check import Check, could_not_ask, failures
from runbook_lib.checks.parts import Parts, needs_the_present
from runbook_lib.context import Given
from runbook_lib.model.finding import (
    Finding,
    Frames,
    Proposal,
    Reason,
    Signal,
    Status,
    Value,
    judged,
    replace,
    say,
    worst,
)
from runbook_lib.model.frames import amount, one, row, table
from runbook_lib.packs.entitlement.checks import errors, recovery
from runbook_lib.packs.entitlement.facts import asked_of, facts_of
from runbook_lib.sources import SourceError, logs
from runbook_lib.view import charts

if TYPE_CHECKING:
    from runbook_lib.context import Context

#: A log is read no further back than this, however wide the window is.
LONGEST_MIN = 60
#: "Now": tries, as 6.2 counts them; and errors, which are counted per minute.
TRIES_S, RECENT_S = recovery.RECENT * recovery.BUCKET_S, 60
#: A silence that ends a series: no wait for the next try is longer than 90 s.
GAP_S = 120
#: A log that begins so much later than it was asked for is said to.
LATE_S = 60
#: Different texts that are told apart; the rest is counted as one.
MOST_TEXTS = 200
OTHER = "(other)"

PART = {"notification": "delivery", "entitlement": "publish"}
#: The phrases of a try that failed, and of one that succeeded (the relay writes none).
FAILED_TRY = (
    "notification retry scheduled",
    "notification moved to DLQ",
    "outbox publish retry scheduled",
    "outbox publish moved to FAILED",
)
SENT = "notification simulated send"
#: Of these, a try that failed and will be made again: it speaks for a cause only when many do.
RETRIED = ("notification retry scheduled", "outbox publish retry scheduled")
#: A client that gave its connection up says so once, and is deaf until the next start.
CLOSED = ("no further reconnect", "Connection is Closed")
STARTED = ("notification stream ensured", "entitlement stream ensured")
#: Failure modes that a restart does not end.
NOT_CURED = ("FM-NOTI-03", "FM-NOTI-04", "FM-DB-01", "FM-OB-02", "FM-NATS-02", "FM-NATS-04")
MANY, LIKELY, PAST = 3, 0.4, 0.2
WEIGHTS = {Status.OK: 0.0, Status.WARNING: LIKELY, Status.CRITICAL: 0.75, Status.UNKNOWN: 0.0}
COLOURS = (charts.RED, charts.ORANGE, charts.BLUE, charts.GREEN, charts.GREY)
HATCHES = ("", "//", "..", "xx", "")

_SUM = "sum by (result) (increase(notification_delivery_total[2m]))"
_PHRASES = [
    "phrase",
    "level",
    "failure_modes",
    "n",
    "now",
    "tries_now",
    "per_min",
    "first",
    "last",
    "since",
    "trend",
    "meaning",
]
_TEXTS = ["level", "phrase", "detail", "n", "now", "per_min", "first", "last", "since"]
_MINUTES = ["minute", "what", "n"]


def collect_exceptions(rb: Context) -> Frames:
    """5.1.1: the workload's log, its tries by the tables, and by Prometheus where there is one."""
    which = asked_of(rb).workload
    name = str(getattr(facts_of(rb).workloads, which))
    minutes = min(rb.parameters.window_minutes, LONGEST_MIN)
    parts = Parts()
    with parts.part("log") as found:
        needs_the_present(rb, "workloads")
        lines = rb.workloads.logs(name, minutes)
        known = {p.text: p for p in rb.catalog.phrases.values() if which in p.workloads}
        found |= log_frames(lines, known, rb.now().floor("us").to_pydatetime(), minutes, rb.lang)
    with parts.part("tries") as found:
        found |= recovery.collect_errors(rb)
    if which == "notification":
        with parts.part("results") as found:
            found["results"] = rb.prometheus.instant(_SUM, rb.as_of)
    return {**parts.frames(), "about": row(workload=which, name=name, minutes=minutes)}


@dataclass
class _Seen:
    """The entries of one kind."""

    times: list[datetime] = field(default_factory=list)
    level: str = ""

    def facts(self, at: datetime, covered_min: float) -> dict[str, Any]:
        ages = [(at - t).total_seconds() for t in self.times]
        return {
            "level": self.level,
            "n": len(ages),
            "now": sum(age <= RECENT_S for age in ages),
            "tries_now": sum(age <= TRIES_S for age in ages),
            "per_min": round(len(ages) / covered_min, 2),
            "first": pd.Timestamp(min(self.times)),
            "last": pd.Timestamp(max(self.times)),
            "since": pd.Timestamp(self._since()),
        }

    def _since(self) -> datetime:
        """Where the newest unbroken series of them begins."""
        newest_first = sorted(self.times, reverse=True)
        for later, earlier in pairwise(newest_first):
            if (later - earlier).total_seconds() > GAP_S:
                return later
        return newest_first[-1]


def log_frames(
    lines: list[str], phrases: Mapping[str, Phrase], at: datetime, minutes: float, lang: str = "en"
) -> Frames:
    """Count what a log says in the minutes before a moment: known phrases, and the other errors by their text."""
    begin = at - timedelta(minutes=minutes)
    by_phrase: dict[str, _Seen] = {}
    by_text: dict[tuple[str, str], _Seen] = {}
    per_minute: dict[tuple[datetime, str], int] = {}
    longest_first = sorted(phrases, key=len, reverse=True)
    times = []
    for record in logs.read(lines):
        if record.time is None or record.time < begin:
            continue
        times.append(record.time)
        phrase = next((p for p in longest_first if p in record.message or p in record.error), "")
        level = record.level or (phrases[phrase].level if phrase else "")
        if phrase:
            _note(by_phrase.setdefault(phrase, _Seen()), record.time, level)
        if level not in ("WARN", "ERROR"):
            continue
        text = errors.fingerprint(record.error or record.message)
        if record.error or not phrase:
            key = (phrase, text)
            if key not in by_text and len(by_text) >= MOST_TEXTS:
                key = ("", OTHER)
            _note(by_text.setdefault(key, _Seen()), record.time, level)
        minute = record.time.replace(second=0, microsecond=0)
        per_minute[minute, phrase or text] = per_minute.get((minute, phrase or text), 0) + 1

    covered_min = max((at - min([*times, at])).total_seconds(), RECENT_S) / 60

    def meaning(phrase: str) -> str:
        return phrases[phrase].ja if lang == "ja" else phrases[phrase].en

    found = pd.DataFrame(
        [
            {
                "phrase": phrase,
                "failure_modes": ", ".join(phrases[phrase].failure_modes),
                "trend": _trend(seen.times, at, covered_min),
                "meaning": meaning(phrase),
            }
            | seen.facts(at, covered_min)
            for phrase, seen in by_phrase.items()
        ],
        columns=_PHRASES,
    )
    texts = pd.DataFrame(
        [{"phrase": phrase, "detail": text} | seen.facts(at, covered_min) for (phrase, text), seen in by_text.items()],
        columns=_TEXTS,
    )
    return {
        "log": row(
            lines=len(lines),
            entries=len(times),
            first=pd.Timestamp(min(times)) if times else pd.NaT,
            last=pd.Timestamp(max(times)) if times else pd.NaT,
            late_s=(min(times) - begin).total_seconds() if times else None,
        ),
        "phrases": found.sort_values(["level", "n"], key=_worst_first, kind="stable", ignore_index=True),
        "texts": texts.sort_values("n", ascending=False, kind="stable", ignore_index=True),
        "per_minute": pd.DataFrame(
            [(pd.Timestamp(minute), what, n) for (minute, what), n in sorted(per_minute.items())], columns=_MINUTES
        ),
    }


def _note(seen: _Seen, time: datetime, level: str) -> None:
    seen.times.append(time)
    seen.level = level


def _worst_first(column: pd.Series[Any]) -> pd.Series[Any]:
    if column.name == "level":
        return column.map({"ERROR": 0, "WARN": 1}).fillna(2)
    return -pd.to_numeric(column)


def _trend(times: list[datetime], at: datetime, covered_min: float) -> str:
    """The shape over whole minutes, counted back from the moment."""
    whole = int(covered_min)
    ago = np.array([(at - t).total_seconds() // 60 for t in times])
    counts = [int(np.count_nonzero(ago == minute)) for minute in reversed(range(whole))]
    return stats.trend_kind(counts).kind


# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Log:
    """What the frames of `log_frames` come to: tries that failed, and errors that are none."""

    failed: float
    failed_now: float
    sent_now: float
    errors: float
    errors_now: float
    top: str
    since: Any
    closed: bool

    @property
    def bad(self) -> float:
        """All that is wrong in it."""
        return self.failed + self.errors

    @property
    def bad_now(self) -> float:
        """The same of the last moments."""
        return self.failed_now + self.errors_now


def read_log(frames: Frames) -> Log | None:
    """The log in numbers; None where it could not be read, or says nothing."""
    if not amount(one(frames.get("log")), "entries"):
        return None
    phrases, texts = table(frames, "phrases", *_PHRASES), table(frames, "texts", *_TEXTS)
    tries = phrases[phrases["phrase"].isin(FAILED_TRY)]
    # What no phrase explains counts when it is an error; a warning of some library is shown, and no more.
    bad = phrases[
        phrases["level"].isin(["WARN", "ERROR"])
        & (phrases["failure_modes"] != "")
        & ~phrases["phrase"].isin(FAILED_TRY)
    ]
    odd = texts[(texts["phrase"] == "") & (texts["level"] == "ERROR")]
    kinds = [
        *zip(tries["n"], tries["tries_now"], tries["since"], tries["phrase"], strict=True),
        *zip(bad["n"], bad["now"], bad["since"], bad["phrase"], strict=True),
        *zip(odd["n"], odd["now"], odd["since"], odd["detail"], strict=True),
    ]

    def last(names: tuple[str, ...]) -> Any:
        return phrases.loc[phrases["phrase"].isin(names), "last"].max()

    closed, started = last(CLOSED), last(STARTED)
    deaf = bool(pd.notna(closed) and not (pd.notna(started) and started > closed))
    top = max(kinds, key=lambda kind: (deaf and kind[3] in CLOSED, kind[1], kind[0]), default=(0, 0, None, None))
    causes = texts.loc[texts["phrase"] == top[3], "detail"]  # the most frequent first
    return Log(
        failed=_sum(tries, "n"),
        failed_now=_sum(tries, "tries_now"),
        sent_now=_sum(phrases[phrases["phrase"] == SENT], "tries_now"),
        errors=_sum(bad, "n") + _sum(odd, "n"),
        errors_now=_sum(bad, "now") + _sum(odd, "now"),
        top=str(top[3] or "") if causes.empty else f"{top[3]}: {str(causes.iloc[0])[:80]}",
        since=top[2],
        closed=deaf,
    )


def judge_exceptions(frames: Frames, given: Given) -> Finding:
    """5.1.1: does the process fail, how often, since when and with what; would a restart be the cure?"""
    about, failed = one(frames.get("about")), failures(frames)
    which = str(about.get("workload") or "notification")
    part, name = PART.get(which, "delivery"), str(about.get("name") or which)
    log, read = read_log(frames), bool(one(frames.get("log")))
    tries = "tries" in frames and bool(one(frames.get(recovery.TRIED[part][0])))
    if log is None and not tries:
        nothing = SourceError("workloads", Reason.NO_DATA, "no line in the log, and no tries", "")
        return could_not_ask(failed.get("log") or failed.get("tries") or nothing)

    texts, values, notes = [], [], []
    if log is not None:
        seen = {"name": name, "what": log.top, **vars(log), "minutes": about.get("minutes"), "bad": log.bad}
        word = "quiet" if not log.bad else "now" if log.bad_now else "over"
        texts.append(say(f"exceptions.{word}", **seen, lines=one(frames.get("log")).get("lines"), now=log.bad_now))
        values += _log_values(log, part, given)
        if (one(frames.get("log")).get("late_s") or 0) > LATE_S:
            notes.append(say("exceptions.late", first=one(frames.get("log")).get("first")))
    else:
        detail = failed["log"].detail if "log" in failed else None
        texts.append(
            say(
                "exceptions.silent" if read else "exceptions.unread",
                name=name,
                detail=detail,
                minutes=about.get("minutes"),
            )
        )
        notes.append(say("exceptions.tables_only"))
    unread = None if read else failed.get("log")
    at_least, failing = Status.UNKNOWN if unread else Status.OK, Status.OK
    if log is not None:
        at_least = Status.CRITICAL if log.closed else Status.OK
    if tries:
        rate = recovery.error_rate(frames, given, part)
        texts.append(rate.text)
        values += rate.values
        notes.append(say("recovery.errors_note"))
        at_least = worst([at_least, rate.status])
        failing = rate.status if log is not None and log.failed_now else Status.OK
    else:
        notes.append(say("exceptions.log_only", detail=failed["tries"].detail if "tries" in failed else None))
    values += _results(frames, given, alone=not tries)

    failing = worst([failing, *(v.status for v in values if v.status and v.threshold is given.limits["errors.rate"])])
    modes = _modes(frames, failing, closed=log is not None and log.closed)
    useless = [mode for mode, weight in modes.items() if mode in NOT_CURED and weight >= LIKELY]
    if log is not None and log.closed:
        notes.append(say("exceptions.closed"))
    elif useless:
        notes.append(say("exceptions.no_cure", modes=", ".join(useless)))
    hop, share = ("receiver", 1.0) if part == "delivery" else ("relay", 0.6)
    signals = [Signal(mode, weight) for mode, weight in modes.items()]
    if "tries" in failed:
        signals += signals_of_silence(failed["tries"], given.catalog)
    if failing is not Status.OK:
        signals.append(Signal(hop, share * WEIGHTS[failing]))
    offered: list[Proposal] = []
    if log is not None and log.closed:
        offered.append(proposals.restart(given, which))
    elif log is None:
        offered.append(proposals.logs(given, which))
    return judged(
        say("recovery.both", a=texts[0], b=texts[1]) if len(texts) == 2 else texts[0],
        values,
        at_least=at_least,
        reason=unread.reason if unread else None,
        notes=tuple(notes),
        signals=tuple(signals),
        proposals=tuple(offered),
        next_sections=("5.2",) if part == "delivery" and failing is not Status.OK else (),
        show=tuple(f for f in ("phrases", "texts") if f in frames and not frames[f].empty),
    )


def _log_values(log: Log, part: str, given: Given) -> list[Value]:
    values = [
        Value("log.failed_tries", log.failed, "tries"),
        replace(given.limits.value("errors.logged", log.errors_now), name="log.errors"),
    ]
    if part == "delivery" and log.failed_now + log.sent_now:  # of publishing, only failures are logged
        share = 100 * log.failed_now / (log.failed_now + log.sent_now)
        values.append(replace(given.limits.value("errors.rate", share), name="log.failed_share"))
    return values


def _results(frames: Frames, given: Given, *, alone: bool) -> list[Value]:
    """Prometheus counts the same tries, over a longer time: it decides only where the tables do not answer."""
    results = table(frames, "results", "result", "value")
    by = {str(k): float(v) for k, v in zip(results["result"], pd.to_numeric(results["value"]), strict=True)}
    bad, total = by.get("failed", 0.0) + by.get("retry_scheduled", 0.0), sum(by.values())
    if not total > 0:
        return []
    value = replace(given.limits.value("errors.rate", 100 * bad / total), name="prometheus.failed_share")
    return [value if alone else replace(value, threshold=None)]


def _modes(frames: Frames, failing: Status, *, closed: bool) -> dict[str, float]:
    """How strongly the phrases speak for failure modes; those of failed tries, as strongly as the tries fail."""
    weights: dict[str, float] = {}
    for found in table(frames, "phrases", *_PHRASES).to_dict("records"):
        now = float(found["now"] or 0)
        weight = 0.6 if now >= MANY else LIKELY if now else PAST
        if found["phrase"] in RETRIED:
            weight = WEIGHTS[failing]
        elif found["phrase"] in CLOSED:
            weight = 0.8 if closed else PAST
        for mode in str(found["failure_modes"] or "").split(", "):
            if mode and weight:
                weights[mode] = max(weights.get(mode, 0.0), weight)
    return weights


def _sum(frame: pd.DataFrame, column: str) -> float:
    return float(pd.to_numeric(frame[column]).sum())


def draw_errors(frames: Frames, given: Given) -> charts.Chart | None:
    """Warnings and errors per minute, by what they say."""
    found, about = table(frames, "per_minute", *_MINUTES), one(frames.get("about"))
    if not amount(one(frames.get("log")), "entries") or found.empty:
        return None
    minutes = pd.to_datetime(found["minute"], utc=True)
    totals = found.groupby("what")["n"].sum().sort_values(ascending=False)
    top = list(totals.index[: len(COLOURS) - 1])
    begin = given.as_of - pd.Timedelta(minutes=min(amount(about, "minutes") or 1, LONGEST_MIN))
    span = pd.date_range(
        min(begin.floor("min"), minutes.min()), max(given.as_of.floor("min"), minutes.max()), freq="min"
    )
    figure, ax = charts.axes("Warnings and errors in the log", "entries / min", "UTC", (8.0, 3.4))
    base = np.zeros(len(span))
    for what, colour, hatch in zip([*top, OTHER], COLOURS, HATCHES, strict=False):
        rows = found["what"].isin(totals.index.difference(top)) if what == OTHER else found["what"] == what
        if not rows.any():
            continue
        counts = found.loc[rows, "n"].groupby(minutes[rows]).sum().reindex(span, fill_value=0).to_numpy(float)
        ax.bar(
            span,
            counts,
            width=1 / 1440,
            align="edge",
            bottom=base,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            linewidth=0.3,
            label=what if len(what) <= 60 else what[:57] + "...",
        )
        base += counts
    ax.set_xlim(*matplotlib.dates.date2num([span[0], span[-1] + pd.Timedelta(minutes=1)]))
    charts.clock_ticks(ax)
    figure.legend(loc="outside lower left", ncols=1, fontsize=8, frameon=False)
    return charts.Chart(
        figure,
        say(
            "exceptions.alt",
            n=float(totals.sum()),
            minutes=about.get("minutes"),
            what=str(totals.index[0]),
            top=float(totals.iloc[0]),
            most=float(base.max()),
        ),
        (say("exceptions.blind"),),
    )


CHECKS = (Check("5.1.1", collect_exceptions, judge_exceptions, charts=(draw_errors,)),)
