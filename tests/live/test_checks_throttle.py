"""5.2: what a side may claim, what arrives, and what became of a change."""

from __future__ import annotations

from typing import Any

import pandas as pd
import psycopg
import pytest

from runbook_lib.model.finding import Finding, Frames, Reason, Status
from runbook_lib.model.frames import row
from runbook_lib.packs.entitlement.checks import throttle
from runbook_lib.packs.entitlement.checks.delivery import Delivery
from runbook_lib.packs.entitlement.checks.throttle import DELIVERY, RELAY, ThrottledWorker
from tests.kit.frames.throttle import frames
from tests.kit.servers import Servers
from tests.kit.steps import UNPROCESSED, bound, events, expect, failures, make_given, run, traffic, words

BOTH = pytest.mark.parametrize("side", [DELIVERY, RELAY], ids=lambda s: s.name)


def judge(found: Frames, side: ThrottledWorker = DELIVERY, **given: Any) -> Finding:
    finding = throttle.judge(found, make_given(**given), side)
    words(finding)
    return finding


def key(finding: Finding) -> str:
    return finding.headline.key.removeprefix("throttle.")


def notes(finding: Finding) -> list[str]:
    return [n.key.removeprefix("throttle.") for n in finding.notes]


# The judge --------------------------------------------------------------------------------------------------


@BOTH
def test_room_at_the_defaults_is_ok_and_proposes_nothing(side: ThrottledWorker) -> None:
    finding = judge(frames(side), side)
    assert (finding.status, key(finding), finding.proposals) == (Status.OK, "room", ())
    expect(finding, values={f"{side.name}.allowed": 3000, "throttle.headroom": 10})
    assert finding.hops[0].rate_in == 300


@BOTH
def test_a_quiet_system_is_ok(side: ThrottledWorker) -> None:
    finding = judge(frames(side, came=0, gone=0, due=0), side)
    assert (finding.status, finding.value("throttle.headroom")) == (Status.OK, None)


def test_less_allowed_than_arrives_is_a_warning() -> None:
    finding = judge(frames(came=4000, gone=1500, due=400))
    assert (finding.status, key(finding)) == (Status.WARNING, "below")


@BOTH
def test_a_change_in_force_is_to_be_remembered(side: ThrottledWorker) -> None:
    finding = judge(frames(side, now={"batch_size": 25.0}), side)
    assert (finding.status, key(finding)) == (Status.WARNING, "in_force")
    assert [p.name for p in finding.proposals] == ["undo_settings"]
    assert "undo" in notes(finding)


@BOTH
def test_a_side_that_is_switched_off(side: ThrottledWorker) -> None:
    finding = judge(frames(side, now={"enabled": False}, gone=0, due=200), side)
    assert (finding.status, key(finding)) == (Status.WARNING, "held")
    assert [s.about for s in finding.signals] == [side.hop]
    assert [p.name for p in finding.proposals][-1] == "undo_settings"


def test_values_that_were_asked_for_are_proposed() -> None:
    finding = judge(frames(asked={"batch_size": 5}, due=10, outcome={"result": "dry", "verified": None}))
    assert (finding.status, key(finding)) == (Status.OK, "room")
    assert [p.name for p in finding.proposals] == ["change_settings"]


def test_values_that_would_be_refused_are_not_proposed() -> None:
    finding = judge(frames(asked={"batch_size": 500}, outcome={"result": "dry", "verified": None, "holds": False}))
    assert (finding.status, key(finding), finding.proposals) == (Status.WARNING, "refused", ())


@pytest.mark.parametrize(
    ("outcome", "status", "headline", "next_sections"),
    [
        ({"result": "done", "verified": True}, Status.WARNING, "done", ("6",)),
        ({"result": "done", "verified": False}, Status.CRITICAL, "not_verified", ("5.1",)),
        ({"result": "done", "verified": None}, Status.CRITICAL, "not_verified", ("5.1",)),
        ({"result": "failed", "verified": None}, Status.CRITICAL, "failed", ("5.1",)),
        ({"result": "refused", "verified": None}, Status.WARNING, "refused", ()),
    ],
)
def test_what_became_of_the_change(outcome: Any, status: Status, headline: str, next_sections: Any) -> None:
    finding = judge(frames(now={"batch_size": 25.0}, asked={"batch_size": 25}, outcome=outcome))
    assert (finding.status, key(finding), finding.next_sections) == (status, headline, next_sections)
    assert "undo" in notes(finding)
    # What was done a moment ago, and is seen to work, is not what to take back next.
    assert ("undo_settings" in [p.name for p in finding.proposals]) == (headline != "done")


