"""What step 3.6 reads."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from runbook_lib.checks.check import NOT_READ_COLUMNS
from runbook_lib.model.finding import Frames
from runbook_lib.packs.changes.changes import COLUMNS
from tests.kit.steps import ago


def frames(*changes: tuple[float, str], kinds: Sequence[str] = ()) -> Frames:
    kinds = kinds or ["configuration"] * len(changes)
    rows = [(ago(s), kind, what, "postgres", "exact") for (s, what), kind in zip(changes, kinds, strict=True)]
    return {
        "changes": pd.DataFrame(rows, columns=COLUMNS),
        "settings": pd.DataFrame({"whose": ["role app"], "setting": ["statement_timeout=5s"]}),
        "asked": pd.DataFrame({"source": ["postgres"]}),
        "not_read": pd.DataFrame(columns=NOT_READ_COLUMNS),
    }
