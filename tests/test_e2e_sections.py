"""Faults that one section of the runbook is for: fault on -> its signature -> that section -> heal -> as before."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from drills import OUTAGES, ask, consumer, runbook, shown, streams

from runbook_lib import catalog
from runbook_lib.packs.entitlement.sandbox import faults
from runbook_lib.packs.entitlement.sandbox.sandbox import Sandbox

pytestmark = pytest.mark.e2e

Signature = Callable[[Sandbox], bool]

OUTBOX = "SELECT count(*) FROM entitlement.outbox_events WHERE "
PUBLISHED_LATELY = "published_at > now() - interval '6 s'"
QUEUE = "SELECT count(*) FROM notification.notifications WHERE "
DRILL_OUTBOX = OUTBOX + "aggregate_key LIKE 'drill-%' AND status = 'FAILED' AND attempt_count = 10 AND last_error "
GIVEN_UP = "SELECT count(*) FROM notification.notification_nats_dlq"


def rows(query: str, at_least: int, at_most: float = math.inf) -> Signature:
    """A count that lies within its limits."""
    return lambda sandbox: bool(at_least <= ask(sandbox, query) <= at_most)


def both(*signatures: Signature) -> Signature:
    return lambda sandbox: all(signature(sandbox) for signature in signatures)


def log(sandbox: Sandbox, program: str) -> str:
    return (sandbox.directory / "log" / f"{program}.log").read_text()


def stream_is_gone(sandbox: Sandbox) -> bool:
    return "entitlement-events" not in streams(sandbox)


def broker_is_well(sandbox: Sandbox) -> bool:
    return bool(consumer(sandbox).get("push_bound"))


def delivery_is_silent(sandbox: Sandbox) -> bool:
    since = "SELECT extract(epoch FROM now() - max(sent_at)) FROM notification.notifications"
    return bool(ask(sandbox, since) > 12)


def nothing_lags(sandbox: Sandbox) -> bool:
    found = consumer(sandbox)
    return bool(found["num_pending"] + found["num_ack_pending"] == 0)


def three_were_terminated(sandbox: Sandbox) -> bool:
    return bool(streams(sandbox)["notification-terminated-advisory-dlq"]["state"]["messages"] == 3)


def one_is_sent_twice(sandbox: Sandbox) -> bool:
    received = [line.partition("received id=")[2][:36] for line in log(sandbox, "receiver").splitlines()]
    received = [line for line in received if line]
    lost = "notification sent but lock was lost" in log(sandbox, "notification") + log(sandbox, "second-worker")
    return lost and len(set(received)) < len(received)


SIGNATURES: dict[str, Signature] = {
    "stream_missing": both(
        stream_is_gone,
        rows(OUTBOX + "last_error LIKE 'Error Publishing: 503%'", 10),
        rows(OUTBOX + PUBLISHED_LATELY, 0, 0),
    ),
    # Rows with this error alone may also be left by the restart that healed an earlier fault.
    "relay_closed": both(
        broker_is_well,
        rows(OUTBOX + "status <> 'PUBLISHED' AND last_error = 'Connection is Closed'", 10),
        rows(OUTBOX + PUBLISHED_LATELY, 0, 0),
    ),
    "delivery_disabled": both(
        broker_is_well, delivery_is_silent, rows(QUEUE + "status = 'PENDING' AND next_retry_at < now()", 20)
    ),
    "clock_skew": rows(QUEUE + "sent_at > now() + interval '50 s'", 5),
    "second_worker": one_is_sent_twice,
    "dedupe_broken": rows(
        "SELECT count(*) FROM (SELECT FROM notification.notifications"
        " WHERE created_at > now() - interval '10 minutes' GROUP BY event_id HAVING count(*) > 1) doubled",
        5,
    ),
    "bad_payload": rows(DRILL_OUTBOX + "= 'outbox payload parse failure'", 5),
    "unknown_event_type": rows(DRILL_OUTBOX + "LIKE 'unknown event type: %'", 5),
    "undecodable_message": both(three_were_terminated, rows(GIVEN_UP, 3, 3)),
    "events_lost": both(
        nothing_lags,
        rows(GIVEN_UP, 0, 0),
        rows(
            "SELECT count(*) FROM entitlement.outbox_events LEFT JOIN notification.processed_events p USING (event_id)"
            " WHERE status = 'PUBLISHED' AND published_at < now() - interval '2 s' AND p.event_id IS NULL",
            3,
        ),
    ),
    "exhausted_outbox": both(broker_is_well, rows(DRILL_OUTBOX + "LIKE 'Timeout or no response%'", 4, 4)),
    "failing_user": rows(
        "SELECT count(*) FROM notification.notifications JOIN notification.notification_dlq USING (notification_id)"
        " WHERE user_id LIKE 'drill-%' AND status = 'FAILED' AND attempt_count = 10"
        " AND error_message = 'notification delivery failure injection matched userId=' || user_id",
        12,  # half of them are of an hour ago
    ),
    "dlq_mismatch": both(
        rows(
            "SELECT count(*) FROM notification.notifications LEFT JOIN notification.notification_dlq d"
            " USING (notification_id) WHERE status = 'FAILED' AND d.dlq_id IS NULL",
            1,
        ),
        rows(
            "SELECT count(*) FROM notification.notifications JOIN notification.notification_dlq USING (notification_id)"
            " WHERE status = 'SENT'",
            1,
        ),
    ),
}


def section(sandbox: Sandbox, output: Path, *sections: str) -> dict[str, Any]:
    return runbook(sandbox, output, "run", *sections, "-p", "window_minutes=2")


def modes(said: dict[str, Any]) -> list[str]:
    return [mode["id"] for mode in said["verdict"]["failure_modes"]]


@pytest.mark.parametrize("fault", [f for f in faults.CATALOGUE if f.name not in OUTAGES], ids=lambda f: f.name)
def test_its_section_names_the_fault_first(sandbox: Sandbox, tmp_path: Path, fault: faults.Fault) -> None:
    sandbox.fault(fault.name)
    try:
        sandbox.wait_for(f"the signature of {fault.name}", lambda: SIGNATURES[fault.name](sandbox), 40)
        said = section(sandbox, tmp_path, fault.section)
    finally:
        sandbox.heal()
    assert modes(said)[:1] == [fault.failure_mode], shown(said)
    assert said["status"] in ("WARNING", "CRITICAL"), shown(said)
    assert said["verdict"]["stuck_at"] == fault.stuck_at, shown(said)
    deadline = time.monotonic() + 75  # a section may look back for a minute
    while True:
        healed = section(sandbox, tmp_path, fault.section)
        if fault.failure_mode not in modes(healed) or time.monotonic() > deadline:
            break
    assert fault.failure_mode not in modes(healed), shown(healed)
    assert healed["verdict"]["stuck_at"] is None, shown(healed)
    # Events that were late a moment ago are still told by the percentile of the last minute.
    late = {f["step"] for run in healed["runs"] for f in run["findings"] if f["status"] == "CRITICAL"}
    assert late <= {"4.1.3"}, shown(healed)


def test_all_of_them_leave_a_clean_system(sandbox: Sandbox, tmp_path: Path) -> None:
    book = catalog.load()
    wanted = [s for s in ("2", "4.1", "4.2", "4.3", "4.4", "5.3") if book.sections[s].notebook]
    deadline = time.monotonic() + 75
    while (said := section(sandbox, tmp_path, *wanted))["status"] != "OK" and time.monotonic() < deadline:
        time.sleep(3)
    assert said["status"] == "OK", shown(said)
