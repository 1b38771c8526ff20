"""Change the settings of one workload and see that they are in force (runbook 5.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from runbook_lib import rows
from runbook_lib.actions import proposals
from runbook_lib.actions.action import Word
from runbook_lib.catalog import Setting, SettingValue, duration
from runbook_lib.context import Context, Progress
from runbook_lib.model.finding import Frames, Text, say
from runbook_lib.outcome import Precondition
from runbook_lib.packs.entitlement.actions import remedies
from runbook_lib.packs.entitlement.actions.restart import (
    claims_alone,
    look_until_settled,
    not_just_acted,
    servers_answer,
)
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.packs.entitlement.rows import Attempts, Count, Queue
from runbook_lib.sources import SourceError
from runbook_lib.usage import UsageError, did_you_mean

if TYPE_CHECKING:
    from runbook_lib.context import Context
    from runbook_lib.parameters import Parameters

#: The two sides that have settings, with the workload and the table behind each.
SIDES = {"delivery": ("notification", "notifications"), "relay": ("entitlement", "outbox")}
#: What notification asks of its durable where no variable says otherwise. One that differs stops its start.
DURABLE = {
    "NOTIFICATION_NATS_ACK_WAIT": ("ack_wait", "broker.ack_wait"),
    "NOTIFICATION_NATS_MAX_DELIVER": ("max_deliver", "broker.max_deliver"),
}


class Change:
    """Set variables of notification or of entitlement, which restarts it.

    Either `settings` by their names in docs/operations.md (None is back to the default), or `side` ("delivery" or
    "relay"): then they are those that the session's parameters name. Where these name none it is half the batch and
    twice the pause, or the way back from what is in force, and that is shown only: what is carried out was named by
    a person.
    """

    name = "set"

    def __init__(
        self, rb: Context, *, settings: Mapping[str, SettingValue | None] | None = None, side: str | None = None
    ) -> None:
        self.known = rb.catalog.settings
        if side is not None:
            if settings is not None or side not in SIDES:
                raise UsageError(f"'set' takes settings, or one side: {', '.join(SIDES)}")
            asked = {s: asked_for(rb.parameters, s) for s in SIDES}
            self.named = bool(asked[side])
            self.sides = [s for s in SIDES if asked[s]] or [side]
            #: Nobody asked for this one: it stands beside what was asked of the other side, as a proposal.
            self.only_shown = not self.named and self.sides != [side]
            self.settings: dict[str, SettingValue | None] = {**(asked[side] or proposed(rb, side))}
        else:
            if not settings:
                raise UsageError(f"'set' needs a setting: {', '.join(self.known)}")
            for name in settings:
                if name not in self.known:
                    raise UsageError(f"unknown setting '{name}': {did_you_mean(name, list(self.known))}")
            self.named, self.only_shown, self.settings = True, False, dict(settings)
            self.sides = list(dict.fromkeys(side_of(name) for name in settings))
        self.side = side or self.sides[0]
        self.which, self.table = SIDES[self.side]
        self.rb = rb
        self.program = rb.facts.workloads.program(self.which)

    def what(self) -> dict[str, Any]:
        """The workload, by its role and by its name, and the values by the names of their settings."""
        return {"workload": self.which, "name": self.program, "settings": self.settings}

    def command(self) -> str:
        """The command of the target's own runner."""
        if len(self.sides) > 1 or any(self._problems()):
            values = (f"{name}={'default' if v is None else v}" for name, v in self.settings.items())
            return f"runbook act set {' '.join(values)}"
        return proposals.settings("", self.rb, self.settings).command

    def preconditions(self, rb: Context) -> list[Precondition]:
        """Each change is a restart, so what a start needs must be there; and one thing at a time."""
        environment = rb.workloads.environment(self.program)
        found = [
            Precondition(say("change.named"), self.named),
            Precondition(say("change.one_side"), len(self.sides) == 1),
            *(
                Precondition(say("change.not_in_range", problem=p) if p else say("change.in_range", name=n), not p)
                for n, p in zip(self.settings, self._problems(), strict=True)
            ),
            Precondition(
                say("change.differs"), any(self._differs(n, v, environment) for n, v in self.settings.items())
            ),
        ]
        twice = [other for s in self._changed() for other in other_spellings(s, environment)]
        if twice:
            found.append(Precondition(say("change.spelt_twice", names=", ".join(twice)), ok=False))
        found += servers_answer(rb)
        replicas = rb.workloads.replicas(self.program)
        if self.which == "notification":
            found.append(Precondition(say("action.restart.one_replica", n=replicas), replicas == 1))
            strategy = rb.workloads.strategy(self.program)
            found.append(
                Precondition(say("change.recreate", strategy=strategy), strategy == "Recreate" if strategy else None)
            )
            found += [durable_agrees(rb, environment), claims_alone(rb, self.program)]
        else:
            found.append(Precondition(say("change.replicas", name=self.program, n=replicas), replicas >= 1))
        found.append(not_just_acted(rb))
        return found

    def state(self, rb: Context) -> dict[str, Any]:
        """Each variable as the workload has it; one that is not set, as its default."""
        environment = rb.workloads.environment(self.program)
        return {s.variable: environment.get(s.variable, f"{s.spelt(s.standard)} (default)") for s in self._changed()}

    def run(self, rb: Context, word: Word, progress: Progress) -> dict[str, Any]:
        """Set the variables, which restarts the workload, and wait until it is ready."""
        progress(0.0, say("change.setting", name=self.program))
        variables = {
            s.variable: None if value is None else s.spelt(value)
            for s, value in zip(self._changed(), self.settings.values(), strict=True)
        }
        said = [
            rb.workloads.set_environment(self.program, variables),
            rb.workloads.wait_ready(self.program, max(rb.number("action.ready"), rb.parameters.wait_s)),
        ]
        return {"output": "\n".join(s for s in said if s), "since": rb.now().isoformat()}

    def verify(self, rb: Context, did: Mapping[str, Any], progress: Progress) -> tuple[bool, Text]:
        """The values are read back, and what is claimed since keeps to them."""
        environment, since = rb.workloads.environment(self.program), pd.Timestamp(did["since"])
        for s, value in zip(self._changed(), self.settings.values(), strict=True):
            here = environment.get(s.variable)
            if here != (None if value is None else s.spelt(value)):
                return False, say("change.not_read_back", name=s.variable, value=here)
        now = in_force(self.known, self.side, environment)
        pods = max(rb.workloads.replicas(self.program), 1)
        watch, looks = Watch(now, pods, since, rb.catalog.numbers), list[Frames]()

        def look(spent_s: float) -> tuple[bool, bool, Text]:
            looks.append(self._look(rb, since))
            return watch.judge(looks[0], looks[-1], spent_s)

        return look_until_settled(rb, progress, look)

    def _look(self, rb: Context, since: pd.Timestamp) -> Frames:
        with rb.snapshot() as db:
            frames = {name: db.ask(f"{self.table}/{name}") for name in ("batches", "holders", "backlog")}
            frames["created"] = db.ask(f"{self.table}/created_since", moment=since)
            if self.table == "notifications":
                frames["attempts"] = db.ask("notifications/attempts")
        return frames

    def _changed(self) -> list[Setting]:
        return [self.known[name] for name in self.settings]

    def _problems(self) -> list[str]:
        return ["" if v is None else self.known[name].problem(v) for name, v in self.settings.items()]

    def _differs(self, name: str, value: SettingValue | None, environment: Mapping[str, str]) -> bool:
        s = self.known[name]
        if value is None:
            return s.variable in environment
        return in_force(self.known, side_of(name), environment)[name] != value


