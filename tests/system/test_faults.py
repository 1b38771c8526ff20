"""A healthy system, and every fault of the sandbox, live and once: effect, verdict, proposals, and recovery.

What is said of settings and people is judged by recordings, which have the healthy system's baseline. The healthy
system and two faults are part of `make test`, on one sandbox; all else of `make test-all`. The answers are those of
faults.toml.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from runbook_lib.book import catalog
from runbook_lib.diagnosis.verdict import BROKEN
from runbook_lib.gameday.sandbox import faults
from runbook_lib.gameday.sandbox.sandbox import Sandbox
from tests.drills import judge, people, play, probe
from tests.drills.scenario import Scenario
from tests.kit import sandboxes
from tests.kit.drills import LATER, LOOK_AFTER_S, runbook, shown


@dataclass(frozen=True)
class Look:
    """What is asked about a fault beside what holds for each: `section` instead of a triage, and what is proposed.

    `named` says that the verdict must be right; else undecided is right as well. `first` are words of the first
    proposal's command.
    """

    section: str = ""
    named: bool = True
    first: str = ""
    restarts_nothing: bool = False
    loses: bool = False
    """Whether events may be lost for good, so that it is not over when it is undone."""


LOOKS: dict[str, Look] = {
    **dict.fromkeys(
        ("worker_stopped", "subscriber_deaf", "broker_down", "broker_refusing", "connections_exhausted",
         "receiver_outage", "receiver_unavailable", "receiver_denies", "worker_wrong_address", "worker_no_such_host",
         "worker_out_of_files", "registrations_deleted", "retention_too_short", "stream_purged", "record_deleted"),
        Look(),
    ),
    "worker_hung": Look(first="restart notification"),
    "relay_stopped": Look(first="restart entitlement"),
    "table_lock": Look(first="pg_terminate_backend"),
    **dict.fromkeys(
        ("db_read_only", "server_read_only", "password_changed", "nats_disabled", "wrong_nats_address"),
        Look(restarts_nothing=True),
    ),
    "relay_disabled": Look(first="ENTITLEMENT_OUTBOX_ENABLED=true", restarts_nothing=True),
    "notification_frozen": Look(first="restart notification"),
    "entitlement_frozen": Look(first="restart entitlement"),
    **dict.fromkeys(("stream_missing", "relay_closed"), Look("4.1")),
    "delivery_disabled": Look("4.1", first="NOTIFICATION_DELIVERY_ENABLED=true"),
    "database_down": Look(named=False, loses=True),
    "clock_skew": Look("4.3"),
    "second_worker": Look("4.3", named=False),  # between two looks no row may change hands
    "dedupe_broken": Look("4.2"),
    **dict.fromkeys(
        ("bad_payload", "unknown_event_type", "undecodable_message", "exhausted_outbox", "failing_user"), Look("4.4")
    ),
    "events_lost": Look("4.4", named=False),  # the place is told; whether they wait is section 4.1's to say
    "dlq_mismatch": Look("5.3"),
    "traces_deleted": Look(named=False),  # no table shows whether they were processed
}  # fmt: skip
#: What is right or undecided in a first look, and need not be named by it.
UNNAMED = Look(named=False)
#: Faults that leave the flow as it is: traces of what has arrived are gone, or the runbook alone is kept out.
NOT_IN_FLOW = ("registrations_deleted", "retention_too_short", "runbook_locked_out")
#: How long the flow is sampled, in seconds, for its rates.
WHILE_S = 3.0

#: What `make test` plays: nothing of it waits for a time. The healthy system is before them on their sandbox.
QUICK = ("worker_hung", "undecodable_message")
QUICK_LANE = "faults-0"
#: A sandbox each; faults that share one follow each other.
LANES = 4
#: How long a verdict of these may take, in seconds, to be decided; all others must be at the first look.
DECIDES_S = 90


def cases(names: Iterable[str]) -> Iterator[Any]:
    """Yield a case per fault, those of a lane in one group of the workers."""
    for quick in (True, False):
        for n, name in enumerate(name for name in names if (name in QUICK) is quick):
            lane = QUICK_LANE if quick else f"faults-{n % LANES}"
            marks = [pytest.mark.xdist_group(lane), *([] if quick else [pytest.mark.slow])]
            yield pytest.param(name, id=name, marks=marks)


def test_what_is_said_of_a_fault_is_of_one_that_there_is() -> None:
    assert {*LOOKS, *QUICK, *NOT_IN_FLOW, *faults._ACTS} <= {*faults.TABLES}
    assert {*LATER} <= {*faults.TABLES, *people.TABLES}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """A sandbox whose folder has a long name with a space: the supervisor's socket must not care."""
    with sandboxes.running(tmp_path_factory.mktemp("faults") / ("deep" * 20) / "with space", hours=3) as sandbox:
        yield sandbox


@pytest.mark.xdist_group(QUICK_LANE)
def test_a_healthy_system_is_ok_in_every_section(running: Sandbox, tmp_path: Path) -> None:
    said = runbook(running, tmp_path, "run", "3", "4.1", "4.2", "4.3", "4.4", "5.3", "6", "2")
    statuses = {f["status"] for r in said["runs"] for f in r["findings"] if f["reason"] != "not_configured"}
    assert statuses == {"OK"}, shown(said)
    assert (said["verdict"]["stuck_at"], said["status"]) == (None, "OK")
    assert [m for m in said["verdict"]["failure_modes"] if m["score"] >= BROKEN] == []


