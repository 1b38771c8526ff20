"""Make the recordings that `make test` judges: every fault of the sandbox, and moments that are none, once each.

    make record                     record what is missing
    make record CHANGED=1           list what a changed query has made stale, and record it again
    make record ONLY="relay_stopped two_faults"      these, whether they are there or not
    make record ACCEPT=1            expect of every recording what today's code and documents say of it, but where a
                                    person has said what to expect (`runbook record --expect`)
    make record QUERIES=1           only write the pack's queries.toml, what each step asked in the recordings

A recording that is there is not made again, so that an interrupted run goes on where it was. A run in which all
are recorded writes queries.toml, too.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nats.js import JetStreamContext

from runbook_lib.book import catalog, pack, queries
from runbook_lib.gameday.sandbox import faults
from runbook_lib.gameday.sandbox.broker import STREAM
from runbook_lib.gameday.sandbox.sandbox import Sandbox
from runbook_lib.runs import replay
from runbook_lib.sources import settings
from runbook_lib.store import capsule
from runbook_lib.store.archive import Archive
from runbook_lib.store.lines import read_logs
from runbook_lib.store.run import Run, read_runs, run_from_json, run_to_json
from runbook_lib.view.queries import FILE, declared
from tests.drills import people, play
from tests.drills.scenario import Scenario
from tests.kit import RECORDINGS, states
from tests.kit.drills import LATER, LOOK_AFTER_S

SECTIONS = ("3", "2", "4.1", "4.2", "4.3", "4.4", "4.5", "5.1", "5.2", "5.3", "6")
AT_ONCE = 2

Step = Callable[[Sandbox, play.DrillClock], None]


def do(*acts: people.Act, after_s: float) -> Step:
    """Return what does something to the sandbox, and gives it so many seconds."""

    def done(sandbox: Sandbox, clock: play.DrillClock) -> None:
        for act in acts:
            act(sandbox)
        clock.wait(after_s)

    return done


def heal(name: str, after_s: float) -> Step:
    """Return what undoes this fault and gives the flow so many seconds."""
    return do(faults.find(name).undo, after_s=after_s)


def restart(program: str) -> people.Act:
    """Return what restarts this program."""
    return lambda sandbox: sandbox.restart(program)


@dataclass(frozen=True)
class Moment:
    """What is recorded: faults, the load and noise around them, and when somebody looks."""

    name: str
    faults: tuple[str, ...] = ()
    person: str = ""
    """A row of people.toml."""
    look_after_s: float = LOOK_AFTER_S
    load: str = "steady"
    noise: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    then: Step | None = None

    @property
    def about(self) -> dict[str, Any]:
        """What the index says of it."""
        broken = [*self.faults, *([self.person] if self.person else [])]
        said = f"{self.look_after_s:g} s after the onset" if broken else "nothing is broken"
        return {"faults": broken, "moment": self.name if self.then else said, "load": self.load}


# What looks like a removed trace and is none, in statements of the superuser.
#: Rows that the notification service deletes at its next start.
OLD_ROWS = (
    """INSERT INTO notification.notifications
        (notification_id, event_id, user_id, type, occurred_at, payload_json, status, created_at, sent_at)
    SELECT gen_random_uuid(), gen_random_uuid(), 'user-' || n, 'EntitlementGranted', at, '{}', 'SENT', at, at
    FROM generate_series(1, 500) AS n, LATERAL (SELECT now() - interval '31 days' AS at) AS long_ago""",
    "INSERT INTO notification.processed_events SELECT event_id, created_at FROM notification.notifications"
    " WHERE created_at < now() - interval '30 days'",
)
_TABLES = ("notification.processed_events", "notification.notifications", "entitlement.outbox_events")
REWRITE = tuple(f"VACUUM FULL {table}" for table in _TABLES)
REINDEX = tuple(f"REINDEX TABLE CONCURRENTLY {table}" for table in _TABLES)
#: Events that were published and notified: no more than the retention deletes a day later.
PUBLISHED = """DELETE FROM entitlement.outbox_events
    WHERE status = 'PUBLISHED' AND published_at BETWEEN now() - interval '5 minutes' AND now() - interval '5 seconds'"""
_USER = "SELECT user_id FROM notification.notifications GROUP BY user_id ORDER BY max(created_at) LIMIT 1"
#: All that is known of the user who has not been notified for the longest time.
ERASE = (
    f"""WITH erased AS ({_USER}), sent AS (
        DELETE FROM notification.notifications WHERE user_id = (SELECT user_id FROM erased) RETURNING event_id
    ), processed AS (
        DELETE FROM notification.processed_events WHERE event_id IN (SELECT event_id FROM sent)
    ), outbox AS (
        DELETE FROM entitlement.outbox_events WHERE event_id IN (SELECT event_id FROM sent)
    ), changes AS (
        DELETE FROM entitlement.entitlement_audit WHERE user_id = (SELECT user_id FROM erased)
    )
    DELETE FROM entitlement.entitlements WHERE user_id = (SELECT user_id FROM erased)""",
)


async def keep_newest(js: JetStreamContext) -> None:
    """Purge the events' stream but for its newest messages: all that is purged was processed."""
    await js.purge_stream(STREAM, keep=20)