def test_back_at_the_defaults_after_an_undo_is_ok() -> None:
    finding = judge(frames(asked={"batch_size": 50}, outcome={"result": "done", "verified": True}))
    assert (finding.status, key(finding)) == (Status.OK, "done")


def test_two_replicas_of_notification_and_of_entitlement() -> None:
    two = judge(frames(replicas=2))
    assert (two.status, "two_replicas" in notes(two)) == (Status.WARNING, True)
    relays = judge(frames(RELAY, replicas=2), RELAY)
    assert (relays.status, relays.value("relay.allowed")) == (Status.OK, 6000)
    assert "relays" in notes(relays)


def test_what_would_break_the_next_start() -> None:
    found = frames() | {"durable": row(ok=False, why_en="ack wait", why_ja="ack wait")}
    finding = judge(found)
    assert (finding.status, "would_not_start" in notes(finding)) == (Status.WARNING, True)
    found = frames() | {"never_set": pd.DataFrame({"variable": ["X"], "written": ["1"], "why": ["no"]})}
    assert "never_set" in notes(judge(found))
    assert judge(found).status is Status.OK  # set, and equal to what is asked for: left alone
    unread = judge(frames(now={"poll_interval": None}))
    assert (unread.status, "not_understood" in notes(unread)) == (Status.WARNING, True)


@BOTH
def test_without_the_tool_nothing_is_guessed(side: ThrottledWorker) -> None:
    found = frames(side, now={"batch_size": None, "poll_interval": None, "enabled": None})
    del found["workload"]
    found["not_read"] = failures(("workload", "workloads", "unreachable", "kubectl is not installed", "not_installed"))
    finding = judge(found, side)
    assert (finding.status, finding.reason, key(finding)) == (Status.UNKNOWN, Reason.UNREACHABLE, "settings_unseen")
    assert finding.value(f"{side.name}.allowed") is None
    assert notes(finding)[0] == "no_tool"


def test_a_receiver_in_trouble_calls_for_less() -> None:
    finding = judge(frames(due=40, waiting=60))
    assert [p.name for p in finding.proposals] == ["throttle_delivery", "hold_delivery"]
    assert "retries" in notes(finding)
    expect(judge(frames(RELAY, waiting=60), RELAY), proposals=["throttle_relay"])


def test_of_a_receiver_that_refuses_a_few_less_is_no_help(monkeypatch: pytest.MonkeyPatch) -> None:
    for refusing, proposed in (
        ("delivery.refused_some", []),
        ("delivery.refused_before", []),
        ("delivery.refused_in_part", ["throttle_delivery"]),
    ):
        monkeypatch.setattr(Delivery, "refusing", lambda self, given, refusing=refusing: refusing)
        expect(judge(frames(due=40, waiting=60)), proposals=proposed)


# On real servers --------------------------------------------------------------------------------------------

STEPS = ("5.2.1", "5.2.2")


def test_idle(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    with bound(broker):
        found = run(servers, *STEPS)
    for step in STEPS:  # no tool that runs the workloads is at hand here
        assert (found[step].status, key(found[step])) == (Status.UNKNOWN, "settings_unseen")
        assert "no_tool" in notes(found[step])


def test_healthy_and_then_behind(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    traffic(db)
    for step, seen in run(servers, *STEPS).items():
        side = {"5.2.1": "delivery", "5.2.2": "relay"}[step]
        assert seen.status is Status.UNKNOWN
        arriving = seen.value(f"{side}.arriving")
        assert isinstance(arriving, float)
        assert 280 <= arriving <= 310  # five a second
        assert not seen.proposals
    events(db, 90, 20, outbox="PENDING", **UNPROCESSED)
    events(db, 90, 20, status="PENDING")
    found = run(servers, *STEPS)
    assert found["5.2.1"].value("delivery.backlog") == 90
    assert found["5.2.2"].value("relay.backlog") == 90
