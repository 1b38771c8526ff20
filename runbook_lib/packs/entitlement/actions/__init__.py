"""The actions that a responder may run on this system; each module is imported on first use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runbook_lib.actions.action import Action
    from runbook_lib.checks.context import Context


def _create_action(module: str, kind: str, rb: Context, **what: Any) -> Action:
    made: Action = getattr(import_module(f"{__name__}.{module}"), kind)(rb, **what)
    return made


ACTIONS: dict[str, Callable[..., Action]] = {
    "restart": partial(_create_action, "restart", "Restart"),
    "scale": partial(_create_action, "scale", "Scale"),
    "set": partial(_create_action, "change", "SettingsChange"),
    "redrive": partial(_create_action, "redrive", "Redrive"),
    "canary": partial(_create_action, "canary", "Canary"),
}
"""Factories by name: each makes an action for a context. Raises UsageError for an invalid argument."""
