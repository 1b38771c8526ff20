"""Whether a broker answers, as whom, and whether its streams and durable consumers are as their system expects them."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.actions import proposals
from runbook_lib.checks.check import Check, failures, unknown_from_error
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import FrameCollector, seconds_between
from runbook_lib.model import rows
from runbook_lib.model.finding import Finding, Frames, Proposal, Reason, Status, Value, judged, say, unknown
from runbook_lib.model.frames import row
from runbook_lib.model.unread import UnreadError
from runbook_lib.packs.jetstream import quorum
from runbook_lib.packs.jetstream.consumer import read_pairs
from runbook_lib.sources.source import SourceError

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context
    from runbook_lib.sources.settings import TargetFacts

#: Fields of a stream, a consumer or a server that hold nanoseconds.
_DURATIONS = (
    "max_age", "duplicate_window", "ack_wait", "inactive_threshold", "idle_heartbeat", "max_expires", "write_deadline",
    "ping_interval",
)  # fmt: skip
#: Fields that only name it, and those that the broker sets anew with each connection or for itself.
_NO_SETTING = ("name", "durable_name", "metadata", "deliver_subject")

#: A field of what was asked: "stream s", its name at the broker, and its value as `list_settings` writes it.
Setting = tuple[str, str, str]


@dataclass(frozen=True)
class BrokerSpec:
    """What a system relies on at its broker: the durable consumer of each stream; the first stream has the events.

    `section` is that about what does not flow. `documented` returns the values that the documents state, by the name of
    the field, of a "stream" and a "consumer". `published_s` returns the seconds since the system published, if that was
    just now; `late_s` how long an event has waited, if one is late. `program` is the broker's workload. `records` are
    the streams that only record what happened to messages of the others.
    """

    durables: Mapping[str, str]
    section: str
    documented: Callable[[JudgeInput], Mapping[str, Mapping[str, str]]] = lambda given: {}
    published_s: Callable[[JudgeInput], float | None] = lambda given: None
    late_s: Callable[[JudgeInput], float | None] = lambda given: None
    program: str = "nats"
    records: Collection[str] = ()


class BrokerInfo(rows.Row):
    """The broker, with the values of its monitoring port."""

    version: str | None = None
    user: str = ""
    clients: int | None = None
    slow_consumers: int | None = None
    started_at: pd.Timestamp | None = None


class StreamConfig(rows.Row):
    """A stream that should exist; a field that the broker does not report is None."""

    stream: str = ""
    exists: bool = False
    subjects: str = ""
    duplicate_window_s: float | None = None
    max_age_s: float | None = None
    max_msgs: int | None = None
    max_bytes: int | None = None
    max_msgs_per_subject: int | None = None
    max_msg_size: int | None = None
    retention: str | None = None
    discard: str | None = None
    storage: str | None = None
    no_ack: bool | None = None


class ConsumerConfig(rows.Row):
    """A durable consumer that should exist; a field that the broker does not report is None."""

    stream: str = ""
    durable: str = ""
    exists: bool = False
    bound: bool = False
    push: bool = False
    subject: str = ""
    ack_wait_s: float | None = None
    max_deliver: int | None = None
    deliver_policy: str | None = None
    ack_policy: str | None = None


def list_settings(item: str, info: Mapping[str, Any]) -> Iterator[Setting]:
    """Yield the fields of the configuration of a stream, a consumer, a server or an account.

    The broker keeps the end of a pause that is over, which is no setting.

    >>> [*list_settings("stream s", {"config": {"name": "s", "max_age": 90_000_000_000, "subjects": ["a.>"]}})]
    [('stream s', 'max_age', '90 s'), ('stream s', 'subjects', '["a.>"]')]
    >>> [*list_settings("consumer c", {"config": {"pause_until": "1970-01-01T00:00:00Z"}, "paused": False})]
    []
    """
    for name, value in sorted(info.get("config", {}).items()):
        if name in _DURATIONS and isinstance(value, int):
            yield item, name, _format_setting(value / 1e9, seconds=True)
        elif name not in _NO_SETTING and (name != "pause_until" or info.get("paused")):
            yield item, name, _format_setting(value)


def _format_setting(value: Any, *, seconds: bool = False) -> str:
    if seconds:
        return f"{value:g} s"
    return value if isinstance(value, str) else json.dumps(value)


def find_undocumented(broker: BrokerSpec, settings: Iterable[Setting], given: JudgeInput) -> list[tuple[str, ...]]:
    """Return what differs from the documents: item, setting, documented value, value. What they leave open does not."""
    documented = broker.documented(given)
    wanted = ((*s, documented.get(s[0].partition(" ")[0], {}).get(s[1], s[2])) for s in settings)
    return [(item, name, should, value) for item, name, value, should in wanted if value != should]


def collect(of: Callable[[TargetFacts], BrokerSpec], rb: Context) -> Frames:
    """Query the broker, its streams and its durable consumers; each may be missing on its own.

    Frames: server (version, server, user: text; jetstream: flag; clients, slow_consumers: number; started_at: time),
    streams (fields of `StreamConfig`; messages; first_seq, last_seq: id; created: text), consumers (fields of
    `ConsumerConfig`; pending, unacknowledged: messages); in a cluster replicas (fields of `quorum.Member`), nodes.
    """
    jetstream, parts, members = rb.source("jetstream"), FrameCollector(), list[quorum.Member]()
    info, varz = jetstream.server(), list[dict[str, Any]]()
    with parts.part("monitor") as answers:
        varz, cluster = rb.source("nats_monitor").servers(), rb.source("nats_monitor").cluster()
        answers["nodes"] = quorum.nodes(cluster)
        members += quorum.meta(cluster)
    server = row(
        version=info.get("version"),
        server=info.get("server_name"),
        jetstream=bool(info.get("jetstream")),
        user=jetstream.user,
        clients=_sum_counts(varz, "connections"),
        slow_consumers=_sum_counts(varz, "slow_consumers"),
        # The broker was away only if no node has run for longer.
        started_at=min((pd.Timestamp(v["start"]) for v in varz if v.get("start")), default=None),
    )
    streams, consumers = [], []
    for stream, found, durable, consumer in read_pairs(rb, of(rb.facts).durables):
        config, state = found.get("config", {}), found.get("state", {})
        own = _read_config(StreamConfig, config) | {
            "stream": stream,
            "exists": bool(found),
            "subjects": " ".join(config.get("subjects") or []),
        }
        streams.append(
            own | {n: state.get(n) for n in ("messages", "first_seq", "last_seq")} | {"created": found.get("created")}
        )
        config, own = consumer.config if consumer else {}, {"stream": stream, "durable": durable}
        if consumer:
            own |= {
                "bound": consumer.bound,
                "push": bool(config.get("deliver_subject")),
                "subject": " ".join(consumer.subjects),
                "pending": consumer.num_pending,
                "unacknowledged": consumer.num_ack_pending,
            }
        consumers.append(_read_config(ConsumerConfig, config) | own | {"exists": consumer is not None})
        members += [*quorum.members(stream, found), *quorum.members(durable, consumer.info if consumer else {})]
    return parts.frames() | {
        "server": server,
        "streams": pd.DataFrame(streams),
        "consumers": pd.DataFrame(consumers),
        "replicas": rows.frame(members, quorum.Member),
    }


def _read_config(kind: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a kind of row from a configuration, those of nanoseconds as seconds (`_s`)."""
    found = {f.name: config.get(f.name.removesuffix("_s")) for f in fields(kind)}
    return {n: v / 1e9 if n.endswith("_s") and v is not None else v for n, v in found.items()}


