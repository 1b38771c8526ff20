"""4.1.2: is the subscriber bound to its consumer, how far behind is it, and why did it go?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.actions import proposals
from runbook_lib.analysis.diagnosis import signals_of_silence
from runbook_lib.checks.check import Check, failures
from runbook_lib.checks.parts import Parts, seconds_between
from runbook_lib.context import Given
from runbook_lib.model.finding import (
    Finding,
    Frames,
    Hop,
    Proposal,
    Reason,
    Signal,
    Status,
    Text,
    Value,
    judged,
    say,
    unknown,
)
from runbook_lib.model.frames import amount, one, row, table
from runbook_lib.packs.entitlement.actions import remedies
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.sources import SourceError

if TYPE_CHECKING:
    from runbook_lib.context import Context

#: The server's words for a client that it did not let in.
REFUSED = (
    "Authentication Failure",
    "Authentication Timeout",
    "Authorization Violation",
    "TLS Handshake Failure",
)
#: So many refusals within a minute are a loop: the client tries again every 2 s.
LOOP = 3
#: And so many seconds without one are the end of it.
QUIET_S = 10.0
#: What the broker itself says it does not have.
GONE = ("stream_not_found", "consumer_not_found", "no_jetstream")
_BROKER = {"hung": "alive.no_answer", "stream_not_found": "alive.no_stream", "no_jetstream": "alive.no_stream"}
#: An event processed so recently means that the way through the broker is open.
FLOWS_S = 2.0
#: Reasons of a healthy life, or of the runbook's own visits.
QUIET = ("Client Closed", "Server Shutdown")


def collect(rb: Context) -> Frames:
    """The consumer's own account first, then who is connected, then what the tables say; each may be missing."""
    parts = Parts()
    with parts.part("consumer") as frames:
        frames |= _consumer(rb)
    if not rb.past:
        with parts.part("clients") as frames:
            frames |= _clients(rb, str(one(frames.get("consumer")).get("deliver_subject") or ""))
    with parts.part("events") as frames, rb.snapshot() as db:
        frames["unprocessed"] = db.ask("outbox/unprocessed")
        others = {
            "nats_dlq": db.try_ask("processed/nats_dlq"),
            "activity": db.try_ask("processed/activity"),
        }
        frames |= {name: frame for name, frame in others.items() if frame is not None}
    return parts.frames()


def _consumer(rb: Context) -> Frames:
    if rb.past:
        raise SourceError("jetstream", Reason.NO_DATA, "the broker knows only the present")
    names = facts_of(rb).streams
    stream = rb.jetstream.stream(names.events)
    consumer = rb.jetstream.consumer(names.events, names.consumer)
    config = consumer["config"]
    seen = {
        "ts": consumer.get("ts"),
        "bound": bool(consumer.get("push_bound")),
        "push": bool(config.get("deliver_subject")),
        "num_waiting": consumer.get("num_waiting", 0),
        "num_pending": consumer["num_pending"],
        "num_ack_pending": consumer["num_ack_pending"],
        "max_ack_pending": config.get("max_ack_pending", 0),
        "num_redelivered": consumer["num_redelivered"],
        "delivered_seq": consumer["delivered"]["stream_seq"],
        "ack_floor_seq": consumer["ack_floor"]["stream_seq"],
        "last_seq": stream["state"]["last_seq"],
        "last_message": stream["state"].get("last_ts"),
        "stream_created": stream.get("created"),
        "deliver_subject": config.get("deliver_subject"),
    }
    frames = {"consumer": row(**seen)}
    if seen["num_pending"] or seen["num_ack_pending"]:
        subject = config.get("filter_subject") or ">"
        message = rb.jetstream.message(names.events, seen["ack_floor_seq"] + 1, subject)
        if message is not None:
            age = (pd.Timestamp(seen["ts"]) - pd.Timestamp(message.time)).total_seconds()
            frames["oldest"] = row(seq=message.seq, stored=message.time, age_s=max(age, 0.0))
    return frames


def _clients(rb: Context, inbox: str) -> Frames:
    monitor = rb.nats_monitor
    clients, closed = monitor.connections(), monitor.closed()
    now = pd.Timestamp(monitor.server()["now"])
    return {"clients": clients_of(clients, inbox), "closed": closed_of(closed, now)}


