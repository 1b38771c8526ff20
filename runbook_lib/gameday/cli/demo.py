"""A real incident on the sandbox, from the alert to the draft of its postmortem: what `make demo` shows."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path

import click

from runbook_lib.book import catalog
from runbook_lib.cli.main import cli
from runbook_lib.gameday.sandbox import faults
from runbook_lib.gameday.sandbox.sandbox import Sandbox
from runbook_lib.gameday.sandbox.state import SERVICES, SandboxError
from runbook_lib.model.finding import Status
from runbook_lib.store.archive import Archive

#: The system works for this long before it breaks: its processes are no longer starting.
WORKS_S = 30
#: Long enough that rows are plainly overdue, short enough to watch.
FAULT_S = 12


def demo(directory: Path, output: Path, fault_name: str, tell: Callable[[str], None]) -> Path:
    """Break the sandbox, let the runbook find it, restart what it proposes or heal, see the recovery, draft.

    Returns the dossier's index page. Raises SandboxError when the runbook did not see the recovery.
    """
    sandbox, fault = Sandbox(directory), faults.find(fault_name)
    incident = f"demo-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    archive, where = Archive(str(output), incident), ("--target", "sandbox", "--incident", incident)

    def runbook(*arguments: str) -> int:
        tell(f"\n$ {shlex.join(('runbook', *arguments))}")
        # Not a process of its own, which would be interrupted as well, nor what `cli` makes of that: it is for us here.
        with cli.make_context("runbook", list(arguments)) as context:
            return int(click.Group.invoke(cli, context))

    os.environ.update(RUNBOOK_SANDBOX_DIR=str(sandbox.directory), RUNBOOK_OUTPUT=str(output))
    tell("Starting PostgreSQL, nats-server and the services, with two hours of past traffic ...")
    sandbox.up(hours=2)
    try:
        tell(f"Letting it work for {WORKS_S} s ...")
        time.sleep(WORKS_S)
        tell(f"\n$ runbook sandbox fault {fault.name}\n{fault.description['en']}")
        faults.inject(sandbox, fault.name)
        tell(f"Letting it hurt for {FAULT_S} s ...")
        time.sleep(FAULT_S)
        alert = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        tell(f"\nAn alert fires at {alert}: the notification backlog grows.")
        runbook("triage", "-p", "detected_by=alert", "-p", f"detected_at={alert}", *where)
        verdicts = [entry["verdict"] for entry in archive.artifacts() if "verdict" in entry]
        if not verdicts:
            raise SandboxError("the triage stored no verdict")
        restarts = {f"restart_{service}": service for service in SERVICES}
        if restart := next((restarts.get(p["name"]) for p in verdicts[-1]["proposals"]), None):
            tell("\nThe runbook proposes a restart. A person approves it:")
            word = ["-p", "approved_by=demo", "-p", f"reason=proposed by the triage of {incident}"]
            asked = ["-p", f"workload={restart}", "-p", "execute=true", *word]
            runbook("run", catalog.section_with("restart"), *asked, *where)
        else:
            tell("\nThe runbook proposes no restart.\n$ runbook sandbox heal")
            faults.heal(sandbox)
        recovered = runbook("run", catalog.section_with("recover"), "-p", "window_minutes=15", "--wait", "2m", *where)
        runbook("postmortem", incident, "--target", "sandbox")
    finally:
        sandbox.down()
    if recovered != Status.OK.value:
        raise SandboxError(f"the runbook did not see the recovery (exit code {recovered})")
    return output / incident / "index.html"
