"""Map an alert to sections: by the routes of runbook.toml, else the triage and the sections that it points to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from runbook_lib.book import messages
from runbook_lib.book.catalog import Catalog, section_with
from runbook_lib.model.finding import say
from runbook_lib.model.order import Order
from runbook_lib.model.usage import UsageError
from runbook_lib.receiver.alert import Alert, digest, free_id
from runbook_lib.runs import batch
from runbook_lib.sources.settings import Route, Settings


def check(config: Settings, book: Catalog) -> None:
    """Check that each route, and the default for other alerts, can run. Raises UsageError that names the route."""
    for n, route in enumerate(config.routes, start=1):
        try:
            values = {"target": route.target or _default_target(config)} | route.parameters
            for section in route.sections:
                batch.request(section, values, config, book, "", 0.0)
        except UsageError as e:
            raise UsageError(f"routes, number {n} ({route.alertname or route.labels}): {e}") from None
    try:
        config.target(_default_target(config))
        book.required_section("triage")
    except UsageError as e:
        raise UsageError(f"alerts that match no route: {e}") from None


def route_of(alert: Alert, config: Settings) -> Route:
    """Return the first route that matches an alert, with its target: the route's, else the one that the alert names.

    If the named one is not configured, it is the target `default`; without one it stays, and its job is given up.
    """
    route = next((r for r in config.routes if _route_matches(r, alert)), Route(sections=[section_with("triage")]))
    target = route.target or alert.target or _default_target(config)
    if not route.target and _is_unknown(target, config) and not _is_unknown("default", config):
        target = "default"
    return route.model_copy(update={"target": target})


def is_expected(alert: Alert, config: Settings) -> bool:
    """Return whether an alert may start a run: a route matches, it names a target, or runbook.toml has no routes."""
    return not config.routes or bool(alert.target) or any(_route_matches(r, alert) for r in config.routes)


def split_by_incident(alerts: Sequence[Alert], config: Settings) -> list[tuple[str, list[Alert]]]:
    """Split a group's alerts by target and by the incident that they name; return (target, alerts) for each.

    An alert whose target is replaced by the default one has a note about it, and a group of its own.
    """
    parts: dict[tuple[str, str, str], list[Alert]] = {}
    for alert in alerts:
        target, own = route_of(alert, config).target, alert
        if alert.target and target == "default" and _is_unknown(alert.target, config):
            text = say("alert.unknown_target", named=alert.target, target=target)
            own = replace(alert, note=messages.text(text), group=f"{alert.group} {alert.target}")
        parts.setdefault((target, own.incident, own.note), []).append(own)
    return [(target, own) for (target, *_), own in parts.items()]


def incident_id(alerts: Sequence[Alert], target: str) -> str:
    """Return the incident's id for alerts from `split_by_incident`: from the label, else from name, start and group."""
    named = alerts[0].incident
    if named:
        return named
    first = min(alerts, key=lambda a: (a.starts_at, a.name))
    name = re.sub(r"[^A-Za-z0-9]+", "-", first.name).strip("-")[:30] or "alert"
    return free_id(f"{name}-{first.starts_at:%Y%m%dT%H%M%S}-{digest(first.group + target)[:8]}")


def recovery_section() -> str:
    """Return the section that looks at a recovery when the alerts have ended: the triage, if there is none for it."""
    return section_with("recover") or section_with("triage")


def detection_parameters(alert: Alert, sections: Sequence[str]) -> dict[str, Any]:
    """Return the triage's parameters about the detection; {} if other sections run, which do not accept them."""
    alone = list(sections) == [section_with("triage")]
    began = min(alert.starts_at, pd.Timestamp.now("UTC"))  # from another machine's clock, which may be ahead
    return {"detected_by": "alert", "detected_at": began.isoformat()} if alone else {}


def orders(
    alerts: Sequence[Alert], config: Settings, like: Order, *, target: str = "", named: str = ""
) -> list[tuple[Order, list[Alert]]]:
    """Return the orders for alerts, each with its alerts, without a journal; resolved alerts count only if all are.

    `like` has the values that an alert does not give; `target` and `named` (the incident) override those that it gives.
    """
    found: dict[tuple[str, str, tuple[str, ...]], list[Alert]] = {}
    for own_target, own in split_by_incident([a for a in alerts if a.firing] or alerts, config):
        for alert in own:
            sections = tuple(route_of(alert, config).sections) if alert.firing else (recovery_section(),)
            key = (named or incident_id(own, own_target), target or own_target, sections)
            found.setdefault(key, []).append(replace(alert, note="") if target else alert)
    return [
        (
            replace(
                like,
                sections=sections,
                target=to,
                incident=name,
                follow=own[0].firing,
                parameters=_run_parameters(own[0], sections, config) | like.parameters,
                unattended=True,
            ),
            own,
        )
        for (name, to, sections), own in found.items()
    ]


def _run_parameters(alert: Alert, sections: Sequence[str], config: Settings) -> dict[str, Any]:
    return route_of(alert, config).parameters | detection_parameters(alert, sections) if alert.firing else {}


def _route_matches(route: Route, alert: Alert) -> bool:
    return (not route.alertname or route.alertname == alert.name) and all(
        alert.labels.get(name) == value for name, value in route.labels.items()
    )


def _is_unknown(target: str, config: Settings) -> bool:
    """Return whether a target is not configured; the environment may configure `default`."""
    from_environment = target == "default" and (config.database_url or config.nats_url)
    return target not in config.targets and not from_environment


def _default_target(config: Settings) -> str:
    """Return the target of the environment; if there is none, the first of runbook.toml."""
    return "default" if config.database_url or config.nats_url or not config.targets else next(iter(config.targets))
