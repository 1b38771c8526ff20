"""4.1.4: who waits for whom, and how many connections are left. From the catalogs alone, so that it answers
while a table is locked.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.actions import proposals
from runbook_lib.checks.check import Check, could_not_ask
from runbook_lib.context import Given
from runbook_lib.model.finding import Finding, Frames, Proposal, Signal, Status, Text, Value, judged, say
from runbook_lib.model.frames import amount, one, table
from runbook_lib.packs.entitlement.actions import remedies
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.sources import SourceError
from runbook_lib.view import charts

if TYPE_CHECKING:
    from runbook_lib.context import Context

QUESTIONS = ("connections", "sessions", "blocked", "blockers", "long_transactions")


def collect(rb: Context) -> Frames:
    """Catalog views only: they answer under an ACCESS EXCLUSIVE lock too."""
    with rb.snapshot() as db:
        return {name: db.ask(f"database/{name}") for name in QUESTIONS}


def judge(frames: Frames, given: Given) -> Finding:
    """A lock wait that lasts, or connections that run out, hold up every hop at once."""
    connections = one(frames.get("connections"))
    usable = sum(
        sign * amount(connections, name)
        for sign, name in ((1, "max_connections"), (-1, "superuser_reserved"), (-1, "reserved"))
    )
    used = amount(connections, "used")
    share = 100 * used / usable if usable > 0 else None
    sees = bool(connections.get("sees_others"))
    blocked, blockers = table(frames, "blocked", "wait_s"), table(frames, "blockers", "pid", "application")
    wait = _largest(blocked["wait_s"])
    longest = _largest(table(frames, "long_transactions", "transaction_s")["transaction_s"])
    first = one(blockers)
    most, share_of_most = _biggest(frames, used)

    limits = given.limits
    wait_value, used_value = limits.value("locks.wait", wait), limits.value("connections.used", share)
    facts: dict[str, Any] = {
        "blocked": len(blocked),
        "wait": wait,
        "pid": first.get("pid"),
        "application": first.get("application"),
        "state": first.get("state"),
        "transaction": first.get("transaction_s"),
        "used": used,
        "usable": usable,
        "share": share,
        "most": most,
        "share_of_most": share_of_most,
    }
    waits = wait_value.status is not Status.OK
    full = used_value.status in (Status.WARNING, Status.CRITICAL)
    return judged(
        _headline(waits, full, facts),
        [
            wait_value,
            used_value,
            Value("locks.blocked_sessions", len(blocked), "sessions"),
            Value("connections.used_of_usable", f"{used:.0f} / {usable:.0f}"),
            Value("transactions.longest", longest, "s"),
        ],
        notes=_notes(sees, longest, given),
        signals=tuple(_signals(wait_value, used_value, given)),
        proposals=_proposals(given, waits, full, first, most, share_of_most),
        next_sections=("5.2",) if full or waits else (),
        show=tuple(n for n in ("blockers", "blocked", "sessions", "long_transactions") if len(table(frames, n))),
    )


def on_error(e: SourceError, given: Given) -> Finding:
    """Being turned away for want of a connection is the answer to this step."""
    if e.code != "too_many_clients":
        return could_not_ask(e)
    return judged(
        say("database.no_connection", detail=e.detail),
        at_least=Status.CRITICAL,
        proposals=(proposals.list_sessions(given), *_throttle(given)),
        next_sections=("5.2",),
    )


def _largest(values: pd.Series) -> float:
    largest = pd.to_numeric(values, errors="coerce").max()
    return float(largest) if largest == largest else 0.0


def _biggest(frames: Frames, used: float) -> tuple[str, float]:
    """The application with most connections, and its share of all that are used, 0 to 1."""
    sessions = table(frames, "sessions", "application", "n")
    if sessions.empty or not used:
        return "-", 0.0
    by_application = sessions.groupby("application")["n"].sum()
    return str(by_application.idxmax()), min(float(by_application.max()) / used, 1.0)


def _headline(waits: bool, full: bool, facts: dict[str, Any]) -> Text:
    if waits:
        return say("database.blocked" if facts["pid"] is not None else "database.waits", **facts)
    return say("database.full" if full else "database.free", **facts)


def _notes(sees: bool, longest: float, given: Given) -> tuple[Text, ...]:
    notes = [] if sees else [say("database.denied")]
    if longest >= facts_of(given).lease_s:
        notes.append(say("database.long_transaction", longest=longest))
    return tuple(notes)


def _signals(wait: Value, used: Value, given: Given) -> list[Signal]:
    signals = []
    weights = {Status.WARNING: 0.75, Status.CRITICAL: 0.9}
    if wait.status in weights:
        signals += [Signal("database", weights[wait.status]), Signal("FM-DB-01", weights[wait.status])]
    if used.status in weights:
        # Many connections are a warning; none left is an outage.
        weight = 0.9 if used.status is Status.CRITICAL else 0.4
        signals += [Signal("database", weight), Signal("FM-DB-01", weight)]
    if not signals and wait.status is Status.OK and used.status is Status.OK:
        signals += [Signal("database", -0.3), Signal("FM-DB-01", -0.3)]
    return signals


def _proposals(
    given: Given, waits: bool, full: bool, first: dict[str, Any], most: str, share_of_most: float
) -> tuple[Proposal, ...]:
    if waits and first.get("pid") is not None:
        idle = str(first.get("state") or "").startswith("idle")
        return (proposals.end_blocker(given, int(first["pid"]), str(first["application"]), idle=idle),)
    if full and share_of_most > 0.5 and not _is_ours(most):
        # One application holds most of them: slowing down our own workers would free next to nothing.
        return (proposals.end_sessions(given, most), *_throttle(given))
    return _throttle(given) if full else ()


def _is_ours(application: str) -> bool:
    """Whether that is how the pods, which give no name, appear: by their driver or their address."""
    return application == "PostgreSQL JDBC Driver" or bool(re.fullmatch(r"-|[0-9a-f.:]+", application))


def _throttle(given: Given) -> tuple[Proposal, ...]:
    return remedies.throttle(given, "delivery"), remedies.throttle(given, "relay")


def draw_sessions(frames: Frames, given: Given) -> charts.Chart | None:
    """Connections by application and state, against what an ordinary role can get."""
    sessions, connections = table(frames, "sessions", "application", "state", "n"), one(frames.get("connections"))
    if sessions.empty or not connections:
        return None
    matrix = (
        sessions.assign(state=sessions["state"].fillna("not visible"))
        .pivot_table(index="application", columns="state", values="n", aggfunc="sum", fill_value=0)
        .pipe(lambda t: t.loc[t.sum(axis=1).sort_values().index])
        .tail(8)
    )
    usable = sum(
        sign * amount(connections, name)
        for sign, name in ((1, "max_connections"), (-1, "superuser_reserved"), (-1, "reserved"))
    )
    figure, ax = charts.axes("Connections by application", "", f"connections, of {usable:.0f} usable")
    left = pd.Series(0.0, index=matrix.index)
    looks = zip(matrix.columns, (charts.BLUE, charts.ORANGE, charts.GREEN, charts.GREY, charts.RED), strict=False)
    for (state, colour), hatch in zip(looks, ("", "//", "..", "xx", "\\\\"), strict=False):
        ax.barh(
            matrix.index,
            matrix[state],
            left=left,
            color=colour,
            hatch=hatch,
            height=0.6,
            edgecolor="white",
            label=state,
        )
        left += matrix[state]
    ax.axvline(usable, color=charts.RED, linestyle=":", label=f"usable {usable:.0f}")
    ax.set_ylim(-0.8, max(len(matrix), 3) - 0.2)
    charts.legend(figure)
    used = amount(connections, "used")
    return charts.Chart(
        figure,
        say("database.alt_sessions", used=used, usable=usable, most=str(matrix.index[-1]), n=float(left.iloc[-1])),
        () if connections.get("sees_others") else (say("database.denied"),),
    )


CHECKS: tuple[Check, ...] = (Check("4.1.4", collect, judge, (draw_sessions,), on_error),)
