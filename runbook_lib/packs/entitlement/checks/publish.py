"""4.1.3: how long events wait to be published, and what blocks them: the relay, the broker or the event itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib.actions import proposals
from runbook_lib.book import patterns
from runbook_lib.checks.cases import Case, Cases
from runbook_lib.checks.check import Check, failures
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import FrameCollector, seconds_between
from runbook_lib.checks.sample import FIRST
from runbook_lib.model import rows
from runbook_lib.model.finding import (
    LOOK_AGAIN,
    Finding,
    Frames,
    Hop,
    HopHistory,
    OutageEnd,
    Proposal,
    Reason,
    Status,
    Value,
    judged,
    replace,
    say,
    worst,
)
from runbook_lib.model.frames import row
from runbook_lib.packs.entitlement import PACK
from runbook_lib.packs.entitlement.actions import remedies
from runbook_lib.packs.entitlement.checks import outage, past, program
from runbook_lib.packs.entitlement.checks.loop import TableLoop
from runbook_lib.packs.entitlement.checks.series import ask_since
from runbook_lib.packs.entitlement.evidence import services
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.packs.entitlement.rows import Delay, Outbox
from runbook_lib.packs.jetstream import quorum

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context

_PUBLISH_ERROR = patterns.source(PACK, "publish error")
#: Kinds of error that are caused by the event: other events are still published.
OF_THE_EVENT = ("payload", "other")
#: Kinds of error with which the broker or the relay refuses one event while it accepts others.
ONE_BY_ONE = (*OF_THE_EVENT, "too_large")
#: Kinds of error that occur while the broker's cluster cannot write.
UNWRITTEN = ("no_stream", "timeout", "unseen", "closed")


class OutboxError(rows.Row, query="outbox/errors"):
    """Unpublished events with the same error text; no try of the newest was before `tried_after`."""

    status: str = ""
    last_error: str | None = None
    n: float = 0.0
    newest: pd.Timestamp | None = None
    tried_after: pd.Timestamp | None = None


class Arrived(rows.Row, query="outbox/arrived"):
    """How many events with a failed publish were looked for among the processed ones, and how many `arrived`."""

    n: int = 0
    arrived: int = 0

    def without_receipt(self, given: JudgeInput) -> bool:
        """Return whether the broker takes what the relay publishes, and the relay does not learn of it."""
        return self.arrived >= given.number("tries.pattern") and 2 * self.arrived > self.n


class RelayBatch(rows.Row, query="outbox/batches"):
    """One batch of the relay, times in seconds; `exact_s` only if commit times are tracked."""

    started: pd.Timestamp | None = None
    n: float = 0.0
    exact_s: float | None = None
    cycle_s: float | None = None


class Stream(rows.Row):
    """The stream of the events, as the broker shows it to the runbook."""

    answers: bool = False
    subjects: str = ""
    created: pd.Timestamp | None = None

    def refuses(self, errors: Iterable[OutboxError]) -> bool:
        """Return whether it was there when an event failed for which no stream answered: then it takes others."""
        failed = [e.newest for e in errors if e.newest is not None and kind_of(e.last_error) == "no_stream"]
        return bool(self.answers) and (self.created is None or any(at > self.created for at in failed))


@dataclass(frozen=True)
class Relay(TableLoop):
    """The outbox relay and the broker, as far as they decide what blocks the outbox.

    - `kind`: the kind of most current errors (see `kind_of`).
    - `away`: why the broker did not answer the runbook.
    - `cut_off`: notification, the broker's other client, has no connection.
    - `stopped`: see `TableLoop.stop`; `seems_stopped` also if its lease lets the batch last that long.
    - `publishes`: a publish has just succeeded. `ran`: the relay's loop was seen running. `retrying`: events wait for
      their next try, with the error of the last one, and others have been published since.
    - `writes`: whether the broker's cluster can store an event; None if that is not known.
    - `overloaded`: its settings let through less than what arrives (see `_is_overloaded`).
    - `dated_back`: their times are behind, and none of them is late.
    - `slow`: the newest events were published late. `passed`: but not the very last ones. `ended`: the outage that
      delayed them is over.
    - `n`: events published in the last `publish.now` minutes.
    """

    queue: Outbox
    kind: str
    late: bool
    failing: bool
    stopped: str
    publishes: bool
    away: Reason | None
    cut_off: bool
    writes: bool | None
    stands: program.LoopState
    ran: bool
    n: float | None
    dated_back: bool = False
    slow: bool = False
    passed: bool = False
    ended: OutageEnd | None = None
    overloaded: bool = False
    retrying: bool = False

    @property
    def wrong(self) -> bool:
        """Whether something is wrong at this moment."""
        return bool(self.late or self.failing or self.stopped or self.away or self.stands.wrong)

    @property
    def locked_out(self) -> bool:
        """Whether the broker answers the runbook, but seems to answer neither of its two clients."""
        return self.failing and self.cut_off and self.kind in ("timeout", "unseen")


def collect(rb: Context) -> Frames:
    """Read the outbox, then query the broker, to distinguish a failure of the relay from one of the broker.

    Only the table of the outbox is needed, so that a lock on another table does not matter.

    Frames: delay, delay_now (of the last minute), delay_lately, backlog, errors; arrived where publishes fail; batches
    of a relay that publishes late; that of `past.ask` where cheap; broker (answers: flag, last_seq: number, subjects:
    text, created: time), replicas (fields of `quorum.Member`) in a cluster; those of `outage.ask` and `program.ask`;
    first.backlog (the same at the first moment).
    """
    first = rb.first("4.1.3")
    parts = ask_tables(rb)
    frames = parts.answers
    if f"{FIRST}outbox" in first:
        frames[f"{FIRST}backlog"] = first[f"{FIRST}outbox"]
    queue = rows.one(frames["backlog"], Outbox)
    late = rb.catalog.limits["outbox.oldest_due"].reached(queue.oldest_s)
    publishes = read_loop(queue).finishes(rb.given())
    if late and publishes:
        with rb.snapshot() as db:
            parts.ask(db, {"batches": RelayBatch.QUERY})
    program.ask(rb, "4.1.3", parts, "relay", late, at_work=publishes)
    with parts.part("broker") as answers:
        stream = rb.source("jetstream").stream(facts_of(rb).streams.events)
        answers["broker"] = row(
            answers=True,
            last_seq=stream.get("state", {}).get("last_seq"),
            subjects=", ".join(stream.get("config", {}).get("subjects") or ()),
            created=stream.get("created"),
        )
        answers["replicas"] = rows.frame(quorum.members(facts_of(rb).streams.events, stream), quorum.Member)
    return parts.frames()


def ask_tables(rb: Context) -> FrameCollector:
    """Ask the outbox for what 4.1.3 reads of the second moment. Raises SourceError."""
    parts = FrameCollector()
    frames = parts.answers
    with rb.snapshot() as db:
        ask_since(rb, db, parts, Delay.QUERY, delay="window", delay_now="minute", delay_lately="lately")
        frames |= {name: db.ask(f"outbox/{name}") for name in ("backlog", "errors")}
        if len(frames["errors"]):
            parts.ask(db, {"arrived": Arrived.QUERY})
        if not rb.brief:
            frames |= past.ask(rb, db, past.window(rb.given()), ["outbox"])
        outage.ask(rb, db, parts, "published")
    return parts


def kind_of(error: object) -> str:
    """Return the kind of a relay's error text: payload, closed, no_stream, timeout, full, too_large, refused
    or other.

    >>> kind_of("Connection is Closed"), kind_of("Timeout or no response waiting for NATS JetStream server")
    ('closed', 'timeout')
    """
    return _PUBLISH_ERROR.find(str(error or "").strip()).kind or "other"


def judge(frames: Frames, given: JudgeInput) -> Finding:
    """4.1.3: find the cause: the relay if it does not try; the broker, connection or event if its tries fail."""
    limits = given.limits
    # An incident that is over stays in the window's percentile for long, so the newest events decide.
    window, lately = (rows.one(frames.get(name), Delay) for name in ("delay", "delay_now"))
    queue = rows.one(frames["backlog"], Outbox)
    dated_back = rows.one(frames.get("delay_lately"), Delay).is_dated_back(queue.total, given)
    delay_value = limits.value("outbox.publish_delay_p95", lately.p95)
    if dated_back:
        delay_value = replace(delay_value, threshold=None)
    values = [
        *([delay_value] if lately.n else []),
        Value("outbox.window_delay_p95", window.p95, "s"),
        Value("outbox.published", window.n, "rows"),
        Value("outbox.window_delay_p50", window.p50, "s"),
        Value("outbox.window_delay_p99", window.p99, "s"),
    ]
    notes = []
    if window.n == 0:
        notes.append(say("publish.nothing_published", minutes=given.window_minutes))
    if window.negative:
        notes.append(say("publish.negative", n=window.negative))
    seen = _read_relay(frames, given, queue, lately.n)
    if not (seen.ran or seen.wrong):
        again_value, note = seen.may_hang(given)
        values, notes = [*values, again_value], [*notes, note]
    values += [
        limits.value("outbox.oldest_due", queue.oldest_s),
        limits.value("outbox.failed", queue.failed),
        Value("outbox.due", queue.ready, "rows"),
        Value("outbox.waiting_retry", queue.waiting_retry, "rows"),
        *([Value("outbox.postponed", queue.postponed, "rows")] if queue.postponed else []),
        *([Value("outbox.strays", queue.strays, "rows")] if queue.strays else []),
        Value("outbox.leased", queue.leased, "rows"),
        Value("outbox.tried_before", queue.tried, "rows"),
        Value("outbox.silence", seen.silence_s, "s"),
    ]
    slow = bool(lately.n) and not dated_back and delay_value.status is not Status.OK
    passed = slow and not (seen.wrong or queue.tried or queue.failed) and outage.has_passed(frames, given, "published")
    seen = replace(
        seen,
        slow=slow,
        dated_back=dated_back,
        passed=passed,
        ended=outage.find_end(frames, given, "published") if passed else None,
    )
    again = outage.look_again_s(frames, given, "published") if passed else None
    if passed:
        # Events were late, and the newest are not.
        values = [replace(v, threshold=None) if v.name == delay_value.name else v for v in values]
        values += [Value(f"outbox.{LOOK_AGAIN}", again, "s")] if again is not None else []
    found = CASES.of(seen)
    return judged(
        found.headline(
            due=queue.ready,
            oldest=queue.oldest_s,
            silence=seen.silence_s,
            tried=queue.tried,
            postponed=queue.postponed,
            strays=queue.strays or None,
            states=queue.stray_states,
            waiting=queue.waiting_retry,
            failed=queue.failed,
            p95=lately.p95,
            n=lately.n,
            minutes=given.number("publish.now"),
            error=say(f"publish.kind_{seen.kind}", subjects=rows.value(frames.get("broker"), "subjects", str)),
            arrived=queue.arrived_1m,
            left=queue.published_1m,
            batch=next((b.n for b in _newest_batches(frames, given)), None),
            again=again,
            by=seen.ended and seen.ended.by,
        ),
        values,
        at_least=worst([found.status, seen.stands.status, Status.UNKNOWN if lately.n is None else Status.OK]),
        notes=tuple(notes),
        signals=given.evidence_of(_list_observations(frames, given, seen, found.observations)),
        hops=_build_hops(seen, past.hop_history(frames, given, "outbox")),
        proposals=found.proposals(given),
        next_sections=found.sections or (("2",) if seen.away else ("4.4",) if queue.failed else ()),
        show=("errors",) if len(frames.get("errors", ())) else (),
        ended=seen.ended,
        decision=found.decision,
    )


def _read_relay(frames: Frames, given: JudgeInput, queue: Outbox, n: float | None) -> Relay:
    limit, loop = given.limits["outbox.oldest_due"], read_loop(queue, rows.first(frames.get(f"{FIRST}backlog"), Outbox))
    publishes = loop.finishes(given)
    live, kind = count_live_errors(frames)
    # A try of an earlier process shows nothing of the present one.
    age_s = services.read(frames, given)["entitlement"].age_s
    began = None if age_s is None or queue.now is None else queue.now - pd.Timedelta(seconds=age_s)
    since = max((at for at in (queue.last_published, began) if at is not None), default=None)
    present, present_kind = count_live_errors(frames, since)
    if queue.tried and not live and queue.leased and not limit.reached(loop.silence_s, Status.CRITICAL):
        # The relay has just claimed the failed rows again, and a claim clears the error.
        live, kind = present, present_kind = queue.tried, "unseen"
    # With an error of the broker or of the connection, rows that failed before the last success only wait for their
    # next try.
    if present and kind not in ONE_BY_ONE:
        kind = present_kind
    arrived = rows.first(frames.get("arrived"), Arrived)
    if kind in ("timeout", "unseen") and arrived is not None and arrived.without_receipt(given):
        kind = "no_receipt"
    failing = live > 0 and queue.tried > 0 and (kind in ONE_BY_ONE or (present > 0 and not publishes))
    late = limit.reached(queue.oldest_s)
    broker = failures(frames).get("broker")
    writes = quorum.writes(frames, given, facts_of(given).streams.events, "broker")
    if kind == "no_stream" and writes and "broker" in frames:
        # "No responders" is also what a broker answers whose stream takes other subjects.
        errors = rows.each(frames.get("errors"), OutboxError)
        kind = "no_subject" if rows.one(frames["broker"], Stream).refuses(errors) else kind
    away = writes and broker is not None and broker.reason in (Reason.UNREACHABLE, Reason.TIMEOUT, Reason.ERROR)
    # Only the errors show whether tries fail: without them it is not known that no try is made.
    known = late and not failing and "errors" in frames
    stopped = loop.stop(given, facts_of(given).lease_s) if known else ""
    steps_over = bool(stopped) and not queue.leased and not away
    return Relay(
        **vars(loop),
        kind=kind,
        late=late,
        failing=failing,
        stopped=stopped,
        publishes=publishes,
        away=broker.reason if broker and away else None,
        writes=writes,
        stands=program.with_due_rows(program.loop_state(frames, given, "relay"), steps_over),
        cut_off=_is_notification_cut_off(given),
        n=n,
        overloaded=_is_overloaded(frames, given, queue),
        retrying=live > 0 and not failing,
        ran=bool(loop.moved) or program.seen_running(frames, given, "relay"),
    )


def _is_notification_cut_off(given: JudgeInput) -> bool:
    """Return whether notification has no connection to the broker, and nobody has stopped it or switched it off."""
    unbound = [f for f in given.earlier if f.step == "4.1.2" and f.value("consumer.bound") == "no"]
    by_hand = {"delivery.down", "subscriber.switched_off"}
    return any(by_hand.isdisjoint(s.observation for s in f.signals) for f in unbound)


def _newest_batches(frames: Frames, given: JudgeInput) -> list[RelayBatch]:
    """Return the newest batches but the last one, which may still be going on."""
    found = sorted(rows.each(frames.get("batches"), RelayBatch), key=lambda b: str(b.started), reverse=True)
    return found[1 : 1 + int(given.number("overload.batches"))]


def _is_overloaded(frames: Frames, given: JudgeInput, queue: Outbox) -> bool:
    """Return whether more arrives than leaves although neither the database nor the broker delays the relay.

    All of the newest batches have the same size, the largest that the relay takes, and the relay pauses between them
    for most of the time. After an outage, the last minute's rate is that of the outage; that of the batches is not.
    """
    batches = _newest_batches(frames, given)
    if len(batches) < given.number("overload.batches") or queue.published_1m > queue.arrived_1m:
        return False
    busy, cycles = ([getattr(b, name) for b in batches] for name in ("exact_s", "cycle_s"))
    if len({b.n for b in batches}) > 1 or None in busy or None in cycles:
        return False
    keeps_up = sum(b.n for b in batches) * 60.0 > queue.arrived_1m * sum(cycles)
    return bool(not keeps_up and sum(busy) < given.number("overload.busy") * sum(cycles))


def read_loop(queue: Outbox, before: Outbox | None = None) -> TableLoop:
    """Return the relay's work; it moved if it claimed, published, or finished a row of its batch since `before`."""
    signs = [max(filter(None, (s.last_claim, s.last_published)), default=None) for s in (queue, before) if s]
    moved = None
    if before is not None:
        # Its batch is the same, or over.
        same = queue.last_claim in (before.last_claim, None)
        moved = same and queue.leased + queue.expired < before.leased + before.expired
        moved = moved or (signs[0] is not None and (signs[1] is None or signs[0] > signs[1]))
    return TableLoop(
        "relay", queue, seconds_between(signs[0], queue.now), seconds_between(queue.last_published, queue.now), moved
    )


