"""A steady load of the notification service: enqueue, claim, mark, a hundred times a second, each timed.

    python -m tests.bench.load URL FILE

Adds to FILE a line for each: what, moment of its begin on the monotonic clock in s, seconds, as a JSON list.
"""

from __future__ import annotations

import gc
import json
import sys
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import ParamSpec, TypeVar

import psycopg
from psycopg.rows import dict_row

from runbook_lib.gameday.sandbox import notification
from runbook_lib.gameday.sandbox.settings import WorkerSettings
from runbook_lib.packs.entitlement.wire import EntitlementEvent

EVERY_S = 0.01
P = ParamSpec("P")
T = TypeVar("T")


def main() -> None:
    """Until it is told to end."""
    url = sys.argv[1]

    def timed(what: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        began = time.monotonic()
        value = call(*args, **kwargs)
        file.write(json.dumps((what, began, time.monotonic() - began)) + "\n")
        return value

    gc.disable()  # the database is measured, not this
    with (
        Path(sys.argv[2]).open("w") as file,
        psycopg.connect(url, autocommit=True, row_factory=dict_row) as connection,
    ):
        worker = notification.Deliveries(connection, WorkerSettings(batch_size=1), "notification-bench")
        due = time.monotonic()
        while True:
            now = datetime.now(UTC)
            event = EntitlementEvent(
                str(uuid.uuid4()), "EntitlementGranted", now.isoformat(), "user", "sku", "bench", "bench", 1, ""
            )
            timed("enqueue", notification.accept, connection, event, now)
            for row in timed("claim", worker.claim, now):
                timed("mark", worker.succeeded, row, now)
            file.flush()
            due = max(due + EVERY_S, time.monotonic() - EVERY_S)  # what it could not do is not made up for
            time.sleep(max(due - time.monotonic(), 0))


if __name__ == "__main__":
    main()
