"""Copies of an event under new ids: more notifications than changes, which 3.1, 4.2.2, 5.3.5 and 6.5 count."""

from __future__ import annotations

import random
import uuid
from functools import partial
from typing import Any

import pandas as pd
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runbook_lib.book import messages
from runbook_lib.model.finding import Finding, Status
from runbook_lib.packs.entitlement import missing
from runbook_lib.privacy.masking import Masker
from runbook_lib.sources.postgres import Postgres
from runbook_lib.sources.settings import Budget
from runbook_lib.sources.source import ReadCost
from tests.kit.effort import examples
from tests.kit.servers import Servers
from tests.kit.steps import bound, events, expect, run, traffic, undone, verdict_of

#: Copies of the users' newest notification, each with an id of its own, as the subscriber and the worker leave them.
_COPY = """
WITH copy AS (
    SELECT gen_random_uuid() AS id, n.*, now() - %(age)s * interval '1 s' - k * interval '10 ms' AS at
    FROM (
        SELECT DISTINCT ON (user_id) user_id, type, occurred_at, payload_json FROM notification.notifications
        WHERE user_id = ANY(%(users)s) ORDER BY user_id, created_at DESC
    ) n, generate_series(1, %(times)s) k
), outbox AS (
    INSERT INTO entitlement.outbox_events (event_id, event_type, aggregate_key, payload, status, created_at,
        published_at, attempt_count)
    SELECT id, type, user_id || ':sku', payload_json || jsonb_build_object('user_id', user_id), %(outbox)s, at,
        CASE WHEN %(outbox)s = 'PUBLISHED' THEN at END, 0
    FROM copy WHERE %(outbox)s::text IS NOT NULL
), processed AS (
    INSERT INTO notification.processed_events SELECT id, at FROM copy WHERE %(status)s::text IS NOT NULL
)
INSERT INTO notification.notifications (notification_id, event_id, user_id, type, occurred_at, payload_json, status,
    attempt_count, created_at, sent_at)
SELECT gen_random_uuid(), id, user_id, type, CASE WHEN %(fresh)s THEN at ELSE occurred_at END, payload_json, %(status)s,
    0, at, CASE WHEN %(status)s = 'SENT' THEN at END
FROM copy WHERE %(status)s::text IS NOT NULL
"""


def copy(db: psycopg.Connection, users: list[int], times: int, age: float, **values: Any) -> None:
    """Copy the newest event of each of these users so many times, `age` seconds ago, unless `values` say otherwise."""
    usual: dict[str, Any] = {"outbox": None, "status": "SENT", "fresh": False}
    assert values.keys() <= usual.keys()
    db.execute(_COPY, usual | {"users": [f"user-{n}" for n in users], "times": times, "age": age} | values)


def surplus(finding: Finding) -> int:
    """The notifications beyond the changes, with and without an event in the outbox."""
    return sum(int(v.value) for v in finding.values if v.name.endswith(".notifications") and isinstance(v.value, int))


KINDS = {"without_event": None, "copies": "PUBLISHED"}


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_copies_of_one_change_are_counted(
    servers: Servers, db: psycopg.Connection, broker: str, kind: str, fresh: bool
) -> None:
    traffic(db, 120)
    events(db, 7, 600)
    copy(db, [6, 7], 108, 20, outbox=KINDS[kind], fresh=fresh)
    counted = {f"{kind}.notifications": 216, f"{kind}.users": 2, f"{kind}.registrations": 216}
    with bound(broker):
        found = {step: run(servers, step)[step] for step in ("3.1", "4.2.2", "5.3.5", "6.5")}
        for step, finding in found.items():
            expect(finding, Status.CRITICAL, weights={"FM-NATS-12": "> 0.5", "FM-DB-07": "== 0"})
            expect(finding, values=counted if step != "6.5" else None)
            said = " ".join(messages.text(t, "en") for t in (finding.headline, *finding.notes))
            assert "216 notifications of 2 users are more than the changes explain" in said
            assert "216.0/min from" in said and "109/1" in said and "user-6 " not in said
        assert found["3.1"].headline.key == "response.duplicates_now" and "4.2" in found["3.1"].next_sections
        verdict = verdict_of(*found.values())
        assert (verdict.stuck_at, verdict.failure_modes[0].id) == (None, "FM-NATS-12")

        db.execute("UPDATE notification.notifications SET created_at = created_at - interval '40 minutes'")
        db.execute("UPDATE notification.processed_events SET processed_at = processed_at - interval '40 minutes'")
        past = run(servers, "3.1")["3.1"]
        assert "response.duplicates_now" not in {t.key for t in (past.headline, *past.notes)}
        expect(run(servers, "5.3.5")["5.3.5"], Status.CRITICAL, values=counted)
        assert run(servers, "6.5")["6.5"].status is Status.WARNING


