"""Judge from one sample, or two samples a few seconds apart, whether the delivery worker works; for 4.1.1 and 4.3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import seconds_between
from runbook_lib.checks.sample import FIRST
from runbook_lib.model import rows
from runbook_lib.model.finding import Frames, Text, say
from runbook_lib.packs.entitlement.checks.loop import TableLoop
from runbook_lib.packs.entitlement.evidence import sessions
from runbook_lib.packs.entitlement.evidence.sessions import TimeUse
from runbook_lib.packs.entitlement.rows import Activity, Attempts, HeldRow, Notifications, Tries

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context
    from runbook_lib.sources.postgres import Snapshot

#: Observations of a worker that has stopped, as opposed to one that may wait for the receiver.
STOPPED_OBSERVATIONS = ("delivery.stopped", "delivery.seems_stopped")


#: The observations of a receiver that fewer sends relieve: it does not only refuse a few users, and its worker works.
RELIEVED_BY_THROTTLE = ("delivery.refused", "delivery.times_out", "delivery.refused_in_part")


@dataclass(frozen=True)
class Delivery(TableLoop):
    """The delivery worker, read from the tables. A try is a sign of life too, if a lease or progress supports it.

    `tries` maps a number of failed tries to the number of rows that have it; `failed` and `failed_now` are the rows
    whose try failed in the last seconds. `accepted` tells whether a row was sent between two samples; None after one
    sample. `in_batch` tells whether both samples show a row of the same claim: the worker was inside one batch
    meanwhile. `finished` is the number of rows that it finished meanwhile, `use` what it did between the two.
    """

    queue: Notifications
    activity: Activity
    tries: dict[int, int]
    failed: float | None
    failed_now: float | None
    accepted: bool | None
    apart_s: float | None
    in_batch: bool
    finished: int
    use: TimeUse

    @property
    def tried(self) -> float:
        """Return the number of rows with a failed try."""
        return float(sum(self.tries.values()))

    @property
    def total(self) -> float:
        """Return the number of unfinished rows."""
        return self.queue.ready + self.queue.leased + self.queue.waiting_retry

    def stopping(self, given: JudgeInput) -> str:
        """Return the observation of a worker that has stopped or hangs; "" for none."""
        stop = self.stop(given, given.limits["delivery.silence"].critical)
        if not stop or self._is_inside_statement(given):
            return ""  # the database has its word
        if self.queue.leased and self.tried >= given.number("tries.pattern"):
            return "delivery.may_be_stuck"  # or each send waits for its timeout
        return f"delivery.{stop}"

    def refusing(self, given: JudgeInput) -> str:
        """Return the observation of a receiver that refuses or does not answer; "" for none."""
        limits = given.limits
        if self._refuses_some(given):
            return "delivery.refused_some"
        if self.tried < given.number("tries.pattern") or not self._is_failing(given):
            return ""
        if self.stopping(given) in STOPPED_OBSERVATIONS:
            return "delivery.refused_before"
        many = self.tried >= given.number("delivery.refused_share") * self.total
        if many or limits["backlog.waiting_retry"].reached(self.queue.waiting_retry):
            return "delivery.refused"
        # The worker makes progress, is late, and some tries failed: each send may wait for its timeout.
        if not self.moved or not limits["delivery.silence"].reached(self.queue.oldest_s):
            return ""
        return "delivery.refused_in_part" if self.accepted else "delivery.times_out"

    def spends(self, given: JudgeInput) -> str:
        """Return the observation of what a late worker spends its time on; "" for none."""
        use, late = self.use, given.limits["backlog.oldest_due"].reached(self.queue.oldest_s)
        if not late or use.samples < given.number("samples.least"):
            return ""
        most = given.number("samples.share") * use.samples
        # A worker that sends more than arrives works off what somebody else has delayed.
        drains = self.activity.sent_1m > self.activity.arrived_1m
        if use.locked >= most:
            return "delivery.waits_for_lock"
        if use.working >= most:
            return "delivery.slow_statements"
        # Between two batches a worker pauses, and runs no statement either.
        outside = self.moved and self.in_batch and use.outside >= most and not drains
        return "delivery.slow_outside" if outside else ""

    def notes(self, given: JudgeInput) -> tuple[Text, ...]:
        """Return a note on what two samples showed; nothing after one sample."""
        if self.moved is None:
            return ()
        apart_s = self.apart_s or given.number("looks.apart")
        progress = say("backlog.progress" if self.moved else "backlog.no_progress", s=round(apart_s, 1))
        if not self.use.samples:
            return (progress,)
        return (progress, say("backlog.time_use", **vars(self.use), outside=self.use.outside))

    def _is_inside_statement(self, given: JudgeInput) -> bool:
        """Return whether nearly all samples show a statement of the worker, also one that waits for a lock."""
        use = self.use
        seen = use.samples >= given.number("samples.least")
        return seen and use.working + use.locked >= given.number("samples.share") * use.samples

    def _refuses_some(self, given: JudgeInput) -> bool:
        """Return whether most sends succeed while some fail: then those rows are at fault, not the receiver."""
        if self.failed is None or not self.finishes(given):
            return False
        sent = self.activity.sent_1m * given.number("recovery.recent") / 60
        return sent > self.failed >= given.number("tries.pattern")

    def _is_failing(self, given: JudgeInput) -> bool:
        """Return whether tries fail now; while sends succeed, only rows with a first failure prove it.

        A full sample of rows may have missed these, so it counts as failing.
        """
        first = bool(self.tries.get(1) or self.failed_now)
        return not self.finishes(given) or first or self.tried >= given.number("attempts.sample")


def collect(rb: Context, db: Snapshot) -> Frames:
    """Collect the backlog, leases, last activity and failed tries.

    Frames: backlog, activity, attempts, held, tries.
    """
    names = ("backlog", "activity", "attempts", "held")
    recently = rb.as_of - pd.Timedelta(seconds=rb.number("recovery.recent"))
    return {name: db.ask(f"notifications/{name}") for name in names} | {
        "tries": db.ask(Tries.QUERY, tried_since=recently)
    }


def collect_first(rb: Context, step: str, *more: str) -> Frames:
    """Collect the first moment, and wait for the second one, of which `collect` then is.

    Frames: first.activity, first.attempts, first.held and `more` of `sample.SAMPLING`; worker_samples.
    """
    wanted = (*(f"{FIRST}{name}" for name in ("activity", "attempts", "held")), "worker_samples", *more)
    return {name: frame for name, frame in rb.first(step).items() if name in wanted}


def read_delivery(frames: Frames) -> Delivery:
    """Read the frames of `collect`, and of `collect_first` if there was an earlier moment."""
    queue = rows.one(frames.get("backlog"), Notifications)
    known = Tries.of("delivery", frames) if "tries" in frames else None
    activity = rows.one(frames.get("activity"), Activity)
    moved, accepted, apart_s = None, None, None
    claims_before, claims = (_read_claims(frames.get(name)) for name in (f"{FIRST}held", "held"))
    if {f"{FIRST}held", f"{FIRST}activity"} <= frames.keys():
        before = rows.one(frames[f"{FIRST}activity"], Activity)
        accepted, apart_s = _is_newer(before.last_sent, activity.last_sent), seconds_between(before.now, activity.now)
        claimed = _is_newer(before.last_claim, activity.last_claim)
        tried = _count_tries(frames.get(f"{FIRST}attempts")) != _count_tries(frames.get("attempts"))
        moved = accepted or claimed or bool(claims_before - claims) or tried
    signs = [activity.last_claim, activity.last_sent]
    if moved is not False or queue.leased:
        signs.append(activity.last_try)  # an upper bound
    return Delivery(
        side="delivery",
        queue=queue,
        sign_s=seconds_between(max(filter(None, signs), default=None), activity.now),
        finished_s=seconds_between(activity.last_sent, activity.now),
        moved=moved,
        activity=activity,
        tries=_count_tries(frames.get("attempts")),
        failed=known.failed if known else None,
        failed_now=known.failed_now if known else None,
        accepted=accepted,
        apart_s=apart_s,
        in_batch=bool(claims_before & claims),
        finished=len(claims_before - claims),
        use=sessions.read_time_use(frames),
    )


def _is_newer(before: pd.Timestamp | None, after: pd.Timestamp | None) -> bool:
    return after is not None and (before is None or after > before)


def _read_claims(held: pd.DataFrame | None) -> set[tuple[str, pd.Timestamp | None]]:
    return {(row.notification_id, row.locked_at) for row in rows.each(held, HeldRow)}


def _count_tries(frame: pd.DataFrame | None) -> dict[int, int]:
    """Return the number of rows by their number of failed tries, without rows that never failed.

    Rows that are postponed do not count: nothing tells when their tries failed.
    """
    counted = {row.attempt_count: row.n - row.postponed for row in rows.each(frame, Attempts)}
    return {attempts: n for attempts, n in counted.items() if attempts and n}