def _sum_counts(answers: list[dict[str, Any]], name: str) -> int | None:
    """Return the sum over all nodes; None if a node does not report the value, or none answers."""
    counts = [a.get(name) for a in answers] or [None]
    return None if None in counts else sum(c for c in counts if c is not None)


def _list_differences(
    broker: BrokerSpec, streams: list[StreamConfig], consumers: list[ConsumerConfig], given: JudgeInput
) -> list[str]:
    """List what differs from the documents, and filters on a subject that the stream does not have."""
    read = [(f"stream {s.stream}", vars(s)) for s in streams if s.exists]
    read += [(f"consumer {c.durable}", vars(c)) for c in consumers if c.exists]
    settings = [
        (item, name.removesuffix("_s"), _format_setting(value, seconds=name.endswith("_s")))
        for item, config in read
        for name, value in config.items()
        if value is not None
    ]
    subjects = {s.stream: {*s.subjects.split()} for s in streams}
    return [
        *(f"{item}: {name} {value}" for item, name, _, value in find_undocumented(broker, settings, given)),
        *(
            f"consumer {c.durable}: filter {c.subject}"
            for c in consumers
            if c.exists and not {*c.subject.split()} <= subjects.get(c.stream, set())
        ),
    ]


def judge(of: Callable[[TargetFacts], BrokerSpec], frames: Frames, given: JudgeInput) -> Finding:
    """Judge whether the broker is reachable, and its streams and consumers are as expected.

    The observations `broker.*` are rows of the system's pack.
    """
    broker, server = of(given.facts), rows.one(frames["server"], BrokerInfo)
    streams, consumers = rows.each(frames["streams"], StreamConfig), rows.each(frames["consumers"], ConsumerConfig)
    if not streams or not consumers:
        raise UnreadError("streams")
    missing = [s.stream for s in streams if not s.exists] + [c.durable for c in consumers if not c.exists]
    unbound = [c.durable for c in consumers if c.exists and c.push and not c.bound]
    published_s, names = broker.published_s(given), ", ".join(missing)
    if streams[0].stream in missing and published_s is not None:
        another = say("broker.another", names=names, ago=published_s)
        return unknown("", Reason.ERROR, another, next_sections=(broker.section,))

    monitor, nodes = failures(frames).get("monitor"), rows.one(frames.get("nodes"), quorum.Nodes)
    differences = _list_differences(broker, streams, consumers, given)
    broken, thin = quorum.find_problems(frames, given, nodes)
    undeclared = monitor is not None and monitor.reason is Reason.NOT_CONFIGURED
    since_s, late_s = seconds_between(server.started_at, given.as_of), broker.late_s(given)
    status = Status.WARNING if differences or undeclared or thin or nodes.partly else Status.OK
    observed = [_observe_broken(broken[0])] if broken else []
    if missing:
        headline, status = say("broker.missing", names=names), Status.CRITICAL
        observed.append(_observe_missing(broker, streams, consumers))
    elif broken:
        headline = say("broker.cluster", group=broken[0].text, n=len(broken) - 1)
        status = Status.CRITICAL if broken[0].writes is False else Status.UNKNOWN
    elif unbound:
        headline, status = say("broker.no_client", names=", ".join(unbound)), Status.WARNING
    elif since_s is not None and late_s is not None and 0 <= since_s < late_s:
        headline, status = say("broker.restarted", ago=since_s), Status.WARNING
        observed.append("broker.restarted")
    else:
        key, present = "broker.bound" if differences else "broker.well", sum(c.exists for c in consumers)
        headline = say(key, version=server.version, streams=len(streams), n=present)
        observed.append("broker.well")
    if unbound:
        events = [c.durable for c in consumers if c.stream not in broker.records]
        observed.append("broker.record_missing" if {*events}.isdisjoint(unbound) else "broker.unbound")
    return judged(
        headline,
        [
            Value("broker.version", server.version),
            Value("broker.clients", server.clients),
            Value("broker.slow_consumers", server.slow_consumers),
        ],
        at_least=status,
        notes=(
            say("broker.connected_as", user=server.user, version=server.version),
            *((say("broker.differs", names="; ".join(differences)),) if differences else ()),
            *((say("broker.no_monitor", why=monitor.reason.value),) if monitor else ()),
            *((say("broker.nodes_unseen", seen=nodes.seen, of=nodes.of),) if nodes.partly else ()),
            *(group.text for group in (*broken[1:], *thin)),
            *((say("broker.no_start"),) if any(g.name == quorum.META and not g.writes for g in broken) else ()),
        ),
        signals=given.evidence_of(observed),
        proposals=_propose_looks(broker, given) if broken else (),
        next_sections=(broker.section,) if missing or unbound or broken else (),
        show=("streams", "consumers", *(("replicas",) if len(frames.get("replicas", ())) else ())),
    )


