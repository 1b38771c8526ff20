"""The balance of a window: each change of a right in exactly one place, and what is in none, by its id.

`rb.account`, `runbook account`. The window says which events; where they are is told of now.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from runbook_lib import messages, rows
from runbook_lib.checks.check import could_not_ask, failures
from runbook_lib.checks.parts import Parts
from runbook_lib.context import Given
from runbook_lib.model.finding import Finding, Frames, Reason, Status, Value, judged, say
from runbook_lib.packs.entitlement import stream
from runbook_lib.packs.entitlement.ledger import PLACES, State
from runbook_lib.sources import SourceError
from runbook_lib.view import render

if TYPE_CHECKING:
    from runbook_lib.context import Context
    from runbook_lib.session import Session

ODD = ("doubled", "unregistered", "no_letter", "no_change", "no_outbox")
HOPS = tuple(dict.fromkeys(place.hop for place in PLACES.values()))


@dataclass(frozen=True)
class Counted:
    """So many events in one state; `ids` of those that do not simply go on, `times` when they were made and published.

    `audit` is None where the audit does not reach so far within the budget, `letter` where none is due.
    """

    QUESTION: ClassVar[str] = "account/states"
    origin: str = ""
    audit: bool | None = None
    outbox: str = ""
    outbox_wait: str = "due"
    processed: bool = False
    notification: str = ""
    notification_wait: str = "due"
    letter: bool | None = None
    doubled: bool = False
    n: int = 0
    ids: str = ""
    times: str = ""

    @property
    def names(self) -> list[str]:
        """The ids."""
        return self.ids.split()

    def state(self, broker: str = "") -> State:
        """What is known of each of them, with what the broker says."""
        return State(self.outbox, self.outbox_wait, self.processed, self.notification, self.notification_wait, broker)


@dataclass
class Balance:
    """How many events are in each place, by where they came from ("change", "match", "other"), and ids by place.

    `odd` are ids by what is amiss with events that are in a place all the same: doubled, unregistered (a notification
    without its registration), no_letter, no_change (an event without a row of the audit), no_outbox.
    """

    places: dict[str, Counter[str]] = field(default_factory=dict)
    ids: dict[str, list[str]] = field(default_factory=dict)
    odd: dict[str, list[str]] = field(default_factory=dict)

    def n(self, *fates: str) -> int:
        """How many events, or how many of these fates."""
        return sum(
            n for each in self.places.values() for place, n in each.items() if not fates or PLACES[place].fate in fates
        )

    @property
    def unaccounted(self) -> list[str]:
        """The ids of those that are nowhere; of a change without an event that of its audit row."""
        return [i for place, ids in self.ids.items() if PLACES[place].fate == "lost" for i in ids]

    def hops(self) -> pd.DataFrame:
        """Hop by hop: came, stays, goes_on (rows). To the next comes what goes on, and what enters there."""
        enters = {"producer": self.places.get("change", Counter()).total()}
        # Neither matches nor what came otherwise have an outbox: they begin where they are registered.
        enters["subscriber"] = sum(c.total() for origin, c in self.places.items() if origin != "change")
        stays = Counter[str]()
        for each in self.places.values():
            for place, n in each.items():
                if PLACES[place].fate != "done":
                    stays[PLACES[place].hop] += n
        found, came = [], 0
        for hop in HOPS:
            came += enters.get(hop, 0)
            found.append((hop, came, stays[hop], came - stays[hop]))
            came -= stays[hop]
        return pd.DataFrame(found, columns=["hop", "came", "stays", "goes_on"])

    def frame(self) -> pd.DataFrame:
        """Place by place: hop, place (text), n (rows)."""
        total = sum(self.places.values(), Counter[str]())
        found = [(PLACES[p].hop, p, total[p]) for p in PLACES if total[p]]
        return pd.DataFrame(found, columns=["hop", "place", "n"])


def of(states: pd.DataFrame, broker: Mapping[str, str]) -> Balance:
    """The balance of what the tables say, and of where the broker has what was published and not processed."""
    balance = Balance()
    for row in rows.each(states, Counted):
        counted = balance.places.setdefault(row.origin, Counter())
        if row.state().place == "published":
            for event in row.names:
                place = row.state(broker.get(event, "")).place
                counted[place] += 1
                balance.ids.setdefault(place, []).append(event)
        else:
            counted[row.state().place] += row.n
            balance.ids.setdefault(row.state().place, []).extend(row.names)
        odd = {
            "doubled": row.doubled,
            "unregistered": bool(row.notification) and not row.processed,
            "no_letter": row.letter is False,
            "no_change": row.origin == "change" and row.audit is False,
            "no_outbox": row.origin != "match" and not row.outbox and row.state().place != "no_event",
        }
        for name in (name for name, so in odd.items() if so):
            balance.odd.setdefault(name, []).extend(row.names)
    return balance


def collect(rb: Context) -> Frames:
    """Frames: states; broker (event_id: id; place: text). Raises SourceError."""
    parts = Parts()
    before = None
    # The consumer first: what it does not hold now, and is not processed a moment later, is nobody's.
    with parts.part("consumer"):
        before = stream.held(rb)
    with rb.snapshot() as db:
        states = parts.answers["states"] = db.ask("account/states")
    published = [
        (event, *(pd.Timestamp(float(t), unit="s", tz="UTC") for t in at))
        for row in rows.each(states, Counted)
        for times in [row.times.split()]
        for event, *at in zip(row.names, times[::2], times[1::2], strict=False)
    ]
    with parts.part("stream") as answers:
        if before:
            columns = ["event_id", "created_at", "published_at"]
            answers["broker"] = stream.places(rb, pd.DataFrame(published, columns=columns), before)
    return parts.frames()


def judge(frames: Frames, given: Given) -> tuple[Balance, Finding]:
    """Nothing may be lost or doubled; what was given up is known, and what was not seen is not lost."""
    told = frames.get("broker", pd.DataFrame(columns=["event_id", "place"]))
    balance = of(frames["states"], dict(zip(told["event_id"], told["place"], strict=True)))
    lost, unseen, given_up = balance.n("lost"), balance.n("unseen"), balance.n("given_up")
    odd = {
        name: len(balance.odd.get(name, ()))
        for name in ("doubled", "unregistered", "no_letter", "no_change", "no_outbox")
    }
    wrong = sum(odd.values())
    worst = Status.UNKNOWN if unseen else Status.WARNING if given_up else Status.OK
    facts = {"n": balance.n(), "sent": balance.n("done"), "way": balance.n("way"), "given_up": given_up, "lost": lost}
    why = next(iter(failures(frames).values()), None)
    notes = [say(f"account.odd_{name}", n=n, ids=_some(balance.odd[name])) for name, n in odd.items() if n]
    if unseen:
        seen = (
            say(f"unknown.{why.reason}", source=why.source, detail=why.detail) if why else say("account.not_all_read")
        )
        notes.append(say("account.unseen", n=unseen, why=seen))
    if any(r.origin == "change" and r.audit is None for r in rows.each(frames["states"], Counted)):
        notes.append(say("account.no_audit"))
    return balance, judged(
        say("account.said", **facts, unseen=unseen or None, odd=wrong or None),
        [
            given.limits.value("integrity.lost", lost),
            given.limits.value("integrity.rows", wrong),
            *(Value(f"account.{name}", n, "rows") for name, n in odd.items()),
        ],
        at_least=worst,
        reason=why.reason if why else None,
        notes=tuple(notes),
    )


def _some(ids: list[str], most: int = 5) -> str:
    return ", ".join(ids[:most]) + (", …" if len(ids) > most else "")


@dataclass(frozen=True)
class Account(render.Shown):
    """The balance, shown."""

    balance: Balance
    finding: Finding
    minutes: int
    lang: str

    @property
    def status(self) -> Status:
        """The finding's."""
        return self.finding.status

    def lines(self) -> list[str]:
        """As text: the sentence, hop by hop, place by place, then what is nowhere by its id."""
        lines = [f"{render.MARKS[self.status.name]} {self.status.name}  {self._t(self.finding.headline)}", ""]
        lines += [f"    {line}" for line in render.columns(self._table(), right=(1, 2, 3)) if self.balance.places]
        lines += [f"  {self._t(note)}" for note in self.finding.notes]
        for place, ids in self.balance.ids.items():
            if PLACES[place].fate in ("lost", "given_up") and ids:
                lines += ["", f"  {self._t(say(f'account.place.{place}'))}:", *(f"    {i}" for i in ids)]
        return lines

    def record(self) -> dict[str, Any]:
        """As JSON: status, places, hops, unaccounted and other ids."""
        return {
            "status": self.status.name,
            "exit_code": self.status.value,
            "headline": self._t(self.finding.headline),
            "places": {origin: dict(counted) for origin, counted in self.balance.places.items()},
            "hops": self.balance.hops().to_dict("records"),
            "unaccounted": self.balance.unaccounted,
            "ids": self.balance.ids,
            "odd": self.balance.odd,
            "notes": [self._t(n) for n in self.finding.notes],
        }

    def _table(self) -> list[list[str]]:
        heads = [self._t(say(f"account.{name}")) for name in ("hop", "came", "stays", "goes_on", "where")]
        places = self.balance.frame()
        table = [heads]
        for row in self.balance.hops().to_dict("records"):
            there = places[(places["hop"] == row["hop"])].to_dict("records")
            named = ((self._t(say(f"account.place.{p['place']}")), p["n"]) for p in there)
            where = ", ".join(f"{name} {n:,}" for name, n in named)
            counts = [f"{row[name]:,}" for name in ("came", "stays", "goes_on")]
            table.append([self._t(say(f"hop.{row['hop']}")), *counts, where])
        return table

    def _bundle(self) -> dict[str, Any]:
        return {
            "text/html": render.html(
                "account", self.lang, f=self.finding, table=self._table(), unaccounted=self.balance.unaccounted
            ),
            "text/plain": "\n".join(self.lines()),
        }

    def _t(self, text: Any) -> str:
        return messages.text(text, self.lang)


def account(rb: Session) -> Account:
    """The balance of the run's window. What could not be seen makes it UNKNOWN; nothing is raised for it."""
    context = rb.context
    minutes, reach = context.parameters.window_minutes, context.number("retention.outbox")
    try:
        if (context.now() - context.since).total_seconds() >= reach * 3600:
            detail = messages.text(say("account.beyond", day=int(reach)), rb.lang)
            raise SourceError("postgres", Reason.NO_DATA, detail)
        balance, finding = judge(collect(context), context.given())
    except SourceError as e:
        balance, finding = Balance(), could_not_ask(e)
    return Account(balance, finding, minutes, rb.lang, run=rb.opened)
