"""4.1.3: how long events wait to be published, and what holds them: the relay, the broker or the event itself."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from runbook_lib import rows
from runbook_lib.actions import proposals
from runbook_lib.checks.check import Check, failures
from runbook_lib.checks.parts import Parts, seconds_between
from runbook_lib.context import Given
from runbook_lib.model.finding import Finding, Frames, Hop, Proposal, Reason, Signal, Status, Text, Value, judged, say
from runbook_lib.model.frames import row, table
from runbook_lib.packs.entitlement.actions import remedies
from runbook_lib.packs.entitlement.checks import past, program, quorum
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.packs.entitlement.rows import Delay, Outbox
from runbook_lib.view import charts

if TYPE_CHECKING:
    from runbook_lib.context import Context

#: What the relay writes into last_error, by what it means. The first phrase that fits decides.
KINDS = (
    ("payload", "payload parse failure"),
    ("closed", "connection is closed"),
    ("no_stream", "no responders"),
    ("no_stream", "503"),
    ("timeout", "timeout"),
    ("timeout", "timed out"),
    ("timeout", "puback is missing"),
    ("payload", "unknown event type"),
    ("full", "maximum messages exceeded"),
    ("full", "maximum bytes exceeded"),
)


#: Kinds of error that are the event's own: other events are published all the same.
OF_THE_EVENT = ("payload", "other")
#: Kinds of error that a cluster which cannot write gives.
UNWRITTEN = ("no_stream", "timeout", "unseen", "closed")
#: What it is where the broker was seen and publishes fail with that kind of error.
FAILS = {
    "no_stream": "publish.fails_no_stream",
    "timeout": "publish.fails_timeout",
    "closed": "publish.fails_closed",
    "unseen": "publish.fails_unseen",
    "payload": "publish.fails_payload",
    "full": "publish.fails_full",
}


@dataclass(frozen=True)
class Error:
    """Unpublished events with one text."""

    QUESTION: ClassVar[str] = "outbox/errors"

    status: str | None = None
    last_error: str | None = None
    n: float = 0.0
    newest: pd.Timestamp | None = None


@dataclass(frozen=True)
class Relay:
    """What holds the outbox up.

    `silence_s` is how long nobody has claimed or published although something was due, `kind` that of most errors of
    now (see `kind_of`). `away` tells that the broker was not seen, `gone` that it is broken, `cut_off` that the other
    client of the broker is without a connection, `publishes` that one has just succeeded, `writes` that a cluster
    could store one, None where that cannot be told.
    """

    queue: Outbox
    silence_s: float
    kind: str
    late: bool
    failing: bool
    stopped: bool
    publishes: bool
    away: bool
    said_lost: bool
    cut_off: bool
    writes: bool | None
    stands: program.Stands

    @property
    def gone(self) -> bool:
        """That it cannot be reached from here is half of it; that publishes fail as well makes it broken."""
        return self.away and self.failing and self.kind not in OF_THE_EVENT

    @property
    def unwritten(self) -> bool:
        """Whether publishes fail with what a cluster without its quorum answers, and it has none, or may have none."""
        return not self.writes and self.failing and self.kind in UNWRITTEN


def collect(rb: Context) -> Frames:
    """The outbox first; then whether the broker answers us, to tell the relay's failure from the broker's.

    Frames: delay, delay_now (of the last minute), unprocessed, backlog, errors; delays and that of `past.ask` where
    cheap; broker (answers: flag, last_seq: number), replicas (fields of `quorum.Member`) in a cluster.
    """
    parts = Parts()
    with rb.snapshot() as db:
        frames = {name: db.ask(f"outbox/{name}") for name in ("delay", "unprocessed")}
        frames["delay_now"] = db.ask("outbox/delay", since=rb.as_of - pd.Timedelta(minutes=rb.number("publish.now")))
        if not rb.past:
            frames |= {name: db.ask(f"outbox/{name}") for name in ("backlog", "errors")}
        if (delays := db.try_ask("outbox/delay_per_minute")) is not None:
            frames["delays"] = delays
        frames |= past.ask(rb, db, past.window(rb.given()), ["outbox"])
    if not rb.past:
        queue = rows.one(frames["backlog"], Outbox)
        late = queue.oldest_s >= (rb.catalog.limits["outbox.oldest_due"].warning or 0)
        if late or not _publishes(queue, rb.number("success.lately")):
            program.ask(rb, "4.1.3", parts, "relay", late)
        with parts.part("broker") as answers:
            stream = rb.jetstream.stream(facts_of(rb).streams.events)
            answers["broker"] = row(answers=True, last_seq=stream.get("state", {}).get("last_seq"))
            answers["replicas"] = rows.frame(quorum.members(facts_of(rb).streams.events, stream), quorum.Member)
    return frames | parts.frames()


def kind_of(error: object) -> str:
    """What an error text of the relay means: payload, closed, no_stream, timeout, full or other.

    >>> kind_of("Connection is Closed"), kind_of("Timeout or no response waiting for NATS JetStream server")
    ('closed', 'timeout')
    """
    words = str(error or "").lower()
    return next((kind for kind, phrase in KINDS if phrase in words), "other")


def judge(frames: Frames, given: Given) -> Finding:
    """Nobody tries: the relay. Tries fail: the broker, the connection or the event, by what the errors say."""
    limits = given.limits
    # An incident that is over stays in the window's percentile for long; what counts is how events fare now.
    window, lately = (rows.one(frames.get(name), Delay) for name in ("delay", "delay_now"))
    delay_value = limits.value("outbox.publish_delay_p95", lately.p95)
    unprocessed = len(frames["unprocessed"]) if "unprocessed" in frames else None
    values = [
        *([delay_value] if lately.n else []),
        Value("outbox.window_delay_p95", window.p95, "s"),
        Value("outbox.published", window.n, "rows"),
        Value("outbox.window_delay_p50", window.p50, "s"),
        Value("outbox.window_delay_p99", window.p99, "s"),
        Value("outbox.published_not_processed", unprocessed, "rows"),
    ]
    notes = []
    if not window.n:
        notes.append(say("publish.nothing_published", minutes=given.window_minutes))
    if window.negative:
        notes.append(say("publish.negative", n=window.negative))
    queue = rows.first(frames.get("backlog"), Outbox)
    if queue is None:
        return judged(
            say("publish.past", p95=window.p95, n=window.n),
            values,
            at_least=Status.UNKNOWN,
            reason=Reason.NO_DATA,
            notes=(*notes, say("publish.present_only")),
        )
    seen = _relay(frames, given, queue)
    values += [
        limits.value("outbox.oldest_due", queue.oldest_s),
        limits.value("outbox.failed", queue.failed),
        Value("outbox.due", queue.ready, "rows"),
        Value("outbox.waiting_retry", queue.waiting_retry, "rows"),
        Value("outbox.leased", queue.leased, "rows"),
        Value("outbox.tried_before", queue.tried, "rows"),
        Value("outbox.silence", seen.silence_s, "s"),
    ]
    if (broker := failures(frames).get("broker")) is not None:
        why = say(f"unknown.{broker.reason}", source="jetstream", detail=broker.detail)
        notes.append(say("publish.broker", why=why))
    slow = bool(lately.n) and delay_value.status is not Status.OK
    return judged(
        _headline(seen, window, lately, slow, given),
        values,
        at_least=Status.WARNING if seen.failing and not seen.stands.wrong else seen.stands.status,
        notes=tuple(notes),
        signals=tuple(_signals(frames, given, seen)),
        hops=_hops(seen),
        proposals=_proposals(given, seen),
        next_sections=("2",)
        if seen.away or seen.unwritten
        else ("5.1",)
        if seen.stopped or seen.stands.wrong
        else ("4.4",)
        if queue.failed
        else (),
        show=("errors",) if len(frames.get("errors", ())) else (),
    )


def _relay(frames: Frames, given: Given, queue: Outbox) -> Relay:
    limit, oldest = given.limits["outbox.oldest_due"], queue.oldest_s
    times = [at for at in (queue.last_claim, queue.last_published) if at is not None]
    since_last = oldest if queue.now is None or not times else (queue.now - max(times)).total_seconds()
    silence = max(min(since_last, oldest), 0.0)
    publishes = _publishes(queue, given.number("success.lately"))
    live, kind = _live_errors(frames)
    if queue.tried and not live and queue.leased and silence < (limit.critical or 0):
        # The relay has just claimed again what had failed, and a claim wipes the error.
        live, kind = queue.tried, "unseen"
    # While publishes succeed, rows with an error of the broker or of the connection only wait for their turn.
    failing = live > 0 and queue.tried > 0 and (kind in OF_THE_EVENT or not publishes)
    late = oldest >= (limit.warning or 0)
    broker = failures(frames).get("broker")
    writes = quorum.writes(frames, given, facts_of(given).streams.events, "broker")
    away = writes and broker is not None and broker.reason in (Reason.UNREACHABLE, Reason.TIMEOUT, Reason.ERROR)
    stopped = late and not failing and silence >= (limit.warning or 0)
    steps_over = stopped and not queue.leased and not away
    return Relay(
        queue=queue,
        silence_s=silence,
        kind=kind,
        late=late,
        failing=failing,
        stopped=stopped,
        publishes=publishes,
        away=bool(away),
        writes=writes,
        said_lost=broker is not None and broker.reason is Reason.ERROR,
        stands=program.beside(program.stands(frames, given, "relay"), steps_over, "relay"),
        cut_off=any(f.step == "4.1.2" and f.value("consumer.bound") == "no" for f in given.earlier),
    )


def _publishes(queue: Outbox, lately_s: float) -> bool:
    """Whether a row was published so lately."""
    published_s = seconds_between(queue.last_published, queue.now)
    return published_s is not None and published_s < lately_s


def _live_errors(frames: Frames) -> tuple[float, str]:
    """How many rows carry an error of now, and the kind that most of them have."""
    kinds: Counter[str] = Counter()
    for error in rows.each(frames.get("errors"), Error):
        if error.status == "PENDING" and error.last_error is not None:
            kinds[kind_of(error.last_error)] += int(error.n)
    return (float(kinds.total()), max(sorted(kinds), key=kinds.__getitem__)) if kinds else (0.0, "other")


def _failed_by_kind(frames: Frames, given: Given) -> dict[str, bool]:
    """Kinds of error among FAILED rows, and whether any such event is recent: when it failed is kept nowhere."""
    since = given.as_of - pd.Timedelta(minutes=given.number("outbox.failed_recent"))
    kinds: dict[str, bool] = {}
    for error in rows.each(frames.get("errors"), Error):
        if error.status == "FAILED":
            kind, recent = kind_of(error.last_error), error.newest is not None and error.newest >= since
            kinds[kind] = kinds.get(kind, False) or recent
    return kinds


def _headline(seen: Relay, window: Delay, lately: Delay, slow: bool, given: Given) -> Text:
    facts: dict[str, Any] = {
        "due": seen.queue.ready,
        "oldest": seen.queue.oldest_s,
        "silence": seen.silence_s,
        "tried": seen.queue.tried,
        "failed": seen.queue.failed,
        "p95": lately.p95,
        "n": lately.n,
        "minutes": given.number("publish.now"),
        "window_n": window.n,
        "error": say(f"publish.kind_{seen.kind}"),
    }
    if seen.unwritten:
        key = "unwritten" if seen.writes is False else "perhaps_unwritten"
    elif seen.failing:
        key = "broker_gone" if seen.gone else "failing"
    elif seen.stands.wrong:
        return seen.stands.headline(**facts | {"due": seen.queue.ready})
    elif seen.stopped:
        key = "undecided" if seen.away else "stopped"
    elif seen.late:
        key = "late"
    elif seen.queue.failed:
        key = "failed"
    elif slow:
        key = "slow"
    elif lately.n:
        key = "flowing"
    else:
        key = "quiet" if window.n else "idle"
    return say(f"publish.{key}", **facts)


def _holds_up(seen: Relay, given: Given) -> str:
    """The observation of what holds the outbox up; "" for nothing."""
    if seen.unwritten:
        return "publish.no_quorum" if seen.writes is False else "publish.quorum_unclear"
    if seen.gone:
        # A connection that was closed for good says no more of the broker at this moment.
        return "publish.gone_for_good" if seen.kind == "closed" else "publish.broker_gone"
    if seen.stopped:
        # With rows in hand it may be in a batch that takes long.
        sure = not seen.queue.leased or seen.silence_s >= (given.limits["outbox.oldest_due"].critical or 0)
        return "publish.undecided" if seen.away else "publish.stopped" if sure else "publish.seems_stopped"
    if not seen.failing:
        return ""
    if seen.kind in ("timeout", "unseen") and seen.cut_off:
        return "publish.nobody_let_in"  # the broker answers us, and neither of its two clients
    if seen.kind == "other":
        return "publish.fails" if seen.late else ""
    return FAILS[seen.kind]


def _signals(frames: Frames, given: Given, seen: Relay) -> list[Signal]:
    held_up = _holds_up(seen, given)
    found = [signal for name in (*seen.stands.observations, held_up) if name for signal in given.speaks(name)]
    if not held_up and not seen.late and not seen.stands.wrong and seen.publishes:
        found += given.speaks("publish.flows")
    # What the broker itself says it has lost may have been there for the last publishes.
    if not held_up and seen.away and not seen.said_lost and seen.publishes:
        found += given.speaks("publish.broker_takes_them")
    for failed, recent in _failed_by_kind(frames, given).items():
        if failed in OF_THE_EVENT:
            found += given.speaks("publish.failed_payload" if failed == "payload" else "publish.failed_otherwise")
            if recent:
                found += given.speaks("publish.failed_beside" if held_up else "publish.failed_lately")
        elif not held_up:
            # Beside what holds the others up they are its consequence; alone, whatever it was is over and they stay.
            found += given.speaks("publish.gave_up")
    return found


def _hops(seen: Relay) -> tuple[Hop, ...]:
    queue, alive = seen.queue, None
    if seen.stopped:
        alive = say("alive.silent", s=seen.silence_s)
    elif seen.failing or queue.published_1m:
        alive = say("alive.publish_fails" if seen.failing else "alive.publishes")
    return (
        Hop("producer", rate_out=queue.arrived_1m),
        Hop("relay", queue.arrived_1m, queue.published_1m, queue.ready, queue.oldest_s, alive, seen.late),
    )


def _proposals(given: Given, seen: Relay) -> tuple[Proposal, ...]:
    if seen.unwritten:
        return (proposals.pods(given, "nats"), proposals.logs(given, "nats"))
    if seen.gone and seen.kind == "no_stream":
        return ()  # 4.1.2 proposes what makes the stream again
    if seen.gone:
        return (proposals.restart(given, "nats"), proposals.logs(given, "nats"))
    if seen.stands.wrong:
        return program.proposals(given, seen.stands, "relay")
    if seen.away:
        return ()  # nothing is restarted for what was only not seen
    if seen.stopped or (seen.failing and seen.kind == "closed"):
        return (proposals.restart(given, "entitlement"),)
    if not seen.failing:
        return ()
    if seen.kind == "full":
        return (proposals.logs(given, "nats"),)
    if seen.kind == "timeout" or (seen.kind == "unseen" and seen.cut_off):
        return (remedies.check_nats_credentials(given),)
    if seen.kind == "no_stream":
        return (proposals.restart(given, "notification"), proposals.restart(given, "entitlement"))
    return (proposals.logs(given, "entitlement"),)


def draw_history(frames: Frames, given: Given) -> charts.Chart | None:
    """The outbox's backlog over the window."""
    retention = pd.Timedelta(hours=given.number("retention.outbox"))
    return past.draw(
        past.levels(frames, "outbox", past.window(given)),
        past.window(given),
        "Unpublished outbox events, by the rows' own timestamps",
        ("unpublished at the minute's end", "created per min", "published per min"),
        "publish.alt_history",
        past.blind_spots(given, retention, without="one_status"),
    )