def _observe_broken(group: quorum.RaftGroup) -> str:
    """Return the observation of the Raft group that is surest not to be writable."""
    if group.writes is None:
        return "broker.quorum_unclear"
    return "broker.no_meta_leader" if group.name == quorum.META else "broker.no_quorum"


def _observe_missing(broker: BrokerSpec, streams: list[StreamConfig], consumers: list[ConsumerConfig]) -> str:
    """Return the observation of what is missing: a stream of events, only a consumer, or what records lost events."""
    if any(not s.exists for s in streams if s.stream not in broker.records):
        return "broker.stream_missing"
    gone = any(not c.exists for c in consumers if c.stream not in broker.records)
    return "broker.consumer_missing" if gone else "broker.record_missing"


def _propose_looks(broker: BrokerSpec, given: JudgeInput) -> tuple[Proposal, ...]:
    return proposals.pods(given, broker.program), proposals.logs(given, broker.program)


def judge_error(of: Callable[[TargetFacts], BrokerSpec], e: SourceError, given: JudgeInput) -> Finding:
    """Judge a source that does not answer; one that the target does not declare is a WARNING, not UNKNOWN."""
    if e.reason is Reason.NOT_CONFIGURED:
        return judged(say("broker.undeclared", source=e.source), at_least=Status.WARNING)
    if e.code != "no_leader":
        return unknown_from_error(e, given.catalog)
    broker = of(given.facts)
    return judged(
        say("broker.no_leader", detail=e.detail),
        at_least=Status.CRITICAL,
        proposals=_propose_looks(broker, given),
        next_sections=(broker.section,),
    )


def check_of(step: str, of: Callable[[TargetFacts], BrokerSpec]) -> Check:
    """Return the check of a system's broker."""
    return Check(
        step,
        partial(collect, of),
        partial(judge, of),
        on_error=partial(judge_error, of),
        needs=("server", "streams", "consumers"),
    )
