"""One portion of a redrive in a process of its own, as the command would carry it out: to be killed by a test."""

from __future__ import annotations

import os
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from runbook_lib.notebook.session import quiet_session
from runbook_lib.runs import forks


def start(env: dict[str, str], output: Path, store: str, limit: int) -> BaseProcess:
    """Start it; it leaves with 0 when it was carried out and its effect was seen."""
    context: Any = forks.context()
    # The server of forks may have begun before the test, with nobody's ledger but the user's own.
    env = {**env, "XDG_STATE_HOME": os.environ["XDG_STATE_HOME"], "RUNBOOK_OUTPUT": str(output)}
    process: BaseProcess = context.Process(target=_act, args=(env, store, limit))
    process.start()
    return process


def _act(env: dict[str, str], store: str, limit: int) -> None:
    os.environ.update(env)
    rb = quiet_session("4.4", incident_id="INC-7", wait_s=60.0)
    rb.act(
        "redrive", store=store, limit=limit, execute=True, approved_by="Owner of the receiver",
        reason="the receiver is back",
    )  # fmt: skip
    outcome = rb.context.outcomes["redrive"]
    sys.exit(0 if outcome.result == "done" and outcome.verified else 1)