@pytest.mark.xdist_group(QUICK_LANE)
def test_the_sections_that_can_act_have_nothing_to_say(running: Sandbox, tmp_path: Path) -> None:
    for _ in range(4):  # for 20 s after their start another restart would be refused
        said = runbook(running, tmp_path, "run", "5.1", "5.2", target="sandbox")
        if (statuses := {f["status"] for r in said["runs"] for f in r["findings"]}) == {"OK"}:
            break
    assert statuses == {"OK"}, shown(said)


@pytest.mark.timeout(420)
@pytest.mark.parametrize("name", list(cases(faults.TABLES)))
def test_fault(running: Sandbox, tmp_path: Path, name: str) -> None:
    fault, asked = faults.find(name), LOOKS.get(name, UNNAMED)
    running.wait_for("a steady flow", lambda: (probe.sample_flow(running, WHILE_S).sent or 0) > 2, 60)
    before = probe.sample_flow(running, WHILE_S)
    faults.inject(running, name)
    began = time.monotonic()
    try:
        if name not in NOT_IN_FLOW:
            running.wait_for(f"an effect of {name}", lambda: worsens(running, before), 75)
        if name not in QUICK:  # as late as the recording's look
            time.sleep(max(0.0, began + LATER.get(name, LOOK_AFTER_S) - time.monotonic()))
        said, until = look(running, tmp_path, asked.section), time.monotonic() + DECIDES_S
        while name in QUICK and undecided(said, fault) and time.monotonic() < until:
            said = look(running, tmp_path, asked.section)
    finally:
        sandboxes.heal(running, hours=3)
    is_right(said, fault, asked)
    if fault.undoable and not asked.loses:
        recovers(running, tmp_path, fault, asked)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", list(cases(people.TABLES)))
def test_what_a_person_changed_is_in_force(running: Sandbox, name: str) -> None:
    running.wait_for("a steady flow", lambda: flows(running))
    before = probe.sample_flow(running, WHILE_S)
    people.ACTS[name](running)
    try:
        running.wait_for(f"an effect of {name}", lambda: worsens(running, before), 75)
    finally:
        running.down()
        running.up(hours=3)


def worsens(sandbox: Sandbox, before: probe.FlowSample) -> bool:
    """Return whether a number of the flow is clearly worse than before."""
    return bool(judge.took_effect(before, probe.sample_flow(sandbox, WHILE_S)))


def flows(sandbox: Sandbox) -> bool:
    """Return whether notifications are sent, and no backlog is left."""
    flow = probe.sample_flow(sandbox, WHILE_S)
    return bool(flow.sent and flow.sent > 2 and flow.processed and flow.waiting is not None and flow.waiting < 30)


def look(sandbox: Sandbox, output: Path, section: str) -> dict[str, Any]:
    """Run a section over the last two minutes, or a triage."""
    if section:
        return runbook(sandbox, output, "run", section, "-p", "window_minutes=2")
    said = runbook(sandbox, output, "triage", target="sandbox")
    assert not {r["section"] for r in said["runs"]} & {*said["verdict"]["next_sections"]}, "what was run is not next"
    assert (output / "E2E" / "index.html").is_file()
    return said


def judged(verdict: dict[str, Any], fault: faults.Fault) -> judge.Judged:
    """Hold a verdict against the fault's answer."""
    return judge.judge(verdict, play.truth(Scenario(0, (fault.name,), 1.0, "steady", "", 0.0), catalog.load()))


def undecided(said: dict[str, Any], fault: faults.Fault) -> bool:
    """Return whether another look may decide: a wrong verdict stays wrong."""
    answer = judged(said["verdict"], fault).answer
    return answer == "undecided" or (answer == "right" and said["verdict"]["confidence"] in ("low", "none"))


def is_right(said: dict[str, Any], fault: faults.Fault, asked: Look) -> None:
    """Hold a verdict against the fault's answer, and its proposals against what helps and what harms."""
    verdict = said["verdict"]
    found = judged(verdict, fault)
    why = f"{found}: {json.dumps(verdict)}\n{shown(said)}"
    assert found.answer == "right" if asked.named else found.answer != "wrong", why
    if asked.named:
        assert said["status"] in ("WARNING", "CRITICAL"), shown(said)
        assert verdict["confidence"] in ("high", "medium") or asked.section, shown(said)
    assert not {p["name"] for p in verdict["proposals"]} & {*fault.harms}, verdict["proposals"]
    names, commands = ([p[key] for p in verdict["proposals"]] for key in ("name", "command"))
    assert asked.first in (commands or [""])[0], commands
    assert not asked.restarts_nothing or not any("restart" in name for name in names), names


def recovers(sandbox: Sandbox, output: Path, fault: faults.Fault, asked: Look) -> None:
    """Look at section 6, or at the fault's own section, until it tells that it is over."""
    sandbox.wait_for("a steady flow", lambda: flows(sandbox), 90)  # each look costs seconds of both cores
    until = time.monotonic() + 180
    while not over(sandbox, output, fault, asked):
        assert time.monotonic() < until, f"no recovery from {fault.name}"
        time.sleep(10)


def over(sandbox: Sandbox, output: Path, fault: faults.Fault, asked: Look) -> bool:
    if not asked.section:
        return bool(runbook(sandbox, output, "run", "6", "-p", "window_minutes=15")["status"] == "OK")
    verdict = look(sandbox, output, asked.section)["verdict"]
    return fault.failure_mode not in [m["id"] for m in verdict["failure_modes"]] and verdict["stuck_at"] is None
