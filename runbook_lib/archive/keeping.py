"""How long dossiers are kept, and whom they lead to: erasure of a person, legal holds, removal of what is old.

Each is written down beside the incidents, in `<output>/.keeping/journal/actions.jsonl`: sealed like a dossier's own
logs, and there when the dossier is not. Before anything is destroyed a line says so ("begun"), and another after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

import pandas as pd

from runbook_lib.archive import seal
from runbook_lib.masking import Masker
from runbook_lib.model.finding import Text, say
from runbook_lib.notes import whoami
from runbook_lib.parameters import moment
from runbook_lib.settings import Settings
from runbook_lib.store import ACTION_LOG, MANIFEST, SALTS, SEALED, Archive
from runbook_lib.usage import UsageError

FOLDER, JOURNAL = ".keeping", "journal"
#: An id of fewer bytes stands in a file by chance.
TELLING = 6
_MOMENTS = ("time", "started", "ended")


def journal(output: str) -> Archive:
    """Where it is written down; `runbook verify journal --output OUTPUT/.keeping` holds it against its seal."""
    return Archive(f"{output.rstrip('/')}/{FOLDER}", JOURNAL)


def write(output: str, what: str, **more: Any) -> None:
    """Write a line, by whoever runs this. Raises OSError and OutputError."""
    kept = journal(output)
    kept.prepare(people=False)
    time = pd.Timestamp.now("UTC").isoformat(timespec="milliseconds")
    kept.add_line(ACTION_LOG, {"time": time, "who": whoami(), "what": what} | more)


def dossiers(output: str) -> Iterator[Archive]:
    """Every incident under an output of which anything is kept. Raises OSError."""
    for name in Archive(output, "").names():
        archive = Archive(output, name)
        with suppress(NotADirectoryError):
            if {*SEALED, "lab"} & set(archive.names()):
                yield archive


def targets(archive: Archive) -> set[str]:
    """The systems that an incident's runs and actions were about. Raises OSError and ValueError."""
    given = [*(e.get("parameters") or {} for e in archive.lines(MANIFEST)), *archive.lines(ACTION_LOG)]
    return {str(values["target"]) for values in given if values.get("target")}


# A person ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trace:
    """What leads to a person in one dossier."""

    archive: Archive
    tokens: tuple[str, ...]
    """Those of theirs that stand in its files."""
    clear: tuple[str, ...]
    """Files in which the id itself stands."""
    salted: bool
    """Whether the tokens can be made to lead to nobody; not where an earlier version has begun the incident."""

    @property
    def stays(self) -> Text | None:
        """What no erasure takes away, as a sentence."""
        if self.clear:
            return say("keeping.clear", incident=self.archive.incident, files=", ".join(self.clear))
        if self.tokens and not self.salted:
            return say("keeping.unsalted", incident=self.archive.incident, tokens=", ".join(self.tokens))
        return None


def trace(archive: Archive, user: str, config: Settings) -> Trace:
    """Look for a person in a dossier, by the targets' addresses as they are today. Raises OSError."""
    urls: list[Sequence[str]] = [()]  # of a note
    with suppress(ValueError):  # a line that is broken
        for target in targets(archive):
            with suppress(UsageError):  # a target that is gone, or whose secrets are not here
                urls.append(config.target(target).urls())
    salts = archive.read(SALTS) if SALTS in (names := archive.files()) else b""
    could = {str(Masker.of(own, archive.incident, lambda: salts).person(user)) for own in urls}
    tokens, clear = set[str](), []
    for name in names:
        if name == SALTS:
            continue
        content = archive.read(name)
        tokens |= {token for token in could if token.encode() in content}
        if len(user.encode()) >= TELLING and user.encode() in content:
            clear.append(name)
    return Trace(archive, tuple(sorted(tokens)), tuple(clear), bool(salts))


def erase(output: str, user: str, traces: Sequence[Trace]) -> None:
    """Make a person's tokens follow from nothing any more in all these dossiers; the id is written nowhere.

    Also where none was found: one that was made under another password of the target may be there. Raises OSError.
    """
    found = {t.archive.incident: t.tokens for t in traces if t.tokens and t.salted}
    line = {"id": token_hex(6), "tokens": found, "stays": [t.archive.incident for t in traces if t.stays]}
    write(output, "erase", **line, result="begun")
    for t in traces:
        if t.salted:
            t.archive.forget(user)
    write(output, "erase", **line, result="done")


# A dossier --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Old:
    """A dossier whose time is over: that of every target it is about."""

    archive: Archive
    target: str
    keep_days: int
    last: pd.Timestamp
    """The moment of its last line, in UTC."""


def held(output: str) -> dict[str, str]:
    """Why incidents are on hold, by their names.

    Raises UsageError where the journal was changed: then nobody can tell what is; and OSError.
    """
    kept = journal(output)
    if kept.raw(ACTION_LOG) and kept.problems():
        raise UsageError(f"{kept.place} is not as it was sealed: holds may be missing from it, so nothing is removed")
    lines = [e for e in kept.lines(ACTION_LOG) if e["what"] in ("hold", "release")]
    last = {e["incident"]: e for e in lines}
    return {incident: e["reason"] for incident, e in last.items() if e["what"] == "hold"}


def hold(archive: Archive, reason: str, *, release: bool = False) -> None:
    """Keep a dossier whatever its age, or no longer. Raises UsageError, OSError and OutputError."""
    if not reason.strip():
        raise UsageError("a hold without a reason can not be judged later: --reason TEXT")
    with archive.locked():  # not while it is removed
        if (archive.incident in held(archive.output)) is not release:
            raise UsageError(f"{archive.incident} is {'not ' if release else ''}on hold{'' if release else ' already'}")
        write(archive.output, "release" if release else "hold", incident=archive.incident, reason=reason.strip())


def old(archive: Archive, config: Settings, now: pd.Timestamp) -> Old | Text | None:
    """A dossier whose time is over; None for one that is kept, and why where that can not be told. Raises OSError."""
    try:
        known = sorted(targets(archive))
        days = [config.target(target).keep_days for target in known]
        lines = [line for log in SEALED for line in archive.lines(log)]
        moments = [moment(line[name]) for line in lines for name in _MOMENTS if line.get(name)]
        moments += [moment(name.partition("-")[0]) for name in archive.partials()]
    except (UsageError, ValueError, TypeError, AttributeError) as e:  # whatever a broken line is
        return say("keeping.unread", incident=archive.incident, detail=str(e))
    keep = [d for d in days if d is not None]
    if not moments or not keep or len(keep) < len(days) or now - max(moments) <= pd.Timedelta(days=max(keep)):
        return None
    return Old(archive, ", ".join(known), max(keep), max(moments))


def remove(found: Old, config: Settings, now: pd.Timestamp) -> bool:
    """Remove a dossier, and write down how it was sealed; False where it is on hold or has gone on meanwhile.

    Raises OSError, OutputError and UsageError.
    """
    archive = found.archive
    with archive.locked():
        if archive.incident in held(archive.output) or old(archive, config, now) != found:
            return False
        line = {
            "id": token_hex(6),
            "incident": archive.incident,
            "target": found.target,
            "keep_days": found.keep_days,
            "last": found.last.isoformat(),
            "seal": seal.signed(seal.head(archive)),
        }
        write(archive.output, "remove", **line, result="begun")
        archive.remove()
        write(archive.output, "remove", **line, result="done")
    return True
