"""The processes that run notebooks, forked from one that has imported what they all need, and nothing else.

That one is started first of all, so that it imports while the command itself still does.
"""

from __future__ import annotations

from functools import cache
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext

_PRELOADED = ["runbook_lib.batch", "runbook_lib.engine", "papermill.execute", "nbconvert"]


@cache
def context() -> ForkServerContext:
    """Where runners come from; the first call starts it."""
    runners = get_context("forkserver")
    runners.set_forkserver_preload(_PRELOADED)
    forkserver.ensure_running()
    return runners
