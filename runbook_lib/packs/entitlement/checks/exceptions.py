"""4.5, 5.1.1: the error rate of a service and its errors, from its log and from the failed tries in the tables."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pandas as pd

from runbook_lib.actions import proposals
from runbook_lib.book import patterns
from runbook_lib.book.catalog import Phrase
from runbook_lib.checks.check import Check, failures
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import FrameCollector
from runbook_lib.diagnosis import stats
from runbook_lib.model import rows
from runbook_lib.model.finding import (
    Finding,
    Frames,
    Proposal,
    Reason,
    Status,
    Value,
    judged,
    replace,
    say,
    worst,
)
from runbook_lib.model.frames import row, table
from runbook_lib.packs.entitlement import PACK
from runbook_lib.packs.entitlement.actions import remedies
from runbook_lib.packs.entitlement.checks import errors, recovery
from runbook_lib.packs.entitlement.evidence import logins
from runbook_lib.packs.entitlement.facts import facts_of, parameters_of
from runbook_lib.packs.logs.logs import fingerprint, read_attempts
from runbook_lib.sources.logs import Log, LogEntry
from runbook_lib.sources.source import SourceError

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context

#: The group of all texts beyond the limit `log.texts`.
OTHER = "(other)"

PART = {"notification": "delivery", "entitlement": "publish"}
_SERVICE_LOG, _SERVER_ERROR = patterns.source(PACK, "service log"), patterns.source(PACK, "server error")
_DATABASE_END = patterns.source(PACK, "database end")
#: The kinds of phrases of a failed try; a successful one is "sent", and the relay logs none.
FAILED_TRY = ("retried", "given_up")
#: The phrase of a client that has given up its connection, where it stands behind another phrase.
CLOSED = "Connection is Closed"
#: The observation of failed tries by loop and status.
FAILED_TRY_OBSERVATIONS = {
    ("delivery", Status.WARNING): "exceptions.some_sends_fail",
    ("delivery", Status.CRITICAL): "exceptions.sends_fail",
    ("publish", Status.WARNING): "exceptions.some_publishes_fail",
    ("publish", Status.CRITICAL): "exceptions.publishes_fail",
}
#: The observation of a loop that logs failed tries: its workload, its kinds of phrases, and the limit of its silence.
TRYING_LOOPS = {
    "exceptions.worker_tries": ("notification", FAILED_TRY, "delivery.silence"),
    "exceptions.relay_tries": ("entitlement", FAILED_TRY, "outbox.oldest_due"),
    "exceptions.subscriber_tries": ("notification", ("event_refused",), "subscriber.oldest_unprocessed"),
}

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


def collect_exceptions(rb: Context) -> Frames:
    """5.1.1: collect the workload's log, its tries from the tables, and its results from Prometheus if declared.

    Frames: those of `log_frames` and `logins.look_beside_the_log`, those of `recovery.collect_errors` for its part,
    results (result: text; value: number), about (workload, name: text; minutes: min).
    """
    which = parameters_of(rb).workload
    name = str(getattr(facts_of(rb).workloads, which))
    minutes = min(rb.parameters.window_minutes, int(rb.number("log.longest")))
    parts = FrameCollector()
    with parts.part("log") as found:
        read = rb.log(name, minutes)
        known = {p.text: p for p in rb.catalog.phrases.values() if which in p.workloads}
        found |= log_frames(read, known, minutes, rb.number)
        logins.collect_without_log(rb, parts, which)
    with parts.part("tries"):
        recovery.ask_errors(rb, parts, [PART[which]])
    if which == "notification":
        with parts.part("results") as found:
            found["results"] = rb.source("prometheus").instant(_SUM, rb.as_of)
    return parts.frames() | {"about": row(workload=which, name=name, minutes=minutes)}


def collect_entitlement(rb: Context) -> Frames:
    """4.5.1: collect what 5.1.1 does, of entitlement."""
    return collect_exceptions(replace(rb, parameters=rb.parameters.model_copy(update={"workload": "entitlement"})))


def collect_notification(rb: Context) -> Frames:
    """4.5.2: collect what 5.1.1 does, of notification."""
    return collect_exceptions(replace(rb, parameters=rb.parameters.model_copy(update={"workload": "notification"})))


def log_frames(
    log: Log,
    phrases: Mapping[str, Phrase],
    minutes: float,
    number: Callable[[str], float],
) -> Frames:
    """Count the entries of the last `minutes` before the log was read: known phrases, and other errors by text.

    Frames: log (lines, entries: number; first, last: time; late_s: s), phrases (`_PHRASES`), texts (`_TEXTS`), logins
    (see `logs.read_attempts`). Columns `n`, `now` and `tries_now` are entries, `per_min` 1/min.
    """
    at = log.at
    begin = at - timedelta(minutes=minutes)
    records = [e for e in log.entries if e.time is not None and e.time >= begin]
    told = _classify_entries(records, phrases, int(number("log.texts")))
    first = told["at"].min() if len(told) else pd.Timestamp(at)
    covered_min = max((at - first).total_seconds(), number("log.just_now")) / 60

    def count(group: pd.DataFrame) -> dict[str, Any]:
        """Return the columns that phrases and texts share."""
        ages = (at - group["at"]).dt.total_seconds()
        # The newest series of entries without a longer gap.
        gaps = ages.sort_values().diff().gt(number("log.gap")).cumsum()
        return {
            "level": group["level"].iloc[-1],
            "n": len(group),
            "now": int((ages <= number("log.just_now")).sum()),
            "tries_now": int((ages <= number("recovery.recent")).sum()),
            "per_min": round(len(group) / covered_min, 2),
            "first": group["at"].min(),
            "last": group["at"].max(),
            "since": group["at"][gaps[gaps == 0].index].min(),
        }

    found = [
        {
            "phrase": phrase,
            "failure_modes": ", ".join(phrases[str(phrase)].failure_modes),
            "trend": _classify_trend((at - group["at"]).dt.total_seconds(), covered_min),
            "meaning": phrases[str(phrase)].words(),
        }
        | count(group)
        for phrase, group in told[told["phrase"] != ""].groupby("phrase", sort=False)
    ]
    texts = [
        {"phrase": phrase, "detail": detail} | count(group)
        for (phrase, detail), group in told[told["detail"] != ""].groupby(["of", "detail"], sort=False)
    ]
    return {
        "log": row(
            lines=log.lines,
            entries=len(told),
            first=first if len(told) else pd.NaT,
            last=told["at"].max() if len(told) else pd.NaT,
            late_s=(first - begin).total_seconds() if len(told) else None,
        ),
        "phrases": pd.DataFrame(found, columns=_PHRASES).sort_values(
            ["level", "n"], key=_worst_first, kind="stable", ignore_index=True
        ),
        "texts": pd.DataFrame(texts, columns=_TEXTS).sort_values(
            "n", ascending=False, kind="stable", ignore_index=True
        ),
        "logins": read_attempts(records, logins.SIGNS),
    }


def _classify_entries(records: Sequence[LogEntry], phrases: Mapping[str, Phrase], most: int) -> pd.DataFrame:
    """Return each entry's time (at), level, known phrase, and of warnings and errors `what` is counted per minute.

    `detail` is the text that is counted as one of the phrase `of`; beyond `most` texts it is `OTHER`.
    """
    longest_first, found, known = sorted(phrases, key=len, reverse=True), [], set[tuple[str, str]]()
    for record in records:
        phrase = next((p for p in longest_first if p in record.message or p in record.error), "")
        level = record.level or (phrases[phrase].level if phrase else "")
        what, key = "", ("", "")
        if level in ("WARN", "ERROR"):
            # An application may put the error behind the phrase. Its first line alone: the next ones may quote the row.
            behind = record.message.partition(phrase)[2].strip(": ").partition("\n")[0] if phrase else ""
            text = fingerprint(record.error or behind or record.message)
            what = phrase or text
            if record.error or not phrase or _SERVER_ERROR.find(behind).observation:
                key = (phrase, text) if len(known) < most or (phrase, text) in known else ("", OTHER)
                known.add(key)
        found.append((record.time, level, phrase, what, *key))
    told = pd.DataFrame(found, columns=["at", "level", "phrase", "what", "of", "detail"])
    return told.astype({"at": "datetime64[ns, UTC]"})


def _worst_first(column: pd.Series[Any]) -> pd.Series[Any]:
    if column.name == "level":
        return column.map({"ERROR": 0, "WARN": 1}).fillna(2)
    return -pd.to_numeric(column)


def _classify_trend(ages_s: pd.Series[float], covered_min: float) -> str:
    """Return the trend of the counts per whole minute."""
    ago = ages_s // 60
    counts = [int((ago == minute).sum()) for minute in reversed(range(int(covered_min)))]
    return stats.trend_kind(counts).kind


# ------------------------------------------------------------------------------------------------------------


class LogSource(rows.Row):
    """The workload, its name, and the length in minutes of the log that was requested."""

    workload: str = "notification"
    name: str = ""
    minutes: float | None = None


class LogRead(rows.Row):
    """The lines that were read, the entries with a time in the window, and the first of them."""

    lines: float | None = None
    entries: float = 0.0
    first: pd.Timestamp | None = None
    late_s: float | None = None


class PhraseCount(rows.Row):
    """The number of entries of one phrase or text, in the window and in the last moments."""

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
        """Return the recent entries; for tries, over the same time as in 6.2."""
        return self.tries_now if self.is_failed_try else self.now

    @property
    def kind(self) -> str:
        """Return the kind of its phrase."""
        return _SERVICE_LOG.find(self.phrase).kind

    @property
    def is_failed_try(self) -> bool:
        """Return whether its phrase is that of a failed try."""
        return self.kind in FAILED_TRY


@dataclass(frozen=True)
class LogSummary:
    """The totals of `log_frames`: failed tries, other errors, the most frequent one, and a closed NATS connection."""

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
        """Return the number of failed tries and errors."""
        return self.failed + self.errors

    @property
    def bad_now(self) -> float:
        """Return the number of recent failed tries and errors."""
        return self.failed_now + self.errors_now


def read_log(frames: Frames) -> LogSummary | None:
    """Return the totals of the log; None if it was not read or has no entry."""
    read = rows.first(frames.get("log"), LogRead)
    if read is None or not read.entries:
        return None
    phrases, texts = (rows.each(frames.get(name), PhraseCount) for name in ("phrases", "texts"))
    tries = [p for p in phrases if p.is_failed_try]
    bad = [p for p in phrases if p.level in ("WARN", "ERROR") and p.failure_modes and not p.is_failed_try]
    # An unknown text counts only at level ERROR; an unknown warning is shown and not counted.
    bad += [t for t in texts if not t.phrase and t.level == "ERROR"]

    def last(kind: str) -> pd.Timestamp | None:
        return max((p.last for p in phrases if p.kind == kind and p.last is not None), default=None)

    # The services write a known phrase, and the cause behind it.
    causes = [t.last for t in texts if t.is_failed_try and t.last and _SERVICE_LOG.says("closed", t.detail)]
    closed, started = max([at for at in (last("closed"), *causes) if at is not None], default=None), last("ensured")
    disconnected = closed is not None and (started is None or started <= closed)
    # Among current phrases those with a server's words come first: they name the cause.
    named = {t.phrase for t in texts if t.now and _SERVER_ERROR.find(t.detail).observation}

    def rank(c: PhraseCount) -> tuple[bool, bool, float, float]:
        return disconnected and c.kind == "closed", bool(c.recent) and c.phrase in named, c.recent, c.n

    top = max([*tries, *bad], key=rank, default=PhraseCount())
    cause = next((t.detail for t in texts if top.phrase and t.phrase == top.phrase), "")  # the most frequent first
    cause = cause.removeprefix("org.postgresql.util.PSQLException: ")
    return LogSummary(
        failed=sum(t.n for t in tries),
        failed_now=sum(t.recent for t in tries),
        sent_now=sum(p.tries_now for p in phrases if p.kind == "sent"),
        errors=sum(c.n for c in bad),
        errors_now=sum(c.recent for c in bad),
        top=f"{top.phrase}: {cause[:120]}" if cause else top.phrase or top.detail,
        since=top.since,
        closed=disconnected,
    )


def judge_exceptions(frames: Frames, given: JudgeInput) -> Finding:
    """5.1.1: judge how often the process fails, since when and with which error, and whether a restart would help."""
    frames = _without_ended(frames, given)
    about, failed = rows.one(frames.get("about"), LogSource), failures(frames)
    part, name = PART.get(about.workload, "delivery"), about.name or about.workload
    log, read = read_log(frames), rows.first(frames.get("log"), LogRead)
    tries = "tries" not in failed and len(frames.get(recovery.TRIED[part][0], ())) > 0
    if log is None and not tries:
        nothing = SourceError("workloads", Reason.NO_DATA, "no line in the log, and no tries", "")
        raise failed.get("log") or failed.get("tries") or nothing

    texts, values, notes = [], [], []
    closed, unread = log is not None and log.closed, None if read else failed.get("log")
    states = logins.judge(frames, given, about.workload)
    turned_away = logins.refused_servers(states)
    from_here = failed.get("tries")
    # A service may have a wrong address: what counts is that nobody reaches the database.
    state, cut_off = states[logins.Server.DATABASE], _find_cut_off(frames)
    away = bool(from_here and from_here.reason is Reason.UNREACHABLE) and (logins.is_away(state) or bool(cut_off))
    broker_away = _is_broker_away(failed.get("at_work"), states[logins.Server.BROKER], closed=closed)
    if log is not None and read is not None:
        facts = {"name": name, "what": log.top, **vars(log), "minutes": about.minutes}
        facts |= {"lines": read.lines, "now": log.bad_now}
        if not log.bad:
            texts.append(say("exceptions.quiet", **facts))
        else:
            texts.append(say("exceptions.now" if log.bad_now else "exceptions.over", **facts))
        values += _log_values(log, part, given)
        if read.late_s is not None and read.late_s > given.number("log.late"):
            notes.append(say("exceptions.late", first=read.first))
    else:
        detail = failed["log"].detail if "log" in failed else None
        headline = "exceptions.silent" if read else "exceptions.unread"
        texts.append(say(headline, name=name, detail=detail, minutes=about.minutes))
        notes.append(say("exceptions.tables_only"))
    failing = Status.OK
    at_least = Status.UNKNOWN if unread else Status.OK
    at_least = Status.CRITICAL if closed or turned_away or away or broker_away else at_least
    silent = False
    if tries:
        rate = recovery.error_rate(frames, given, part)
        texts.append(rate.text)
        values += rate.values
        notes.append(say("recovery.errors_note"))
        at_least = worst([at_least, rate.status])
        failing = rate.status if log is not None and log.failed_now else Status.OK
        silent = rate.unresolved
    else:
        notes.append(say("exceptions.log_only", detail=failed["tries"].detail if "tries" in failed else None))
    values += _read_prometheus_share(frames, given, alone=not tries)

    failing = worst([failing, *(v.status for v in values if v.status and v.threshold is given.limits["errors.rate"])])
    sends = _read_send_errors(frames) if part == "delivery" and failing is Status.CRITICAL else ""
    if sends == "sends.rejected" and log is not None and _has_sent_well(frames, given, until=log.since):
        sends = "sends.rejected_since"
    restart = (closed and not broker_away) or sends == "sends.exhausted"
    modes = _find_modes(frames, given, failing, closed=closed)
    useless = [m for m, told in modes.items() if told.current and not _is_cured_by_restart(given, m, about.workload)]
    if closed and not broker_away:
        notes.append(say("exceptions.closed"))
    elif useless and not restart:
        notes.append(say("exceptions.no_cure", modes=", ".join(useless)))
    observed = [FAILED_TRY_OBSERVATIONS[part, failing]] if (part, failing) in FAILED_TRY_OBSERVATIONS else []
    observed += [] if log is None else ["exceptions.log_read", *_read_server_errors(frames, given, silent=silent)]
    observed += [] if log is None else _find_trying_loops(frames, given, about.workload)
    observed += filter(None, [sends])
    if database := turned_away.get(logins.Server.DATABASE):
        notes.append(say("exceptions.database_refuses", name=name, detail=database.why))
        observed.append("exceptions.database_full" if database.for_want_of_a_slot else "exceptions.database_refuses")
    if away:
        notes.append(say("exceptions.database_away", name=name, detail=state.why or cut_off))
        observed.append("exceptions.database_away")
    if broker_away:
        notes.append(say("exceptions.broker_away", name=name))
        observed.append("exceptions.broker_away")
    if broker := turned_away.get(logins.Server.BROKER):
        notes.append(say("exceptions.broker_refuses", name=name, detail=broker.why))
        observed.append("exceptions.broker_refuses")
    if differs := rows.value(frames.get("own"), "differs", str):
        texts, notes = [say("exceptions.other_server", name=name, variables=differs)], [*texts, *notes]
        at_least = worst([at_least, Status.WARNING])
        observed.append("exceptions.other_server")
    return judged(
        say("recovery.both", a=texts[0], b=texts[1]) if len(texts) == 2 else texts[0],
        values,
        at_least=at_least,
        reason=Reason.NOT_CONFIGURED if unread and unread.code == "not_installed" else unread and unread.reason,
        notes=tuple(notes),
        signals=(
            *(given.catalog.phrase_evidence(told.phrase, mode, told.class_) for mode, told in modes.items()),
            *(signal for observation in observed for signal in given.evidence(observation)),
        ),
        proposals=_propose_remedies(given, about.workload, turned_away, restart=restart, unread=log is None),
        next_sections=("5.2",) if part == "delivery" and failing is not Status.OK else (),
        show=tuple(f for f in ("phrases", "texts") if f in frames and not frames[f].empty),
    )


def _without_ended(frames: Frames, given: JudgeInput) -> Frames:
    """Return the frames without current errors that have not recurred for a while although work was done since."""
    done = rows.one(frames.get("done"), logins.LastDone).at
    at = _looked_at(frames, given)
    if done is None:
        return frames

    def settle(found: pd.DataFrame) -> pd.DataFrame:
        last = pd.to_datetime(found["last"], utc=True)
        quiet_s = (at - last).dt.total_seconds()
        return found.assign(now=found["now"].mask((last < done) & (quiet_s > given.number("log.quiet")), 0))

    names = [name for name in ("phrases", "texts") if {"last", "now"} <= {*frames.get(name, ())}]
    return frames | {name: settle(frames[name]) for name in names}


def _read_server_errors(frames: Frames, given: JudgeInput, *, silent: bool) -> list[str]:
    """Return the observation of a server's words in most current errors, unless messages are handled since.

    Texts of one meaning count together; a broken connection counts once where the loop is `silent` since.
    """
    least = given.number("tries.pattern")
    handled = {p.kind: p.last for p in rows.each(frames.get("phrases"), PhraseCount)}

    def goes_on(error: PhraseCount) -> bool:
        since = handled.get({"event_refused": "event_accepted", "match_refused": "match_accepted"}.get(error.kind, ""))
        return since is None or error.last is None or since <= error.last

    found: dict[str, float] = defaultdict(float)
    for text in rows.each(frames.get("texts"), PhraseCount):
        if text.now and goes_on(text):
            error = _SERVER_ERROR.find(text.detail)
            # A pool waits long for a new connection before it says more.
            found[error.observation] += max(text.now, least) if silent and error.kind == "lost" else text.now
    most = max((name for name in found if name and found[name] >= least), key=found.__getitem__, default="")
    return [most] if most else []


def _is_broker_away(from_here: SourceError | None, state: logins.LoginState, *, closed: bool) -> bool:
    """Return whether the broker answers neither the runbook nor the service, which may have given up."""
    unreached = from_here is not None and (from_here.source, from_here.reason) == ("jetstream", Reason.UNREACHABLE)
    return unreached and (closed or logins.is_away(state))


def _find_trying_loops(frames: Frames, given: JudgeInput, workload: str) -> list[str]:
    """Return the observations of the loops whose last failed try is younger than the critical silence of a loop."""
    at, phrases = _looked_at(frames, given), rows.each(frames.get("phrases"), PhraseCount)

    def tries(kinds: Collection[str], limit: str) -> bool:
        last = max((p.last for p in phrases if p.kind in kinds and p.last is not None), default=None)
        return last is not None and not given.limits[limit].reached((at - last).total_seconds(), Status.CRITICAL)

    return [name for name, (of, kinds, limit) in TRYING_LOOPS.items() if of == workload and tries(kinds, limit)]


def _looked_at(frames: Frames, given: JudgeInput) -> pd.Timestamp:
    return rows.value(frames.get("looked"), "at", pd.Timestamp) or pd.Timestamp(given.as_of)


def _find_cut_off(frames: Frames) -> str:
    """Return a current error in which the database says that it ends or is not ready; "" if there is none."""
    current = (t.detail for t in rows.each(frames.get("texts"), PhraseCount) if t.now)
    return next((text for text in current if _DATABASE_END.says("cut_off", text)), "")


def _read_send_errors(frames: Frames) -> str:
    """Return the observation of what the texts of current failed sends say most often; "" for none."""
    found = Counter[str]()
    for text in rows.each(frames.get("texts"), PhraseCount):
        if text.is_failed_try and text.now:
            found[errors.classify_send(text.detail)] += int(text.now)
    return max(found, key=found.__getitem__, default="")


def _has_sent_well(frames: Frames, given: JudgeInput, until: pd.Timestamp | None) -> bool:
    """Return whether the newest instance has sent after its start, and nothing since its tries began to fail."""
    started = rows.one(frames.get("instances"), logins.Instances).started
    sent = rows.one(frames.get("done"), logins.LastDone).sent
    if started is None or sent is None or until is None:
        return False
    return started < sent < until + pd.Timedelta(seconds=given.number("log.quiet"))


def _propose_remedies(
    given: JudgeInput, workload: str, turned_away: Collection[logins.Server], *, restart: bool, unread: bool
) -> tuple[Proposal, ...]:
    """Propose a restart if only that helps; a read-only check instead while a server rejects the service's login."""
    if turned_away:
        checks = {
            logins.Server.DATABASE: remedies.look_at_role(given),
            logins.Server.BROKER: remedies.check_nats_credentials(given),
        }
        return tuple(checks[server] for server in turned_away)
    if restart:
        return (proposals.restart(given, workload),)
    return (proposals.logs(given, workload),) if unread else ()


