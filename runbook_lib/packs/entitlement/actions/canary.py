"""Grant and revoke a right of a test account through the API, and trace both events to the receiver (runbook 6).

This is the only check that the API accepts requests, and the strongest one of the whole pipeline.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from runbook_lib.actions.action import ActionError, Authorization
from runbook_lib.checks.context import Context, Progress
from runbook_lib.model.finding import Text, say
from runbook_lib.model.outcome import Precondition
from runbook_lib.model.usage import UsageError
from runbook_lib.packs.entitlement import event_lookup
from runbook_lib.packs.entitlement.actions.restart import check_answers, sample_until_settled
from runbook_lib.packs.entitlement.event_place import PLACES
from runbook_lib.packs.entitlement.evidence.services import PATH
from runbook_lib.packs.entitlement.facts import facts_of

if TYPE_CHECKING:
    from runbook_lib.packs.entitlement.event_trace import EventTrace

SERVICE = "entitlement"
#: Sent in this order. After an interrupted canary the right is still granted: then only the revoke is accepted.
_STEPS = {"grant": "v1/entitlements/grants", "revoke": "v1/entitlements/revokes"}
_STATE_CONFLICT = "ENTITLEMENT_STATE_CONFLICT"


class Canary:
    """Grant and revoke a right of the target's test account, and trace both events."""

    name = "canary"

    def __init__(self, rb: Context) -> None:
        facts = facts_of(rb)
        if not facts.canary_user:
            raise UsageError("the target has no canary_user: name a test account of yours that may get a notification")
        self.user, self.sku = facts.canary_user, facts.canary_sku
        #: What `run` has done so far.
        self.did: dict[str, Any] = {}

    def what(self) -> dict[str, Any]:
        """Return the right; the account is not shown."""
        return {"name": self.sku}

    def command(self) -> str:
        """Return both requests as curl commands."""
        body = {"user_id": "$CANARY_USER", "stock_keeping_unit": self.sku, "reason": "canary", "purchase_id": "canary"}
        send = "curl -fsS -H 'Content-Type: application/json' -H \"Idempotency-Key: $(uuidgen)\""
        quoted = json.dumps(json.dumps(body))
        return " && ".join(f'{send} -d {quoted} "$ENTITLEMENT_URL/{path}"' for path in _STEPS.values())

    def preconditions(self, rb: Context) -> list[Precondition]:
        """Check that the service of the API answers; the action itself shows whether the API accepts."""
        return [check_answers(SERVICE, lambda: _identify_service(rb))]

    def state(self, rb: Context) -> dict[str, Any]:
        """Return the number of the account's events in the window."""
        return {"events": len(self._read_events(rb))}

    def run(self, rb: Context, word: Authorization, progress: Progress) -> dict[str, Any]:
        """Send both requests."""
        self.did["before"] = self._read_events(rb)
        for n, (step, path) in enumerate(_STEPS.items()):
            progress(n / len(_STEPS), say(f"action.canary.{step}", sku=self.sku))
            self.did[step] = self._send_request(rb, step, path, word)
        return self.did

    def verify(self, rb: Context, did: Mapping[str, Any], progress: Progress) -> tuple[bool, Text]:
        """Check that every event of the accepted requests has reached the receiver."""
        wanted = sum(did[step] == "accepted" for step in _STEPS)

        def sample(spent_s: float) -> tuple[bool, bool, Text]:
            new = [e for e in self._read_events(rb) if e not in did["before"]]
            traces, _ = event_lookup.collect_traces(rb.present(), new) if new else ([], [])
            arrived = [t for t in traces if PLACES[t.place].disposition == "done"]
            if wanted and len(arrived) >= wanted:
                return True, True, say("action.canary.delivered", n=len(arrived), s=max(map(_duration_s, arrived)))
            waiting = next((t for t in traces if t not in arrived), None)
            return False, False, waiting.headline if waiting else say("action.canary.no_event", n=wanted - len(new))

        return sample_until_settled(rb, progress, sample)

    def _send_request(self, rb: Context, step: str, path: str, word: Authorization) -> str:
        body = {
            "user_id": self.user,
            "stock_keeping_unit": self.sku,
            "reason": "canary",
            "purchase_id": f"canary-{word.action}",
        }
        headers = {"Idempotency-Key": f"canary-{step}-{word.action}", "X-Trace-Id": uuid.uuid4().hex}
        status, reply = rb.service(SERVICE).post_json(path, body, headers)
        if status == 200:
            return "accepted"
        code = str(reply.get("code", "")) if isinstance(reply, dict) else ""
        if code != _STATE_CONFLICT:
            raise ActionError(f"the API answered the {step} with HTTP {status} {code}".rstrip())
        return "so already"

    def _read_events(self, rb: Context) -> list[str]:
        with rb.present().snapshot() as db:
            return list(db.ask("journey/by_user", typed_user=self.user)["event_id"])


def _identify_service(rb: Context) -> str:
    """Return the host and port of the service that answers. Raises SourceError."""
    rb.service(SERVICE).samples(PATH, lambda name: False)
    return urlsplit(rb.target.service(SERVICE) or "").netloc.rpartition("@")[2]


def _duration_s(trace: EventTrace) -> float:
    """Return the seconds from the first stage of a trace to the last."""
    at = [stage.at for stage in trace.stages if stage.at is not None]
    return float((max(at) - min(at)).total_seconds())
