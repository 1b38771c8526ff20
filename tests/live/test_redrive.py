"""Sending dead letters again: nothing lost, nothing twice, whatever is killed at whatever moment."""

from __future__ import annotations

import json
import re
import signal
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from nats.js import JetStreamContext
from nats.js.api import RawStreamMsg
from psycopg.types.json import Jsonb

from runbook_lib.book import catalog, messages, queries
from runbook_lib.book.parameters import validate
from runbook_lib.checks.context import open_context
from runbook_lib.cli import common
from runbook_lib.gameday.sandbox import broker as applications
from runbook_lib.gameday.sandbox import database
from runbook_lib.gameday.sandbox.notification import Deliveries
from runbook_lib.gameday.sandbox.sandbox import Sandbox
from runbook_lib.gameday.sandbox.settings import WorkerSettings
from runbook_lib.model.finding import Reason, replace
from runbook_lib.model.outcome import Outcome
from runbook_lib.model.usage import UsageError
from runbook_lib.notebook.session import Session
from runbook_lib.packs.entitlement import wire
from runbook_lib.packs.entitlement.actions import stores
from runbook_lib.packs.entitlement.cli.act import act as command
from runbook_lib.sources.jetstream import JetStream
from runbook_lib.sources.settings import Settings
from runbook_lib.sources.source import SourceError
from tests.kit import sandboxes, steps
from tests.kit.portion import start
from tests.kit.servers import Servers
from tests.kit.steps import acknowledge, bound, insert, publish, undone

Opened = Callable[..., Session]
WORD: dict[str, Any] = {"execute": True, "approved_by": "Owner of the receiver", "reason": "the receiver is back"}


def open_session(
    servers: Servers,
    output: Path,
    *,
    without: Sequence[str] = (),
    urls: dict[str, str] | None = None,
    policy: dict[str, Any] | None = None,
    waits: bool = True,
    **parameters: Any,
) -> Session:
    target = {k.removeprefix("RUNBOOK_").lower(): v for k, v in servers.env.items()} | (urls or {})
    config = Settings(output=str(output), targets={"here": {k: v for k, v in target.items() if k not in without}})
    given = {"incident_id": "INC-7", "target": "here", "wait_s": 5.0} | parameters
    book = catalog.load()
    rules = {name: replace(rule, **policy or {}) for name, rule in book.redrive.items()}
    asked = validate(given)
    if not waits:  # for an effect that nobody brings about
        asked = asked.model_copy(update={"wait_s": 0.0})
    return Session(open_context(book.sections["4.4"], asked, config, replace(book, redrive=rules)))


@pytest.fixture
def opened(servers: Servers, tmp_path: Path) -> Opened:
    return partial(open_session, servers, tmp_path)


def act(rb: Session, store: str, **what: Any) -> Outcome:
    """The action as a notebook or the command has it carried out; every text exists in both languages."""
    outcome = rb.act("redrive", store=store, **(WORD | what)).outcome
    texts = [outcome.why, *(p.text for p in outcome.preconditions), *([outcome.effect] if outcome.effect else [])]
    for lang in messages.LANGUAGES:
        assert all(messages.text(text, lang) for text in texts)
    return outcome


def refused(rb: Session, store: str, *words: str, **what: Any) -> Outcome:
    """It is refused, and why has these words."""
    outcome = act(rb, store, **what)
    assert outcome.result == "refused", outcome
    assert all(part in why(outcome) for part in words), why(outcome)
    return outcome


def why(outcome: Outcome) -> str:
    return messages.text(outcome.why, "en")


def effect(outcome: Outcome) -> str:
    assert outcome.effect
    return messages.text(outcome.effect, "en")


def one(db: psycopg.Connection, query: str, *values: object) -> Any:
    row = db.execute(query, values).fetchone()
    assert row is not None
    return row[0] if len(row) == 1 else row


def an_event(ago: float = 3600, **changes: Any) -> wire.EntitlementEvent:
    """A whole event that happened `ago` seconds ago."""
    return steps.an_event(**({"occurred_at": (datetime.now(UTC) - timedelta(seconds=ago)).isoformat()} | changes))


def payload(event_id: uuid.UUID, user: str, **changes: Any) -> dict[str, Any]:
    return an_event(event_id=str(event_id), user_id=user, **changes).payload()


def dead(
    db: psycopg.Connection,
    n: int = 1,
    *,
    ago: float = 600,
    letter: bool = True,
    error: str = "receiver answered 503",
    **columns: Any,
) -> list[uuid.UUID]:
    """`n` notifications that were given up `ago` seconds ago; the ids of their events."""
    events = [uuid.uuid4() for _ in range(n)]
    for i, event in enumerate(events):
        at = datetime.now(UTC) - timedelta(seconds=ago) + timedelta(milliseconds=i)
        row = {
            "notification_id": uuid.uuid4(), "event_id": event, "user_id": f"user-{i:04d}", "type": wire.GRANTED,
            "occurred_at": at, "payload_json": Jsonb(payload(event, f"user-{i:04d}")), "status": "FAILED",
            "attempt_count": 10, "created_at": at,
        } | columns  # fmt: skip
        insert(db, "notification.notifications", **row)
        processed = "INSERT INTO notification.processed_events VALUES (%s, %s) ON CONFLICT DO NOTHING"
        db.execute(processed, [row["event_id"], at])
        if letter:
            same = {name: row[name] for name in ("notification_id", "event_id", "payload_json")}
            said = {"error_message": error, "created_at": at}
            insert(db, "notification.notification_dlq", dlq_id=uuid.uuid4(), **same, **said)
    return events


#: A match, as notification files it.
A_MATCH: dict[str, Any] = {
    "type": wire.MATCH_FOUND,
    "user_id": "matchmaking-system",
    "payload_json": Jsonb({"match_id": "m"}),
}


def statuses(db: psycopg.Connection) -> Counter[str]:
    return Counter(dict(db.execute("SELECT status, count(*) FROM notification.notifications GROUP BY 1").fetchall()))


def everything(db: psycopg.Connection) -> list[Any]:
    return [
        db.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()
        for table in (
            "notification.notifications", "notification.notification_dlq", "notification.notification_nats_dlq",
            "entitlement.outbox_events", "runbook.redriven",
        )
    ]  # fmt: skip


def journal(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "INC-7" / "log.jsonl").read_text().splitlines()]


@contextmanager
def worker(
    servers: Servers, fails: Callable[[Any], bool] = lambda row: False, attempts: int = 10
) -> Iterator[list[str]]:
    """The applications' own delivery worker; yields the event ids in the order in which they were delivered."""
    delivered: list[str] = []
    over = threading.Event()

    def send(row: Any) -> None:
        if fails(row):
            raise ConnectionError("receiver answered 503")
        delivered.append(str(row["event_id"]))

    def work() -> None:
        with database.connect(servers.app_url) as connection:
            deliveries = Deliveries(connection, WorkerSettings(max_attempts=attempts), "notification-7c9d5f6b8-x2k4q")
            while not over.wait(0.1):
                deliveries.work(send, database.now())

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield delivered
    finally:
        over.set()
        thread.join()


# Delivery ---------------------------------------------------------------------------------------------------


