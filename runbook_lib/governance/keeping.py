"""Retention of dossiers: erase a person, place legal holds, remove expired dossiers.

Every operation is logged beside the incidents, in `<output>/.keeping/journal/actions.jsonl`, which is hash-chained like
a dossier's logs and outlives the dossiers. A destructive operation has two lines: one before it ("begun"), one after.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

import pandas as pd

from runbook_lib.book.parameters import whoami
from runbook_lib.dossier import seal
from runbook_lib.model.finding import Text, say
from runbook_lib.model.times import moment, now
from runbook_lib.model.usage import UsageError
from runbook_lib.privacy.masking import Masker
from runbook_lib.privacy.urls import show_url
from runbook_lib.sources.settings import Settings
from runbook_lib.store.archive import ACTION_LOG, SALTS, SEALED, Archive
from runbook_lib.view.render import when

FOLDER, JOURNAL = ".keeping", "journal"
#: A user id of fewer bytes is not searched for in files: it would match by chance.
MIN_ID_BYTES = 6
_TIME_FIELDS = ("time", "started", "ended")
#: The clock is doubted if it is behind the newest line by more than the first, or ahead of it by more than the second.
CLOCK_TOLERANCE, CLOCK_GAP = pd.Timedelta(minutes=5), pd.Timedelta(days=40)


def journal(output: str) -> Archive:
    """Return the archive of the log; `runbook verify journal --output OUTPUT/.keeping` verifies it."""
    return Archive(f"{output.rstrip('/')}/{FOLDER}", JOURNAL, people=False)


def write_line(output: str, what: str, **more: Any) -> None:
    """Add a line to the log, with the present user. Raises OSError and OutputError."""
    kept = journal(output)
    kept.prepare()
    kept.add_line(ACTION_LOG, {"time": now(), "who": whoami(), "what": what} | more)


def dossiers(output: str) -> Iterator[Archive]:
    """Iterate over the dossiers of an output, also those that may not be read. Raises OSError."""
    yield from (a for name in Archive(output, "").names() if (a := Archive(output, name)).may_be_dossier())


def _targets_of(archive: Archive) -> set[str]:
    """Return the targets of its runs and actions, also of runs that died. Raises OSError and ValueError."""
    found = archive.targets()
    for name in archive.partials():
        with suppress(FileNotFoundError, ValueError, LookupError, TypeError):  # it has ended, or not begun to write
            found.add(str(json.loads(archive.read(name))["metadata"]["papermill"]["parameters"]["target"]))
    return found


# A person ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trace:
    """The references to a person in one dossier."""

    archive: Archive
    tokens: tuple[str, ...]
    """The person's tokens that its files contain."""
    clear: tuple[str, ...]
    """The files that contain the user id itself."""
    salted: bool
    """Whether the incident has salts."""

    @property
    def stays(self) -> Text | None:
        """Return a text about the references that an erasure cannot remove; None for none."""
        if not self.clear:
            return None
        return say("keeping.clear", incident=self.archive.incident, files=", ".join(self.clear))


def find_trace(archive: Archive, user: str, config: Settings) -> Trace:
    """Find a person's references in a dossier, with the targets' present addresses. Raises OSError."""
    urls: list[Sequence[str]] = [()]  # for notes
    known = set[str]()
    with suppress(ValueError):  # a broken line
        known = _targets_of(archive)
    for target in known or {"default", *config.targets}:
        with suppress(UsageError):  # a target that was removed, or whose secrets are not available here
            urls.append(config.target(target).urls())
    salts = archive.read(SALTS) if SALTS in (names := archive.files()) else b""
    could = {str(Masker.of(own, archive.incident, lambda: salts).person(user)) for own in urls}
    tokens, clear = set[str](), []
    for name in names:
        # What a run that is at work has just removed holds nothing any more.
        if name == SALTS or (content := archive.read_or_none(name)) is None:
            continue
        tokens |= {token for token in could if token.encode() in content}
        if len(user.encode()) >= MIN_ID_BYTES and user.encode() in content:
            clear.append(name)
    return Trace(archive, tuple(sorted(tokens)), tuple(clear), bool(salts))


def erase(output: str, user: str, traces: Sequence[Trace]) -> None:
    """Erase a person's salts in these dossiers, so that the tokens cannot be derived from the id. Raises OSError.

    This includes dossiers in which no token was found: one may have been made under another password of the target.
    The user id is not logged.
    """
    found = {t.archive.incident: t.tokens for t in traces if t.tokens and t.salted}
    line = {"id": token_hex(6), "tokens": found, "stays": [t.archive.incident for t in traces if t.stays]}
    write_line(output, "erase", **line, result="begun")
    for t in traces:
        if t.salted:
            t.archive.forget(user)
    write_line(output, "erase", **line, result="done")


