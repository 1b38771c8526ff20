"""The room for queues, and `runbook new system`, on tables that are unlike those of any pack here."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import psycopg
import pytest

from runbook_lib.book import catalog, messages, pack, queries
from runbook_lib.cli import new
from runbook_lib.dossier import postmortem
from runbook_lib.model.finding import Reason, Status
from runbook_lib.notebook import testing
from runbook_lib.packs.queues.queue import Queue, room_query
from runbook_lib.view.queries import queries_of
from tests.kit import ROOT
from tests.kit.command import runbook
from tests.kit.rows import assert_fits, kinds_of_rows
from tests.kit.servers import Servers
from tests.kit.steps import failures, lock_wait, open_target, words
from tests.kit.systems import Said, ask_target, own_database

#: States as numbers, no lease, no owner.
PARCELS = """
CREATE SCHEMA shipping;
CREATE TABLE shipping.parcels (
    parcel bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    phase smallint NOT NULL DEFAULT 10,
    entered timestamptz NOT NULL DEFAULT now(),
    picked_at timestamptz,
    closed timestamptz,
    tries integer NOT NULL DEFAULT 0,
    trouble text
);
CREATE TABLE shipping.addresses (address bigint PRIMARY KEY, street text, changed timestamptz);
"""
OPTIONS = {
    "table": "shipping.parcels", "state": "phase", "waiting": "10", "working": "20", "done": "30", "failed": "40",
    "created": "entered", "finished": "closed", "error": "trouble",
}  # fmt: skip
#: A lease and an owner, states as an enum, and an odd spelling.
MAILS = """
CREATE TYPE mail_state AS ENUM ('Queued', 'Sending', 'Sent', 'Bounced', 'Paused');
CREATE TABLE "Mails" (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    status mail_state NOT NULL DEFAULT 'Queued',
    created_at timestamptz NOT NULL DEFAULT now(),
    run_at timestamptz,
    locked_until timestamptz,
    locked_by text,
    finished_at timestamp,
    attempts integer NOT NULL DEFAULT 0,
    last_error text
);
"""


ROOM = pack.load_room("runbook_lib.packs.queues")


@dataclass
class Database:
    """A database with such tables; its owner's session, and the address for the runbook."""

    owner: psycopg.Connection[Any]
    admin_url: str
    url: str

    def run(self, statement: str, *values: Any) -> None:
        self.owner.execute(statement.encode(), values or None)

    def parcels(self, n: int, age_s: float = 0, **columns: Any) -> None:
        """So many parcels of that age; `picked_s` and `closed_s` are ages too."""
        shown = {"phase": 10, "tries": 0, "trouble": None, "picked_s": None, "closed_s": None} | columns
        self.run(
            "INSERT INTO shipping.parcels (phase, entered, picked_at, closed, tries, trouble) "
            "SELECT %s, now() - %s * interval '1 s', now() - %s * interval '1 s', now() - %s * interval '1 s', %s, %s "
            "FROM generate_series(1, %s)",
            shown["phase"], age_s, shown["picked_s"], shown["closed_s"], shown["tries"], shown["trouble"], n,
        )  # fmt: skip

    def flows(self) -> None:
        """Parcels that were closed in each of the last seconds, one that waits, one in work."""
        for age in range(2, 62, 3):
            self.parcels(3, age + 4, phase=30, picked_s=age + 1, closed_s=age)
        self.parcels(1, 1)
        self.parcels(1, 5, phase=20, picked_s=4)


@pytest.fixture
def database(embedded: Servers, request: pytest.FixtureRequest) -> Iterator[Database]:
    with (
        own_database(embedded, request.node.name, PARCELS + MAILS, "shipping", "public") as (url, reader_url),
        psycopg.connect(url, autocommit=True) as owner,
    ):
        yield Database(owner, url, reader_url)


