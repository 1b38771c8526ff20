"""Strangers: sessions that hold a table or rows, a report that holds every slot, a second delivery worker."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psycopg

from .database import pooled
from .java import DRIVER, POOL_SIZE
from .notification import run_worker
from .pod import pod_name, set_up_logging
from .settings import PODS_FILE, read_own_env
from .state import load

_POLL = 0.2


def _hold_locks(name: str, statement: str, again_s: float | None = None) -> Callable[[Path], None]:
    """Say that in a transaction and sit on what it takes, or on more and more of it: said again every so often."""

    def hold(directory: Path) -> None:
        with psycopg.connect(load(directory).addresses.app_url, application_name=name) as connection:
            connection.execute(statement)
            while True:
                time.sleep(again_s or _POLL)
                if again_s:
                    connection.execute(statement)
                connection.pgconn.consume_input()  # raises when somebody terminated the session

    return hold


def hold_connections(directory: Path) -> None:
    """Take every ordinary connection, also those that the pods lose when theirs come to their end.

    A pool retires its connections by age. Here that age is now: the pods' sessions are ended, and the slots
    they leave are taken before they come back.
    """
    url = load(directory).addresses.app_url
    held: list[psycopg.Connection[tuple[int]]] = []
    while True:
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                held.append(psycopg.connect(url, application_name="nightly-report", autocommit=True))
        ended = (
            held[0]
            .execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE usename = current_user AND application_name = %s",
                (DRIVER,),
            )
            .fetchone()
        )
        # Whoever leaves a slot, if only a monitor, must not leave it to a pod.
        time.sleep(0.02 if ended and ended[0] else 0.1)


def deliver_too(directory: Path) -> None:
    """Work on the same rows as the notification pod, under a name and with a pool of its own."""
    set_up_logging("notification")
    own = {"HOSTNAME": pod_name("notification"), "SERVICE": "notification"}
    env = {**os.environ, **read_own_env(directory / PODS_FILE, "second-worker"), **own}
    for n in range(POOL_SIZE - 1):
        pooled(env, f"spare-{n}")
    run_worker(env)


#: Whoever may be started beside the pods.
INTRUDERS: dict[str, Callable[[Path], None]] = {
    "schema-migration": _hold_locks(
        "schema-migration", "LOCK TABLE notification.notifications IN ACCESS EXCLUSIVE MODE"
    ),
    "outbox-migration": _hold_locks(
        "outbox-migration", "LOCK TABLE entitlement.outbox_events IN ACCESS EXCLUSIVE MODE"
    ),
    "reconciliation": _hold_locks(
        "reconciliation",
        "SELECT FROM notification.notifications WHERE status = 'PENDING' FOR UPDATE SKIP LOCKED",
        again_s=0.02,
    ),
    "nightly-report": hold_connections,
    "second-worker": deliver_too,
}

if __name__ == "__main__":
    INTRUDERS[sys.argv[1]](Path(sys.argv[2]))
