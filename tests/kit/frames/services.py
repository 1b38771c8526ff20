"""What steps read of the services: their metrics and their sessions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd

from runbook_lib.model.finding import Frames
from runbook_lib.packs.entitlement.evidence import services
from runbook_lib.packs.entitlement.evidence.services import ServiceRequest
from runbook_lib.packs.entitlement.evidence.sessions import Sessions
from tests.kit.steps import NOW

STARTED = NOW.timestamp() - 600
Series = dict[tuple[str, ...], float]


def process(started: float = STARTED, **more: float) -> Series:
    return {("process_start_time_seconds",): started, **{(name,): value for name, value in more.items()}}


def looked(*looks: Series, gap_s: float = 4.0, by: str = "service", service: str = "notification") -> Frames:
    """Frames as two looks would leave them, the last one now."""
    rows, asked = [], []
    for n, series in enumerate(looks):
        at = NOW - pd.Timedelta(seconds=gap_s * (len(looks) - 1 - n))
        asked.append(vars(ServiceRequest(service, at, by)))
        for key, value in series.items():
            name, worker, exception, outcome = (*key, "", "", "")[:4]
            namespace = f"com.example.{worker}" if worker else ""
            rows.append((service, at, by, name, namespace, exception, outcome, "", value))
    return {
        "service_samples": pd.DataFrame(rows, columns=services.SAMPLE_COLUMNS),
        "service_asked": pd.DataFrame(asked, columns=services.REQUEST_COLUMNS),
    }


AT_WORK = Sessions("notification", 10, 0, 0, 600.0, 0.4, 0.4, 0, sees_others=True)
NOBODY = Sessions("either", sees_others=True)


def of_sessions(looks: int = 2, **changes: Any) -> Frames:
    """The frames of notification's sessions, beside as many as said of entitlement's at work."""
    others = Sessions("entitlement", changes.pop("entitlement", 10), 0, 0, 600.0, 0.4, 0.4, 0, sees_others=True)
    rollbacks = changes.pop("rollbacks", 0)
    return {
        "service_sessions": pd.DataFrame([vars(others), vars(NOBODY), vars(replace(AT_WORK, **changes))]),
        "transactions": pd.DataFrame([(100, 0), (105, rollbacks)][:looks], columns=["commits", "rollbacks"]),
    }