@pytest.fixture
def env(database: Database, tmp_path: Path) -> dict[str, str]:
    """What the command gets: no configuration, and this database."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RUNBOOK_")}
    return kept | {"RUNBOOK_DATABASE_URL": database.url, "HOME": str(tmp_path)}


def new_system(env: dict[str, str], folder: Path, **options: str) -> Any:
    given = [word for name, value in options.items() for word in (f"--{name}", value)]
    return runbook("new", "system", folder.name, *given, env=env, cwd=folder.parent)


@pytest.fixture
def parcels(database: Database, env: dict[str, str], tmp_path: Path) -> Iterator[Path]:
    """A pack that was made for the parcels, active."""
    made = new_system(env, tmp_path / "parcels", **OPTIONS)
    assert made.returncode == 0, made.stderr
    with pack.use_pack(tmp_path / "parcels"):
        yield tmp_path / "parcels"


def ask(database: Database, *sections: str, **facts: Any) -> Said:
    """What the steps of these sections say together (4.1 unless named)."""
    return ask_target({"database_url": database.url, **facts}, *(sections or ("4.1",)))


def test_an_idle_queue_is_ok(database: Database, parcels: Path) -> None:
    ask(database, "2", "3", "4.1", "6").expect(Status.OK, None, None, [])


def test_a_queue_that_flows_is_ok(database: Database, parcels: Path) -> None:
    database.flows()
    said, past = ask(database, "2", "3", "4.1", "6"), ask(database, "7").findings
    said.expect(Status.OK, None, None, [])
    assert said.findings["4.1.1"].value("queue.working") == 1
    assert past["7.1"].value("history.succeeded") == 60
    # No run of an incident is stored, and nobody has entered a measure.
    assert [past[step].status.name for step in ("7.2", "7.3", "7.4")] == ["UNKNOWN", "UNKNOWN", "WARNING"]
    drafted = postmortem.draft(past.values(), incident="INC", target="here", artifact=None, made="2026-01-31T03:00:00Z")
    assert "60 succeeded" in drafted and "| TTD |" in drafted
    told = set(said.findings["3.6"].frames["configuration"]["item"])
    assert {"server", "table shipping.parcels"} <= told and said.findings["3.6"].value("changes")


def test_rows_that_nobody_takes(database: Database, parcels: Path) -> None:
    for age in range(100, 160, 3):  # taken until a minute and a half ago
        database.parcels(3, age + 4, phase=30, picked_s=age + 1, closed_s=age)
    database.parcels(20, 95)
    ask(database, "3").expect(Status.WARNING, "worker", "FM-QW-01", ["restart_worker"])
    database.parcels(20, 400)
    said = ask(database, "3")
    said.expect(Status.CRITICAL, "worker", "FM-QW-01", ["restart_worker"])
    (recorded, _) = said.findings["3.5"].notes
    for told in ("stuck at worker; modes FM-QW-01", "objectives missed QUE-A; 40 rows wait", "proposed: kubectl"):
        assert told in messages.text(recorded, "en")


def test_a_row_that_is_held_while_nothing_else_moves(database: Database, parcels: Path) -> None:
    database.parcels(1, 2000, phase=20, picked_s=1990)
    database.parcels(20, 400)
    ask(database, "3").expect(Status.CRITICAL, "worker", "FM-QW-02", ["logs", "restart_worker"])


def test_a_row_that_is_held_while_others_flow(database: Database, parcels: Path) -> None:
    """It harms now, and only itself."""
    database.flows()
    database.parcels(1, 700, phase=20, picked_s=690)
    ask(database).expect(Status.WARNING, "worker", "FM-QW-02", ["see_held", "logs"])


def test_more_rows_arrive_than_end(database: Database, parcels: Path) -> None:
    database.flows()
    database.parcels(500, 200)
    ask(database).expect(Status.WARNING, "worker", "FM-QW-03", [])


def test_every_try_fails(database: Database, parcels: Path) -> None:
    database.parcels(5, 30, tries=3, trouble="connect to 10.0.0.7:443 refused")
    database.parcels(9, 40, phase=40, picked_s=21, closed_s=20, tries=5, trouble="connect to 10.0.0.8:443 refused")
    said = ask(database, "3")
    said.expect(Status.CRITICAL, "worker", "FM-QE-01", ["logs", "see_failing"])


def test_what_failed_and_is_over(database: Database, parcels: Path) -> None:
    database.flows()
    database.parcels(9, 200, phase=40, picked_s=199, closed_s=190, trouble="refused")
    ask(database).expect(Status.OK, None, None, [])


def test_a_poison_row(database: Database, parcels: Path) -> None:
    database.flows()
    database.parcels(1, 50, tries=9, trouble="no such street")
    ask(database).expect(Status.WARNING, None, "FM-QE-02", ["logs", "see_failing"])


def test_a_locked_table(database: Database, parcels: Path) -> None:
    database.parcels(20, 400)
    with psycopg.connect(database.admin_url) as holder:
        holder.execute("LOCK TABLE shipping.parcels IN ACCESS EXCLUSIVE MODE")
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(catalog, "load", _with_a_short_lock_wait(catalog.load))
            ask(database, "3").expect(Status.CRITICAL, "database", "FM-QD-01", ["end_blocker"])
        holder.rollback()


def test_locks_of_other_schemas_are_none_of_the_queue_s(database: Database, parcels: Path) -> None:
    with psycopg.connect(database.admin_url) as holder:
        holder.execute('LOCK TABLE public."Mails" IN SHARE MODE')
        with lock_wait(database.admin_url, 'DELETE FROM public."Mails"'):
            found = ask(database).findings["4.1.4"]
    assert found.value("locks.blocked_sessions") == 0 and found.frames["table_locks"].empty


def _with_a_short_lock_wait(load: Any) -> Any:
    """The documents with a limit that no test has to wait for."""
    return lambda: load().tuned({"locks.wait": "0.001 / 0.002 s", "locks.held": "0.001 / 0.002 s"})


def test_a_column_that_was_renamed(database: Database, parcels: Path) -> None:
    """No harm to the queue is seen, and nothing is called OK."""
    database.flows()
    database.run("ALTER TABLE shipping.parcels RENAME COLUMN closed TO ended")
    said = ask(database, "3")
    said.expect(Status.UNKNOWN, None, None, ["see_table"])
    assert "2" in said.verdict.next_sections
    assert ask(database, "2").findings["2.2"].headline.params["names"] == "closed"


def test_a_state_without_a_meaning_is_no_success(database: Database, parcels: Path) -> None:
    """Nobody counts its rows: of a table with numbers for states, the statistics know of it."""
    database.flows()
    database.parcels(9, 20, phase=50)
    database.run("ANALYZE shipping.parcels")
    findings = ask(database, "2").findings
    found = findings["2.2"]
    assert found.status is Status.WARNING and found.headline.params["states"] == "50"
    login, clocks = findings["2.1"], findings["2.3"]
    assert (login.value("postgres.unreadable"), login.frames["rights"]["table_name"].tolist()) == (
        0,
        ["shipping.parcels"],
    )
    assert clocks.status is Status.OK and clocks.value("clock.lease_share") is None


def test_what_a_table_cannot_tell_is_not_ok(database: Database, env: dict[str, str], tmp_path: Path) -> None:
    """No time, no failed state: late rows and failures are unknown, and so are rows in work."""
    bare = {"table": "shipping.parcels", "state": "phase", "waiting": "10", "working": "20"}
    none = dict.fromkeys(("created", "due", "started", "lease", "finished", "owner", "attempts", "error"), "-")
    made = new_system(env, tmp_path / "bare", **bare, **none)
    assert made.returncode == 0, made.stderr
    with pack.use_pack(tmp_path / "bare"):
        said = ask(database, "2", "4.1", "6", "7")
        assert said.findings["4.1.1"].status is Status.OK
        assert said.findings["4.1.3"].status is Status.UNKNOWN
        database.parcels(2, 900)
        database.parcels(2, 900, phase=20)
        said = ask(database, "3", "4.1", "6")
        assert {said.findings[step].status for step in ("3.1", "4.1.1", "4.1.2", "6.1", "6.3")} == {Status.UNKNOWN}


def test_a_start_that_no_column_has(database: Database, env: dict[str, str], tmp_path: Path) -> None:
    """A row in work is as old as its row at most; if others are taken in their order, it is held."""
    made = new_system(env, tmp_path / "guess", **OPTIONS, started="-")
    assert made.returncode == 0, made.stderr
    with pack.use_pack(tmp_path / "guess"):
        database.flows()
        ask(database).expect(Status.OK, None, None, [])
        database.parcels(1, 900, phase=20)
        ask(database).expect(Status.WARNING, "worker", "FM-QW-02", ["see_held", "logs"])
        database.parcels(1, 880)
        assert ask(database).findings["4.1.2"].status is not Status.OK


MAIL = Queue(
    table="public.Mails", id="id", state="status", waiting=("Queued",), working=("Sending",), done=("Sent",),
    failed=("failed",), aside=("Paused",), created="created_at", due="run_at", lease="locked_until", owner="locked_by",
    attempts="attempts", error="last_error", finished="finished_at",
)  # fmt: skip


@pytest.fixture
def mails(env: dict[str, str], database: Database, tmp_path: Path) -> Iterator[Path]:
    """A pack that was made for the mails without a single option but the table."""
    database.run("ALTER TYPE mail_state RENAME VALUE 'Bounced' TO 'failed'")
    made = new_system(env, tmp_path / "mails", table="public.Mails")
    assert made.returncode == 0, made.stderr
    assert "aside     Paused" in made.stdout and "started (no column)" in made.stdout
    with pack.use_pack(tmp_path / "mails"):
        yield tmp_path / "mails"


def test_an_expired_lease(database: Database, mails: Path) -> None:
    insert = (
        'INSERT INTO "Mails" (status, created_at, locked_until, locked_by) '
        "SELECT 'Sending', now() - interval '1 h', now() + %s * interval '1 s', 'mailer-' || g "
        "FROM generate_series(1, %s) g"
    )
    database.run(insert, 60, 2)
    ask(database, "2", "3", "4.1", "6").expect(Status.OK, None, None, [])
    database.run(insert, -100, 1)
    said = ask(database)
    said.expect(Status.WARNING, "worker", "FM-QW-02", ["see_held", "logs"])
    assert said.findings["4.1.2"].value("queue.expired") == 1 and said.findings["4.1.2"].value("queue.owners") == 2


def test_a_time_in_the_future_is_not_late(database: Database, mails: Path) -> None:
    database.run("""INSERT INTO "Mails" (created_at, run_at) VALUES (now() - interval '1 d', now() + interval '1 h')""")
    said = ask(database)
    said.expect(Status.OK, None, None, [])
    assert said.findings["4.1.1"].value("queue.later") == 1


def test_each_query_of_the_room_has_the_columns_of_its_rows(database: Database, mails: Path) -> None:
    rb = open_target("2", {"database_url": database.url})
    values = {
        "within_s": 300,
        "longest_s": 300,
        "overdue_s": 60,
        "table": MAIL.regclass,
        "columns": ["id"],
        "state": "status",
        "until": rb.as_of,
        "bucket_s": 60,
    }
    with rb.snapshot() as db:
        for file in (ROOM.folder / "sql" / "queues").glob("*.sql"):
            answer = db.ask(MAIL.query(file.stem), **values)
            assert_fits(f"queues/{file.stem}", answer, kinds_of_rows(ROOM))


def test_the_room_and_what_is_made_are_consistent(parcels: Path) -> None:
    """Also what the catalog leaves out of a room's documents where a pack lacks a step: nothing, where it has all."""
    assert testing.problems(parcels) == []
    steps = {step.id for section in catalog.load().sections.values() for step in section.steps}
    modes, slo = ((ROOM.folder / "docs" / f"{name}.md").read_text() for name in ("failure-modes", "slo"))
    named = re.findall(r"^- Told by: (.+)$", modes, re.MULTILINE) + re.findall(r"\| ([1-9]\.[\d., ]+) \|", slo)
    assert {step.strip() for words in named for step in words.split(",")} <= steps
    excluded = {name for words in re.findall(r"^- Excluded by: (.+)$", modes, re.M) for name in words.split(", ")} - {
        "-"
    }
    assert excluded <= {*catalog.load().observations}
    code = "".join(path.read_text() for path in ROOM.folder.rglob("*.py"))
    keys = messages.flat(tomllib.loads((ROOM.folder / "messages" / "en.toml").read_text()))
    built = ("hop.", "proposal.", "reach.", "backlog.", "over.", "history.changed_", "response.")
    assert [key for key in keys if f'"{key}"' not in code and not key.startswith(built)] == []


