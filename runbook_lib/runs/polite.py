"""Imported first by the process that others are forked from: whoever else is on this machine goes before them.

The database above all, where it is on the same one. On a machine without an idle core all runs together get a third of
what another session gets: with much less they would not end within their deadline, and an answer that never comes helps
nobody either.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from runbook_lib.runs.forks import NICE

with suppress(OSError):
    os.nice(NICE)
# Linux may share the cores among sessions first ("autogroup"), and there a session has a niceness of its own. The one
# from which the command was started is not ours to slow down.
with suppress(OSError):
    os.setsid()
    Path("/proc/self/autogroup").write_text(str(NICE))
