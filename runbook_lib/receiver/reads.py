"""The access log of the receiver's pages: one hash-chained log per day (UTC), beside the journal.

    <journal>.reads/<day>/notes.jsonl

`runbook verify <day> --output <journal>.reads` verifies a day. A new line needs only the line before it, so the cost of
a request does not grow during the day.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import mmap
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

import pandas as pd

from runbook_lib.dossier import seal
from runbook_lib.store.archive import NOTES, Archive
from runbook_lib.store.files import digest, make_folder, sync_folder

#: Seconds that a request waits for the lock of a day's log, which every user of this machine may hold.
LOCK_S = 3.0
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_log = logging.getLogger(__name__)


class AccessLog:
    """The access logs of one receiver; safe to use from several threads."""

    def __init__(self, journal: Path, keep_days: int) -> None:
        """Open the logs and keep the newest `keep_days` days that have one."""
        self._folder, self._keep_days = journal.with_suffix(".reads"), keep_days
        with suppress(OSError):  # the next request reports it
            self._remove_oldest_days(keep_days)
            for day in self._days()[-2:]:
                self._truncate_partial_line(day)

    def record(self, who: str, what: str, address: str) -> None:
        """Add a request to the log before it is answered. Raises OSError."""
        now = pd.Timestamp.now("UTC")
        day = f"{now:%Y-%m-%d}"
        entry = {"time": now.isoformat(timespec="milliseconds"), "who": who, "what": what, "from": address}
        try:
            self._append_entry(day, entry)
        except FileNotFoundError:  # the first request of the day
            self._remove_oldest_days(self._keep_days - 1)
            self._create_day(day)
            self._append_entry(day, entry)

    def seals(self) -> list[str]:
        """Return the seals of the two newest days, to be kept elsewhere. Raises OSError."""
        found = []
        for day in self._days()[-2:]:
            with self._locked(day):  # no half line
                found.append(seal.seal_text(self._archive(day)))
        return found

    def _create_day(self, day: str) -> None:
        """Create the day's log durably (fsync)."""
        folder = self._folder / day
        make_folder(folder)
        (folder / NOTES).touch(mode=0o600)
        for above in (folder, self._folder, self._folder.parent):
            sync_folder(above)

    def _append_entry(self, day: str, entry: dict[str, str]) -> None:
        with self._locked(day), self._open_log(day) as log:
            last = _last_line(log)
            sealed = entry | {"previous": digest(last) if last else None}
            line = json.dumps(sealed, ensure_ascii=False, sort_keys=True).encode() + b"\n"
            size = os.fstat(log.fileno()).st_size
            if log.write(line) != len(line):
                log.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), log.name)
            os.fsync(log.fileno())

    def _truncate_partial_line(self, day: str) -> None:
        with self._locked(day), self._open_log(day) as log:
            _last_line(log)

    def _remove_oldest_days(self, keep: int) -> None:
        """Remove all but the newest `keep` days: by number, not by age, so a wrong clock removes one day at most."""
        days = self._days()
        for day in days[: max(len(days) - keep, 0)]:
            archive = self._archive(day)
            try:
                with self._locked(day):
                    head = seal.chain_head(archive)
                    archive.remove()
            except OSError as e:
                _log.warning("the access log of %s cannot be removed: %s", day, e.strerror)
            else:
                _log.info("the access log of %s was removed, its last seal is %s", day, head)

    def _days(self) -> list[str]:
        return [name for name in self._archive("").names() if _DAY.fullmatch(name)]

    @contextmanager
    def _locked(self, day: str) -> Iterator[None]:
        """Lock a day's log as `Archive.locked` does. Raises OSError, also if that takes too long."""
        held, until = os.open(self._folder / day, os.O_RDONLY), time.monotonic() + LOCK_S
        try:
            while True:
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as e:
                    if time.monotonic() >= until:
                        raise TimeoutError(errno.ETIMEDOUT, "another process holds its lock", str(day)) from e
                time.sleep(0.005)
            yield
        finally:
            os.close(held)

    def _archive(self, day: str) -> Archive:
        return Archive(str(self._folder), day)

    def _open_log(self, day: str) -> FileIO:
        return (self._folder / day / NOTES).open("a+b", buffering=0)


def _last_line(log: FileIO) -> bytes:
    """Truncate the partial line of a writer that died, and return the last complete line; b"" for an empty log.

    The request of a partial line was never answered.
    """
    size = os.fstat(log.fileno()).st_size
    if not size:
        return b""
    with mmap.mmap(log.fileno(), size, access=mmap.ACCESS_READ) as content:
        end = content.rfind(b"\n") + 1
        last = content[content.rfind(b"\n", 0, max(end - 1, 0)) + 1 : max(end - 1, 0)]
    if end < size:
        log.truncate(end)
    return last
