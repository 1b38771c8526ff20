"""Questions of one's own between the steps: the runbook's limits hold, and nobody is named."""

from __future__ import annotations

import psycopg
import pytest

from runbook_lib.model.usage import UsageError
from runbook_lib.notebook import session
from runbook_lib.notebook.session import Session
from runbook_lib.sources.settings import Budget
from tests.kit.servers import Servers
from tests.kit.steps import events, open_target

WHO = "alice@example.org"


@pytest.fixture
def rb(servers: Servers, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> Session:
    """A session in `runbook lab`, on a database with three notifications of one user."""
    events(db, 3, 60, status="PENDING")
    db.execute("UPDATE notification.notifications SET user_id = %s, locked_by = 'pod-1'", (WHO,))
    db.execute("UPDATE notification.notifications SET payload_json = jsonb_build_object('userId', user_id, 'n', 1)")
    monkeypatch.setenv("RUNBOOK_LAB", "4711")
    monkeypatch.setenv("JPY_PARENT_PID", "4711")
    return opened(servers)


def opened(servers: Servers, **budget: int) -> Session:
    target = {"database_url": servers.env["RUNBOOK_DATABASE_URL"]}
    return Session(open_target("4.1", target, budget=Budget(**budget), incident_id="A"))


EVERYBODY = "(SELECT string_agg(user_id, ',') FROM notification.notifications)"


@pytest.mark.parametrize(
    "asked",
    [
        *("user_id", "user_id AS n", "lower(user_id) AS kind", "ARRAY[user_id]", "user_id || ':' || type", EVERYBODY),
        *("payload_json", "payload_json->>'userId' AS sku", "n AS whole", "n::text", "to_jsonb(n) AS j"),
        *("jsonb_build_array(user_id) AS list", "jsonb_build_object(user_id, 1) AS keys"),
    ],
)
def test_nobody_is_named_however_it_is_asked(rb: Session, asked: str) -> None:
    frame = rb.ask(f"SELECT {asked} FROM notification.notifications n")
    assert len(frame) == 3
    assert "alice" not in frame.to_string() + repr(frame.to_dict())
    assert "alice" not in repr(rb.context.read_cost.queries)


def test_nor_by_a_question_of_the_runbook_for_many_at_once(rb: Session, db: psycopg.Connection) -> None:
    db.execute("UPDATE notification.notifications SET user_id = 'jane.doe'")
    db.execute("UPDATE entitlement.outbox_events SET aggregate_key = 'jane.doe:sku'")
    frame = rb.ask("journey/users")
    assert list(frame.columns) == ["users"] and frame["users"].str.match(r"user-[0-9a-f]{8}(\n|$)").all()


def test_nor_by_a_view_or_the_statistics(rb: Session, db: psycopg.Connection) -> None:
    db.execute("CREATE OR REPLACE VIEW notification.renamed AS SELECT user_id AS sku FROM notification.notifications")
    db.execute("GRANT SELECT ON notification.renamed TO PUBLIC")
    db.execute("ANALYZE notification.notifications")
    try:
        shown = [
            rb.ask("SELECT sku FROM notification.renamed"),
            rb.ask("SELECT most_common_vals FROM pg_stats WHERE attname = 'user_id' AND tablename = 'notifications'"),
        ]
    finally:
        db.execute("DROP VIEW notification.renamed")
    assert [len(frame) for frame in shown] == [3, 1]
    assert "alice" not in repr([frame.to_dict() for frame in shown])


def test_who_is_written_into_a_question_is_in_no_record_of_it(rb: Session) -> None:
    assert len(rb.ask(f"SELECT user_id FROM notification.notifications WHERE user_id IN ('{WHO}', 'x')")) == 3
    assert "alice" not in repr(rb.context.read_cost.queries)
    source = rb.context.masker.scrub(f"rb.ask(\"... WHERE user_id = '{WHO}' OR user_id = :u\", u='x')")
    assert "alice" not in source and "user_id = :u" in source


def test_what_names_nobody_stays_as_it_is(rb: Session) -> None:
    frame = rb.ask(
        "WITH s AS (SELECT status, locked_by, user_id, created_at FROM notification.notifications)"
        " SELECT status, locked_by AS pod, 'late' AS kind, count(*) AS n, max(created_at) AS latest"
        " FROM s WHERE user_id = :u GROUP BY 1, 2 ORDER BY n;",
        u=rb.context.masker.person(WHO),
    )
    (row,) = frame.to_dict("records")
    assert (row["status"], row["pod"], row["kind"], row["n"]) == ("PENDING", "pod-1", "late", 3)
    assert str(frame["latest"].dtype) == "datetime64[us, UTC]"


def test_a_question_of_the_packs_by_its_name(rb: Session) -> None:
    assert rb.ask("notifications/backlog")["due"].iloc[0] == 3
    asked = [q.name for q in rb.context.read_cost.queries]
    assert "notifications/backlog" in asked


def test_who_is_meant_is_typed_where_no_file_keeps_it(rb: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "getpass", lambda prompt: f" {WHO} ")
    token = rb.person()
    assert WHO not in token
    assert len(rb.ask("SELECT 1 AS n FROM notification.notifications WHERE user_id = :u", u=token)) == 3


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("DELETE FROM notification.notifications", "syntax error"),
        ("WITH d AS (DELETE FROM notification.notifications RETURNING 1) SELECT * FROM d", "WITH clause containing"),
        ("SELECT 1) x LIMIT 1; COMMIT; DELETE FROM notification.notifications; SELECT (1", "multiple commands"),
        ("SELECT pg_sleep(30)", "statement timeout"),
        ("SELECT CAST(:u AS int) AS n", "invalid input syntax"),
        ("SELECT :missing AS n", "missing"),
        ("notifications/backlogs", "did you mean 'notifications/backlog'?"),
    ],
)
def test_what_goes_wrong_is_a_line_without_people(servers: Servers, rb: Session, asked: str, said: str) -> None:
    rb = opened(servers, statement_timeout_ms=300)
    with pytest.raises(UsageError) as error:
        rb.ask(asked, u=WHO)
    assert said in str(error.value) and "\n" not in str(error.value) and "alice" not in str(error.value)
    assert len(rb.ask("SELECT status FROM notification.notifications")) == 3


def test_what_could_scan_goes_through_the_gate_and_rows_are_capped(servers: Servers, rb: Session) -> None:
    several = "SELECT count(*) FROM pg_class a, pg_class b, pg_class c"
    with pytest.raises(UsageError, match=r"plan cost .* is over the limit"):
        opened(servers, max_plan_cost=1000).ask(several)
    frame = opened(servers, max_rows=5).ask("SELECT n FROM generate_series(1, 100) n")
    assert list(frame["n"]) == [1, 2, 3, 4, 5] and frame.attrs["capped"]