def test_a_dry_run_shows_what_would_go_and_changes_nothing(
    opened: Opened, db: psycopg.Connection, tmp_path: Path
) -> None:
    events = dead(db, 7)
    before = everything(db)
    outcome = act(opened(), "delivery", execute=False, limit=6)
    assert outcome.result == "dry" and all(holds(outcome).values()) and outcome.preconditions, why(outcome)
    shown = messages.text(outcome.preconditions[-1].text, "en")
    assert shown.startswith("6 can be sent now: ") and str(events[0]) in shown and str(events[6]) not in shown
    assert outcome.before["eligible"] == 7
    assert everything(db) == before
    assert outcome.command == "runbook act redrive delivery --limit 6 --target here --incident INC-7"
    (line,) = journal(tmp_path)
    assert (line["result"], line["what"]) == ("dry", {"store": "delivery", "limit": 6, "discard": False})


def test_a_portion_goes_back_whole_and_arrives_once(
    opened: Opened, servers: Servers, db: psycopg.Connection, tmp_path: Path
) -> None:
    events = dead(db, 30)
    # What a careless hand may have left in the row.
    db.execute("UPDATE notification.notifications SET locked_by = 'gone', locked_at = now(), lease_until = now()")
    rb = opened(wait_s=20.0)
    with worker(servers) as delivered:
        outcome = act(rb, "delivery", limit=20)
    assert outcome.result == "done" and outcome.verified, effect(outcome)
    assert effect(outcome) == "20 sent again: 20 SENT, 0 still waiting, 0 FAILED again, 0 missing, 0 duplicates"
    assert delivered == [str(e) for e in events[:20]] == outcome.did["events"]
    assert statuses(db) == {"SENT": 20, "FAILED": 10}
    assert one(db, "SELECT count(*) FROM notification.notification_dlq") == 10
    assert (outcome.before["eligible"], outcome.after["eligible"]) == (30, 10)

    kept = db.execute(
        "SELECT state, incident, action, approved_by, reason, archived, ended_at IS NOT NULL FROM runbook.redriven"
    ).fetchall()
    assert len(kept) == 20
    state, incident, action, approved_by, reason, archived, ended = kept[0]
    assert (state, incident, action, ended) == ("succeeded", "INC-7", outcome.id, True)
    assert (approved_by, reason) == (WORD["approved_by"], WORD["reason"])
    assert archived["row"]["status"] == "FAILED" and archived["row"]["attempt_count"] == 10
    assert archived["row"]["locked_by"] == "gone"
    assert archived["dead_letter"]["error_message"] == "receiver answered 503"
    assert [line["result"] for line in journal(tmp_path)] == ["begun", "done"]


@pytest.mark.slow
def test_all_columns_of_a_claim_are_cleared_together(opened: Opened, db: psycopg.Connection) -> None:
    dead(db, 2, next_retry_at=datetime.now(UTC), locked_by="gone", locked_at=datetime.now(UTC))
    outcome = act(opened(), "delivery")
    assert outcome.result == "done" and outcome.verified is False
    assert effect(outcome) == "2 sent again: 0 SENT, 2 still waiting, 0 FAILED again, 0 missing, 0 duplicates"
    rows = db.execute(
        "SELECT DISTINCT status, attempt_count, next_retry_at, locked_by, locked_at, lease_until, sent_at "
        "FROM notification.notifications"
    ).fetchall()
    assert rows == [("PENDING", 0, None, None, None, None, None)]


@pytest.mark.slow
def test_what_a_worker_holds_is_left_alone(opened: Opened, servers: Servers, db: psycopg.Connection) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=20)
    (held,) = dead(db, 1, locked_by="pod", locked_at=datetime.now(UTC), lease_until=soon)
    dead(db, 1, letter=False, status="PROCESSING", locked_by="pod", locked_at=datetime.now(UTC), lease_until=soon)
    (locked,) = dead(db, 1)
    (free,) = dead(db, 1)
    with psycopg.connect(servers.admin_url) as other:
        other.execute("SELECT FROM notification.notifications WHERE event_id = %s FOR UPDATE", [locked])
        outcome = act(opened(), "delivery")
    assert outcome.did["events"] == [str(free)]
    assert outcome.before["held"] == 1
    assert statuses(db) == {"PROCESSING": 1, "FAILED": 2, "PENDING": 1}
    assert one(db, "SELECT count(*) FROM notification.notification_dlq") == 2
    refused(opened(), "delivery", events=[str(held)])


def test_what_would_fail_again_goes_by_name_only(opened: Opened, servers: Servers, db: psycopg.Connection) -> None:
    lacking, match = uuid.uuid4(), uuid.uuid4()
    dead(db, 1, event_id=lacking, payload_json=Jsonb(payload(lacking, "user-0000", stock_keeping_unit="")))
    dead(db, 1, payload_json=Jsonb([1, 2]))
    dead(db, 1, event_id=match, **A_MATCH)
    (no_letter,) = dead(db, 1, letter=False)
    rb = opened(wait_s=20.0)
    with worker(servers) as delivered:
        outcome = act(rb, "delivery")
        assert outcome.before["permanent"] == 2 and outcome.verified
        assert delivered == [str(match)]
        named = act(opened(wait_s=20.0), "delivery", events=[str(lacking), str(no_letter)])
        assert named.verified and set(delivered) == {str(match), str(lacking), str(no_letter)}
    assert named.command.startswith(f"runbook act redrive delivery --event {lacking} --event {no_letter} ")
    refused(opened(), "delivery", "not so for 2", events=[str(lacking), str(uuid.uuid4())])


def test_an_event_is_sent_again_so_often_and_then_discarded(
    opened: Opened, servers: Servers, db: psycopg.Connection
) -> None:
    (event,), (event_2,) = dead(db, 1), dead(db, 1, payload_json=Jsonb({}))
    rb = opened(policy={"pause_s": 0.0}, wait_s=20.0)
    with worker(servers, fails=lambda row: True, attempts=1):
        for _ in range(2):
            outcome = act(rb, "delivery")
            assert outcome.result == "done" and outcome.verified is False
            assert effect(outcome) == "1 sent again: 0 SENT, 0 still waiting, 1 FAILED again, 0 missing, 0 duplicates"
    third = refused(rb, "delivery", "0 can be sent now")
    refused(rb, "delivery", events=[str(event)])
    assert third.before == {
        "eligible": 0, "permanent": 1, "old": 0, "over_limit": 1, "held": 0, "doubled": 0, "gone": 0, "discarded": 0,
        "under_way": 0,
    }  # fmt: skip

    (fresh,) = dead(db, 1)
    before = everything(db)[:-1]
    discarded = act(rb, "delivery", discard=True)
    assert discarded.result == "done" and discarded.verified
    assert set(discarded.did["events"]) == {str(event), str(event_2)}
    assert discarded.command.endswith(" --discard --target here --incident INC-7")
    assert everything(db)[:-1] == before  # the rows stay as they are
    assert db.execute("SELECT decision, state, count(*) FROM runbook.redriven GROUP BY 1, 2 ORDER BY 1").fetchall() == [
        ("discard", "discarded", 2),
        ("redrive", "failed", 2),
    ]
    refused(rb, "delivery", discard=True)  # what may still go is discarded by name only
    after = act(rb, "delivery", execute=False)
    assert (after.before["discarded"], after.before["eligible"], after.before["permanent"]) == (2, 1, 0)
    assert act(rb, "delivery", discard=True, events=[str(fresh)]).result == "done"
    refused(rb, "delivery")


def test_an_event_that_has_another_notification_is_not_sent_twice(
    opened: Opened, servers: Servers, db: psycopg.Connection
) -> None:
    (event,) = dead(db, 1)
    dead(db, 1, event_id=event, user_id="user-0000")
    (sent,) = dead(db, 1, user_id="user-0001", letter=False, status="SENT", sent_at=datetime.now(UTC))
    dead(db, 1, event_id=sent, user_id="user-0001")
    rb = opened(wait_s=20.0)
    with worker(servers) as delivered:
        outcome = act(rb, "delivery")
    assert delivered == [str(event)] and outcome.before["doubled"] == 2
    assert outcome.verified is False and effect(outcome).endswith(
        "1 SENT, 0 still waiting, 0 FAILED again, 0 missing, 1 duplicate"
    )


