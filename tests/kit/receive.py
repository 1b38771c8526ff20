"""A receiver without HTTP, for the tests: works off the journal of the folder it is started in, and ends.

    python receive.py '{"first_wait_s": 0.2}'

`first_wait_s`, before a second try; `file_size`, bytes that a file of a runner may have, as on a disk that is full.
"""

from __future__ import annotations

import json
import os
import resource
import sqlite3
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from runbook_lib.receiver import dispatcher, notify
from runbook_lib.receiver.journal import Journal
from runbook_lib.receiver.metrics import Metrics
from runbook_lib.runs import forks
from runbook_lib.sources import settings


def main() -> None:
    options = json.loads(sys.argv[1])
    dispatcher.FIRST_WAIT_S = notify.FIRST_WAIT_S = options.get("first_wait_s", 0.2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (options.get("file_size", soft), hard))
    forks.context()
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    config, metrics = settings.load(), Metrics()
    journal, places = Journal("journal.db"), notify.urls_by_digest(config)
    workers = ThreadPoolExecutor(config.receiver.workers)
    jobs = dispatcher.Dispatcher(journal, config, "out", workers, metrics, places=list(places))
    told = notify.Notifier(journal, places, metrics)
    jobs.start()
    told.start()
    with closing(sqlite3.connect("file:journal.db?mode=ro", uri=True)) as reader:
        while (
            any(n for state, n in journal.counts().items() if state.endswith(("waiting", "running")))
            # A job that is tried again is not counted before it is due.
            or reader.execute(
                "SELECT 1 FROM work WHERE kind <> 'message' AND state = 'waiting' AND attempts > 0"
            ).fetchone()
        ):
            time.sleep(0.1)
    jobs.stop()
    told.stop()
    os._exit(0)


if __name__ == "__main__":
    main()