MOMENTS = (
    *(Moment(name, (name,), look_after_s=LATER.get(name, LOOK_AFTER_S)) for name in faults.TABLES),
    *(Moment(name, person=name, look_after_s=LATER.get(name, LOOK_AFTER_S)) for name in people.TABLES),
    Moment("healthy"),
    Moment("quiet", load="quiet"),
    Moment("spike", load="spike"),
    Moment("rolling_update", noise="deploy", look_after_s=8),
    Moment("backup_running", noise="backup"),
    Moment("recovered", ("worker_stopped",), then=heal("worker_stopped", after_s=60)),
    Moment(
        "recovered_with_dead_letters",
        ("receiver_outage",),
        look_after_s=25,
        settings={"NOTIFICATION_DELIVERY_MAX_ATTEMPTS": "3"},
        then=heal("receiver_outage", after_s=60),
    ),
    Moment("receiver_back", ("receiver_outage",), look_after_s=25, then=heal("receiver_outage", after_s=50)),
    Moment("broker_back", ("broker_down",), look_after_s=45, then=heal("broker_down", after_s=40)),
    Moment("receiver_restarted", look_after_s=0, then=do(restart("receiver"), after_s=15)),
    Moment("notification_restarted", look_after_s=0, then=do(restart("notification"), after_s=20)),
    Moment("broker_restarted", look_after_s=0, then=do(restart("nats"), after_s=30)),
    Moment("database_reconnected", look_after_s=0, then=do(faults.alter("new sessions"), after_s=15)),
    Moment("retention_ran", look_after_s=0, then=do(faults.alter(*OLD_ROWS), restart("notification"), after_s=20)),
    Moment("statistics_reset", look_after_s=0, then=do(faults.alter("SELECT pg_stat_reset()"), after_s=10)),
    Moment("tables_rewritten", look_after_s=0, then=do(faults.alter(*REWRITE), after_s=15)),
    Moment("indexes_rebuilt", look_after_s=0, then=do(faults.alter(*REINDEX), after_s=15)),
    Moment("stream_emptied", look_after_s=0, then=do(faults.on_broker(keep_newest), after_s=15)),
    Moment("outbox_deleted", look_after_s=0, then=do(faults.alter(PUBLISHED), after_s=15)),
    Moment("user_erased", look_after_s=0, then=do(faults.alter(*ERASE), after_s=15)),
    Moment("worker_hung_just_now", ("worker_hung",), look_after_s=2),
    Moment("worker_and_broker", ("worker_stopped", "broker_down")),
    Moment("lock_and_relay", ("table_lock", "relay_stopped")),
    Moment("receiver_and_subscriber", ("receiver_outage", "subscriber_deaf"), look_after_s=45),
)


def make(moment: Moment, clock: play.DrillClock) -> None:
    """Bring the moment about in a sandbox of its own and record it."""
    scenario = Scenario(0, moment.faults, 1.0, moment.load, moment.noise, moment.look_after_s)
    with tempfile.TemporaryDirectory(prefix="record-") as scratch:
        # What a person changed is told by the difference to the healthy system.
        output = Path(scratch, "out") if moment.person else None
        turn = people.ACTS.get(moment.person)
        with play.incident(scenario, Path(scratch, "sandbox"), clock, moment.settings, output, turn) as it:
            detected = datetime.now(UTC)
            clock.wait(moment.look_after_s)
            if moment.then:
                moment.then(it.sandbox, clock)
            where = ("--target", "sandbox", "--incident", moment.name, "--output", f"{scratch}/out")
            alert = ("-p", "detected_by=alert", "-p", f"detected_at={detected:%Y-%m-%dT%H:%M:%SZ}")
            told = alert if moment.about["faults"] else ()
            # Section 3 first, as triage does it; only it takes how the incident was detected.
            errors = [_runbook(it.sandbox, scratch, *words, *where) for words in ((*SECTIONS[:1], *told), SECTIONS[1:])]
        try:
            source, book = Archive(f"{scratch}/out", moment.name), catalog.load()
            packed = replay.pack(source, settings.load(), book, f"{scratch}/packed")
            runs = without_paths(read_runs(packed), {scratch: "/sandbox", sys.executable: "python3"})
            notes = [note.text for note in read_logs(packed).notes]
            capsule.write(file_of(moment.name), replay.build(f"{scratch}/own", moment.name, runs, book, notes))
        except Exception as e:
            raise RuntimeError(f"{moment.name}: {e!r}; the command said: {errors}") from e