def test_a_match_that_has_another_notification_is_not_sent_twice(
    opened: Opened, servers: Servers, db: psycopg.Connection
) -> None:
    twice, apart, sent = uuid.uuid4(), uuid.uuid4(), uuid.uuid4()
    for event, ago in ((twice, 600), (twice, 590), (apart, 90_000), (apart, 600), (sent, 600)):
        dead(db, 1, ago=ago, event_id=event, **A_MATCH)
    dead(db, 1, ago=700, event_id=sent, letter=False, **A_MATCH | {"status": "SENT", "sent_at": datetime.now(UTC)})
    rb = opened(wait_s=20.0)
    with worker(servers) as delivered:
        outcome = act(rb, "delivery")
    assert Counter(delivered) == {str(twice): 1, str(apart): 1}
    assert (outcome.before["eligible"], outcome.before["doubled"]) == (2, 3)
    chosen = messages.text(outcome.preconditions[-1].text, "en")
    assert "match notifications were compared only with those created within 10 min" in chosen
    assert outcome.verified is False and "1 duplicate (of matches, only those created within 10 min" in effect(outcome)


def test_what_the_receiver_calls_wrong_goes_by_name_only(opened: Opened, db: psycopg.Connection) -> None:
    """What step 4.4.1 calls permanent."""
    (refused_,), (good,) = dead(db, 1, error="receiver answered 422"), dead(db, 1, error="connection reset")
    outcome = act(opened(waits=False), "delivery")
    assert outcome.did["events"] == [str(good)] and outcome.before["permanent"] == 1
    db.execute("UPDATE runbook.redriven SET state = 'succeeded'")
    assert act(opened(waits=False), "delivery", events=[str(refused_)]).did["events"] == [str(refused_)]


def test_a_portion_can_be_limited_to_one_incident(opened: Opened, db: psycopg.Connection) -> None:
    (old,), (new,) = dead(db, 1, ago=7200), dead(db, 1, ago=600)
    since = datetime.now(UTC) - timedelta(seconds=3600)
    both = act(opened(waits=False), "delivery", execute=False)
    assert "; the oldest failed 2 h ago, the newest 10 min ago (" in messages.text(both.preconditions[-1].text, "en")
    outcome = act(opened(waits=False), "delivery", since=since.isoformat())
    assert outcome.did["events"] == [str(new)] and outcome.before["eligible"] == 1
    at = since.replace(microsecond=0).isoformat()
    assert outcome.what == {"store": "delivery", "limit": 50, "since": at, "discard": False}
    assert f" --limit 50 --since {at} --target " in outcome.command
    db.execute("UPDATE runbook.redriven SET state = 'succeeded'")
    refused(opened(waits=False), "delivery", since=since.isoformat())
    assert act(opened(waits=False), "delivery").did["events"] == [str(old)]
    for wrong in ("yesterday", "2026-01-31T03:00:00"):
        with pytest.raises(UsageError, match=r"it has no offset|not a time"):
            act(opened(waits=False), "delivery", since=wrong)


def test_the_command_passes_the_time_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(common, "act", lambda section, name, what, **options: asked.update(what))
    CliRunner().invoke(command, ["redrive", "outbox", "--since", "2026-01-31T03:00:00Z"])
    assert asked == {"store": "outbox", "limit": 50, "events": (), "since": "2026-01-31T03:00:00Z", "discard": False}