def count_live_errors(frames: Frames, since: pd.Timestamp | None = None) -> tuple[float, str]:
    """Return how many rows have a current error, of a try after `since` if given, and the most frequent kind of it."""
    kinds: Counter[str] = Counter()
    for error in rows.each(frames.get("errors"), OutboxError):
        tried = error.tried_after or error.newest
        over = since is not None and tried is not None and tried <= since
        if error.status == "PENDING" and error.last_error is not None and not over:
            kinds[kind_of(error.last_error)] += int(error.n)
    return (float(kinds.total()), max(sorted(kinds), key=kinds.__getitem__)) if kinds else (0.0, "other")


def _failed_by_kind(frames: Frames, given: JudgeInput) -> dict[str, bool]:
    """Return the kinds of error of FAILED rows, and whether an event of that kind is recent.

    The time of the failure is not stored, so the time of the event is used.
    """
    since = given.as_of - pd.Timedelta(minutes=given.number("outbox.failed_recent"))
    kinds: dict[str, bool] = {}
    for error in rows.each(frames.get("errors"), OutboxError):
        if error.status == "FAILED":
            kind, recent = kind_of(error.last_error), error.newest is not None and error.newest >= since
            kinds[kind] = kinds.get(kind, False) or recent
    return kinds


def _list_observations(frames: Frames, given: JudgeInput, seen: Relay, held_up: tuple[str, ...]) -> Iterator[str]:
    """Yield the observations on the process, on the cause (`held_up`), and on the events that were given up."""
    yield from (*seen.stands.observations, *held_up)
    if not held_up and not seen.late and not seen.stands.wrong and seen.publishes:
        yield "publish.flows"
    # A stream that the broker reports as lost may still have existed for the last publishes.
    if not held_up and seen.away not in (None, Reason.ERROR) and seen.publishes:
        yield "publish.broker_takes_them"
    for failed, recent in _failed_by_kind(frames, given).items():
        if failed in OF_THE_EVENT:
            yield "publish.failed_payload" if failed == "payload" else "publish.failed_otherwise"
            if recent:
                yield "publish.failed_beside" if held_up else "publish.failed_lately"
        elif not held_up:
            # With a present cause these events are its consequence; without one they are left by a past cause.
            yield "publish.gave_up"