def file_of(name: str) -> Path:
    """Return the file of a recording."""
    return RECORDINGS / f"{name}{capsule.SUFFIX}"


def without_paths(runs: Iterable[Run], paths: dict[str, str]) -> list[Run]:
    """Return runs with other words for this machine's paths."""
    text = json.dumps([*map(run_to_json, runs)])
    for path, word in paths.items():
        text = text.replace(path, word)
    return [*map(run_from_json, json.loads(text))]


def _runbook(sandbox: Sandbox, folder: str, *words: str) -> str:
    """Run sections as a responder would; what the command says on standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "runbook_lib", "run", *words],
        env=dict(play.environment(sandbox)), cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stderr[-500:]


# What a recording rests on ------------------------------------------------------------------------------------


def stale(names: Iterable[str]) -> dict[str, list[str]]:
    """Return of these recordings the queries that were sent otherwise than they are today."""
    found = {name: changed_queries(capsule.read(file_of(name))) for name in names}
    return {name: queries for name, queries in found.items() if queries}


def changed_queries(runs: Mapping[str, Run]) -> list[str]:
    """Return the queries to PostgreSQL that a recording holds with another text than today's, or that are no more."""
    known = set(queries.names())
    sent = {
        (query["name"], query["text"])
        for run in runs.values()
        for finding in run.stored
        for query in finding["questions"]
        if query["source"] == "postgres" and query["name"] != "connect"
    }
    return sorted({n for n, text in sent if n not in known or not text.startswith(queries.query(n).sql.rstrip(";\n"))})


# What each step asks ------------------------------------------------------------------------------------------

#: What a step may ask that no recording has: an earlier step of its section asked it, the role is at its limit, a
#: replica answers for the tables, a throttle may be in force, or it is asked since.
_MATCHES = {
    "jetstream STREAM.INFO.matchmaking-events",
    "jetstream CONSUMER.INFO.matchmaking-events.notification-matchmaking-consumer",
}
_BALANCE = {*_MATCHES, "jetstream STREAM.MSG.GET.matchmaking-events", "dead_letters/processed"}
NOT_RECORDED = {
    "2.3": _MATCHES,
    "3.1": {"consistency/half_processed", "consistency/surplus"},
    **{step: {"consistency/surplus"} for step in ("4.2.2", "5.3.5")},
    "3.2": {"journey/registered", "notifications/registered", "consistency/surplus", *_BALANCE},
    "3.6": _MATCHES,
    "4.1.2": {"alive/delivery", "journey/registered", "notifications/registered", *_BALANCE},
    "4.1.4": {"alive/sessions"},
    "4.3.4": {"workloads environment", "workloads status"},
    "4.4.2": {"workloads environment", "workloads status"},
    **{step: {"journey/registered"} for step in ("4.4.3", "5.3.2")},
    "6.5": {"journey/registered", "consistency/surplus", *_MATCHES},
}
#: What the recordings were asked, by step, and is asked no more.
NO_LONGER = {
    "2.4": {"notifications/holders"},
    **{step: {"processed/activity"} for step in ("3.2", "4.1.2")},
    "4.2.3": {"jetstream STREAM.INFO.entitlement-events", "jetstream STREAM.MSG.GET.entitlement-events"},
    "5.2.1": {"notifications/batches"},
    "5.2.2": {"outbox/batches"},
}
_ABOUT_QUERIES = """\
# What each step asks, the most usual first: a query of sql/ by its name, or a source and the call. `rb.queries` shows
# it. `make record QUERIES=1` writes this file from the recordings, and keeps a step that no recording has.

"""
_INDENTED = textwrap.TextWrapper(120, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)


def asked_queries(names: Iterable[str]) -> dict[str, Counter[str]]:
    """Return how many of these recordings asked what, by step: neither connections nor queries that are no more."""
    known, asked = set(queries.names()), defaultdict[str, Counter[str]](Counter)
    for name in names:
        runs = capsule.read(file_of(name)).values()
        sent = {(f["step"], q["source"], q["name"]) for run in runs for f in run.stored for q in f["questions"]}
        for step, source, query in sent:
            if source != "postgres" or query in known:
                asked[step][query if source == "postgres" else f"{source} {query}"] += 1
    return asked


def queries_file(asked: Mapping[str, Counter[str]]) -> str:
    """Return the pack's queries.toml; a step that no recording has keeps what the file says."""
    by_step = dict(declared(pack.active_runbook().packs[0].folder / FILE))
    for step, counted in asked.items():
        names = (counted.keys() | NOT_RECORDED.get(step, set())) - NO_LONGER.get(step, set())
        by_step[step] = sorted(names, key=lambda name: (-counted[name], name))
    steps = [step.id for section in catalog.load().sections.values() for step in section.steps]
    return _ABOUT_QUERIES + "".join(_format_entry(step, by_step[step]) for step in steps if by_step.get(step))


