"""What responders note: lines of the incident's timeline, and by whom."""

from __future__ import annotations

import getpass

import pandas as pd

from runbook_lib.model.finding import Text, say
from runbook_lib.store import NOTES, Archive, OutputError
from runbook_lib.usage import UsageError
from runbook_lib.view.render import when


def keep_note(archive: Archive, text: str, who: str, section: str = "", job: str = "") -> Text:
    """Put a line into an incident's timeline; what was kept, as a sentence.

    A `job` leaves one: where that is there already, it is what comes back. Raises UsageError for an empty note, and
    OutputError when it can not be written.
    """
    if not text.strip():
        raise UsageError("an empty note says nothing")
    archive.prepare()
    entry = {"time": pd.Timestamp.now("UTC").isoformat(timespec="milliseconds"), "who": who, "text": text.strip()}
    try:
        before = next((e for e in archive.lines(NOTES) if job and e.get("job") == job), None)
        if before:
            entry = before
        else:
            archive.add_line(NOTES, entry | {"section": section} | ({"job": job} if job else {}))
    except OSError as e:
        raise OutputError(f"the note could not be written to {archive.place}: {e.strerror or e}") from None
    return say("ui.noted", time=when(entry["time"]), who=who, text=entry["text"])


def whoami() -> str:
    """The login name of whoever runs this."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
