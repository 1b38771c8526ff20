"""The minimal safe recoveries of the runbook (sections 3 and 5), spelt for the target's own runner.

The texts of each (what it does, preconditions, effect, risk, undo, verify) are messages `proposal.<name>.*`.
"""

from __future__ import annotations

import shlex

from runbook_lib.finding import Proposal
from runbook_lib.settings import Workloads


def restart(workloads: Workloads, which: str) -> Proposal:
    """Restart one workload: "notification", "entitlement" or "nats" (runbook 5.1)."""
    name = getattr(workloads, which)
    if workloads.runner == "kubectl":
        command = _kubectl(workloads, "rollout", "restart", f"deploy/{name}")
    else:
        command = shlex.join([*workloads.supervisorctl, "restart", name])
    return Proposal(f"restart_{which}", command, "5.1", {"name": name})


def throttle_delivery(workloads: Workloads, batch_size: int, poll_interval_s: float) -> Proposal:
    """Halve what the delivery worker claims: there is no parallelism setting, only batch and pause (5.2)."""
    return _set_env(
        workloads,
        "throttle_delivery",
        workloads.notification,
        NOTIFICATION_DELIVERY_BATCH_SIZE=str(max(batch_size // 2, 1)),
        NOTIFICATION_DELIVERY_POLL_INTERVAL=f"{poll_interval_s * 2:g}s",
    )


def throttle_relay(workloads: Workloads, batch_size: int, poll_interval_s: float) -> Proposal:
    """Halve what the outbox relay claims (5.2)."""
    return _set_env(
        workloads,
        "throttle_relay",
        workloads.entitlement,
        ENTITLEMENT_OUTBOX_BATCH_SIZE=str(max(batch_size // 2, 1)),
        ENTITLEMENT_OUTBOX_POLL_INTERVAL=f"{poll_interval_s * 2:g}s",
    )


def hold_delivery(workloads: Workloads) -> Proposal:
    """Hold delivery while events are still accepted and queued (5.2); never scale to zero for it."""
    return _set_env(workloads, "hold_delivery", workloads.notification, NOTIFICATION_DELIVERY_ENABLED="false")


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


def _psql(workloads: Workloads, sql: str) -> str:
    if workloads.runner == "kubectl":
        role = ["psql", "-U", "miniserversystem", "-d", "miniserversystem", "-c", sql]
        return _kubectl(workloads, "exec", "statefulset/postgres", "-c", "postgres", "--", *role)
    return shlex.join(["psql", "-d", "miniserversystem", "-c", sql])


def _set_env(workloads: Workloads, proposal: str, name: str, **variables: str) -> Proposal:
    settings = [f"{k}={v}" for k, v in variables.items()]
    if workloads.runner == "kubectl":
        command = _kubectl(workloads, "set", "env", f"deploy/{name}", *settings)
    else:
        command = f"runbook sandbox set {shlex.join(settings)}"
    return Proposal(proposal, command, "5.2", {"name": name, "settings": " ".join(settings)})


def _kubectl(workloads: Workloads, *arguments: str) -> str:
    context = ["--context", workloads.context] if workloads.context else []
    return shlex.join(["kubectl", *context, "-n", workloads.namespace, *arguments])
