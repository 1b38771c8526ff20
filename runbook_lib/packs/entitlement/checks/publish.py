"""4.1.3: how long events wait to be published, and what holds them: the relay, the broker or the event itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.actions import proposals
from runbook_lib.analysis import history
from runbook_lib.checks.check import Check, failures
from runbook_lib.checks.parts import Parts
from runbook_lib.context import Given
from runbook_lib.model.finding import Finding, Frames, Hop, Proposal, Reason, Signal, Status, Text, Value, judged, say
from runbook_lib.model.frames import amount, one, row, table
from runbook_lib.packs.entitlement.actions import remedies
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.view import charts

if TYPE_CHECKING:
    from runbook_lib.context import Context

#: PUBLISHED events are deleted after this time.
RETENTION = pd.Timedelta(hours=24)
#: How events fare now is told by those of the last minute.
NOW_MIN = 1
#: A publish so recent means that the way to the broker is open.
PUBLISHES_S = 5.0
#: FAILED rows of events younger than this belong to what is going on now; when they failed is kept nowhere.
RECENT_MIN = 10

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
)


def collect(rb: Context) -> Frames:
    """The outbox first; then whether the broker answers us, to tell the relay's failure from the broker's."""
    parts = Parts()
    with rb.snapshot() as db:
        frames = {"delay": db.ask("outbox/delay"), "unprocessed": db.ask("outbox/unprocessed")}
        frames["delay_now"] = db.ask("outbox/delay", since=rb.as_of - pd.Timedelta(minutes=NOW_MIN))
        if not rb.past:
            frames["backlog"] = db.ask("outbox/backlog")
            frames["errors"] = db.ask("outbox/errors")
        frames["open"] = db.ask("outbox/open")
        until = pd.Timestamp.now("UTC") + pd.Timedelta(hours=1)
        asked = {
            "arrivals": db.try_ask("outbox/arrivals_per_minute", as_of=until),
            "published": db.try_ask("outbox/published_per_minute", as_of=until),
            "delays": db.try_ask("outbox/delay_per_minute"),
        }
    frames |= {name: frame for name, frame in asked.items() if frame is not None}
    if not rb.past:
        with parts.part("broker") as answers:
            stream = rb.jetstream.stream(facts_of(rb).streams.events)
            answers["broker"] = row(answers=True, last_seq=stream["state"]["last_seq"])
    return frames | parts.frames()


def kind_of(error: object) -> str:
    """What an error text of the relay means: payload, closed, no_stream, timeout or other.

    >>> kind_of("Connection is Closed"), kind_of("Timeout or no response waiting for NATS JetStream server")
    ('closed', 'timeout')
    """
    words = str(error or "").lower()
    return next((kind for kind, phrase in KINDS if phrase in words), "other")


def judge(frames: Frames, given: Given) -> Finding:
    """Nobody tries: the relay. Tries fail: the broker, the connection or the event, by what the errors say."""
    now, delay = one(frames.get("backlog")), one(frames.get("delay"))
    limits = given.limits
    # An incident that is over stays in the window's percentile for long; what counts is how events fare now.
    lately = one(frames.get("delay_now"))
    p95 = lately.get("p95")
    delay_value = limits.value("outbox.publish_delay_p95", p95)
    values = [delay_value] if amount(lately, "n") else []
    values += [
        Value("outbox.window_delay_p95", delay.get("p95"), "s"),
        Value("outbox.published", amount(delay, "n"), "rows"),
        Value("outbox.window_delay_p50", delay.get("p50"), "s"),
        Value("outbox.window_delay_p99", delay.get("p99"), "s"),
        Value("outbox.published_not_processed", _rows(frames, "unprocessed"), "rows"),
    ]
    notes = []
    if not amount(delay, "n"):
        notes.append(say("publish.nothing_published", minutes=given.window_minutes))
    if amount(delay, "negative"):
        notes.append(say("publish.negative", n=amount(delay, "negative")))
    if not now:
        return judged(
            say("publish.past", p95=delay.get("p95"), n=amount(delay, "n")),
            values,
            at_least=Status.UNKNOWN,
            reason=Reason.NO_DATA,
            notes=(*notes, say("publish.present_only")),
        )

    due = amount(now, "due") + amount(now, "expired")
    oldest = max(amount(now, "oldest_due_s"), amount(now, "oldest_expired_s"))
    failed, tried = amount(now, "failed"), amount(now, "tried")
    silence = _silence(now, oldest)
    live, kind = _live_errors(frames, given)
    values += [
        limits.value("outbox.oldest_due", oldest),
        limits.value("outbox.failed", failed),
        Value("outbox.due", due, "rows"),
        Value("outbox.waiting_retry", amount(now, "waiting_retry"), "rows"),
        Value("outbox.leased", amount(now, "leased"), "rows"),
        Value("outbox.tried_before", tried, "rows"),
        Value("outbox.silence", silence, "s"),
    ]
    late = oldest >= (limits["outbox.oldest_due"].warning or 0)
    if tried and not live and amount(now, "leased") and silence < (limits["outbox.oldest_due"].critical or 0):
        # The relay has just claimed again what had failed, and a claim wipes the error.
        live, kind = tried, "unseen"
    # While publishes succeed, rows with an error of the broker or of the connection only wait for their turn.
    failing = live > 0 and tried > 0 and (kind in ("payload", "other") or not _publishes(now))
    slow = bool(amount(lately, "n")) and delay_value.status is not Status.OK
    broker = failures(frames).get("broker")
    stopped = late and not failing and silence >= (limits["outbox.oldest_due"].warning or 0)
    cut_off = _subscriber_is_cut_off_too(given)
    facts: dict[str, Any] = {
        "due": due,
        "oldest": oldest,
        "silence": silence,
        "tried": tried,
        "failed": failed,
        "p95": p95,
        "n": amount(lately, "n"),
        "minutes": NOW_MIN,
        "window_n": amount(delay, "n"),
        "error": say(f"publish.kind_{kind}"),
    }
    if broker is not None:
        notes.append(
            say(
                "publish.broker",
                why=say(f"unknown.{broker.reason}", source="jetstream", detail=broker.detail),
            )
        )
    away = broker is not None and broker.reason in (Reason.UNREACHABLE, Reason.TIMEOUT, Reason.ERROR)
    # What the broker itself says it has lost may have been there for the last publishes.
    flows = away and broker is not None and broker.reason is not Reason.ERROR and _publishes(now)
    # That it cannot be reached from here is half of it; that the relay's publishes fail as well makes it broken.
    gone = away and failing and kind not in ("payload", "other")
    return judged(
        _headline(stopped, failing, away, gone, late, slow, facts),
        values,
        at_least=Status.WARNING if failing else Status.OK,
        notes=tuple(notes),
        signals=tuple(_signals(frames, given, stopped, failing, late, kind, away, gone, flows, cut_off, silence, now)),
        hops=_hops(now, due, oldest, stopped, failing, silence, late),
        proposals=_proposals(given, stopped, failing, kind, away, gone, cut_off),
        next_sections=("2",) if away else ("5.1",) if stopped else ("4.4",) if failed else (),
        show=("errors",) if _rows(frames, "errors") else (),
    )


def _rows(frames: Frames, name: str) -> int | None:
    return len(frames[name]) if name in frames else None


def _silence(now: dict[str, Any], oldest: float) -> float:
    """How long nobody has claimed or published although something was due."""
    seen = [now[sign] for sign in ("last_claim", "last_published") if now.get(sign) is not None]
    if not seen or now.get("now") is None:
        return oldest
    since_last: float = (now["now"] - max(seen)).total_seconds()
    return max(min(since_last, oldest), 0.0)


def _publishes(now: dict[str, Any]) -> bool:
    """Whether a publish has succeeded so lately that the way to the broker is open."""
    last = now.get("last_published")
    return last is not None and now.get("now") is not None and (now["now"] - last).total_seconds() < PUBLISHES_S


def _live_errors(frames: Frames, given: Given) -> tuple[float, str]:
    """How many rows carry an error of now, and the kind that most of them have."""
    errors = table(frames, "errors", "status", "last_error", "n")
    live = errors[(errors["status"] == "PENDING") & errors["last_error"].notna()]
    if live.empty:
        return 0.0, "other"
    counts = live["n"].astype(float).groupby([kind_of(e) for e in live["last_error"]]).sum()
    return float(counts.sum()), str(counts.idxmax())


def _failed_by_kind(frames: Frames, given: Given) -> dict[str, bool]:
    """Kinds of error among FAILED rows, and whether any such event is recent."""
    errors = table(frames, "errors", "status", "last_error", "newest")
    since = given.as_of - pd.Timedelta(minutes=RECENT_MIN)
    failed = errors[errors["status"] == "FAILED"]
    kinds: dict[str, bool] = {}
    for error, newest in zip(failed["last_error"], failed["newest"], strict=True):
        kind = kind_of(error)
        kinds[kind] = kinds.get(kind, False) or bool(newest is not None and newest >= since)
    return kinds


def _subscriber_is_cut_off_too(given: Given) -> bool:
    """Whether 4.1.2 has found the other client of the broker without a connection."""
    return any(f.step == "4.1.2" and f.value("consumer.bound") == "no" for f in given.earlier)


def _headline(
    stopped: bool, failing: bool, away: bool, gone: bool, late: bool, slow: bool, facts: dict[str, Any]
) -> Text:
    if failing:
        return say("publish.broker_gone" if gone else "publish.failing", **facts)
    if stopped and away:
        return say("publish.undecided", **facts)
    if stopped:
        return say("publish.stopped", **facts)
    if late:
        return say("publish.late", **facts)
    if facts["failed"]:
        return say("publish.failed", **facts)
    if slow:
        return say("publish.slow", **facts)
    if facts["n"]:
        return say("publish.flowing", **facts)
    return say("publish.quiet" if facts["window_n"] else "publish.idle", **facts)


def _signals(
    frames: Frames,
    given: Given,
    stopped: bool,
    failing: bool,
    late: bool,
    kind: str,
    away: bool,
    gone: bool,
    flows: bool,
    cut_off: bool,
    silence: float,
    now: dict[str, Any],
) -> list[Signal]:
    signals = []
    broken = True
    if gone:
        # A connection that was closed for good says no more of the broker at this moment.
        sure = 0.6 if kind == "closed" else 0.85
        signals += [
            Signal("jetstream", sure),
            Signal("FM-NATS-04", sure),
            Signal("FM-OB-01", 0.5),
            Signal("relay", -0.6),
        ]
    elif stopped and away:
        signals += [Signal("relay", 0.4), Signal("FM-OB-01", 0.4), Signal("jetstream", 0.4), Signal("FM-NATS-04", 0.4)]
    elif failing and kind == "no_stream":
        signals += [Signal("jetstream", 0.85), Signal("FM-NATS-04", 0.85), Signal("FM-OB-01", 0.5)]
    elif failing and kind in ("timeout", "unseen") and cut_off:
        # The broker answers us, and neither of its two clients: its door, or the way to it.
        signals += [
            Signal("jetstream", 0.85),
            Signal("FM-NATS-05", 0.85),
            Signal("FM-OB-01", 0.5),
            Signal("relay", -0.5),
        ]
    elif failing and kind in ("timeout", "closed"):
        signals += [Signal("relay", 0.85), Signal("FM-NATS-05", 0.85), Signal("FM-OB-01", 0.5)]
    elif failing and kind == "unseen":
        signals += [Signal("relay", 0.7), Signal("FM-OB-01", 0.6), Signal("FM-NATS-05", 0.4)]
    elif failing and kind == "payload":
        signals += [Signal("producer", 0.6), Signal("FM-OB-02", 0.6)]
    elif failing and late:
        signals += [Signal("relay", 0.55), Signal("FM-OB-01", 0.6)]
    elif stopped:
        # With rows in hand it may be in a batch that takes long.
        critical = given.limits["outbox.oldest_due"].critical or 0
        sure = 0.9 if silence >= critical or not amount(now, "leased") else 0.6
        signals += [Signal("relay", sure), Signal("FM-OB-01", sure)]
    else:
        broken = False
        if not late and amount(now, "published_1m"):
            signals += [Signal("relay", -0.5), Signal("FM-OB-01", -0.5)]
        if flows:
            signals += [Signal("jetstream", -0.5), Signal("FM-NATS-04", -0.5)]
    for failed, recent in _failed_by_kind(frames, given).items():
        if failed in ("payload", "other"):
            signals.append(Signal("FM-OB-02", 0.85 if failed == "payload" else 0.5))
            if recent:
                signals.append(Signal("producer", 0.3 if broken else 0.6))
        elif recent:
            signals += [Signal("FM-OB-01", 0.4)]
    return signals


def _hops(
    now: dict[str, Any], due: float, oldest: float, stopped: bool, failing: bool, silence: float, late: bool
) -> tuple[Hop, ...]:
    arrived = amount(now, "arrived_1m")
    alive = None
    if stopped:
        alive = say("alive.silent", s=silence)
    elif failing or amount(now, "published_1m"):
        alive = say("alive.publish_fails" if failing else "alive.publishes")
    return (
        Hop("producer", rate_out=arrived),
        Hop("relay", arrived, amount(now, "published_1m"), due, oldest, alive, late),
    )


def _proposals(
    given: Given, stopped: bool, failing: bool, kind: str, away: bool, gone: bool, cut_off: bool
) -> tuple[Proposal, ...]:
    if gone and kind == "no_stream":
        return ()  # 4.1.2 proposes what makes the stream again
    if gone:
        return (proposals.restart(given, "nats"), proposals.logs(given, "nats"))
    if away:
        return ()  # nothing is restarted for what was only not seen
    if stopped or (failing and kind == "closed"):
        return (proposals.restart(given, "entitlement"),)
    if failing and (kind == "timeout" or (kind == "unseen" and cut_off)):
        return (remedies.check_nats_credentials(given),)
    if failing and kind == "no_stream":
        return (proposals.restart(given, "notification"), proposals.restart(given, "entitlement"))
    if failing:
        return (proposals.logs(given, "entitlement"),)
    return ()


def draw_history(frames: Frames, given: Given) -> charts.Chart | None:
    """The outbox's backlog over the window."""
    anchor = one(frames.get("open"))
    if not anchor or "arrivals" not in frames or "published" not in frames:
        return None
    now = max(pd.Timestamp(anchor.get("now") or given.as_of), given.as_of)
    ahead = int((now.ceil("min") - given.as_of.ceil("min")) / history.MINUTE)
    came, left = (history.counts(frames[name]) for name in ("arrivals", "published"))
    series = history.backlog_series(amount(anchor, "n"), came, left, now, given.window_minutes + ahead)
    series = series.iloc[: given.window_minutes]
    if series.empty:
        return None
    figure, ax = charts.axes("Unpublished outbox events, rebuilt from timestamps", "rows", "UTC")
    charts.flows(ax, series, ("unpublished at the minute's end", "created per min", "published per min"))
    charts.legend(figure)
    peak = series["backlog"].idxmax()
    spots = history.blind_spots(given.window_minutes, RETENTION, None, anchor.get("oldest"), given.as_of)
    return charts.Chart(
        figure,
        say(
            "publish.alt_history",
            now=float(series["backlog"].iloc[-1]),
            peak=float(series["backlog"].max()),
            at=f"{peak:%H:%M}",
            minutes=len(series),
        ),
        tuple(say(f"blind_spot.{spot}") for spot in spots if spot != "one_status"),
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
