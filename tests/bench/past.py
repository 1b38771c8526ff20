"""How long `runbook backtest` takes over many dossiers: the sample under other names, without a database."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.kit import ROOT

#: So many in so many seconds, on so many cores.
DOSSIERS, SECONDS, CORES = 200, 60.0, 2


@dataclass(frozen=True)
class Tested:
    """One run of the command: by the clock, and of all its processes together, in s; what went wrong, if anything."""

    seconds: float
    cpu_s: float
    problem: str

    @property
    def alone_s(self) -> float:
        """What it takes where nobody else wants the cores."""
        return self.cpu_s / CORES


def measure(scratch: Path) -> Tested:
    """Test the documents in force on the dossiers."""
    for n in range(DOSSIERS):
        shutil.copytree(ROOT / "outputs" / "sample", scratch / f"INC-{n:03}")
    own = {k: v for k, v in os.environ.items() if not k.startswith("RUNBOOK_")}
    command = ["backtest", "--policy", str(ROOT / "docs"), "--output", str(scratch)]
    before, began = _cpu_s(), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "runbook_lib", *command], env=own, cwd=scratch, capture_output=True, text=True,
        check=False, preexec_fn=_few_cores,
    )  # fmt: skip
    said = f"{DOSSIERS} incidents"
    problem = "" if done.returncode in (0, 1) and said in done.stdout else (done.stderr or done.stdout)[-300:]
    return Tested(time.monotonic() - began, _cpu_s() - before, problem)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _few_cores() -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