@dataclass(frozen=True)
class Holder:
    """Rows in somebody's hands, and since when."""

    n: float = 0.0
    since_claim_s: float = math.inf


@dataclass(frozen=True)
class Failures:
    """What changes in the outbox whenever a try fails."""

    QUESTION: ClassVar[str] = "outbox/backlog"
    tried: float = 0.0
    max_attempt_count: float = 0.0
    failed: float = 0.0


@dataclass(frozen=True)
class Watch:
    """Do the claims since a change keep to the values `now` in force, of so many pods?"""

    now: Mapping[str, SettingValue | None]
    pods: int
    since: pd.Timestamp
    numbers: Mapping[str, float]

    def judge(self, first: Frames, look: Frames, spent_s: float) -> tuple[bool, bool, Text]:
        """Whether that is settled, whether they do, and a sentence."""
        batch, pause, enabled = (next((v for k, v in self.now.items() if k.endswith(f".{x}")), None) for x in KINDS)
        claims, queue = claims_since(look, self.since), rows.one(look.get("backlog"), Queue)
        held, came = self._held(look, queue), rows.one(look.get("created"), Count).n or 0
        # Without a claim for so long a worker is held; or has nothing to do, if nothing is due.
        still = max(self.numbers["change.still"], self.numbers["change.still_polls"] * float(pause or 0))
        if enabled is False:
            if len(claims) or held:
                return False, False, say("change.still_claims", rows=float(claims["n"].sum()) + held)
            text = say("change.held" if came else "change.held_idle", s=spent_s, came=came)
            return spent_s >= still and (came > 0 or spent_s >= 2 * still), True, text
        if batch is None or pause is None:
            return True, False, say("change.not_understood")
        allowed = self.pods * 60 * float(batch) / (float(pause) or 1 / 1000)
        if claims.empty:
            if held or _tries(look) != _tries(first):
                return True, held <= batch * self.pods, say("change.tries_only", rows=held)
            if not queue.ready:
                return spent_s >= still, True, say("change.idle", waiting=queue.waiting_retry)
            return False, False, say("change.no_claim", due=queue.ready)
        newest = claims.head(2 * self.pods + 1)  # what a pod that is leaving did is no longer among them
        largest, rate = float(newest["n"].max()), rate_of(newest)
        facts = {"n": len(newest), "largest": largest, "rate": rate, "allowed": allowed, "batch": batch}
        if largest > batch:
            return False, False, say("change.too_large", **facts)
        if rate is None or len(newest) <= self.pods:
            return False, True, say("change.one_batch", **facts)
        if rate > allowed * self.numbers["change.tolerance"]:
            return False, False, say("change.too_fast", **facts)
        return len(newest) > 2 * self.pods, True, say("change.keeps_to_it", **facts)

    def _held(self, look: Frames, queue: Queue) -> float:
        if queue.now is None:
            return 0.0
        age = (queue.now - self.since).total_seconds()
        return sum(h.n for h in rows.each(look.get("holders"), Holder) if h.since_claim_s < age)


