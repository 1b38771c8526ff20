"""A stranger on the database: a migration that holds a table, or a report that holds every slot."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

import psycopg

from .state import load

_POLL = 0.2


def hold_table(url: str) -> None:
    """Take an ACCESS EXCLUSIVE lock on the notifications table and sit on it."""
    with psycopg.connect(url, application_name="schema-migration") as connection:
        connection.execute("LOCK TABLE notification.notifications IN ACCESS EXCLUSIVE MODE")
        while True:
            time.sleep(_POLL)
            connection.pgconn.consume_input()  # raises when somebody terminated the session


def hold_connections(url: str) -> None:
    """Take every ordinary connection, also those that the pods lose when theirs come to their end.

    A pool retires its connections by age. Here that age is now: the pods' sessions are ended, and the slots
    they leave are taken before they come back.
    """
    held: list[psycopg.Connection[tuple[int]]] = []
    while True:
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                held.append(psycopg.connect(url, application_name="nightly-report", autocommit=True))
        ended = (
            held[0]
            .execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE usename = current_user AND application_name = ''"
            )
            .fetchone()
        )
        # Whoever leaves a slot, if only a monitor, must not leave it to a pod.
        time.sleep(0.02 if ended and ended[0] else 0.1)


if __name__ == "__main__":
    {"table": hold_table, "connections": hold_connections}[sys.argv[1]](load(Path(sys.argv[2])).addresses.app_url)
