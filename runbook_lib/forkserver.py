"""The processes that run notebooks, forked from one that has imported what they all need, and nothing else.

That one is started first of all, so that it imports while the command itself still does.
"""

from __future__ import annotations

import os
from functools import cache
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext

_PRELOADED = [
    *("runbook_lib.batch", "runbook_lib.engine", "papermill.execute", "nbconvert"),
    # For the kernels that runners fork.
    *("ipykernel.kernelapp", "ipykernel.ipkernel", "ipykernel.zmqshell", "IPython.core.interactiveshell"),
    *("runbook_lib.session", "runbook_lib.checks", "runbook_lib.charts", "matplotlib.backends.backend_agg"),
]


@cache
def context() -> ForkServerContext:
    """Where runners come from; the first call starts it."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a fork takes one thread with it, and no more are needed
    runners = get_context("forkserver")
    runners.set_forkserver_preload(_PRELOADED)
    forkserver.ensure_running()
    return runners
