"""What the drills share: the command run on a sandbox as a scheduler would, and what must hold of every run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from runbook_lib.sandbox.sandbox import Sandbox


def runbook(sandbox: Sandbox, output: Path, *arguments: str) -> dict[str, Any]:
    """Run the command as a scheduler would, with addresses in the environment alone."""
    command = [sys.executable, "-m", "runbook_lib", *arguments, "--incident", "E2E", "--json", "--output", str(output)]
    done = subprocess.run(
        command, env={**os.environ, **sandbox.state.env}, capture_output=True, text=True, timeout=240, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    assert done.stdout, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == said["exit_code"]
    kept = b"".join(p.read_bytes() for p in output.rglob("*") if p.is_file()).decode(errors="replace")
    for secret in sandbox.state.addresses.passwords.values():
        assert secret not in done.stdout + done.stderr + kept
    return said


def shown(said: dict[str, Any]) -> str:
    return "\n".join(
        f"{f['step']} {f['status']} {f['reason'] or ''} {f['headline']}" for r in said["runs"] for f in r["findings"]
    )