def _format_entry(step: str, names: list[str]) -> str:
    """Return a step's line of the file, or its lines where one is too long; no name is broken at its space."""
    listed = ", ".join(f'"{name}"'.replace(" ", "\0") for name in names)
    entry = f'"{step}" = [{listed}]'
    if len(entry) > _INDENTED.width:
        entry = f'"{step}" = [\n{_INDENTED.fill(f"{listed},")}\n]'
    return entry.replace("\0", " ") + "\n"


def write_queries(index: Iterable[str]) -> int:
    """Write the pack's queries.toml."""
    (pack.active_runbook().packs[0].folder / FILE).write_text(queries_file(asked_queries(index)), encoding="utf-8")
    return 0


# The command --------------------------------------------------------------------------------------------------


def main() -> int:
    """Record, list what is stale, or accept."""
    parser = argparse.ArgumentParser(description="Make the recordings that the replay tests judge.")
    parser.add_argument("names", nargs="*", help="only these")
    parser.add_argument("--changed", action="store_true", help="list the stale ones and record them again")
    parser.add_argument("--accept", action="store_true", help="expect what is said today")
    parser.add_argument("--states", action="store_true", help="expect what is said of the states today")
    parser.add_argument("--queries", action="store_true", help="only write what each step asks")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help="sandboxes side by side")
    asked = parser.parse_args()
    RECORDINGS.mkdir(exist_ok=True)
    index = replay.read_index(RECORDINGS)
    if asked.accept:
        return accept(index, asked.names or list(index)) or accept_states()
    if asked.states:
        return accept_states()
    if asked.queries:
        return write_queries(index)
    known = {m.name: m for m in MOMENTS}
    if unknown := sorted(set(asked.names) - known.keys()):
        print(f"no moment is called {', '.join(unknown)}: known are {', '.join(known)}", file=sys.stderr)
        return 64
    wanted = asked.names or [name for name in known if name not in index]
    if asked.changed:
        for name, changed in (found := stale(index.keys() & known.keys())).items():
            print(f"stale: {name}: {', '.join(changed)}", flush=True)
        wanted = sorted({*wanted, *found})
    return record([known[name] for name in wanted], index, asked.at_once) or write_queries(index)


def record(moments: list[Moment], index: dict[str, dict[str, Any]], at_once: int) -> int:
    """Record the moments, some at once; the exit code says whether all of them came about."""
    clock, failed = play.DrillClock(threading.Event()), 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ThreadPoolExecutor(at_once) as lanes:
        running = {lanes.submit(make, moment, clock): moment for moment in moments}
        try:
            for n, done in enumerate(as_completed(running), start=1):
                name = running[done].name
                try:
                    done.result()
                except Exception as e:
                    failed += 1
                    print(f"{n}/{len(moments)} {name}: not recorded: {e}", flush=True)
                    continue
                expected = replay.evaluate(capsule.read(file_of(name)), catalog.load())
                index[name] = {"about": running[done].about, "expected": expected}
                replay.write_index(RECORDINGS, index)
                print(f"{n}/{len(moments)} {name}: {line(expected)}", flush=True)
        except KeyboardInterrupt:
            clock.stop.set()
            lanes.shutdown(cancel_futures=True)
            return 130
    return 1 if failed else 0


def accept(index: dict[str, dict[str, Any]], names: list[str]) -> int:
    """Expect of the recordings what is said of them today, and print what that changes.

    What a person expects of a wrong verdict names some values only, and stays as it is.
    """
    for name in names:
        now, expected = (
            replay.evaluate(capsule.read(file_of(name)), catalog.load()),
            index[name]["expected"],
        )
        by_a_person = expected.keys() != now.keys()
        for changed in replay.differences(expected, now):
            print(f"{name}: {changed}{', which a person has said: not accepted' if by_a_person else ''}")
        if not by_a_person:
            index[name]["expected"] = now
    replay.write_index(RECORDINGS, index)
    return 0


def accept_states() -> int:
    """Expect of the states what is said of them today, and print what that changes."""
    found, before = {name: states.evaluate(state) for name, state in states.states().items()}, states.expected()
    for name, said in found.items():
        for changed in replay.differences(before[name], said) if name in before else [f"new: {said['steps']}"]:
            print(f"{name}: {changed}")
    states.write_expected(found)
    return 0


def line(said: dict[str, Any]) -> str:
    """Return a verdict in one line."""
    modes = ", ".join(said["failure_modes"][:2]) or "no failure mode"
    return f"{said['status']}, {said['stuck_at']}, {said['confidence']}, {modes}"


if __name__ == "__main__":
    os.environ.pop("RUNBOOK_REPLAY", None)
    raise SystemExit(main())
