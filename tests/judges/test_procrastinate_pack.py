"""The pack of examples/procrastinate without a server: is it whole, do its judges answer whatever they are given?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runbook_lib.book import catalog, messages
from runbook_lib.checks.check import checks
from runbook_lib.checks.context import JudgeInput
from runbook_lib.model.finding import PROPOSAL_PARTS, Frames, Status, proposal_text
from runbook_lib.notebook import testing
from runbook_lib.sources.settings import facts_of
from tests.kit import ROOT, links
from tests.kit.effort import examples
from tests.kit.steps import charts_of, odd_frames

FOLDER = ROOT / "examples" / "procrastinate"


@pytest.fixture(autouse=True, scope="module")
def in_force() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNBOOK_CONFIG", str(FOLDER / "runbook.toml"))
        patch.setenv("RUNBOOK_DATABASE_URL", os.environ.get("RUNBOOK_DATABASE_URL", "postgresql://x@127.0.0.1/x"))
        yield


def test_the_pack_is_whole() -> None:
    assert testing.problems(FOLDER) == []


@pytest.mark.parametrize(
    "path", [*FOLDER.glob("*.md"), *FOLDER.glob("*/*.md"), *FOLDER.glob("*/*.ipynb")], ids=lambda p: p.name
)
def test_its_links_lead_somewhere(path: Path) -> None:
    assert links.problems(path) == []


def test_every_observation_is_said() -> None:
    """A headline, or one that stands for it, for whatever the judges see."""
    texts, said = messages.catalogue("en"), {"queue": "waits"}
    for name in catalog.load().observations:
        topic, _, what = name.partition(".")
        if topic in ("postgres", "database") or name in (
            "schema.missing",
            "task.succeeds",
            "queue.moves",
            "task.long_and_busy",
        ):
            continue
        key = f"{said.get(topic, topic)}.{what}"
        assert key in texts or key.rsplit("_", 1)[0] in texts or name == "task.long", name


def frame(*rows: dict[Any, Any]) -> pd.DataFrame:
    return pd.DataFrame(list(rows))


NOW = pd.Timestamp.now("UTC")

#: A worker that died with the first of a line in its hands, and one that is at work.
LOOK: Frames = {
    "queues": frame(
        {"queue": "default", "due": 3, "oldest_due_s": 90.0, "behind": 2, "oldest_behind_s": 90.0, "later": 1,
         "tried": 1, "doing": 2, "served": 1, "begun_s": 95.0, "taken_by_living": True},
    ),
    "workers": frame({"worker": 2, "silent_s": 4.0, "doing": 1}, {"worker": 1, "silent_s": 120.0, "doing": 1}),
    "doing": frame(
        {"job": 1, "queue": "default", "task": "app.work", "attempts": 0, "abort_requested": False, "worker": 1,
         "silent_s": 120.0, "running_s": 200.0, "behind": 2},
        {"job": 7, "queue": "default", "task": "app.work", "attempts": 0, "abort_requested": False, "worker": 2,
         "silent_s": 4.0, "running_s": 20.0, "behind": 0},
    ),
    "sessions": frame(
        {"standby": False, "sees_others": True, "may_listen": 1, "listens": 0, "used": 9, "usable": 95}
    ),
    "holders": frame(
        {"pid": 9, "application": "admin", "state": "idle in transaction", "mode": "RowShareLock",
         "transaction_s": 3.0, "query": "SELECT"}
    ),
    "flow": frame({"tens_ago": 0, "deferred": 1, "begun": 1, "succeeded": 1, "retried": 0, "failed": 0}),
    "tasks": frame(
        {"task": "app.work", "begun": 4, "succeeded": 1, "retried": 3, "put_back": 1, "failed": 1, "last_failed_s": 9.0}
    ),
    "heads": frame(
        {"job": 1, "queue": "default", "task": "app.work", "state": "doing", "attempts": 0, "behind": 2,
         "oldest_behind_s": 90.0, "begins_in_s": None}
    ),
    "blocked": frame({"pid": 3, "wait_s": 7.0, "blocked_by": "9", "mode": "RowExclusiveLock", "object": "x",
                      "application": "-", "query": "UPDATE"}),
    "blockers": frame({"pid": 9, "application": "admin", "role": "x", "state": "idle in transaction", "blocks": 1,
                       "transaction_s": 8.0, "query": "SELECT"}),
    "connections": frame({"max_connections": 100, "superuser_reserved": 3, "sees_others": True, "used": 9}),
    "table_locks": frame().reindex(columns=["pid", "transaction_s"]),
    "server": frame({"version": "16.4", "role": "runbook", "database": "shop", "monitor": True}),
    "rights": frame({"table_name": "public.procrastinate_jobs", "may_read": True, "may_write": False}),
    "table": frame({"name": "status", "has_table": True, "is_there": True, "is_readable": True, "type": "text"}),
    "clocks": frame({"clock": "postgres", "against": "here", "ahead_s": 0.1, "error_s": 0.01}),
    "instances": frame({"name": "worker", "ready": True, "started": NOW - pd.Timedelta(seconds=60)}),
    "proposed": frame({"command": "x", "section": "4.1"}),
}  # fmt: skip

#: Nothing is known of the workers' processes.
UNSEEN: Frames = {name: f for name, f in LOOK.items() if name != "instances"}

STEPS = [s for section in ("2", "3", "4.1", "4.2", "6") for s in (f"{section}.{n}" for n in range(1, 5))]


def sessions(**changes: Any) -> Frames:
    return {"sessions": frame(LOOK["sessions"].iloc[0].to_dict() | changes)}


def usual(**facts: Any) -> JudgeInput:
    return JudgeInput(catalog.load(), NOW, 60, facts_of(facts))


@pytest.mark.parametrize("step", [s for s in STEPS if s not in ("3.4", "4.2.4")])
@given(data=st.data())
@settings(max_examples=examples(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_judges_are_total(step: str, data: st.DataObject) -> None:
    """They answer for missing and empty frames and odd numbers, in words, and never with OK for what was not seen."""
    frames = data.draw(odd_frames(LOOK))
    found = checks()[step].finding(frames, usual())
    for lang in messages.LANGUAGES:
        for text in (found.headline, *found.notes):
            messages.text(text, lang)
        for p in found.proposals:
            for part in PROPOSAL_PARTS:
                messages.text(proposal_text(p, part), lang)
    charts_of(step, frames, usual())


@pytest.mark.parametrize("step", [s for s in STEPS if s not in ("3.4", "4.2.4")])
def test_nothing_is_not_green(step: str) -> None:
    assert checks()[step].finding({}, usual()).status is not Status.OK


def test_a_wait_that_is_hidden_from_the_role_is_no_zero_and_accuses_nobody() -> None:
    """Without the right to see others, how long they wait or hold is NULL."""
    hidden = {"blocked": LOOK["blocked"].assign(wait_s=None), "holders": LOOK["holders"].assign(transaction_s=None)}
    found = checks()["4.1.4"].finding(LOOK | hidden, usual())
    assert (found.status, found.value("locks.wait"), found.value("transactions.held")) == (Status.UNKNOWN, None, None)
    assert found.signals == () and found.proposals == ()
    queues = checks()["4.1.1"].finding(LOOK | hidden, usual())
    assert "end_blocker" not in {p.name for p in queues.proposals}


@pytest.mark.parametrize("frame", ["blocked", "blockers", "holders", "connections", "table_locks"])
def test_what_was_not_asked_of_the_database_is_unknown(frame: str) -> None:
    frames = {name: f for name, f in LOOK.items() if name != frame}
    assert checks()["4.1.4"].finding(frames, usual()).status is Status.UNKNOWN


def test_a_job_in_the_hands_of_the_dead_is_put_back_and_no_other() -> None:
    found = checks()["4.2.1"].finding(LOOK, usual())
    assert (found.status, [p.name for p in found.proposals]) == (Status.CRITICAL, ["retry_orphans"])
    assert "j.id IN (1)" in found.proposals[0].command


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"listens": 2, "may_listen": 2}, "jobs.of_connected"),
        ({"may_listen": 2}, "jobs.of_unseen"),
        ({"sees_others": False}, "jobs.of_unseen"),
        ({"standby": True, "may_listen": 0}, "jobs.of_unseen"),
        ({}, "jobs.likely_abandoned"),
    ],
)
def test_what_the_sessions_say_of_a_silent_worker(change: dict[str, Any], said: str) -> None:
    found = checks()["4.2.1"].finding(UNSEEN | sessions(**change), usual())
    assert found.headline.key == said
    assert [p.name for p in found.proposals][:1] != ["retry_orphans"]


@pytest.mark.parametrize(
    ("frames", "facts", "said"),
    [
        (sessions(may_listen=2), {"application": "worker"}, "jobs.of_connected"),  # others ask a SELECT 1 as well
        ({}, {"longest_job_s": 150}, "jobs.abandoned"),  # older than any job that is well
        ({}, {"grace_s": 600}, "jobs.of_ending"),  # a worker gets its grace
        ({}, {"listens": False}, "jobs.of_unseen"),  # workers that do not listen leave it open
    ],
)
def test_what_the_facts_of_a_target_say_of_a_silent_worker(frames: Frames, facts: dict[str, Any], said: str) -> None:
    assert checks()["4.2.1"].finding(UNSEEN | frames, usual(**facts)).headline.key == said


@pytest.mark.parametrize(
    ("started_s_ago", "said"), [((), "jobs.abandoned"), ((60,), "jobs.abandoned"), ((60, 900), "jobs.likely_abandoned"),
                                ((197,), "jobs.likely_abandoned"), ((None,), "jobs.likely_abandoned")]
)  # fmt: skip
def test_what_the_processes_say_of_a_silent_worker(started_s_ago: tuple[int | None, ...], said: str) -> None:
    """The job was begun 200 s ago: a process that is younger, by more than clocks differ, does not have it."""
    found = [
        {"name": "worker", "ready": True, "started": None if s is None else NOW - pd.Timedelta(seconds=s)}
        for s in started_s_ago
    ]
    instances = pd.DataFrame(found, columns=["name", "ready", "started"])
    assert checks()["4.2.1"].finding(LOOK | {"instances": instances}, usual()).headline.key == said


def test_no_restart_where_it_would_find_no_connection() -> None:
    nobody = LOOK | {name: LOOK[name].iloc[:0] for name in ("workers", "doing", "instances")}
    assert [p.name for p in checks()["4.1.2"].finding(nobody, usual()).proposals] == ["restart_worker"]
    assert checks()["4.1.2"].finding(nobody | sessions(used=95), usual()).proposals == ()
