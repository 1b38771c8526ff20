"""The configuration with which the real server of `runbook lab` begins."""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import suppress
from pathlib import Path

import requests

from runbook_lib.gameday.sandbox.state import free_ports
from tests.kit import RECORDINGS
from tests.kit.command import processes, start


def test_nobody_is_asked_about_news_from_the_internet(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    options = ["--no-browser", "--allow-root", f"--port={port}", "--IdentityProvider.token=t"]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", ""), "HOME": str(tmp_path)}
    replay = RECORDINGS / "worker_hung.runbook"
    with (tmp_path / "log").open("w") as log:
        lab = start("lab", "--replay", str(replay), "--", *options, env=env, cwd=tmp_path, stdout=log, stderr=log)
    try:
        answer, until = None, time.monotonic() + 120
        while answer is None:
            assert lab.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()
            time.sleep(0.1)
            with suppress(requests.ConnectionError):
                answer = requests.get(f"http://127.0.0.1:{port}/lab?token=t", timeout=60)
        config = re.search(r'id="jupyter-config-data"[^>]*>(.*?)</script>', answer.text, re.DOTALL)
        assert config and "@jupyterlab/apputils-extension:announcements" in json.loads(config[1])["disabledExtensions"]
    finally:
        for process in [*processes("HOME", str(tmp_path))]:
            process.kill()
        lab.wait(60)
