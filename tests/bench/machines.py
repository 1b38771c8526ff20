"""A Dask scheduler and its workers, each a process of its own on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path


class Cluster:
    """A scheduler and workers; what they read and write is in one folder."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder, self.env = folder, env
        self.workers: list[subprocess.Popen[bytes]] = []
        at = folder / "scheduler.json"
        self.scheduler = self._start("scheduler", "--port", "0", "--scheduler-file", str(at))
        until = time.monotonic() + 60
        while not at.exists() or not at.read_text():
            assert time.monotonic() < until and self.scheduler.poll() is None
            time.sleep(0.05)
        self.url = str(json.loads(at.read_text())["address"])

    def worker(self, *options: str, **env: str) -> subprocess.Popen[bytes]:
        """One more worker, with two threads."""
        self.workers.append(
            self._start("worker", self.url, "--nthreads", "2", "--memory-limit", "0", *options, **env),
        )
        return self.workers[-1]

    def _start(self, kind: str, *options: str, **env: str) -> subprocess.Popen[bytes]:
        dask = str(Path(sys.executable).parent / "dask")
        command = [dask, kind, *options, "--host", "127.0.0.1", "--no-dashboard"]
        log = (self.folder / "dask.log").open("ab")
        with log:
            return subprocess.Popen(command, cwd=self.folder, env=os.environ | self.env | env, stdout=log, stderr=log)

    def stop(self) -> None:
        """End all of it: the workers first, since they take their leave of the scheduler."""
        for processes in (self.workers, [self.scheduler]):
            for process in processes:
                process.terminate()
            for process in processes:
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
