"""4.1.4: lock waits and free connections (`packs.postgres.locks`), and whether the services' role may do its work."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from runbook_lib.actions import proposals
from runbook_lib.book import patterns
from runbook_lib.checks.check import Check
from runbook_lib.checks.context import JudgeInput
from runbook_lib.checks.parts import FrameCollector
from runbook_lib.model import rows
from runbook_lib.model.finding import Finding, Frames, Proposal, replace
from runbook_lib.packs.entitlement import PACK
from runbook_lib.packs.entitlement.actions import change, remedies
from runbook_lib.packs.entitlement.evidence.sessions import Sessions, pools_are_full
from runbook_lib.packs.entitlement.facts import EntitlementFacts, facts_of
from runbook_lib.packs.entitlement.rows import Application
from runbook_lib.packs.postgres import locks
from runbook_lib.sources.source import SourceError

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context
    from runbook_lib.sources.postgres import Snapshot

#: The observation of what keeps the services' role from its work (`Application.write_blocker`).
_REFUSED = {
    "read_only": "database.read_only",
    "shut_out": "database.shut_out",
    "lacks_rights": "database.lacks_rights",
}
_APPLICATION_NAME = patterns.source(PACK, "application name")


def collect(rb: Context) -> Frames:
    """Collect what `locks.collect` does, and what concerns the services' role.

    Frames: also application, row_locks; service_sessions if the role is at its limit.
    """
    role = facts_of(rb).database_role

    def more(db: Snapshot, parts: FrameCollector) -> None:
        parts.answers["application"] = db.ask(Application.QUERY, role=role)
        if rows.one(parts.answers["application"], Application).at_limit:
            with suppress(SourceError):
                parts.answers["service_sessions"] = db.ask_apart(Sessions.QUERY, role=role)

    parts = FrameCollector(locks.collect(rb, list(facts_of(rb).services), role, more))
    if "connections" in parts.answers:
        with parts.part("row_locks") as answers, rb.snapshot() as db:
            answers["row_locks"] = db.ask(locks.RowHolder.QUERY)
    return parts.frames()


def judge(frames: Frames, given: JudgeInput) -> Finding:
    """4.1.4: judge lock waits, free connections, and the rights of the services' role."""
    application = rows.first(frames.get("application"), Application)
    if application and application.at_limit and pools_are_full(frames, given):
        application = replace(application, connection_limit=None)  # the limit allows what the services need
    write_blocker = application.write_blocker if application else ""
    blamed = any(s.about == "database" and s.weight > 0 for f in given.earlier for s in f.signals)
    system = locks.System(
        role=facts_of(given).database_role,
        is_service=_is_service,
        long_s=facts_of(given).lease_s,
        row_locks=True,
        doubted=blamed or "application" not in frames,
        refused=_REFUSED.get(write_blocker, ""),
        told={
            "role": application.role if application else None,
            "lacks": application.lacks if application else None,
        },
        proposals=(remedies.look_at_role(given),),
        show=("application",) if write_blocker else (),
    )
    found = locks.judge(frames, given, system)
    held = found.headline.key in ("database.own_work", "database.table_held")
    if found.proposals or not (blamed or held) or found.headline.key == "database.waits_for_standby":
        return found
    return replace(found, proposals=_propose_logs(given))


def _propose_logs(given: JudgeInput) -> tuple[Proposal, ...]:
    """Propose the logs of both services, first that of the service whose loop fails."""
    blaming = [s.observation for f in given.earlier for s in f.signals if s.about == "database" and s.weight > 0]
    sides = {observation.partition(".")[0] for observation in blaming}
    failing = [service for side, (service, _) in change.SIDES.items() if side in sides]
    return tuple(
        proposals.logs(given, service) for service in sorted(EntitlementFacts.services, key=lambda s: s not in failing)
    )


def _is_service(application: str) -> bool:
    """Return whether the name is that of a service: its driver or its address, as the pods set no name."""
    return _APPLICATION_NAME.says("service", application)


CHECKS: tuple[Check, ...] = (Check("4.1.4", collect, judge, on_error=locks.on_error),)
