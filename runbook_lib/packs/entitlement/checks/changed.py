"""3.6: what has changed around the system in the hours before. What came before is no cause by that alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.checks.check import Check, failures
from runbook_lib.checks.parts import Parts, needs_the_present, no_data, seconds_between
from runbook_lib.context import Given
from runbook_lib.model.finding import Finding, Frames, Reason, Value, judged, say
from runbook_lib.model.frames import table
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.sources import SourceError
from runbook_lib.store import ACTION_LOG

if TYPE_CHECKING:
    from runbook_lib.context import Context

COLUMNS = ["at", "what", "source", "time"]

Change = dict[str, Any]


def collect(rb: Context) -> Frames:
    """3.6: starts, migrations, streams and consumers made, actions of this runbook; settings of roles and database.

    Frames: changes (at: time; what, source: text; time: text, "exact", "of the newest" where earlier ones of its kind
    are not told, or "zone not kept"), settings (whose, setting: text), asked (source: text).
    """
    needs_the_present(rb, "postgres")
    parts, changes = Parts(), list[Change]()

    def part(name: str, found: Iterator[Change]) -> None:
        with parts.part(name):
            changes.extend(found)
            asked.append(name)

    asked: list[str] = []
    part("postgres", _database(rb, parts.answers))
    part("jetstream", _streams(rb))
    part("nats_monitor", _brokers(rb))
    part("workloads", _pods(rb))
    with suppress(OSError):
        changes += _actions(rb)
    parts.answers["changes"] = pd.DataFrame(changes, columns=COLUMNS)
    parts.answers["asked"] = pd.DataFrame({"source": asked})
    return parts.frames()


def _change(at: Any, what: str, source: str, time: str = "exact") -> Change:
    return {"at": pd.Timestamp(at), "what": what, "source": source, "time": time}


def _database(rb: Context, answers: Frames) -> Iterator[Change]:
    with rb.snapshot() as db:
        server = db.ask("changed/server").iloc[0]
        answers["settings"] = db.ask("changed/settings", role=facts_of(rb).database_role)
        histories = {service: db.try_ask(f"scope/migrations_{service}") for service in facts_of(rb).services}
    yield _change(server["started_at"], "PostgreSQL started", "postgres", "of the newest")
    if server["loaded_at"] > server["started_at"] + pd.Timedelta(seconds=rb.number("changed.apart")):
        yield _change(server["loaded_at"], "PostgreSQL read its configuration", "postgres", "of the newest")
    for service, history in histories.items():
        for migration in history.to_dict("records") if history is not None else ():
            failed = "" if migration["success"] else ", failed"
            what = f"migration of {service}: {migration['version']} {migration['description']}{failed}"
            yield _change(f"{migration['installed_on']}Z", what, "postgres", "zone not kept")


def _streams(rb: Context) -> Iterator[Change]:
    for stream, durable in facts_of(rb).streams.durables.items():
        for what, ask in (
            (f"stream {stream} made", partial(rb.jetstream.stream, stream)),
            (f"consumer {durable} made", partial(rb.jetstream.consumer, stream, durable)),
        ):
            try:
                made = ask().get("created")
            except SourceError as e:
                if e.code not in ("stream_not_found", "consumer_not_found"):
                    raise
                continue
            if made:
                yield _change(made, what, "jetstream", "of the newest")


def _brokers(rb: Context) -> Iterator[Change]:
    apart = pd.Timedelta(seconds=rb.number("changed.apart"))
    for server in rb.nats_monitor.servers():
        name = server.get("server_name") or server.get("server_id")
        if start := server.get("start"):
            yield _change(start, f"NATS server {name} started", "nats_monitor", "of the newest")
            loaded = server.get("config_load_time")
            if loaded and pd.Timestamp(loaded) > pd.Timestamp(start) + apart:
                yield _change(loaded, f"NATS server {name} read its configuration", "nats_monitor", "of the newest")


def _pods(rb: Context) -> Iterator[Change]:
    names = facts_of(rb).workloads
    for name in (names.entitlement, names.notification):
        for pod in rb.workloads.pods(name):
            if pod["started"]:
                again = f" ({pod['restarts']} restarts before)" if pod["restarts"] else ""
                yield _change(pod["started"], f"{pod['name']} started{again}", "workloads", "of the newest")


def _actions(rb: Context) -> Iterator[Change]:
    for line in rb.archive.lines(ACTION_LOG):
        if line.get("result") in ("done", "failed") and line.get("time"):
            yield _change(line["time"], f"action {line.get('command') or line.get('action')}", "actions.jsonl")


def judge(frames: Frames, given: Given) -> Finding:
    """3.6: the changes of the hours before, the newest first; whether they matter a person decides."""
    if "changes" not in frames or table(frames, "asked", "source").empty:
        return no_data("changed/server")
    back = pd.Timedelta(hours=given.number("changed.look_back"))
    changes = table(frames, "changes", *COLUMNS)
    changes = changes.assign(at=pd.to_datetime(changes["at"], utc=True))
    lately = changes[(changes["at"] > given.as_of - back) & (changes["at"] <= given.as_of)]
    lately = lately.sort_values("at", ascending=False, ignore_index=True)
    begun = _onset(given)
    before = lately[lately["at"] <= begun] if begun is not None else lately.iloc[:0]
    settings = table(frames, "settings", "whose", "setting")
    nearest = before.iloc[0] if len(before) else lately.iloc[0] if len(lately) else None
    silent = [e for e in failures(frames).values() if e.reason is not Reason.NOT_CONFIGURED]
    facts = {
        "n": len(lately),
        "hours": given.number("changed.look_back"),
        "what": None if nearest is None else str(nearest["what"]),
        "ago": None if nearest is None else seconds_between(nearest["at"], given.as_of),
        "before": seconds_between(nearest["at"], begun) if len(before) and nearest is not None else None,
    }
    notes = [say("changed.no_cause")] if len(lately) else []
    if len(settings):
        told = "; ".join(f"{s.whose}: {s.setting}" for s in settings.itertuples())
        notes.append(say("changed.settings", told=told))
    notes.append(say("changed.asked", names=", ".join(table(frames, "asked", "source")["source"])))
    return judged(
        say("changed.some" if len(lately) else "changed.none", **facts),
        [Value("changes", len(lately), "changes"), Value("changes.before_onset", len(before), "changes")],
        reason=silent[0].reason if silent else None,
        notes=tuple(notes),
        frames={"lately": lately},
        show=("lately",) if len(lately) else (),
    )


def _onset(given: Given) -> pd.Timestamp | None:
    """When it began, as 3.1 has it."""
    told = next((f.value("impact.onset") for f in given.earlier if f.step == "3.1"), None)
    return pd.Timestamp(told) if isinstance(told, str) else None


CHECKS = (Check("3.6", collect, judge),)
