"""The minimal safe recoveries of the runbook (sections 3 and 5), spelt for the target's own runner.

The texts of each (what it does, preconditions, effect, risk, undo, verify) are messages `proposal.<name>.*`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping

from runbook_lib import catalog
from runbook_lib.catalog import SettingValue
from runbook_lib.model.finding import Proposal
from runbook_lib.settings import Workloads


def restart(workloads: Workloads, which: str) -> Proposal:
    """Restart one workload: "notification", "entitlement" or "nats" (runbook 5.1)."""
    name = getattr(workloads, which)
    if workloads.runner == "kubectl":
        command = _kubectl(workloads, "rollout", "restart", f"deploy/{name}")
    else:
        command = shlex.join([*workloads.supervisorctl, "restart", name])
    return Proposal(f"restart_{which}", command, "5.1", {"name": name})


def scale(workloads: Workloads, replicas: int) -> Proposal:
    """Stop notification (0), or start it again (1): subscriber and worker together (4.2)."""
    name = workloads.notification
    if workloads.runner == "kubectl":
        command = _kubectl(workloads, "scale", f"deploy/{name}", f"--replicas={replicas}")
    else:
        command = shlex.join([*workloads.supervisorctl, "start" if replicas else "stop", name])
    return Proposal("scale", command, "4.2", {"name": name})


def throttle_delivery(workloads: Workloads, batch_size: int, poll_interval_s: float) -> Proposal:
    """Halve what the delivery worker claims: there is no parallelism setting, only batch and pause (5.2)."""
    return settings("throttle_delivery", workloads, milder("delivery", batch_size, poll_interval_s))


def throttle_relay(workloads: Workloads, batch_size: int, poll_interval_s: float) -> Proposal:
    """Halve what the outbox relay claims (5.2)."""
    return settings("throttle_relay", workloads, milder("relay", batch_size, poll_interval_s))


def milder(side: str, batch_size: float, poll_interval_s: float) -> dict[str, SettingValue | None]:
    """Half the rows and twice the pause of "delivery" or "relay", within what may be set."""
    longest = catalog.load().settings[f"{side}.poll_interval"].high or poll_interval_s
    return {
        f"{side}.batch_size": max(int(batch_size // 2), 1),
        f"{side}.poll_interval": min(poll_interval_s * 2, max(longest, poll_interval_s)),
    }


def settings(proposal: str, workloads: Workloads, values: Mapping[str, SettingValue | None]) -> Proposal:
    """Change settings of docs/operations.md (None is back to the default); `proposal` has the texts (5.2)."""
    known = catalog.load().settings
    changed = [(known[name], value) for name, value in values.items()]
    name = getattr(workloads, changed[0][0].workload)
    if workloads.runner == "kubectl":
        words = [f"{s.variable}-" if value is None else f"{s.variable}={s.spelt(value)}" for s, value in changed]
        container = workloads.containers.get(name, name)
        command = _kubectl(workloads, "set", "env", f"deploy/{name}", "-c", container, *words)
    else:
        words = [f"{s.variable}={s.spelt(s.standard if value is None else value)}" for s, value in changed]
        command = f"runbook sandbox set {shlex.join(words)}"
    return Proposal(proposal, command, "5.2", {"name": name, "settings": " ".join(words)})


def undo_settings(workloads: Workloads, names: Iterable[str]) -> Proposal:
    """Take settings of one workload back to their defaults (5.2)."""
    return settings("undo_settings", workloads, dict.fromkeys(names))


def hold_delivery(workloads: Workloads) -> Proposal:
    """Hold delivery while events are still accepted and queued (5.2); never scale to zero for it."""
    return settings("hold_delivery", workloads, {"delivery.enabled": False})


def resume_delivery(workloads: Workloads) -> Proposal:
    """Deliver again what was held back, once the tables agree (4.2, 5.3)."""
    return settings("resume_delivery", workloads, {"delivery.enabled": True})


def pods(workloads: Workloads, which: str) -> Proposal:
    """See how many of a workload run: two of notification send the same rows (4.2)."""
    name = getattr(workloads, which)
    if workloads.runner == "kubectl":
        command = _kubectl(workloads, "get", "pods", "-l", f"app={name}", "-o", "wide")
    else:
        command = shlex.join([*workloads.supervisorctl, "status"])
    return Proposal("pods", command, "4.3", {"name": name})


def look(name: str, command: str, section: str, **params: object) -> Proposal:
    """A step for the responder that only looks, or that only a person may decide on."""
    return Proposal(name, command, section, params)


def logs(workloads: Workloads, which: str) -> Proposal:
    """Read a workload's recent log."""
    name = getattr(workloads, which)
    if workloads.runner == "kubectl":
        command = _kubectl(workloads, "logs", f"deploy/{name}", "-c", name, "--since=15m")
    else:
        command = shlex.join([*workloads.supervisorctl, "tail", name])
    return Proposal("logs", command, "5.1", {"name": name})


