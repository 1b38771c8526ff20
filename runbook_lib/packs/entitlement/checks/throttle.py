"""Section 5.2: the claim rate that the settings of delivery worker and relay allow, and the effect of others."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.actions import action, proposals
from runbook_lib.book import messages
from runbook_lib.book.catalog import SettingValue, Slo
from runbook_lib.checks.check import Check, failures
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import FrameCollector, OutcomeRow, preconditions_hold
from runbook_lib.diagnosis import history
from runbook_lib.model import rows
from runbook_lib.model.finding import Finding, Frames, Hop, Proposal, Reason, Status, Text, Value, judged, say, worst
from runbook_lib.model.frames import row, table
from runbook_lib.packs.entitlement.actions import change, remedies
from runbook_lib.packs.entitlement.actions.restart import check_durable
from runbook_lib.packs.entitlement.checks import delivery
from runbook_lib.packs.entitlement.checks.series import ask_per_minute
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.packs.entitlement.rows import Notifications, Outbox, QueueCounts
from runbook_lib.view import charts

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context

#: Observations of a receiver that justify switching delivery off.
REFUSED = ("delivery.refused", "delivery.times_out")


@dataclass(frozen=True)
class ThrottledWorker:
    """One side of the pipeline that can be slowed down."""

    name: str
    hop: str
    queue: type[QueueCounts]
    held: str
    late: str
    #: Objectives in seconds whose time a longer pause uses up, and those on the number of rows.
    objectives: tuple[str, ...]


DELIVERY = ThrottledWorker(
    "delivery", "delivery_worker", Notifications, "throttle.delivery_held", "backlog.oldest_due", ("NOTI-B", "NOTI-C"),
)  # fmt: skip
RELAY = ThrottledWorker(
    "relay", "relay", Outbox, "throttle.relay_held", "outbox.oldest_due", ("ENT-C", "ENT-D", "NOTI-B"),
)  # fmt: skip


class SettingRow(rows.Row):
    """A setting of the workload: its text there, its value, and the requested value."""

    setting: str = ""
    variable: str = ""
    written: str | None = None
    default: Any = None
    now: Any = None
    asked: Any = None
    unit: str = ""

    @property
    def kind(self) -> str:
        """Return the name of the setting without its side."""
        return self.setting.partition(".")[2]


class ForbiddenVariable(rows.Row):
    """A variable that is set although it must not be."""

    variable: str = ""
    written: str = ""
    why: str = ""


# Collecting -------------------------------------------------------------------------------------------------


def collect(rb: Context, side: ThrottledWorker) -> Frames:
    """Query the active settings, the flow of the queue, and the outcome of a change of this run.

    Frames: settings (fields of `SettingRow`), workload (replicas: number), never_set (of `Never`), durable (ok: flag;
    why_en, why_ja: text), look (at: time of the sample), did (since: time of this run's change), those of
    `action.frames_of`, and of the side's queries batches, backlog, came, gone; of delivery those of `delivery.collect`.
    """
    which, topic = change.SIDES[side.name]
    parts, program = FrameCollector(), getattr(facts_of(rb).workloads, which)
    environment: dict[str, str] | None = None
    with parts.part("workload") as found:
        environment = rb.workloads.environment(program)
        found["workload"] = row(replicas=rb.workloads.replicas(program))
    parts.answers["settings"] = _read_settings(rb, side, environment)
    if which == "notification" and environment is not None:
        found = parts.answers
        never = rb.catalog.forbidden_variables.items()
        found["never_set"] = rows.frame(
            (ForbiddenVariable(name, environment[name], why) for name, why in never if name in environment),
            ForbiddenVariable,
        )
        agrees = check_durable(rb, environment)
        found["durable"] = row(
            ok=agrees.ok, **{f"why_{lang}": messages.text(agrees.text, lang) for lang in messages.LANGUAGES}
        )
    outcome = rb.outcomes.get("set")
    if outcome is not None and any(change.side_of(n) == side.name for n in outcome.what["settings"]):
        parts.answers |= action.frames_of(outcome) | {"did": row(since=outcome.did.get("since"))}
    now = rb.present()
    with now.snapshot() as db:
        parts.answers["look"] = row(at=now.as_of)
        parts.answers |= delivery.collect(rb, db) if side is DELIVERY else {"backlog": db.ask("outbox/backlog")}
        parts.answers["batches"] = db.ask(f"{topic}/batches")
        ask_per_minute(now, db, parts, topic, came="arrived", gone="n")
    return parts.frames()


def _read_settings(rb: Context, side: ThrottledWorker, environment: dict[str, str] | None) -> pd.DataFrame:
    asked, own = change.requested_settings(rb.parameters, side.name), environment or {}
    now = {} if environment is None else change.current_settings(rb.catalog.settings, side.name, environment)
    found = [
        SettingRow(name, s.variable, own.get(s.variable), s.standard, now.get(name), asked.get(name), s.unit)
        for name, s in rb.catalog.settings.items()
        if change.side_of(name) == side.name
    ]
    return rows.frame(found, SettingRow).astype(object)


# Judging ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pace:
    """The settings of a worker, and the rate that they allow; None for unknown values."""

    batch: float | None
    pause_s: float | None
    enabled: bool | None
    per_row_s: float
    pods: int

    @classmethod
    def of(cls, settings: dict[str, Any], per_row_s: float, pods: int) -> Pace:
        """Return the pace for settings by their kind; a text is a value that the application cannot parse."""
        batch, pause, enabled = (
            None if isinstance(settings[kind], str) else settings[kind]
            for kind in ("batch_size", "poll_interval", "enabled")
        )
        return cls(batch, pause, enabled, per_row_s, pods)

    @property
    def cycle_s(self) -> float | None:
        """Return the seconds from one claim of a full batch to the next: pause and work."""
        if self.batch is None or self.pause_s is None:
            return None
        return self.pause_s + self.batch * self.per_row_s

    @property
    def allowed(self) -> float | None:
        """Return the largest number of rows per minute."""
        if self.enabled is False:
            return 0.0
        if self.batch is None or not self.cycle_s or self.enabled is None:
            return None
        return self.pods * 60 * self.batch / self.cycle_s


@dataclass(frozen=True)
class Flow:
    """The rows that arrive and leave per minute, and the rows that wait."""

    came: float | None
    gone: float | None
    due: float
    oldest_s: float
    waiting: float

    def net(self, pace: Pace) -> float | None:
        """Return the growth of the backlog at this pace, in rows per minute; negative if it shrinks."""
        return None if pace.allowed is None or self.came is None else self.came - pace.allowed

    def growth(self, pace: Pace) -> float | None:
        """Return `net`, but 0 for a backlog below one batch, which does not shrink further."""
        net = self.net(pace)
        small = net is not None and net <= 0 and pace.batch is not None and self.due <= pace.batch
        return 0.0 if small else net

    def empty_in(self, pace: Pace) -> float | None:
        """Return the minutes until the backlog is empty; None if it does not shrink."""
        net = self.net(pace)
        return self.due / -net if net is not None and net < 0 else None

    def late_in(self, pace: Pace, objective: Slo) -> float | None:
        """Return the minutes until the backlog breaks an objective; None if it will not, 0 if it is broken."""
        net, allowed = self.net(pace), pace.allowed
        if net is None or allowed is None:
            return None
        if objective.unit == "rows":
            room = objective.number - self.due
            return max(room, 0.0) / net if net > 0 else 0.0 if room <= 0 else None
        if pace.cycle_s is not None and pace.cycle_s >= objective.number and pace.enabled:
            return 0.0
        if net <= 0:
            return None
        if allowed == 0:
            return max(objective.number - self.oldest_s, 0.0) / 60
        return max(objective.number * allowed / 60 - self.due, 0.0) / net


@dataclass(frozen=True)
class ThrottleReading:
    """The values that the judge reads from the frames of one side; `then` is the pace with the `planned` settings."""

    now: Pace
    then: Pace
    flow: Flow
    asked: dict[str, SettingValue]
    planned: dict[str, SettingValue]
    changed: dict[str, tuple[SettingValue, SettingValue]]
    timing: str
    replicas: int | None
    outcome: OutcomeRow
    durable: OutcomeRow
    since: pd.Timestamp | None
    at: pd.Timestamp

    @property
    def known(self) -> bool:
        """Return whether the active settings are known."""
        return self.now.batch is not None and self.now.pause_s is not None and self.now.enabled is not None


def read(frames: Frames, given: JudgeInput, side: ThrottledWorker) -> ThrottleReading:
    """Read the settings, the pace that they allow, and the flow."""
    settings = {s.kind: s for s in rows.each(frames.get("settings"), SettingRow)}
    now = {kind: settings[kind].now if kind in settings else None for kind in change.KINDS}
    asked = {s.setting: s.asked for s in settings.values() if s.asked is not None}
    changed = {s.setting: (s.now, s.default) for s in settings.values() if s.now is not None and s.now != s.default}
    replicas = rows.value(frames.get("workload"), "replicas", int)
    pods = max(replicas or 1, 1)  # if the number of pods is unknown, the pace of one
    pace = Pace.of(now, 0.0, pods)
    per_row, timing = _measure_row_time(table(frames, "batches", "n", "exact_s", "cycle_s"), given, pace)
    # An active change would be undone.
    planned = asked or {name: default for name, (_, default) in changed.items()}
    if not planned and pace.batch is not None and pace.pause_s is not None:
        planned = remedies.halved_rate(given, side.name, pace.batch, pace.pause_s)
    then = {kind: planned.get(f"{side.name}.{kind}", now[kind]) for kind in change.KINDS}
    at = rows.value(frames.get("look"), "at", pd.Timestamp) or given.as_of
    return ThrottleReading(
        now=replace(pace, per_row_s=per_row),
        then=Pace.of(then, per_row, pods),
        flow=_read_flow(frames, given, side, at),
        asked=asked,
        planned=planned,
        changed=changed,
        timing=timing,
        replicas=replicas,
        # Without these frames, this run changed nothing and found no difference.
        outcome=rows.first(frames.get("outcome"), OutcomeRow) or OutcomeRow(),
        durable=rows.first(frames.get("durable"), OutcomeRow) or OutcomeRow(),
        since=rows.value(frames.get("did"), "since", pd.Timestamp),
        at=at,
    )


def _measure_row_time(batches: pd.DataFrame, given: JudgeInput, pace: Pace) -> tuple[float, str]:
    """Return the seconds of work per row, and the text that tells how they are known (if they are not, 0)."""
    numbers = batches.head(int(given.number("throttle.batches"))).apply(pd.to_numeric, errors="coerce")
    exact = numbers[numbers["exact_s"].notna() & (numbers["n"] > 0)]
    if len(exact):
        return float(exact["exact_s"].clip(lower=0).sum() / exact["n"].sum()), "throttle.timed_exact"
    if pace.batch and pace.pause_s is not None:
        # After a full batch the next one follows at once: the cycle without the pause is work.
        full = numbers[(numbers["n"] >= pace.batch) & (numbers["cycle_s"] < 60)]
        if len(full):
            return float(
                ((full["cycle_s"] - pace.pause_s).clip(lower=0) / full["n"]).median()
            ), "throttle.timed_estimated"
    return 0.0, "throttle.timed_unknown"


def _read_flow(frames: Frames, given: JudgeInput, side: ThrottledWorker, at: pd.Timestamp) -> Flow:
    queue = rows.one(frames.get("backlog"), side.queue)
    last, sent = frames.get("backlog"), "published_1m"
    if side is DELIVERY:
        last, sent = frames.get("activity", last), "sent_1m"
    # The first minute of the window was read in part.
    minutes = min(int(given.number("throttle.rate")), max(int(given.window_minutes) - 1, 1))
    until = at.floor("min")

    def per_minute(name: str, column: str) -> float | None:
        """Return rows per minute over the last full minutes; over the last one alone if those were not counted."""
        if name not in frames:
            return rows.value(last, column, float)
        counts = history.counts(frames[name])
        return (
            float(counts[(counts.index >= until - minutes * history.MINUTE) & (counts.index < until)].sum()) / minutes
        )

    return Flow(
        came=per_minute("came", "arrived_1m"),
        gone=per_minute("gone", sent),
        due=queue.ready,
        oldest_s=queue.oldest_s,
        waiting=queue.waiting_retry,
    )


def judge(frames: Frames, given: JudgeInput, side: ThrottledWorker) -> Finding:
    """Judge a side: OK with default settings, WARNING with an active change, CRITICAL after a failed change."""
    seen = read(frames, given, side)
    held, result = seen.now.enabled is False, seen.outcome.result
    several = side is DELIVERY and seen.replicas is not None and seen.replicas > 1
    done = result == "done"
    failed = result == "failed" or (done and not seen.outcome.verified)
    refused = result == "refused" or (result == "dry" and bool(seen.asked) and not preconditions_hold(frames))
    unread, uncounted = failures(frames).get("workload"), seen.flow.came is None and not (done or failed)
    unfit = not seen.durable.ok or several or (not seen.known and not unread)
    return judged(
        _choose_headline(seen, failed=failed, refused=refused, side=side),
        _build_values(seen, given, side),
        at_least=worst([
            Status.CRITICAL if failed else Status.OK,
            Status.WARNING if refused or held or seen.changed or unfit else Status.OK,
            Status.UNKNOWN if unread or uncounted else Status.OK,
        ]),
        reason=unread.reason if unread else Reason.NO_DATA if uncounted else None,
        notes=tuple(_build_notes(frames, given, seen, side)),
        signals=given.evidence(side.held) if held and seen.flow.due else (),
        hops=(
            Hop(
                side.hop, rate_in=seen.flow.came, rate_out=seen.flow.gone, waiting=seen.flow.due,
                oldest_s=seen.flow.oldest_s, alive=say("alive.held") if held else None,
                late=bool(seen.flow.due) and given.limits[side.late].status(seen.flow.oldest_s) is not Status.OK,
            ),
        ),
        proposals=tuple(_build_proposals(frames, given, seen, side, done=done and not failed, failed=failed)),
        next_sections=("5.1",) if failed else ("6",) if done else (),
        frames={"plan": _build_plan(seen, given, side)} if seen.known or seen.now.allowed is not None else {},
        show=(*(("changes",) if done or failed else ()), *(("plan",) if seen.known else ()), "settings"),
    )  # fmt: skip


def _choose_headline(seen: ThrottleReading, *, failed: bool, refused: bool, side: ThrottledWorker) -> Text:
    flow, who = seen.flow, say(f"throttle.who_{side.name}")
    facts: dict[str, Any] = {
        "who": who,
        "allowed": seen.now.allowed,
        "came": flow.came,
        "gone": flow.gone,
        "due": flow.due,
        "oldest": flow.oldest_s,
        "net": flow.net(seen.now),
        "settings": ", ".join(
            f"{name} {_format_value(now)} ({_format_value(usual)})" for name, (now, usual) in seen.changed.items()
        ),
    }
    outcome = seen.outcome
    if failed:
        if outcome.result == "failed":
            return say("throttle.failed", **facts, why=outcome.why)
        return say("throttle.not_verified", **facts, why=outcome.effect)
    if refused:
        return say("throttle.refused", **facts, why=outcome.why)
    if outcome.result == "done":
        return say("throttle.done", **facts, effect=outcome.effect)
    if not seen.known:
        return say("throttle.settings_unseen", **facts)
    if seen.now.enabled is False:
        return say("throttle.held", **facts)
    if flow.came is None:
        return say("throttle.arrivals_unseen", **facts)
    if facts["net"] is not None and facts["net"] > 0:
        return say("throttle.in_force_below" if seen.changed else "throttle.below", **facts)
    return say("throttle.in_force" if seen.changed else "throttle.room", **facts)


def _build_values(seen: ThrottleReading, given: JudgeInput, side: ThrottledWorker) -> list[Value]:
    now, flow, limits = seen.now, seen.flow, given.limits
    values = [
        Value(f"{side.name}.batch_size", now.batch, "rows"),
        Value(f"{side.name}.poll_interval", now.pause_s, "s"),
        Value(f"{side.name}.enabled", None if now.enabled is None else str(now.enabled).lower()),
        Value(f"{side.name}.allowed", _round(now.allowed), "1/min"),
        Value(f"{side.name}.arriving", _round(flow.came), "1/min"),
        Value(f"{side.name}.observed", _round(flow.gone), "1/min"),
        Value(f"{side.name}.backlog", flow.due, "rows"),
    ]
    if now.allowed is not None and flow.came:
        values.append(limits.value("throttle.headroom", round(now.allowed / flow.came, 3)))
    return values


def _build_plan(seen: ThrottleReading, given: JudgeInput, side: ThrottledWorker) -> pd.DataFrame:
    """Return the current settings beside the requested or proposed ones, with the effect of each."""
    flow = seen.flow
    facts: list[tuple[str, Callable[[Pace], Any], str]] = [
        ("batch size", lambda pace: pace.batch, "rows"),
        ("poll interval", lambda pace: pace.pause_s, "s"),
        ("enabled", lambda pace: _format_value(pace.enabled), ""),
        ("rate allowed", lambda pace: pace.allowed, "1/min"),
        ("rate arriving", lambda pace: flow.came, "1/min"),
        ("backlog", lambda pace: flow.due, "rows"),
        ("backlog grows by", flow.growth, "1/min"),
        ("backlog empty in", flow.empty_in, "min"),
    ]
    for objective in filter(None, map(given.slos.get, side.objectives)):
        label = f"{objective.id} {objective.objective}:"
        if objective.unit != "rows":
            facts.append((f"{label} pause and batch spend", lambda pace: pace.cycle_s, "s"))
        facts.append((f"{label} broken in", partial(flow.late_in, objective=objective), "min"))
    found = [(what, *(_round(fact(pace), 2) for pace in (seen.now, seen.then)), unit) for what, fact, unit in facts]
    return pd.DataFrame(found, columns=["what", "now", "asked" if seen.asked else "proposed", "unit"]).astype(object)


def _build_notes(frames: Frames, given: JudgeInput, seen: ThrottleReading, side: ThrottledWorker) -> list[Text]:
    failed = failures(frames)
    notes = []
    if "workload" in failed:
        notes.append(say("throttle.no_tool", detail=failed["workload"].detail))
    elif not seen.known:
        notes.append(say("throttle.not_understood"))
    if seen.known:
        notes += _note_prediction(given, seen, side)
        if seen.changed:
            undo = proposals.undo_settings(given, seen.changed).offered
            notes.append(say("throttle.undo", command=undo))
        notes.append(say(seen.timing, ms=1000 * seen.now.per_row_s))
    if seen.flow.waiting:
        notes.append(say("throttle.retries", n=seen.flow.waiting))
    if seen.replicas is not None and seen.replicas > 1:
        notes.append(say("throttle.two_replicas" if side is DELIVERY else "throttle.relays", n=seen.replicas))
    if not seen.durable.ok:
        notes.append(say("throttle.would_not_start", why=seen.durable.why))
    for never in rows.each(frames.get("never_set"), ForbiddenVariable):
        notes.append(say("throttle.never_set", variable=never.variable, written=never.written, why=never.why))
    if "came" not in frames or "gone" not in frames:
        notes.append(say("throttle.last_minute_only"))
    if (rate := _measure_rate(frames, seen)) is not None:
        notes.append(say("throttle.measured", rate=rate))
    return notes


def _measure_rate(frames: Frames, seen: ThrottleReading) -> float | None:
    """Return the rows per minute that were claimed since the change."""
    return None if seen.since is None else change.rate_of(change.claims_since(frames, seen.since))


def _note_prediction(given: JudgeInput, seen: ThrottleReading, side: ThrottledWorker) -> list[Text]:
    """Note the predicted effect of the requested or proposed values; the plan has more of it."""
    flow, then = seen.flow, seen.then
    net = flow.net(then)
    if not seen.planned or net is None:
        return []
    facts: dict[str, Any] = {
        "settings": ", ".join(f"{name} {_format_value(value)}" for name, value in seen.planned.items()),
        "allowed": then.allowed,
        "came": flow.came,
        "net": abs(net),
    }
    late = {slo: flow.late_in(then, given.slos[slo]) for slo in side.objectives if slo in given.slos}
    minutes, first = min(((t, slo) for slo, t in late.items() if t is not None), default=(None, None))
    if net < 0 and then.batch is not None and flow.due > then.batch:
        return [say("throttle.shrinks", **facts, due=flow.due, minutes=flow.empty_in(then))]
    return [say("throttle.grows" if net > 0 else "throttle.keeps_up", **facts, slo=first, minutes=minutes)]


def _build_proposals(
    frames: Frames, given: JudgeInput, seen: ThrottleReading, side: ThrottledWorker, *, done: bool, failed: bool
) -> list[Proposal]:
    """Propose to undo an active change, to run the requested one, or to throttle for a failing receiver or broker."""
    which = change.SIDES[side.name][0]
    found = []
    if failed:
        found.append(proposals.logs(given, which))
    known = given.catalog.settings
    if seen.asked and not (done or failed) and not any(known[name].problem(v) for name, v in seen.asked.items()):
        found.append(proposals.settings("change_settings", given, seen.asked))
    if seen.now.enabled is False and side is DELIVERY:
        found.append(remedies.resume_delivery(given))
    if seen.changed and not done:  # a change of this run is not undone at once: a note has the command
        found.append(proposals.undo_settings(given, seen.changed))
    if seen.changed or seen.asked:
        return found
    refusing = delivery.read_delivery(frames).refusing(given) if side is DELIVERY else ""
    outbox = rows.one(frames.get("backlog"), Outbox) if side is RELAY else Outbox()
    relay_fails = outbox.tried >= given.number("tries.pattern") and outbox.waiting_retry > 0
    if refusing in delivery.RELIEVED_BY_THROTTLE or relay_fails:
        batch, pause = (
            int(seen.now.batch or facts_of(given).batch_size),
            seen.now.pause_s or facts_of(given).poll_interval_s,
        )
        values = remedies.halved_rate(given, side.name, batch, pause)
        found.append(proposals.settings(f"throttle_{side.name}", given, values))
        if refusing in REFUSED:
            found.append(remedies.hold_delivery(given))
    return found


def _round(value: Any, digits: int = 1) -> Any:
    return round(value, digits) if isinstance(value, float) else value


def _format_value(value: Any) -> str:
    return "?" if value is None else str(value).lower() if isinstance(value, bool) else f"{value:g}"


# Chart ------------------------------------------------------------------------------------------------------


def chart(frames: Frames, given: JudgeInput, side: ThrottledWorker) -> charts.Chart | None:
    """Return the chart of the rows per minute that arrived and were claimed, and of the rates that settings allow."""
    if "backlog" not in frames or not {"came", "gone"} & frames.keys():
        return None
    seen = read(frames, given, side)
    minutes, since, measured = min(given.window_minutes, 60), seen.since, _measure_rate(frames, seen)
    starts = pd.date_range(end=seen.at.floor("min") - history.MINUTE, periods=minutes, freq="min")
    came, gone = (history.counts(frames.get(name)).reindex(starts, fill_value=0.0) for name in ("came", "gone"))
    title, done = {"delivery": ("Delivery worker", "sent"), "relay": ("Outbox relay", "published")}[side.name]
    series = [
        charts.Series("arriving", charts.Role.IN, starts + history.MINUTE, came),
        charts.Series(f"{done} (observed)", charts.Role.OUT, starts + history.MINUTE, gone),
    ]
    if measured is not None:
        label = f"measured since {measured:,.0f} rows / min"
        series.append(charts.Series(label, charts.Role.CRITICAL, [since, seen.at], [measured, measured]))
    highest, limits = max(float(came.max()), float(gone.max()), 1.0), []
    then = None if seen.then == seen.now else seen.then.allowed
    for rate, name, role, dash in (
        (seen.now.allowed, "now", charts.Role.LEVEL, "-"),
        (then, "as asked" if seen.asked else "as proposed", charts.Role.WARNING, ":"),
    ):
        if rate is not None:
            above = rate > 4 * highest  # its line would flatten the other lines
            label = f"allowed {name} {rate:,.0f} rows / min{' (above the scale)' if above else ''}"
            limits.append(charts.Line(math.nan if above else rate, label, role, dash))
            highest = highest if above else max(highest, rate)
    return charts.Chart(
        f"{title}: rows arriving, claimed, and allowed",
        "rows / min",
        series,
        limits,
        moments=[charts.Line(since, "changed")] if since is not None else (),
        alt=say(
            "throttle.alt", who=say(f"throttle.who_{side.name}"), came=seen.flow.came, gone=seen.flow.gone,
            allowed=seen.now.allowed, then=seen.then.allowed, minutes=minutes,
        ),
        caption=(say("throttle.caption"),),
    )  # fmt: skip


CHECKS: tuple[Check, ...] = tuple(
    Check(
        step, partial(collect, side=side), partial(judge, side=side), (partial(chart, side=side),), needs=("backlog",)
    )
    for step, side in (("5.2.1", DELIVERY), ("5.2.2", RELAY))
)
