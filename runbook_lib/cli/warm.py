"""Imported by the process that others are forked from: what each of them would do first is done once, here.

Packages are imported, documents parsed: what reads a sample, so that this comes first. What runs sections is in
`warm_runners`. No thread, no connection and nothing of any incident.
"""

# ruff: noqa: E402, F401, I001
from __future__ import annotations

import gc
from contextlib import suppress

# Imports leave little garbage, and looking for it would take a quarter of their time.
gc.disable()

from runbook_lib.runs import quick
from runbook_lib.runs import investigation, sampler
from runbook_lib.checks import check
from runbook_lib.book import catalog, pack

with suppress(Exception):  # reported later, by the command that needs the document or pack
    catalog.load()
    check.checks()  # those of the packs, with what they import
    pack.hook("sampling")

# What is here stays: a fork that looks for garbage need not touch, and thereby copy, all of it.
gc.freeze()
gc.enable()
