"""What section 7 reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from runbook_lib.model.finding import Frames
from runbook_lib.packs.postmortem import incident
from tests.kit.steps import NOW, ago

MINUTE = pd.Timedelta(minutes=1)


def span(minutes: int = 30, until: pd.Timestamp = NOW) -> pd.DataFrame:
    since = (until - minutes * MINUTE).floor("min")
    return pd.DataFrame([{"since": since, "until": until, "bucket_s": 60}])


def buckets(**columns: list[float]) -> pd.DataFrame:
    """Counts from bucket -1 on."""
    n = max(map(len, columns.values()))
    return pd.DataFrame({"bucket": range(-1, n - 1)} | {c: v + [0.0] * (n - len(v)) for c, v in columns.items()})


def outage(began: int = 20, lasted: int = 4, until: int = 30) -> Frames:
    """300 events a minute; nothing is sent from one minute on, and all of it in the first minute after."""
    came = [0.0] + [300.0] * until
    sent = [0.0] + [300.0] * began + [0.0] * lasted + [300.0 * (lasted + 1)] + [300.0] * (until - began - lasted - 1)
    late = [0.0] + [0.0] * began + [300.0] * lasted + [0.0] * (until - began - lasted)
    none = [0.0] * (until + 1)
    since = span(until)["since"][0]
    return {
        "span": span(until),
        "steps": span(until),
        "runs": pd.DataFrame([run_row("3", "CRITICAL", ago((until - began - 3) * 60), detected_by="alert")]),
        "notifications": buckets(sent=sent, failed=none, n=came, late=late),
        "outbox": buckets(opened=came, published=came, old_in=none, old_out=none, n=came, late=none, old=none),
        "waiting.notifications": waiting(came, sent, low={began + lasted: 10}, since=since).assign(
            slow=late, tried=none
        ),
        "waiting.outbox": waiting(came, came, low={}, since=since),
        "letters": buckets(delivery=[0.0], subscriber=[0.0]),
        "unprocessed": buckets(n=[0.0]),
        "outbox_failed": pd.DataFrame([{"total": 0, "timed": None, "n": 0, "first_failed": None}]),
        "reach": pd.DataFrame([{"ended_since": ago(40 * 86400), "published_since": ago(86400)}]),
        "month": pd.DataFrame([{"n": 1_000_000}]),
        "day": pd.DataFrame([{"n": 36_000}]),
        "size": pd.DataFrame([{"ended": 1e6, "published": 36_000.0}]),
    }


def waiting(came: list[float], gone: list[float], low: dict[int, float], since: pd.Timestamp) -> pd.DataFrame:
    """A queue that is emptied `low` seconds into each minute in which something leaves it, and else but fills."""
    frame = buckets(came=came, gone=gone)
    level = (frame["came"] - frame["gone"]).cumsum()
    emptied = frame["gone"] > 0
    before = level.shift(fill_value=0.0)
    seconds = [low.get(b, 59.0) if e else 0.0 for b, e in zip(frame["bucket"], emptied, strict=True)]
    times = since + pd.to_timedelta(frame["bucket"] * 60.0 + seconds, unit="s")
    return frame.assign(
        piece=0,
        least=before.where(~emptied, 0.0),
        most=np.maximum(np.maximum(before, level), 5.0),
        low_first=times,
        low_last=times,
    )


def run_row(section: str, status: str, at: pd.Timestamp, **more: Any) -> dict[str, Any]:
    usual = dict.fromkeys(incident.RUN) | {"name": f"{section}-{status}", "section": section, "status": status}
    times = dict.fromkeys(("started", "looked_at"), at) | dict.fromkeys(("detected_at", "onset"), pd.NaT)
    return usual | times | more