def test_permanent_letters_hide_no_newer_one(
    opened: Opened, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead(db, 1)
    for _ in range(10):  # 1,024 of them
        db.execute(
            "INSERT INTO notification.notifications (notification_id, event_id, user_id, type, occurred_at,"
            " payload_json, status, attempt_count, created_at) SELECT gen_random_uuid(), gen_random_uuid(), user_id,"
            " type, occurred_at, payload_json, status, attempt_count, created_at FROM notification.notifications"
        )
    db.execute(
        "INSERT INTO notification.notification_dlq (dlq_id, notification_id, event_id, payload_json, error_message)"
        " SELECT gen_random_uuid(), notification_id, event_id, payload_json, 'receiver answered 422'"
        " FROM notification.notifications"
        " ON CONFLICT (notification_id) DO UPDATE SET error_message = excluded.error_message"
    )
    db.execute("UPDATE notification.notification_dlq SET created_at = now() - interval '600 s'")
    (fresh,) = dead(db, 1, ago=500)
    outcome = act(opened(waits=False), "delivery")
    assert outcome.did["events"] == [str(fresh)], why(outcome)
    assert (outcome.before["permanent"], outcome.before["eligible"]) == (1024, 1)


@pytest.mark.slow
def test_the_next_portion_waits_for_the_one_before(opened: Opened, servers: Servers, db: psycopg.Connection) -> None:
    dead(db, 6)
    rb = opened()
    assert effect(act(rb, "delivery", limit=4)).startswith("4 sent again: 0 SENT, 4 still waiting")
    refused(rb, "delivery", "(4 still under way)")
    with worker(servers) as delivered:
        Sandbox.wait_for("the first portion", lambda: len(delivered) == 4)
    rb = opened(wait_s=20.0)
    with worker(servers) as delivered:
        assert act(rb, "delivery").verified and len(delivered) == 2
    assert one(db, "SELECT count(*) FROM runbook.redriven WHERE state = 'succeeded'") == 6


def test_a_row_that_is_gone_is_missing(opened: Opened, db: psycopg.Connection) -> None:
    dead(db, 2)
    rb = opened()
    db.execute(
        "CREATE OR REPLACE FUNCTION notification.test_gone() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN DELETE FROM notification.notifications n WHERE n.notification_id = NEW.notification_id; "
        "RETURN NULL; END $$"
    )
    db.execute(
        "CREATE TRIGGER gone AFTER INSERT ON runbook.redriven FOR EACH ROW EXECUTE FUNCTION notification.test_gone()"
    )
    try:
        outcome = act(rb, "delivery")
    finally:
        db.execute("DROP FUNCTION notification.test_gone CASCADE")
    assert outcome.verified is False and " 2 missing" in effect(outcome)


def holds(outcome: Outcome) -> dict[str, bool | None]:
    return {p.text.key.removeprefix("action.redrive."): p.ok for p in outcome.preconditions}


def test_nothing_goes_while_it_still_fails(opened: Opened, db: psycopg.Connection) -> None:
    dead(db, 2)
    rb = opened()
    assert all(holds(act(rb, "delivery", execute=False)).values())
    (recent,) = dead(db, 1, ago=60)
    assert re.search(r"failed for 120 s.*\(the last [\d.]+ s ago", why(refused(rb, "delivery")))
    db.execute("DELETE FROM notification.notification_dlq WHERE event_id = %s", [recent])
    retry = datetime.now(UTC) + timedelta(seconds=30)
    dead(db, 1, letter=False, status="PENDING", attempt_count=3, next_retry_at=retry)
    assert holds(act(rb, "delivery"))["quiet"] is False
    db.execute("UPDATE notification.notifications SET next_retry_at = now() - interval '40 s' WHERE status = 'PENDING'")
    outcome = refused(rb, "delivery")
    assert holds(outcome)["worker"] is False and holds(outcome)["quiet"] is True
    assert statuses(db) == {"FAILED": 3, "PENDING": 1}


def test_the_policy_and_the_arguments(opened: Opened, db: psycopg.Connection) -> None:
    dead(db, 3)
    rb = opened()
    refused(rb, "delivery", "a portion of delivery has at most 100 dead letters (requested: 101)", limit=101)
    many = [str(uuid.uuid4()) for _ in range(101)]
    assert holds(act(rb, "delivery", events=many))["within_limit"] is False
    for words, what in (
        ("did you mean 'delivery'", {"store": "delivry"}),
        ("give a number from 1 to 50", {"store": "broker", "limit": 0}),
        ("'7' is not an event id", {"store": "outbox", "events": ["7"]}),
    ):
        with pytest.raises(UsageError, match=re.escape(words)):
            act(rb, **what)
    refused(rb, "delivery", approved_by=None)
    refused(rb, "delivery", reason=None)
    assert statuses(db) == {"FAILED": 3} and one(db, "SELECT count(*) FROM runbook.redriven") == 0


def test_without_credentials_or_rights_it_refuses(opened: Opened, servers: Servers, db: psycopg.Connection) -> None:
    dead(db, 1)
    before = everything(db)
    for url, store in (("action_database_url", "delivery"), ("action_nats_url", "broker")):
        refused(opened(without=[url]), store, url, f"RUNBOOK_{url.upper()}")
    # The role that reads: its sessions are read-only, and it may not write even where they are not.
    reading = opened(urls={"action_database_url": servers.database_url})
    assert holds(refused(reading, "delivery"))["may_write"] is False
    forced = servers.database_url + "?options=-c%20default_transaction_read_only%3Doff"
    with psycopg.connect(forced) as reader, pytest.raises(psycopg.errors.InsufficientPrivilege):
        reader.execute("INSERT INTO runbook.redriven (store) VALUES ('delivery')")
    wrong = servers.app_url.replace(servers.addresses.passwords["miniserversystem"], "0" * 32)
    outcome = refused(opened(urls={"action_database_url": wrong}), "delivery", "password authentication failed")
    assert "0" * 32 not in why(outcome)
    assert everything(db) == before


#: What docs/operations.md says that the role of `action_database_url` needs.
RIGHTS = """
    CREATE ROLE acting LOGIN PASSWORD 'acting';
    GRANT USAGE ON SCHEMA entitlement, notification, runbook TO acting;
    GRANT SELECT ON ALL TABLES IN SCHEMA entitlement, notification, runbook TO acting;
    GRANT UPDATE ON notification.notifications, entitlement.outbox_events TO acting;
    GRANT DELETE ON notification.notification_dlq TO acting;
    GRANT INSERT, UPDATE ON runbook.redriven TO acting
"""


def test_the_rights_of_the_documents_are_enough(
    opened: Opened, servers: Servers, db: psycopg.Connection, bound_broker: str
) -> None:
    db.execute(RIGHTS)
    try:
        with psycopg.connect(servers.admin_url) as admin:
            acting = admin.info.get_parameters() | {"user": "acting", "password": "acting"}
        url = "postgresql://acting:acting@{host}:{port}/{dbname}".format(**acting)
        rb = opened(waits=False, urls={"action_database_url": url}, policy={"pause_s": 0.0})
        dead(db, 2)
        unpublished(db, TIMEOUT)
        given_up(db, *publish(bound_broker, wire.encode(an_event())))
        assert [act(rb, store).result for store in ("delivery", "outbox", "broker")] == ["done"] * 3
        db.execute("UPDATE runbook.redriven SET state = 'failed'")
        (named,) = dead(db, 1)
        assert act(rb, "delivery", discard=True, events=[str(named)]).result == "done"
        db.execute("REVOKE SELECT ON notification.processed_events FROM acting")
        for store in ("outbox", "broker"):
            assert holds(refused(rb, store))["may_write"] is False
    finally:
        db.execute("DROP OWNED BY acting; DROP ROLE acting")


def test_without_the_ledger_it_refuses_and_says_how_to_make_it(
    opened: Opened, servers: Servers, db: psycopg.Connection
) -> None:
    dead(db, 1)
    db.execute("DROP SCHEMA runbook CASCADE")
    try:
        refused(opened(), "delivery", "runbook_lib/packs/entitlement/sql/redrive/ledger.sql")
        assert statuses(db) == {"FAILED": 1}
    finally:
        with psycopg.connect(servers.app_url) as owner:
            for _ in range(2):  # it may be run again
                owner.execute(queries.statement("redrive/ledger").encode())
            owner.execute("GRANT USAGE ON SCHEMA runbook TO runbook")
            owner.execute("GRANT SELECT ON ALL TABLES IN SCHEMA runbook TO runbook")


def test_what_an_action_writes_is_no_question_of_a_check() -> None:
    assert not [name for name in queries.names() if name.startswith("redrive/")] and "outbox/backlog" in queries.names()


@pytest.mark.slow
def test_two_at_once_send_one_portion(servers: Servers, db: psycopg.Connection, tmp_path: Path) -> None:
    dead(db, 40)
    begin = threading.Barrier(4)

    def run(n: int) -> Outcome:
        rb = open_session(servers, tmp_path / str(n))
        begin.wait()
        return act(rb, "delivery", limit=10)

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(run, range(4)))
    assert sorted(o.result == "done" for o in outcomes) == [False, False, False, True], [why(o) for o in outcomes]
    assert one(db, "SELECT count(*) FROM runbook.redriven") == 10
    assert statuses(db) == {"FAILED": 30, "PENDING": 10}


# Killed ------------------------------------------------------------------------------------------------------

#: A command's start on a machine that is busy with other tests.
START_S = 90.0


def kill(process: BaseProcess) -> None:
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL  # it was still at it


def finish(process: BaseProcess) -> bool:
    """Whether it was carried out and its effect was seen."""
    process.join(START_S)
    return process.exitcode == 0


@contextmanager
def slow_ledger(admin_url: str, seconds: float, *, at_commit: bool) -> Iterator[Callable[[], bool]]:
    """Each portion is held up: at its end while nothing is committed, or in its commit; yields whether one is."""
    sleeping = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND pid <> pg_backend_pid())"
    with psycopg.connect(admin_url, autocommit=True) as db:

        def held_up() -> bool:
            return bool(one(db, sleeping))

        db.execute(
            "CREATE FUNCTION public.test_slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "IF current_setting('test.slept', true) IS DISTINCT FROM 'yes' THEN "
            f"PERFORM set_config('test.slept', 'yes', true); PERFORM pg_sleep({seconds}); END IF; RETURN NULL; END $$"
        )
        constraint, when = ("CONSTRAINT ", "DEFERRABLE INITIALLY DEFERRED") if at_commit else ("", "")
        db.execute(
            f"CREATE {constraint}TRIGGER slow AFTER INSERT ON runbook.redriven {when} "
            "FOR EACH ROW EXECUTE FUNCTION public.test_slow()"
        )
        try:
            yield held_up
        finally:
            Sandbox.wait_for("the server to be through with it", lambda: not held_up())
            db.execute("SET lock_timeout = '5s'")
            db.execute("DROP FUNCTION public.test_slow CASCADE")


def kill_portion(admin_url: str, env: dict[str, str], output: Path, *, at_commit: bool, limit: int = 10) -> None:
    """Kill a portion while it is held up: before anything is committed, or in its commit."""
    with slow_ledger(admin_url, 3 if at_commit else 20, at_commit=at_commit) as held_up:
        process = start(env, output, "delivery", limit)
        Sandbox.wait_for("the portion to be held up", held_up, START_S)
        kill(process)


