"""Drills without a server: what a seed means, how verdicts and proposals are judged, and the page of many drills."""

from __future__ import annotations

import gzip
import json
import random
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from nats.js.api import DiscardPolicy

from runbook_lib.book import catalog
from runbook_lib.gameday.cli import sandbox as sandbox_commands
from runbook_lib.gameday.sandbox.faults import CATALOGUE, TABLES
from runbook_lib.gameday.sandbox.state import Addresses
from runbook_lib.model.usage import UsageError
from tests.drills import judge, knobs, people, play, report, results
from tests.drills.__main__ import drills, without_paths
from tests.drills.judge import Truth, changes, helped, took_effect, wilson
from tests.drills.probe import FlowSample
from tests.drills.report import judged
from tests.drills.scenario import LOADS, NOISES, Scenario, draw, round_of

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


# Knobs ------------------------------------------------------------------------------------------------------


def setting(name: str, kind: str, context: str = "user", category: str = "Autovacuum", **more: Any) -> dict[str, Any]:
    row = {"name": name, "vartype": kind, "context": context, "category": category, "unit": None, "setting": "10"}
    return {**row, "min_val": "-1", "max_val": "1000", "enumvals": ["on", "off", "10"], **more}


SETTINGS = [
    setting("a", "bool", "sighup", setting="off"),
    setting("b", "enum", "superuser"),
    setting("c", "real"),
    setting("d", "integer", unit="8kB", max_val="2000000000"),
    setting("e", "string"),
    setting("f", "integer", "postmaster"),
]
FIXED = [
    setting("port", "integer", "postmaster"),
    setting("g", "integer", "internal"),
    setting("listen_addresses", "string", "postmaster"),
    setting("log_directory", "string", "sighup", "Reporting and Logging / Where to Log"),
    setting("ssl_key_file", "string", "sighup", "Connections and Authentication / SSL"),
]
OBJECT = {"item": "notification.notifications", "value": "drop index i", "words": ["i"], "do": ["1"]}
CONFIG = {"name": "s", "max_age": 0.0, "subjects": ["a"], "sealed": False, "discard": DiscardPolicy.OLD, "mirror": None}
VARIABLES = {**knobs.read_defaults(), "NATS_URL": "nats://app:secret@127.0.0.1:4222", "SANDBOX_RATE": "5"}
TURNABLE = [
    *knobs.list_settings([*SETTINGS, *FIXED]),
    *knobs.list_objects([{**OBJECT, "kind": kind} for kind in ("privilege", "schema")]),
    *knobs.list_fields("stream", CONFIG),
    *knobs.list_fields("consumer", {"durable_name": "c", "max_deliver": 10, "filter_subject": "a"}),
    *knobs.list_variables(VARIABLES),
    *knobs.list_signals({"nats": [""], "notification": ["", "subscriber", "worker"]}),
    *knobs.list_fields("broker", {"port": 1, "max_payload": 1048576, "ping_interval": "120s"}),
    *knobs.list_denials(["a", "$JS.API.>"]),
    *knobs.list_network_rules(),
    *knobs.list_people(),
]


def test_the_knobs_of_a_seed_are_the_same_and_of_every_kind() -> None:
    drawn = [next(knobs.draw(seed, TURNABLE)) for seed in range(800)]
    assert drawn == [next(knobs.draw(seed, TURNABLE)) for seed in range(800)]
    assert all(turned[0].kind == knobs.KINDS[seed % len(knobs.KINDS)] for seed, turned in enumerate(drawn))
    assert 150 < sum(len({knob.kind for knob in turned}) == 2 for turned in drawn) < 250
    every = [knob for turned in drawn for knob in turned]
    assert {knob.item for knob in every if knob.kind == "setting"} == {row["name"] for row in SETTINGS}
    assert {knob.item for knob in every if knob.kind == "stream"} == {"max_age", "subjects", "sealed", "discard"}
    assert {knob.kind for knob in every if not knob.words} - {"person"} == {"process", "receiver", "network"}, (
        "what no text can name"
    )
    assert {p for knob in every for p in knob.places} == {None, *catalog.load().places}
    assert all("secret" not in knob.value and knob.item != "SANDBOX_RATE" for knob in every)


@pytest.mark.parametrize(
    ("row", "values"),
    [
        (SETTINGS[0], ["on"]),
        (SETTINGS[1], ["on", "off"]),
        (SETTINGS[2], ["-1", "1", "100", "1000"]),
        (SETTINGS[3], ["-1", "1", "100", "32768"]),  # 256 MiB
        (SETTINGS[5], ["-1", "1", "100"]),
    ],
)
def test_values_of_a_setting_are_other_ones_within_its_type_and_bounds(row: dict[str, Any], values: list[str]) -> None:
    assert knobs.values(row) == values


