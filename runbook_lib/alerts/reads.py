"""Who has read what of the receiver's pages: a log a day (UTC), sealed like a dossier's own, beside the journal.

    <journal>.reads/<day>/notes.jsonl

`runbook verify <day> --output <journal>.reads` holds a day against its seal.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from runbook_lib.archive import seal
from runbook_lib.store import NOTES, Archive


class Reads:
    """The logs of one receiver; safe to use from several threads."""

    def __init__(self, journal: Path) -> None:
        self._folder = str(journal.with_suffix(".reads"))

    def keep(self, who: str, what: str, address: str) -> None:
        """Write down a read, before it is answered. Raises OSError."""
        now = pd.Timestamp.now("UTC")
        day = Archive(self._folder, f"{now:%Y-%m-%d}")
        entry = {"time": now.isoformat(timespec="milliseconds"), "who": who, "what": what, "from": address}
        try:
            day.add_line(NOTES, entry)
        except FileNotFoundError:  # the first of its day
            Path(self._folder, day.incident).mkdir(parents=True, exist_ok=True)
            day.add_line(NOTES, entry)

    def seals(self) -> list[str]:
        """The heads of the two newest days, to be kept elsewhere. Raises OSError."""
        return [seal.told(Archive(self._folder, day)) for day in Archive(self._folder, "").names()[-2:]]
