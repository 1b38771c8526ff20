"""What the receiver says of itself to Prometheus."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (1, 2, 5, 10, 20, 30, 60, 120, 240, 600, 1800)


class Metrics:
    """One receiver's counters, since it was started; the journal knows of what was before."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        self.accepted = Counter("runbook_alerts_accepted", "Alerts made durable", **own)
        self.deduplicated = Counter("runbook_alerts_deduplicated", "Of these, alerts that were only counted", **own)
        self.refused = Counter("runbook_requests_refused", "Requests refused, by HTTP status", ["status"], **own)
        self.running = Gauge("runbook_investigations_running", "Investigations at work", **own)
        self.waiting = Gauge("runbook_investigations_waiting", "Investigations accepted and not begun", **own)
        self.finished = Counter("runbook_investigations_finished", "Investigations concluded", ["status"], **own)
        self.failed = Counter("runbook_investigations_failed", "Investigations given up", **own)
        self.retried = Counter("runbook_investigations_retried", "Investigations that are tried again", **own)
        self.seconds = Histogram(
            "runbook_alert_to_artifact_seconds", "From the alert's acceptance to its artifact", buckets=_SECONDS, **own
        )
        self.messages = Counter("runbook_messages", "Messages by what became of them", ["state"], **own)
