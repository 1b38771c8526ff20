"""The seal of a dossier: its head, which others keep, and what a dossier shows beside heads that they kept.

Each line of a journal is chained to the line before. That shows a careless change; whoever may write to the folder can
shorten a journal, or write it anew with its chain. So the head is told outside the folder, as one short word:

    seal:<incident>:<lines of manifest, actions and notes>:<digest over these lines>

Where a key is at hand (`sign`), the name of whoever has it and a signature over all of that follow.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from runbook_lib import settings, sign
from runbook_lib.archive import postmortem
from runbook_lib.mandatory import MARKDOWN
from runbook_lib.masking import Masker
from runbook_lib.model.finding import Text, say
from runbook_lib.sources import ReadCost, SourceError, http
from runbook_lib.store import PARTIAL, SEALED, Archive, entry_of
from runbook_lib.usage import UsageError

#: Hexadecimal digits of a head's digest: 128 bits of SHA-256, so that it fits into a line of a message.
DIGITS = 32
_HEAD = re.compile(
    rf"seal:([^\s:/]+):(\d{{1,9}})\.(\d{{1,9}})\.(\d{{1,9}}):([0-9a-f]{{{DIGITS}}})(?![0-9a-f])"
    r"(?::([A-Za-z0-9_-]+):?([A-Za-z0-9_-]*))?"  # cut off within its signature, it stays a signed one: it does not hold
)
#: What is made anew, or written by people, and therefore not sealed.
_UNSEALED = re.compile(rf"index\.html|{MARKDOWN}(\.bak-.*)?|{postmortem.PAGE}|.*{re.escape(PARTIAL)}")
_SQLITE = b"SQLite format 3\0"


@dataclass(frozen=True)
class Head:
    """How far an incident's journals have come, and a digest over all lines up to there."""

    incident: str
    lines: tuple[int, ...]
    """Of each journal, in the order of `store.SEALED`."""
    digest: str
    by: str = ""
    """Who is said to have signed it, and the signature; "" where nobody has."""
    signature: str = ""

    @property
    def bare(self) -> Head:
        """The same without its signature: what was signed."""
        return replace(self, by="", signature="")

    def __str__(self) -> str:
        bare = f"seal:{self.incident}:{'.'.join(map(str, self.lines))}:{self.digest}"
        return f"{bare}:{self.by}:{self.signature}" if self.by else bare


@dataclass(frozen=True)
class Report:
    """What the seal shows."""

    head: Head
    anchored: tuple[int, ...]
    """Lines of each journal up to the last witness that agrees."""
    changed: tuple[Text, ...]
    """What is not as it was sealed, or as a witness has seen it."""
    loose: tuple[Text, ...]
    """What no witness has seen, or no line names."""


def head(archive: Archive) -> Head:
    """The head as it is now. Raises OSError.

    Of writers at work it holds what each journal had at the moment it was read: that stays a part of what they leave.
    """
    lines = _lines(archive)
    return _head(archive.incident, lines, [len(own) for own in lines])


def told(archive: Archive) -> str:
    """The head in a word, for whoever keeps it outside; "" where the archive does not answer."""
    try:
        return signed(head(archive))
    except (OSError, UsageError):
        return ""


def signed(bare: Head) -> str:
    """A head in a word, signed where [sign] of runbook.toml has a key; why it is not follows in brackets."""
    try:
        signing = settings.load().sign
        if not signing.key_file and not signing.key_command:
            return str(bare)
        by, signature = sign.sign(str(bare), signing)
        return str(replace(bare, by=by, signature=signature))
    except UsageError as e:
        return f"{bare} (not signed: {e})"


def heads(text: str) -> list[Head]:
    """The heads that stand in a text."""
    return [Head(i, (int(a), int(b), int(c)), *more) for i, a, b, c, *more in _HEAD.findall(text)]


def witnessed(incident: str, witness: str) -> list[Head]:
    """The heads of an incident that a witness has kept: itself one, or a file or URL with any text around them.

    A receiver's journal is a file too. Raises UsageError, one line, when there is none.
    """
    found = heads(witness) or heads(_text(witness))
    own = list(dict.fromkeys(h for h in found if h.incident == incident))
    if not own:
        others = ", ".join(sorted({h.incident for h in found})[:5])
        but = f"; it has those of {others}" if others else ""
        raise UsageError(f"--witness {_shown(witness)}: no seal of {incident} stands there{but}")
    return own