def kill_waiting(db: psycopg.Connection, env: dict[str, str], output: Path, *, rows: int, limit: int = 10) -> None:
    """Kill a portion that waits for its effect, once the ledger has more than so many rows."""
    process = start(env, output, "delivery", limit)
    more = "SELECT count(*) > %s FROM runbook.redriven"
    Sandbox.wait_for("the portion", lambda: bool(one(db, more, rows)), START_S)
    kill(process)


@pytest.mark.slow
def test_killed_before_the_commit_nothing_has_happened(
    servers: Servers, db: psycopg.Connection, tmp_path: Path
) -> None:
    dead(db, 20)
    before = everything(db)
    kill_portion(servers.admin_url, servers.env, tmp_path, at_commit=False)
    assert everything(db) == before
    assert [line["result"] for line in journal(tmp_path)] == ["begun"]
    with worker(servers) as delivered:
        for _ in range(2):
            assert finish(start(servers.env, tmp_path, "delivery", 10))
    assert Counter(delivered) == Counter({str(e): 1 for (e,) in db.execute("SELECT event_id FROM runbook.redriven")})
    assert statuses(db) == {"SENT": 20}


@pytest.mark.slow
def test_killed_in_the_commit_all_of_it_has_happened(
    opened: Opened, servers: Servers, db: psycopg.Connection, tmp_path: Path
) -> None:
    events = dead(db, 20)
    kill_portion(servers.admin_url, servers.env, tmp_path, at_commit=True)
    assert statuses(db) == {"PENDING": 10, "FAILED": 10}
    assert one(db, "SELECT count(*) FROM runbook.redriven") == 10
    assert one(db, "SELECT count(*) FROM notification.notification_dlq") == 10
    refused(opened(), "delivery", "(10 still under way)")
    with worker(servers) as delivered:
        Sandbox.wait_for("the worker", lambda: len(delivered) == 10)
        assert finish(start(servers.env, tmp_path, "delivery", 10))
    assert Counter(delivered) == Counter({str(e): 1 for e in events})


def test_killed_before_its_last_line_it_can_be_started_again(
    opened: Opened, servers: Servers, db: psycopg.Connection, tmp_path: Path
) -> None:
    events = dead(db, 20)
    kill_waiting(db, servers.env, tmp_path, rows=9)
    (line,) = journal(tmp_path)
    assert line["result"] == "begun"
    assert one(db, "SELECT count(*) FROM runbook.redriven WHERE action = %s", line["id"]) == 10
    with worker(servers) as delivered:
        Sandbox.wait_for("the worker", lambda: len(delivered) == 10)
        assert finish(start(servers.env, tmp_path, "delivery", 10))
    assert Counter(delivered) == Counter({str(e): 1 for e in events})
    assert opened().context.archive.lines("action")[-1]["did"]["rows"] == 10


# The outbox --------------------------------------------------------------------------------------------------


def unpublished(db: psycopg.Connection, error: str | None, **changes: Any) -> uuid.UUID:
    event = uuid.uuid4()
    row = {
        "event_id": event, "event_type": wire.GRANTED, "aggregate_key": "user-0001:sku", "status": "FAILED",
        "payload": Jsonb(payload(event, "user-0001")), "attempt_count": 10, "last_error": error,
        "created_at": datetime.now(UTC) - timedelta(minutes=20),
    } | changes  # fmt: skip
    insert(db, "entitlement.outbox_events", **row)
    return event


TIMEOUT = "Timeout or no response waiting for NATS JetStream server"


@pytest.mark.slow
def test_the_outbox_gives_back_what_was_used_up(opened: Opened, db: psycopg.Connection) -> None:
    good = [unpublished(db, TIMEOUT), unpublished(db, "Error Publishing: 503 No Responders Available For Request")]
    bad = [
        unpublished(db, error)
        for error in ("outbox payload parse failure", "text", "unknown error", "unknown event type: Sold", None)
    ]
    bad.append(unpublished(db, TIMEOUT, payload=Jsonb({"event_id": "1"})))
    unpublished(db, TIMEOUT, lease_until=datetime.now(UTC) + timedelta(seconds=20), locked_by="pod")
    rb = opened(policy={"pause_s": 0.0})
    outcome = act(rb, "outbox")
    assert outcome.result == "done" and sorted(outcome.did["events"]) == sorted(map(str, good)), why(outcome)
    assert (outcome.before["permanent"], outcome.before["held"]) == (6, 1)
    assert effect(outcome).startswith("2 sent again: 0 PUBLISHED and processed, 2 still waiting")
    rows = db.execute(
        "SELECT DISTINCT status, attempt_count, next_retry_at, locked_by, locked_at, lease_until, last_error "
        "FROM entitlement.outbox_events WHERE event_id = ANY (%s)",
        [good],
    ).fetchall()
    assert rows == [("PENDING", 0, None, None, None, None, None)]
    kept = "SELECT archived -> 'row' ->> 'last_error' FROM runbook.redriven WHERE event_id = %s"
    assert one(db, kept, good[0]) == TIMEOUT
    refused(rb, "outbox", "(2 still under way)", events=[str(bad[0])])

    mark = "UPDATE entitlement.outbox_events SET status = 'PUBLISHED', published_at = now() WHERE event_id = ANY (%s)"
    db.execute(mark, [good])
    # Published is an end, processed is the effect.
    third = act(rb, "outbox", events=[str(bad[0])])
    assert third.result == "done" and third.verified is False and third.did["events"] == [str(bad[0])]
    db.execute(mark, [bad])
    db.execute("INSERT INTO notification.processed_events SELECT event_id FROM entitlement.outbox_events")
    refused(rb, "outbox", discard=True)
    rb.act("redrive", store="outbox")  # a dry run writes nothing
    assert one(db, "SELECT count(*) FROM runbook.redriven WHERE state = 'waiting'") == 3


def test_the_outbox_leaves_out_what_the_broker_stored_all_the_same(opened: Opened, db: psycopg.Connection) -> None:
    """The relay gave up although the event had arrived: each trace of it is enough."""
    registered, notified, lettered, redriven, good = (unpublished(db, TIMEOUT) for _ in range(5))
    dead(db, 1, event_id=registered, user_id="another")
    dead(db, 1, event_id=notified, user_id="user-0001", letter=False, status="SENT")
    dead(db, 1, event_id=lettered, user_id="another")
    db.execute("DELETE FROM notification.processed_events WHERE event_id <> %s", [registered])
    db.execute("DELETE FROM notification.notifications WHERE event_id <> %s", [notified])
    db.execute("DELETE FROM notification.notification_dlq WHERE event_id <> %s", [lettered])
    in_ledger(db, redriven, state="succeeded")
    rb = opened(waits=False, policy={"pause_s": 0.0})
    for event in (registered, notified, lettered, redriven):
        refused(rb, "outbox", "not so for 1", events=[str(event)])
    outcome = act(rb, "outbox")
    assert outcome.did["events"] == [str(good)] and outcome.before["doubled"] == 4


def in_ledger(
    db: psycopg.Connection, event: uuid.UUID | str | None, store: str = "broker", ago: float = 31 * 86400, **row: Any
) -> None:
    usual = {"decision": "redrive", "state": "succeeded", "incident": "INC-1", "action": "a", "approved_by": "Aoki"}
    at = datetime.now(UTC) - timedelta(seconds=ago)
    same = {"store": store, "event_id": event, "reason": "why", "archived": Jsonb({}), "at": at}
    insert(db, "runbook.redriven", **usual | same | row)


