"""List what changed around a system in the hours before the run, and compare its configuration with the healthy one.

The configuration is a frame of texts (source, item, setting, value): one row for each setting of the server and of its
roles; column, constraint, trigger, index, owner and grant of its schemas; right of the role; field of a stream or a
consumer; limit of the broker and of its account; variable, image and limit of a workload. Values that may be secret are
masked before they leave their source. What was added later has a source of its own ("postgres rights"): an earlier
configuration without it has not lost it.
"""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.book import queries
from runbook_lib.checks.check import Check
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import FrameCollector, seconds_between
from runbook_lib.diagnosis.snapshots import CONFIGURATION, DRIFT_COLUMNS, SETTING_COLUMNS, drift
from runbook_lib.dossier import baseline
from runbook_lib.model import rows
from runbook_lib.model.finding import Finding, Frames, OutageEnd, Signal, Status, Text, Value, judged, replace, say
from runbook_lib.model.frames import table
from runbook_lib.packs.changes import starts
from runbook_lib.packs.changes.starts import Start
from runbook_lib.packs.jetstream.consumer import read_pairs
from runbook_lib.packs.jetstream.reach import BrokerSpec, find_undocumented, list_settings
from runbook_lib.sources.source import SourceError
from runbook_lib.store.archive import ACTION, LOG

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context
    from runbook_lib.sources.settings import TargetFacts

COLUMNS = ["at", "kind", "what", "source", "time"]
#: The kinds of changes that belong to a system's start; a pod's restart and a failed migration do not.
_OF_START = ("server start", "start", "creation", "migration")

#: Fields of /varz that configure a server; JetStream's own are limits of the account.
_BROKER_LIMITS = (
    "version", "max_payload", "max_connections", "max_subscriptions", "max_pending", "max_control_line",
    "write_deadline", "ping_interval", "ping_max", "auth_required", "tls_required",
)  # fmt: skip

Change = dict[str, Any]
Row = tuple[str, str, str, str]


@dataclass(frozen=True)
class Surroundings:
    """What can change around a system: its database `role` and `schemas`, its `broker` and its workloads.

    `migrations` has the query of a service's migrations (version, description, installed_on, success). `impact` is the
    step that finds the onset and the end of an outage. `observe` returns what a difference (the columns of
    `snapshots.drift`) is by observations.md, "" if it is none; without it nothing is weighed. `unexpected` returns the
    settings that no migration makes. `sessions` yields since when all sessions of a service are there, and `reported`
    when the services' logs say that the broker was away.
    """

    role: str = ""
    schemas: tuple[str, ...] = ()
    migrations: Mapping[str, str] = field(default_factory=dict)
    broker: BrokerSpec | None = None
    workloads: tuple[str, ...] = ()
    impact: str = "3.1"
    observe: Callable[[Mapping[Hashable, str], JudgeInput], str] | None = None
    unexpected: Callable[[pd.DataFrame], pd.DataFrame] = lambda settings: settings.iloc[:0]
    sessions: starts.Reader = lambda rb: ()
    reported: starts.Reader = lambda rb: ()


def collect(of: Callable[[TargetFacts], Surroundings], rb: Context) -> Frames:
    """Collect starts, migrations, created streams and consumers, actions of this runbook, and the configuration.

    Frames: changes (at: time; kind, what, source: text; time: text, "exact", "of the newest" where only the newest of
    its kind is known, or "zone not kept"), settings of the role and the database (whose, setting: text, "name=value" or
    the name alone), configuration (source, item, setting, value: text), healthy (the same of the last healthy baseline,
    and at: time, when it was read), asked (source: text), starts (fields of `starts.Start`).
    """
    around, parts, changes, settings = of(rb.facts), FrameCollector(), list[Change](), list[Row]()
    asked, seen = list[str](), defaultdict[str, list[Start]](list)

    def part(name: str, found: Iterator[Change]) -> None:
        with parts.part(name):
            changes.extend(found)
            asked.append(name)

    part("postgres", _read_database_changes(rb, around, parts, settings, seen["postgres"]))
    if around.broker:
        part("jetstream", _read_stream_changes(rb, around.broker, settings))
        part("nats_monitor", _read_broker_changes(rb, settings, seen["nats_monitor"]))
    part("workloads", _read_pod_starts(rb, around, settings, seen["workloads"]))
    with suppress(OSError):
        changes += _read_actions(rb)
    if not asked:
        return parts.frames()
    parts.answers["starts"] = rows.frame(_watch_starts(rb, around, seen), Start)
    parts.answers["changes"] = pd.DataFrame(changes, columns=COLUMNS)
    parts.answers["asked"] = pd.DataFrame({"source": asked})
    # A source that answered in part would seem to have lost the rest.
    read = [s for s in settings if s[0].partition(" ")[0] not in parts.failures]
    parts.answers[CONFIGURATION] = pd.DataFrame(read, columns=SETTING_COLUMNS)
    with suppress(OSError, ValueError, KeyError):
        healthy = baseline.configuration(rb.archive.output, rb.parameters.target)
        if healthy is not None:
            parts.answers["healthy"] = healthy
    return parts.frames()