def test_names_are_quoted_and_read_as_names(database: Database) -> None:
    odd = Queue('public.a"b; --', id="id", state="the state", waiting=("it's",), error="o%k")
    text = odd.query("errors").sql
    assert '"a""b; --"' in text and "\"the state\" IN ('it''s')" in text and '"o%k"' in text
    wrong: list[dict[str, Any]] = [
        {"waiting": ()}, {"waiting": ("a",), "done": ("a",)}, {"waiting": (":a",)}, {"waiting": "a"},
        {"waiting": "q.a::text = 'a'"}, {"waiting": ("a",), "state": None},
        {"waiting": ("a",), "done": ("b",), "deleted_when_done": True},
    ]  # fmt: skip
    for each in wrong:
        with pytest.raises(ValueError, match=r"public\.t: "):
            Queue(**{"table": "public.t", "id": "id", "state": "s"} | each)
    said = Queue("t", id="id", state=None, waiting='q."b a" IS NULL', lease="q.c + interval '1 h'")
    assert said.names == ["b a", "c", "id"]


def test_a_step_shows_what_it_asks(parcels: Path) -> None:
    shown = queries_of("3.2")
    assert "queues/backlog" in [q.name for q in shown.sql] and '"shipping"."parcels"' in repr(shown)
    assert all("{" not in q.sql for q in shown.sql)
    assert "queues/backlog" not in queries.names() and "database/blocked" in queries.names()
    assert room_query("backlog").cost == "scan"


