"""Section 5.2: what the delivery worker and the relay may claim, what arrives, and what another setting would do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import matplotlib.dates
import pandas as pd

from runbook_lib import catalog, messages
from runbook_lib.actions import proposals
from runbook_lib.analysis import history
from runbook_lib.catalog import SettingValue, Slo
from runbook_lib.checks.check import Check, failures
from runbook_lib.checks.parts import Parts, said
from runbook_lib.context import Given
from runbook_lib.model.finding import Finding, Frames, Hop, Proposal, Signal, Status, Text, Value, judged, say, worst
from runbook_lib.model.frames import amount, one, row, table
from runbook_lib.packs.entitlement.actions import change, remedies
from runbook_lib.packs.entitlement.checks import delivery
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.view import charts

if TYPE_CHECKING:
    from runbook_lib.context import Context

#: Full minutes over which the rates are taken.
RATE_MIN = 5
#: Batches that the time per row is taken from.
NEWEST = 50
#: From so many rows on that were tried in vain, it is the other end that is in trouble.
REFUSED = 0.75


@dataclass(frozen=True)
class Side:
    """One side of the pipeline that can be slowed down."""

    name: str
    hop: str
    came: str
    gone: str
    #: Objectives that a longer pause spends, in seconds, and one of rows that a backlog breaks.
    delays: tuple[str, ...]
    level: str | None = None


DELIVERY = Side(
    "delivery", "delivery_worker", "notifications/arrivals_per_minute", "notifications/sent_per_minute",
    ("NOTI-B",), "NOTI-C",
)  # fmt: skip
RELAY = Side(
    "relay", "relay", "outbox/arrivals_per_minute", "outbox/published_per_minute", ("ENT-C", "ENT-D", "NOTI-B")
)


# What is asked ----------------------------------------------------------------------------------------------


def collect(rb: Context, side: Side) -> Frames:
    """The settings in force, what they let through, what arrives, and what became of a change of this run."""
    which, topic = change.SIDES[side.name]
    parts, program = Parts(), getattr(facts_of(rb).workloads, which)
    environment: dict[str, str] | None = None
    with parts.part("workload") as found:
        environment = rb.workloads.environment(program)
        found["workload"] = row(
            name=program, replicas=rb.workloads.replicas(program), strategy=rb.workloads.strategy(program)
        )
    parts.answers["settings"] = _settings(rb, side, environment)
    if which == "notification" and environment is not None:
        found = parts.answers
        found["never_set"] = _never_set(rb, environment)
        agrees = change.durable_agrees(rb, environment)
        found["durable"] = row(
            ok=agrees.ok, **{f"why_{lang}": messages.text(agrees.text, lang) for lang in messages.LANGUAGES}
        )
    outcome = rb.outcomes.get("set")
    if outcome is not None and any(change.side_of(n) == side.name for n in outcome.what["settings"]):
        parts.answers |= outcome.frames(rb.lang) | {"did": row(since=outcome.did.get("since"))}
    now = rb.present()
    with now.snapshot() as db:
        frames = {"look": row(at=now.as_of)}
        if side is DELIVERY:
            frames |= delivery.look(db)
        else:
            frames["backlog"] = db.ask("outbox/backlog")
        frames["batches"] = db.ask(f"{topic}/batches")
        for name, question in (("came", side.came), ("gone", side.gone)):
            if (counted := db.try_ask(question)) is not None:
                frames[name] = counted
    return parts.frames() | frames


def _settings(rb: Context, side: Side, environment: dict[str, str] | None) -> pd.DataFrame:
    asked = change.asked_for(rb.parameters, side.name)
    now = {} if environment is None else change.in_force(rb.catalog.settings, side.name, environment)
    rows = [
        {
            "setting": name,
            "variable": s.variable,
            "written": (environment or {}).get(s.variable),
            "default": s.standard,
            "now": now.get(name),
            "asked": asked.get(name),
            "unit": s.unit,
        }
        for name, s in rb.catalog.settings.items()
        if change.side_of(name) == side.name
    ]
    return pd.DataFrame(rows).astype(object)


def _never_set(rb: Context, environment: dict[str, str]) -> pd.DataFrame:
    forbidden = rb.catalog.forbidden_variables
    rows = [{"variable": v, "written": environment[v], "why": why} for v, why in forbidden.items() if v in environment]
    return pd.DataFrame(rows, columns=["variable", "written", "why"])


# What it means ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pace:
    """Settings, and what they let through: None where a part of it was not seen."""

    batch: float | None
    pause_s: float | None
    enabled: bool | None
    per_row_s: float
    pods: int

    @property
    def cycle_s(self) -> float | None:
        """From one claim of a full batch to the next: the longest that a row waits for its turn, and its work."""
        if self.batch is None or self.pause_s is None:
            return None
        return self.pause_s + self.batch * self.per_row_s

    @property
    def allowed(self) -> float | None:
        """Rows per minute, at most."""
        if self.enabled is False:
            return 0.0
        if self.batch is None or not self.cycle_s or self.enabled is None:
            return None
        return self.pods * 60 * self.batch / self.cycle_s


@dataclass(frozen=True)
class Flow:
    """What arrives and leaves per minute, and what waits."""

    came: float | None
    gone: float | None
    due: float
    oldest_s: float
    waiting: float

    def net(self, pace: Pace) -> float | None:
        """How fast the backlog grows at this pace (below 0: shrinks), per minute."""
        return None if pace.allowed is None or self.came is None else self.came - pace.allowed

    def empty_in(self, pace: Pace) -> float | None:
        """Minutes until nothing waits; None where that will not be."""
        net = self.net(pace)
        return self.due / -net if net is not None and net < 0 else None

    def late_in(self, pace: Pace, objective: Slo) -> float | None:
        """Minutes until an objective is broken by what waits; None where it will not be, 0 where it is."""
        net, allowed = self.net(pace), pace.allowed
        if net is None or allowed is None:
            return None
        if objective.unit == "rows":
            room = objective.number - self.due
            return max(room, 0.0) / net if net > 0 else 0.0 if room <= 0 else None
        if (pace.cycle_s or 0) >= objective.number and pace.enabled:
            return 0.0
        if net <= 0:
            return None
        if allowed == 0:
            return max(objective.number - self.oldest_s, 0.0) / 60
        return max(objective.number * allowed / 60 - self.due, 0.0) / net


@dataclass(frozen=True)
class Seen:
    """All that a judge reads out of the frames of one side."""

    now: Pace
    then: Pace
    flow: Flow
    asked: dict[str, SettingValue]
    apart: dict[str, tuple[SettingValue, SettingValue]]
    timed: str

    @property
    def known(self) -> bool:
        """Whether the settings in force were seen."""
        return self.now.batch is not None and self.now.pause_s is not None and self.now.enabled is not None


def read(frames: Frames, given: Given, side: Side) -> Seen:
    """The settings, the pace they allow, and the flow."""
    settings = {
        str(r["setting"]).partition(".")[2]: {k: _cell(v) for k, v in r.items()}
        for r in table(frames, "settings", "setting", "default", "now", "asked").to_dict("records")
    }
    now = {kind: settings.get(kind, {}).get("now") for kind in change.KINDS}
    asked = {f"{side.name}.{k}": s["asked"] for k, s in settings.items() if s["asked"] is not None}
    apart = {
        f"{side.name}.{k}": (s["now"], s["default"])
        for k, s in settings.items()
        if s["now"] is not None and s["now"] != s["default"]
    }
    pods = max(int(amount(one(frames.get("workload")), "replicas")), 1)
    per_row, timed = _per_row(table(frames, "batches", "started", "n", "exact_s", "cycle_s"), now)
    batch, pause, enabled = _number(now["batch_size"]), _number(now["poll_interval"]), now["enabled"]
    other = asked or {name: usual for name, (_, usual) in apart.items()}  # what is in force would be taken back
    if not other and batch is not None and pause is not None:
        other = remedies.milder(given, side.name, batch, pause)
    then = {k: other.get(f"{side.name}.{k}", now[k]) for k in change.KINDS}
    return Seen(
        now=Pace(batch, pause, _flag(enabled), per_row, pods),
        then=Pace(
            _number(then["batch_size"]), _number(then["poll_interval"]), _flag(then["enabled"]), per_row, pods
        ),
        flow=_flow(frames, given),
        asked=asked,
        apart=apart,
        timed=timed,
    )  # fmt: skip


def _per_row(batches: pd.DataFrame, now: dict[str, Any]) -> tuple[float, str]:
    """Seconds of work per row, and how that is known: "exact", "estimated" or "unknown" (then 0)."""
    numbers = batches[["n", "exact_s", "cycle_s"]].head(NEWEST).apply(pd.to_numeric, errors="coerce")
    exact = numbers[numbers["exact_s"].notna() & (numbers["n"] > 0)]
    if len(exact):
        return float(exact["exact_s"].clip(lower=0).sum() / exact["n"].sum()), "exact"
    batch, pause = _number(now["batch_size"]), _number(now["poll_interval"])
    if batch and pause is not None:
        # A full batch that was followed by another at once: what is left of its time beside the pause is work.
        full = numbers[(numbers["n"] >= batch) & (numbers["cycle_s"] < 60)]
        if len(full):
            return float(((full["cycle_s"] - pause).clip(lower=0) / full["n"]).median()), "estimated"
    return 0.0, "unknown"


def _flow(frames: Frames, given: Given) -> Flow:
    backlog, activity = one(frames.get("backlog")), one(frames.get("activity"))
    at = pd.Timestamp(one(frames.get("look")).get("at") or given.as_of)
    last = activity or backlog
    return Flow(
        came=_rate(frames, "came", at, last.get("arrived_1m")),
        gone=_rate(frames, "gone", at, last.get("sent_1m", last.get("published_1m"))),
        due=amount(backlog, "due") + amount(backlog, "expired"),
        oldest_s=max(amount(backlog, "oldest_due_s"), amount(backlog, "oldest_expired_s")),
        waiting=amount(backlog, "waiting_retry"),
    )


def _rate(frames: Frames, name: str, at: pd.Timestamp, last_minute: Any) -> float | None:
    """Per minute, over the last full minutes; of the last one alone where these could not be counted."""
    if name not in frames:
        return _number(last_minute)
    until = at.floor("min")
    counts = history.counts(frames.get(name))
    return float(counts[(counts.index >= until - RATE_MIN * history.MINUTE) & (counts.index < until)].sum()) / RATE_MIN


def judge(frames: Frames, given: Given, side: Side) -> Finding:
    """Room to spare is OK; a change in force is to be remembered; one that failed, or was not seen to work, is not."""
    seen, outcome = read(frames, given, side), one(frames.get("outcome"))
    if "backlog" not in frames:
        return judged(say("throttle.unseen"), at_least=Status.UNKNOWN)
    held = seen.now.enabled is False
    result, verified = outcome.get("result"), bool(outcome.get("verified"))
    workload = one(frames.get("workload"))
    would_not_start = one(frames.get("durable")).get("ok", True) == False  # noqa: E712 - None is not False
    twice = side is DELIVERY and amount(workload, "replicas") > 1
    done = result == "done"
    failed = result == "failed" or (done and not verified)
    refused = result == "refused" or (result == "dry" and bool(seen.asked) and not _all_hold(frames))
    allowed, came = seen.now.allowed, seen.flow.came
    values = _values(seen, given, side)
    unread = failures(frames).get("workload")
    unfit = would_not_start or twice or (not seen.known and not unread)
    return judged(
        _headline(seen, outcome, failed=failed, refused=refused, side=side),
        values,
        at_least=worst([
            Status.CRITICAL if failed else Status.OK,
            Status.WARNING if refused or held or seen.apart or unfit else Status.OK,
            Status.UNKNOWN if unread else Status.OK,
        ]),
        reason=unread.reason if unread else None,
        notes=tuple(_notes(frames, given, seen, side)),
        signals=(Signal(side.hop, 0.6),) if held and seen.flow.due else (),
        hops=(
            Hop(
                side.hop, rate_in=came, rate_out=seen.flow.gone, waiting=seen.flow.due, oldest_s=seen.flow.oldest_s,
                alive=say("alive.held") if held else None, late=_late(seen, given, side),
            ),
        ),
        proposals=tuple(_proposals(frames, given, seen, side, done=done and verified, failed=failed)),
        next_sections=("5.1",) if failed else ("6",) if done else (),
        frames={"plan": _plan(seen, given, side)} if seen.known or allowed is not None else {},
        show=(*(("changes",) if done or failed else ()), *(("plan",) if seen.known else ()), "settings"),
    )  # fmt: skip


def _late(seen: Seen, given: Given, side: Side) -> bool:
    age = given.limits["backlog.oldest_due" if side is DELIVERY else "outbox.oldest_due"]
    return bool(seen.flow.due) and age.status(seen.flow.oldest_s) is not Status.OK


def _headline(seen: Seen, outcome: dict[str, Any], *, failed: bool, refused: bool, side: Side) -> Text:
    flow, who = seen.flow, say(f"throttle.who_{side.name}")
    facts: dict[str, Any] = {
        "who": who,
        "allowed": seen.now.allowed,
        "came": flow.came,
        "gone": flow.gone,
        "due": flow.due,
        "oldest": flow.oldest_s,
        "net": flow.net(seen.now),
        "settings": ", ".join(f"{name} {_shown(now)} ({_shown(usual)})" for name, (now, usual) in seen.apart.items()),
    }
    if failed:
        undone = outcome.get("result") == "failed"
        why = said(outcome, "why" if undone else "effect")
        return say("throttle.failed" if undone else "throttle.not_verified", **facts, why=why)
    if refused:
        return say("throttle.refused", **facts, why=said(outcome, "why"))
    if outcome.get("result") == "done":
        return say("throttle.done", **facts, effect=said(outcome, "effect"))
    if not seen.known:
        return say("throttle.settings_unseen", **facts)
    if seen.now.enabled is False:
        return say("throttle.held", **facts)
    if flow.came is None:
        return say("throttle.arrivals_unseen", **facts)
    if (facts["net"] or 0) > 0:
        return say("throttle.in_force_below" if seen.apart else "throttle.below", **facts)
    return say("throttle.in_force" if seen.apart else "throttle.room", **facts)


def _values(seen: Seen, given: Given, side: Side) -> list[Value]:
    now, flow, limits = seen.now, seen.flow, given.limits
    values = [
        Value(f"{side.name}.batch_size", now.batch, "rows"),
        Value(f"{side.name}.poll_interval", now.pause_s, "s"),
        Value(f"{side.name}.enabled", None if now.enabled is None else str(now.enabled).lower()),
        Value(f"{side.name}.allowed", _rounded(now.allowed), "1/min"),
        Value(f"{side.name}.arriving", _rounded(flow.came), "1/min"),
        Value(f"{side.name}.observed", _rounded(flow.gone), "1/min"),
        Value(f"{side.name}.backlog", flow.due, "rows"),
    ]
    if now.allowed is not None and flow.came:
        values.append(limits.value("throttle.headroom", round(now.allowed / flow.came, 3)))
    return values


def _plan(seen: Seen, given: Given, side: Side) -> pd.DataFrame:
    """The settings of now beside those asked for (or proposed), and what each means."""
    flow, now, then = seen.flow, seen.now, seen.then
    rows: list[tuple[str, Any, Any, str]] = [
        ("batch size", now.batch, then.batch, "rows"),
        ("poll interval", now.pause_s, then.pause_s, "s"),
        ("enabled", _shown(now.enabled), _shown(then.enabled), ""),
        ("rate allowed", _rounded(now.allowed), _rounded(then.allowed), "1/min"),
        ("rate arriving", _rounded(flow.came), _rounded(flow.came), "1/min"),
        ("backlog", flow.due, flow.due, "rows"),
        ("backlog grows by", _rounded(_growth(flow, now)), _rounded(_growth(flow, then)), "1/min"),
        ("backlog empty in", _rounded(flow.empty_in(now)), _rounded(flow.empty_in(then)), "min"),
    ]
    for id_ in side.delays:
        objective = given.slos.get(id_)
        if objective:
            spent = f"{id_} {objective.objective}: pause and batch spend"
            rows.append((spent, _rounded(now.cycle_s), _rounded(then.cycle_s), "s"))
            rows.append(_reached(id_, objective, flow, now, then))
    if side.level and (objective := given.slos.get(side.level)):
        rows.append(_reached(side.level, objective, flow, now, then))
    return pd.DataFrame(rows, columns=["what", "now", "asked" if seen.asked else "proposed", "unit"]).astype(object)


def _reached(id_: str, objective: Slo, flow: Flow, now: Pace, then: Pace) -> tuple[str, Any, Any, str]:
    late = (_rounded(flow.late_in(pace, objective)) for pace in (now, then))
    return (f"{id_} {objective.objective}: broken in", *late, "min")  # type: ignore[return-value]


def _growth(flow: Flow, pace: Pace) -> float | None:
    net = flow.net(pace)
    return None if net is None else net if net > 0 or flow.due > (pace.batch or 0) else 0.0  # the ripple of a poll


def _notes(frames: Frames, given: Given, seen: Seen, side: Side) -> list[Text]:
    failed, workload = failures(frames), one(frames.get("workload"))
    notes = []
    if "workload" in failed:
        notes.append(say("throttle.no_tool", detail=failed["workload"].detail))
        largest, cycle = _as_observed(frames)
        if largest is not None:
            notes.append(say("throttle.as_observed", largest=largest, cycle=cycle))
    elif not seen.known:
        notes.append(say("throttle.not_understood"))
    if seen.known:
        notes += _prediction(given, seen, side)
        if seen.apart:
            undo = proposals.undo_settings(given, seen.apart).command
            notes.append(say("throttle.undo", command=undo))
        notes.append(say(f"throttle.timed_{seen.timed}", ms=1000 * seen.now.per_row_s))
    if seen.flow.waiting:
        notes.append(say("throttle.retries", n=seen.flow.waiting))
    if side is DELIVERY and amount(workload, "replicas") > 1:
        notes.append(say("throttle.two_replicas", n=amount(workload, "replicas")))
    if side is RELAY and amount(workload, "replicas") > 1:
        notes.append(say("throttle.relays", n=amount(workload, "replicas")))
    durable = one(frames.get("durable"))
    if durable.get("ok", True) == False:  # noqa: E712 - None is not False
        notes.append(say("throttle.would_not_start", why=said(durable, "why")))
    never = table(frames, "never_set", "variable", "written", "why")
    notes += [say("throttle.never_set", variable=v, written=w, why=y) for v, w, y in never.itertuples(index=False)]
    if "came" not in frames or "gone" not in frames:
        notes.append(say("throttle.last_minute_only"))
    since = one(frames.get("did")).get("since")
    if since is not None and (rate := _measured(frames, since)) is not None:
        notes.append(say("throttle.measured", rate=rate))
    return notes


def _measured(frames: Frames, since: Any) -> float | None:
    """Rows per minute that were claimed since the change."""
    return change.rate_of(change.claims_since(frames, pd.Timestamp(since)))


def _prediction(given: Given, seen: Seen, side: Side) -> list[Text]:
    """What the values asked for, or proposed, will do."""
    flow, then = seen.flow, seen.then
    settings = ", ".join(
        f"{side.name}.{kind} {_shown(value)}"
        for kind, value, now in (
            ("batch_size", then.batch, seen.now.batch),
            ("poll_interval", then.pause_s, seen.now.pause_s),
            ("enabled", then.enabled, seen.now.enabled),
        )
        if value is not None and (value != now or f"{side.name}.{kind}" in seen.asked)
    )
    net = flow.net(then)
    if not settings or net is None or then.allowed is None:
        return []
    facts: dict[str, Any] = {"settings": settings, "allowed": then.allowed, "came": flow.came, "net": abs(net)}
    ids = (*side.delays, *((side.level,) if side.level else ()))
    late = {i: t for i in ids if i in given.slos and (t := flow.late_in(then, given.slos[i])) is not None}
    first = min(late, key=lambda i: late[i], default="")
    notes = []
    if net > 0:
        objective = given.slos[first].objective if first else None
        key = "throttle.grows_late" if late.get(first, 1.0) < 0.05 else "throttle.grows"
        notes.append(say(key, **facts, slo=first, objective=objective, minutes=late.get(first)))
    elif flow.due > (then.batch or 0):
        notes.append(say("throttle.shrinks", **facts, due=flow.due, minutes=flow.empty_in(then)))
    else:
        notes.append(say("throttle.keeps_up", **facts))
    if then.enabled and then.cycle_s is not None:
        budget = given.slos.get(side.delays[0])
        if budget:
            worse = "throttle.spends_all" if then.cycle_s >= budget.number else "throttle.spends"
            notes.append(say(worse, slo=budget.id, s=then.cycle_s, now=seen.now.cycle_s, of=budget.number))
    return notes


def _proposals(frames: Frames, given: Given, seen: Seen, side: Side, *, done: bool, failed: bool) -> list[Proposal]:
    """Take back what is in force; else what was asked for, or what a receiver or broker in trouble calls for."""
    which = change.SIDES[side.name][0]
    found = []
    if failed:
        found.append(proposals.logs(given, which))
    if seen.asked and not (done or failed) and not _problems(seen):
        found.append(proposals.settings("change_settings", given, seen.asked))
    if seen.now.enabled is False and side is DELIVERY:
        found.append(remedies.resume_delivery(given))
    if seen.apart and not done:  # what was done a moment ago is not to be taken back now: a note says how
        found.append(proposals.undo_settings(given, seen.apart))
    if seen.apart or seen.asked:
        return found
    trouble = delivery.delivery(frames).refused(given) if side is DELIVERY else _relay_refused(frames)
    if trouble:
        batch, pause = (
            int(seen.now.batch or facts_of(given).batch_size),
            seen.now.pause_s or facts_of(given).poll_interval_s,
        )
        values = remedies.milder(given, side.name, batch, pause)
        found.append(proposals.settings(f"throttle_{side.name}", given, values))
        if side is DELIVERY and trouble >= REFUSED:
            found.append(remedies.hold_delivery(given))
    return found


def _problems(seen: Seen) -> list[str]:
    known = catalog.load().settings
    return [p for name, value in seen.asked.items() if (p := known[name].problem(value))]


def _relay_refused(frames: Frames) -> float:
    backlog = one(frames.get("backlog"))
    return 0.6 if amount(backlog, "tried") >= delivery.TRIED and amount(backlog, "waiting_retry") else 0.0


def _as_observed(frames: Frames) -> tuple[float | None, float | None]:
    """The largest of the newest batches, and the shortest time between two."""
    batches = table(frames, "batches", "started", "n", "cycle_s").head(NEWEST)
    if batches.empty:
        return None, None
    cycles = pd.to_numeric(batches["cycle_s"], errors="coerce").dropna()
    return float(batches["n"].max()), float(cycles.min()) if len(cycles) else None


def _all_hold(frames: Frames) -> bool:
    holds = table(frames, "preconditions", "precondition", "holds")["holds"]
    return len(holds) > 0 and all(h is True or h == 1 for h in holds)


def _cell(value: Any) -> Any:
    return None if value is None or value != value else value


def _number(value: Any) -> float | None:
    return None if value is None or isinstance(value, str) or value != value else float(value)


def _flag(value: Any) -> bool | None:
    return None if value is None else bool(value)


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 1)


def _shown(value: Any) -> str:
    return "?" if value is None else str(value).lower() if isinstance(value, bool) else f"{value:g}"


# What it looks like -----------------------------------------------------------------------------------------


def draw(frames: Frames, given: Given, side: Side) -> charts.Chart | None:
    """What came and what was claimed per minute, beside what the settings allow now and would allow."""
    at = pd.Timestamp(one(frames.get("look")).get("at") or given.as_of)
    if "came" not in frames and "gone" not in frames:
        return None
    minutes = min(given.window_minutes, 60)
    starts = pd.date_range(end=at.floor("min") - history.MINUTE, periods=minutes, freq="min")
    came, gone = (history.counts(frames.get(name)).reindex(starts, fill_value=0.0) for name in ("came", "gone"))
    seen = read(frames, given, side)
    done = {"delivery": "sent", "relay": "published"}[side.name]
    title = {"delivery": "Delivery worker", "relay": "Outbox relay"}[side.name]
    figure, ax = charts.axes(f"{title}: what arrives, what is claimed, what is allowed", "rows / min", "UTC")
    ends = starts + history.MINUTE
    ax.plot(ends, came, color=charts.GREY, alpha=0.5, linewidth=3.0, label="arriving")
    ax.plot(ends, gone, color=charts.GREEN, linestyle="--", linewidth=1.4, label=f"{done} (observed)")
    highest = max(float(came.max()), float(gone.max()), 1.0)
    lines = (
        (seen.now.allowed, charts.BLUE, "-", "allowed now"),
        (seen.then.allowed, charts.ORANGE, ":", "allowed as asked" if seen.asked else "allowed as proposed"),
    )
    for rate, colour, dash, name in lines:
        if rate is None or (name != "allowed now" and seen.then == seen.now):
            continue
        if rate <= 4 * highest:
            ax.axhline(rate, color=colour, linestyle=dash, linewidth=1.8, label=f"{name} {rate:,.0f}")
            highest = max(highest, rate)
        else:  # far above all that happens: its line would press the rest to the floor
            ax.plot([], [], color=colour, linestyle=dash, label=f"{name} {rate:,.0f} (above the scale)")
    since = one(frames.get("did")).get("since")
    if since is not None:
        ax.axvline(float(matplotlib.dates.date2num(pd.Timestamp(since))), color="black", linewidth=1.0, label="changed")
        if (rate := _measured(frames, since)) is not None:
            label = f"measured since {rate:,.0f}"
            ax.plot(
                pd.DatetimeIndex([since, at]), [rate, rate], color=charts.RED, marker="D", linewidth=3.0, label=label
            )
            highest = max(highest, rate)
    ax.set_ylim(0, 1.25 * highest)
    charts.clock_ticks(ax)
    charts.legend(figure)
    alt = say(
        "throttle.alt", who=say(f"throttle.who_{side.name}"), came=seen.flow.came, gone=seen.flow.gone,
        allowed=seen.now.allowed, then=seen.then.allowed, minutes=minutes,
    )  # fmt: skip
    return charts.Chart(figure, alt, (say("throttle.caption"),))


CHECKS: tuple[Check, ...] = tuple(
    Check(step, partial(collect, side=side), partial(judge, side=side), (partial(draw, side=side),))
    for step, side in (("5.2.1", DELIVERY), ("5.2.2", RELAY))
)
