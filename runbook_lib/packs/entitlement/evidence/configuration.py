"""Read the configuration that can explain a symptom; `diagnosis.snapshots.drift` compares two of them.

The configuration is a frame of texts (source, item, setting, value): one row for each setting of the server and of its
roles; column, constraint, trigger, index, owner and grant of both schemas; field of a stream or a consumer; variable of
a workload. Values that may be secret are masked before they leave their source.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.book import patterns
from runbook_lib.packs.entitlement import PACK

if TYPE_CHECKING:
    from runbook_lib.book.catalog import Setting
    from runbook_lib.checks.context import Context

#: Fields of a stream or a consumer that hold nanoseconds.
_DURATIONS = ("max_age", "duplicate_window", "ack_wait", "inactive_threshold", "idle_heartbeat", "max_expires")
#: Fields that the broker sets anew with each connection or for itself.
_VOLATILE = ("metadata", "deliver_subject")

Row = tuple[str, str, str, str]


def of_database(roles: pd.DataFrame, catalog: pd.DataFrame) -> Iterator[Row]:
    """Yield the settings of roles and of the database (changed/settings), then what changed/catalog returned."""
    for whose, setting in roles.itertuples(index=False):
        name, _, value = str(setting).partition("=")
        yield "postgres", str(whose), name, value or "***"
    for item, setting, value in catalog.itertuples(index=False):
        yield "postgres", str(item), str(setting), str(value)


def of_broker(item: str, info: Mapping[str, Any]) -> Iterator[Row]:
    """Yield the fields of the configuration of a stream or a consumer.

    The broker keeps the end of a pause that is over, which is no setting.

    >>> [*of_broker("stream s", {"config": {"name": "s", "max_age": 90_000_000_000, "subjects": ["a.>"]}})]
    [('jetstream', 'stream s', 'max_age', '90 s'), ('jetstream', 'stream s', 'subjects', '["a.>"]')]
    >>> [*of_broker("consumer c", {"config": {"pause_until": "1970-01-01T00:00:00Z"}, "paused": False})]
    []
    """
    for name, value in sorted(info.get("config", {}).items()):
        if name == "pause_until" and not info.get("paused"):
            continue
        if name in _DURATIONS and isinstance(value, int):
            yield "jetstream", item, name, f"{value / 1e9:g} s"
        elif name not in ("name", "durable_name", *_VOLATILE):
            yield "jetstream", item, name, value if isinstance(value, str) else json.dumps(value)


def of_workload(rb: Context, name: str) -> Iterator[Row]:
    """Yield the replica count and the variables of a workload."""
    yield "workloads", f"workload {name}", "replicas", str(rb.workloads.replicas(name))
    for variable, value in sorted(rb.workloads.environment(name).items()):
        yield "workloads", f"workload {name}", variable, value


#: What a difference is by observations.md, by the first word of the item, or by the role of the workload.
_OBSERVATIONS = {"stream": "changed.stream", "consumer": "changed.consumer"}
_WORKLOADS = {"entitlement": "changed.entitlement", "notification": "changed.notification"}
#: The same for a variable that sets a loop of its own workload, by the first word of the setting's name.
_LOOPS = {"relay": "changed.relay", "delivery": "changed.delivery"}


_SETTING = patterns.source(PACK, "setting")


def observation(change: Mapping[Hashable, str], entitlement: str, settings: Iterable[Setting]) -> str:
    """Return what a difference is by observations.md; "" if it is none: a variable of the other workload.

    `change` has the columns of `snapshots.drift`, `entitlement` is the name of that workload, `settings` those of
    docs/operations.md.

    >>> observation({"item": "consumer entitlement-events", "setting": "filter_subject"}, "entitlement", [])
    'changed.consumer'
    >>> column = {"item": "table s.t", "setting": "column c", "before": "", "now": "text not null"}
    >>> observation(column, "entitlement", [])
    'changed.column_required'
    >>> trigger = {"item": "table notification.notifications", "setting": "trigger t", "before": "", "now": "CREATE"}
    >>> observation(trigger, "entitlement", [])
    'changed.queue_trigger'
    """
    kind, _, name = change["item"].partition(" ")
    if kind == "workload":
        which = "entitlement" if name == entitlement else "notification"
        own = next((s for s in settings if s.variable == change["setting"]), None)
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
    """Return the triggers, CHECK constraints and row security that no migration makes (the columns of `settings`).

    >>> from runbook_lib.diagnosis.snapshots import SETTING_COLUMNS
    >>> row = ("postgres", "table notification.notifications", "trigger no", "CREATE TRIGGER no ...")
    >>> unexpected(pd.DataFrame([row], columns=SETTING_COLUMNS))["setting"].tolist()
    ['trigger no']
    """

    def foreign(setting: str, value: str) -> bool:
        kind, _, name = setting.partition(" ")
        return kind in ("trigger", "row") or (
            kind == "constraint" and value.startswith("CHECK") and name not in _OWN_CHECKS
        )

    return settings[[foreign(str(r.setting), str(r.value)) for r in settings.itertuples()]]
