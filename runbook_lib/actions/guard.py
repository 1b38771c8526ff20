"""What a target's own rules say to every action: when it is frozen, and how many an hour may bring."""

from __future__ import annotations

import pandas as pd

from runbook_lib import freeze
from runbook_lib.context import Context
from runbook_lib.model.finding import say
from runbook_lib.outcome import Precondition
from runbook_lib.store import ACTION_LOG, entry_of
from runbook_lib.usage import UsageError
from runbook_lib.view.render import when

_HOUR = pd.Timedelta(hours=1)
_COUNTED = ("begun", "done", "failed")


def rules(rb: Context, *, break_glass: bool = False) -> tuple[Precondition, ...]:
    """The rules that the target has, as preconditions; `break_glass` waives those that do not hold.

    Counted are the actions on the target of every incident under the same output, each from its last line on. A clock
    that was set back neither ends a freeze nor forgets an action: the newest line of these logs counts beside it.
    """
    target, name = rb.target, rb.parameters.target
    if not target.freeze and not target.actions_per_hour:
        return ()
    try:
        log = logged(rb)
    except (OSError, UsageError) as e:
        return (Precondition(say("action.rule.unseen", detail=str(e)), None, waived=break_glass),)
    now, found = pd.Timestamp.now("UTC"), []
    if target.freeze:
        moments = (at.to_pydatetime(warn=False) for at in (now, latest(log)))
        ends = max((end for at in moments if (end := freeze.until(target.freeze, at))), default=None)
        said = say("action.rule.frozen", target=name, until=when(pd.Timestamp(ends))) if ends else None
        found.append((said or say("action.rule.not_frozen", target=name), ends is None))
    if limit := target.actions_per_hour:
        acted = log[log["result"].isin(_COUNTED)].groupby("id")["time"].max().sort_values()
        acted = acted[acted > now - _HOUR]
        free = (acted.iloc[-limit] + _HOUR).ceil("s") if len(acted) >= limit else None
        counted = say("action.rule.limit", target=name, n=len(acted), limit=limit, free=free and when(free))
        found.append((counted, free is None))
    return tuple(Precondition(text, ok, waived=break_glass and not ok) for text, ok in found)


def latest(log: pd.DataFrame) -> pd.Timestamp:
    """The moment that it is at least: a clock that was set back does not undo what is in the log."""
    moments: list[pd.Timestamp] = [pd.Timestamp.now("UTC"), *log["time"].dropna()]
    return max(moments)


def logged(rb: Context) -> pd.DataFrame:
    """The lines about this target of every incident: id, result, time (UTC), job. Raises OSError."""
    entries = (entry_of(line) for line in rb.archive.everywhere(ACTION_LOG))
    own = [e for e in entries if e and e.get("target") == rb.parameters.target]
    log = pd.DataFrame(own, columns=["id", "result", "time", "job"], dtype=object).astype(str)
    return log.assign(time=pd.to_datetime(log["time"], utc=True, errors="coerce", format="ISO8601"))
