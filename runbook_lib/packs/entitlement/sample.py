"""What a run reads of this system's parts at two moments, once for all of its sections."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib.checks.sample import Collect, Part, Sampling, SecondMoment
from runbook_lib.model import rows
from runbook_lib.model.finding import Frames, Hop
from runbook_lib.packs.changes import changes
from runbook_lib.packs.entitlement.checks import backlog, changed, database, program, publish, response, subscriber
from runbook_lib.packs.entitlement.evidence import services, sessions
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.packs.entitlement.rows import Activity, Attempts, HeldRow, Notifications, Outbox
from runbook_lib.sources.source import SourceError

if TYPE_CHECKING:
    from runbook_lib.book.catalog import Catalog
    from runbook_lib.checks.check import Check
    from runbook_lib.checks.context import Context

#: The frames of the tables, and their queries.
_TABLES = {
    "backlog": Notifications.QUERY,
    "activity": Activity.QUERY,
    "attempts": Attempts.QUERY,
    "held": HeldRow.QUERY,
    "outbox": Outbox.QUERY,
}
#: The checks that only read tables.
_OF_TABLES: tuple[Check, ...] = (*database.CHECKS, *response.INVARIANTS.values(), *response.CRITERIA.values())
#: The limit of the oldest row that is due, by hop.
_LATE = {"relay": "outbox.oldest_due", "delivery_worker": "backlog.oldest_due"}


def _read_tables(rb: Context) -> Frames:
    found: Frames = {}
    with suppress(SourceError), rb.snapshot() as db:
        for name, query in _TABLES.items():
            if (frame := db.try_ask(query)) is not None:
                found[name] = frame
        found |= sessions.collect(db, facts_of(rb).database_role)
    return found


def _ask_tables(rb: Context, first: Frames) -> None:
    rb = replace(rb, brief=not _shows_late_rows(rb, first))
    for step, ask in (
        ("3.1", response.ask_tables),
        ("4.1.1", backlog.ask_tables),
        ("4.1.3", publish.ask_tables),
        ("3.6", lambda rb: changes.ask_tables(changed.surroundings(rb.facts), rb)),
        *((check.step, check.collect) for check in _OF_TABLES),
    ):
        if ask is not None:
            with suppress(SourceError):
                ask(rb.of(f"{rb.answers.step} {step}"))


def _watch_sessions(rb: Context, first: Frames, second: SecondMoment) -> Frames:
    return sessions.watch_worker(rb, second, often=_shows_late_rows(rb, first))


def _read_tables_again(rb: Context) -> Mapping[Collect, Frames]:
    _read_tables(rb.of(f"{rb.answers.step} again"))
    return {}


def _read_services_again(rb: Context) -> Mapping[Collect, Frames]:
    return {services.collect: services.collect(rb)}


def _ask_requests(rb: Context, first: Frames) -> None:
    with suppress(SourceError):
        response.query_requests(rb)


def _ask_broker(rb: Context, first: Frames) -> None:
    subscriber.ask_broker_and_tables(rb.of(f"{rb.answers.step} 4.1.2"))
    changes.ask_broker(changed.surroundings(rb.facts), rb.of(f"{rb.answers.step} 3.6"))


def _read_broker_again(rb: Context) -> Mapping[Collect, Frames]:
    with suppress(SourceError):
        return {subscriber.read_consumer_now: subscriber.read_consumer_now(rb.of(""))}
    return {}


def _ask_workloads(rb: Context, first: Frames) -> None:
    changes.ask_workloads(changed.surroundings(rb.facts), rb)


def _hops(first: Frames) -> Iterator[Hop]:
    """Yield the hops as far as the tables' first moment shows them."""
    outbox, queue = rows.first(first.get("outbox"), Outbox), rows.first(first.get("backlog"), Notifications)
    if outbox:
        yield Hop("producer", rate_out=outbox.arrived_1m)
        yield Hop("relay", outbox.arrived_1m, outbox.published_1m, outbox.ready, outbox.oldest_s)
    if activity := rows.first(first.get("activity"), Activity):
        yield Hop("subscriber", rate_out=activity.arrived_1m)
        yield Hop("delivery_worker", activity.arrived_1m, activity.sent_1m)
    if queue:
        yield Hop("delivery_worker", waiting=queue.ready, oldest_s=queue.oldest_s)


def _shows_late_rows(rb: Context, first: Frames) -> bool:
    return any(_is_late(rb.catalog, hop) for hop in _hops(first))


def _is_late(book: Catalog, hop: Hop) -> bool:
    return hop.name in _LATE and book.limits[_LATE[hop.name]].reached(hop.oldest_s)


def seconds_apart(rb: Context, first: Frames) -> float:
    """Return the seconds between the moments: those in which a loop begins anew, if the tables show no late row."""
    silence, holders = (
        rb.catalog.limits["delivery.silence"],
        {h.locked_by for h in rows.each(first.get("held"), HeldRow)},
    )
    slow = any(_is_late(rb.catalog, hop) or silence.reached(hop.oldest_s) for hop in _hops(first))
    flows = {"outbox", "backlog", "activity", "held"} <= first.keys() and not slow and len(holders) < 2
    return program.cycle_s(rb) if flows else rb.number("looks.apart")


def first_numbers(first: Frames) -> tuple[pd.Timestamp | None, tuple[Hop, ...]]:
    """Return the database's time and the hops, as far as the first moment shows them."""
    seen = [rows.first(first.get("backlog"), Notifications), rows.first(first.get("outbox"), Outbox)]
    return next((row.now for row in seen if row), None), tuple(_hops(first))


def sections_of_late_hops(hops: Iterable[Hop], book: Catalog) -> tuple[str, ...]:
    """Return the sections to which 3.2 will point where rows are due for too long: they need not wait for it."""
    late = {hop.name for hop in hops if _is_late(book, hop)}
    return ("4.1", "4.3") if "delivery_worker" in late else ("4.1",) if late else ()


SAMPLING = Sampling(
    parts={
        "tables": Part(_read_tables, _ask_tables, _watch_sessions, _read_tables_again),
        "services": Part(services.collect, _ask_requests, again=_read_services_again),
        "broker": Part(once=_ask_broker, again=_read_broker_again),
        "workloads": Part(once=_ask_workloads),
    },
    shown="tables",
    numbers=first_numbers,
    sections=sections_of_late_hops,
    apart=seconds_apart,
    most="looks.apart",
    longest="samples.longest",
)
