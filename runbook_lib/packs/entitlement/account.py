"""Account for the events of a window: each is in exactly one place, and events without a place are listed by id.

`rb.account`, `runbook account`. The window selects the events; their places are those of now.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.book import messages
from runbook_lib.checks.check import failures, source_error_text, unknown_from_error
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import FrameCollector
from runbook_lib.model import rows
from runbook_lib.model.finding import Finding, Frames, Reason, Status, Value, hop_text, judged, say
from runbook_lib.packs.entitlement import missing, stream
from runbook_lib.packs.entitlement.event_place import PLACES, State
from runbook_lib.packs.entitlement.rows import list_ids
from runbook_lib.sources.source import SourceError
from runbook_lib.view import render

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context
    from runbook_lib.notebook.session import Session

#: Inconsistencies of an event that is in a place all the same; a note reports each.
INCONSISTENCIES = ("doubled", "unregistered", "no_letter", "no_change", "no_outbox")
HOPS = tuple(dict.fromkeys(place.hop for place in PLACES.values()))


class StateCount(rows.Row, query="account/states"):
    """The number of events in one state.

    `ids` has the ids of events that the services do not move on without help, and `times` when each was created and
    published. `audit` is None if the audit table cannot be read that far back within the budget, `letter` if no dead
    letter is expected.
    """

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
        """Return the ids as a list."""
        return self.ids.split()

    def state(self, broker: str = "") -> State:
        """Return the state of each of these events, with its place at the broker."""
        return State(self.outbox, self.outbox_wait, self.processed, self.notification, self.notification_wait, broker)


@dataclass
class Balance:
    """The number of events in each place, by origin ("change", "match", "other"), and their ids by place.

    `odd` has the ids of inconsistent events by kind: doubled (several notifications), unregistered (a notification
    without its registration), no_letter (given up without a dead letter), no_change (no row in the audit table),
    no_outbox (no row in the outbox).
    """

    places: dict[str, Counter[str]] = field(default_factory=dict)
    ids: dict[str, list[str]] = field(default_factory=dict)
    odd: dict[str, list[str]] = field(default_factory=dict)

    def n(self, *dispositions: str) -> int:
        """Return the number of events, or of those with one of these dispositions."""
        return sum(
            n
            for counts in self.places.values()
            for place, n in counts.items()
            if not dispositions or PLACES[place].disposition in dispositions
        )

    @property
    def unaccounted(self) -> list[str]:
        """Return the ids of lost events; for a change without an event, the id of its audit row."""
        return [i for place, ids in self.ids.items() if PLACES[place].disposition == "lost" for i in ids]

    def hops(self) -> pd.DataFrame:
        """Return a row for each hop: came, stays, goes_on (events).

        `came` counts the events that left the previous hop and those that enter the pipeline at this one.
        """
        enters = {"producer": self.places.get("change", Counter()).total()}
        # Events of the origins "match" and "other" have no outbox row: they enter at the subscriber.
        enters["subscriber"] = sum(c.total() for origin, c in self.places.items() if origin != "change")
        stays = Counter[str]()
        for each in self.places.values():
            for place, n in each.items():
                if PLACES[place].disposition != "done":
                    stays[PLACES[place].hop] += n
        found, came = [], 0
        for hop in HOPS:
            came += enters.get(hop, 0)
            found.append((hop, came, stays[hop], came - stays[hop]))
            came -= stays[hop]
        return pd.DataFrame(found, columns=["hop", "came", "stays", "goes_on"])

    def frame(self) -> pd.DataFrame:
        """Return a row for each place: hop, place (text), n (events)."""
        total = sum(self.places.values(), Counter[str]())
        found = [(PLACES[p].hop, p, total[p]) for p in PLACES if total[p]]
        return pd.DataFrame(found, columns=["hop", "place", "n"])


def balance_of(states: pd.DataFrame, broker: Mapping[str, str]) -> Balance:
    """Count the events by place, with the broker's place of those that are published and not processed."""
    balance = Balance()
    for row in rows.each(states, StateCount):
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
    """Query the tables and the broker. Frames: states; broker (event_id: id; place: text). Raises SourceError."""
    parts = FrameCollector()
    before = None
    # Read the consumer before the tables: an event that neither holds is lost then, not in between.
    with parts.part("consumer"):
        before = stream.read_consumer_position(rb)
    with rb.snapshot() as db:
        states = parts.answers["states"] = db.ask("account/states")
    published = pd.DataFrame(
        [
            (event, *(pd.Timestamp(float(t), unit="s", tz="UTC") for t in at))
            for row in rows.each(states, StateCount)
            for times in [row.times.split()]
            for event, *at in zip(row.names, times[::2], times[1::2], strict=False)
        ],
        columns=["event_id", "created_at", "published_at"],
    )
    with parts.part("stream") as answers:
        if before:
            times = dict(zip(published["event_id"], published["published_at"], strict=True))
            places = missing.leave_open(rb, stream.locate_events(rb, published, before), times)
            answers["broker"] = pd.DataFrame(places.items(), columns=["event_id", "place"])
    return parts.frames()


