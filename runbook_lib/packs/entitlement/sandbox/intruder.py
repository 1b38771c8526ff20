"""Strangers: a migration that holds a table, a report that holds every slot, a second delivery worker."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

import psycopg

from .java import DRIVER
from .notification import run_worker
from .pod import pod_name, set_up_logging
from .settings import read_env
from .state import load

_POLL = 0.2


def hold_table(directory: Path) -> None:
    """Take an ACCESS EXCLUSIVE lock on the notifications table and sit on it."""
    with psycopg.connect(load(directory).addresses.app_url, application_name="schema-migration") as connection:
        connection.execute("LOCK TABLE notification.notifications IN ACCESS EXCLUSIVE MODE")
        while True:
            time.sleep(_POLL)
            connection.pgconn.consume_input()  # raises when somebody terminated the session


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
    """Work on the same rows as the notification pod, under a name of its own."""
    set_up_logging("notification")
    own = {"HOSTNAME": pod_name("notification"), "SERVICE": "notification"}
    run_worker({**os.environ, **read_env(directory / "pods.env"), **own})


if __name__ == "__main__":
    {"table": hold_table, "connections": hold_connections, "deliveries": deliver_too}[sys.argv[1]](Path(sys.argv[2]))
