"""Users and secrets planted wherever a run reads: in none of the files of a dossier is one of them left."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pandas as pd
import psycopg
import pytest

from tests.kit import corpus
from tests.kit.command import runbook
from tests.kit.servers import Servers
from tests.kit.steps import events

#: Words of planted values that a page may hold for another reason.
COMMON = {"correct", "battery", "planted", "PLANTED"}
LINES = list(corpus.lines(3))


@contextmanager
def a_lock_held_by_a_statement_with_values(servers: Servers) -> Iterator[None]:
    """One session holds rows, another waits for them; both statements name users and a secret."""
    update = "UPDATE notification.notifications SET type = 'hunter2-Kx9' WHERE user_id = 'Zoe Quillfeather' OR type IN"
    with psycopg.connect(servers.app_url) as holder, closing(psycopg.connect(servers.app_url)) as waiter:
        holder.execute(f"{update} ('quill-0071') /* for quill-0071 */")
        waiter.pgconn.send_query(f"{update} ('Zoe O''Quillan')".encode())
        yield
        holder.rollback()


def plant(db: psycopg.Connection) -> None:
    """Every line as the error of an event that waits, of one that was given up, and of a dead letter."""
    for status in ("PENDING", "FAILED"):
        events(db, len(LINES), 40, outbox=status, publish_tries=3, error="?", processed=False, status=None)
    events(db, len(LINES), 60, status="FAILED", tries=10, dead=20.0)
    for table, column, key in (
        ("entitlement.outbox_events", "last_error", "event_id"),
        ("notification.notification_dlq", "error_message", "dlq_id"),
    ):
        found = db.execute(f"SELECT {key} FROM {table} WHERE {column} IS NOT NULL").fetchall()
        texts = [LINES[n % len(LINES)].text.replace("\0", "") for n in range(len(found))]
        with db.cursor() as cursor:
            cursor.executemany(
                f"UPDATE {table} SET {column} = %s WHERE {key} = %s",
                [(t, k) for t, (k,) in zip(texts, found, strict=True)],
            )
    rows = db.execute("SELECT notification_id FROM notification.notifications").fetchall()
    users = [(corpus.USERS[n % len(corpus.USERS)], key) for n, (key,) in enumerate(rows)]
    with db.cursor() as cursor:
        cursor.executemany("UPDATE notification.notifications SET user_id = %s WHERE notification_id = %s", users)
    db.execute("UPDATE entitlement.outbox_events SET aggregate_key = 'Zoe Quillfeather:sku' WHERE status = 'PENDING'")


@pytest.fixture
def target(servers: Servers, db: psycopg.Connection, broker: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a target whose rows, sessions, settings and logs hold the planted values."""
    plant(db)
    now = pd.Timestamp.now("UTC")
    for name in ("notification", "entitlement"):
        log = [
            f"{now - pd.Timedelta(seconds=n / 10):%Y-%m-%dT%H:%M:%S.%fZ} ERROR {t.text}" for n, t in enumerate(LINES)
        ]
        (tmp_path / f"{name}.log").write_text("\n".join(reversed(log)) + "\n", encoding="utf-8")
    urls = {k.removeprefix("RUNBOOK_").lower(): v for k, v in servers.env.items()}
    known = ("database_url", "nats_url", "nats_monitor_url")
    logs = ", ".join(f'{n} = "{tmp_path / n}.log"' for n in ("notification", "entitlement"))
    (tmp_path / "runbook.toml").write_text(
        "[targets.here]\n"
        + "".join(f'{name} = "env:HERE_{name.upper()}"\n' for name in known[:2])
        + f'nats_monitor_url = "{urls[known[2]]}"\n\n'
        + f'[targets.here.workloads]\nrunner = "supervisorctl"\nsupervisorctl = ["true"]\nlog_files = {{ {logs} }}\n'
    )
    db.execute(f"ALTER DATABASE {db.info.dbname} SET app.jwt_secret = 'hunter2-Kx9'")
    db.execute("ALTER ROLE miniserversystem SET app.owner = 'Zoe Quillfeather'")
    env = {k: v for k, v in os.environ.items() if not k.startswith("RUNBOOK_")}
    env |= {f"HERE_{name.upper()}": urls[name] for name in known[:2]} | {
        "RUNBOOK_CONFIG": str(tmp_path / "runbook.toml")
    }
    with a_lock_held_by_a_statement_with_values(servers):
        yield env
    db.execute(f"ALTER DATABASE {db.info.dbname} RESET app.jwt_secret")
    db.execute("ALTER ROLE miniserversystem RESET app.owner")


def test_no_planted_value_is_in_a_file_of_the_dossier(target: dict[str, str], tmp_path: Path) -> None:
    said = "user_id='Zoe Quillfeather' cannot log in, password=hunter2-Kx9, Authorization: Bearer P@ss-Wordy9!"
    where = ("--target", "here", "--incident", "INC-9")

    def run(*arguments: str) -> str:
        done = runbook(*arguments, env=target, cwd=tmp_path)
        return done.stdout + done.stderr

    told = run("run", "3", "4.1", "4.4", "5.1", *where, "--json")
    steps = {f["step"]: f for r in json.loads(told[: told.rindex("}") + 1])["runs"] for f in r["findings"]}
    told += run("note", "INC-9", said, "--target", "here")
    told += run("act", "restart", "notification", *where, "--approved-by", "Aoki", "--reason", said)
    told += run("dossier", "INC-9") + run("postmortem", "INC-9")

    files = [f for f in (tmp_path / "outputs" / "INC-9").rglob("*") if f.is_file() and f.name != ".salt"]
    assert {".ipynb", ".html", ".json", ".jsonl"} <= {f.suffix for f in files} and len(files) > 15
    text = {str(f): f.read_text(encoding="utf-8", errors="replace") for f in files} | {"screen": told}
    values = {value for line in LINES for value in line.planted}
    parts = {part for value in values for part in corpus.parts(value) if len(part) > 5} - COMMON
    left = {(name, part) for name, content in text.items() for part in parts if part in content}
    assert left == set()
    # It was read: the log, the sessions, the settings, the dead letters.
    seen = "".join(text.values())
    assert "app.jwt_secret" in seen and "UPDATE notification.notifications SET type = '...'" in seen
    assert "UNKNOWN" not in (steps["4.1.4"]["status"], steps["5.1.1"]["status"])
    assert "violates" in seen or "already exists" in seen
