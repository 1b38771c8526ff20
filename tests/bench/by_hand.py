"""What is asked by hand, beside the bare or the obvious query: `rb.ask`, `runbook event`, `runbook account`."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import patch

import psycopg

from runbook_lib.book import queries
from runbook_lib.notebook.session import quiet_session

from .fill import Filled

NAMED = "notifications/backlog"
EVENTS, TIMES = 5, 20
#: At most so many ms over the bare query, and seconds of a command.
OVER_MS, EVENT_S, ACCOUNT_S = 10.0, 1.0, 3.0

_EVENT = "SELECT * FROM notification.notifications WHERE event_id = %s"
_ACCOUNT = """
SELECT o.status, count(*), count(p.event_id), count(n.event_id) FILTER (WHERE n.sent_at IS NOT NULL)
FROM entitlement.outbox_events o LEFT JOIN notification.processed_events p USING (event_id)
LEFT JOIN notification.notifications n USING (event_id) WHERE o.created_at > now() - interval '1 hour' GROUP BY 1
"""


@dataclass(frozen=True)
class Asked:
    """Medians in seconds: from outside, as a cell of an open notebook, and the query beside it."""

    name: str
    command_s: float | None
    cell_s: float
    beside_s: float
    target_s: float

    @property
    def counted_s(self) -> float:
        """What the target is about: what is over the bare query, or the whole of it."""
        return self.cell_s - self.beside_s if self.command_s is None else self.command_s


def measure(large: Filled, scratch: Path) -> list[Asked]:
    """Each side by side in this run; what it finds counts as found by its exit code."""
    with patch.dict(os.environ, {**large.env, "RUNBOOK_OUTPUT": str(scratch)}), psycopg.connect(large.admin_url) as db:
        rows = db.execute(
            "SELECT event_id FROM notification.notifications WHERE created_at > now() - interval '1 day' LIMIT %s",
            [EVENTS],
        ).fetchall()
        events = [str(event) for (event,) in rows]
        rb = quiet_session("4.1", incident_id="bench")
        bare = re.sub(r"(?<!:):(\w+)", r"%(\1)s", queries.query(NAMED).sql.replace("%", "%%"))
        given = {"as_of": datetime.now(UTC)}
        found = [
            Asked(
                f"rb.ask({NAMED})",
                None,
                _median(lambda: rb.ask(NAMED, **given), TIMES),
                _median(lambda: db.execute(bare, given).fetchall(), TIMES),
                OVER_MS / 1000,
            )
        ]
        for name, words, cell, query, target in (
            ("event", events, lambda: rb.event(events[-1]), (_EVENT, [events[-1]]), EVENT_S),
            ("account", [""], lambda: rb.account(), (_ACCOUNT, []), ACCOUNT_S),
        ):
            commands = [_command(name, *filter(None, [word])) for word in words]
            beside = _median(lambda query=query: db.execute(*query).fetchall(), 3)  # type: ignore[misc]
            found.append(Asked(f"runbook {name}", statistics.median(commands), _median(cell, 5), beside, target))
    return found


def _command(*words: str) -> float:
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "runbook_lib", *words, "--incident", "bench"],
        check=False,
        capture_output=True,
        timeout=120,
    )
    return time.perf_counter() - begun


def _median(what: Callable[[], object], times: int) -> float:
    what()  # warms what is cached
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        what()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)