def _log_values(log: LogSummary, part: str, given: JudgeInput) -> list[Value]:
    values = [
        Value("log.failed_tries", log.failed, "tries"),
        replace(given.limits.value("errors.logged", log.errors_now), name="log.errors"),
    ]
    if part == "delivery" and log.failed_now + log.sent_now:  # of publishing, only failures are logged
        share = 100 * log.failed_now / (log.failed_now + log.sent_now)
        values.append(replace(given.limits.value("errors.rate", share), name="log.failed_share"))
    return values


def _read_prometheus_share(frames: Frames, given: JudgeInput, *, alone: bool) -> list[Value]:
    """Return the share of failed tries from Prometheus; it decides the status only if `alone`, without the tables."""
    results = table(frames, "results", "result", "value")
    by = {str(k): float(v) for k, v in zip(results["result"], pd.to_numeric(results["value"]), strict=True)}
    bad, total = by.get("failed", 0.0) + by.get("retry_scheduled", 0.0), sum(by.values())
    if not total > 0:
        return []
    value = replace(given.limits.value("errors.rate", 100 * bad / total), name="prometheus.failed_share")
    return [value if alone else replace(value, threshold=None)]


class PhraseEvidence(NamedTuple):
    """The strongest evidence of the log for a failure mode: a connection given up, a current entry, a past one."""

    class_: Literal["hint", "sign"]
    current: bool
    phrase: str


