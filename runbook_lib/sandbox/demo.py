"""A real incident on the sandbox, from the first row that waits to the recovery: what `make demo` shows."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from runbook_lib.finding import Status
from runbook_lib.sandbox import faults
from runbook_lib.sandbox.sandbox import Sandbox
from runbook_lib.sandbox.state import SandboxError

#: Long enough that rows are plainly overdue, short enough to watch.
FAULT_S = 12
#: After the healing, until the newest events are those that did not have to wait.
FLOW_S = 8


def demo(directory: Path, output: Path, fault_name: str, tell: Callable[[str], None]) -> Path:
    """Break the sandbox, let the runbook find it, heal it, let the runbook see the recovery.

    Returns the dossier's index page. Raises SandboxError when the runbook did not find what was broken.
    """
    sandbox, fault = Sandbox(directory), faults.find(fault_name)
    incident = f"demo-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"

    def runbook(*arguments: str) -> int:
        command = ["--target", "sandbox", "--incident", incident, "--output", str(output)]
        tell(f"\n$ runbook {' '.join(arguments)} --target sandbox --incident {incident}")
        environment = {**os.environ, "RUNBOOK_SANDBOX_DIR": str(sandbox.directory)}
        program = [sys.executable, "-m", "runbook_lib", *arguments, *command]
        return subprocess.run(program, env=environment, check=False).returncode

    tell("Starting PostgreSQL, nats-server and the services, with two hours of past traffic ...")
    sandbox.up(hours=2)
    try:
        tell(f"\n$ runbook sandbox fault {fault.name}\n{fault.description['en']}")
        sandbox.fault(fault.name)
        tell(f"Letting it hurt for {FAULT_S} s ...")
        time.sleep(FAULT_S)
        found = runbook("triage", "-p", "detected_by=alert")
        tell("\n$ runbook sandbox heal")
        sandbox.heal()
        tell(f"Letting it flow for {FLOW_S} s ...")
        time.sleep(FLOW_S)
        recovered = _until_recovered(lambda: runbook("run", "6", "-p", "window_minutes=15"))
    finally:
        sandbox.down()
    if found != Status.CRITICAL.value:
        raise SandboxError(f"the runbook did not call '{fault.name}' CRITICAL (exit code {found})")
    if recovered != Status.OK.value:
        raise SandboxError(f"the runbook did not see the recovery (exit code {recovered})")
    return output / incident / "index.html"


def _until_recovered(run: Callable[[], int], tries: int = 4) -> int:
    """Section 6 may honestly say "not yet" at first: ask again."""
    code = run()
    for _ in range(tries - 1):
        if code == Status.OK.value:
            break
        time.sleep(8)
        code = run()
    return code