def test_a_row_of_the_system_replaces_that_of_the_room(database: Database, parcels: Path) -> None:
    (parcels / "docs" / "slo.md").write_text(
        "| Threshold | Warning | Critical | Unit | Steps | Why |\n|---|---|---|---|---|---|\n"
        "| `queue.oldest` | 1000 | 2000 | s | 4.1.1 | mails may wait |\n"
    )
    (parcels / "messages").mkdir()
    for lang in messages.LANGUAGES:
        (parcels / "messages" / f"{lang}.toml").write_text('[backlog]\nempty = "Nothing to send"\n')
    with pack.use_pack(parcels):
        limits = catalog.load().limits
        assert (limits["queue.oldest"].warning, limits["locks.wait"].warning) == (1000, 5)
        assert [*catalog.load().slos] == ["QUE-A", "QUE-B", "QUE-C"]
        assert words(ask(database).findings["4.1.1"]) == "Nothing to send"
        database.parcels(5, 400)
        ask(database).expect(Status.OK, None, None, [])


def test_objectives_of_a_system_replace_those_of_the_room() -> None:
    with pack.use_pack(ROOT / "examples" / "procrastinate"):
        assert [slo.number for slo in catalog.load().slos.values()] == [60, 99, 0]


def test_a_new_system_by_the_command(database: Database, env: dict[str, str], parcels: Path) -> None:
    """It runs at once, and sees what stops."""
    env = {**env, "RUNBOOK_CONFIG": "runbook.toml"}
    database.flows()
    ran = runbook("run", "2", "3", "4.1", "6", "--target", "parcels", env=env, cwd=parcels)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    database.run("DELETE FROM shipping.parcels")
    database.parcels(20, 400)
    ran = runbook("run", "2", "3", "4.1", "6", "--target", "parcels", "--json", env=env, cwd=parcels)
    assert ran.returncode == 2, ran.stderr
    assert json.loads(ran.stdout)["verdict"]["stuck_at"] == "worker"
    drafted = runbook("postmortem", "adhoc", "--target", "parcels", env=env, cwd=parcels)
    assert "postmortem.md" in drafted.stdout, drafted.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "several tables may be the queue: name it with --table (public.Mails, shipping.parcels)"),
        ({"table": "shipping.addresses"}, "which column is the state is not known"),
        (OPTIONS | {"state": "colour"}, "--state: the table has no column colour"),
        ({"table": "shipping.parcels", "state": "phase"}, "which values of phase mean 'waiting' is not known"),
        (OPTIONS | {"due": "trouble"}, "--due: trouble is of the type text"),
        ({"table": "shipping.none"}, "there is no table shipping.none with a time"),
    ],
)
def test_what_cannot_be_decided_is_one_line(
    database: Database, env: dict[str, str], tmp_path: Path, options: dict[str, str], said: str
) -> None:
    made = new_system(env, tmp_path / "some", **options)
    assert made.returncode != 0 and said in made.stderr and len(made.stderr.splitlines()) == 1
    assert not (tmp_path / "some").exists()


