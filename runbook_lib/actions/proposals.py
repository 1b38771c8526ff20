"""The minimal safe recoveries of a runbook, as commands for the target's runner.

The texts of each (title, preconditions, effect, risk, undo, verify) are messages `proposal.<name>.*`. `of` is the run's
context or its judge's input: it has the target's workloads and the documents.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from runbook_lib.book import pack
from runbook_lib.book.catalog import Role, SettingValue
from runbook_lib.checks.context import Context, JudgeInput
from runbook_lib.model.finding import Proposal
from runbook_lib.sources.workloads import Commands, runner_class

Of = Context | JudgeInput


def commands(of: Of) -> Commands:
    """Return the commands of the target's runner. Raises UsageError if this installation leaves it out."""
    return runner_class(of.facts.workloads).commands(of.facts.workloads)


def restart(of: Of, which: str) -> Proposal:
    """Restart one workload, by the name that the settings give it."""
    name = of.facts.workloads.program(which)
    tool, by_runbook = commands(of), guarded(of, "restart", which)
    return _propose(of, f"restart_{which}", tool.line(*tool.restart(name)), "restart", {"name": name}, by_runbook)


def start(of: Of, which: str) -> Proposal:
    """Start one workload that was stopped."""
    name = of.facts.workloads.program(which)
    tool, by_runbook = commands(of), guarded(of, "scale", which, "1")
    return _propose(of, f"start_{which}", tool.line(*tool.scale(name, 1)), "restart", {"name": name}, by_runbook)


def settings(proposal: str, of: Of, values: Mapping[str, SettingValue | None]) -> Proposal:
    """Change settings of docs/operations.md (None resets to the default); `proposal` names the texts."""
    changed = [(of.catalog.settings[name], value) for name, value in values.items()]
    name = of.facts.workloads.program(changed[0][0].workload)
    spelt = {s.variable: None if value is None else s.spelt(value) for s, value in changed}
    defaults = {s.variable: s.spelt(s.standard) for s, _ in changed}
    words, command = commands(of).set_environment(name, spelt, defaults)
    by_runbook = guarded(of, "set", *setting_words(of, values))
    return _propose(of, proposal, command, "throttle", {"name": name, "settings": " ".join(words)}, by_runbook)


def setting_words(of: Of, values: Mapping[str, SettingValue | None]) -> list[str]:
    """Return settings as `runbook act set` takes them: NAME=VALUE, NAME=default for None."""
    known = of.catalog.settings
    return [f"{name}={'default' if v is None else known[name].spelt(v)}" for name, v in values.items()]


def undo_settings(of: Of, names: Iterable[str]) -> Proposal:
    """Reset settings of one workload to their defaults."""
    return settings("undo_settings", of, dict.fromkeys(names))


def pods(of: Of, which: str) -> Proposal:
    """Count the running instances of a workload."""
    name, tool = of.facts.workloads.program(which), commands(of)
    return _propose(of, "pods", tool.line(*tool.pods(name)), None, {"name": name})


def logs(of: Of, which: str) -> Proposal:
    """Read a workload's recent log."""
    name, tool = of.facts.workloads.program(which), commands(of)
    return _propose(of, "logs", tool.line(*tool.logs(name)), "logs", {"name": name})


def end_blocker(of: Of, pid: int, application: str, *, idle: bool) -> Proposal:
    """End the one session that blocks others; only with its owner's approval."""
    # A session that sits idle in its transaction has no statement to cancel.
    sql = f"SELECT pg_{'terminate' if idle else 'cancel'}_backend({pid})"
    return _propose(of, "end_blocker", psql(of, sql), "throttle", {"pid": pid, "application": application})


def cancel_waiting(of: Of, pid: int, application: str) -> Proposal:
    """Cancel the statement that waits for a strong lock and blocks all others meanwhile."""
    sql = f"SELECT pg_cancel_backend({pid})"
    return _propose(of, "cancel_waiting", psql(of, sql), "throttle", {"pid": pid, "application": application})


def end_sessions(of: Of, application: str) -> Proposal:
    """End the idle sessions of the application with most connections; only with its owner's approval."""
    name = application.replace("'", "''")
    sql = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "  # noqa: S608 - shown, not run; quoted
        f"WHERE application_name = '{name}' AND state = 'idle'"
    )
    return _propose(of, "end_sessions", psql(of, sql), "throttle", {"application": application})


def list_sessions(of: Of) -> Proposal:
    """List the connections as the superuser, for whom PostgreSQL reserves some."""
    sql = (
        "SELECT application_name, client_addr, state, count(*) FROM pg_stat_activity "
        "GROUP BY 1, 2, 3 ORDER BY 4 DESC LIMIT 20"
    )
    return _propose(of, "list_sessions", psql(of, sql), None, {})


def psql(of: Of, sql: str) -> str:
    """Return the psql command for a statement, with the credentials of the user who runs it."""
    return shlex.join([*of.facts.workloads.psql_words, "-c", sql])


def guarded(of: Of, action: str, *words: str) -> str:
    """Return the command that runs an action with its checks, a dry run as it stands; "" if the system has none."""
    if not any(action in brought for brought in pack.active_runbook().every("actions")):
        return ""
    run = of if isinstance(of, JudgeInput) else of.given()
    return shlex.join(["runbook", "act", action, *words, "--target", run.target, "--incident", run.incident])


def _propose(
    of: Of, name: str, command: str, role: Role | None, params: dict[str, Any], by_runbook: str = ""
) -> Proposal:
    """Return a proposal in the section with that role; without one, in that of the step that proposes it."""
    return Proposal(name, command, of.catalog.section_with(role) if role else "", params, by_runbook)
