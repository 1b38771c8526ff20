"""Faults whose signature no other test looks for: each shows in the flow without the runbook, and is undone."""

from __future__ import annotations

import os
from collections.abc import Iterator

import psycopg
import pytest

from runbook_lib.packs.entitlement.drills import probe
from runbook_lib.packs.entitlement.drills.judge import took_effect
from runbook_lib.packs.entitlement.sandbox import faults
from runbook_lib.packs.entitlement.sandbox.sandbox import Sandbox
from runbook_lib.packs.entitlement.sandbox.state import SandboxError

#: What the probe must see worsen, of all that a fault does to the flow: nothing that a restart does on the way.
SHOWS = {
    "worker_denied": "sent",
    "api_denied": "created",
    "subscriber_denied": "processed",
    "role_at_limit": "sent",
    "outbox_locked": "created",
    "rows_locked": "sent",
    "slow_statements": "sent",
    "database_down": "created",
    "subscriber_frozen": "processed",
    "notification_stopped": "sent",
    "entitlement_stopped": "published",
    "services_stopped": "created",
    "migration_failed": "oldest_s",
    "wrong_database_address": "oldest_s",
    "delivery_held": "oldest_s",
    "receiver_hangs": "sent",
    "receiver_slow": "oldest_s",
    "broker_frozen": "published",
    "consumer_paused": "processed",
}
WHILE_S = 3.0
#: Ten seconds each: all of them where that is asked for, else every third.
TRIED = [*SHOWS] if os.environ.get("RUNBOOK_ALL_DRILLS") else [*SHOWS][::3]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    sandbox = Sandbox(tmp_path_factory.mktemp("faults"))
    sandbox.up(hours=0.2)
    yield sandbox
    sandbox.down()


@pytest.mark.parametrize("name", TRIED)
def test_a_fault_shows_in_the_flow_and_heals(running: Sandbox, name: str) -> None:
    running.wait_for("a steady flow", lambda: (probe.look(running, WHILE_S).sent or 0) > 2, 30)
    before = probe.look(running, WHILE_S)
    running.fault(name)
    try:
        running.wait_for(name, lambda: SHOWS[name] in took_effect(before, probe.look(running, WHILE_S)), 30)
    finally:
        assert running.heal(60) == name


def test_the_runbook_is_locked_out_and_all_is_well(running: Sandbox) -> None:
    running.fault("runbook_locked_out")
    try:
        with pytest.raises(psycopg.OperationalError, match="not permitted to log in"):
            psycopg.connect(running.state.addresses.database_url)
        running.wait_for_flow(10)
    finally:
        running.heal()
    psycopg.connect(running.state.addresses.database_url).close()


def test_every_way_to_break_something_is_a_fault_with_an_answer() -> None:
    assert {*faults._ACTS} == {fault.name for fault in faults.CATALOGUE}


def test_a_locked_table_is_waited_for_no_longer_than_asked(running: Sandbox) -> None:
    with psycopg.connect(running.state.addresses.admin_url) as admin:
        admin.execute("LOCK TABLE entitlement.outbox_events")
        with pytest.raises(SandboxError, match="waited 1 s"):
            running.wait_for_flow(1)
        admin.rollback()
    running.wait_for_flow(30)
