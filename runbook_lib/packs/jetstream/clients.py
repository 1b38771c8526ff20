"""Read the broker's clients from its monitoring port: who is bound to a consumer, and whose login is refused."""

from __future__ import annotations

import pandas as pd

from runbook_lib.book import patterns
from runbook_lib.checks.check import failures
from runbook_lib.checks.context import JudgeInput
from runbook_lib.model import rows
from runbook_lib.model.finding import Frames
from runbook_lib.packs.jetstream import PACK

_CLOSED_CONNECTION = patterns.source(PACK, "closed connection")


class Client(rows.Row):
    """A client of the broker."""

    name: str = ""
    user: str = ""
    ip: str = ""
    port: int = 0
    bound: bool = False


class Closed(rows.Row):
    """The connections of one client ("-": it gave no name) that were closed for one reason."""

    client: str = ""
    reason: str = ""
    last_minute: float = 0.0
    last_s_ago: float | None = None


def count_closed(connections: pd.DataFrame) -> pd.DataFrame:
    """Count closed connections by client and reason.

    Frame closed (client: text, ip: text, reason: text, n: number, last_minute: 1/min, last_s_ago: s).
    """
    columns = ["client", "ip", "reason", "n", "last_minute", "last_s_ago"]
    others = connections[
        ~connections["name"].fillna("").str.startswith("runbook/")
        & connections["reason"].map(lambda reason: not _CLOSED_CONNECTION.says("quiet", str(reason)))
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


def count_refused(frames: Frames, given: JudgeInput) -> tuple[float | None, str]:
    """Return the number of logins refused within the last minute (None: unknown), and the most frequent reason.

    If the runbook did not reach the consumer, logins without a name may be its own: they do not count.
    """
    if "closed" not in frames:
        return None, ""
    unreached = "consumer" in failures(frames)
    quiet_s = given.number("refused.quiet")
    found = [
        closed
        for closed in rows.each(frames.get("closed"), Closed)
        # A refused client tries again every 2 s, so a reason without recent refusals is over.
        if _CLOSED_CONNECTION.says("refused", closed.reason)
        and closed.last_s_ago is not None
        and closed.last_s_ago < quiet_s
        and not (unreached and closed.client == "-")
    ]
    most = max(found, key=lambda closed: closed.last_minute, default=Closed())
    return sum(closed.last_minute for closed in found), most.reason


def list_clients(connections: pd.DataFrame, inbox: str) -> pd.DataFrame:
    """Return the clients other than runbooks; `bound` marks those that subscribe to the consumer's delivery subject.

    Frame clients (cid: number, name: text, ip: text, port: number, start: time, user: text, pending_bytes: bytes,
    bound: flag).
    """
    others = connections[~connections["name"].fillna("").str.startswith("runbook/")]
    listens = [bool(inbox) and inbox in str(subjects).split() for subjects in others["subjects"]]
    return others[["cid", "name", "ip", "port", "start", "user", "pending_bytes"]].assign(bound=listens)


def name_bound_client(frames: Frames) -> str:
    """Return the name and the address of the client that is bound to the consumer; "?" if none was seen."""
    bound = next((c for c in rows.each(frames.get("clients"), Client) if c.bound), None)
    return "?" if bound is None else f"{bound.name or bound.user} {bound.ip}:{bound.port}".strip()
