"""From an alert to what is looked at: the routes of runbook.toml, else section 3 and whatever it points to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from runbook_lib.alerts.alert import TARGET_LABEL, Alert, digest
from runbook_lib.model.order import Order
from runbook_lib.runs import batch
from runbook_lib.settings import Route, Settings
from runbook_lib.usage import UsageError

#: What an alert runs that no route names, and what its end runs.
FIRST, LAST = "3", "6"


@dataclass(frozen=True)
class Routed:
    """What one alert asks for."""

    sections: tuple[str, ...]
    target: str
    parameters: dict[str, Any]


def check(config: Settings) -> None:
    """Whether each route could be run, and what no route fits. Raises UsageError, one line that names the route."""
    for n, route in enumerate(config.routes, start=1):
        try:
            for section in route.sections:
                batch.request(section, {"target": route.target or _default(config)} | route.parameters, "", 0.0)
        except UsageError as e:
            raise UsageError(f"routes, number {n} ({route.alertname or route.labels}): {e}") from None
    try:
        config.target(_default(config))
    except UsageError as e:
        raise UsageError(f"alerts that no route fits: {e}") from None


def routed(alert: Alert, config: Settings) -> Routed:
    """The first route that fits an alert. A target that an alert names itself counts only if it is configured."""
    route = next((r for r in config.routes if _fits(r, alert)), Route(sections=[FIRST]))
    named = alert.labels.get(TARGET_LABEL, "")
    target = route.target or (named if named in config.targets else _default(config))
    return Routed(tuple(route.sections), target, route.parameters)


def parted(alerts: Sequence[Alert], config: Settings) -> list[tuple[str, list[Alert]]]:
    """Targets with their alerts, one incident's each: those of a group, or those that name the same one."""
    parts: dict[tuple[str, str], list[Alert]] = {}
    for alert in alerts:
        parts.setdefault((routed(alert, config).target, alert.incident or ""), []).append(alert)
    return [(target, own) for (target, _), own in parts.items()]


def incident(alerts: Sequence[Alert], target: str) -> str:
    """The incident of alerts as `parted`: named by a label, else by the alert, its beginning and its group."""
    named = alerts[0].incident
    if named:
        return named
    first = min(alerts, key=lambda a: (a.starts_at, a.name))
    name = re.sub(r"[^A-Za-z0-9]+", "-", first.name).strip("-")[:30]
    return f"{name}-{first.starts_at:%Y%m%dT%H%M%S}-{digest(first.group + target)[:8]}"


def detection(alert: Alert, sections: Sequence[str]) -> dict[str, Any]:
    """What section 3 is told of how it was noticed; a parameter is one of all sections that are run."""
    alone = list(sections) == [FIRST]
    began = min(alert.starts_at, pd.Timestamp.now("UTC"))  # by another machine's clock, which may be ahead
    return {"detected_by": "alert", "detected_at": began.isoformat()} if alone else {}


def orders(
    alerts: Sequence[Alert], config: Settings, like: Order, *, target: str = "", named: str = ""
) -> list[tuple[Order, list[Alert]]]:
    """What alerts ask for where no journal is kept, each order with its alerts; what has ended only if all have.

    `like` gives whatever an alert does not say; `target` and the incident's name `named` go before what it does say.
    """
    found: dict[tuple[str, str, tuple[str, ...]], list[Alert]] = {}
    for own_target, own in parted([a for a in alerts if a.firing] or alerts, config):
        for alert in own:
            sections = routed(alert, config).sections if alert.firing else (LAST,)
            key = (named or incident(own, own_target), target or own_target, sections)
            found.setdefault(key, []).append(alert)
    return [
        (
            replace(
                like,
                sections=sections,
                target=to,
                incident=name,
                follow=own[0].firing,
                parameters=_parameters(own[0], sections, config) | like.parameters,
                unattended=True,
            ),
            own,
        )
        for (name, to, sections), own in found.items()
    ]


def _parameters(alert: Alert, sections: Sequence[str], config: Settings) -> dict[str, Any]:
    return routed(alert, config).parameters | detection(alert, sections) if alert.firing else {}


def _fits(route: Route, alert: Alert) -> bool:
    return (not route.alertname or route.alertname == alert.name) and all(
        alert.labels.get(name) == value for name, value in route.labels.items()
    )


def _default(config: Settings) -> str:
    """The environment's one target; where only runbook.toml names some, its first."""
    return "default" if config.database_url or config.nats_url or not config.targets else next(iter(config.targets))