def test_an_old_event_is_published_by_name_only(opened: Opened, db: psycopg.Connection) -> None:
    """Its registration would have been removed."""
    old = unpublished(db, TIMEOUT, created_at=datetime.now(UTC) - timedelta(days=31))
    rb = opened(waits=False, policy={"pause_s": 0.0})
    outcome = refused(rb, "outbox", "0 can be sent now", "1 too old to go without their names")
    assert (outcome.before["old"], outcome.before["eligible"]) == (1, 0)
    refused(rb, "outbox", discard=True)
    assert act(rb, "outbox", events=[str(old)]).did["events"] == [str(old)]


def test_nothing_is_published_while_an_event_can_be_registered_twice(
    opened: Opened, db: psycopg.Connection, bound_broker: str
) -> None:
    unpublished(db, TIMEOUT)
    given_up(db, *publish(bound_broker, wire.encode(an_event())))
    dead(db, 1)
    rb = opened(waits=False, policy={"pause_s": 0.0})
    table, key = "ALTER TABLE notification.processed_events", "CONSTRAINT processed_events_pkey"
    with undone(db, f"{table} DROP {key}", f"{table} ADD {key} PRIMARY KEY (event_id)"):
        for store in ("outbox", "broker"):
            outcome = refused(rb, store, "refuses a second registration of an event (4.2.1)")
            assert [name for name, ok in holds(outcome).items() if not ok] == ["key"]
        assert act(rb, "delivery").result == "done"
    assert holds(act(rb, "outbox"))["key"] is True


def test_the_outbox_leaves_out_what_would_fail_again(opened: Opened, db: psycopg.Connection) -> None:
    """What step 4.4.1 calls permanent."""
    for changes in ({"event_id": "seven"}, {"occurred_at": "yesterday"}, {"user_id": 7}):
        event = uuid.uuid4()
        unpublished(db, TIMEOUT, event_id=event, payload=Jsonb(payload(event, "user-0001") | changes))
    unpublished(db, "java.lang.IllegalStateException: outbox payload parse failure")
    good = unpublished(db, "something else")
    outcome = act(opened(waits=False, policy={"pause_s": 0.0}), "outbox")
    assert outcome.did["events"] == [str(good)] and outcome.before["permanent"] == 4


def test_without_commit_times_the_outbox_counts_from_the_end_of_ten_tries(
    opened: Opened, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "statement", lambda name: queries.statement(name).replace("= 'on'", "= 'never'"))
    event = unpublished(db, TIMEOUT, created_at=datetime.now(UTC) - timedelta(seconds=400))
    assert holds(act(opened(waits=False), "outbox", execute=False))["quiet"] is False
    db.execute("UPDATE entitlement.outbox_events SET created_at = now() - interval '600 s'")
    assert all(holds(act(opened(waits=False), "outbox", execute=False)).values())
    since = [(datetime.now(UTC) - timedelta(seconds=s)).isoformat() for s in (120, 240)]
    assert [act(opened(waits=False), "outbox", execute=False, since=at).before["eligible"] for at in since] == [0, 1]
    assert act(opened(waits=False), "outbox", since=since[1]).did["events"] == [str(event)]
    # It was used up again: its tries began when it was sent again, and not when it was made.
    gave_up = "UPDATE entitlement.outbox_events SET status = 'FAILED', attempt_count = 10, last_error = %s"
    db.execute(gave_up, [TIMEOUT])
    unpublished(db, TIMEOUT, created_at=datetime.now(UTC) - timedelta(hours=2))
    assert holds(act(opened(waits=False), "outbox", execute=False))["quiet"] is False
    db.execute("UPDATE runbook.redriven SET at = now() - interval '600 s'")
    assert holds(act(opened(waits=False), "outbox", execute=False))["quiet"] is True


def test_the_outbox_waits_until_nothing_fails(opened: Opened, db: psycopg.Connection) -> None:
    unpublished(db, TIMEOUT)
    rb = opened()
    # It was written just now, and the database keeps the times of its commits: it failed just now.
    assert holds(act(rb, "outbox"))["quiet"] is False
    rb = opened(policy={"pause_s": 0.0})
    retry = datetime.now(UTC) + timedelta(seconds=30)
    unpublished(db, TIMEOUT, status="PENDING", attempt_count=2, next_retry_at=retry)
    refused(rb, "outbox", "1 wait for a retry")
    db.execute("UPDATE entitlement.outbox_events SET attempt_count = 0, next_retry_at = NULL WHERE status = 'PENDING'")
    assert holds(act(rb, "outbox"))["worker"] is False


@pytest.mark.parametrize("store", ["outbox", "delivery"])
def test_rows_that_a_dead_worker_holds_are_due(opened: Opened, db: psycopg.Connection, store: str) -> None:
    rb = opened(waits=False)
    assert holds(act(rb, store, execute=False)).get("worker", True)
    for over_s, works in ((10, True), (90, False)):
        lease = datetime.now(UTC) - timedelta(seconds=over_s)
        if store == "outbox":
            held = {"status": "IN_FLIGHT", "locked_by": "pod-1", "lease_until": lease, "attempt_count": 0}
            unpublished(db, TIMEOUT, **held)
        else:
            steps.events(db, 1, 100, status="PROCESSING", by="pod-1", over=over_s)
        assert holds(act(rb, store, execute=False))["worker"] is works


# The broker --------------------------------------------------------------------------------------------------


def given_up(db: psycopg.Connection, *seqs: int, ago: float = 0) -> None:
    for seq in seqs:
        db.execute(
            "INSERT INTO notification.notification_nats_dlq VALUES (%s, now() - %s * interval '1 s')", [seq, ago]
        )


def stored(url: str, seq: int) -> RawStreamMsg:
    async def get(js: JetStreamContext) -> RawStreamMsg:
        return await js.get_msg(applications.STREAM, seq)

    return applications.visit(url, get)


def last_seq(url: str) -> int:
    async def last(js: JetStreamContext) -> int:
        return (await js.stream_info(applications.STREAM)).state.last_seq

    return applications.visit(url, last)


@pytest.fixture
def bound_broker(broker: str) -> Iterator[str]:
    with bound(broker):
        yield broker


@pytest.mark.slow
def test_the_broker_publishes_the_body_under_a_new_id(
    opened: Opened, db: psycopg.Connection, bound_broker: str
) -> None:
    event = an_event()
    headers = {"Nats-Msg-Id": event.event_id, "event_type": event.event_type, "trace_id": "abc", "aggregate_key": "u:s"}
    (seq,) = publish(bound_broker, wire.encode(event), headers=headers)
    given_up(db, seq)
    # The trap: under its old id the stream says it has it, and stores nothing.
    assert publish(bound_broker, wire.encode(event), headers=headers) == [seq] == [last_seq(bound_broker)]

    rb = opened(policy={"pause_s": 0.0})
    outcome = act(rb, "broker")
    assert outcome.result == "done" and outcome.did["events"] == [event.event_id], why(outcome)
    assert effect(outcome).startswith("1 sent again: 0 processed, 1 still waiting")  # nobody acknowledges here
    assert last_seq(bound_broker) == seq + 1
    again = stored(bound_broker, seq + 1)
    entry = one(db, "SELECT id FROM runbook.redriven")
    assert again.data == wire.encode(event)
    assert again.headers == {**headers, "Nats-Msg-Id": f"redrive-{entry}"}
    assert db.execute("SELECT state, stream_seq, published_seq FROM runbook.redriven").fetchall() == [
        ("waiting", seq, seq + 1)
    ]
    assert "(1 still under way)" in why(act(rb, "broker"))

    # Killed between the receipt and its mark: the same id again, and the stream keeps one.
    db.execute("UPDATE runbook.redriven SET state = 'publishing', published_seq = NULL")
    resumed = act(rb, "broker")
    assert resumed.result == "done" and holds(resumed)["resumes"] and resumed.did["rows"] == 1
    assert last_seq(bound_broker) == seq + 1 and one(db, "SELECT published_seq FROM runbook.redriven") == seq + 1

    db.execute("INSERT INTO notification.processed_events VALUES (%s)", [event.event_id])
    dry = act(rb, "broker", execute=False)
    assert dry.before["eligible"] == 0 and dry.before["under_way"] == 0 and holds(dry)["may_go"] is False


