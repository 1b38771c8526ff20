"""The minimal safe recoveries of a runbook (sections 3 and 5), spelt for the target's own runner.

The texts of each (what it does, preconditions, effect, risk, undo, verify) are messages `proposal.<name>.*`. `of` is
the run, or what its judge was given: the target's workloads, and the documents.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping

from runbook_lib.catalog import SettingValue
from runbook_lib.context import Context, Given
from runbook_lib.model.finding import Proposal

Of = Context | Given


def restart(of: Of, which: str) -> Proposal:
    """Restart one workload, by the name that the settings give it (5.1)."""
    workloads = of.facts.workloads
    name = workloads.program(which)
    if workloads.runner == "kubectl":
        command = kubectl(of, "rollout", "restart", f"deploy/{name}")
    else:
        command = supervisorctl(of, "restart", name)
    return Proposal(f"restart_{which}", command, "5.1", {"name": name})


def start(of: Of, which: str) -> Proposal:
    """Start one workload that somebody has stopped (5.1)."""
    workloads = of.facts.workloads
    name = workloads.program(which)
    if workloads.runner == "kubectl":
        command = kubectl(of, "scale", f"deploy/{name}", "--replicas=1")
    else:
        command = supervisorctl(of, "start", name)
    return Proposal(f"start_{which}", command, "5.1", {"name": name})


def settings(proposal: str, of: Of, values: Mapping[str, SettingValue | None]) -> Proposal:
    """Change settings of docs/operations.md (None is back to the default); `proposal` has the texts (5.2)."""
    workloads, known = of.facts.workloads, of.catalog.settings
    changed = [(known[name], value) for name, value in values.items()]
    name = workloads.program(changed[0][0].workload)
    if workloads.runner == "kubectl":
        words = [f"{s.variable}-" if value is None else f"{s.variable}={s.spelt(value)}" for s, value in changed]
        container = workloads.containers.get(name, name)
        command = kubectl(of, "set", "env", f"deploy/{name}", "-c", container, *words)
    else:
        words = [f"{s.variable}={s.spelt(s.standard if value is None else value)}" for s, value in changed]
        command = _written(of, name, words)
    return Proposal(proposal, command, "5.2", {"name": name, "settings": " ".join(words)})


def _written(of: Of, name: str, words: list[str]) -> str:
    """Write variables where the program reads them at its start, the last line of a name in force, and restart it."""
    if file := of.facts.workloads.env_file:
        return f"printf '%s\\n' {shlex.join(words)} >> {shlex.quote(file)} && {supervisorctl(of, 'restart', name)}"
    return f"{supervisorctl(of, 'update', name)}  # once environment= of [program:{name}] has {', '.join(words)}"


def undo_settings(of: Of, names: Iterable[str]) -> Proposal:
    """Take settings of one workload back to their defaults (5.2)."""
    return settings("undo_settings", of, dict.fromkeys(names))


def pods(of: Of, which: str) -> Proposal:
    """See how many of a workload run (4.2)."""
    name = of.facts.workloads.program(which)
    if of.facts.workloads.runner == "kubectl":
        command = kubectl(of, "get", "pods", "-l", f"app={name}", "-o", "wide")
    else:
        command = supervisorctl(of, "status")
    return Proposal("pods", command, "4.3", {"name": name})


def look(name: str, command: str, section: str, **params: object) -> Proposal:
    """A step for the responder that only looks, or that only a person may decide on."""
    return Proposal(name, command, section, params)


def logs(of: Of, which: str) -> Proposal:
    """Read a workload's recent log."""
    name = of.facts.workloads.program(which)
    if of.facts.workloads.runner == "kubectl":
        command = kubectl(of, "logs", f"deploy/{name}", "-c", name, "--since=15m")
    else:
        command = supervisorctl(of, "tail", name)
    return Proposal("logs", command, "5.1", {"name": name})


def end_blocker(of: Of, pid: int, application: str, *, idle: bool) -> Proposal:
    """End the one session that others wait for; only with its owner's word (5.2)."""
    # A session that sits idle in its transaction has no statement to cancel.
    sql = f"SELECT pg_{'terminate' if idle else 'cancel'}_backend({pid})"
    return Proposal("end_blocker", psql(of, sql), "5.2", {"pid": pid, "application": application})


def cancel_waiting(of: Of, pid: int, application: str) -> Proposal:
    """Cancel the statement that waits for a strong lock and lets nobody past meanwhile (5.2)."""
    sql = f"SELECT pg_cancel_backend({pid})"
    return Proposal("cancel_waiting", psql(of, sql), "5.2", {"pid": pid, "application": application})


def end_sessions(of: Of, application: str) -> Proposal:
    """End the idle sessions of one application that holds most connections; only with its owner's word (5.2)."""
    name = application.replace("'", "''")
    sql = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "  # noqa: S608 - shown, not run; quoted
        f"WHERE application_name = '{name}' AND state = 'idle'"
    )
    return Proposal("end_sessions", psql(of, sql), "5.2", {"application": application})


def list_sessions(of: Of) -> Proposal:
    """See who holds the connections, as the superuser, for whom three are kept free (4.1)."""
    sql = (
        "SELECT application_name, client_addr, state, count(*) FROM pg_stat_activity "
        "GROUP BY 1, 2, 3 ORDER BY 4 DESC LIMIT 20"
    )
    return Proposal("list_sessions", psql(of, sql), "4.1")


def psql(of: Of, sql: str) -> str:
    """The command that gives a statement to the target's database, with credentials of whoever types it."""
    workloads = of.facts.workloads
    if workloads.runner == "kubectl":
        role = ["psql", "-U", workloads.database, "-d", workloads.database, "-c", sql]
        return kubectl(of, "exec", "statefulset/postgres", "-c", "postgres", "--", *role)
    return shlex.join(["psql", "-d", workloads.database, "-c", sql])


def kubectl(of: Of, *arguments: str) -> str:
    """The command for the target's cluster and namespace."""
    workloads = of.facts.workloads
    context = ["--context", workloads.context] if workloads.context else []
    return shlex.join(["kubectl", *context, "-n", workloads.namespace, *arguments])


def supervisorctl(of: Of, *arguments: str) -> str:
    """The command for the target's supervisor."""
    return shlex.join([*of.facts.workloads.supervisorctl, *arguments])