def _build_hops(seen: Relay, history: HopHistory | None) -> tuple[Hop, ...]:
    queue, alive = seen.queue, None
    if seen.stopped:
        alive = say("alive.silent", s=seen.silence_s)
    elif seen.failing or queue.published_1m:
        alive = say("alive.publish_fails" if seen.failing else "alive.publishes")
    return (
        Hop("producer", rate_out=queue.arrived_1m),
        Hop("relay", queue.arrived_1m, queue.published_1m, queue.ready, queue.oldest_s, alive, seen.late, history),
    )


def _propose_restart(given: JudgeInput, seen: Relay) -> tuple[Proposal, ...]:
    return (proposals.restart(given, "entitlement"),)


def _propose_by_kind(given: JudgeInput, seen: Relay) -> tuple[Proposal, ...]:
    if seen.away:
        return ()
    match seen.kind:
        case "no_stream":
            return remedies.make_stream(given)
        case "closed" | "no_subject":
            return _propose_restart(given, seen)
        case "full" | "too_large" | "refused" | "no_receipt":
            return (proposals.logs(given, "nats"),)
    if seen.locked_out or seen.kind == "timeout":
        return (remedies.check_nats_credentials(given),)
    return (proposals.logs(given, "entitlement"),)


def _observe_failure(seen: Relay) -> tuple[str, ...]:
    if seen.locked_out:
        return ("publish.nobody_let_in",)
    if seen.kind == "other":
        return ("publish.fails",) if seen.late else ()
    return (f"publish.fails_{seen.kind}",)


