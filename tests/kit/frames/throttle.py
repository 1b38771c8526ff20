"""What section 5.2 reads."""

from __future__ import annotations

from typing import Any

import pandas as pd

from runbook_lib.model.finding import Frames
from runbook_lib.model.frames import row
from runbook_lib.packs.entitlement.checks.throttle import DELIVERY, ThrottledWorker
from tests.kit.steps import NOW, ago, failures


def frames(
    side: ThrottledWorker = DELIVERY,
    *,
    now: Any = None,
    asked: Any = None,
    came: float = 300,
    gone: float = 300,
    due: float = 3,
    waiting: float = 0,
    replicas: int = 1,
    outcome: Any = None,
) -> Frames:
    """What collect finds of a healthy side; `now` and `asked` are values of its settings, by kind."""
    default: dict[str, Any] = {"batch_size": 50.0, "poll_interval": 1.0, "enabled": True}
    unit = {"batch_size": "rows", "poll_interval": "s", "enabled": "flag"}
    settings = [
        {
            "setting": f"{side.name}.{kind}", "variable": kind.upper(), "written": None, "default": value,
            "now": (default | (now or {}))[kind], "asked": (asked or {}).get(kind), "unit": unit[kind],
        }
        for kind, value in default.items()
    ]  # fmt: skip
    found: Frames = {
        "settings": pd.DataFrame(settings).astype(object),
        "workload": row(replicas=replicas),
        "not_read": failures(),
        "backlog": row(
            now=NOW, due=due, expired=0, oldest_due_s=1.0, oldest_expired_s=None, waiting_retry=waiting, leased=0,
            tried=waiting, arrived_1m=came, published_1m=gone,
        ),
    }  # fmt: skip
    if side is DELIVERY:
        found["activity"] = row(
            now=NOW, last_claim=ago(1), last_sent=ago(1), last_try=None, sent_1m=gone, arrived_1m=came, workers="p"
        )
        found["attempts"] = pd.DataFrame({"attempt_count": [0, 1], "n": [due, waiting], "waiting": [0, waiting]})
        found["held"] = pd.DataFrame(columns=["now", "notification_id", "locked_by", "locked_at", "lease_until"])
        found["durable"] = row(ok=True, why_en="-", why_ja="-")
        found["never_set"] = pd.DataFrame(columns=["variable", "written", "why"])
    if outcome:
        found["outcome"] = row(**{"why_en": "W", "why_ja": "W", "effect_en": "E", "effect_ja": "E"} | outcome)
        holds = outcome.pop("holds", True) if "holds" in outcome else True
        found["preconditions"] = pd.DataFrame({"precondition": ["p"], "holds": [holds]})
    return found