# A dossier --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExpiredDossier:
    """A dossier that is older than keep_days of all its targets."""

    archive: Archive
    target: str
    keep_days: int
    last: pd.Timestamp
    """The time of its last line, in UTC."""


def read_holds(output: str) -> dict[str, str]:
    """Return the reasons of the present legal holds, by incident.

    Raises OSError, and UsageError if the log was changed: then the holds are not known.
    """
    kept = journal(output)
    if kept.raw(ACTION_LOG) and kept.problems():
        raise UsageError(f"{kept.place} was changed after it was sealed: holds may be missing, so nothing is removed")
    lines = [e for e in kept.lines(ACTION_LOG) if e["what"] in ("hold", "release")]
    last = {e["incident"]: e for e in lines}
    return {incident: e["reason"] for incident, e in last.items() if e["what"] == "hold"}


def hold(archive: Archive, reason: str, *, release: bool = False) -> None:
    """Place a legal hold on a dossier, or release it. Raises UsageError, OSError and OutputError."""
    if not reason.strip():
        raise UsageError("a hold needs a reason: --reason TEXT")
    with archive.locked():  # not during its removal
        if (archive.incident in read_holds(archive.output)) is not release:
            raise UsageError(f"{archive.incident} is {'not ' if release else ''}on hold{'' if release else ' already'}")
        write_line(archive.output, "release" if release else "hold", incident=archive.incident, reason=reason.strip())


def check_clock(output: str, now: pd.Timestamp) -> None:
    """Raise UsageError if the clock contradicts the newest line of the output: removals depend on it.

    Each removal and each `retain --execute` is a line of the log, so that a gap of `CLOCK_GAP` is unusual.
    """
    logs = [journal(output).lines(ACTION_LOG)]
    for archive in dossiers(output):
        with suppress(OSError):  # it is named where its age is read
            logs += [archive.lines(log) for log in SEALED]
    moments = [m for lines in logs for line in lines if (m := _last_moment(line)) is not None]
    newest = max(moments, default=now)
    if not -CLOCK_TOLERANCE <= now - newest <= CLOCK_GAP:
        raise UsageError(
            f"the clock shows {when(now)}, and the newest line of {show_url(output)} is of {when(newest)}:"
            " nothing was removed; if the clock is right, add --clock-is-right"
        )


def _last_moment(line: dict[str, Any]) -> pd.Timestamp | None:
    with suppress(ValueError, TypeError):
        return max((moment(line[name]) for name in _TIME_FIELDS if line.get(name)), default=None)
    return None


def find_expired(archive: Archive, config: Settings, now: pd.Timestamp) -> ExpiredDossier | Text | None:
    """Return the dossier if it is expired, None if not, or a text if that is not known."""
    try:
        known = sorted(_targets_of(archive))
        days = [config.target(target).keep_days for target in known] if known else _every_keep_days(config)
        lines = [line for log in SEALED for line in archive.lines(log)]
        moments = [moment(line[name]) for line in lines for name in _TIME_FIELDS if line.get(name)]
        moments += [moment(name.partition("-")[0]) for name in archive.partials()]
    except (UsageError, OSError, ValueError, TypeError, AttributeError) as e:  # whatever a broken line raises
        return say("keeping.unread", incident=archive.incident, detail=getattr(e, "strerror", None) or str(e))
    keep = [d for d in days if d is not None]
    if not moments or not keep or len(keep) < len(days) or now - max(moments) <= pd.Timedelta(days=max(keep)):
        return None
    if not known:  # notes alone, or a run that died at once
        return say("keeping.no_target", incident=archive.incident, last=when(max(moments)))
    return ExpiredDossier(archive, ", ".join(known), max(keep), max(moments))


def _every_keep_days(config: Settings) -> list[int]:
    """Return the keep_days of all targets that have one."""
    found: list[int | None] = []
    for target in config.targets:
        with suppress(UsageError):  # its secrets are not available here
            found.append(config.target(target).keep_days)
    return [days for days in found if days is not None]


def remove(found: ExpiredDossier, config: Settings, now: pd.Timestamp) -> bool:
    """Remove a dossier and log its seal; return False if it is on hold or was continued meanwhile.

    Raises OSError, OutputError and UsageError.
    """
    archive = found.archive
    with archive.locked():
        if archive.incident in read_holds(archive.output) or find_expired(archive, config, now) != found:
            return False
        line = {
            "id": token_hex(6),
            "incident": archive.incident,
            "target": found.target,
            "keep_days": found.keep_days,
            "last": found.last.isoformat(),
            "seal": str(seal.chain_head(archive)),
        }
        write_line(archive.output, "remove", **line, result="begun")
        archive.remove()
        write_line(archive.output, "remove", **line, result="done")
    return True