def clients_of(connections: pd.DataFrame, inbox: str) -> pd.DataFrame:
    """Who is connected beside runbooks, and which of them listens where the consumer delivers to."""
    others = connections[~connections["name"].fillna("").str.startswith("runbook/")]
    listens = [bool(inbox) and inbox in str(subjects).split() for subjects in others["subjects"]]
    return others[["cid", "name", "ip", "port", "start", "user", "pending_bytes"]].assign(bound=listens)


def closed_of(connections: pd.DataFrame, now: pd.Timestamp) -> pd.DataFrame:
    """Why connections were closed, by client and reason: how often, in the last minute, when last."""
    columns = ["client", "ip", "reason", "n", "last_minute", "last_s_ago"]
    others = connections[
        ~connections["name"].fillna("").str.startswith("runbook/") & ~connections["reason"].isin(QUIET)
    ]
    if others.empty:
        return pd.DataFrame(columns=columns)
    client = others["name"].replace("", None).fillna(others["user"]).fillna("-")
    recent = others["stop"] > now - pd.Timedelta(minutes=1)
    grouped = (
        others.assign(client=client, recent=recent)
        .groupby(["client", "ip", "reason"], dropna=False)
        .agg(n=("reason", "size"), last_minute=("recent", "sum"), last=("stop", "max"))
        .reset_index()
    )
    grouped["last_s_ago"] = (now - grouped.pop("last")).dt.total_seconds().round(1)
    return grouped[columns].sort_values("last_s_ago").head(50).reset_index(drop=True)


def judge(frames: Frames, given: Given) -> Finding:
    """Unbound is deaf; bound and behind is slow; published, not behind and not processed is lost."""
    consumer, activity = one(frames.get("consumer")), one(frames.get("activity"))
    failed = failures(frames)
    if "consumer" in failed and failed["consumer"].code in (*GONE, "hung"):
        return _gone(failed["consumer"], activity, given)
    lag = amount(consumer, "num_pending") + amount(consumer, "num_ack_pending") if consumer else None
    oldest = amount(one(frames.get("oldest")), "age_s") if consumer else None
    missed, newest_s = _unprocessed(frames, given)
    # What the consumer still holds is late; what it does not hold any more is lost.
    lost = None if missed is None else max(missed - (lag or 0), 0)
    # The monitoring port also shows what the consumer's own account is refused to us for.
    bound = bool(consumer.get("bound")) if consumer else None
    refused, words = _refused(frames)
    locked_out = refused >= LOOP and "clients" in frames and frames["clients"].empty

    limits = given.limits
    values = []
    if consumer:
        values += [
            limits.value("subscriber.lag", lag),
            limits.value("subscriber.oldest_unprocessed", oldest),
            Value("consumer.bound", "yes" if bound else "no"),
            Value("consumer.num_pending", amount(consumer, "num_pending"), "messages"),
            Value("consumer.num_ack_pending", amount(consumer, "num_ack_pending"), "messages"),
            Value("consumer.num_redelivered", amount(consumer, "num_redelivered"), "messages"),
        ]
    if lost is not None:
        values.append(limits.value("outbox.unprocessed", lost))
        values.append(Value("outbox.published_not_processed", missed, "rows"))
    if refused:
        values.append(Value("connections.refused_last_minute", refused, "1/min"))

    stalled = bool(consumer) and 0 < amount(consumer, "max_ack_pending") <= amount(consumer, "num_ack_pending")
    stalled = stalled and amount(consumer, "num_pending") > 0
    losing = bool(lost) and newest_s < 180 and bound is not False
    at_least = Status.OK
    if bound is False or (refused >= LOOP and bound is None):
        at_least = Status.CRITICAL
    elif bound is None:
        at_least = Status.UNKNOWN
    elif stalled or refused >= LOOP:
        at_least = Status.WARNING
    facts: dict[str, Any] = {
        "lag": lag,
        "oldest": oldest,
        "lost": lost,
        "missed": missed,
        "refused": refused,
        "reason": words,
        "client": _bound_client(frames),
        "processed": activity.get("processed_1m"),
    }
    behind = bool(lag) and any(v.status in (Status.WARNING, Status.CRITICAL) for v in values[:2])
    return judged(
        _headline(bound, refused, lost, behind, stalled, facts),
        values,
        at_least=at_least,
        reason=failed["consumer"].reason if "consumer" in failed else None,
        notes=tuple(_notes(frames, refused, facts, stalled)),
        signals=tuple(_signals(bound, refused, locked_out, bool(lag or missed), lost, losing, behind, frames)),
        hops=_hops(consumer, frames, activity, bound, lag, oldest, behind),
        proposals=_proposals(given, bound, refused, losing, consumer),
        next_sections=("5.1",)
        if bound is False and not refused
        else ("5.3",)
        if lost
        else ("2",)
        if refused or "consumer" in failed
        else (),
        show=tuple(n for n in ("clients", "closed", "unprocessed") if n in frames and not frames[n].empty),
    )


