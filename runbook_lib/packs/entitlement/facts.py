"""The settings of a target, and the parameters of a notebook, that only this system has."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from runbook_lib.book import parameters
from runbook_lib.sources import settings
from runbook_lib.sources.settings import DAY_S

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context, JudgeInput


class Streams(BaseModel):
    """Names of the streams and durables of the system; `matches` is empty where there is no matchmaking."""

    model_config = ConfigDict(extra="forbid")

    events: str = "entitlement-events"
    consumer: str = "notification-entitlement-consumer"
    matches: str = "matchmaking-events"
    matches_consumer: str = "notification-matchmaking-consumer"
    advisory: str = "notification-advisory-dlq"
    advisory_consumer: str = "notification-advisory-consumer"
    terminated: str = "notification-terminated-advisory-dlq"
    terminated_consumer: str = "notification-terminated-advisory-consumer"

    @property
    def durables(self) -> dict[str, str]:
        """Return the durable consumer of each stream, that of the outbox's events first."""
        matches = {self.matches: self.matches_consumer} if self.matches else {}
        return {self.events: self.consumer, **matches, **self.records}

    @property
    def records(self) -> dict[str, str]:
        """Return the durable consumer of each stream that only records which messages were given up."""
        return {self.advisory: self.advisory_consumer, self.terminated: self.terminated_consumer}


class EntitlementWorkloads(settings.WorkloadSettings):
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

    @property
    def psql_words(self) -> list[str]:
        """The words of psql; under kubectl in PostgreSQL's pod, as the owner of the database."""
        if self.psql or self.runner != "kubectl":
            return super().psql_words
        role = ["psql", "-U", self.database, "-d", self.database]
        return [*self.kubectl, "exec", "statefulset/postgres", "-c", "postgres", "--", *role]


class EntitlementFacts(settings.TargetFacts):
    """The facts of a target: names, and the settings of its workers."""

    services: ClassVar[tuple[str, ...]] = ("entitlement", "notification")
    addresses: ClassVar = {"destination_url": ("https://HOST/health", ("http", "https"))}

    streams: Streams = Streams()
    workloads: EntitlementWorkloads = EntitlementWorkloads()
    database_role: str = Field("miniserversystem", min_length=1, max_length=63, description="role of both services")
    lease_s: float = Field(30.0, gt=0, le=DAY_S, description="duration of the workers' lease, in seconds")
    batch_size: int = Field(50, gt=0, le=1_000_000, description="rows per claim of delivery worker and relay")
    poll_interval_s: float = Field(1.0, gt=0, le=DAY_S, description="pause between two batches, in seconds")

    canary_user: str = Field("", max_length=128, description="test account to which `act canary` grants a right")
    canary_sku: str = Field("runbook-canary", min_length=1, max_length=64, description="right that `act canary` grants")

    @property
    def clock_stream(self) -> str:
        """Return the stream whose replies carry the broker's clock."""
        return self.streams.events


class EntitlementParameters(parameters.Parameters):
    """Parameters of sections 4.2, 5.1 and 5.2, and the event that section 3 traces."""

    # The notebook stores this value, so a user id is not accepted.
    event: str | None = Field(
        None,
        pattern=r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$|^[0-9a-fA-F]{32}$",
        description="the id of an event to trace, or of its notification, trace or audit row",
    )
    workload: Literal["notification", "entitlement"] = Field(
        "notification", description='the one to restart: "notification" or "entitlement"'
    )
    delivery_batch_size: int | None = Field(None, description="rows per claim, 1 to 200; None: as it is")
    delivery_poll_interval_s: float | None = Field(None, description="pause between two batches, 0.2 to 30 s")
    delivery_enabled: bool | None = Field(None, description="False: hold delivery; True: deliver again")
    relay_batch_size: int | None = Field(None, description="the same three of the outbox relay")
    relay_poll_interval_s: float | None = None
    relay_enabled: bool | None = None


def facts_of(of: Context | JudgeInput) -> EntitlementFacts:
    """Return the facts of the target."""
    assert isinstance(of.facts, EntitlementFacts)  # noqa: S101 - this pack's runbook is active
    return of.facts


def parameters_of(rb: Context) -> EntitlementParameters:
    """Return the parameters of this run."""
    assert isinstance(rb.parameters, EntitlementParameters)  # noqa: S101 - as above
    return rb.parameters