def test_a_change_after_the_copies_is_none_of_them(servers: Servers, db: psycopg.Connection) -> None:
    for minutes, version in ((50, 0), (1, 1)):
        write_change(db, "user-1", "sku", minutes, version, audited=True)
    for minutes, version, created in ((50, 0, 49), (50, 0, 40), (50, 0, 40), (1, 1, 0.5)):
        write_notification(db, "user-1", "sku", minutes, version, "SENT", created, kept=True)
    assert surplus(run(servers, "5.3.5")["5.3.5"]) == 2
    assert surplus(run(servers, "3.1")["3.1"]) == 0


def test_a_copy_counts_before_it_is_published(servers: Servers, db: psycopg.Connection) -> None:
    events(db, 3, 600)
    copy(db, [1], 4, 10, outbox="PENDING", status=None)
    expect(run(servers, "5.3.5")["5.3.5"], Status.CRITICAL, values={"copies.notifications": 4})


def test_a_copy_of_a_change_before_the_window_counts(servers: Servers, db: psycopg.Connection) -> None:
    events(db, 3, 5 * 3600)
    copy(db, [1, 2], 1, 60)
    copy(db, [3], 4, 60)
    found = run(servers, "5.3.5")["5.3.5"]
    assert surplus(found) == 6
    assert [*found.frames["surplus"]["n"]] == [6, 4, 1, 1]  # the sum, then those who have the most


#: What leaves as many notifications as changes, or fewer.
_CHANGED_BY_HAND = "UPDATE entitlement.entitlements SET status = 'REVOKED', updated_at = now() - interval '30 s'"
LEGITIMATE = {
    "granted, revoked and granted within seconds": [*(partial(events, n=3, age=age) for age in (93, 92, 91))],
    "a redelivery under the same id": [
        partial(events, n=3, age=90),
        """INSERT INTO notification.notifications (notification_id, event_id, user_id, type, occurred_at, payload_json,
            status, created_at) SELECT gen_random_uuid(), event_id, user_id, type, occurred_at, payload_json, 'PENDING',
            now() FROM notification.notifications""",
    ],
    "a dead letter that is replaced": [
        partial(events, n=3, age=90, status="FAILED", tries=10, dead=50),
        partial(copy, users=[1, 2, 3], times=1, age=10),
    ],
    "the outbox removed by retention": [partial(events, n=3, age=90), "DELETE FROM entitlement.outbox_events"],
    "the first event of a user, delivered after a day": [
        partial(events, n=3, age=26 * 3600, outbox=None),
        "UPDATE notification.notifications SET created_at = now()",
    ],
    "a right without its audit": [partial(events, n=3, age=90), "DELETE FROM entitlement.entitlement_audit"],
    "a right changed by hand": [
        partial(events, n=3, age=90),
        _CHANGED_BY_HAND,
        "DELETE FROM notification.notifications",
        partial(events, n=3, age=30, audit=False),
    ],
    "matches": [
        partial(events, n=3, age=90),
        partial(copy, users=[1], times=9, age=10),
        "UPDATE notification.notifications SET type = 'MatchFound'",
    ],
    "a clock of notification that is behind": [
        *(partial(events, n=3, age=age) for age in (150, 90, 30)),
        "UPDATE notification.notifications SET created_at = created_at - interval '5 minutes'",
    ],
    "a clock of notification that is ahead": [
        *(partial(events, n=3, age=age) for age in (150, 90)),
        "UPDATE notification.notifications SET created_at = created_at + interval '80 s'",
    ],
    "a payload of another shape": [
        partial(events, n=3, age=90),
        """UPDATE notification.notifications SET payload_json = '["x"]' WHERE user_id = 'user-1'""",
        """UPDATE notification.notifications SET payload_json = payload_json || '{"version": "x"}'
            WHERE user_id = 'user-2'""",
    ],
}


@pytest.mark.parametrize("history", LEGITIMATE.values(), ids=LEGITIMATE)
def test_what_changes_explain_is_no_surplus(servers: Servers, db: psycopg.Connection, history: list[Any]) -> None:
    for act in history:
        act(db) if callable(act) else db.execute(act)
    for window in (60, 1):
        assert surplus(run(servers, "5.3.5", window_minutes=window)["5.3.5"]) == 0


def test_an_audit_that_may_not_be_read_is_unknown(servers: Servers, db: psycopg.Connection) -> None:
    traffic(db, 120)
    copy(db, [1], 9, 10)
    with undone(
        db,
        "REVOKE SELECT ON entitlement.entitlement_audit FROM runbook",
        "GRANT SELECT ON entitlement.entitlement_audit TO runbook",
    ):
        for step in ("3.1", "4.2.2", "5.3.5"):
            assert run(servers, step)[step].status is Status.UNKNOWN, step


