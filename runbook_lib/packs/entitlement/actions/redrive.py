"""Send dead letters of one store again, in portions, or discard them (docs/operations.md)."""

from __future__ import annotations

import shlex
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from runbook_lib.actions.action import ActionError, Authorization
from runbook_lib.checks.context import Context, Progress
from runbook_lib.model import rows as table_rows
from runbook_lib.model.finding import Text, say
from runbook_lib.model.outcome import Precondition
from runbook_lib.model.times import moment
from runbook_lib.model.usage import UsageError, did_you_mean
from runbook_lib.packs.entitlement.actions import stores
from runbook_lib.packs.entitlement.actions.restart import check_answers, identify_broker, sample_until_settled
from runbook_lib.packs.entitlement.actions.stores import BrokerLetters, DeadLetter, Writer
from runbook_lib.packs.entitlement.checks import dead_letters, errors
from runbook_lib.packs.entitlement.checks.duplicates import KeyIndex
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.packs.entitlement.rows import list_ids

#: Ids that the action log stores after a run.
KEPT = 200


class Redrive:
    """Send dead letters of one store again, or record in the ledger that they are discarded."""

    name = "redrive"

    def __init__(
        self,
        rb: Context,
        *,
        store: str,
        limit: int = 50,
        events: Sequence[str] = (),
        since: str | None = None,
        discard: bool = False,
    ) -> None:
        policies = rb.catalog.redrive
        if store not in policies:
            raise UsageError(f"no dead letters in '{store}': {did_you_mean(store, list(policies))}")
        if limit < 1:
            raise UsageError(f"--limit {limit} is too low: give a number from 1 to {policies[store].at_once}")
        self.policy, self.store, self.discard = policies[store], stores.store(store, rb), discard
        self.events = list(dict.fromkeys(_parse_event_id(event) for event in events))
        self.limit = len(self.events) or limit
        #: Only dead letters that failed then or later.
        self.since = _parse_time(since) if since else None
        #: What `run` has done so far.
        self.did: dict[str, Any] = {}
        self._near_s = rb.number("redrive.matches")
        self._target, self._incident = rb.parameters.target, rb.parameters.incident_id

    def what(self) -> dict[str, Any]:
        """Return the store, and the number of dead letters or their events."""
        which = {"events": [str(e) for e in self.events]} if self.events else {"limit": self.limit}
        since = {"since": self.since.isoformat()} if self.since else {}
        return {"store": self.store.name, **which, **since, "discard": self.discard}

    def command(self) -> str:
        """Return the command."""
        which = [w for e in self.events for w in ("--event", str(e))] or ["--limit", str(self.limit)]
        since = ["--since", self.since.isoformat()] if self.since else []
        words = ["runbook", "act", "redrive", self.store.name, *which, *since, *(["--discard"] if self.discard else [])]
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
            may_write = say("action.redrive.may_write", store=name)
            found.append(Precondition(may_write, ready["may_write"], identity=db.identity()))
            if not (ready["ledger"] and ready["may_write"]):
                return found
            letters = self._read_letters(db, self.events)
            if self.discard:
                return [*found, self._check_choice(rb, letters)]
            open_ = Counter(row["outcome"] for row in self.store.outcomes(db, None))
            found.append(Precondition(say("action.redrive.finished", n=open_["waiting"]), open_["waiting"] == 0))
            found += self._check_flow(rb, self.store.flow(db, facts_of(rb).lease_s))
        if self.store.name != "delivery":
            found.append(_check_key(rb))
        if self.store.name == "broker":
            found.append(check_answers("jetstream", lambda: identify_broker(rb)))
        if open_["publishing"]:
            return [*found, Precondition(say("action.redrive.resumes", n=open_["publishing"]), ok=True)]
        return [*found, self._check_choice(rb, letters)]

    def state(self, rb: Context) -> dict[str, Any]:
        """Count the dead letters by verdict, those discarded, and those under way."""
        if not all(rb.target.url(url) for url in self.store.urls):
            return {}
        with stores.connect(rb) as db:
            if not all(self._query_rights(db).values()):
                return {}
            seen = _count_verdicts(self._read_letters(db, ()))
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
            if self.discard:
                chosen = self._choose_letters(self._read_letters(db, self.events))
                self._note_done(stores.enter_decisions(db, self.store.name, "discard", "discarded", chosen, entry))
            else:
                self._send_portion(db, entry, progress)
        return self.did

    def verify(self, rb: Context, did: Mapping[str, Any], progress: Progress) -> tuple[bool, Text]:
        """Query each event of the portion by its id until all have a final result, or the wait is over."""
        if self.discard:
            return did["rows"] > 0, say("action.redrive.discarded", n=did["rows"])
        rows: list[dict[str, Any]] = []
        with stores.connect(rb) as db:

            def sample(spent_s: float) -> tuple[bool, bool, Text]:
                rows[:] = self.store.outcomes(db, did["ledger"])
                _, arrived, under_way = _count_outcomes(rows)
                return not under_way, False, say("action.redrive.waiting", n=len(rows), arrived=arrived)

            sample_until_settled(rb, progress, sample)
            stores.settle(db, rows)
            doubled = stores.count_duplicates(db, rows, self._near_s)
        now, arrived, under_way = _count_outcomes(rows)
        effect = say(
            f"action.redrive.effect_{self.store.name}",
            n=len(rows),
            arrived=arrived,
            under_way=under_way,
            failed=now["failed"],
            # Rows without an entry in the ledger count as missing too.
            missing=now["missing"] + did["rows"] - len(rows),
            doubled=doubled,
            matches=self._near_s / 60 if any(row.get("match_at") for row in rows) else None,
        )
        return len(rows) > 0 and arrived == len(rows) == did["rows"] and not doubled, effect

    # Inside -------------------------------------------------------------------------------------------------

    def _query_rights(self, db: Writer) -> dict[str, Any]:
        rights = (("runbook.redriven", "INSERT"), ("runbook.redriven", "UPDATE"), *self.store.rights)
        if self.discard:
            rights = rights[:2]
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
        if self.events:
            return letter.verdict in ("eligible", "permanent", "old")
        return letter.verdict == "eligible" or (letter.verdict == "permanent" and "permanent" in self.policy.kinds)

    def _read_letters(self, db: Writer, named: Sequence[uuid.UUID]) -> list[DeadLetter]:
        """Read the dead letters until the portion is full, oldest first; one event is sent once."""
        letters: dict[object, DeadLetter] = {}
        events: dict[object, object] = {}
        for page in self.store.pages(db, self.policy, named, self.since):
            for letter in map(self._classify_error, page):
                if letter.verdict != "doubled" and letter.event_id:
                    first = events.setdefault(letter.event_id, letter.key)
                    letter = letter if first == letter.key else replace(letter, verdict="doubled")
                letters[letter.key] = letter
            if len(self._choose_letters([*letters.values()])) >= self.limit:
                break
        return [*letters.values()]

    def _choose_letters(self, letters: Sequence[DeadLetter]) -> list[DeadLetter]:
        going = [letter for letter in letters if self._may_send(letter)]
        return going if self.events else going[: self.limit]

    def _classify_error(self, letter: DeadLetter) -> DeadLetter:
        """Return the dead letter as permanent if step 4.4.1 calls it so by the text of its error."""
        if self.store.name == "delivery":
            permanent = errors.text_kind(letter.error) == "data"
        else:
            permanent = dead_letters.outbox_kind(letter.error, "") not in (None, "unknown")
        return replace(letter, verdict="permanent") if permanent and letter.verdict in ("eligible", "old") else letter

    def _check_choice(self, rb: Context, letters: Sequence[DeadLetter]) -> Precondition:
        """Check that there is something to send again; if events are named, that each of them can be sent."""
        chosen = self._choose_letters(letters)
        ages = [(rb.now() - letter.failed_at).total_seconds() for letter in chosen]
        if self.events:
            refused = [str(e) for e in self.events if e not in {letter.event_id for letter in chosen}]
            if refused:
                return Precondition(say("action.redrive.not_named", ids=list_ids(refused), n=len(refused)), ok=False)
        text = say(
            "action.redrive.may_be_discarded" if self.discard else "action.redrive.may_go",
            n=len(chosen),
            ids=list_ids([letter.name for letter in chosen]),
            oldest=max(*ages, 0) if ages else None,
            newest=max(min(ages), 0) if ages else None,
            most=self.store.most,
            matches=self._near_s / 60 if any(letter.is_match for letter in letters) else None,
            **_count_verdicts(letters),
        )
        return Precondition(text, len(chosen) > 0)

    def _send_portion(self, db: Writer, entry: Mapping[str, Any], progress: Progress) -> None:
        """Send the portion; under the lock, query the dead letters again, as another redrive may have sent some."""
        before = self.store.outcomes(db, None)
        stores.settle(db, before)
        if waiting := sum(row["outcome"] == "waiting" for row in before):
            raise ActionError(f"{waiting} of the previous portion are still under way")
        # A killed command left these unpublished: finish them, and add nothing new.
        rows = [row for row in before if row["outcome"] == "publishing"]
        if not rows:
            rows = self.store.take(db, self._choose_letters(self._read_letters(db, self.events)), entry)
            if not rows:
                raise ActionError("no row could be taken: the rows are gone, or a worker has leased them")
        self._note_done(rows)
        if isinstance(self.store, BrokerLetters):
            self.did["published"] = 0
            for n, row in enumerate(rows):
                progress(n / len(rows), say("action.redrive.publishing", n=len(rows), done=n))
                self.did["published"] += self.store.publish(db, row)

    def _note_done(self, rows: Sequence[Mapping[str, Any]]) -> None:
        ids = [str(row["event_id"] or f"seq {row.get('stream_seq')}") for row in rows]
        self.did |= {"rows": len(rows), "events": ids[:KEPT], "ledger": [row["id"] for row in rows]}


def _parse_event_id(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise UsageError(f"'{text}' is not an event id: give a UUID") from None


def _parse_time(text: str) -> datetime:
    try:
        return moment(text, zoned=True).floor("s").to_pydatetime()
    except ValueError as e:
        raise UsageError(f"--since {text}: {e}") from None


def _check_key(rb: Context) -> Precondition:
    """Check that the subscriber registers an event only once, as step 4.2.1 does."""
    with rb.snapshot() as db:
        indexes = table_rows.each(db.ask(KeyIndex.QUERY), KeyIndex)
    return Precondition(say("action.redrive.key"), any(index.refuses for index in indexes))


def _count_verdicts(letters: Sequence[DeadLetter]) -> dict[str, int]:
    seen = Counter(letter.verdict for letter in letters)
    return {verdict: seen[verdict] for verdict in stores.VERDICTS}


def _count_outcomes(rows: Sequence[Mapping[str, Any]]) -> tuple[Counter[str], int, int]:
    """Return the rows by outcome, those that arrived, and those that are under way."""
    now = Counter(str(row["outcome"]) for row in rows)
    return now, now["succeeded"], sum(now[outcome] for outcome in ("publishing", "waiting", "published"))