def _gone(e: SourceError, activity: dict[str, Any], given: Given) -> Finding:
    """A broker that has lost its stream or consumer is the answer itself, unless events flow all the same."""
    last = seconds_between(activity.get("last_processed"), activity.get("now"))
    if last is not None and last < FLOWS_S:
        reason = Reason.TIMEOUT if e.code == "hung" else Reason.ERROR
        return unknown("", reason, say("subscriber.another_broker", detail=e.detail, ago=last), next_sections=("2",))
    lost = e.code in ("stream_not_found", "consumer_not_found")
    restarts = [proposals.restart(given, "notification")] if lost else []
    if e.code == "stream_not_found":
        restarts.append(proposals.restart(given, "entitlement"))
    return judged(
        say(f"subscriber.{e.code}", detail=e.detail),
        at_least=Status.CRITICAL,
        # What the outbox is stuck for is not its own doing, though it looks like it.
        signals=(
            *signals_of_silence(e, given.catalog),
            *([] if e.code == "consumer_not_found" else [Signal("FM-OB-01", 0.3)]),
        ),
        hops=(
            Hop("jetstream", alive=say(_BROKER.get(e.code, "alive.answers"))),
            Hop("subscriber", alive=say("alive.not_bound") if lost else None),
        ),
        proposals=tuple(restarts) or (proposals.logs(given, "nats"),),
        next_sections=("2", "5.1") if lost else ("2",),
    )


def _unprocessed(frames: Frames, given: Given) -> tuple[int | None, float]:
    """How many published events were never processed, and since when (s) the newest was published."""
    frame = frames.get("unprocessed")
    if frame is None:
        return None, float("inf")
    newest = table(frames, "unprocessed", "published_at")["published_at"].max()
    if newest is pd.NaT or newest != newest:
        return len(frame), float("inf")
    return len(frame), (given.as_of - pd.Timestamp(newest)).total_seconds()


def _refused(frames: Frames) -> tuple[float, str]:
    """Logins refused within the last minute, and the server's most frequent word for it."""
    closed = table(frames, "closed", "reason", "last_minute", "last_s_ago")
    # A loop that has gone quiet is over: who is kept out tries again every 2 s.
    refused = closed[closed["reason"].isin(REFUSED) & (pd.to_numeric(closed["last_s_ago"], errors="coerce") < QUIET_S)]
    if refused.empty:
        return 0.0, ""
    worst = refused.sort_values("last_minute", ascending=False).iloc[0]
    return float(refused["last_minute"].sum()), str(worst["reason"])


def _bound_client(frames: Frames) -> str:
    clients = table(frames, "clients", "bound", "name", "user", "ip", "port")
    bound = clients[clients["bound"].astype(bool)]
    if bound.empty:
        return "?"
    client = one(bound)
    return f"{client['name'] or client['user'] or ''} {client['ip']}:{client['port']}".strip()


def _headline(
    bound: bool | None, refused: float, lost: float | None, behind: bool, stalled: bool, facts: dict[str, Any]
) -> Text:
    if refused >= LOOP and not bound:
        return say("subscriber.refused", **facts)
    if bound is False:
        return say("subscriber.deaf" if facts["lag"] else "subscriber.deaf_idle", **facts)
    if bound is None:
        return say("subscriber.unseen", **facts)
    if lost:
        return say("subscriber.lost", **facts)
    if stalled:
        return say("subscriber.stalled", **facts)
    return say("subscriber.behind" if behind else "subscriber.bound", **facts)


