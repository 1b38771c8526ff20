"""3.6: changes around the system in the hours before the run. A change is not a cause only because it came first."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import TYPE_CHECKING

import pandas as pd

from runbook_lib.book import patterns
from runbook_lib.model import rows
from runbook_lib.packs.changes import changes
from runbook_lib.packs.changes.starts import Start
from runbook_lib.packs.entitlement import PACK
from runbook_lib.packs.entitlement.checks import scope
from runbook_lib.packs.entitlement.evidence import sessions
from runbook_lib.packs.entitlement.facts import EntitlementFacts, facts_of
from runbook_lib.packs.logs.logs import LoginResult

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context, JudgeInput
    from runbook_lib.sources.settings import TargetFacts

#: What a difference is by observations.md, by the first word of the item, or by the role of the workload.
_OBSERVATIONS = {
    "stream": "changed.stream", "consumer": "changed.consumer", "broker": "changed.broker", "account": "changed.broker",
}  # fmt: skip
_WORKLOADS = {"entitlement": "changed.entitlement", "notification": "changed.notification"}
#: The same for a variable that sets a loop of its own workload, by the first word of the setting's name.
_LOOPS = {"relay": "changed.relay", "delivery": "changed.delivery"}
_BROKER_ERROR = patterns.source(PACK, "broker login error")
_SETTING = patterns.source(PACK, "setting")


def observe(change: Mapping[Hashable, str], given: JudgeInput) -> str:
    """Return what a difference is by observations.md; "" if it is none: a variable of the other workload."""
    kind, _, name = change["item"].partition(" ")
    if kind == "workload":
        which = "entitlement" if name == given.facts.workloads.program("entitlement") else "notification"
        own = next((s for s in given.catalog.settings.values() if s.variable == change["setting"]), None)
        if own and own.workload != which:
            return ""
        return _LOOPS[own.name.partition(".")[0]] if own else _WORKLOADS[which]
    # What inserts rows does not know the column, and leaves it empty.
    if change["setting"].startswith("column ") and not change["before"] and change["now"].endswith(" not null"):
        return "changed.column_required"
    # Forced, it also hides and refuses rows of the tables' owner, which the services are.
    if change["setting"] == "row security" and change["now"].endswith("forced"):
        return "changed.row_security"
    # Without the key the flow goes on, and each redelivery notifies again.
    if name == "notification.processed_events" and _SETTING.says("unique_key", change["before"]) and not change["now"]:
        return "changed.duplicate_key"
    # What begins to flow again may be sent again and again, if the trigger rejects the worker's mark.
    if name == "notification.notifications" and change["setting"].startswith("trigger ") and not change["before"]:
        return "changed.queue_trigger"
    if kind in ("server", "role", "database") and _SETTING.says("tuning", change["setting"]):
        return "changed.tuning"
    return _OBSERVATIONS.get(kind, "changed.database")


#: The CHECK constraints that the migrations of the services make; they make no trigger, and enable no row security.
_OWN_CHECKS = (
    "entitlements_status_check", "outbox_events_status_check", "entitlement_audit_action_check",
    "notifications_status_check",
)  # fmt: skip


def unexpected(settings: pd.DataFrame) -> pd.DataFrame:
    """Return the triggers, CHECK constraints and row security that no migration makes (the columns of `settings`)."""

    def foreign(setting: str, value: str) -> bool:
        kind, _, name = setting.partition(" ")
        return kind in ("trigger", "row") or (
            kind == "constraint" and value.startswith("CHECK") and name not in _OWN_CHECKS
        )

    of_database = [r.source == "postgres" and foreign(str(r.setting), str(r.value)) for r in settings.itertuples()]
    return settings[of_database]


def _read_session_starts(rb: Context) -> Iterator[Start]:
    """Yield since when the oldest session of a service is there, of each service that has a whole pool."""
    with rb.snapshot() as db:
        frames = sessions.collect(db, facts_of(rb).database_role)
    sample = rows.first(frames.get("transactions"), sessions.Transactions)
    for row in rows.each(frames.get("service_sessions"), sessions.Sessions):
        if sample and sample.at is not None and row.since is not None and row.sessions >= rb.number("sessions.pool"):
            # A session that has only opened shows no service.
            service = ", ".join(EntitlementFacts.services) if row.service == "either" else row.service
            yield Start("sessions", service, sample.at - pd.Timedelta(seconds=row.since))


def _read_reported_ends(rb: Context) -> Iterator[Start]:
    """Yield when a service's log says that the broker did not take its connection."""
    minutes = min(rb.parameters.window_minutes, int(rb.number("log.longest")))
    for service in EntitlementFacts.services:
        for entry in rb.log(rb.facts.workloads.program(service), minutes).entries:
            error = _BROKER_ERROR.find(" ".join((entry.message, *entry.above, entry.error)))
            if error.kind == LoginResult.UNREACHED and entry.time is not None:
                yield Start("log", "NATS", pd.Timestamp(entry.time))


def surroundings(facts: TargetFacts) -> changes.Surroundings:
    """Return what can change around the system."""
    assert isinstance(facts, EntitlementFacts)  # noqa: S101 - this pack's runbook is active
    return changes.Surroundings(
        facts.database_role,
        facts.services,
        {service: f"scope/migrations_{service}" for service in facts.services},
        scope.broker(facts),
        (facts.workloads.entitlement, facts.workloads.notification),
        observe=observe,
        unexpected=unexpected,
        sessions=_read_session_starts,
        reported=_read_reported_ends,
    )


CHECK = changes.check_of("3.6", surroundings, EntitlementFacts.services)
CHECKS = (CHECK,)
