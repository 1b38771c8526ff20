"""Is the delivery worker at work? What one look, or two a little apart, say of it; shared by 4.1.1 and 4.3."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib import rows
from runbook_lib.checks.parts import seconds_between
from runbook_lib.context import Given
from runbook_lib.model.finding import Frames, Text, say
from runbook_lib.packs.entitlement.rows import Activity, Attempts, Held, Notifications, Tries

if TYPE_CHECKING:
    from runbook_lib.context import Context
    from runbook_lib.sources.postgres import Snapshot

#: Observations of a worker that is gone, and not only one that may be waiting for a receiver.
GONE = ("delivery.stopped", "delivery.seems_stopped")


@dataclass(frozen=True)
class Delivery:
    """The worker as the tables show it.

    `silence_s` is how long nobody has claimed or sent although something was ready. `tries` are rows by how often
    they were tried in vain, `failed` and `failed_now` how many were in the last seconds. `progress` tells whether rows
    left a worker's hands between two looks, `accepted` whether one of them was sent; None where one look was enough.
    """

    queue: Notifications
    activity: Activity
    tries: dict[int, int]
    failed: float
    failed_now: float
    silence_s: float
    progress: bool | None
    accepted: bool | None

    @property
    def tried(self) -> float:
        """Rows that were tried in vain."""
        return float(sum(self.tries.values()))

    @property
    def total(self) -> float:
        """All that has not reached an end."""
        return self.queue.ready + self.queue.leased + self.queue.waiting_retry

    def stopping(self, given: Given) -> str:
        """The observation of a worker that is stopped or hangs; "" for none."""
        limit = given.limits["delivery.silence"]
        if self.progress or min(self.queue.oldest_s, self.silence_s) < (limit.warning or 0):
            return ""
        if self.queue.leased and self.tried >= given.number("tries.pattern"):
            return "delivery.may_be_stuck"  # or one send after the other that waits for its timeout
        sure = not self.queue.leased or self.silence_s >= (limit.critical or 0)
        return "delivery.stopped" if sure else "delivery.seems_stopped"

    def refusing(self, given: Given) -> str:
        """The observation of a receiver that refuses or does not answer; "" for none."""
        limits = given.limits
        if self._refuses_some(given):
            return "delivery.refused_some"
        if self.tried < given.number("tries.pattern") or not self._failing(given):
            return ""
        if self.stopping(given) in GONE:
            return "delivery.refused_before"
        many = self.tried >= given.number("delivery.refused_share") * self.total
        if many or self.queue.waiting_retry >= (limits["backlog.waiting_retry"].warning or 0):
            return "delivery.refused"
        # At work, behind, and some tries failed: each send may wait for its timeout.
        if not self.progress or self.queue.oldest_s < (limits["delivery.silence"].warning or 0):
            return ""
        return "delivery.refused_in_part" if self.accepted else "delivery.times_out"

    def notes(self, given: Given) -> tuple[Text, ...]:
        """What two looks have shown."""
        if self.progress is None:
            return ()
        return (say("backlog.progress" if self.progress else "backlog.no_progress", s=given.number("looks.apart")),)

    def sends(self, given: Given) -> bool:
        """Whether a row was sent just now."""
        sent_s = seconds_between(self.activity.last_sent, self.activity.now)
        return sent_s is not None and sent_s < given.number("success.lately")

    def _refuses_some(self, given: Given) -> bool:
        """Whether most sends succeed while some fail: what fails is then special, and not the receiver."""
        sent = self.activity.sent_1m * given.number("recovery.recent") / 60
        return self.sends(given) and sent > self.failed >= given.number("tries.pattern")

    def _failing(self, given: Given) -> bool:
        """Whether tries fail now. While sends succeed only a first failure tells; a full sample may have missed it."""
        first = bool(self.tries.get(1) or self.failed_now)
        return not self.sends(given) or first or self.tried >= given.number("attempts.sample")


def look(rb: Context, db: Snapshot) -> Frames:
    """What waits, who holds what, when somebody was at work, and what failed.

    Frames: backlog, activity, attempts, held, tries.
    """
    names = ("backlog", "activity", "attempts", "held")
    recently = rb.as_of - pd.Timedelta(seconds=rb.number("recovery.recent"))
    return {name: db.ask(f"notifications/{name}") for name in names} | {
        "tries": db.ask(Tries.QUESTION, tried_since=recently)
    }


def second_look(rb: Context, first: Frames, always: bool = False) -> Frames:
    """The same a little later, `always` or if something has been due for suspiciously long; {} if not.

    Waited is only what is left of the time: whatever was asked since the first look has been part of it.
    Frames: activity_later, attempts_later, held_later.
    """
    limit = rb.catalog.limits["delivery.silence"].warning or 0
    if not always and rows.one(first["backlog"], Notifications).oldest_s < limit:
        return {}
    taken, apart_s = rows.one(first["activity"], Activity).now, rb.number("looks.apart")
    past_s = 0.0
    if taken is not None and "postgres" in rb.clocks:  # else its clock may not be compared with this one
        past_s = (rb.now() - taken).total_seconds()
    time.sleep(min(max(apart_s - past_s, 0.0), apart_s))
    with rb.snapshot() as db:
        return {f"{name}_later": db.ask(f"notifications/{name}") for name in ("activity", "attempts", "held")}


def delivery(frames: Frames) -> Delivery:
    """Read the frames of `look`, and of `second_look` if there was one."""
    queue = rows.one(frames.get("backlog"), Notifications)
    failed = Tries.of("delivery", frames)
    activity, later = (rows.one(frames.get(name), Activity) for name in ("activity", "activity_later"))
    tries, oldest, progress = _tries(frames, "attempts"), queue.oldest_s, None
    accepted = _newer(activity.last_sent, later.last_sent)
    if "held" in frames and "held_later" in frames:
        moved = accepted or _newer(activity.last_claim, later.last_claim)
        gone = _claims(frames["held"]) - _claims(frames["held_later"])
        progress = moved or bool(gone) or tries != _tries(frames, "attempts_later")
    signs = [activity.last_claim, activity.last_sent]
    if progress is not False or queue.leased:
        signs.append(activity.last_try)  # an upper bound only: it counts where something supports it
    seen = [at for at in signs if at is not None]
    silence = (activity.now - max(seen)).total_seconds() if activity.now is not None and seen else oldest
    return Delivery(
        queue=queue,
        activity=activity,
        tries=tries,
        failed=failed.failed,
        failed_now=failed.failed_now,
        silence_s=0.0 if progress else max(min(silence, oldest), 0.0),
        progress=progress,
        accepted=None if progress is None else accepted,
    )


def _newer(before: pd.Timestamp | None, after: pd.Timestamp | None) -> bool:
    return after is not None and (before is None or after > before)


def _claims(held: pd.DataFrame) -> set[tuple[str, pd.Timestamp | None]]:
    return {(row.notification_id, row.locked_at) for row in rows.each(held, Held)}


def _tries(frames: Frames, name: str) -> dict[int, int]:
    """Rows by how often they were tried in vain, those never tried left out."""
    return {row.attempt_count: row.n for row in rows.each(frames.get(name), Attempts) if row.attempt_count > 0}
