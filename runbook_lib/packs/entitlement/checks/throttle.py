"""Section 5.2: the claim rate that the settings of delivery worker and relay allow, and a change of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.actions import action, proposals
from runbook_lib.book import messages
from runbook_lib.book.catalog import SettingValue
from runbook_lib.checks.check import Check, failures
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import FrameCollector, OutcomeRow, preconditions_hold
from runbook_lib.model import rows
from runbook_lib.model.finding import Finding, Frames, Hop, Proposal, Reason, Status, Text, Value, judged, say, worst
from runbook_lib.model.frames import row
from runbook_lib.packs.entitlement.actions import change, remedies
from runbook_lib.packs.entitlement.actions.restart import check_durable
from runbook_lib.packs.entitlement.checks import delivery
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.packs.entitlement.rows import Notifications, Outbox, QueueCounts

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


DELIVERY = ThrottledWorker("delivery", "delivery_worker", Notifications, "throttle.delivery_held", "backlog.oldest_due")
RELAY = ThrottledWorker("relay", "relay", Outbox, "throttle.relay_held", "outbox.oldest_due")


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
    """Query the active settings, the backlog and its last minute, and the outcome of a change of this run.

    Frames: settings (fields of `SettingRow`), workload (replicas: number), never_set (of `ForbiddenVariable`), durable
    (ok: flag; why_en, why_ja: text), those of `action.frames_of`, backlog; of delivery those of `delivery.collect`.
    """
    which = change.SIDES[side.name][0]
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
        parts.answers |= action.frames_of(outcome)
    with rb.present().snapshot() as db:
        parts.answers |= delivery.collect(rb, db) if side is DELIVERY else {"backlog": db.ask("outbox/backlog")}
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
class ThrottleReading:
    """The values that the judge reads from the frames of one side; None for unknown values."""

    batch: float | None
    pause_s: float | None
    enabled: bool | None
    replicas: int | None
    queue: QueueCounts
    came: float | None
    gone: float | None
    asked: dict[str, SettingValue]
    changed: dict[str, tuple[SettingValue, SettingValue]]
    outcome: OutcomeRow
    durable: OutcomeRow

    @property
    def known(self) -> bool:
        """Return whether the active settings are known."""
        return self.batch is not None and self.pause_s is not None and self.enabled is not None

    @property
    def allowed(self) -> float | None:
        """Return the upper limit of the settings, in rows per minute."""
        if self.enabled is False:
            return 0.0
        if self.batch is None or self.pause_s is None or self.enabled is None:
            return None
        # If the number of pods is unknown, that of one.
        return change.allowed_rate(self.batch, self.pause_s, max(self.replicas or 1, 1))


def read(frames: Frames, side: ThrottledWorker) -> ThrottleReading:
    """Read the settings, and the rows that arrived and left in the last minute."""
    settings = {s.kind: s for s in rows.each(frames.get("settings"), SettingRow)}
    batch, pause_s, enabled = (settings[kind].now if kind in settings else None for kind in change.KINDS)
    last, sent = frames.get("backlog"), "published_1m"
    if side is DELIVERY:
        last, sent = frames.get("activity"), "sent_1m"
    return ThrottleReading(
        batch=batch,
        pause_s=pause_s,
        enabled=enabled,
        replicas=rows.value(frames.get("workload"), "replicas", int),
        queue=rows.one(frames.get("backlog"), side.queue),
        came=rows.value(last, "arrived_1m", float),
        gone=rows.value(last, sent, float),
        asked={s.setting: s.asked for s in settings.values() if s.asked is not None},
        changed={s.setting: (s.now, s.default) for s in settings.values() if s.now is not None and s.now != s.default},
        # Without these frames, this run changed nothing and found no difference.
        outcome=rows.first(frames.get("outcome"), OutcomeRow) or OutcomeRow(),
        durable=rows.first(frames.get("durable"), OutcomeRow) or OutcomeRow(),
    )


def judge(frames: Frames, given: JudgeInput, side: ThrottledWorker) -> Finding:
    """Judge a side: OK with default settings, WARNING with an active change, CRITICAL after a failed change."""
    seen = read(frames, side)
    held, result = seen.enabled is False, seen.outcome.result
    several = side is DELIVERY and seen.replicas is not None and seen.replicas > 1
    done = result == "done"
    failed = result == "failed" or (done and not seen.outcome.verified)
    refused = result == "refused" or (result == "dry" and bool(seen.asked) and not preconditions_hold(frames))
    unread, uncounted = failures(frames).get("workload"), seen.came is None and not (done or failed)
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
        signals=given.evidence(side.held) if held and seen.queue.ready else (),
        hops=(
            Hop(
                side.hop, rate_in=seen.came, rate_out=seen.gone, waiting=seen.queue.ready,
                oldest_s=seen.queue.oldest_s, alive=say("alive.held") if held else None,
                late=bool(seen.queue.ready) and given.limits[side.late].status(seen.queue.oldest_s) is not Status.OK,
            ),
        ),
        proposals=tuple(_build_proposals(frames, given, seen, side, done=done and not failed, failed=failed)),
        next_sections=("5.1",) if failed else ("6",) if done else (),
        show=(*(("changes",) if done or failed else ()), "settings"),
    )  # fmt: skip


def _choose_headline(seen: ThrottleReading, *, failed: bool, refused: bool, side: ThrottledWorker) -> Text:
    allowed = seen.allowed
    facts: dict[str, Any] = {
        "who": say(f"throttle.who_{side.name}"),
        "allowed": allowed,
        "came": seen.came,
        "gone": seen.gone,
        "due": seen.queue.ready,
        "oldest": seen.queue.oldest_s,
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
    if seen.enabled is False:
        return say("throttle.held", **facts)
    if seen.came is None:
        return say("throttle.arrivals_unseen", **facts)
    if allowed is not None and seen.came > allowed:
        return say("throttle.in_force_below" if seen.changed else "throttle.below", **facts)
    return say("throttle.in_force" if seen.changed else "throttle.room", **facts)


def _build_values(seen: ThrottleReading, given: JudgeInput, side: ThrottledWorker) -> list[Value]:
    values = [
        Value(f"{side.name}.batch_size", seen.batch, "rows"),
        Value(f"{side.name}.poll_interval", seen.pause_s, "s"),
        Value(f"{side.name}.enabled", None if seen.enabled is None else str(seen.enabled).lower()),
        Value(f"{side.name}.allowed", seen.allowed, "1/min"),
        Value(f"{side.name}.arriving", seen.came, "1/min"),
        Value(f"{side.name}.observed", seen.gone, "1/min"),
        Value(f"{side.name}.backlog", seen.queue.ready, "rows"),
    ]
    if seen.allowed is not None and seen.came:
        values.append(given.limits.value("throttle.headroom", round(seen.allowed / seen.came, 3)))
    return values


def _build_notes(frames: Frames, given: JudgeInput, seen: ThrottleReading, side: ThrottledWorker) -> list[Text]:
    failed = failures(frames)
    notes = []
    if "workload" in failed:
        notes.append(say("throttle.no_tool", detail=failed["workload"].detail))
    elif not seen.known:
        notes.append(say("throttle.not_understood"))
    if seen.known and seen.changed:
        notes.append(say("throttle.undo", command=proposals.undo_settings(given, seen.changed).offered))
    if seen.queue.waiting_retry:
        notes.append(say("throttle.retries", n=seen.queue.waiting_retry))
    if seen.replicas is not None and seen.replicas > 1:
        notes.append(say("throttle.two_replicas" if side is DELIVERY else "throttle.relays", n=seen.replicas))
    if not seen.durable.ok:
        notes.append(say("throttle.would_not_start", why=seen.durable.why))
    for never in rows.each(frames.get("never_set"), ForbiddenVariable):
        notes.append(say("throttle.never_set", variable=never.variable, written=never.written, why=never.why))
    return notes


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
    if seen.enabled is False and side is DELIVERY:
        found.append(remedies.resume_delivery(given))
    if seen.changed and not done:  # a change of this run is not undone at once: a note has the command
        found.append(proposals.undo_settings(given, seen.changed))
    if seen.changed or seen.asked:
        return found
    refusing = delivery.read_delivery(frames).refusing(given) if side is DELIVERY else ""
    outbox = rows.one(frames.get("backlog"), Outbox) if side is RELAY else Outbox()
    relay_fails = outbox.tried >= given.number("tries.pattern") and outbox.waiting_retry > 0
    if refusing in delivery.RELIEVED_BY_THROTTLE or relay_fails:
        batch, pause_s = seen.batch or facts_of(given).batch_size, seen.pause_s or facts_of(given).poll_interval_s
        values = remedies.halved_rate(given, side.name, batch, pause_s)
        found.append(proposals.settings(f"throttle_{side.name}", given, values))
        if refusing in REFUSED:
            found.append(remedies.hold_delivery(given))
    return found


def _format_value(value: Any) -> str:
    return "?" if value is None else str(value).lower() if isinstance(value, bool) else f"{value:g}"


CHECKS: tuple[Check, ...] = tuple(
    Check(step, partial(collect, side=side), partial(judge, side=side), needs=("backlog",))
    for step, side in (("5.2.1", DELIVERY), ("5.2.2", RELAY))
)