def test_variables_are_those_that_the_programs_read() -> None:
    defaults = knobs.read_defaults()
    tables = (*TABLES.values(), *people.TABLES.values())
    set_by_faults = {name for table in tables for name in table.get("settings", {}) if "__" not in name}
    assert set_by_faults <= {*defaults} and not [name for name in defaults if "{" in name]
    assert all(value != defaults[name] for name in defaults for value in knobs.vary(defaults[name], name))


@pytest.mark.parametrize(
    ("changes", "taken"),
    [
        ({"max_payload": 100, "ping_interval": "1s"}, True),
        ({"app": {"permissions": {"publish": {"deny": "x.>"}}}}, True),
        ({"connections": 1}, False),
        ({"max_payload": "many"}, False),
    ],
)
def test_the_broker_says_which_fields_it_takes(changes: dict[str, Any], taken: bool) -> None:
    assert knobs.takes(Addresses.choose(), **changes) is taken


def play_of(said: Any, after: FlowSample, at_look: FlowSample | None = None, *texts: str) -> dict[str, Any]:
    turned = {
        "kind": "consumer",
        "item": "max_deliver",
        "value": "1",
        "places": ["subscriber"],
        "words": ["max_deliver", "1"],
    }
    flows = {"before": FLOWS, "seen": at_look or after, "acted": after, "alone": after}
    told = {"knobs": [turned], "verdict": said, "headline": "why", "said": texts, "seconds": 7.0, "proposal": None}
    return {
        "seed": 1,
        "version": "1.0",
        "scenario": asdict(knobs.scenario(1)),
        **told,
        **{name: vars(flow) for name, flow in flows.items()},
    }


TWICE = replace(FLOWS, doubled=2.0, again=0.0)
HERE, ELSEWHERE, AMONG = verdict("subscriber"), verdict("relay"), verdict(undecided=["jetstream", "subscriber"])


@pytest.mark.parametrize(
    ("played", "answer", "sure"),
    [
        (play_of(HERE, STUCK), "right", False),
        (play_of(ELSEWHERE, STUCK), "wrong", True),
        (play_of({**ELSEWHERE, "confidence": "low"}, STUCK), "wrong", False),
        (play_of(AMONG, STUCK), "undecided", False),
        (play_of(verdict(**OK), STUCK), "wrong", True),
        (play_of(verdict(**OK, confidence="low"), STUCK, STUCK, "consumer: max_deliver changed to 1"), "right", False),
        (play_of(verdict(**OK, confidence="low"), STUCK, STUCK, "max_deliver changed"), "wrong", False),
        (play_of(verdict(**OK), STUCK, FLOWS), "right", False),  # it hurts later
        (play_of(verdict(**OK), FLOWS, STUCK), "right", False),  # it is over
        (play_of(verdict(**OK), TWICE, TWICE), "right", False),  # what was received twice stays so
        (play_of(ELSEWHERE, FLOWS, STUCK), "wrong", True),
        (play_of(HERE, FLOWS), "wrong", True),
        (play_of(verdict(status="WARNING"), FLOWS), "right", False),
        (play_of(None, STUCK), "wrong", False),
        (play_of(HERE, STUCK) | {"proposal": RESTART}, "right", True),  # and it does nothing
    ],
)
def test_a_play_is_judged_by_the_place_and_the_name_of_what_was_turned(
    played: dict[str, Any], answer: str, sure: bool
) -> None:
    found = judged(played)
    assert (found.answer, found.sure) == (answer, sure)


def test_the_page_of_knobs_has_a_row_by_kind_and_what_is_not_right(tmp_path: Path) -> None:
    plays = [
        play_of(HERE, STUCK),
        play_of(ELSEWHERE, STUCK) | {"seed": 2, "cause": "a person's word"},
        {"seed": 3, "error": "it did not come up"},
        play_of(AMONG, STUCK, STUCK, "max_deliver is 1") | {"seed": 4},
        *(play_of(said, FLOWS) | {"seed": seed} for seed, said in ((5, HERE), (6, verdict(**OK)))),
    ]
    results.write(tmp_path / "knobs.jsonl", plays)
    page = CliRunner().invoke(drills, ["report", str(tmp_path / "knobs.jsonl")], catch_exceptions=False).output
    assert "| consumer | 5 | 2 | 2 | 0 | 1 | 2 |" in page and "| all | 5 | 2 | 2 |" in page
    assert "| right or undecided | 2 of 3 (67%) |" in page
    assert "| names what was changed, where a text can | 1 of 3" in page
    assert "| alarms without an effect | 1 of 2 (50%) |" in page and "seeds 1 to 6: 6 played, 3 with" in page
    turned = "consumer max_deliver: 1"
    assert page.endswith(
        f"Not right\n\n- *wrong*, a person's word: {turned} (seed 2)\n- *wrong*, unknown: {turned} (seed 5)\n"
    )


