"""What section 6.3 reads."""

from __future__ import annotations

from typing import Any

import pandas as pd

from runbook_lib.model.finding import Frames
from runbook_lib.model.frames import row


def rows(n: int, **columns: Any) -> pd.DataFrame:
    return pd.DataFrame([{"id": str(i), **columns} for i in range(n)], columns=["id", *columns])


FRAMES: dict[str, Frames] = {
    "5.3.1": {"dirty": rows(0), "everything": row(n=0)},
    "5.3.2": {
        "unprocessed": rows(0),
        "scope": row(hours=24.0, refused=False),
        "given_up": row(n=0),
        "consumer": row(pending=0, unacknowledged=0, bound=True),
    },
    "5.3.3": {"halves": rows(0, kind="registered_only")},
    "5.3.4": {"failed": rows(0), "letters": rows(0), "scope": row(days=30)},
    "5.3.5": {"changes": rows(0), "scope": row(hours=24.0)},
    "5.3.6": {"locks": rows(0, kind="notification_leased")},
}
