"""Send dead letters of one store again, a portion at a time, or discard them (docs/operations.md)."""

from __future__ import annotations

import shlex
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from runbook_lib.actions.action import ActionError, Word
from runbook_lib.context import Context, Progress
from runbook_lib.model.finding import Text, say
from runbook_lib.outcome import Precondition
from runbook_lib.packs.entitlement.actions import stores
from runbook_lib.packs.entitlement.actions.stores import BrokerLetters, Entry, Letter, Writer
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.usage import UsageError, did_you_mean

#: Ids that are shown before, and that the action log keeps after.
SHOWN, KEPT = 5, 200
LOOK_EVERY_S = 0.5


class Redrive:
    """Send dead letters of one store again, or enter into the ledger that they never shall."""

    name = "redrive"

    def __init__(
        self, rb: Context, *, store: str, limit: int = 50, events: Sequence[str] = (), discard: bool = False
    ) -> None:
        policies = rb.catalog.redrive
        if store not in policies:
            raise UsageError(f"no dead letters in '{store}': {did_you_mean(store, list(policies))}")
        if limit < 1:
            raise UsageError(f"a portion of {limit} is none: name a limit from 1 to {policies[store].at_once}")
        self.policy, self.store, self.discard = policies[store], stores.store(store, rb), discard
        self.events = list(dict.fromkeys(_event_id(event) for event in events))
        self.limit = len(self.events) or limit
        self._target, self._incident = rb.parameters.target, rb.parameters.incident_id

    def what(self) -> dict[str, Any]:
        """The store, and how many or which."""
        which = {"events": [str(e) for e in self.events]} if self.events else {"limit": self.limit}
        return {"store": self.store.name, **which, "discard": self.discard}

    def command(self) -> str:
        """The command."""
        which = [w for e in self.events for w in ("--event", str(e))] or ["--limit", str(self.limit)]
        words = ["runbook", "act", "redrive", self.store.name, *which, *(["--discard"] if self.discard else [])]
        return shlex.join([*words, "--target", self._target, "--incident", self._incident])

    def preconditions(self, rb: Context) -> list[Precondition]:
        """The policy's limits, the ledger, an end of the portion before and of the failing, and something to send."""
        at_once, name = self.policy.at_once, self.store.name
        found = [
            Precondition(
                say("action.redrive.within_limit", at_once=at_once, asked=self.limit, store=name), self.limit <= at_once
            ),
            *(
                Precondition(
                    say("action.redrive.credentials", setting=url, variable=f"RUNBOOK_{url.upper()}"),
                    rb.target.url(url) is not None,
                )
                for url in self.store.urls
            ),
        ]
        if not all(p.holds for p in found[1:]):
            return found
        with stores.connect(rb) as db:
            ready = self._ready(db)
            found.append(Precondition(say("action.redrive.ledger"), ready["ledger"]))
            found.append(Precondition(say("action.redrive.may_write", store=name), ready["may_write"]))
            if not (ready["ledger"] and ready["may_write"]):
                return found
            letters = self.store.waiting(db, self.policy, self.events)
            if self.discard:
                return [*found, self._something(letters)]
            open_ = Counter(row["outcome"] for row in self.store.outcomes(db, None))
            found.append(Precondition(say("action.redrive.finished", n=open_["waiting"]), open_["waiting"] == 0))
            found += self._flows(rb, self.store.flow(db, facts_of(rb).lease_s))
        if open_["publishing"]:
            return [*found, Precondition(say("action.redrive.resumes", n=open_["publishing"]), ok=True)]
        return [*found, self._something(letters)]

    def state(self, rb: Context) -> dict[str, Any]:
        """Dead letters by what speaks against them, those discarded, and those under way."""
        if not all(rb.target.url(url) for url in self.store.urls):
            return {}
        with stores.connect(rb) as db:
            if not self._ready(db)["ledger"]:
                return {}
            seen = _counted(self.store.waiting(db, self.policy, ()))
            open_ = Counter(row["outcome"] for row in self.store.outcomes(db, None))
            (discarded,) = db.ask("discarded", store=self.store.name)
        verdicts = ("eligible", "permanent", "over_limit", "held", "doubled", "gone")
        return {
            **{verdict: seen[verdict] for verdict in verdicts},
            "discarded": discarded["n"],
            "under_way": open_["waiting"] + open_["publishing"],
        }

    def run(self, rb: Context, word: Word, progress: Progress) -> dict[str, Any]:
        """One transaction takes the portion; the broker's bodies are published after it."""
        entry = Entry(incident=self._incident, **asdict(word))
        progress(0.0, say("action.redrive.taking", n=self.limit, store=self.store.name))
        with stores.connect(rb) as db:
            if not db.lock(self.store.name):
                raise ActionError(f"another redrive of {self.store.name} is at it")
            rows = self._enter_discarded(db, entry) if self.discard else self._send(db, entry, progress)
        ids = [str(row["event_id"] or f"seq {row.get('stream_seq')}") for row in rows]
        return {"rows": len(rows), "events": ids[:KEPT], "ledger": [row["id"] for row in rows]}

    def verify(self, rb: Context, did: Mapping[str, Any], progress: Progress) -> tuple[bool, Text]:
        """Each event that went, looked up by its id until all have come to an end."""
        if self.discard:
            return did["rows"] > 0, say("action.redrive.discarded", n=did["rows"])
        begun = time.monotonic()
        with stores.connect(rb) as db:
            while True:
                rows = self.store.outcomes(db, did["ledger"])
                now = Counter(row["outcome"] for row in rows)
                under_way = sum(now[outcome] for outcome in ("publishing", "waiting", "published"))
                if not under_way or time.monotonic() - begun >= rb.parameters.wait_s:
                    break
                progress(
                    1 - under_way / max(len(rows), 1),
                    say("action.redrive.waiting", n=len(rows), arrived=now["succeeded"]),
                )
                time.sleep(LOOK_EVERY_S)
            stores.settle(db, rows)
            doubled = stores.doubled(db, rows)
        arrived = len(rows) > 0 and now["succeeded"] == len(rows) == did["rows"] and not doubled
        effect = say(
            f"action.redrive.effect_{self.store.name}",
            n=len(rows),
            arrived=now["succeeded"],
            under_way=under_way,
            failed=now["failed"],
            # A row that the ledger itself has lost is missing as well.
            missing=now["missing"] + did["rows"] - len(rows),
            doubled=doubled,
        )
        return arrived, effect

    # Inside -------------------------------------------------------------------------------------------------

    def _ready(self, db: Writer) -> dict[str, Any]:
        rights = (("runbook.redriven", "INSERT"), ("runbook.redriven", "UPDATE"), *self.store.rights)
        if self.discard:
            rights = rights[:1]
        (row,) = db.ask("ready", tables=[t for t, _ in rights], privileges=[p for _, p in rights])
        return row

    def _flows(self, rb: Context, flow: Mapping[str, Any]) -> list[Precondition]:
        """The cause is over, as far as can be seen, and whoever takes the rows is at work."""
        failed_s, retrying = flow["failed_s"], flow["retrying"]
        quiet = not retrying and (failed_s is None or failed_s >= self.policy.pause_s)
        seen: dict[str, Any] = {"store": self.store.name, "pause": self.policy.pause_s, "ago": failed_s, "n": retrying}
        never = "_never" if failed_s is None else ""
        at_work = "subscriber" if self.store.name == "broker" else "worker"
        return [
            Precondition(say(f"action.redrive.quiet{never}", **seen), quiet),
            Precondition(
                say(f"action.redrive.{at_work}", s=facts_of(rb).lease_s, consumer=facts_of(rb).streams.consumer),
                flow["works"],
            ),
        ]

    def _may_go(self, letter: Letter) -> bool:
        """Whether the policy lets this one go now, or be discarded."""
        if self.discard:
            # Without a name only what is not sent again anyway.
            return letter.verdict != "held" if self.events else letter.verdict in ("permanent", "over_limit", "gone")
        kinds = ("eligible", "permanent") if self.events or "permanent" in self.policy.kinds else ("eligible",)
        return letter.verdict in kinds

    def _chosen(self, letters: Sequence[Letter]) -> list[Letter]:
        going = [letter for letter in letters if self._may_go(letter)]
        return going if self.events else going[: self.limit]

    def _something(self, letters: Sequence[Letter]) -> Precondition:
        """There is something to send again; of events that are named, each of them."""
        chosen, seen = self._chosen(letters), _counted(letters)
        if self.events:
            amiss = [str(e) for e in self.events if e not in {letter.event_id for letter in chosen}]
            if amiss:
                return Precondition(say("action.redrive.not_named", ids=_listed(amiss), n=len(amiss)), ok=False)
        text = say(
            f"action.redrive.{'may_be_discarded' if self.discard else 'may_go'}",
            n=len(chosen),
            ids=_listed([letter.name for letter in chosen]),
            most=self.store.most,
            **{
                verdict: seen[verdict] for verdict in ("eligible", "permanent", "over_limit", "held", "doubled", "gone")
            },
        )
        return Precondition(text, len(chosen) > 0)

    def _enter_discarded(self, db: Writer, entry: Entry) -> list[dict[str, Any]]:
        chosen = self._chosen(self.store.waiting(db, self.policy, self.events))
        return stores.enter(db, self.store.name, "discard", "discarded", chosen, entry)

    def _send(self, db: Writer, entry: Entry, progress: Progress) -> list[dict[str, Any]]:
        """Whatever was seen before is looked at once more under the lock: another redrive may have been at it."""
        before = self.store.outcomes(db, None)
        stores.settle(db, before)
        if waiting := sum(row["outcome"] == "waiting" for row in before):
            raise ActionError(f"{waiting} of the portion before are still under way")
        half_way = [row for row in before if row["outcome"] == "publishing"]
        if half_way:
            # Of a command that was killed: these alone, and nothing new beside them.
            rows = half_way
        else:
            rows = self.store.take(db, self._chosen(self.store.waiting(db, self.policy, self.events)), entry)
            if not rows:
                raise ActionError("nothing could be taken: it is gone, or held by a worker")
        if isinstance(self.store, BrokerLetters):
            for n, row in enumerate(rows):
                progress(n / len(rows), say("action.redrive.publishing", n=len(rows), done=n))
                self.store.publish(db, row)
        return rows


def _event_id(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise UsageError(f"'{text}' is no event id: a UUID is meant") from None


def _counted(letters: Sequence[Letter]) -> Counter[str]:
    return Counter(letter.verdict for letter in letters)


def _listed(ids: Sequence[str]) -> str:
    return ", ".join(ids[:SHOWN]) + (", …" if len(ids) > SHOWN else "")
