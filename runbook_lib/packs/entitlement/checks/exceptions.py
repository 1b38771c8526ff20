"""5.1.1: how often a process fails, and with what; by its log, and by what the tables say of its tries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise, starmap
from typing import TYPE_CHECKING, Any

import matplotlib.dates
import numpy as np
import pandas as pd

from runbook_lib import rows
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
    Reason,
    Signal,
    Status,
    Value,
    judged,
    replace,
    say,
    worst,
)
from runbook_lib.model.frames import row, table
from runbook_lib.packs.entitlement.checks import errors, recovery
from runbook_lib.packs.entitlement.facts import asked_of, facts_of
from runbook_lib.sources import SourceError, logs
from runbook_lib.view import charts

if TYPE_CHECKING:
    from runbook_lib.context import Context

#: What is beyond the texts that are told apart.
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
#: Of these, a try that failed and will be made again: it speaks for a cause only as strongly as tries fail.
RETRIED = ("notification retry scheduled", "outbox publish retry scheduled")
#: A client that gave its connection up says so once, and is deaf until the next start.
CLOSED = ("no further reconnect", "Connection is Closed")
STARTED = ("notification stream ensured", "entitlement stream ensured")
#: Failure modes that a restart does not end.
NOT_CURED = ("FM-NOTI-03", "FM-NOTI-04", "FM-DB-01", "FM-OB-02", "FM-NATS-02", "FM-NATS-04")
#: What failed tries speak for, and how strongly their phrases do.
FAILING = {
    ("delivery", Status.WARNING): "exceptions.some_sends_fail",
    ("delivery", Status.CRITICAL): "exceptions.sends_fail",
    ("publish", Status.WARNING): "exceptions.some_publishes_fail",
    ("publish", Status.CRITICAL): "exceptions.publishes_fail",
}
RETRIES_SPEAK = {Status.WARNING: "phrase.tries_warning", Status.CRITICAL: "phrase.tries_critical"}
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
    """5.1.1: the workload's log, its tries by the tables, and by Prometheus where there is one.

    Frames: those of `log_frames`, those of `recovery.collect_errors`, results (result: text; value: number), about
    (workload, name: text; minutes: min).
    """
    which = asked_of(rb).workload
    name = str(getattr(facts_of(rb).workloads, which))
    minutes = min(rb.parameters.window_minutes, int(rb.number("log.longest")))
    parts = Parts()
    with parts.part("log") as found:
        needs_the_present(rb, "workloads")
        lines = rb.workloads.logs(name, minutes)
        known = {p.text: p for p in rb.catalog.phrases.values() if which in p.workloads}
        found |= log_frames(lines, known, rb.now().floor("us").to_pydatetime(), minutes, rb.number, rb.lang)
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

    def facts(self, at: datetime, covered_min: float, number: Callable[[str], float]) -> dict[str, Any]:
        ages = [(at - t).total_seconds() for t in self.times]
        return {
            "level": self.level,
            "n": len(ages),
            "now": sum(age <= number("log.just_now") for age in ages),
            "tries_now": sum(age <= number("recovery.recent") for age in ages),
            "per_min": round(len(ages) / covered_min, 2),
            "first": pd.Timestamp(min(self.times)),
            "last": pd.Timestamp(max(self.times)),
            "since": pd.Timestamp(self._since(number("log.gap"))),
        }

    def _since(self, gap_s: float) -> datetime:
        """Where the newest unbroken series of them begins."""
        newest_first = sorted(self.times, reverse=True)
        for later, earlier in pairwise(newest_first):
            if (later - earlier).total_seconds() > gap_s:
                return later
        return newest_first[-1]


def log_frames(
    lines: list[str],
    phrases: Mapping[str, Phrase],
    at: datetime,
    minutes: float,
    number: Callable[[str], float],
    lang: str = "en",
) -> Frames:
    """Count what a log says in the minutes before a moment: known phrases, and the other errors by their text.

    Frames: log (lines, entries: number; first, last: time; late_s: s), phrases (`_PHRASES`), texts (`_TEXTS`),
    per_minute (minute: time; what: text; n: entries). Columns `n`, `now` and `tries_now` are entries, `per_min` 1/min.
    """
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
            if key not in by_text and len(by_text) >= number("log.texts"):
                key = ("", OTHER)
            _note(by_text.setdefault(key, _Seen()), record.time, level)
        minute = record.time.replace(second=0, microsecond=0)
        per_minute[minute, phrase or text] = per_minute.get((minute, phrase or text), 0) + 1

    covered_min = max((at - min([*times, at])).total_seconds(), number("log.just_now")) / 60
    found = [
        {
            "phrase": phrase,
            "failure_modes": ", ".join(phrases[phrase].failure_modes),
            "trend": _trend(seen.times, at, covered_min),
            "meaning": phrases[phrase].ja if lang == "ja" else phrases[phrase].en,
        }
        | seen.facts(at, covered_min, number)
        for phrase, seen in by_phrase.items()
    ]
    texts = [
        {"phrase": phrase, "detail": text} | seen.facts(at, covered_min, number)
        for (phrase, text), seen in by_text.items()
    ]
    minutely = [(pd.Timestamp(minute), what, n) for (minute, what), n in sorted(per_minute.items())]
    return {
        "log": row(
            lines=len(lines),
            entries=len(times),
            first=pd.Timestamp(min(times)) if times else pd.NaT,
            last=pd.Timestamp(max(times)) if times else pd.NaT,
            late_s=(min(times) - begin).total_seconds() if times else None,
        ),
        "phrases": pd.DataFrame(found, columns=_PHRASES).sort_values(
            ["level", "n"], key=_worst_first, kind="stable", ignore_index=True
        ),
        "texts": pd.DataFrame(texts, columns=_TEXTS).sort_values(
            "n", ascending=False, kind="stable", ignore_index=True
        ),
        "per_minute": pd.DataFrame(minutely, columns=_MINUTES),
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
class About:
    """The workload that was asked about, its name, and how far back its log was read."""

    workload: str = "notification"
    name: str = ""
    minutes: float | None = None


@dataclass(frozen=True)
class Read:
    """What was read of its log: lines, the entries among them that have a time, and from when on."""

    lines: float | None = None
    entries: float = 0.0
    first: pd.Timestamp | None = None
    late_s: float = 0.0


@dataclass(frozen=True)
class Counted:
    """Entries of one phrase, or of one text: in all, and of the last moments."""

    phrase: str = ""
    detail: str = ""
    level: str = ""
    failure_modes: str = ""
    n: float = 0.0
    now: float = 0.0
    tries_now: float = 0.0
    since: pd.Timestamp | None = None
    last: pd.Timestamp | None = None

    @property
    def recent(self) -> float:
        """Those of the last moments; tries as 6.2 counts them."""
        return self.tries_now if self.phrase in FAILED_TRY else self.now


@dataclass(frozen=True)
class Log:
    """What the frames of `log_frames` come to: tries that failed, and errors that are none."""

    failed: float
    failed_now: float
    sent_now: float
    errors: float
    errors_now: float
    top: str
    since: pd.Timestamp | None
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
    if not rows.one(frames.get("log"), Read).entries:
        return None
    phrases, texts = (rows.each(frames.get(name), Counted) for name in ("phrases", "texts"))
    tries = [p for p in phrases if p.phrase in FAILED_TRY]
    bad = [p for p in phrases if p.level in ("WARN", "ERROR") and p.failure_modes and p.phrase not in FAILED_TRY]
    # What no phrase explains counts when it is an error; a warning of some library is shown, and no more.
    bad += [t for t in texts if not t.phrase and t.level == "ERROR"]

    def last(names: tuple[str, ...]) -> pd.Timestamp | None:
        return max((p.last for p in phrases if p.phrase in names and p.last is not None), default=None)

    closed, started = last(CLOSED), last(STARTED)
    deaf = closed is not None and (started is None or started <= closed)
    top = max([*tries, *bad], key=lambda c: (deaf and c.phrase in CLOSED, c.recent, c.n), default=Counted())
    cause = next((t.detail for t in texts if top.phrase and t.phrase == top.phrase), "")  # the most frequent first
    return Log(
        failed=sum(t.n for t in tries),
        failed_now=sum(t.recent for t in tries),
        sent_now=sum(p.tries_now for p in phrases if p.phrase == SENT),
        errors=sum(c.n for c in bad),
        errors_now=sum(c.recent for c in bad),
        top=f"{top.phrase}: {cause[:80]}" if cause else top.phrase or top.detail,
        since=top.since,
        closed=deaf,
    )


def judge_exceptions(frames: Frames, given: Given) -> Finding:
    """5.1.1: does the process fail, how often, since when and with what; would a restart be the cure?"""
    about, failed = rows.one(frames.get("about"), About), failures(frames)
    part, name = PART.get(about.workload, "delivery"), about.name or about.workload
    log, read = read_log(frames), rows.first(frames.get("log"), Read)
    tries = "tries" in frames and len(frames.get(recovery.TRIED[part][0], ())) > 0
    if log is None and not tries:
        nothing = SourceError("workloads", Reason.NO_DATA, "no line in the log, and no tries", "")
        return could_not_ask(failed.get("log") or failed.get("tries") or nothing)

    texts, values, notes = [], [], []
    closed, unread = log is not None and log.closed, None if read else failed.get("log")
    if log is not None and read is not None:
        seen = {"name": name, "what": log.top, **vars(log), "minutes": about.minutes}
        word = "quiet" if not log.bad else "now" if log.bad_now else "over"
        texts.append(say(f"exceptions.{word}", **seen, lines=read.lines, now=log.bad_now))
        values += _log_values(log, part, given)
        if read.late_s > given.number("log.late"):
            notes.append(say("exceptions.late", first=read.first))
    else:
        detail = failed["log"].detail if "log" in failed else None
        silent = "exceptions.silent" if read else "exceptions.unread"
        texts.append(say(silent, name=name, detail=detail, minutes=about.minutes))
        notes.append(say("exceptions.tables_only"))
    at_least, failing = Status.CRITICAL if closed else Status.UNKNOWN if unread else Status.OK, Status.OK
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
    modes = _modes(frames, given, failing, closed=closed)
    likely = given.number("phrase.now")
    useless = [mode for mode, weight in modes.items() if mode in NOT_CURED and weight >= likely]
    if closed:
        notes.append(say("exceptions.closed"))
    elif useless:
        notes.append(say("exceptions.no_cure", modes=", ".join(useless)))
    spoken = FAILING.get((part, failing))
    return judged(
        say("recovery.both", a=texts[0], b=texts[1]) if len(texts) == 2 else texts[0],
        values,
        at_least=at_least,
        reason=unread.reason if unread else None,
        notes=tuple(notes),
        signals=(
            *starmap(Signal, modes.items()),
            *(signals_of_silence(failed["tries"], given.catalog) if "tries" in failed else ()),
            *(given.speaks(spoken) if spoken else ()),
        ),
        proposals=(proposals.restart(given, about.workload),)
        if closed
        else (proposals.logs(given, about.workload),)
        if log is None
        else (),
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


def _modes(frames: Frames, given: Given, failing: Status, *, closed: bool) -> dict[str, float]:
    """How strongly the phrases speak for failure modes; those of failed tries, as strongly as the tries fail."""
    many, likely, past = given.number("phrase.many"), given.number("phrase.now"), given.number("phrase.past")
    weights: dict[str, float] = {}
    for found in rows.each(frames.get("phrases"), Counted):
        weight = many if found.now >= given.number("tries.pattern") else likely if found.now else past
        if found.phrase in RETRIED:
            weight = given.number(RETRIES_SPEAK[failing]) if failing in RETRIES_SPEAK else 0.0
        elif found.phrase in CLOSED:
            weight = given.number("phrase.closed") if closed else past
        for mode in found.failure_modes.split(", "):
            if mode and weight:
                weights[mode] = max(weights.get(mode, 0.0), weight)
    return weights


def draw_errors(frames: Frames, given: Given) -> charts.Chart | None:
    """Warnings and errors per minute, by what they say."""
    found, about = table(frames, "per_minute", *_MINUTES), rows.one(frames.get("about"), About)
    if not rows.one(frames.get("log"), Read).entries or found.empty:
        return None
    minutes = pd.to_datetime(found["minute"], utc=True)
    totals = found.groupby("what")["n"].sum().sort_values(ascending=False)
    top = list(totals.index[: len(COLOURS) - 1])
    begin = given.as_of - pd.Timedelta(minutes=min(about.minutes or 1, given.number("log.longest")))
    span = pd.date_range(
        min(begin.floor("min"), minutes.min()), max(given.as_of.floor("min"), minutes.max()), freq="min"
    )
    figure, ax = charts.axes("Warnings and errors in the log", "entries / min", "UTC", (8.0, 3.4))
    base = np.zeros(len(span))
    for what, colour, hatch in zip([*top, OTHER], COLOURS, HATCHES, strict=False):
        those = found["what"].isin(totals.index.difference(top)) if what == OTHER else found["what"] == what
        if not those.any():
            continue
        counts = found.loc[those, "n"].groupby(minutes[those]).sum().reindex(span, fill_value=0).to_numpy(float)
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
            minutes=about.minutes,
            what=str(totals.index[0]),
            top=float(totals.iloc[0]),
            most=float(base.max()),
        ),
        (say("exceptions.blind"),),
    )


CHECKS = (Check("5.1.1", collect_exceptions, judge_exceptions, charts=(draw_errors,)),)