def test_a_state_that_nobody_mapped_is_an_error(database: Database, env: dict[str, str], tmp_path: Path) -> None:
    """It would be invisible."""
    database.run("ALTER TYPE mail_state ADD VALUE 'Quarantined'")
    made = new_system(env, tmp_path / "mails", table="public.Mails")
    assert made.returncode == 64 and "status means by Quarantined is not known" in made.stderr
    assert len(made.stderr.splitlines()) == 1 and not (tmp_path / "mails").exists()
    assert new_system(env, tmp_path / "mails", table="public.Mails", aside="Paused,Quarantined").returncode == 0


def test_an_expression_of_a_column_that_is_not_there(database: Database, env: dict[str, str], tmp_path: Path) -> None:
    made = new_system(env, tmp_path / "mails", table="public.Mails", lease="q.locked_til + interval '1 h'")
    assert made.returncode == 64 and "--lease: the table has no column locked_til" in made.stderr


def test_on_a_terminal_it_asks(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RUNBOOK_DATABASE_URL", database.url)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    answers = {"table": "shipping.parcels", "waiting": "10", "working": "20"}
    asked = []

    def prompt(question: str) -> str:
        asked.append(question)
        return next(answer for option, answer in answers.items() if f"--{option}" in question)

    monkeypatch.setattr("click.prompt", prompt)
    assert new.system.main(["asked"], standalone_mode=False) == 0
    assert len(asked) == 3 and "lease (no column)" in capsys.readouterr().out
    with pack.use_pack(tmp_path / "asked"):
        ask(database, "2", "3", "4.1").expect(Status.OK, None, None, [])


def test_connections_that_run_out(parcels: Path) -> None:
    none = pd.DataFrame({"pid": []})
    few = pd.DataFrame([{"sees_others": True, "used": 44, "max_connections": 45}])
    report = pd.DataFrame([{"application": "report", "state": "idle", "n": 40}])
    empty = dict.fromkeys(("blocked", "blockers", "holders", "table_locks"), none)
    found = testing.judge(parcels, "4.1.4", connections=few, sessions=report, **empty)
    assert (found.status, found.proposals[0].name) == (Status.CRITICAL, "end_sessions")
    assert next((s.about, s.observation) for s in found.signals) == ("database", "database.no_connections")
    hidden = empty | {"holders": pd.DataFrame([{"pid": 7, "transaction_s": None}])}
    found = testing.judge(parcels, "4.1.4", connections=few.assign(used=38), **hidden)
    assert (found.status, found.reason, found.headline.key) == (Status.UNKNOWN, Reason.NO_DATA, "database.denied")


def test_what_is_too_costly_for_a_table_is_a_note(parcels: Path) -> None:
    """It is so at each run: the rest is judged. What cannot be read now is no OK."""
    rows = pd.DataFrame([{"due": 0, "working": 0}])
    gated = failures(("too costly: flow", "postgres", "denied", "plan cost 90,000 is over the limit", "cost_gate"))
    found = testing.judge(parcels, "4.1.1", backlog=rows, not_read=gated)
    assert found.status is Status.OK and len(found.notes) == 1
    failed = failures(("flow", "postgres", "timeout", "canceling statement", "statement_timeout"))
    assert testing.judge(parcels, "4.1.1", backlog=rows, not_read=failed).status is Status.UNKNOWN


def test_a_folder_that_is_there_is_left_alone(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    made = new_system(env, tmp_path / "there")
    assert made.returncode != 0 and made.stderr == "runbook: there already exists\n"
    made = new_system({k: v for k, v in env.items() if k != "RUNBOOK_DATABASE_URL"}, tmp_path / "none")
    assert "RUNBOOK_DATABASE_URL is not set" in made.stderr
