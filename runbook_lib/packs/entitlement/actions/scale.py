"""Stop notification, or start it again; events wait in the stream meanwhile (runbook 4.2)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from runbook_lib.actions import proposals
from runbook_lib.actions.action import Authorization
from runbook_lib.checks.context import Context, Progress
from runbook_lib.model.finding import Text, say
from runbook_lib.model.outcome import Precondition
from runbook_lib.model.usage import UsageError
from runbook_lib.packs.entitlement.actions import remedies
from runbook_lib.packs.entitlement.actions.restart import (
    Restart,
    check_cluster,
    check_cooldown,
    check_logins,
    check_only_worker,
    check_servers,
    check_start,
    sample_until_settled,
)
from runbook_lib.packs.entitlement.evidence import logins, services
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.sources.source import SourceError


class Scale:
    """Stop notification (0), or start notification or entitlement (1).

    A second notification cannot bind to the same durable consumer. Entitlement is not stopped: its API would be down.
    """

    name = "scale"

    def __init__(self, rb: Context, *, workload: str, replicas: int) -> None:
        self._restart = Restart(rb, workload=workload)
        if replicas not in (0, 1):
            raise UsageError(f"{workload} can have 0 replicas or 1, not {replicas}: each has a loop of its own")
        if workload != "notification" and not replicas:
            raise UsageError(f"'{workload}' cannot be stopped: without it the API is down")
        self.replicas, self.rb = replicas, rb
        self.which, self.program = workload, rb.facts.workloads.program(workload)

    def what(self) -> dict[str, Any]:
        """Return the workload, by role and by name, and the number of replicas."""
        return {"workload": self.which, "name": self.program, "replicas": self.replicas}

    def command(self) -> str:
        """Return the command of the target's runner."""
        start = proposals.start(self.rb, self.which)
        return start.command if self.replicas else remedies.scale(self.rb, self.replicas).command

    def preconditions(self, rb: Context) -> list[Precondition]:
        """Check that the number differs from the current one and, for a start, that both servers answer.

        Another number of entitlements than none is the owner's: it is not changed.
        """
        cluster, now = check_cluster(rb), rb.workloads.replicas(self.program)
        differs = now != self.replicas if self.which == "notification" else now == 0
        found = [*cluster, Precondition(say("action.scale.differs", n=now), differs)]
        if self.replicas:
            frames = logins.collect(rb, self.which)
            found += [*check_servers(rb), *check_logins(rb, self.which, frames)]
            if self.which == "notification":
                found += [
                    check_start(rb, self.program),
                    check_only_worker(rb, self.program, frames | services.collect(rb)),
                ]
        return [*found, *check_cooldown(rb, self.program)]

    def state(self, rb: Context) -> dict[str, Any]:
        """Return the replicas, and the state that a restart returns; a stop needs no database that answers."""
        found: dict[str, Any] = {"replicas": rb.workloads.replicas(self.program)}
        with suppress(*([] if self.replicas else [SourceError])):
            found |= self._restart.state(rb)
        return found

    def run(self, rb: Context, word: Authorization, progress: Progress) -> dict[str, Any]:
        """Scale, and after a start wait until the pod is ready."""
        progress(0.0, say("action.scale.scaling", name=self.program, n=self.replicas))
        since = rb.now()
        output = [rb.workloads.scale(self.program, self.replicas)]
        output += [rb.workloads.wait_ready(self.program, rb.number("action.ready"))] if self.replicas else []
        return {"output": "\n".join(s for s in output if s), "since": since.isoformat()}

    def verify(self, rb: Context, did: Mapping[str, Any], progress: Progress) -> tuple[bool, Text]:
        """After a start, verify as for a restart; after a stop, that no instance is left and no client is bound."""
        if self.replicas:
            return self._restart.verify(rb, did, progress)
        streams = facts_of(rb).streams

        def sample(spent_s: float) -> tuple[bool, bool, Text]:
            pods = rb.workloads.pods(self.program)
            bound = rb.source("jetstream").consumer(streams.events, streams.consumer).bound
            gone = not pods and not bound
            text = say("action.scale.gone" if gone else "action.scale.still_there", name=self.program, n=len(pods))
            return gone, gone, text

        return sample_until_settled(rb, progress, sample)
