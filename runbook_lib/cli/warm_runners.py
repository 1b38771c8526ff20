"""Imported by a process before it forks those that run sections: what each of them would do first.

Packages are imported, templates compiled, fonts found. A receiver does this once, in the process that all others are
forked from; a command does it while its sample is taken.
"""

# ruff: noqa: E402, F401, I001
from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

gc.disable()

from runbook_lib.cli import main as command  # runners
from runbook_lib.runs import engine
import IPython.core.completerlib  # the shells of runners
import IPython.core.debugger
import IPython.core.oinspect
import psutil
import papermill.execute
from runbook_lib.book import pack
from runbook_lib.notebook import session
from runbook_lib.runs import pages

with suppress(Exception):  # reported later, by the section that needs it
    pages.use()
    pack.hook("ledger")

# What the imports took and gave back is the system's again: each page that stays is one that forks may copy.
with suppress(OSError, AttributeError):  # glibc's alone
    ctypes.CDLL(None).malloc_trim(0)
gc.freeze()
gc.enable()
