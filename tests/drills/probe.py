"""The flow, measured without the runbook's code: from the tables and the receiver's own log.

It asks as the superuser, one table at a time, and waits for no lock: what it can not read is None.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg

from runbook_lib.gameday.sandbox import broker
from runbook_lib.gameday.sandbox.sandbox import Sandbox


@dataclass(frozen=True)
class FlowSample:
    """The last `s` seconds. Each field that could not be read is None.

    Rates are events per second, `oldest_s` and `ahead_s` seconds, all others counts: `waiting` is what is on its way,
    `retrying` what has failed and will be tried again, `lost` what was given up or has no dead letter to tell,
    `doubled` events that became two notifications or were received twice, `again` those of these seconds. `ahead_s` is
    how far the newest row lies in the future. `missing` events were published a minute ago or earlier, and there is no
    notification.
    """

    s: float
    created: float | None = None
    published: float | None = None
    processed: float | None = None
    sent: float | None = None
    waiting: float | None = None
    oldest_s: float | None = None
    retrying: float | None = None
    lost: float | None = None
    doubled: float | None = None
    again: float | None = None
    ahead_s: float | None = None
    missing: float | None = None


_QUESTIONS = Path(__file__).with_name("flow.sql").read_text(encoding="utf-8").split(";\n")[:-1]


def sample_flow(sandbox: Sandbox, s: float) -> FlowSample:
    """Sample the flow over `s` seconds."""
    sent, twice, again = _count_received(sandbox, s)
    found: dict[str, float] = {"sent": sent}
    missing: set[str] = set()
    with (
        contextlib.suppress(psycopg.Error),
        psycopg.connect(
            sandbox.state.addresses.admin_url,
            autocommit=True,
            connect_timeout=3,
            options="-c lock_timeout=300 -c statement_timeout=10000",
            row_factory=psycopg.rows.dict_row,
        ) as connection,
    ):
        for question in _QUESTIONS:
            names = _field_names(question)
            try:
                row = connection.execute(question.encode(), {"s": s, "while": timedelta(seconds=s)}).fetchone() or {}
            except psycopg.Error:
                missing |= set(names)
                continue
            for name in names:
                found[name] = found.get(name, 0.0) + float(row[name] or 0)
    if "lost" in found:
        try:
            found["lost"] += _given_up_by_the_broker(sandbox)
        except (OSError, ValueError, KeyError):
            missing.add("lost")
    if "doubled" in found:
        found["doubled"] += twice
        found["again"] += again
    return FlowSample(s, **{name: round(value, 3) for name, value in found.items() if name not in missing})


def _given_up_by_the_broker(sandbox: Sandbox) -> int:
    """Return the messages that used up their deliveries or were terminated, from the stored advisories.

    The table of them is filled by the very service that may stand still. The monitoring port knows no permissions.
    """
    accounts = sandbox.ask_broker("jsz?streams=1").get("account_details") or ()
    streams = {s["name"]: s["state"]["messages"] for account in accounts for s in account.get("stream_detail") or ()}
    return int(streams[broker.ADVISORY_STREAM] + streams[broker.TERMINATED_STREAM])


def _field_names(question: str) -> list[str]:
    return [f.name for f in fields(FlowSample) if f" AS {f.name}" in question]


def _count_received(sandbox: Sandbox, s: float) -> tuple[float, int, int]:
    """Return how many notifications per second the receiver has got, how many it has ever got again, and lately."""
    since = datetime.now(UTC) - timedelta(seconds=s)
    ids: Counter[str] = Counter()
    n = again = 0
    for line in sandbox.log("receiver").splitlines():
        with contextlib.suppress(ValueError, KeyError):  # what is not one of its own lines, or half of one
            said = json.loads(line)
            if said["message"].startswith("received "):
                late = datetime.fromisoformat(said["@timestamp"]) > since
                n += late
                again += late and said["message"] in ids
                ids[said["message"]] += 1
    return n / s, sum(ids.values()) - len(ids), again
