"""Lower the priority of forked processes; imported first by the process that they are forked from.

Other processes on this machine, above all a database, go first. On a machine without an idle core all runs together get
a third of the CPU time of another session: with much less they would miss their deadline.
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
