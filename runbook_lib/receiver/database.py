"""The file of the receiver's journal: one SQLite database that only one receiver at a time can open."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from runbook_lib.model.usage import UsageError

#: Seconds that a call waits for the calls before it, and then for another process's lock; after that an alert's sender
#: is asked to try again.
BUSY_S = 5.0
#: The version of the file's tables; 1 is that of 0.6.
VERSION = 2

_SCHEMA, _MIGRATION = (Path(__file__).with_name(name) for name in ("journal.sql", "journal_0_6.sql"))


class JournalError(Exception):
    """The journal cannot be written or read now; one line. Nothing was changed."""


class JournalFile:
    """The database; safe to use from several threads. Each method raises JournalError if the file cannot be used."""

    def __init__(self, file: Path | str) -> None:
        """Open or create the file. Raises UsageError if that fails."""
        self.file = Path(file)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            for name in (f"{self.file.name}.lock", self.file.name):  # -wal and -shm have the mode of the file
                self.file.with_name(name).touch(mode=0o600)
            self._lock_file = self.file.with_name(f"{self.file.name}.lock").open("a")
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(self._lock_file.fileno()).st_nlink:
                raise BlockingIOError  # the other receiver deletes the lock file at this moment
        except BlockingIOError:
            self._lock_file.close()
            raise UsageError(f"{self.file} is in use by another receiver: stop it, or use another --journal") from None
        except OSError as e:
            raise UsageError(f"the journal {self.file} cannot be written: {e.strerror}") from None
        self._lock = threading.Lock()
        try:
            script = _script_for(self.file)
            self._db = sqlite3.connect(self.file, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {VERSION};\nCOMMIT")
            self._db.execute("PRAGMA foreign_keys = ON")
        except UsageError:
            self._release_lock()
            raise
        except sqlite3.Error as e:
            self._release_lock()
            raise UsageError(f"the journal {self.file} cannot be used: {e}") from None

    def close(self) -> None:
        """Close the file and release its lock."""
        with self._lock:
            self._db.close()
            self._release_lock()

    def probe(self) -> None:
        """Write a page."""
        with self._transaction():
            self._execute(f"PRAGMA user_version = {VERSION}")

    def _release_lock(self) -> None:
        if not self._lock_file.closed:
            Path(self._lock_file.name).unlink(missing_ok=True)
        self._lock_file.close()

    def _execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        return self._db.execute(statement, values)

    def _fetch_first(self, question: str, *values: Any) -> sqlite3.Row | None:
        """Return the first row of a question; None if it has none."""
        row: sqlite3.Row | None = self._execute(question, *values).fetchone()
        return row

    @contextmanager
    def _transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
        """Wait for the other threads' calls, and commit what is done within."""
        if not self._lock.acquire(timeout=BUSY_S):
            raise JournalError(f"the journal {self.file} has been in use for {BUSY_S:.0f} s")
        try:
            with self._db:
                self._db.execute(begin)
                yield
        except sqlite3.Error as e:
            raise JournalError(f"the journal {self.file} cannot be used: {e}") from None
        finally:
            self._lock.release()

    def _query(self, question: str, *values: Any) -> list[sqlite3.Row]:
        """Return the rows of a question, in a transaction of its own."""
        with self._transaction("BEGIN"):
            return self._execute(question, *values).fetchall()


def _script_for(file: Path) -> str:
    """Return the script that makes the tables of a file, or moves those of 0.6.

    Raises UsageError for a file of another release, which stays as it is, and sqlite3.Error.
    """
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_S)) as db:
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        is_empty = not db.execute("SELECT 1 FROM sqlite_master").fetchone()
    if version > VERSION:
        versions = f"version {version}, this runbook knows {VERSION}"
        raise UsageError(f"the journal {file} is newer ({versions}): update, or use another --journal")
    if version == 0 and not is_empty:
        raise UsageError(f"the journal {file} is older than 0.6: use another --journal")
    schema = _SCHEMA.read_text(encoding="utf-8")
    return _MIGRATION.read_text(encoding="utf-8").replace("-- journal.sql", schema) if version == 1 else schema
