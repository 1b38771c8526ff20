"""The processes that run notebooks, forked from one that has imported what they all need, and nothing else.

That one is started first of all, so that it imports while the command itself still does.
"""

from __future__ import annotations

import os
from functools import cache
from multiprocessing import connection, forkserver, get_context, parent_process
from multiprocessing.context import ForkServerContext
from threading import Thread

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


def end_with_parent() -> None:
    """In a process from here: end when whoever asked for it is gone, so that nothing runs on that nobody waits for."""
    parent = parent_process()

    def watch(sentinel: int) -> None:
        connection.wait([sentinel])
        os._exit(1)

    if parent is not None:
        Thread(target=watch, args=(parent.sentinel,), daemon=True).start()