def _find_modes(frames: Frames, given: JudgeInput, failing: Status, *, closed: bool) -> dict[str, PhraseEvidence]:
    """Return the failure modes that the log's phrases tell; retries tell theirs while tries are `failing`."""
    strongest: dict[str, PhraseEvidence] = {}
    phrases = rows.each(frames.get("phrases"), PhraseCount)
    if closed and not any(p.kind == "closed" for p in phrases):
        phrases.append(PhraseCount(CLOSED))
    for found in phrases:
        gives_up = found.kind == "closed" and closed
        # Whether tries are retried now is told by the share of failed tries.
        current = failing is not Status.OK if found.kind == "retried" else gives_up or found.now > 0
        told = PhraseEvidence("sign" if gives_up else "hint", current, found.phrase)
        known = given.catalog.phrases.get(found.phrase)
        for mode in known.failure_modes if known and (current or found.kind != "retried") else ():
            strongest[mode] = max(strongest.get(mode, told), told, key=lambda e: (e.class_ == "sign", e.current))
    return strongest


def _is_cured_by_restart(given: JudgeInput, mode: str, workload: str) -> bool:
    """Return whether a restart of this process is a remedy, without another restart before the services."""
    restarts = [r for r in given.catalog.failure_modes[mode].remedies if r.startswith("restart_")]
    return f"restart_{workload}" in restarts and restarts[0] in {f"restart_{service}" for service in PART}


CHECKS = tuple(
    Check(step, collect, judge_exceptions, optional=("results", *logins.PARTS))
    for step, collect in (
        ("4.5.1", collect_entitlement),
        ("4.5.2", collect_notification),
        ("5.1.1", collect_exceptions),
    )
)