def check_nats_credentials(workloads: Workloads) -> Proposal:
    """Look at the address and credentials that the clients use, before any restart (4.1)."""
    if workloads.runner == "kubectl":
        deployments = [f"deploy/{workloads.notification}", f"deploy/{workloads.entitlement}"]
        command = _kubectl(workloads, "set", "env", *deployments, "--list")
    else:
        command = logs(workloads, "notification").command
    return Proposal("check_nats_credentials", command, "4.1", {"name": workloads.notification})


def check_clocks(workloads: Workloads) -> Proposal:
    """Compare the pod's clock with this machine's, before the node's time service is repaired (4.3)."""
    if workloads.runner == "kubectl":
        name = workloads.notification
        command = f"date -u && {_kubectl(workloads, 'exec', f'deploy/{name}', '-c', name, '--', 'date', '-u')}"
    else:
        command = "date -u"
    return Proposal("check_clocks", command, "4.3", {"name": workloads.notification})


def end_blocker(workloads: Workloads, pid: int, application: str, *, idle: bool) -> Proposal:
    """End the one session that others wait for; only with its owner's word (5.2)."""
    # A session that sits idle in its transaction has no statement to cancel.
    sql = f"SELECT pg_{'terminate' if idle else 'cancel'}_backend({pid})"
    return Proposal("end_blocker", _psql(workloads, sql), "5.2", {"pid": pid, "application": application})


def end_sessions(workloads: Workloads, application: str) -> Proposal:
    """End the idle sessions of one application that holds most connections; only with its owner's word (5.2)."""
    name = application.replace("'", "''")
    sql = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "  # noqa: S608 - shown, not run; quoted
        f"WHERE application_name = '{name}' AND state = 'idle'"
    )
    return Proposal("end_sessions", _psql(workloads, sql), "5.2", {"application": application})


def list_sessions(workloads: Workloads) -> Proposal:
    """See who holds the connections, as the superuser, for whom three are kept free (4.1)."""
    sql = (
        "SELECT application_name, client_addr, state, count(*) FROM pg_stat_activity "
        "GROUP BY 1, 2, 3 ORDER BY 4 DESC LIMIT 20"
    )
    return Proposal("list_sessions", _psql(workloads, sql), "4.1")


#: What lists the events that a producer has to be told of, by the store they ended in; no payloads.
_GIVEN_UP = {
    "outbox": "SELECT event_id, event_type, left(last_error, 60), created_at FROM entitlement.outbox_events "
    "WHERE status = 'FAILED' ORDER BY created_at DESC LIMIT 20",
    "broker": "SELECT stream_seq, created_at FROM notification.notification_nats_dlq ORDER BY created_at DESC LIMIT 20",
    "delivery": "SELECT event_id, notification_id, created_at FROM notification.notification_dlq "
    "ORDER BY created_at DESC LIMIT 20",
}


def fix_producer(workloads: Workloads, store: str, origin: str, n: float) -> Proposal:
    """Have what produces such events repaired; the command only lists them (4.4)."""
    return Proposal("fix_producer", _psql(workloads, _GIVEN_UP[store]), "4.4", {"origin": origin, "n": n})


def redrive(store: str, target: str, incident: str, limit: int, n: float) -> Proposal:
    """Send dead letters of "delivery", "outbox" or "broker" again; dry as it stands, without --execute (4.4)."""
    words = ["--target", target, "--incident", incident, "--limit", str(limit)]
    command = shlex.join(["runbook", "act", "redrive", store, *words, "--approved-by", "NAME", "--reason", "TEXT"])
    return Proposal(f"redrive_{store}", command, "4.4", {"limit": limit, "n": n})


def _psql(workloads: Workloads, sql: str) -> str:
    if workloads.runner == "kubectl":
        role = ["psql", "-U", "miniserversystem", "-d", "miniserversystem", "-c", sql]
        return _kubectl(workloads, "exec", "statefulset/postgres", "-c", "postgres", "--", *role)
    return shlex.join(["psql", "-d", "miniserversystem", "-c", sql])


def _kubectl(workloads: Workloads, *arguments: str) -> str:
    context = ["--context", workloads.context] if workloads.context else []
    return shlex.join(["kubectl", *context, "-n", workloads.namespace, *arguments])