def draw_delay(frames: Frames, given: Given) -> charts.Chart | None:
    """Percentiles of the publish delay by minute."""
    delays = table(frames, "delays", "minute", "n", "p50", "p95").dropna(subset=["n", "p50", "p95"])
    if delays.empty:
        return None
    delays = delays.sort_values("minute")
    figure, ax = charts.axes("Publish delay of events, by the minute they were published in", "s", "UTC")
    ax.plot(delays["minute"], delays["p95"], color=charts.BLUE, linewidth=1.8, marker=".", label="p95")
    ax.plot(delays["minute"], delays["p50"], color=charts.GREY, linewidth=1.2, linestyle="--", label="p50")
    charts.thresholds(ax, given.limits["outbox.publish_delay_p95"])
    ax.set_ylim(bottom=0)
    charts.clock_ticks(ax)
    charts.legend(figure)
    worst = delays.sort_values("p95").iloc[-1]
    return charts.Chart(
        figure,
        say(
            "publish.alt_delay",
            p95=float(worst["p95"]),
            at=f"{worst['minute']:%H:%M}",
            n=float(delays["n"].sum()),
        ),
        (say("publish.delay_caption"),),
    )


CHECKS: tuple[Check, ...] = (Check("4.1.3", collect, judge, (draw_history, draw_delay)),)
