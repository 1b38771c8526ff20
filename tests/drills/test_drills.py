"""Drills without a server: what a seed means, how verdicts and proposals are judged, and the page of many drills."""

from __future__ import annotations

import gzip
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from runbook_lib.book import catalog
from runbook_lib.gameday.cli import sandbox as sandbox_commands
from runbook_lib.gameday.sandbox.faults import CATALOGUE
from runbook_lib.model.usage import UsageError
from tests.drills import judge, play, report, results
from tests.drills.__main__ import drills, without_paths
from tests.drills.judge import Truth, changes, helped, took_effect, wilson
from tests.drills.probe import FlowSample
from tests.drills.scenario import LOADS, NOISES, Scenario, draw, round_of
from tests.kit import ROOT

KINDS = [fault.name for fault in CATALOGUE]
UNDONE = {fault.name for fault in CATALOGUE if fault.undoable}
RECORDED = Path(__file__).with_name("drills.jsonl.gz")
SEEDS = st.integers(0, 10**9)
NAMES = st.lists(st.text("abcdefgh_", min_size=1), min_size=1, max_size=60, unique=True)

# Scenarios --------------------------------------------------------------------------------------------------


@given(SEEDS, NAMES, st.floats(2, 600))
def test_a_scenario_is_the_same_for_the_same_seed_and_within_bounds(
    seed: int, kinds: list[str], longest: float
) -> None:
    drawn = draw(seed, kinds, longest)
    assert drawn == draw(seed, list(reversed(kinds)), longest)
    assert len(drawn.faults) <= 2 and {*drawn.faults} <= {*kinds} and len({*drawn.faults}) == len(drawn.faults)
    assert 2 <= drawn.look_after_s <= longest + 0.1
    assert drawn.load in LOADS and drawn.noise in ("", *NOISES) and 0.5 <= drawn.intensity <= 2
    assert drawn.faults or drawn.noise, "a drill without a fault has something that could be mistaken for one"


@given(st.integers(0, 10**6), NAMES)
def test_every_kind_comes_once_a_round(number: int, kinds: list[str]) -> None:
    n = round_of(kinds)
    drawn = [draw(seed, kinds) for seed in range(number * n, (number + 1) * n)]
    assert sorted(s.faults[0] for s in drawn if s.faults) == sorted(kinds)
    assert sum(not s.faults for s in drawn) == n - len(kinds) >= 1


def test_two_hundred_seeds_have_a_bit_of_everything() -> None:
    drawn = [draw(seed, KINDS) for seed in range(1000, 1200)]
    assert {s.load for s in drawn} == {*LOADS}
    assert {s.noise for s in drawn} == {"", *NOISES}
    assert 15 <= sum(len(s.faults) == 2 for s in drawn) <= 40
    assert sum(not s.faults for s in drawn) >= 20
    assert min(sum(s.faults[:1] == (kind,) for s in drawn) for kind in KINDS) >= 2


def test_of_plays_side_by_side_one_has_its_turn_and_the_end_of_all_ends_the_wait() -> None:
    lane, clock, within = threading.Lock(), play.DrillClock(), []

    def take() -> None:
        with clock.turn(lane):
            within.append(lane.locked())

    with ThreadPoolExecutor(2) as plays:
        with clock.turn(lane):
            waits = plays.submit(take)
            with pytest.raises(TimeoutError):
                waits.result(0.3)
        waits.result(5)
        assert (within, lane.locked()) == ([True], False)
        with clock.turn(lane):
            waits = plays.submit(take)
            clock.stop.set()
            with pytest.raises(play.Stopped):
                waits.result(5)
    assert (within, lane.locked()) == ([True], False)


def test_a_result_holds_no_path_of_the_machine() -> None:
    command = (
        f"{sys.executable} -m supervisor.supervisorctl -c {tempfile.gettempdir()}/drill-x/sandbox/supervisord.conf"
    )
    assert without_paths(command) == "python -m supervisor.supervisorctl -c drill-x/sandbox/supervisord.conf"
    told = gzip.decompress(RECORDED.read_bytes()).decode()
    assert not [path for path in (sys.prefix, "/tmp/", "/home/", "/root/") if path in told]


