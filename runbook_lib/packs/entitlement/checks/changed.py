"""3.6: changes around the system in the hours before the run. A change is not a cause only because it came first."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.checks.check import Check
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import FrameCollector, require_present, seconds_between
from runbook_lib.diagnosis.snapshots import CONFIGURATION, DRIFT_COLUMNS, SETTING_COLUMNS, drift
from runbook_lib.dossier import baseline
from runbook_lib.model.finding import (
    Finding,
    Frames,
    OutageEnd,
    Signal,
    Status,
    Text,
    Value,
    judged,
    replace,
    say,
)
from runbook_lib.model.frames import table
from runbook_lib.packs.entitlement.evidence import configuration
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.sources.source import SourceError
from runbook_lib.store.archive import ACTION_LOG

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context

COLUMNS = ["at", "what", "source", "time"]

Change = dict[str, Any]


def collect(rb: Context) -> Frames:
    """3.6: collect starts, migrations, created streams and consumers, actions of this runbook, and the configuration.

    Frames: changes (at: time; what, source: text; time: text, "exact", "of the newest" where only the newest of its
    kind is known, or "zone not kept"), settings of the role and the database (whose, setting: text, "name=value" or the
    name alone), configuration (source, item, setting, value: text), healthy (the same of the last healthy baseline, and
    at: time, when it was read), asked (source: text).
    """
    require_present(rb, "postgres")
    parts, changes, settings = FrameCollector(), list[Change](), list[configuration.Row]()

    def part(name: str, found: Iterator[Change]) -> None:
        with parts.part(name):
            changes.extend(found)
            asked.append(name)

    asked: list[str] = []
    part("postgres", _read_database_changes(rb, parts, settings))
    part("jetstream", _read_stream_changes(rb, settings))
    part("nats_monitor", _read_broker_changes(rb))
    part("workloads", _read_pod_starts(rb, settings))
    with suppress(OSError):
        changes += _read_actions(rb)
    if not asked:
        return parts.frames()
    parts.answers["changes"] = pd.DataFrame(changes, columns=COLUMNS)
    parts.answers["asked"] = pd.DataFrame({"source": asked})
    # A source that answered in part would seem to have lost the rest.
    parts.answers[CONFIGURATION] = pd.DataFrame(
        [s for s in settings if s[0] not in parts.failures], columns=SETTING_COLUMNS
    )
    with suppress(OSError, ValueError, KeyError):
        healthy = baseline.configuration(rb.archive.output, rb.parameters.target)
        if healthy is not None:
            parts.answers["healthy"] = healthy
    return parts.frames()


def _build_change(at: Any, what: str, source: str, time: str = "exact") -> Change:
    return {"at": pd.Timestamp(at), "what": what, "source": source, "time": time}


def _read_database_changes(rb: Context, parts: FrameCollector, settings: list[configuration.Row]) -> Iterator[Change]:
    with rb.snapshot() as db:
        server = db.ask("changed/server").iloc[0]
        parts.answers["settings"] = db.ask("changed/settings", role=facts_of(rb).database_role)
        with parts.part("catalog"):
            catalog = db.ask_apart("changed/catalog", schemas=list(facts_of(rb).services))
            if not catalog.attrs.get("capped"):
                settings += configuration.of_database(parts.answers["settings"], catalog)
        histories = {}
        for service in facts_of(rb).services:
            with parts.part(f"migrations of {service}"):
                histories[service] = db.ask_apart(f"scope/migrations_{service}")
    yield _build_change(server["started_at"], "PostgreSQL started", "postgres", "of the newest")
    if server["loaded_at"] > server["started_at"] + pd.Timedelta(seconds=rb.number("changed.apart")):
        yield _build_change(server["loaded_at"], "PostgreSQL read its configuration", "postgres", "of the newest")
    for service, history in histories.items():
        for migration in history.to_dict("records"):
            failed = "" if migration["success"] else ", failed"
            what = f"migration of {service}: {migration['version']} {migration['description']}{failed}"
            yield _build_change(f"{migration['installed_on']}Z", what, "postgres", "zone not kept")


def _read_stream_changes(rb: Context, settings: list[configuration.Row]) -> Iterator[Change]:
    for stream, durable in facts_of(rb).streams.durables.items():
        for what, name in ((f"stream {stream}", None), (f"consumer {durable}", durable)):
            try:
                info = rb.consumer(stream, name).info if name else rb.stream(stream)
            except SourceError as e:
                if e.code not in ("stream_not_found", "consumer_not_found"):
                    raise
                continue
            settings += configuration.of_broker(what, info)
            if created := info.get("created"):
                yield _build_change(created, f"{what} created", "jetstream", "of the newest")


def _read_broker_changes(rb: Context) -> Iterator[Change]:
    apart = pd.Timedelta(seconds=rb.number("changed.apart"))
    for server in rb.nats_monitor.servers():
        name = server.get("server_name") or server.get("server_id")
        if start := server.get("start"):
            yield _build_change(start, f"NATS server {name} started", "nats_monitor", "of the newest")
            loaded = server.get("config_load_time")
            if loaded and pd.Timestamp(loaded) > pd.Timestamp(start) + apart:
                yield _build_change(
                    loaded, f"NATS server {name} read its configuration", "nats_monitor", "of the newest"
                )


def _read_pod_starts(rb: Context, settings: list[configuration.Row]) -> Iterator[Change]:
    names = facts_of(rb).workloads
    for name in (names.entitlement, names.notification):
        settings += configuration.of_workload(rb, name)
        for pod in rb.workloads.pods(name):
            if pod["started"]:
                again = f" ({pod['restarts']} restarts before)" if pod["restarts"] else ""
                yield _build_change(pod["started"], f"{pod['name']} started{again}", "workloads", "of the newest")


def _read_actions(rb: Context) -> Iterator[Change]:
    for line in rb.archive.lines(ACTION_LOG):
        if line.get("result") in ("done", "failed") and line.get("time"):
            yield _build_change(line["time"], f"action {line.get('command') or line.get('action')}", "actions.jsonl")


def judge(frames: Frames, given: JudgeInput) -> Finding:
    """3.6: list the changes of the last hours, newest first, without judging whether one is the cause.

    If 3.1 found an outage that is over, its last change before the end is named.
    """
    back = pd.Timedelta(hours=given.number("changed.look_back"))
    changes = table(frames, "changes", *COLUMNS)
    changes = changes.assign(at=pd.to_datetime(changes["at"], utc=True))
    lately = changes[(changes["at"] > given.as_of - back) & (changes["at"] <= given.as_of)]
    lately = lately.sort_values("at", ascending=False, ignore_index=True)
    lately.attrs["since"] = (given.as_of - back).isoformat()
    onset = _read_onset(given)
    before = lately[lately["at"] <= onset] if onset is not None else lately.iloc[:0]
    settings = table(frames, "settings", "whose", "setting")
    differing, healthy_at = _find_drift(frames)
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
    foreign = table(frames, CONFIGURATION, *SETTING_COLUMNS).iloc[:0]
    if healthy_at is None:
        notes.append(say("changed.no_baseline"))
        foreign = configuration.unexpected(table(frames, CONFIGURATION, *SETTING_COLUMNS))
        if len(foreign):
            headline = _describe_unexpected(foreign)
    elif len(differing):
        since = f"{healthy_at:%m-%d %H:%M}"
        headline = _describe_drift(differing, since, f"{given.as_of:%H:%M}")
        notes.append(say("changed.restore", since=since))
    return judged(
        headline,
        [
            Value("changes", len(lately), "changes"),
            Value("changes.before_onset", len(before), "changes"),
            Value("changes.configuration", None if healthy_at is None else len(differing), "settings"),
        ],
        signals=_weigh_changes(differing, healthy_at, foreign, given),
        notes=tuple(notes),
        frames={"lately": lately, "drift": differing},
        show=tuple(name for name, frame in (("drift", differing), ("lately", lately)) if len(frame)),
        ended=_add_preceding_change(given, lately, onset),
    )


def _find_drift(frames: Frames) -> tuple[pd.DataFrame, pd.Timestamp | None]:
    """Return what differs from the last healthy configuration, and when that was read; None where none is kept."""
    healthy = table(frames, "healthy", *SETTING_COLUMNS, "at")
    if healthy.empty:
        return pd.DataFrame(columns=DRIFT_COLUMNS), None
    now = table(frames, CONFIGURATION, *SETTING_COLUMNS)
    return drift(healthy, now), pd.Timestamp(healthy["at"].iloc[0])


def _describe_drift(differing: pd.DataFrame, since: str, until: str) -> Text:
    """Return the first difference as a sentence, and how many others there are."""
    first = {name: textwrap.shorten(str(differing.iloc[0][name]), 100) for name in DRIFT_COLUMNS}
    key = "changed.drift"
    if not first["before"]:
        key = "changed.drift_added"
    elif not first["now"]:
        key = "changed.drift_removed"
    return say(key, **first, others=len(differing) - 1 or None, since=since, until=until)


def _describe_unexpected(foreign: pd.DataFrame) -> Text:
    """Return the first definition that no migration makes as a sentence, and how many others there are."""
    first = {name: textwrap.shorten(str(foreign.iloc[0][name]), 100) for name in ("item", "setting", "value")}
    return say("changed.unexpected", **first, others=len(foreign) - 1 or None)


def _weigh_changes(
    differing: pd.DataFrame, healthy_at: pd.Timestamp | None, foreign: pd.DataFrame, given: JudgeInput
) -> tuple[Signal, ...]:
    """Return what the differences, and the unexpected definitions, support; nothing while nothing is late.

    Differences from a configuration that was healthy long ago name no place: any of them may be harmless.
    """
    impact = next((f for f in given.earlier if f.step == "3.1"), None)
    if impact is None or impact.status is Status.OK or impact.ended:
        return ()
    entitlement = given.facts.workloads.program("entitlement")
    if healthy_at is not None and given.as_of - healthy_at > pd.Timedelta(hours=given.number("changed.baseline")):
        found = ["changed.long_ago"] if len(differing) else []
    else:
        changes, settings = differing.to_dict("records"), given.catalog.settings.values()
        triggers = [change["now"] for change in changes]
        found = [
            "" if _executes(triggers, change["item"]) else configuration.observation(change, entitlement, settings)
            for change in changes
        ]
    unexpected = ["changed.unexpected"] if len(foreign) else []
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


def _add_preceding_change(given: JudgeInput, lately: pd.DataFrame, onset: pd.Timestamp | None) -> OutageEnd | None:
    """Return the outage that 3.1 found over, with the last change before its end; None if there is none.

    Without an onset, which a short outage may lack, only a change shortly before the end counts.
    """
    ended = next((f.ended for f in given.earlier if f.step == "3.1"), None)
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


def _read_onset(given: JudgeInput) -> pd.Timestamp | None:
    """Return the onset that 3.1 found; None if it found none."""
    onset = next((f.value("impact.onset") for f in given.earlier if f.step == "3.1"), None)
    return pd.Timestamp(onset) if isinstance(onset, str) else None


CHECKS = (
    Check(
        "3.6",
        collect,
        judge,
        needs=("changes",),
        # Without its tool or its port a target is no less well; what was asked is named.
        optional=("workloads", "nats_monitor", "migrations of entitlement", "migrations of notification"),
    ),
)
