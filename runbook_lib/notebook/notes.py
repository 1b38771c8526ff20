"""Add notes to the incident's timeline."""

from __future__ import annotations

from runbook_lib.model.finding import Text, say
from runbook_lib.model.times import now
from runbook_lib.model.usage import UsageError
from runbook_lib.store.archive import NOTE, Archive, OutputError
from runbook_lib.view.render import when


def keep_note(archive: Archive, text: str, who: str, section: str = "", job: str = "") -> Text:
    """Add a line to an incident's timeline; return the stored line as a text.

    A `job` adds one line only: if it exists, that line is returned. Raises UsageError for an empty note, and
    OutputError if it cannot be written.
    """
    if not text.strip():
        raise UsageError("the note is empty")
    archive.prepare()
    entry = {"time": now(), "who": who, "text": text.strip(), "section": section} | ({"job": job} if job else {})
    try:
        entry = archive.add_line(NOTE, entry) or entry
    except OSError as e:
        raise OutputError(f"the note could not be written to {archive.place}: {e.strerror or e}") from None
    return say("ui.noted", time=when(entry["time"]), who=who, text=entry["text"])