def vouched(witnesses: Sequence[Head], keys: Mapping[str, str], *, only: bool) -> tuple[list[Head], list[Text]]:
    """The witnesses that count, and why others do not: a signature must hold, and with `only` be there.

    `keys` are public ones by name. Raises UsageError where something is signed and the package is missing.
    """
    count, doubted = list[Head](), list[Text]()
    for seen in witnesses:
        if not seen.by and not only:
            count.append(seen)
        elif seen.by not in keys:
            key = "seal.unknown_signer" if seen.by else "seal.unsigned"
            doubted.append(say(key, seal=str(seen.bare), by=seen.by))
        elif not sign.holds(str(seen.bare), seen.by, seen.signature, keys):
            doubted.append(say("seal.forged", seal=str(seen.bare), by=seen.by))
        else:
            count.append(seen)
    return count, doubted


def check(archive: Archive, witnesses: Sequence[Head] = ()) -> Report:
    """Hold a dossier against its own chain and against heads that were kept outside. Raises OSError."""
    with archive.locked() if archive.names() else nullcontext():  # a file is there before its line
        lines = _lines(archive)
        files = _files(archive)
    now = [len(own) for own in lines]
    anchored, changed, loose = [0] * len(SEALED), archive.problems(), list[Text]()
    for seen in sorted(witnesses, key=lambda w: sum(w.lines)):
        if short := [(log, was, n) for log, was, n in zip(SEALED, seen.lines, now, strict=True) if was > n]:
            changed += [say("seal.cut", seal=str(seen.bare), log=log, was=was, n=n) for log, was, n in short]
        elif _head(archive.incident, lines, seen.lines) != seen.bare:
            changed.append(say("seal.other", seal=str(seen.bare), since=_ranges(anchored)))
        else:
            anchored = [max(a, b) for a, b in zip(anchored, seen.lines, strict=True)]
    for log, upto, n in zip(SEALED, anchored, now, strict=True):
        if upto < n:
            loose.append(say("seal.loose", log=log, first=upto + 1, last=n if n > upto + 1 else None, n=n - upto))
    entries = [entry_of(line) or {} for own in lines for line in own]
    named = {name for entry in entries for name in entry.get("sha256", {})}
    loose += [say("seal.unnamed", name=name) for name in files if name not in named]
    return Report(_head(archive.incident, lines, now), tuple(anchored), tuple(changed), tuple(loose))


def _head(incident: str, lines: Sequence[Sequence[bytes]], counts: Sequence[int]) -> Head:
    whole = hashlib.sha256(incident.encode())
    for log, own, n in zip(SEALED, lines, counts, strict=True):
        whole.update(b"\n".join([b"", log.encode(), *own[:n], b""]))
    return Head(incident, tuple(counts), whole.hexdigest()[:DIGITS])


def _lines(archive: Archive) -> list[list[bytes]]:
    return [archive.raw(log) for log in SEALED]


def _files(archive: Archive) -> list[str]:
    """What lies there and ought to be sealed."""
    evidence = Archive(archive.output, f"{archive.incident}/evidence").names()
    there = [n for n in archive.names() if n not in (*SEALED, "evidence", "lab") and not _UNSEALED.fullmatch(n)]
    return there + [f"evidence/{n}" for n in evidence]


def _ranges(upto: Sequence[int]) -> str:
    return ", ".join(f"{log} {n}" for log, n in zip(SEALED, upto, strict=True) if n)


def _text(witness: str) -> str:
    """What a file or URL holds. Raises UsageError."""
    if witness.startswith("seal:"):
        raise UsageError(f"--witness {witness}: this is no whole seal: copy all of it")
    try:
        if witness.startswith(("http://", "https://")):
            base, _, path = witness.rpartition("/")
            return http.get("witness", ReadCost(Masker()), base, path).decode(errors="replace")
        content = Path(witness).read_bytes()
        if content.startswith(_SQLITE):
            with closing(sqlite3.connect(f"{Path(witness).absolute().as_uri()}?mode=ro", uri=True)) as journal:
                return "\n".join(seal for (seal,) in journal.execute("SELECT seal FROM seals ORDER BY at"))
        return content.decode(errors="replace")
    except (OSError, SourceError, sqlite3.Error) as e:
        reason = getattr(e, "strerror", None) or " ".join(str(e).split())
        raise UsageError(f"--witness {_shown(witness)} cannot be read: {reason}") from None


def _shown(witness: str) -> str:
    """A witness as it may be said: a URL without its password."""
    return re.sub(r"//[^/@]*@", "//", witness)
