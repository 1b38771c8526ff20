"""What an error's text means is read from its form: a number or a word elsewhere in it decides nothing."""

from __future__ import annotations

import nats.errors
import pandas as pd
import psycopg
import pytest

from runbook_lib.model.finding import Reason
from runbook_lib.packs.entitlement.checks import dead_letters, errors, publish
from runbook_lib.packs.logs.logs import fingerprint
from runbook_lib.sources.jetstream import _connect_error
from runbook_lib.sources.postgres import source_error

ID = "503a4c10-5503-4503-9503-085035030503"


@pytest.mark.parametrize(
    "text",
    [
        "field [10] is missing",
        "cannot serialize ITEM_503_GRANTED",
        f"event {ID} is too large",
        "Text '2025-01-31T03:00:10.503Z' could not be parsed at index 503",
        "field timeout is missing",
        "",
        None,
    ],
)
def test_a_number_or_a_word_elsewhere_tells_nothing_of_a_publish(text: str | None) -> None:
    assert publish.kind_of(text) == "other"


def test_an_unknown_type_is_the_events_own_whatever_it_is_called() -> None:
    assert dead_letters.outbox_kind("unknown event type: ITEM_503_GRANTED", "") == "unknown_type"
    assert dead_letters.outbox_kind("unknown event type: parse failure", "") == "unknown_type"
    assert dead_letters.outbox_kind("outbox payload parse failure", "") == "parse_failure"


def test_a_kind_is_read_before_numbers_are_folded() -> None:
    texts = ["maximum messages exceeded [10077]", "message size exceeds maximum allowed [10054]"]
    failed = pd.DataFrame({"last_error": texts, "failed_at": pd.Timestamp("2026-11-26", tz="UTC"), "total": 2})
    assert set(dead_letters._group_by_error(failed)["kind"]) == {"full", "too_large"}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("receiver answered 503", "dependency"),
        ('502 Bad Gateway: "invalid token"', "dependency"),
        ("status=429", "dependency"),
        ("receiver answered 308", "dependency"),
        ("invalid value 308", "data"),
        ("java.net.ConnectException: Connection refused", "dependency"),
        ("HikariPool-1 - Connection is not available, request timed out after 30000ms", "dependency"),
        ("java.util.concurrent.RejectedExecutionException: Task rejected from executor", "dependency"),
        ("I/O error: Unexpected end of file, connection was closed", "dependency"),
        ("receiver answered 422", "data"),
        ("400 Bad Request: connection_id is required", "data"),
        ("404 Not Found: no route for timeout", "data"),
        ("event type ITEM_503_GRANTED is unsupported", "data"),
        ("invalid value 'timeout' for field kind", "data"),
        ("recipient refused: unknown address", "data"),
        ("missing header after 500 bytes", "data"),
        ("password reset is required", "data"),
        ("NullPointerException", "data"),
        ("account is closed", "unclear"),
        ("order 503 failed", "unclear"),
        ("oops", "unclear"),
    ],
)
def test_what_a_dead_letters_text_speaks_for(text: str, kind: str) -> None:
    assert errors.text_kind(text) == errors.text_kind(fingerprint(text)) == kind


@pytest.mark.parametrize(
    ("text", "reason", "code"),
    [
        ('FATAL:  database "app" does not exist', Reason.UNREACHABLE, "no_such_database"),
        ('FATAL:  role "app" does not exist', Reason.DENIED, "not_authorised"),
        ('FATAL:  role "starting up" does not exist', Reason.DENIED, "not_authorised"),
        ('FATAL:  password authentication failed for user "timed out"', Reason.DENIED, "wrong_password"),
        ('FATAL:  permission denied for database "too many clients"', Reason.DENIED, "not_authorised"),
        ("FATAL:  sorry, too many clients already", Reason.UNREACHABLE, "too_many_clients"),
        # A limit of the runbook's own role says nothing of the services' roles.
        ('FATAL:  too many connections for role "runbook"', Reason.DENIED, "own_limit"),
        ('FATAL:  too many connections for database "app"', Reason.UNREACHABLE, "too_many_clients"),
        ("FATAL:  the database system is starting up", Reason.UNREACHABLE, "starting_up"),
        ('connection to server at "10.0.0.7", port 5432 failed: timeout expired', Reason.TIMEOUT, "no_connection"),
    ],
)
def test_why_postgresql_lets_nobody_in(text: str, reason: Reason, code: str) -> None:
    found = source_error(psycopg.OperationalError(text))
    assert (found.reason, found.code) == (reason, code)


@pytest.mark.parametrize(
    ("text", "reason", "code"),
    [
        ("canceling statement due to user request", Reason.ERROR, "cancelled"),  # a person's pg_cancel_backend
        ("canceling statement due to statement timeout", Reason.TIMEOUT, "statement_timeout"),
    ],
)
def test_why_a_statement_was_cancelled(text: str, reason: Reason, code: str) -> None:
    found = source_error(psycopg.errors.QueryCanceled(text))
    assert (found.reason, found.code) == (reason, code)


@pytest.mark.parametrize(
    ("error", "reason", "code"),
    [
        (nats.errors.Error("nats: 'Authorization Violation'"), Reason.DENIED, "wrong_credentials"),
        (nats.errors.Error("nats: 'User Authentication Expired'"), Reason.DENIED, "wrong_credentials"),
        (nats.errors.Error("nats: 'Authentication Timeout'"), Reason.TIMEOUT, "no_connection"),
        (OSError("[Errno 111] Connect call failed ('127.0.0.1', 4222)"), Reason.UNREACHABLE, "no_connection"),
        (OSError("no answer from 10.0.111.7"), Reason.UNREACHABLE, "no_connection"),
    ],
)
def test_why_the_broker_lets_nobody_in(error: Exception, reason: Reason, code: str) -> None:
    found = _connect_error([error], asks_for_ours=False)
    assert (found.reason, found.code) == (reason, code)
    assert "refused" not in found.detail or "Errno 111" in str(error)