KINDS = ("batch_size", "poll_interval", "enabled")


def asked_for(parameters: Parameters, side: str) -> dict[str, SettingValue]:
    """What the parameters name of one side's settings."""
    named = {
        f"{side}.batch_size": getattr(parameters, f"{side}_batch_size"),
        f"{side}.poll_interval": getattr(parameters, f"{side}_poll_interval_s"),
        f"{side}.enabled": getattr(parameters, f"{side}_enabled"),
    }
    return {name: value for name, value in named.items() if value is not None}


def proposed(rb: Context, side: str) -> dict[str, SettingValue | None]:
    """Half the rows and twice the pause; where something is in force already, back to the defaults."""
    try:
        environment = rb.workloads.environment(rb.facts.workloads.program(SIDES[side][0]))
    except SourceError:
        return remedies.milder(rb, side, facts_of(rb).batch_size, facts_of(rb).poll_interval_s)
    known = rb.catalog.settings
    now = in_force(known, side, environment)
    if apart := [name for name, value in now.items() if value != known[name].standard]:
        return dict.fromkeys(apart)
    return remedies.milder(rb, side, now[f"{side}.batch_size"] or 1, now[f"{side}.poll_interval"] or 1)


def side_of(name: str) -> str:
    """The side that a setting belongs to."""
    return name.partition(".")[0]


def in_force(known: Mapping[str, Setting], side: str, environment: Mapping[str, str]) -> dict[str, SettingValue | None]:
    """What a side's settings are; None where the application would not understand what is written."""
    return {
        name: s.understood(environment[s.variable]) if s.variable in environment else s.standard
        for name, s in known.items()
        if side_of(name) == side
    }


def other_spellings(setting: Setting, environment: Mapping[str, str]) -> list[str]:
    """Variables that the application takes for the same setting: it binds names without their dashes too."""
    plain = setting.variable.replace("_", "").lower()
    return [v for v in environment if v != setting.variable and v.replace("_", "").lower() == plain]


def durable_agrees(rb: Context, environment: Mapping[str, str]) -> Precondition:
    """Whether notification finds its durable as it wants it: where not, its next start fails."""
    try:
        config = rb.jetstream.consumer(facts_of(rb).streams.events, facts_of(rb).streams.consumer)["config"]
    except SourceError as e:
        made = e.code in ("stream_not_found", "consumer_not_found")  # the start makes it
        return Precondition(say("change.durable_agrees"), ok=True if made else None)
    for variable, (field, default) in DURABLE.items():
        wanted = environment.get(variable, f"{rb.number(default):g}" + ("s" if field == "ack_wait" else ""))
        number = duration(wanted) if field == "ack_wait" else float(wanted) if wanted.isdecimal() else None
        there = float(config.get(field) or 0) / (1e9 if field == "ack_wait" else 1)
        if number != there:
            return Precondition(say("change.durable_differs", name=variable, value=wanted, there=there), ok=False)
    return Precondition(say("change.durable_agrees"), ok=True)


def claims_since(look: Frames, since: pd.Timestamp | None) -> pd.DataFrame:
    """The batches that were begun after a moment, newest first."""
    batches = look.get("batches")
    if batches is None or not {"started", "n"} <= set(batches.columns):
        return pd.DataFrame(columns=["started", "n"])
    return batches if since is None else batches[batches["started"] > since]


def rate_of(batches: pd.DataFrame) -> float | None:
    """Rows per minute over the time that these batches span; the newest is still going on."""
    if len(batches) < 2:
        return None
    span = (batches["started"].iloc[0] - batches["started"].iloc[-1]).total_seconds()
    return float(batches["n"].iloc[1:].sum()) * 60 / span if span > 0 else None


def _tries(look: Frames) -> object:
    """What changes whenever a try fails; failed tries leave no batch behind."""
    if "attempts" in look:
        return {a.attempt_count: a.n for a in rows.each(look["attempts"], Attempts) if a.attempt_count > 0}
    return rows.one(look.get("backlog"), Failures)