def ask_tables(around: Surroundings, rb: Context) -> None:
    """Ask the database for what `collect` reads of it. Raises SourceError."""
    _exhaust(_read_database_changes(rb, around, FrameCollector(), [], []))


def ask_broker(around: Surroundings, rb: Context) -> None:
    """Ask the broker for what `collect` reads of it."""
    if around.broker:
        for found in (_read_stream_changes(rb, around.broker, []), _read_broker_changes(rb, [], [])):
            with suppress(SourceError):
                _exhaust(found)


def ask_workloads(around: Surroundings, rb: Context) -> None:
    """Ask the workloads for what `collect` reads of them."""
    for name in around.workloads:
        for ask in (rb.workloads.replicas, rb.workloads.environment, rb.workloads.template, rb.workloads.pods):
            with suppress(SourceError):
                ask(name)


def _exhaust(found: Iterator[Change]) -> None:
    for _ in found:
        pass


def _build_change(at: Any, kind: str, what: str, source: str, time: str = "of the newest") -> Change:
    return {"at": pd.Timestamp(at), "kind": kind, "what": what, "source": source, "time": time}


def _read_start(rb: Context, server: str, source: str, started: Any, loaded: Any) -> Iterator[Change]:
    """Yield the start of a server, and when it read its configuration, if that was not at the start."""
    if started:
        yield _build_change(started, "server start", f"{server} started", source)
        if loaded and pd.Timestamp(loaded) > pd.Timestamp(started) + pd.Timedelta(seconds=rb.number("changed.apart")):
            yield _build_change(loaded, "configuration", f"{server} read its configuration", source)


def _read_database_changes(
    rb: Context, around: Surroundings, parts: FrameCollector, settings: list[Row], seen: list[Start]
) -> Iterator[Change]:
    with rb.snapshot() as db:
        server = db.ask("changed/server").iloc[0]
        roles = parts.answers["settings"] = db.ask("changed/settings", role=around.role)
        with parts.part("catalog"):
            catalog = db.ask_apart("changed/catalog", schemas=list(around.schemas), role=around.role)
            if not catalog.attrs.get("capped"):
                named = [(whose, *str(setting).partition("=")) for whose, setting in roles.itertuples(index=False)]
                settings += (("postgres", whose, name, value or "***") for whose, name, _, value in named)
                settings += catalog[SETTING_COLUMNS].astype(str).itertuples(index=False, name=None)
        histories = {}
        for service, query in around.migrations.items():
            with parts.part(f"migrations of {service}"):
                histories[service] = db.ask_apart(query)
    seen.append(Start("start", "PostgreSQL", server["started_at"]))
    yield from _read_start(rb, "PostgreSQL", "postgres", server["started_at"], server["loaded_at"])
    for service, history in histories.items():
        for migration in history.to_dict("records"):
            kind, failed = ("migration", "") if migration["success"] else ("failed migration", ", failed")
            what = f"migration of {service}: {migration['version']} {migration['description']}{failed}"
            yield _build_change(f"{migration['installed_on']}Z", kind, what, "postgres", "zone not kept")


def _read_stream_changes(rb: Context, broker: BrokerSpec, settings: list[Row]) -> Iterator[Change]:
    for stream, info, durable, consumer in read_pairs(rb, broker.durables):
        for what, found in ((f"stream {stream}", info), (f"consumer {durable}", consumer.info if consumer else {})):
            settings += (("jetstream", *setting) for setting in list_settings(what, found))
            if created := found.get("created"):
                yield _build_change(created, "creation", f"{what} created", "jetstream")
    with suppress(SourceError):  # a user without this right reads all the rest
        limits = list_settings("account", {"config": rb.source("jetstream").account()["limits"]})
        settings += (("jetstream account", *limit) for limit in limits)