@pytest.mark.parametrize("name", ["drills.jsonl", "drills.jsonl.gz"])
def test_results_are_added_to_those_that_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    file, before = tmp_path / name, b'{"seed": 1}\n{"seed": 2, "scen'
    file.write_bytes(gzip.compress(before) if name.endswith(".gz") else before)
    monkeypatch.setattr(play, "drill", lambda scenario, *_: {"seed": scenario.seed, "error": "x"})
    monkeypatch.setattr(report, "describe_result", lambda line: "")
    done = CliRunner().invoke(drills, ["play", "--seeds", "3:4", "--results", str(file)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert [line["seed"] for line in results.read(file)] == [1, 3]
    written = file.read_bytes()
    results.write(file, results.read(file))
    assert file.read_bytes() == written


def test_a_damaged_file_of_results_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "drills.jsonl.gz").write_bytes(RECORDED.read_bytes()[:-9])
    with pytest.raises(UsageError, match="no whole gzip file"):
        results.read(tmp_path / "drills.jsonl.gz")


@pytest.mark.parametrize(
    ("settings", "restarted"),
    [
        (["NATS_URL=nats://x"], ("entitlement", "notification")),
        (["SANDBOX_RATE=20"], ()),
        (["NOTIFICATION__IMAGE=notification:4", "RECEIVER_DELAY=1s"], ("notification", "receiver")),
    ],
)
def test_what_a_setting_belongs_to_is_restarted(
    settings: list[str], restarted: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = MagicMock()
    monkeypatch.setattr(sandbox_commands, "_open_sandbox", lambda directory: opened)
    done = CliRunner().invoke(sandbox_commands.sandbox, ["set", *settings], catch_exceptions=False)
    assert done.exit_code == 0 and opened.restart.call_args.args == restarted
    assert ("restarted" in done.output) == bool(restarted)


def test_some_single_faults_that_can_be_undone_have_ended() -> None:
    ended = [s for s in (draw(seed, KINDS, undone=UNDONE) for seed in range(1000, 1400)) if s.ended_s]
    assert 10 <= len(ended) <= 45 and all(len(s.faults) == 1 and s.look_after_s <= 60 for s in ended)
    assert {name for s in ended for name in s.faults} <= UNDONE


def test_what_a_fault_allows_is_known_to_the_catalog() -> None:
    book = catalog.load()
    for name in (fault.name for fault in CATALOGUE):
        right = play.truth(draw(0, [name]) if draw(0, [name]).faults else draw(1, [name]), book)
        assert right and right.places <= {*book.places, None} and right.modes <= {*book.failure_modes}


def test_what_faults_that_have_ended_lost_for_good_may_be_told() -> None:
    book, ended = catalog.load(), Scenario(0, ("database_down",), 1.0, "steady", "", 9.0, ended_s=20.0)
    lost, whole = FlowSample(40.0, missing=1.0), FlowSample(40.0, missing=0.0)
    assert play.truth(ended, book, lost) == Truth(
        frozenset({"database", "subscriber"}), frozenset({"FM-DB-01", "FM-NATS-03"}), over=True
    )
    assert play.truth(ended, book, whole) == play.truth(ended, book)
    now = replace(ended, ended_s=0.0)
    assert play.truth(now, book, lost) == play.truth(now, book)


# Judging ----------------------------------------------------------------------------------------------------

WORKER = Truth(frozenset({"delivery_worker"}), frozenset({"FM-NOTI-06"}))
BLIND = Truth(frozenset({None}), frozenset())
DOUBLED = Truth(frozenset({None}), frozenset({"FM-NOTI-01"}))
OVER = Truth(WORKER.places, WORKER.modes, over=True)
RESTART = {"name": "restart_notification", "command": "supervisorctl -c f restart notification"}
LOGS = {"name": "logs", "command": "supervisorctl -c f tail notification"}


def verdict(stuck_at: str | None = None, mode: str = "", score: float = 0.9, **more: Any) -> dict[str, Any]:
    modes = [{"id": mode, "score": score}] if mode else []
    said: dict[str, Any] = {
        "status": "CRITICAL",
        "stuck_at": stuck_at,
        "confidence": "high",
        "undecided": [],
        "between": [],
    }
    return said | {"failure_modes": modes, "proposals": [], "look_again_s": None} | more


OK: dict[str, Any] = {"status": "OK"}
ONE_OF = ["delivery_worker", "receiver"]


@pytest.mark.parametrize(
    ("said", "truth", "place", "mode"),
    [
        (verdict("delivery_worker", "FM-NOTI-06"), WORKER, "right", "right"),
        (verdict("relay", "FM-NOTI-06"), WORKER, "wrong", "right"),
        (verdict("delivery_worker", "FM-DB-01"), WORKER, "right", "wrong"),
        (verdict("delivery_worker"), WORKER, "right", "undecided"),
        (verdict("delivery_worker", "FM-DB-01", 0.4), WORKER, "right", "undecided"),
        (verdict(mode="FM-NOTI-06", undecided=ONE_OF), WORKER, "undecided", "right"),
        (verdict(undecided=["relay", "database"]), WORKER, "wrong", "undecided"),
        (verdict("delivery_worker", "FM-DB-01", between=["FM-DB-01", "FM-NOTI-06"]), WORKER, "right", "undecided"),
        (verdict("delivery_worker", "FM-NOTI-06", between=["FM-DB-01", "FM-DB-02"]), WORKER, "right", "wrong"),
        (verdict(**OK), WORKER, "wrong", "wrong"),
        (verdict(**OK, look_again_s=20.0), WORKER, "undecided", "undecided"),
        (verdict(status="UNKNOWN"), WORKER, "undecided", "undecided"),
        (verdict(mode="FM-NOTI-01"), DOUBLED, "right", "right"),
        (verdict("subscriber", "FM-NOTI-01"), DOUBLED, "wrong", "right"),
        (verdict(mode="FM-NOTI-01", undecided=ONE_OF), DOUBLED, "undecided", "right"),
        (verdict(**OK), DOUBLED, "right", "wrong"),
        (verdict(status="UNKNOWN"), BLIND, "right", "right"),
        (verdict(status="UNKNOWN", undecided=ONE_OF), BLIND, "undecided", "undecided"),
        (verdict("database", status="UNKNOWN"), BLIND, "wrong", "wrong"),
        (verdict(**OK), BLIND, "wrong", "wrong"),
        (None, WORKER, "wrong", "wrong"),
        (verdict(**OK), OVER, "right", "right"),
        (verdict(**OK), Truth(frozenset({None}), frozenset(), over=True), "right", "right"),
        (verdict("delivery_worker", "FM-NOTI-06"), OVER, "right", "right"),
        (verdict("relay", "FM-OB-01"), OVER, "wrong", "wrong"),
        (verdict(**OK), None, "right", "right"),
        (verdict(status="WARNING"), None, "right", "right"),
        (verdict(status="WARNING", undecided=ONE_OF), None, "undecided", "undecided"),
        (verdict(status="CRITICAL"), None, "wrong", "wrong"),
        (verdict("relay", status="WARNING"), None, "wrong", "wrong"),
        (verdict(**OK, proposals=[LOGS]), None, "right", "right"),
        (verdict(**OK, proposals=[LOGS, RESTART]), None, "wrong", "wrong"),
    ],
)
def test_a_verdict_is_right_honest_or_wrong(said: Any, truth: Truth | None, place: str, mode: str) -> None:
    found = judge.judge(said, truth)
    assert (found.place, found.mode) == (place, mode)
    assert found.answer == next(a for a in ("wrong", "undecided", "right") if a in (place, mode))


@pytest.mark.parametrize(
    ("command", "changing"),
    [
        ("/v/bin/python -m supervisor.supervisorctl -c /s/supervisord.conf restart notification", True),
        ("/v/bin/python -m supervisor.supervisorctl -c /s/supervisord.conf tail notification", False),
        ("/v/bin/python -m supervisor.supervisorctl -c /s/supervisord.conf status", False),
        ("runbook sandbox set NOTIFICATION_DELIVERY_BATCH_SIZE=25", True),
        ("runbook act redrive outbox --target sandbox --incident E --limit 50 --approved-by NAME --reason TEXT", False),
        ("runbook act restart notification --execute", True),
        ("runbook run 4.4", False),
        ("kubectl -n ns rollout restart deploy/notification", True),
        ("kubectl -n ns set env deploy/notification A=1", True),
        ("kubectl -n ns set env deploy/notification --list", False),
        ("kubectl -n ns logs deploy/notification --since=15m", False),
        ("psql -d m -c 'SELECT pg_cancel_backend(12)'", True),
        ("psql -d m -c 'ALTER ROLE m RESET default_transaction_read_only'", True),
        ("psql -d m -c 'SELECT event_id FROM entitlement.outbox_events LIMIT 20'", False),
        ("nats stream info entitlement-events", False),
        ("nats stream edit entitlement-events --max-msgs=-1", True),
        ("date -u", False),
        ("something-new", True),
        ("", False),
    ],
)
def test_a_command_that_changes_something_is_told_from_one_that_looks(command: str, changing: bool) -> None:
    assert changes(command) is changing


FLOWS = FlowSample(30, 5, 5, 5, 5, waiting=5, oldest_s=1, retrying=0, lost=0, doubled=0, ahead_s=0)


def seen(**other: float | None) -> FlowSample:
    return FlowSample(**{**vars(FLOWS), **other})


STUCK = seen(sent=0, waiting=300, oldest_s=60)


@pytest.mark.parametrize(
    ("acted", "alone", "help_"),
    [
        (seen(sent=11, waiting=4), STUCK, "helps"),
        (STUCK, STUCK, "nothing"),
        (FLOWS, FLOWS, "nothing"),
        (seen(sent=4.8, waiting=9, oldest_s=1.9), FLOWS, "nothing"),
        (STUCK, FLOWS, "harms"),
        (seen(sent=11, waiting=4, lost=40), STUCK, "harms"),
        (seen(sent=11, waiting=4, doubled=40), STUCK, "harms"),
        (seen(created=0, sent=0, waiting=150), STUCK, "harms"),
        (FLOWS, seen(waiting=None, oldest_s=None, sent=0), "helps"),
        (seen(waiting=None, oldest_s=None, sent=0), FLOWS, "harms"),
        (seen(created=None, sent=None), FLOWS, "harms"),
        (seen(created=None), seen(created=None), "nothing"),
        # What was not taken in at all waits now, and helps those who ask.
        (seen(waiting=60, oldest_s=20), seen(created=0, sent=0, waiting=0), "helps"),
        (seen(created=0, sent=0, waiting=1, oldest_s=195), seen(created=0, sent=0, waiting=0, oldest_s=0), "nothing"),
        (seen(s=30, created=0.5, sent=0.5, waiting=1), seen(created=0.5, sent=0, waiting=20, oldest_s=40), "helps"),
        (seen(sent=0, waiting=90, doubled=2), seen(doubled=40), "helps"),  # held, so that nobody gets it twice
    ],
)
def test_help_is_seen_in_the_flow_of_two_sandboxes(acted: FlowSample, alone: FlowSample, help_: str) -> None:
    assert helped(acted, alone) == help_


@pytest.mark.parametrize(
    ("after", "effect"),
    [
        (FLOWS, ()),
        (seen(sent=4, waiting=30, oldest_s=9), ()),
        (STUCK, ("sent", "waiting", "oldest_s")),
        (seen(lost=1), ("lost",)),
        (seen(retrying=3), ("retrying",)),
        (seen(ahead_s=60), ("ahead_s",)),
        (seen(doubled=None), ("doubled",)),
        (seen(created=0), ("created",)),
    ],
)
def test_an_effect_is_seen_without_the_runbook(after: FlowSample, effect: tuple[str, ...]) -> None:
    assert took_effect(FLOWS, after) == effect


@given(st.integers(0, 500), st.integers(0, 500))
def test_wilson_s_bounds_are_around_the_share(hits: int, more: int) -> None:
    low, high = wilson(hits, hits + more)
    share = hits / (hits + more) if hits + more else 0.5
    assert 0 <= low <= share + 1e-9 and share - 1e-9 <= high <= 1


def test_the_page_is_what_the_results_say() -> None:
    files = [str(RECORDED), str(RECORDED.with_name("knobs.jsonl.gz"))]
    done = CliRunner().invoke(drills, ["report", *files], catch_exceptions=False)
    assert done.output == (ROOT / "docs" / "truth.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("seeds", ["", "5:5", "9:3", "-1", "a:b"])
def test_seeds_that_name_none_are_refused(seeds: str) -> None:
    done = CliRunner().invoke(drills, ["play", "--seeds", seeds])
    assert done.exit_code == 2 and "names no seeds" in done.output