@pytest.mark.slow
def test_the_broker_leaves_out_what_can_not_be_taken(opened: Opened, db: psycopg.Connection, bound_broker: str) -> None:
    done, good, notified = an_event(), an_event(), an_event()
    bodies = [
        b"\xff\xff\xff noise",
        wire.encode(an_event(event_id="seven")),
        wire.encode(an_event(user_id="a\0b")),  # PostgreSQL stores none
        wire.encode(an_event(occurred_at="yesterday")),
        wire.encode(done),
        wire.encode(notified),
        wire.encode(good),
        wire.encode(good),
    ]
    seqs = publish(bound_broker, *bodies)
    db.execute("INSERT INTO notification.processed_events VALUES (%s)", [done.event_id])
    dead(db, event_id=uuid.UUID(notified.event_id), user_id=notified.user_id, letter=False, status="SENT")
    db.execute("DELETE FROM notification.processed_events WHERE event_id = %s", [notified.event_id])
    given_up(db, *seqs, seqs[-1] + 100)
    rb = opened(policy={"pause_s": 0.0, "per_event": 1})
    dry = act(rb, "broker", execute=False)
    assert (dry.before["eligible"], dry.before["permanent"], dry.before["gone"]) == (1, 4, 1), dry.before
    outcome = act(rb, "broker", limit=50)
    assert outcome.did["rows"] == 1 and last_seq(bound_broker) == seqs[-1] + 1
    given_up(db, seqs[-1] + 1)
    assert act(rb, "broker", execute=False).before["over_limit"] == 1
    discarded = act(rb, "broker", discard=True)
    assert discarded.did["rows"] == 6 and f"seq {seqs[0]}" in discarded.did["events"]
    after = act(rb, "broker", execute=False).before
    assert after["discarded"] == 6 and not any(after[v] for v in ("eligible", "permanent", "over_limit", "gone"))
    assert one(db, "SELECT count(*) FROM notification.notification_nats_dlq") == len(seqs) + 2


def test_the_broker_knows_a_stream_that_began_anew(opened: Opened, db: psycopg.Connection, bound_broker: str) -> None:
    given_up(db, *publish(bound_broker, wire.encode(an_event())), ago=3600)
    rb = opened()
    assert act(rb, "broker", execute=False).before["gone"] == 1


def advise(url: str, *bodies: Any) -> None:
    """The subject is the server's own; the stream takes what stands on it from whoever may publish."""

    async def scene(js: JetStreamContext) -> None:
        for body in bodies:
            await js.publish(applications.ADVISORY_SUBJECT, json.dumps(body).encode())

    applications.visit(url, scene)


def test_a_message_of_a_stream_that_was_made_anew_can_be_sent(
    opened: Opened, db: psycopg.Connection, bound_broker: str
) -> None:
    """Its sequence has an old record, which the subscriber keeps, and a new advisory."""
    event = an_event()
    (seq,) = publish(bound_broker, wire.encode(event))
    given_up(db, seq, ago=3600)
    # A discarded body of the lost stream had the same sequence.
    in_ledger(db, None, decision="discard", state="discarded", stream_seq=seq)
    rb = opened(waits=False, policy={"pause_s": 0.0})
    assert act(rb, "broker", execute=False).before["gone"] == 0, "the discarded one"
    advise(bound_broker, {"stream_seq": seq})
    # The copy's sequence has an old record as well.
    given_up(db, seq + 1, ago=3600)
    outcome = act(rb, "broker")
    assert outcome.did["events"] == [event.event_id], why(outcome)
    assert effect(outcome).startswith("1 sent again: 0 processed, 1 still waiting, 0 given up again, 0 missing")
    advise(bound_broker, {"stream_seq": seq + 1})
    assert act(rb, "broker", execute=False).before["under_way"] == 0, "a new advisory"


def test_the_newest_records_are_read_whatever_their_sequence(
    opened: Opened, db: psycopg.Connection, bound_broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores.BrokerLetters, "most", 2)
    given_up(db, 7000, 7001, ago=86400)
    given_up(db, *publish(bound_broker, wire.encode(an_event())))
    rb = opened(policy={"pause_s": 0.0})
    assert act(rb, "broker", execute=False).before["eligible"] == 1
    later = (datetime.now(UTC) + timedelta(seconds=60)).isoformat()
    found = act(rb, "broker", execute=False, since=later).before
    assert (found["eligible"], found["gone"]) == (0, 0)


def test_the_broker_sends_nothing_that_may_have_been_processed(
    opened: Opened, db: psycopg.Connection, bound_broker: str
) -> None:
    """After thirty days the ledger alone knows that an event was processed, or nobody does."""
    known, old, half_way, notified = an_event(), an_event(31 * 86400), an_event(), an_event()
    seqs = publish(bound_broker, *map(wire.encode, (known, old, half_way, notified)))
    given_up(db, *seqs)
    in_ledger(db, known.event_id, stream_seq=seqs[0])
    in_ledger(db, half_way.event_id, state="publishing", stream_seq=seqs[2])
    user: dict[str, Any] = {"archived": Jsonb({"user_id": notified.user_id})}
    in_ledger(db, notified.event_id, ago=60, state="publishing", stream_seq=seqs[3], **user)
    dead(db, event_id=uuid.UUID(notified.event_id), user_id=notified.user_id, letter=False, status="SENT")
    db.execute("DELETE FROM notification.processed_events")
    rb = opened(waits=False, policy={"pause_s": 0.0, "per_event": 1})
    outcome = refused(rb, "broker", "0 can be sent now", "1 too old to go without their names, 1 over the limit")
    assert (outcome.before["under_way"], outcome.before["gone"]) == (0, 0)
    assert last_seq(bound_broker) == seqs[-1]
    refused(rb, "broker", events=[known.event_id])
    assert act(rb, "broker", events=[old.event_id]).did["events"] == [old.event_id]


def test_what_is_discarded_half_way_is_not_published(opened: Opened, db: psycopg.Connection, bound_broker: str) -> None:
    stopped, other = an_event(), an_event()
    seqs = publish(bound_broker, wire.encode(stopped), wire.encode(other))
    given_up(db, *seqs)
    for event, seq in zip((stopped, other), seqs, strict=True):
        in_ledger(db, event.event_id, ago=60, state="publishing", stream_seq=seq)
    rb = opened(waits=False, policy={"pause_s": 0.0})
    assert act(rb, "broker", discard=True, events=[stopped.event_id]).verified
    states = "SELECT decision, state, ended_at IS NULL FROM runbook.redriven WHERE event_id = %s ORDER BY decision"
    assert db.execute(states, [stopped.event_id]).fetchall() == [
        ("discard", "discarded", True),
        ("redrive", "discarded", False),
    ]
    outcome = act(rb, "broker")
    assert outcome.did["events"] == [other.event_id] and last_seq(bound_broker) == seqs[-1] + 1