def _read_broker_changes(rb: Context, settings: list[Row], seen: list[Start]) -> Iterator[Change]:
    servers = rb.source("nats_monitor").servers()
    seen += _broker_starts(servers)
    for server in servers:
        name = f"NATS server {server.get('server_name') or server.get('server_id')}"
        yield from _read_start(rb, name, "nats_monitor", server.get("start"), server.get("config_load_time"))
    # A node that is away changes nothing: what is the same on all nodes is one value.
    values = {name: [*{str(s[name]): s[name] for s in servers if name in s}.values()] for name in _BROKER_LIMITS}
    limits = {name: found[0] if len(found) == 1 else sorted(found) for name, found in values.items() if found}
    settings += (("nats_monitor", *limit) for limit in list_settings("broker", {"config": limits}))


def _read_pod_starts(rb: Context, around: Surroundings, settings: list[Row], seen: list[Start]) -> Iterator[Change]:
    for name in around.workloads:
        found = {"replicas": str(rb.workloads.replicas(name))} | dict(sorted(rb.workloads.environment(name).items()))
        settings += (("workloads", f"workload {name}", *setting) for setting in found.items())
        template = rb.workloads.template(name).items()
        settings += (("workloads template", f"workload {name}", *setting) for setting in template)
        pods = rb.workloads.pods(name)
        seen += _pod_starts(pods)
        for pod in pods:
            if pod["started"]:
                kind, again = ("restart", f" ({n} restarts before)") if (n := pod["restarts"]) else ("start", "")
                yield _build_change(pod["started"], kind, f"{pod['name']} started{again}", "workloads")


def _watch_starts(rb: Context, around: Surroundings, seen: Mapping[str, list[Start]]) -> list[Start]:
    """Return the starts of both servers, the workloads' pods and the services' sessions; with a young broker, what the
    services' logs say of it. `seen` are those of the changes, by source.

    Nothing is watched while something is late: that decides.
    """
    impact = rb.findings.get(around.impact)
    watch_s = rb.number("again.watch") if impact is None or impact.status is Status.OK else 0.0
    sessions = list[Start]()
    with suppress(SourceError):
        sessions += around.sessions(rb)
    watched: list[tuple[starts.Reader, list[Start]]] = [
        (_read_database_start, seen["postgres"]),
        (lambda rb: _broker_starts(rb.source("nats_monitor").servers()), seen["nats_monitor"]),
        (lambda rb: _pod_starts(p for name in around.workloads for p in rb.workloads.pods(name)), seen["workloads"]),
        (around.sessions, sessions),
    ]
    found = starts.watch(rb, watched, watch_s)
    young = pd.Timedelta(seconds=rb.number("again.within"))
    if any(s.at and rb.now() - s.at < young for s in seen["nats_monitor"]):
        with suppress(SourceError):
            found += around.reported(rb)
    return found


def _read_database_start(rb: Context) -> Iterator[Start]:
    with rb.snapshot() as db:
        yield Start("start", "PostgreSQL", db.ask("changed/server")["started_at"].iloc[0])


def _broker_starts(servers: Iterable[Mapping[str, Any]]) -> Iterator[Start]:
    for server in servers:
        # Without a name of its own it has another id, and by that another name, after each start.
        name = "" if server.get("server_name") == server.get("server_id") else f" server {server.get('server_name')}"
        yield Start("start", f"NATS{name}", pd.Timestamp(server["start"]) if server.get("start") else None)


def _pod_starts(pods: Iterable[Mapping[str, Any]]) -> Iterator[Start]:
    for pod in pods:
        for at in filter(None, (pod.get("before"), pod["started"])):
            yield Start("start", pod["name"], pd.Timestamp(at))


def _read_actions(rb: Context) -> Iterator[Change]:
    for line in rb.archive.lines(ACTION):
        if line.get("result") in ("done", "failed") and line.get("time"):
            what = f"action {line.get('command') or line.get('action')}"
            yield _build_change(line["time"], "action", what, LOG, "exact")


