"""Print a dossier's seal, and verify a dossier against its hash chain and against checkpoints.

Each line of the log holds the digest of the line before. The chain shows a careless change; but a person who can write
to the folder can shorten the log, or write it and its chain again. So every command prints the chain head as a seal:

    seal:<incident>:<lines of the log>:<digest over these lines>

A checkpoint is a seal that was kept outside the folder.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

from runbook_lib.model.finding import Text, say
from runbook_lib.model.usage import UsageError, visible
from runbook_lib.privacy.masking import Masker
from runbook_lib.privacy.urls import show_url
from runbook_lib.sources.http import MOST_BYTES, HttpServer
from runbook_lib.sources.source import ReadCost, SourceError
from runbook_lib.store.archive import LOG, PARTIAL, UNREAD, Archive, entry_of, split_lines
from runbook_lib.store.lines import is_line

#: Hexadecimal digits of a chain head's digest: 128 bits of SHA-256, so that a seal fits into a line of a message.
DIGITS = 32
_HEAD = re.compile(rf"seal:([^\s:/]+):(\d{{1,9}}):([0-9a-f]{{{DIGITS}}})(?![0-9a-f])")
_EARLIER_SEAL = re.compile(r"seal:[^\s:/]+:\d+\.\d+\.\d+:")
#: Files that are generated again, or written by people, and therefore not sealed.
_UNSEALED = re.compile(rf"index\.html|systems\.html|postmortem(-\d+)?\.(md|html)|.*{re.escape(PARTIAL)}")
_SQLITE = b"SQLite format 3\0"


@dataclass(frozen=True)
class ChainHead:
    """The number of lines in an incident's log, and a digest over all of these lines."""

    incident: str
    lines: int
    digest: str

    def __str__(self) -> str:
        return f"seal:{self.incident}:{self.lines}:{self.digest}"


@dataclass(frozen=True)
class Report:
    """The result of a verification."""

    chain_head: ChainHead
    covered: int
    """Lines that the last matching checkpoint covers."""
    changed: tuple[Text, ...]
    """Differences from the hash chain or from a checkpoint."""
    uncovered: tuple[Text, ...]
    """Lines that no checkpoint covers, and files that no line names."""
    unread: tuple[Text, ...] = ()
    """Files that could not be read."""


def chain_head(archive: Archive) -> ChainHead:
    """Return the present chain head. Raises OSError.

    While others write, it is the head of what is written.
    """
    lines = split_lines(archive.read_file(LOG))
    return _compute_head(archive.incident, lines, len(lines))


def seal_text(archive: Archive) -> str:
    """Return the chain head as a seal; "" if the archive cannot be read."""
    try:
        return str(chain_head(archive))
    except (OSError, UsageError):
        return ""


def find_seals(text: str) -> list[ChainHead]:
    """Return the seals that a text contains."""
    return [ChainHead(incident, int(n), digest) for incident, n, digest in _HEAD.findall(text)]


def read_checkpoints(incident: str, source: str) -> list[ChainHead]:
    """Return an incident's checkpoints from a source: a seal, or a file or URL whose text contains seals.

    The file may also be a receiver's journal. Raises UsageError, one line, if the source has no seal of the incident.
    """
    found = find_seals(source) or find_seals(_read_source(source))
    own = list(dict.fromkeys(h for h in found if h.incident == incident))
    if not own:
        others = ", ".join(sorted({h.incident for h in found})[:5])
        but = f"; it contains seals of {others}" if others else ""
        raise UsageError(f"--checkpoint {show_url(source)}: contains no seal of {incident}{but}")
    return own


def check(archive: Archive, checkpoints: Sequence[ChainHead] = ()) -> Report:
    """Verify a dossier against its hash chain and against checkpoints. Raises OSError."""
    archive = archive.patient()
    with archive.locked() if archive.names() else nullcontext():  # a file is written before the line that names it
        lines = split_lines(archive.read_file(LOG))
        files = _list_files(archive)
    now, covered, problems, uncovered = len(lines), 0, archive.problems(), list[Text]()
    unread, changed = (tuple(p for p in problems if p.key == UNREAD), [p for p in problems if p.key != UNREAD])
    for seen in sorted(checkpoints, key=lambda c: c.lines):
        if seen.lines > now:
            changed.append(say("seal.cut", seal=str(seen), was=seen.lines, n=now))
        elif _compute_head(archive.incident, lines, seen.lines) != seen:
            changed.append(say("seal.other", seal=str(seen), **_range(covered, seen.lines)))
        else:
            covered = seen.lines
    if covered < now:
        uncovered.append(say("seal.loose", **_range(covered, now), n=now - covered))
    entries = [entry_of(line) or {} for line in lines]
    changed += [say("seal.not_json", n=n) for n, entry in enumerate(entries, 1) if entry and not is_line(entry)]
    named = {name for entry in entries for name in entry.get("sha256", {})}
    # A name may hold anything, also line breaks.
    uncovered += [say("seal.unnamed", name=visible(name, kept="")) for name in files if name not in named]
    return Report(_compute_head(archive.incident, lines, now), covered, tuple(changed), tuple(uncovered), unread)


def _range(after: int, last: int) -> dict[str, int | None]:
    """Return the first and the last of the lines after one; no last if it is one line."""
    return {"first": after + 1, "last": last if last > after + 1 else None}


def _compute_head(incident: str, lines: Sequence[bytes], n: int) -> ChainHead:
    whole = hashlib.sha256(b"\n".join([incident.encode(), *lines[:n], b""]))
    return ChainHead(incident, n, whole.hexdigest()[:DIGITS])


def _list_files(archive: Archive) -> list[str]:
    """Return the files of the dossier that ought to be sealed."""
    evidence = Archive(archive.output, f"{archive.incident}/evidence").names()
    there = [n for n in archive.names() if n not in (LOG, "evidence", "lab") and not _UNSEALED.fullmatch(n)]
    return there + [f"evidence/{n}" for n in evidence]


def _read_source(source: str) -> str:
    """Return the text of a file or URL. Raises UsageError."""
    if _EARLIER_SEAL.match(source):
        raise UsageError(f"--checkpoint {source}: is a seal of version 0.6, which verifies that dossier")
    if source.startswith("seal:"):
        raise UsageError(f"--checkpoint {source}: the seal is not complete: copy all of it")
    try:
        if source.startswith(("http://", "https://")):
            base, _, path = source.rpartition("/")
            return HttpServer("checkpoint", base, ReadCost(Masker())).get(path).decode(errors="replace")
        with Path(source).open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if content.startswith(_SQLITE):
            with closing(sqlite3.connect(f"{Path(source).absolute().as_uri()}?mode=ro", uri=True)) as journal:
                return "\n".join(seal for (seal,) in journal.execute("SELECT seal FROM seals ORDER BY at"))
        if len(content) > MOST_BYTES:
            raise UsageError(
                f"--checkpoint {show_url(source)} has more than {MOST_BYTES:,} bytes: copy the seals out of it"
            )
        return content.decode(errors="replace")
    except (OSError, SourceError, sqlite3.Error) as e:
        reason = getattr(e, "strerror", None) or " ".join(str(e).split())
        raise UsageError(f"--checkpoint {show_url(source)} cannot be read: {reason}") from None
