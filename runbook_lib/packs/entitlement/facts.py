"""What a target's settings, and a notebook's parameters, say of this system beyond what the engine knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from runbook_lib import parameters, settings
from runbook_lib.settings import DAY_S

if TYPE_CHECKING:
    from runbook_lib.context import Context, Given


class Streams(BaseModel):
    """Names of the streams and durables of the system."""

    model_config = ConfigDict(extra="forbid")

    events: str = "entitlement-events"
    consumer: str = "notification-entitlement-consumer"
    advisory: str = "notification-advisory-dlq"
    advisory_consumer: str = "notification-advisory-consumer"
    terminated: str = "notification-terminated-advisory-dlq"
    terminated_consumer: str = "notification-terminated-advisory-consumer"

    @property
    def durables(self) -> dict[str, str]:
        """The durable of each stream."""
        return {
            self.events: self.consumer,
            self.advisory: self.advisory_consumer,
            self.terminated: self.terminated_consumer,
        }


class Workloads(settings.Workloads):
    """The names of the three workloads."""

    namespace: str = "miniserversystem"
    database: str = "miniserversystem"
    entitlement: str = "entitlement"
    notification: str = "notification"
    nats: str = "nats"
    forwards: dict[str, str] = Field(
        {
            "database_url": "svc/postgres:5432",
            "nats_url": "deploy/nats:4222",
            "nats_monitor_url": "deploy/nats:8222",
            "prometheus_url": "svc/prometheus:9090",
        },
        description="what `runbook connect` opens",
    )


class Facts(settings.Facts):
    """What a target says of the system: names, and the settings of its workers."""

    services: ClassVar[tuple[str, ...]] = ("entitlement", "notification")

    streams: Streams = Streams()
    workloads: Workloads = Workloads()
    database_role: str = Field("miniserversystem", min_length=1, max_length=63, description="that of both services")
    lease_s: float = Field(30.0, gt=0, le=DAY_S, description="the workers' configured lease")
    batch_size: int = Field(50, gt=0, le=1_000_000, description="rows per claim, delivery and relay")
    poll_interval_s: float = Field(1.0, gt=0, le=DAY_S, description="pause between two batches")

    canary_user: str = Field("", max_length=128, description="a test account that `act canary` may grant a right")
    canary_sku: str = Field("runbook-canary", min_length=1, max_length=64, description="the right that it grants")

    @property
    def clock_stream(self) -> str:
        """Its answers carry the broker's clock."""
        return self.streams.events


class Parameters(parameters.Parameters):
    """What sections 4.2, 5.1 and 5.2 are asked to do, and the one event that section 3 follows."""

    # Kept in the notebook, so nothing that may be a person.
    event: str | None = Field(None, pattern=r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$|^[0-9a-fA-F]{32}$")
    workload: Literal["notification", "entitlement"] = "notification"
    delivery_batch_size: int | None = None
    delivery_poll_interval_s: float | None = None
    delivery_enabled: bool | None = None
    relay_batch_size: int | None = None
    relay_poll_interval_s: float | None = None
    relay_enabled: bool | None = None


def facts_of(of: Context | Given) -> Facts:
    """The facts of the target that is looked at."""
    assert isinstance(of.facts, Facts)  # noqa: S101 - this pack's runbook is in force
    return of.facts


def asked_of(rb: Context) -> Parameters:
    """What this run was asked to do."""
    assert isinstance(rb.parameters, Parameters)  # noqa: S101 - as above
    return rb.parameters