def judge(of: Callable[[TargetFacts], Surroundings], frames: Frames, given: JudgeInput) -> Finding:
    """List the changes of the last hours, newest first, without judging whether one is the cause.

    If an outage is over, its last change before the end is named. The start of the whole system is one change.
    """
    around = of(given.facts)
    impact = next((f for f in given.earlier if f.step == around.impact), None)
    lasts = impact is not None and impact.status is not Status.OK and not impact.ended
    back = pd.Timedelta(hours=given.number("changed.look_back"))
    changes = table(frames, "changes", *COLUMNS)
    changes = changes.assign(at=pd.to_datetime(changes["at"], utc=True))
    changes = _join_start(changes, pd.Timedelta(seconds=given.number("changed.together")))
    lately = changes[(changes["at"] > given.as_of - back) & (changes["at"] <= given.as_of)]
    lately = lately.sort_values("at", ascending=False, ignore_index=True)
    lately.attrs["since"] = (given.as_of - back).isoformat()
    onset = _read_onset(impact)
    before = lately[lately["at"] <= onset] if onset is not None else lately.iloc[:0]
    settings = table(frames, "settings", "whose", "setting")
    healthy, now = table(frames, "healthy", *SETTING_COLUMNS, "at"), table(frames, CONFIGURATION, *SETTING_COLUMNS)
    healthy_at = None if healthy.empty else pd.Timestamp(healthy["at"].iloc[0])
    differing = pd.DataFrame(columns=DRIFT_COLUMNS) if healthy.empty else drift(healthy, now)
    nearest = before.iloc[0] if len(before) else lately.iloc[0] if len(lately) else None
    facts = {
        "n": len(lately),
        "hours": given.number("changed.look_back"),
        "what": None if nearest is None else str(nearest["what"]),
        "ago": None if nearest is None else seconds_between(nearest["at"], given.as_of),
        "before": seconds_between(nearest["at"], onset) if len(before) and nearest is not None else None,
    }
    notes = [say("changed.no_cause")] if len(lately) else []
    if len(settings):
        listed = "; ".join(f"{s.whose}: {s.setting}" for s in settings.itertuples())
        notes.append(say("changed.settings", told=listed))
    notes.append(say("changed.asked", names=", ".join(table(frames, "asked", "source")["source"])))
    headline = say("changed.some" if len(lately) else "changed.none", **facts)
    unexpected = dict[str, pd.DataFrame]()
    if healthy_at is None:
        notes.append(say("changed.no_baseline"))
        unexpected = _find_unexpected(around, now, given)
        headline = next((_describe(key, found) for key, found in unexpected.items()), headline)
    elif len(differing):
        since = f"{healthy_at:%m-%d %H:%M}"
        headline = _describe("changed.drift", differing, since=since, until=f"{given.as_of:%H:%M}")
        notes.append(say("changed.restore", since=since))
    again = starts.describe_repeated(frames.get("starts"), given)
    if again:
        headline, *others = again
        notes = [*others, *notes]
    return judged(
        headline,
        [
            Value("changes", len(lately), "changes"),
            Value("changes.before_onset", len(before), "changes"),
            Value("changes.configuration", None if healthy_at is None else len(differing), "settings"),
        ],
        at_least=Status.WARNING if again else Status.OK,
        signals=_weigh_changes(around, differing, healthy_at, unexpected, given) if lasts else (),
        notes=tuple(notes),
        frames={"lately": lately, "drift": differing},
        show=tuple(name for name, frame in (("drift", differing), ("lately", lately)) if len(frame)),
        ended=_add_preceding_change(impact, given, lately, onset),
    )


def _join_start(changes: pd.DataFrame, pause: pd.Timedelta) -> pd.DataFrame:
    """Return the changes with the start of the whole system as one row, if both servers started without a pause."""
    starts = changes[changes["kind"].isin(_OF_START)].sort_values("at")
    series = (starts["at"].diff() > pause).cumsum()
    servers = starts[starts["kind"] == "server start"]
    if servers["source"].nunique() < 2 or series[servers.index].nunique() > 1:
        return changes
    joined = starts[series == series[servers.index[0]]]
    what = f"the system started: PostgreSQL, NATS and {len(joined) - len(servers)} others together"
    start = joined.head(1).assign(what=what, source=", ".join(joined["source"].unique()), time="of the newest")
    every: pd.DataFrame = pd.concat([changes.drop(joined.index), start], ignore_index=True)
    return every


def _find_unexpected(around: Surroundings, now: pd.DataFrame, given: JudgeInput) -> dict[str, pd.DataFrame]:
    """Return what no migration makes, and what the broker has otherwise than documented, by the observation of each."""
    read = now[now["source"] == "jetstream"][["item", "setting", "value"]].itertuples(index=False, name=None)
    other = find_undocumented(around.broker, read, given) if around.broker else []
    found = {
        "changed.unexpected": around.unexpected(now),
        "changed.undocumented": pd.DataFrame(other, columns=["item", "setting", "documented", "value"]),
    }
    return {observation: frame for observation, frame in found.items() if len(frame)}


