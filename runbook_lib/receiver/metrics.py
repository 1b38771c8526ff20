"""The receiver's own metrics for Prometheus."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (1, 2, 5, 10, 20, 30, 60, 120, 240, 600, 1800)


class Metrics:
    """The metrics of one receiver since its start; the journal holds the state across restarts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        self.accepted = Counter("runbook_alerts_accepted", "Alerts stored durably", **own)
        self.deduplicated = Counter("runbook_alerts_deduplicated", "Accepted alerts that were duplicates", **own)
        self.refused_alerts = Counter("runbook_alerts_refused", "Alerts refused beside others of their body", **own)
        self.refused = Counter("runbook_requests_refused", "Requests refused, by HTTP status", ["status"], **own)
        self.running = Gauge("runbook_investigations_running", "Investigations in progress", **own)
        self.waiting = Gauge("runbook_investigations_waiting", "Investigations accepted but not started", **own)
        self.finished = Counter("runbook_investigations_finished", "Investigations with a verdict", ["status"], **own)
        self.failed = Counter("runbook_investigations_failed", "Investigations given up", **own)
        self.retried = Counter("runbook_investigations_retried", "Retries of investigations", **own)
        self.seconds = Histogram(
            "runbook_alert_to_artifact_seconds", "Seconds from an alert to its artifact", buckets=_SECONDS, **own
        )
        self.messages = Counter("runbook_messages", "Messages by state: sent, retried, failed", ["state"], **own)
