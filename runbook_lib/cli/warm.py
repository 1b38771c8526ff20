"""Imported by the process that others are forked from: what each of them would do first is done once, here.

Packages are imported, templates compiled, fonts found, documents parsed. No thread, no connection and nothing of any
incident.
"""

# ruff: noqa: E402, F401, I001
from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

# Imports leave little garbage, and looking for it would take a quarter of their time.
gc.disable()

from runbook_lib.runs import quick
from runbook_lib.cli import main as command  # runners
from runbook_lib.runs import engine, investigation
import IPython.core.completerlib  # the shells of runners
import IPython.core.debugger
import IPython.core.oinspect
import psutil
import papermill.execute
from runbook_lib.checks import check
from runbook_lib.book import catalog, pack
from runbook_lib.notebook import session
from runbook_lib.runs import pages

with suppress(Exception):  # reported later, by the command that needs the document or pack
    catalog.load()
    check.checks()  # those of the packs, with what they import
    pages.use()
    pack.hook("ledger")

# What the imports took and gave back is the system's again: each page that stays is one that forks may copy.
with suppress(OSError, AttributeError):  # glibc's alone
    ctypes.CDLL(None).malloc_trim(0)
# What is here stays: a fork that looks for garbage need not touch, and thereby copy, all of it.
gc.freeze()
gc.enable()
