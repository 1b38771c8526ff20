"""One right granted and taken away again through the API, and followed to the receiver (runbook 6).

The strongest proof that all of it works, and the only answer to "does the API still accept?".
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.actions.action import ActionError, Word
from runbook_lib.context import Context, Progress
from runbook_lib.model.finding import Text, say
from runbook_lib.outcome import Precondition
from runbook_lib.packs.entitlement import follow
from runbook_lib.packs.entitlement.actions.restart import answers, look_until_settled
from runbook_lib.packs.entitlement.evidence.services import PATH
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.packs.entitlement.ledger import PLACES
from runbook_lib.usage import UsageError

if TYPE_CHECKING:
    from runbook_lib.packs.entitlement.journey import Journey

SERVICE = "entitlement"
#: Both in this order; what an earlier one has left granted is only taken away.
_STEPS = {"grant": "v1/entitlements/grants", "revoke": "v1/entitlements/revokes"}
_SO_ALREADY = "ENTITLEMENT_STATE_CONFLICT"


class Canary:
    """Grant and revoke a right of the account that the target names for it, and follow both events."""

    name = "canary"

    def __init__(self, rb: Context) -> None:
        facts = facts_of(rb)
        if not facts.canary_user:
            raise UsageError("the target has no canary_user: name a test account of yours that may get a notification")
        self.user, self.sku = facts.canary_user, facts.canary_sku

    def what(self) -> dict[str, Any]:
        """Nobody, as everywhere: the account is a token."""
        return {"name": self.sku}

    def command(self) -> str:
        """Both requests as a person would send them."""
        body = {"user_id": "$CANARY_USER", "stock_keeping_unit": self.sku, "reason": "canary", "purchase_id": "canary"}
        send = "curl -fsS -H 'Content-Type: application/json' -H \"Idempotency-Key: $(uuidgen)\""
        quoted = json.dumps(json.dumps(body))
        return " && ".join(f'{send} -d {quoted} "$ENTITLEMENT_URL/{path}"' for path in _STEPS.values())

    def preconditions(self, rb: Context) -> list[Precondition]:
        """The API's service answers at all; whether it accepts is what the action finds out."""
        return [answers(SERVICE, lambda: rb.service(SERVICE).samples(PATH, lambda name: False))]

    def state(self, rb: Context) -> dict[str, Any]:
        """How many events the account has had in the window."""
        return {"events": len(self._events(rb))}

    def run(self, rb: Context, word: Word, progress: Progress) -> dict[str, Any]:
        """Send both requests."""
        did: dict[str, Any] = {"before": self._events(rb)}
        for n, (step, path) in enumerate(_STEPS.items()):
            progress(n / len(_STEPS), say(f"action.canary.{step}", sku=self.sku))
            did[step] = self._send(rb, step, path, word)
        return did

    def verify(self, rb: Context, did: Mapping[str, Any], progress: Progress) -> tuple[bool, Text]:
        """Each of the events that they made has reached the receiver."""
        wanted = sum(did[step] == "accepted" for step in _STEPS)

        def look(spent_s: float) -> tuple[bool, bool, Text]:
            new = [e for e in self._events(rb) if e not in did["before"]]
            journeys, _ = follow.journeys_of(rb.present(), new) if new else ([], [])
            there = [j for j in journeys if PLACES[j.place].fate == "done"]
            if wanted and len(there) >= wanted:
                return True, True, say("action.canary.delivered", n=len(there), s=max(map(_took_s, there)))
            stays = next((j for j in journeys if j not in there), None)
            return False, False, stays.headline if stays else say("action.canary.no_event", n=wanted - len(new))

        return look_until_settled(rb, progress, look)

    def _send(self, rb: Context, step: str, path: str, word: Word) -> str:
        body = {
            "user_id": self.user,
            "stock_keeping_unit": self.sku,
            "reason": "canary",
            "purchase_id": f"canary-{word.action}",
        }
        headers = {"Idempotency-Key": f"canary-{step}-{word.action}", "X-Trace-Id": uuid.uuid4().hex}
        status, said = rb.service(SERVICE).post(path, body, headers)
        if status == 200:
            return "accepted"
        code = str(said.get("code", "")) if isinstance(said, dict) else ""
        if code != _SO_ALREADY:
            raise ActionError(f"the API answered the {step} with HTTP {status} {code}".rstrip())
        return "so already"

    def _events(self, rb: Context) -> list[str]:
        with rb.present().snapshot() as db:
            return list(db.ask("journey/by_user", typed_user=self.user)["event_id"])


def _took_s(j: Journey) -> float:
    """From the first of its stages to the last, in seconds."""
    at = j.frame()["at"].dropna()
    return float((pd.Timestamp(at.max()) - pd.Timestamp(at.min())).total_seconds())