# Any history --------------------------------------------------------------------------------------------------

MINUTES = st.integers(1, 60).map(lambda n: 2 * n)
#: An event of a user's item: minutes ago, whether it came late, failed, was retried, and how often it was copied.
EVENTS = st.tuples(MINUTES, st.booleans(), st.sampled_from(["SENT", "SENT", "PENDING", "FAILED"]), st.integers(0, 3))
HISTORIES = st.dictionaries(
    st.tuples(st.sampled_from(["user-1", "user-2", "matchmaking-system"]), st.sampled_from(["sku-1", "sku:2"])),
    st.lists(EVENTS, max_size=5, unique_by=lambda event: event[0]),
    max_size=5,
)


def test_any_history_has_as_many_too_many_as_were_copied(servers: Servers, db: psycopg.Connection) -> None:
    """One notification for each change that did not fail, and k copies of any are k too many."""

    @settings(max_examples=examples(150))
    @given(HISTORIES, st.booleans(), st.booleans(), st.integers(0, 2**16))
    def check(
        histories: dict[tuple[str, str], list[tuple[int, bool, str, int]]], kept: bool, audited: bool, seed: int
    ) -> None:
        shuffled = random.Random(seed)
        db.execute("TRUNCATE entitlement.entitlements, entitlement.entitlement_audit, entitlement.outbox_events,"
                   " notification.notifications, notification.processed_events")  # fmt: skip
        expected = 0
        for (user, item), changes in histories.items():
            match = user == "matchmaking-system"
            times = sorted(changes, reverse=True)
            for version, (minutes, late, status, copies) in enumerate(times):
                # A copy of what failed replaces it.
                expected += 0 if match else copies - (status == "FAILED" and copies > 0)
                if not match:
                    write_change(db, user, item, minutes, version, audited)
                # Late: it reached the subscriber just now. Copies do so within the window, whenever the change was.
                created = [0.5 if late else minutes - 0.01, *(shuffled.uniform(0.1, 0.4) for _ in range(copies))]
                for nth, at in enumerate(created):
                    write_notification(
                        db, user, item, minutes, version, "SENT" if nth else status, at, kept and (nth == 0 or late)
                    )
        now = pd.Timestamp.now("UTC")
        with reader.snapshot() as snapshot:
            found = snapshot.ask(missing.Surplus.QUERY, as_of=now, since=now - pd.Timedelta(hours=1))
        assert found["n"][found["user_id"].isna()].sum() == expected, found

    reader = Postgres(servers.database_url, "runbook test", Budget(), ReadCost(Masker()))
    check()


def write_change(db: psycopg.Connection, user: str, item: str, minutes: float, version: int, audited: bool) -> None:
    """Write a right and its audit row."""
    values = {"user": user, "item": item, "age": minutes, "version": version}
    db.execute(
        """INSERT INTO entitlement.entitlements (user_id, stock_keeping_unit, status, version, updated_at)
        VALUES (%(user)s, %(item)s, 'ACTIVE', %(version)s, now() - %(age)s * interval '1 min')
        ON CONFLICT (user_id, stock_keeping_unit) DO UPDATE SET version = excluded.version,
            updated_at = excluded.updated_at""",
        values,
    )
    if audited:
        db.execute(
            """INSERT INTO entitlement.entitlement_audit (audit_id, occurred_at, user_id, stock_keeping_unit, action)
            VALUES (gen_random_uuid(), now() - %(age)s * interval '1 min', %(user)s, %(item)s, 'GRANT')""",
            values,
        )


def write_notification(
    db: psycopg.Connection, user: str, item: str, minutes: float, version: int, status: str, created: float, kept: bool
) -> None:
    """Write a notification of an event with an id of its own; `kept`: the outbox has it."""
    values = {"id": uuid.uuid4(), "user": user, "item": item, "age": minutes, "version": version, "status": status}
    values |= {"created": created, "type": "MatchFound" if user == "matchmaking-system" else "EntitlementGranted"}
    db.execute(
        """INSERT INTO notification.notifications (notification_id, event_id, user_id, type, occurred_at, payload_json,
            status, created_at) VALUES (gen_random_uuid(), %(id)s, %(user)s, %(type)s,
            now() - %(age)s * interval '1 min', jsonb_build_object('stock_keeping_unit', %(item)s::text,
            'version', %(version)s::int), %(status)s, now() - %(created)s * interval '1 min')""",
        values,
    )
    if kept:
        db.execute(
            """INSERT INTO entitlement.outbox_events (event_id, event_type, aggregate_key, payload, status, created_at,
                published_at) VALUES (%(id)s, %(type)s, 'x:y', '{}', 'PUBLISHED', now(), now())""",
            values,
        )
