"""What the tool that runs a workload says of it: switched off by its setting, or not up. Shared by 4.1.1 and 4.1.3.

Who looks at rows alone takes a loop that is switched off, and a process that can not start, for one that hangs: a
restart helps neither. So it is asked where something waits for too long, and only there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from runbook_lib import rows
from runbook_lib.actions.proposals import logs
from runbook_lib.checks.parts import Parts
from runbook_lib.context import Given
from runbook_lib.model.finding import Frames, Proposal
from runbook_lib.model.frames import row
from runbook_lib.packs.entitlement.actions import change, remedies

if TYPE_CHECKING:
    from runbook_lib.context import Context


#: The observations, by the side whose loop it is.
SWITCHED_OFF = {"delivery": "delivery.switched_off", "relay": "relay.switched_off"}
NOT_UP = {"delivery": "delivery.not_up", "relay": "relay.not_up"}


@dataclass(frozen=True)
class Program:
    """A workload, and its loop's switch; None for what could not be read."""

    enabled: bool | None = None
    replicas: int | None = None
    ready: int | None = None

    def stands(self, side: str) -> str:
        """The observation of why the loop of "delivery" or "relay" can not run; "" where nothing is known of it."""
        if self.enabled is False:
            return SWITCHED_OFF[side]
        return NOT_UP[side] if self.ready == 0 else ""


def ask(rb: Context, parts: Parts, side: str) -> None:
    """Ask the runner about the workload behind a side. Frame program: one row, see `Program`."""
    name = rb.facts.workloads.program(change.SIDES[side][0])
    with parts.part("program") as answers:
        settings = change.in_force(rb.catalog.settings, side, rb.workloads.environment(name))
        ready = sum(pod["ready"] for pod in rb.workloads.pods(name))
        enabled, replicas = settings[f"{side}.enabled"], rb.workloads.replicas(name)
        answers["program"] = row(enabled=enabled, replicas=replicas, ready=ready)


def stands(frames: Frames, side: str) -> str:
    """The observation, of the frame that `ask` has left."""
    return rows.one(frames.get("program"), Program).stands(side)


def proposals(given: Given, observation: str) -> tuple[Proposal, ...]:
    """What helps against it: the switch; for a process that does not come up, only its log tells why."""
    side = observation.partition(".")[0]
    if observation in SWITCHED_OFF.values():
        return (remedies.switch_on(given, side),)
    return (logs(given, change.SIDES[side][0]),)
