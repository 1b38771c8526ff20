"""What a responder may do next.

`proposals` are exact commands that a notebook shows and does not run. `action.perform` carries out one of
`ACTIONS`, under the rules of docs/operations.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runbook_lib.actions.action import Action
    from runbook_lib.context import Context


def _restart(rb: Context, **what: Any) -> Action:
    from runbook_lib.actions.restart import Restart

    return Restart(rb, **what)


def _scale(rb: Context, **what: Any) -> Action:
    from runbook_lib.actions.scale import Scale

    return Scale(rb, **what)


def _set(rb: Context, **what: Any) -> Action:
    from runbook_lib.actions.change import Change

    return Change(rb, **what)


def _redrive(rb: Context, **what: Any) -> Action:
    from runbook_lib.actions.redrive import Redrive

    return Redrive(rb, **what)


ACTIONS: dict[str, Callable[..., Action]] = {
    "restart": _restart,
    "scale": _scale,
    "set": _set,
    "redrive": _redrive,
}
"""Makes an action for a session. Raises UsageError for an argument that is not acceptable."""
