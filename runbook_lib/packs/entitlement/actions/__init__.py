"""What a responder may do here: each makes an action for a context, imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runbook_lib.actions.action import Action
    from runbook_lib.context import Context


def _restart(rb: Context, **what: Any) -> Action:
    from runbook_lib.packs.entitlement.actions.restart import Restart

    return Restart(rb, **what)


def _scale(rb: Context, **what: Any) -> Action:
    from runbook_lib.packs.entitlement.actions.scale import Scale

    return Scale(rb, **what)


def _set(rb: Context, **what: Any) -> Action:
    from runbook_lib.packs.entitlement.actions.change import Change

    return Change(rb, **what)


def _redrive(rb: Context, **what: Any) -> Action:
    from runbook_lib.packs.entitlement.actions.redrive import Redrive

    return Redrive(rb, **what)


ACTIONS: dict[str, Callable[..., Action]] = {
    "restart": _restart,
    "scale": _scale,
    "set": _set,
    "redrive": _redrive,
}
"""Makes an action for a context. Raises UsageError for an argument that is not acceptable."""