#: The cases by the outbox alone: publishes fail, by the kind of error, or nothing is tried.
OUTBOX = Cases[Relay](
    Case("publish.failing", lambda seen: seen.failing, Status.WARNING, _observe_failure, _propose_by_kind),
    # A broker that was not reached is no reason for a restart.
    Case("publish.undecided", lambda seen: seen.stopped and seen.away, evidence="publish.undecided"),
    Case("publish.seems_stopped", lambda seen: seen.stopped == "seems_stopped", evidence="publish.seems_stopped"),
    Case(
        "publish.stopped", lambda seen: seen.stopped, evidence="publish.stopped", propose=_propose_restart, read="5.1"
    ),
    Case("publish.overload", lambda seen: seen.late and seen.overloaded, evidence="publish.overload", read="5.2"),
    Case(
        "publish.retries",
        lambda seen: (
            (seen.late or seen.slow)
            and seen.retrying
            and seen.kind in ("no_stream", "no_subject", "full", "timeout", "closed")
        ),
        Status.WARNING,
        evidence=lambda seen: (f"publish.retries_{seen.kind}",),
    ),
    Case("publish.late", lambda seen: seen.late),
    Case("publish.failed", lambda seen: seen.queue.failed),
    Case("publish.stray", lambda seen: seen.queue.strays, Status.WARNING, evidence="publish.postponed"),
    Case("publish.postponed", lambda seen: seen.queue.postponed, Status.WARNING, evidence="publish.postponed"),
    Case("publish.over", lambda seen: seen.ended, Status.WARNING),
    Case("publish.passed", lambda seen: seen.passed, Status.WARNING),
    Case("publish.slow", lambda seen: seen.slow),
    Case(
        "publish.dated_back",
        lambda seen: seen.dated_back,
        Status.WARNING,
        evidence="publish.dated_back",
        says=lambda seen, facts: say("publish.dated_back", **facts, unfinished=seen.queue.total),
    ),
    Case("publish.flowing", lambda seen: seen.n),
    Case("publish.waiting", lambda seen: seen.queue.waiting_retry, Status.WARNING),
    Case("publish.quiet"),
)
#: The cases of the step: first a broker that accepts nothing, then a process that shows why it does not work.
CASES = Cases[Relay](
    Case(
        "publish.unwritten",  # publishes fail as in a cluster without a quorum, and it has none or may have none
        lambda seen: seen.failing and seen.kind in UNWRITTEN and seen.writes in (False, None),
        Status.WARNING,
        lambda seen: ("publish.quorum_unclear" if seen.writes is None else "publish.no_quorum",),
        lambda given, seen: (proposals.pods(given, "nats"), proposals.logs(given, "nats")),
        "2",
        lambda seen, facts: say("publish.perhaps_unwritten" if seen.writes is None else "publish.unwritten", **facts),
    ),
    Case(
        "publish.broker_gone",
        lambda seen: seen.failing and seen.away and (seen.kind not in ONE_BY_ONE),
        Status.WARNING,
        # A connection that was closed for good shows nothing about the broker at this moment.
        lambda seen: ("publish.gone_for_good" if seen.kind == "closed" else "publish.broker_gone",),
        # 4.1.2 proposes to create a stream that does not exist again.
        lambda given, seen: (
            () if seen.kind == "no_stream" else (proposals.restart(given, "nats"), proposals.logs(given, "nats"))
        ),
        "2",
    ),
    Case(
        "publish.not_at_work",
        lambda seen: seen.stands.wrong,
        evidence=lambda seen: OUTBOX.of(seen).observations,
        propose=lambda given, seen: program.proposals(given, seen.stands),
        read=lambda seen: ("2",) if seen.away else ("5.1",),
        says=lambda seen, facts: seen.stands.headline(**facts),
    ),
    *OUTBOX,
)


CHECKS: tuple[Check, ...] = (
    Check(
        "4.1.3",
        collect,
        judge,
        needs=("backlog",),
        # The broker is asked for the cause of what the outbox shows.
        optional=("broker", "batches", "published_steps", "program", "arrived"),
    ),
)
