"""Make the proposals that only this system has, in addition to the engine's `proposals`."""

from __future__ import annotations

import shlex

import pandas as pd

from runbook_lib.actions import proposals
from runbook_lib.actions.proposals import Of, commands, psql
from runbook_lib.book.catalog import SettingValue
from runbook_lib.checks.context import JudgeInput
from runbook_lib.model.finding import Proposal
from runbook_lib.packs.entitlement.facts import facts_of


def scale(of: Of, replicas: int) -> Proposal:
    """Stop notification (0), or start it again (1): subscriber and worker together (4.2)."""
    name, tool = facts_of(of).workloads.notification, commands(of)
    by_runbook = proposals.guarded(of, "scale", "notification", str(replicas))
    return Proposal("scale", tool.line(*tool.scale(name, replicas)), "4.2", {"name": name}, by_runbook)


def make_stream(of: Of) -> tuple[Proposal, ...]:
    """Restart entitlement, which creates the stream, then notification, which creates its consumer (5.1)."""
    return proposals.restart(of, "entitlement"), proposals.restart(of, "notification")


def throttle(of: Of, side: str) -> Proposal:
    """Halve the batch and double the pause of "delivery" or "relay", which have no other parallelism (5.2)."""
    return proposals.settings(
        f"throttle_{side}", of, halved_rate(of, side, facts_of(of).batch_size, facts_of(of).poll_interval_s)
    )


def is_throttled(of: Of, side: str, batch_size: float | None, poll_interval_s: float | None) -> bool:
    """Return whether these settings, if known, let through no more than `throttle` would."""
    wanted = halved_rate(of, side, facts_of(of).batch_size, facts_of(of).poll_interval_s)
    batch, poll_s = wanted[f"{side}.batch_size"], wanted[f"{side}.poll_interval"]
    if not (batch and poll_s and batch_size is not None and poll_interval_s):
        return False
    return batch_size / poll_interval_s <= float(batch) / float(poll_s)


def halved_rate(of: Of, side: str, batch_size: float, poll_interval_s: float) -> dict[str, SettingValue | None]:
    """Return half the batch and twice the pause for "delivery" or "relay", within the range of the settings."""
    longest = of.catalog.settings[f"{side}.poll_interval"].high or poll_interval_s
    return {
        f"{side}.batch_size": max(int(batch_size // 2), 1),
        f"{side}.poll_interval": min(poll_interval_s * 2, max(longest, poll_interval_s)),
    }


def hold_delivery(of: Of) -> Proposal:
    """Switch delivery off while events are still accepted and queued (5.2); do not scale to zero for it."""
    return proposals.settings("hold_delivery", of, {"delivery.enabled": False})


def switch_on(of: Of, side: str) -> Proposal:
    """Switch the loop of "delivery" or "relay" on again (5.2)."""
    return proposals.settings(f"switch_on_{side}", of, {f"{side}.enabled": True})


def resume_delivery(of: Of) -> Proposal:
    """Resume delivery after the consistency checks (4.2, 5.3)."""
    return proposals.settings("resume_delivery", of, {"delivery.enabled": True})


def check_nats_credentials(of: Of) -> Proposal:
    """Show the address and credentials that the clients use, before any restart (4.1)."""
    workloads, tool = facts_of(of).workloads, commands(of)
    listed = tool.environment([workloads.notification, workloads.entitlement])
    command = f"{tool.line(*listed)} | grep -E '^#|NATS_'" if listed else proposals.logs(of, "notification").command
    return Proposal("check_nats_credentials", command, "4.1", {"name": workloads.notification})


def look_at_role(of: Of) -> Proposal:
    """Show the login right, connection limit and settings of the services' role (4.1)."""
    role = facts_of(of).database_role
    name = role.replace("'", "''")
    sql = (
        "SELECT rolname, rolcanlogin, rolvaliduntil, rolconnlimit, datname, setconfig FROM pg_roles "  # noqa: S608 - shown
        "LEFT JOIN pg_db_role_setting ON setrole IN (0, pg_roles.oid) "
        f"LEFT JOIN pg_database ON pg_database.oid = setdatabase WHERE rolname = '{name}'"
    )
    return Proposal("look_at_role", psql(of, sql), "4.1", {"role": role})


def check_clocks(of: Of) -> Proposal:
    """Compare the pod's clock with this machine's, before the node's time service is repaired (4.3)."""
    name = facts_of(of).workloads.notification
    clocks = dict.fromkeys(["date -u", commands(of).inside(name, "date", "-u")])  # one, if the pod is this machine
    command = " && ".join(clocks)
    return Proposal("check_clocks", command, "4.3", {"name": name})


#: Queries, by store, that list the failed events for the owner of the producer; without payloads.
_GIVEN_UP = {
    "outbox": "SELECT event_id, event_type, left(last_error, 60), created_at FROM entitlement.outbox_events "
    "WHERE status = 'FAILED' ORDER BY created_at DESC LIMIT 20",
    "broker": "SELECT stream_seq, created_at FROM notification.notification_nats_dlq ORDER BY created_at DESC LIMIT 20",
    "delivery": "SELECT event_id, notification_id, left(error_message, 60), created_at "
    "FROM notification.notification_dlq ORDER BY created_at DESC LIMIT 20",
}


def fix_producer(of: Of, store: str, origin: str, n: float) -> Proposal:
    """Propose to repair the producer of such events; the command only lists the events (4.4)."""
    return Proposal("fix_producer", psql(of, _GIVEN_UP[store]), "4.4", {"origin": origin, "n": n})


def redrive(store: str, given: JudgeInput, limit: int, n: float) -> Proposal:
    """Send the window's dead letters of "delivery", "outbox" or "broker" again; a dry run without --execute (4.4)."""
    since = (given.as_of - pd.Timedelta(minutes=given.window_minutes)).floor("s").isoformat()
    words = ["--target", given.target, "--incident", given.incident, "--limit", str(limit), "--since", since]
    command = shlex.join(["runbook", "act", "redrive", store, *words, "--approved-by", "NAME", "--reason", "TEXT"])
    return Proposal(f"redrive_{store}", command, "4.4", {"limit": limit, "n": n})