def _notes(frames: Frames, refused: float, facts: dict[str, Any], stalled: bool) -> list[Text]:
    notes = []
    for e in failures(frames).values():
        why = say(f"unknown.{e.reason}", source=e.source, detail=e.detail)
        notes.append(say("subscriber.without", source=e.source, why=why))
    if refused:
        notes.append(say("subscriber.reason_of_server", **facts))
    if stalled:
        notes.append(say("subscriber.stalled", **facts))
    if facts["missed"] and facts["lost"] is not None and facts["missed"] > facts["lost"]:
        notes.append(say("subscriber.still_held", held=facts["missed"] - facts["lost"]))
    if frames.get("unprocessed") is not None and frames["unprocessed"].attrs.get("capped"):
        notes.append(say("subscriber.capped", n=len(frames["unprocessed"])))
    given_up = amount(one(frames.get("nats_dlq")), "n")
    if given_up:
        notes.append(say("subscriber.given_up", n=given_up))
    return notes


def _signals(
    bound: bool | None,
    refused: float,
    locked_out: bool,
    waits: bool,
    lost: float | None,
    losing: bool,
    behind: bool,
    frames: Frames,
) -> list[Signal]:
    signals = []
    if refused >= LOOP and not bound:
        # Nobody at all is let in: the broker's door, not one client of it.
        hop = ("jetstream", 0.95) if locked_out else ("subscriber", 0.85)
        signals += [Signal(*hop), Signal("FM-NATS-05", 0.9), Signal("FM-NATS-04", -0.5)]
    elif bound is False:
        # Without the monitoring port nobody knows whether it is kept out or just does not listen; and while nothing
        # waits for it, what is late now is late somewhere else.
        sure = 0.6 if not waits else 0.9 if "clients" in frames else 0.8
        signals += [Signal("subscriber", sure), Signal("FM-NATS-01", sure), Signal("FM-NATS-05", 0.4 * sure)]
        signals.append(Signal("jetstream", -0.5))
    elif behind:
        signals += [Signal("subscriber", 0.55), Signal("FM-NATS-01", 0.6)]
    elif bound:
        signals += [Signal("jetstream", -0.4), Signal("FM-NATS-04", -0.5), Signal("FM-NATS-01", -0.5)]
        if not lost:
            signals.append(Signal("subscriber", -0.5))
    elif lost and _stands_still(frames):
        # The broker could not be asked; events go in and nothing comes out.
        signals += [Signal("subscriber", 0.85), Signal("FM-NATS-01", 0.7)]
    if losing:
        signals.append(Signal("subscriber", 0.7))
    if lost and bound is not False:
        signals += [Signal("FM-NATS-03", 0.6)]
        if amount(one(frames.get("nats_dlq")), "n"):
            signals.append(Signal("FM-NATS-02", 0.5))
    return signals


def _stands_still(frames: Frames) -> bool:
    activity = one(frames.get("activity"))
    return bool(activity) and not amount(activity, "processed_1m")


def _hops(
    consumer: dict[str, Any],
    frames: Frames,
    activity: dict[str, Any],
    bound: bool | None,
    lag: float | None,
    oldest: float | None,
    late: bool,
) -> tuple[Hop, ...]:
    client = _bound_client(frames)
    there: Text | str = say("alive.bound") if client == "?" else client
    return (
        Hop("jetstream", waiting=consumer.get("num_pending"), alive=say("alive.answers") if consumer else None),
        Hop(
            "subscriber",
            rate_out=activity.get("processed_1m"),
            waiting=lag,
            oldest_s=oldest,
            alive={None: None, True: there, False: say("alive.not_bound")}[bound],
            late=late,
        ),
    )


def _proposals(
    given: Given, bound: bool | None, refused: float, losing: bool, consumer: dict[str, Any]
) -> tuple[Proposal, ...]:
    if refused >= LOOP and not bound:
        return (remedies.check_nats_credentials(given),)
    if bound is False:
        return (proposals.restart(given, "notification"),)
    if losing:
        return (proposals.logs(given, "notification"),)
    return ()


CHECKS: tuple[Check, ...] = (Check("4.1.2", collect, judge),)