def judge(frames: Frames, given: JudgeInput) -> tuple[Balance, Finding]:
    """Judge the balance: lost and inconsistent events against their limits, given up WARNING, not located UNKNOWN."""
    located = frames.get("broker", pd.DataFrame(columns=["event_id", "place"]))
    balance = balance_of(frames["states"], dict(zip(located["event_id"], located["place"], strict=True)))
    lost, unseen, given_up = balance.n("lost"), balance.n("unseen"), balance.n("given_up")
    odd = {name: len(balance.odd.get(name, ())) for name in INCONSISTENCIES}
    inconsistent = sum(odd.values())
    worst = Status.UNKNOWN if unseen else Status.WARNING if given_up else Status.OK
    facts = {
        "n": balance.n(),
        "sent": balance.n("done"),
        "way": balance.n("in_progress"),
        "given_up": given_up,
        "lost": lost,
    }
    error = next(iter(failures(frames).values()), None)
    notes = [say(f"account.odd_{name}", n=n, ids=list_ids(balance.odd[name])) for name, n in odd.items() if n]
    if unseen:
        why = source_error_text(error) if error else say("account.not_all_read")
        notes.append(say("account.unseen", n=unseen, why=why))
    if any(r.origin == "change" and r.audit is None for r in rows.each(frames["states"], StateCount)):
        notes.append(say("account.no_audit"))
    return balance, judged(
        say("account.said", **facts, unseen=unseen or None, odd=inconsistent or None),
        [
            given.limits.value("integrity.lost", lost),
            given.limits.value("integrity.rows", inconsistent),
            *(Value(f"account.{name}", n, "rows") for name, n in odd.items()),
        ],
        at_least=worst,
        reason=error.reason if error else None,
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class Account(render.NotebookOutput):
    """The balance, shown on screen and as JSON."""

    balance: Balance
    finding: Finding
    minutes: int

    @property
    def status(self) -> Status:
        """Return the status of the finding."""
        return self.finding.status

    def lines(self) -> list[str]:
        """Return the text: the headline, a table of hops and places, then lost and given-up events by id."""
        lines = [f"{render.MARKS[self.status.name]} {self.status.name}  {messages.text(self.finding.headline)}", ""]
        lines += [f"    {line}" for line in render.columns(self._build_table(), right=(1, 2, 3)) if self.balance.places]
        lines += [f"  {messages.text(note)}" for note in self.finding.notes]
        for place, ids in self.balance.ids.items():
            if PLACES[place].disposition in ("lost", "given_up") and ids:
                lines += ["", f"  {messages.text(say(f'account.place.{place}'))}:", *(f"    {i}" for i in ids)]
        return lines

    def record(self) -> dict[str, Any]:
        """Return the JSON object: status, places, hops, and the ids of unaccounted and inconsistent events."""
        return {
            "status": self.status.name,
            "exit_code": self.status.value,
            "headline": messages.text(self.finding.headline),
            "places": {origin: dict(counted) for origin, counted in self.balance.places.items()},
            "hops": self.balance.hops().to_dict("records"),
            "unaccounted": self.balance.unaccounted,
            "ids": self.balance.ids,
            "odd": self.balance.odd,
            "notes": [messages.text(n) for n in self.finding.notes],
        }

    def _build_table(self) -> list[list[str]]:
        keys = ("account.hop", "account.came", "account.stays", "account.goes_on", "account.where")
        places = self.balance.frame()
        table = [[messages.text(say(key)) for key in keys]]
        for row in self.balance.hops().to_dict("records"):
            there = places[(places["hop"] == row["hop"])].to_dict("records")
            named = ((messages.text(say(f"account.place.{p['place']}")), p["n"]) for p in there)
            where = ", ".join(f"{name} {n:,}" for name, n in named)
            counts = [f"{row[name]:,}" for name in ("came", "stays", "goes_on")]
            table.append([messages.text(hop_text(row["hop"])), *counts, where])
        return table

    def _make_bundle(self) -> dict[str, Any]:
        return {
            "text/html": render.html(
                "account", f=self.finding, table=self._build_table(), unaccounted=self.balance.unaccounted
            ),
            "text/plain": "\n".join(self.lines()),
        }


def account(rb: Session) -> Account:
    """Return the balance of the run's window; if a source does not answer, its status is UNKNOWN."""
    context = rb.context
    minutes, reach = context.parameters.window_minutes, context.number("retention.outbox")
    try:
        if (context.now() - context.since).total_seconds() >= reach * 3600:
            detail = messages.text(say("account.beyond", day=int(reach)))
            raise SourceError("postgres", Reason.NO_DATA, detail)
        balance, finding = judge(collect(context), context.given())
    except SourceError as e:
        balance, finding = Balance(), unknown_from_error(e, context.catalog)
    return Account(balance, finding, minutes, run=rb.opened)
