"""Stop notification altogether, or start it again: events wait in the stream meanwhile (runbook 4.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runbook_lib.actions.action import Word
from runbook_lib.context import Context, Progress
from runbook_lib.model.finding import Text, say
from runbook_lib.outcome import Precondition
from runbook_lib.packs.entitlement.actions import remedies
from runbook_lib.packs.entitlement.actions.restart import (
    Restart,
    look_until_settled,
    not_just_acted,
    servers_answer,
)
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.usage import UsageError, did_you_mean


class Scale:
    """Set the replicas of notification: 0 or 1, since a second one can not bind to the same durable."""

    name = "scale"

    def __init__(self, rb: Context, *, workload: str, replicas: int) -> None:
        if workload != "notification":
            hint = did_you_mean(workload, ["notification"])
            raise UsageError(
                f"'{workload}' is not scaled: {hint} Without entitlement the API is down, with more each adds a relay"
            )
        if replicas not in (0, 1):
            raise UsageError(f"notification has 0 replicas or 1, not {replicas}: a second one dies at its start")
        self.replicas, self.rb = replicas, rb
        self.program = rb.facts.workloads.program("notification")
        self._restart = Restart(rb, workload=workload)

    def what(self) -> dict[str, Any]:
        """The workload, by its role and by its name, and how many."""
        return {"workload": "notification", "name": self.program, "replicas": self.replicas}

    def command(self) -> str:
        """The command of the target's own runner."""
        return remedies.scale(self.rb, self.replicas).command

    def preconditions(self, rb: Context) -> list[Precondition]:
        """It is not so already; a pod that starts needs both servers."""
        now = rb.workloads.replicas(self.program)
        found = [Precondition(say("action.scale.differs", n=now), now != self.replicas)]
        found += servers_answer(rb) if self.replicas else []
        return [*found, not_just_acted(rb, self.program)]

    def state(self, rb: Context) -> dict[str, Any]:
        """As for a restart, and the replicas."""
        return {"replicas": rb.workloads.replicas(self.program), **self._restart.state(rb)}

    def run(self, rb: Context, word: Word, progress: Progress) -> dict[str, Any]:
        """Scale and, on the way up, wait until it is ready."""
        progress(0.0, say("action.scale.scaling", name=self.program, n=self.replicas))
        since = rb.now()
        said = [rb.workloads.scale(self.program, self.replicas)]
        said += [rb.workloads.wait_ready(self.program, rb.number("action.ready"))] if self.replicas else []
        return {"output": "\n".join(s for s in said if s), "since": since.isoformat()}

    def verify(self, rb: Context, did: Mapping[str, Any], progress: Progress) -> tuple[bool, Text]:
        """Up: at work as after a restart. Down: no instance is left, and nobody is bound to the consumer."""
        if self.replicas:
            return self._restart.verify(rb, did, progress)
        streams = facts_of(rb).streams

        def look(spent_s: float) -> tuple[bool, bool, Text]:
            pods = rb.workloads.pods(self.program)
            bound = bool(rb.jetstream.consumer(streams.events, streams.consumer).get("push_bound"))
            gone = not pods and not bound
            text = say("action.scale.gone" if gone else "action.scale.still_there", name=self.program, n=len(pods))
            return gone, gone, text

        return look_until_settled(rb, progress, look)
