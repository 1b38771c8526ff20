"""What the packs say that each step asks, against what recordings say was asked."""

from __future__ import annotations

import tomllib
from collections import defaultdict

from runbook_lib.book import catalog, messages, pack
from runbook_lib.book import queries as questions
from runbook_lib.model.finding import say
from runbook_lib.store import recording
from runbook_lib.store.recording import SUFFIX
from runbook_lib.view.queries import FILE, psql, queries_of
from tests.kit import RECORDINGS

#: What a step may ask that no recording has: an earlier step of its section asked it, the role is at its limit, a
#: replica answers for the tables, or a throttle may be in force.
SHARED = {
    **{step: {"journey/registered"} for step in ("3.2", "4.4.3", "5.3.2", "6.5")},
    "4.1.2": {"alive/delivery", "journey/registered"},
    "4.1.4": {"alive/sessions"},
    "4.3.4": {"workloads environment", "workloads status"},
    "4.4.2": {"workloads environment", "workloads status"},
}
#: What the recordings were asked, by step, and is asked no more.
DROPPED = {
    "4.2.3": {
        "duplicates/published",
        "jetstream STREAM.INFO.entitlement-events",
        "jetstream STREAM.MSG.GET.entitlement-events",
    }
}
#: What the recordings were asked, by step, and what is asked in its place since.
REPLACED = {step: {"processed/activity": "notifications/registered"} for step in ("3.2", "4.1.2")}


def test_each_step_says_what_it_asks() -> None:
    """All that was ever asked, and nothing that never was; a connection is no query."""
    asked: dict[str, set[str]] = defaultdict(set)
    for path in RECORDINGS.glob(f"*{SUFFIX}"):
        if path.name.startswith("policy-"):
            continue
        for run in recording.read(path).runs.values():
            for finding in run.stored:
                names = {(q["source"], q["name"]) for q in finding["questions"]} - {("postgres", "connect")}
                since = REPLACED.get(finding["step"], {})
                asked[finding["step"]] |= {since.get(n, n) if s == "postgres" else f"{s} {n}" for s, n in names}
    own = pack.active_runbook().packs[0]
    declared = tomllib.loads((own.folder / FILE).read_text(encoding="utf-8"))
    assert {step: sorted(names - DROPPED.get(step, set())) for step, names in asked.items() if names} == {
        step: sorted({*names} - SHARED.get(step, set())) for step, names in declared.items() if asked[step]
    }
    assert declared.keys() <= {s.id for section in catalog.load().sections.values() for s in section.steps}


def test_a_query_is_shown_whole_and_ready_for_psql() -> None:
    shown = queries_of("4.1.1")
    (backlog,) = [q for q in shown.sql if q.name == "notifications/backlog"]
    assert f"**notifications/backlog** · cost: index · index: {backlog.index}" in shown.folded()
    assert psql(backlog).endswith(f"{backlog.sql};") and backlog.sql in repr(shown)
    assert list(shown.frame["name"]) == [q.name for q in shown.sql]
    assert r"\set since" in psql(questions.query("outbox/unprocessed"))
    with messages.using("ja"):
        nothing = queries_of("3.5")
    assert "psql" not in repr(shown) and len(nothing) == 0
    assert repr(nothing) == messages.text(say("ui.asks_nothing", step="3.5"), "ja")
