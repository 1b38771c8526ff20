"""Send dead letters of one store again, in portions, or discard them (docs/operations.md)."""

from __future__ import annotations

import shlex
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from runbook_lib.actions.action import ActionError, Authorization
from runbook_lib.context import Context, Progress
from runbook_lib.model.finding import Text, say
from runbook_lib.outcome import Precondition
from runbook_lib.packs.entitlement.actions import stores
from runbook_lib.packs.entitlement.actions.stores import BrokerLetters, DeadLetter, Writer
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.usage import UsageError, did_you_mean

#: Ids that are shown before a run, and ids that the action log stores after it.
SHOWN, KEPT = 5, 200
_EFFECT_KEYS = {
    "delivery": "action.redrive.effect_delivery",
    "outbox": "action.redrive.effect_outbox",
    "broker": "action.redrive.effect_broker",
}
SAMPLE_EVERY_S = 0.5


class Redrive:
    """Send dead letters of one store again, or record in the ledger that they are discarded."""

    name = "redrive"

    def __init__(
        self, rb: Context, *, store: str, limit: int = 50, events: Sequence[str] = (), discard: bool = False
    ) -> None:
        policies = rb.catalog.redrive
        if store not in policies:
            raise UsageError(f"no dead letters in '{store}': {did_you_mean(store, list(policies))}")
        if limit < 1:
            raise UsageError(f"--limit {limit} is too low: give a number from 1 to {policies[store].at_once}")
        self.policy, self.store, self.discard = policies[store], stores.store(store, rb), discard
        self.events = list(dict.fromkeys(_parse_event_id(event) for event in events))
        self.limit = len(self.events) or limit
        self._target, self._incident = rb.parameters.target, rb.parameters.incident_id

    def what(self) -> dict[str, Any]:
        """Return the store, and the number of dead letters or their events."""
        which = {"events": [str(e) for e in self.events]} if self.events else {"limit": self.limit}
        return {"store": self.store.name, **which, "discard": self.discard}

    def command(self) -> str:
        """Return the command."""
        which = [w for e in self.events for w in ("--event", str(e))] or ["--limit", str(self.limit)]
        words = ["runbook", "act", "redrive", self.store.name, *which, *(["--discard"] if self.discard else [])]
        return shlex.join([*words, "--target", self._target, "--incident", self._incident])

    def preconditions(self, rb: Context) -> list[Precondition]:
        """Check limit, credentials, ledger, the previous portion, recent failures, and what there is to send."""
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
            ready = self._query_rights(db)
            found.append(Precondition(say("action.redrive.ledger"), ready["ledger"]))
            found.append(Precondition(say("action.redrive.may_write", store=name), ready["may_write"]))
            if not (ready["ledger"] and ready["may_write"]):
                return found
            letters = self.store.waiting(db, self.policy, self.events)
            if self.discard:
                return [*found, self._check_choice(letters)]
            open_ = Counter(row["outcome"] for row in self.store.outcomes(db, None))
            found.append(Precondition(say("action.redrive.finished", n=open_["waiting"]), open_["waiting"] == 0))
            found += self._check_flow(rb, self.store.flow(db, facts_of(rb).lease_s))
        if open_["publishing"]:
            return [*found, Precondition(say("action.redrive.resumes", n=open_["publishing"]), ok=True)]
        return [*found, self._check_choice(letters)]

    def state(self, rb: Context) -> dict[str, Any]:
        """Count the dead letters by verdict, those discarded, and those under way."""
        if not all(rb.target.url(url) for url in self.store.urls):
            return {}
        with stores.connect(rb) as db:
            if not self._query_rights(db)["ledger"]:
                return {}
            seen = _count_verdicts(self.store.waiting(db, self.policy, ()))
            open_ = Counter(row["outcome"] for row in self.store.outcomes(db, None))
            (discarded,) = db.ask("discarded", store=self.store.name)
        return {
            **seen,
            "discarded": discarded["n"],
            "under_way": open_["waiting"] + open_["publishing"],
        }

    def run(self, rb: Context, word: Authorization, progress: Progress) -> dict[str, Any]:
        """Take the portion in one transaction; the broker's bodies are published after it."""
        entry = {"incident": self._incident, **asdict(word)}
        progress(0.0, say("action.redrive.taking", n=self.limit, store=self.store.name))
        with stores.connect(rb) as db:
            if not db.lock(self.store.name):
                raise ActionError(f"another redrive of {self.store.name} is running")
            rows = self._enter_discarded(db, entry) if self.discard else self._send_portion(db, entry, progress)
        ids = [str(row["event_id"] or f"seq {row.get('stream_seq')}") for row in rows]
        return {"rows": len(rows), "events": ids[:KEPT], "ledger": [row["id"] for row in rows]}

    def verify(self, rb: Context, did: Mapping[str, Any], progress: Progress) -> tuple[bool, Text]:
        """Query each event of the portion by its id until all have a final result, or the wait is over."""
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
                time.sleep(SAMPLE_EVERY_S)
            stores.settle(db, rows)
            doubled = stores.count_duplicates(db, rows)
        arrived = len(rows) > 0 and now["succeeded"] == len(rows) == did["rows"] and not doubled
        effect = say(
            _EFFECT_KEYS[self.store.name],
            n=len(rows),
            arrived=now["succeeded"],
            under_way=under_way,
            failed=now["failed"],
            # Rows without an entry in the ledger count as missing too.
            missing=now["missing"] + did["rows"] - len(rows),
            doubled=doubled,
        )
        return arrived, effect

    # Inside -------------------------------------------------------------------------------------------------

    def _query_rights(self, db: Writer) -> dict[str, Any]:
        rights = (("runbook.redriven", "INSERT"), ("runbook.redriven", "UPDATE"), *self.store.rights)
        if self.discard:
            rights = rights[:1]
        (row,) = db.ask("ready", tables=[t for t, _ in rights], privileges=[p for _, p in rights])
        return row

    def _check_flow(self, rb: Context, flow: Mapping[str, Any]) -> list[Precondition]:
        """Check that no failure is recent, and that the worker or subscriber takes what is sent."""
        failed_s, retrying = flow["failed_s"], flow["retrying"]
        quiet = not retrying and (failed_s is None or failed_s >= self.policy.pause_s)
        seen: dict[str, Any] = {"store": self.store.name, "pause": self.policy.pause_s, "ago": failed_s, "n": retrying}
        quiet_key = "action.redrive.quiet_never" if failed_s is None else "action.redrive.quiet"
        taker_key = "action.redrive.subscriber" if self.store.name == "broker" else "action.redrive.worker"
        return [
            Precondition(say(quiet_key, **seen), quiet),
            Precondition(
                say(taker_key, s=facts_of(rb).lease_s, consumer=facts_of(rb).streams.consumer),
                flow["works"],
            ),
        ]

    def _may_send(self, letter: DeadLetter) -> bool:
        """Return whether the policy allows this dead letter to be sent again, or to be discarded."""
        if self.discard:
            # Without named events, only dead letters that are not sent again anyway.
            return letter.verdict != "held" if self.events else letter.verdict in ("permanent", "over_limit", "gone")
        kinds = ("eligible", "permanent") if self.events or "permanent" in self.policy.kinds else ("eligible",)
        return letter.verdict in kinds

    def _choose_letters(self, letters: Sequence[DeadLetter]) -> list[DeadLetter]:
        going = [letter for letter in letters if self._may_send(letter)]
        return going if self.events else going[: self.limit]

    def _check_choice(self, letters: Sequence[DeadLetter]) -> Precondition:
        """Check that there is something to send again; if events are named, that each of them can be sent."""
        chosen = self._choose_letters(letters)
        if self.events:
            refused = [str(e) for e in self.events if e not in {letter.event_id for letter in chosen}]
            if refused:
                return Precondition(say("action.redrive.not_named", ids=_list_ids(refused), n=len(refused)), ok=False)
        text = say(
            "action.redrive.may_be_discarded" if self.discard else "action.redrive.may_go",
            n=len(chosen),
            ids=_list_ids([letter.name for letter in chosen]),
            most=self.store.most,
            **_count_verdicts(letters),
        )
        return Precondition(text, len(chosen) > 0)

    def _enter_discarded(self, db: Writer, entry: Mapping[str, Any]) -> list[dict[str, Any]]:
        chosen = self._choose_letters(self.store.waiting(db, self.policy, self.events))
        return stores.enter_decisions(db, self.store.name, "discard", "discarded", chosen, entry)

    def _send_portion(self, db: Writer, entry: Mapping[str, Any], progress: Progress) -> list[dict[str, Any]]:
        """Send the portion; under the lock, query the dead letters again, as another redrive may have sent some."""
        before = self.store.outcomes(db, None)
        stores.settle(db, before)
        if waiting := sum(row["outcome"] == "waiting" for row in before):
            raise ActionError(f"{waiting} of the previous portion are still under way")
        half_way = [row for row in before if row["outcome"] == "publishing"]
        if half_way:
            # A killed command left these unpublished: finish them, and add nothing new.
            rows = half_way
        else:
            rows = self.store.take(db, self._choose_letters(self.store.waiting(db, self.policy, self.events)), entry)
            if not rows:
                raise ActionError("no row could be taken: the rows are gone, or a worker has leased them")
        if isinstance(self.store, BrokerLetters):
            for n, row in enumerate(rows):
                progress(n / len(rows), say("action.redrive.publishing", n=len(rows), done=n))
                self.store.publish(db, row)
        return rows


def _parse_event_id(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise UsageError(f"'{text}' is not an event id: give a UUID") from None


def _count_verdicts(letters: Sequence[DeadLetter]) -> dict[str, int]:
    seen = Counter(letter.verdict for letter in letters)
    return {verdict: seen[verdict] for verdict in stores.VERDICTS}


def _list_ids(ids: Sequence[str]) -> str:
    return ", ".join(ids[:SHOWN]) + (", …" if len(ids) > SHOWN else "")
