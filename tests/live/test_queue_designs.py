"""Queues as others designed them (tests/data/queue_designs.toml): `runbook new system`, and what the room says then."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from runbook_lib.book import pack
from runbook_lib.model.finding import Status
from runbook_lib.packs.queues.queue import Events, Queue
from tests.kit.command import runbook
from tests.kit.servers import Servers
from tests.kit.steps import words
from tests.kit.systems import Said, ask_target, own_database

DESIGNS = tomllib.loads((Path(__file__).parents[1] / "data" / "queue_designs.toml").read_text(encoding="utf-8"))


class Design:
    """A database with the tables of one design, and a pack that was made for it."""

    def __init__(self, name: str, url: str, reader_url: str, folder: Path) -> None:
        self.facts, self.reader_url, self.folder = DESIGNS[name], reader_url, folder
        self.owner = psycopg.connect(url, autocommit=True)

    def make(self, **options: str) -> Any:
        given = [w for name, value in (self.facts["options"] | options).items() for w in (f"--{name}", value)]
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RUNBOOK_")}
        env = kept | {"RUNBOOK_DATABASE_URL": self.reader_url, "HOME": str(self.folder.parent)}
        deleted = ["--deleted-when-done"] if self.facts.get("deleted") else []
        return runbook("new", "system", self.folder.name, *given, *deleted, env=env, cwd=self.folder.parent)

    def add(self, what: str, n: int = 1, age: float = 0) -> None:
        for _ in range(n):
            self.owner.execute(self.facts[what].format(age=age).encode())

    def headline(self, said: Said, step: str) -> str:
        with pack.use_pack(self.folder):
            return words(said.findings[step])

    def ask(self, *sections: str) -> Said:
        with pack.use_pack(self.folder):
            return ask_target({"database_url": self.reader_url}, *sections)


@pytest.fixture(params=DESIGNS)
def design(embedded: Servers, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Design]:
    name = request.param
    facts = DESIGNS[name]
    with own_database(embedded, name, facts["tables"], facts.get("schema", "public")) as (url, reader_url):
        made = Design(name, url, reader_url, tmp_path / name)
        with made.owner:
            yield made


def test_a_pack_is_made_and_tells_what_happens(design: Design) -> None:
    """It is well when nothing waits, and names who stopped; what is due later is not late."""
    made = design.make()
    assert made.returncode == 0, made.stderr
    with pack.use_pack(design.folder):
        queue: Queue = pack.active_runbook().packs[0].get("checks:QUEUE")
    found = {role: getattr(queue, role) for role in design.facts["found"]}
    assert {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()} == design.facts["found"]
    said = design.ask("2", "3", "4.1", "6")
    said.expect(Status.OK, None, None, [])
    design.add("waits", 3, age=-600)
    said = design.ask("3", "4.1")
    assert said.verdict.stuck_at is None and said.findings["4.1.1"].value("queue.oldest") in (0, None)
    design.add("waits", 20, age=400)
    said = design.ask("3")
    said.expect(None, "worker", "FM-QW-01")
    assert said.verdict.status in (Status.WARNING, Status.CRITICAL)
    if "held" in design.facts:
        design.add("held")
        said = design.ask("4.1")
        said.expect(None, "worker", "FM-QW-02")
    if "fails" in design.facts:
        design.add("fails", 8)
        assert "no such street" in design.headline(design.ask("4.1"), "4.1.3")


@pytest.mark.parametrize("design", ["river"], indirect=True)
def test_a_queue_of_the_table_that_nobody_takes_from(design: Design) -> None:
    """Others flow, so the workers are up; only the late rows of one queue have nobody."""
    assert design.make().returncode == 0
    ended = "INSERT INTO river_job (max_attempts, kind, state, attempted_at, finalized_at) "
    design.owner.execute(f"{ended} SELECT 25, 'mail', 'completed', now(), now() FROM generate_series(1, 40)".encode())
    design.ask("3").expect(Status.OK, None, None, [])
    late = "INSERT INTO river_job (max_attempts, kind, queue, scheduled_at, created_at) "
    ago = "now() - interval '400 s'"
    design.owner.execute(f"{late} SELECT 25, 'mail', 'reports', {ago}, {ago} FROM generate_series(1, 9)".encode())
    said = design.ask("4.1")
    said.expect(Status.CRITICAL, "worker", "FM-QW-01", ["logs"])
    assert "'reports'" in design.headline(said, "4.1.2") and said.findings["4.1.2"].headline.key == "takers.passed_over"
    design.owner.execute(
        b"UPDATE river_job SET state = 'running', attempted_at = now() WHERE id % 9 = 0 AND queue = 'reports'"
    )
    assert design.ask("4.1").findings["4.1.2"].headline.key != "takers.passed_over"


@pytest.mark.parametrize("design", ["procrastinate"], indirect=True)
def test_events_in_a_second_table_tell_the_flow(design: Design) -> None:
    events = Events(
        "procrastinate_events", "type", "at", arrived=("deferred",), succeeded=("succeeded",), failed=("failed",)
    )
    queue = Queue("procrastinate_jobs", id="id", state="status", waiting=("todo",), events=events)
    assert queue.tells("arrived") and queue.tells("succeeded")
    for kind, n in {"deferred": 3, "started": 5, "succeeded": 2, "failed": 1}.items():
        insert = "INSERT INTO procrastinate_events (job_id, type) SELECT g, %s FROM generate_series(1, %s) g"
        design.owner.execute(insert.encode(), (kind, n))
    query = queue.query("flow").sql.replace(":within_s", "60")
    assert design.owner.execute(query.encode()).fetchall() == [(0, 3, 2, 1)]
