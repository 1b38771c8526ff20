"""The sandbox: its programs, and what can be broken in them."""

from __future__ import annotations

from datetime import UTC, datetime

from . import faults
from .programs import PROGRAMS, Programs
from .state import SandboxError, command


class Sandbox(Programs):
    """One sandbox in one folder."""

    def fault(self, name: str) -> faults.Fault:
        """Break one thing; one fault at a time."""
        fault = faults.find(name)
        state = self._up_state()
        if state.fault:
            raise SandboxError(f"{state.fault} is on already: `{command('heal', self.directory)}` first")
        # Noted first: a fault that was injected only half can still be healed.
        state.fault, state.fault_at = name, datetime.now(UTC).isoformat(timespec="milliseconds")
        state.save()
        fault.inject(self)
        return fault

    def heal(self, timeout: float = 30.0) -> str | None:
        """Undo the fault, wait until events flow again; the name of the fault, None when none was on."""
        state = self._up_state()
        if state.fault is None:
            return None
        faults.find(state.fault).heal(self)
        for name in PROGRAMS:  # whatever else a responder stopped on the way
            self.start(name)
        self.wait_for_flow(timeout)
        self.wait_for("every program to run", self._all_run, timeout)
        healed, state.fault = state.fault, None
        state.save()
        return healed
