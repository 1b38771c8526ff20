"""An application of procrastinate as others write them: what the workers of test_procrastinate.py run."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import procrastinate


class Connector(procrastinate.PsycopgConnector):
    """The session that listens asks whether it is there, and shows that instead of its LISTEN: usually after 30 s."""

    async def _loop_notify(self, on_notification: Any, connection: Any, timeout: float = 30.0) -> None:
        await super()._loop_notify(on_notification, connection, float(os.environ.get("APP_LISTENS_S", timeout)))


app = procrastinate.App(
    connector=Connector(conninfo=os.environ["APP_DATABASE_URL"]),
    worker_defaults={
        "update_heartbeat_interval": float(os.environ.get("APP_HEARTBEAT_S", "10")),
        "stalled_worker_timeout": float(os.environ.get("APP_STALLED_S", "30")),
        "fetch_job_polling_interval": float(os.environ.get("APP_POLL_S", "5")),
    },
)


@app.task(queue="default")
async def send(n: int = 0) -> None:
    """Done at once."""


@app.task(queue="default")
async def work(seconds: float) -> None:
    """Takes its time, and lets others run meanwhile."""
    await asyncio.sleep(seconds)