def test_a_portion_that_ends_in_the_middle_says_what_it_did(
    opened: Opened, db: psycopg.Connection, bound_broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [an_event() for _ in range(3)]
    given_up(db, *publish(bound_broker, *map(wire.encode, events)))
    published, publish_ = list[str](), JetStream.publish

    def once(self: JetStream, subject: str, *rest: Any) -> int:
        if published:
            raise SourceError("jetstream", Reason.TIMEOUT, "the broker did not answer")
        published.append(subject)
        return publish_(self, subject, *rest)

    monkeypatch.setattr(JetStream, "publish", once)
    assert act(opened(policy={"pause_s": 0.0}), "broker").result == "failed"
    failed = journal(tmp_path)[-1]
    ids = [id_ for (id_,) in db.execute("SELECT id FROM runbook.redriven ORDER BY id")]
    assert failed["result"] == "failed"
    assert failed["did"] == {"rows": 3, "events": [e.event_id for e in events], "ledger": ids, "published": 1}


def test_a_recent_advisory_is_a_recent_failure(opened: Opened, db: psycopg.Connection, bound_broker: str) -> None:
    """Also if the subscriber could not record it."""
    given_up(db, *publish(bound_broker, wire.encode(an_event())), ago=600)
    db.execute("UPDATE notification.notification_nats_dlq SET created_at = now() - interval '600 s'")
    rb = opened()
    assert holds(act(rb, "broker", execute=False))["quiet"] is True
    advise(bound_broker, {"stream_seq": 9})
    assert holds(act(rb, "broker", execute=False))["quiet"] is False


def test_the_effect_reads_no_older_advisories(
    opened: Opened, db: psycopg.Connection, bound_broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "FETCH_SIZE", 10)
    advise(bound_broker, *({"stream_seq": seq} for seq in range(1, 31)), {"stream_seq": 30})
    fetched, messages_ = list[int](), JetStream.messages

    def counted(self: JetStream, stream: str, seqs: Sequence[int]) -> Any:
        fetched.extend(seqs)
        return messages_(self, stream, seqs)

    monkeypatch.setattr(JetStream, "messages", counted)
    broker = stores.BrokerLetters(opened().context)
    assert len(broker._read_advisories(None)) == 30 and sorted(fetched) == list(range(1, 32))
    fetched.clear()
    later = datetime.now(UTC) + timedelta(seconds=120)
    assert len(broker._read_advisories(later)) == 9 and sorted(fetched) == list(range(22, 32))


@pytest.mark.slow
def test_the_broker_reads_the_advisories_as_well(opened: Opened, db: psycopg.Connection, bound_broker: str) -> None:
    event = an_event()
    (seq,) = publish(bound_broker, wire.encode(event))
    advise(bound_broker, {"stream_seq": seq}, {"stream_seq": "x"}, {})
    outcome = act(opened(policy={"pause_s": 0.0}), "broker")
    assert outcome.did["events"] == [event.event_id]


def test_without_a_subscriber_nothing_is_published(
    opened: Opened, servers: Servers, db: psycopg.Connection, broker: str
) -> None:
    given_up(db, *publish(broker, wire.encode(an_event())))
    rb = opened(policy={"pause_s": 0.0})
    assert holds(refused(rb, "broker"))["subscriber"] is False and last_seq(broker) == 1
    reading = opened(urls={"action_nats_url": servers.nats_url}, policy={"pause_s": 0.0})
    with bound(broker):
        outcome = act(reading, "broker")
    assert outcome.result == "failed" and "may not" in why(outcome)
    assert last_seq(broker) == 1 and one(db, "SELECT state FROM runbook.redriven") == "publishing"


# The whole sandbox ------------------------------------------------------------------------------------------


def received(sandbox: Sandbox) -> Counter[str]:
    """How often the receiver was given each event."""
    log = sandbox.log("receiver")
    return Counter(re.findall(r"eventId=([0-9a-f-]{36})", log))


@pytest.fixture(scope="module")
def flowing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with sandboxes.running(tmp_path_factory.mktemp("redrive"), hours=0.2) as sandbox:
        yield sandbox


@pytest.mark.slow
def test_five_hundred_dead_letters_arrive_once_each(flowing: Sandbox, tmp_path: Path) -> None:
    env, admin_url = flowing.state.env, flowing.state.addresses.admin_url
    unsent = (
        "SELECT count(*) FROM runbook.redriven JOIN notification.notifications USING (notification_id) "
        "WHERE status <> 'SENT'"
    )
    with psycopg.connect(admin_url, autocommit=True) as db:
        events = [str(e) for e in dead(db, 500)]
        done = 0
        for kill_at in ("statement", "commit", "effect", "", "", "", "", ""):
            if kill_at in ("statement", "commit"):
                kill_portion(admin_url, env, tmp_path, at_commit=kill_at == "commit", limit=100)
            elif kill_at == "effect":
                kill_waiting(db, env, tmp_path, rows=done, limit=100)
            elif not finish(start(env, tmp_path, "delivery", 100)):
                break
            done = one(db, "SELECT count(*) FROM runbook.redriven")
            Sandbox.wait_for("the portion's end", lambda: one(db, unsent) == 0, 30)
        assert done == 500
        ours = "SELECT event_id::text, count(*), min(status), max(attempt_count) FROM notification.notifications "
        rows = db.execute(ours + "WHERE event_id = ANY (%s::uuid[]) GROUP BY 1", [events]).fetchall()
        assert sorted(rows) == sorted((event, 1, "SENT", 0) for event in events)
        left = "SELECT count(*) FROM notification.notification_dlq WHERE event_id = ANY (%s::uuid[])"
        assert one(db, left, events) == 0
        assert one(db, "SELECT count(DISTINCT event_id) FROM runbook.redriven WHERE store = 'delivery'") == 500
    times = received(flowing)
    assert {event: times[event] for event in events} == dict.fromkeys(events, 1)
    results = Counter(line["result"] for line in journal(tmp_path))
    # Three were killed: of one nothing had happened, of the two others all. Then three portions, and nothing is left.
    assert results == {"begun": 6, "done": 3, "refused": 1}


@pytest.mark.slow
def test_outbox_and_broker_arrive_once_each(flowing: Sandbox, tmp_path: Path) -> None:
    addresses = flowing.state.addresses

    class Reached:
        env = flowing.state.env

    with psycopg.connect(addresses.admin_url, autocommit=True) as db:
        waiting = [unpublished(db, TIMEOUT) for _ in range(20)]
        rb = open_session(Reached, tmp_path, policy={"pause_s": 0.0}, wait_s=30.0)  # type: ignore[arg-type]
        outcome = act(rb, "outbox")
        assert outcome.verified, why(outcome)

        # As after a database outage: the stream has the events, the broker gave them up, nobody processed them.
        lost = [an_event() for _ in range(10)]
        flowing.stop("notification")
        seqs = publish(addresses.app_nats_url, *map(wire.encode, lost))
        acknowledge(addresses.app_nats_url, seqs)
        flowing.start("notification")
        flowing.wait_for_flow(90)
        given_up(db, *seqs)
        outcome = act(rb, "broker")
        assert outcome.verified and outcome.did["rows"] == 10, why(outcome)
        ids = [str(e) for e in waiting] + [e.event_id for e in lost]
        sent = "SELECT count(*) FROM notification.notifications WHERE status = 'SENT' AND event_id = ANY (%s::uuid[])"
        Sandbox.wait_for("the last to be sent", lambda: one(db, sent, ids) == 30)
    times = received(flowing)
    assert {event: times[event] for event in ids} == dict.fromkeys(ids, 1)