def test_results_of_drills_and_of_knobs_are_one_page(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("knobs.jsonl", "drills.jsonl")]
    results.write(files[0], [play_of(HERE, STUCK)])
    results.write(files[1], LINES)
    done = CliRunner().invoke(drills, ["report", *map(str, files)], catch_exceptions=False)
    headings = [line for line in done.output.splitlines() if line.startswith("#")]
    assert headings == ["# What the drills show", "## Not right", "## Knobs", "### Not right"]


# The page ---------------------------------------------------------------------------------------------------


def line(
    seed: int, said: Any, *faults: str, alone: FlowSample = STUCK, acted: FlowSample | None = None, noise: str = ""
) -> dict[str, Any]:
    """A line of the results; with `acted`, its restart was carried out."""
    scenario = {"seed": seed, "faults": faults, "intensity": 1.0, "load": "steady", "noise": noise, "look_after_s": 9.0}
    truth = {"places": [*WORKER.places], "modes": [*WORKER.modes]} if faults else None
    return {
        "seed": seed,
        "version": "1.0",
        "scenario": scenario,
        "problems": [],
        "truth": truth,
        "verdict": said,
        "headline": "why",
        "seconds": 7.0 + seed,
        "proposal": {**RESTART, "exit": 0} if acted else None,
        "before": vars(FLOWS),
        "acted": vars(acted or alone),
        "alone": vars(alone),
    }


RIGHT = verdict("delivery_worker", "FM-NOTI-06")
LINES = [
    line(1, RIGHT, "worker_stopped", acted=FLOWS),
    line(2, verdict("relay", "FM-OB-01"), "worker_stopped", acted=STUCK) | {"cause": "a person's word"},
    line(3, verdict(undecided=ONE_OF, confidence="low"), "worker_hung"),
    line(4, RIGHT, "worker_stopped", alone=FLOWS),
    line(5, verdict(**OK), alone=FLOWS, noise="deploy"),
    line(6, RIGHT, alone=FLOWS, noise="backup"),
    {"seed": 7, "scenario": {}, "error": "the sandbox did not come up"},
    {"seed": 8, "scenario": {}, "error": "for the first time"},
    line(8, RIGHT, "worker_stopped", "relay_stopped"),
]


def test_the_page_of_many_drills() -> None:
    page = report.report(LINES)
    assert "seeds 1 to 8: 8 played, 4 with a fault that took effect, 2 without a fault" in page
    assert "| right | 2 of 4 (50%) |" in page and "| undecided | 1 of 4 (25%) |" in page
    assert "| *high* is right | 2 of 3 (67%), lower bound 21% |" in page
    assert "| proposals of *high* confidence that do nothing | 1 | 0 |" in page
    assert "| alarms without a fault | 1 of 2 (50%) | 0 |" in page
    assert "- *wrong*, a person's word: worker_stopped (seed 2)" in page and "(seed 1)" not in page
    assert "- *undecided*, unknown: worker_hung (seed 3)" in page and "- *wrong*, unknown: no fault (seed 6)" in page


@pytest.mark.parametrize(
    ("number", "part"),
    [
        (
            0,
            "1: worker_stopped (flow: sent, waiting, oldest_s, steady, first look after 9 s): right, confidence high, ",
        ),
        (3, "; no effect, so it does not count"),
        (6, "7: no fault: could not be played: the sandbox did not come up"),
    ],
)
def test_who_waits_reads_the_result_of_each_play(number: int, part: str) -> None:
    assert part in report.describe_result(LINES[number])


def test_the_page_depends_on_the_lines_alone() -> None:
    once = [each for each in LINES if each.get("error") != "for the first time"]
    shuffled = random.Random(3).sample(once, len(once))
    assert report.report(json.loads(json.dumps(shuffled))) == report.report(LINES)


def test_the_page_says_of_how_many_states_of_the_code_it_is() -> None:
    old, new = ([each | {"code": code} for each in LINES if "error" not in each] for code in ("aaaa", "bbbb"))
    assert "several states of the code" in report.report([*old[:2], *new[2:]])
    assert "code bbbb, seeds" in report.report(new)
    assert len(play._digest_of_code()) == 8


def test_the_command_writes_the_page_and_reads_whole_lines_only(tmp_path: Path) -> None:
    results, page = tmp_path / "r.jsonl", tmp_path / "truth.md"
    results.write_text("".join(json.dumps(each) + "\n" for each in LINES) + '{"seed": 9, "scen')
    done = CliRunner().invoke(drills, ["report", str(results), "--write", str(page)])
    assert done.exit_code == 0, done.output
    assert page.read_text() == report.report(LINES)


@pytest.mark.parametrize("seeds", ["", "5:5", "9:3", "-1", "a:b"])
def test_seeds_that_name_none_are_refused(seeds: str) -> None:
    done = CliRunner().invoke(drills, ["play", "--seeds", seeds])
    assert done.exit_code == 2 and "names no seeds" in done.output
