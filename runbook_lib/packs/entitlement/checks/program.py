"""Why a loop does not claim, by who runs its process and by what the service says of itself. Shared by 4.1.1 and 4.1.3.

Who looks at rows alone takes a loop that is switched off, or fails, or whose process can not start, for one that hangs:
a restart helps none of these. So it is asked where something waits for too long, and only there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runbook_lib import rows
from runbook_lib.actions.proposals import logs
from runbook_lib.checks.parts import Parts
from runbook_lib.context import Given
from runbook_lib.model.finding import Frames, Proposal
from runbook_lib.model.frames import row
from runbook_lib.packs.entitlement.actions import change, remedies
from runbook_lib.packs.entitlement.evidence import services
from runbook_lib.packs.entitlement.evidence.services import Doing

if TYPE_CHECKING:
    from runbook_lib.context import Context

#: The observations, by the side whose loop it is.
SWITCHED_OFF = {"delivery": "delivery.switched_off", "relay": "relay.switched_off"}
NOT_UP = {"delivery": "delivery.not_up", "relay": "relay.not_up"}
KEPT_OUT = {"delivery": "delivery.kept_out", "relay": "relay.kept_out"}
REJECTED = {"delivery": "delivery.rejected", "relay": "relay.rejected"}
DENIED = {"delivery": "delivery.denied", "relay": "relay.denied"}
HELD_UP = {"delivery": "delivery.held_up", "relay": "relay.held_up"}
FAILS = {"delivery": "delivery.fails", "relay": "relay.fails"}
#: What it means that a loop's runs end in an exception of that name; any other may come from anywhere.
EXCEPTIONS = {
    "CannotCreateTransactionException": KEPT_OUT,
    "CannotGetJdbcConnectionException": KEPT_OUT,
    "UncategorizedSQLException": REJECTED,
    "BadSqlGrammarException": DENIED,
    "CannotAcquireLockException": HELD_UP,
    "DataAccessResourceFailureException": HELD_UP,
    "QueryTimeoutException": HELD_UP,
}


@dataclass(frozen=True)
class Program:
    """A workload, and its loop's switch; None for what could not be read."""

    enabled: bool | None = None
    ready: int | None = None


@dataclass(frozen=True)
class Stands:
    """The observation of why a loop can not work, and the exception that its runs end in; "" where nothing is known."""

    observation: str = ""
    exception: str = ""

    @property
    def text(self) -> str:
        """The key of the sentence that says so."""
        side, _, what = self.observation.partition(".")
        return f"program.{side}_{'fails' if self.exception and what != 'kept_out' else what}"


NOTHING = Stands()


def ask(rb: Context, parts: Parts, side: str) -> None:
    """Ask the runner about the workload behind a side, and the services themselves, twice, where they are declared.

    Frames: program (one row, see `Program`); those of `evidence.services.look`.
    """
    name = rb.facts.workloads.program(change.SIDES[side][0])
    with parts.part("program") as answers:
        settings = change.in_force(rb.catalog.settings, side, rb.workloads.environment(name))
        ready = sum(pod["ready"] for pod in rb.workloads.pods(name))
        answers["program"] = row(enabled=settings[f"{side}.enabled"], ready=ready)
    if rb.target.services:
        first = services.look(rb)
        time.sleep(rb.number("looks.apart"))
        parts.answers.update(services.together(first, services.look(rb)))


def stands(frames: Frames, given: Given, side: str) -> Stands:
    """What `ask` has left says of the loop. What could not be seen says nothing."""
    program = rows.one(frames.get("program"), Program)
    if program.enabled is False:
        return Stands(SWITCHED_OFF[side])
    if program.ready == 0:
        return Stands(NOT_UP[side])
    service = services.read(frames, services.Numbers.of(given))[change.SIDES[side][0]]
    loop = service.loops.get(side)
    if service.locked_out:
        return Stands(KEPT_OUT[side])
    if loop is not None and loop.doing is Doing.OFF:
        return Stands(SWITCHED_OFF[side])
    if loop is not None and loop.doing is Doing.FAILS and loop.share == 1:
        meant = next((what for name, what in EXCEPTIONS.items() if loop.exception.endswith(name)), FAILS)
        return Stands(meant[side], loop.exception)
    return Stands()


def proposals(given: Given, seen: Stands, side: str) -> tuple[Proposal, ...]:
    """What helps against it: the switch; else only the log tells why it fails, or does not come up."""
    if seen.observation == SWITCHED_OFF[side]:
        return (remedies.switch_on(given, side),)
    return (logs(given, change.SIDES[side][0]),)