def _describe(key: str, rows: pd.DataFrame, **facts: str) -> Text:
    """Return the first of these settings as a sentence, and how many others there are."""
    first = {str(name): textwrap.shorten(str(value), 100) for name, value in rows.iloc[0].items() if name != "source"}
    if first.get("before") == "":
        key = "changed.drift_added"
    elif first.get("now") == "":
        key = "changed.drift_removed"
    return say(key, **first, others=len(rows) - 1 or None, **facts)


def _weigh_changes(
    around: Surroundings,
    differing: pd.DataFrame,
    healthy_at: pd.Timestamp | None,
    unexpected: Iterable[str],
    given: JudgeInput,
) -> tuple[Signal, ...]:
    """Return what the differences, and the unexpected definitions, support.

    Differences from a configuration that was healthy long ago name no place: any of them may be harmless.
    """
    if around.observe is None:
        return ()
    if healthy_at is not None and given.as_of - healthy_at > pd.Timedelta(hours=given.number("changed.baseline")):
        found = ["changed.long_ago"] if len(differing) else []
    else:
        changes = differing.to_dict("records")
        triggers = [change["now"] for change in changes]
        found = ["" if _executes(triggers, change["item"]) else around.observe(change, given) for change in changes]
    signals = given.evidence_of(dict.fromkeys(filter(None, [*found, *unexpected])))
    repeated = _find_repeated(differing, found)
    return tuple(s for s in signals if s.observation not in repeated or s.about in given.catalog.places)


def _executes(definitions: list[str], item: str) -> bool:
    """Return whether one of these is the definition of a trigger that executes the function: one change, not two."""
    kind, _, function = item.partition(" ")
    return kind == "function" and any(f"EXECUTE FUNCTION {function.partition('(')[0]}(" in d for d in definitions)


def _find_repeated(differing: pd.DataFrame, found: list[str]) -> set[str]:
    """Return the observations of a workload's variables that another workload has, too: one change, not two."""
    own, first = set[str](), dict[tuple[str, ...], str]()
    for change, name in zip(differing.itertuples(), found, strict=False):
        of_workload = str(change.item).startswith("workload ")
        told = tuple(map(str, (change.setting, change.before, change.now)))
        if not of_workload or (name and first.setdefault(told, name) == name):
            own.add(name)
    return {*found} - own


def _add_preceding_change(
    impact: Finding | None, given: JudgeInput, lately: pd.DataFrame, onset: pd.Timestamp | None
) -> OutageEnd | None:
    """Return the outage that is over, with the last change before its end; None if there is none.

    Without an onset, which a short outage may lack, only a change shortly before the end counts.
    """
    ended = impact.ended if impact else None
    if ended is None:
        return None
    most = pd.Timedelta(seconds=given.number("changed.last_try"))
    since = lately[lately["at"] > (ended.since - most if onset is None else onset)]
    before = since[since["at"] <= ended.since]
    if before.empty:
        # The end is the start of the last late try, and that try may itself have waited for the change.
        before = since[since["at"] <= ended.since + most].tail(1)
    if before.empty:
        return None
    newest = before.iloc[0]
    return replace(ended, after=say("changed.before_the_end", what=str(newest["what"]), at=f"{newest['at']:%H:%M:%S}"))


def _read_onset(impact: Finding | None) -> pd.Timestamp | None:
    """Return the onset of the impact; None if it has none."""
    onset = impact.value("impact.onset") if impact else None
    return pd.Timestamp(onset) if isinstance(onset, str) else None


def check_of(step: str, of: Callable[[TargetFacts], Surroundings], migrations: Iterable[str] = ()) -> Check:
    """Return the check that lists the changes; `migrations` are the services of those in `Surroundings`."""
    return Check(
        step,
        partial(collect, of),
        partial(judge, of),
        needs=("changes",),
        # Without its tool or its port a target is no less well; what was asked is named.
        optional=("workloads", "nats_monitor", *(f"migrations of {service}" for service in migrations)),
    )


@cache
def list_queries() -> tuple[queries.Query, ...]:
    """Return the queries of `collect`, for a check that queries.toml does not name."""
    return tuple(
        queries.read(f"changed/{f.stem}", f) for f in sorted((Path(__file__).parent / "sql/changed").iterdir())
    )
