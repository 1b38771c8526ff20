"""From the broker's monitoring port: whom it has turned away, and whether it still does."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from runbook_lib.context import Given
from runbook_lib.model.finding import Frames
from runbook_lib.rows import each

#: The server's words for a client that it did not let in.
REFUSED = (
    "Authentication Failure",
    "Authentication Timeout",
    "Authorization Violation",
    "TLS Handshake Failure",
)
#: Reasons of a healthy life, or of the runbook's own visits.
QUIET = ("Client Closed", "Server Shutdown")


@dataclass(frozen=True)
class Closed:
    """Connections that were closed for one reason."""

    reason: str = ""
    last_minute: float = 0.0
    last_s_ago: float | None = None


def closed_of(connections: pd.DataFrame) -> pd.DataFrame:
    """Why connections were closed, by client and reason: how often, in the last minute, when last.

    Frame closed (client: text, ip: text, reason: text, n: number, last_minute: 1/min, last_s_ago: s).
    """
    columns = ["client", "ip", "reason", "n", "last_minute", "last_s_ago"]
    others = connections[
        ~connections["name"].fillna("").str.startswith("runbook/") & ~connections["reason"].isin(QUIET)
    ]
    if others.empty:
        return pd.DataFrame(columns=columns)
    client = others["name"].replace("", None).fillna(others["user"]).fillna("-")
    ago = (others["now"] - others["stop"]).dt.total_seconds().round(1)
    grouped = (
        others.assign(client=client, recent=ago < 60, ago=ago)
        .groupby(["client", "ip", "reason"], dropna=False)
        .agg(n=("reason", "size"), last_minute=("recent", "sum"), last_s_ago=("ago", "min"))
        .reset_index()
    )
    return grouped[columns].sort_values("last_s_ago").head(50).reset_index(drop=True)


def refused(frames: Frames, given: Given) -> tuple[float, str]:
    """Logins refused within the last minute, and the server's most frequent word for it."""
    quiet_s = given.number("refused.quiet")
    found = [
        closed
        for closed in each(frames.get("closed"), Closed)
        # A loop that has gone quiet is over: who is kept out tries again every 2 s.
        if closed.reason in REFUSED and closed.last_s_ago is not None and closed.last_s_ago < quiet_s
    ]
    most = max(found, key=lambda closed: closed.last_minute, default=Closed())
    return sum(closed.last_minute for closed in found), most.reason
