"""Is the delivery worker at work? What one look, or two a little apart, say of it; shared by 4.1.1 and 4.3."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib.context import Given
from runbook_lib.model.finding import Frames
from runbook_lib.model.frames import amount, one, table

if TYPE_CHECKING:
    from runbook_lib.context import Context
    from runbook_lib.sources.postgres import Snapshot

#: A send that times out takes about 2 s, so a worker at work finishes at least one row between two looks.
LOOKS_APART_S = 2.5
#: From so many rows on, tries that failed are a pattern and not an accident.
TRIED = 3
#: A send so recent means that the receiver accepts.
SENDS_S = 5.0
#: Rows that the question about attempts looks at.
SAMPLE = 5000


@dataclass(frozen=True)
class Delivery:
    """The worker as the tables show it.

    `due` counts PENDING that may be taken and leases that are over. `silence_s` is how long nobody has claimed or
    sent although something was due. `progress` tells whether rows left a worker's hands between two looks; None
    where one look was enough.
    """

    due: float
    oldest_s: float
    silence_s: float
    leased: float
    waiting: float
    tried: float
    progress: bool | None
    accepted: bool | None = None
    failing: bool = True

    @property
    def total(self) -> float:
        """All that has not reached an end."""
        return self.due + self.leased + self.waiting

    def stopped(self, given: Given) -> float:
        """How strongly this speaks for a worker that is stopped or hangs, 0 to 1."""
        limit = given.limits["delivery.silence"]
        if self.progress or min(self.oldest_s, self.silence_s) < (limit.warning or 0):
            return 0.0
        if self.leased and self.tried >= TRIED:
            return 0.45  # or one send after the other that waits for its timeout
        sure = self.leased == 0 or self.silence_s >= (limit.critical or 0)
        return 0.9 if sure else 0.6

    def refused(self, given: Given) -> float:
        """How strongly this speaks for a receiver that refuses or does not answer, 0 to 1."""
        limits = given.limits
        if self.tried < TRIED or not self.failing:
            return 0.0
        if self.stopped(given) >= 0.6:
            return 0.3
        if self.waiting >= (limits["backlog.waiting_retry"].warning or 0) or self.tried >= 0.3 * self.total:
            return 0.85
        # At work, behind, and some tries failed: each send may wait for its timeout.
        behind = self.oldest_s >= (limits["delivery.silence"].warning or 0)
        if not (self.progress and behind):
            return 0.0
        return 0.6 if self.accepted else 0.8


def look(db: Snapshot) -> Frames:
    """What waits, who holds what, and when somebody was last at work."""
    names = ("backlog", "activity", "attempts", "held")
    return {name: db.ask(f"notifications/{name}") for name in names}


def second_look(rb: Context, first: Frames, always: bool = False) -> Frames:
    """The same a little later, `always` or if something has been due for suspiciously long; {} if not.

    Waited is only what is left of the time: whatever was asked since the first look has been part of it.
    """
    limit = rb.catalog.limits["delivery.silence"].warning or 0
    if not always and delivery(first).oldest_s < limit:
        return {}
    taken = one(first["activity"]).get("now")
    past_s = 0.0
    if taken is not None and "postgres" in rb.clocks:  # else its clock may not be compared with this one
        past_s = (rb.now() - taken).total_seconds()
    time.sleep(min(max(LOOKS_APART_S - past_s, 0.0), LOOKS_APART_S))
    with rb.snapshot() as db:
        return {f"{name}_later": db.ask(f"notifications/{name}") for name in ("activity", "attempts", "held")}


def delivery(frames: Frames) -> Delivery:
    """Read the frames of `look`, and of `second_look` if there was one."""
    backlog, activity = one(frames.get("backlog")), one(frames.get("activity"))
    due = amount(backlog, "due") + amount(backlog, "expired")
    oldest = max(amount(backlog, "oldest_due_s"), amount(backlog, "oldest_expired_s"))
    leased, progress = amount(backlog, "leased"), _progress(frames)
    signs = ["last_claim", "last_sent", "last_try"]
    if progress is False and not leased:
        signs.remove("last_try")  # an upper bound only, and nothing supports it
    now = activity.get("now")
    seen = [activity[s] for s in signs if activity.get(s) is not None]
    silence = (now - max(seen)).total_seconds() if now is not None and seen else oldest
    tries = _tries(frames, "attempts")
    last_sent = activity.get("last_sent")
    sends = now is not None and last_sent is not None and (now - last_sent).total_seconds() < SENDS_S
    return Delivery(
        due=due,
        oldest_s=oldest,
        silence_s=0.0 if progress else max(min(silence, oldest), 0.0),
        leased=leased,
        waiting=amount(backlog, "waiting_retry"),
        tried=float(sum(tries.values())),
        progress=progress,
        accepted=None if progress is None else _newer(frames, "last_sent"),
        # A first failure waits 1.5 s at most, so that a row with one is of now. A full sample may have missed them.
        failing=not sends or bool(tries.get(1)) or sum(tries.values()) >= SAMPLE,
    )


def _progress(frames: Frames) -> bool | None:
    if "held" not in frames or "held_later" not in frames:
        return None
    before, after = (table(frames, name, "notification_id", "locked_at") for name in ("held", "held_later"))
    newer = any(_newer(frames, sign) for sign in ("last_claim", "last_sent"))
    gone = _claims(before) - _claims(after)
    return newer or bool(gone) or _tries(frames, "attempts") != _tries(frames, "attempts_later")


def _newer(frames: Frames, sign: str) -> bool:
    first, later = one(frames.get("activity")), one(frames.get("activity_later"))
    return later.get(sign) is not None and (first.get(sign) is None or later[sign] > first[sign])


def _claims(held: pd.DataFrame) -> set[tuple[str, str]]:
    return set(zip(held["notification_id"].astype(str), held["locked_at"].astype(str), strict=True))


def _tries(frames: Frames, name: str) -> dict[int, int]:
    """Rows by how often they were tried in vain, those never tried left out."""
    attempts = table(frames, name, "attempt_count", "n")[["attempt_count", "n"]]
    numbers = attempts.apply(pd.to_numeric, errors="coerce").dropna()
    return {int(a): int(n) for a, n in zip(numbers["attempt_count"], numbers["n"], strict=True) if a > 0}
