"""Change the settings of one workload, and verify that its claims follow them (runbook 5.2)."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from runbook_lib.actions import proposals
from runbook_lib.actions.action import Authorization
from runbook_lib.book.catalog import Setting, SettingValue
from runbook_lib.checks.context import Context, Progress
from runbook_lib.model import rows
from runbook_lib.model.finding import Frames, Text, say
from runbook_lib.model.outcome import Precondition
from runbook_lib.model.unread import UnreadError
from runbook_lib.model.usage import UsageError, did_you_mean
from runbook_lib.packs.entitlement.actions import remedies
from runbook_lib.packs.entitlement.actions.restart import (
    check_cluster,
    check_cooldown,
    check_durable,
    check_restart,
    sample_until_settled,
)
from runbook_lib.packs.entitlement.facts import facts_of
from runbook_lib.packs.entitlement.rows import Attempts, Count, Holder, Outbox, QueueCounts
from runbook_lib.sources.source import SourceError

if TYPE_CHECKING:
    from runbook_lib.book.parameters import Parameters

#: The two sides that have settings, each with its workload and its table.
SIDES = {"delivery": ("notification", "notifications"), "relay": ("entitlement", "outbox")}


class SettingsChange:
    """Set variables of notification or of entitlement, which restarts it.

    Takes either `settings` by their names in docs/operations.md (None restores the default), or `side` ("delivery" or
    "relay"), which takes them from the session's parameters. If the parameters have none for the side, the action
    proposes half the batch and twice the pause, or the defaults if a change is active. A proposal is only shown:
    the action runs only with values that a person has named.
    """

    name = "set"

    def __init__(
        self, rb: Context, *, settings: Mapping[str, SettingValue | None] | None = None, side: str | None = None
    ) -> None:
        self.known = rb.catalog.settings
        if side is not None:
            if settings is not None or side not in SIDES:
                raise UsageError(f"'set' takes settings, or one side: {', '.join(SIDES)}")
            asked = {s: requested_settings(rb.parameters, s) for s in SIDES}
            self.named = bool(asked[side])
            self.sides = [s for s in SIDES if asked[s]] or [side]
            #: The parameters have values for the other side only: this side is shown as a proposal.
            self.only_shown = not self.named and self.sides != [side]
            self.settings: dict[str, SettingValue | None] = {**(asked[side] or propose_settings(rb, side))}
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
        """Return the workload, by role and by name, and the values by setting."""
        return {"workload": self.which, "name": self.program, "settings": self.settings}

    def command(self) -> str:
        """Return the command of the target's runner."""
        if len(self.sides) > 1 or any(self._find_problems()):
            return shlex.join(["runbook", "act", "set", *proposals.setting_words(self.rb, self.settings)])
        return proposals.settings("", self.rb, self.settings).command

    def preconditions(self, rb: Context) -> list[Precondition]:
        """Check the values, what a restart needs, and that no other change is under way."""
        cluster, environment = check_cluster(rb), rb.workloads.environment(self.program)
        found = [
            *cluster,
            Precondition(say("change.named"), self.named),
            Precondition(say("change.one_side"), len(self.sides) == 1),
            *(
                Precondition(say("change.not_in_range", problem=p) if p else say("change.in_range", name=n), not p)
                for n, p in zip(self.settings, self._find_problems(), strict=True)
            ),
            Precondition(
                say("change.differs"), any(self._is_different(n, v, environment) for n, v in self.settings.items())
            ),
        ]
        twice = [other for s in self._changed_settings() for other in other_spellings(s, environment)]
        if twice:
            found.append(Precondition(say("change.spelt_twice", names=", ".join(twice)), ok=False))
        unseen = [s.variable for s in self._changed_settings() if s.variable not in environment]
        if unseen and rb.workloads.has_hidden_variables(self.program):
            found.append(Precondition(say("change.hidden", names=", ".join(unseen)), ok=None))
        found += check_restart(rb, self.which, lambda: check_durable(rb, environment))
        return [*found, *check_cooldown(rb)]

    def state(self, rb: Context) -> dict[str, Any]:
        """Return each variable of the workload, or its default if it is not set."""
        environment = rb.workloads.environment(self.program)
        return {
            s.variable: environment.get(s.variable, f"{s.spelt(s.standard)} (default)")
            for s in self._changed_settings()
        }

    def run(self, rb: Context, word: Authorization, progress: Progress) -> dict[str, Any]:
        """Set the variables, which restarts the workload, and wait until it is ready."""
        progress(0.0, say("change.setting", name=self.program))
        variables = {
            s.variable: None if value is None else s.spelt(value)
            for s, value in zip(self._changed_settings(), self.settings.values(), strict=True)
        }
        output = [
            rb.workloads.set_environment(self.program, variables),
            rb.workloads.wait_ready(self.program, max(rb.number("action.ready"), rb.parameters.wait_s)),
        ]
        return {"output": "\n".join(s for s in output if s), "since": rb.now().isoformat()}

    def verify(self, rb: Context, did: Mapping[str, Any], progress: Progress) -> tuple[bool, Text]:
        """Read the values back, and check that the claims since the change follow them."""
        environment, since = rb.workloads.environment(self.program), pd.Timestamp(did["since"])
        for s, value in zip(self._changed_settings(), self.settings.values(), strict=True):
            found = environment.get(s.variable)
            if found != (None if value is None else s.spelt(value)):
                return False, say("change.not_read_back", name=s.variable, value=found)
        now = current_settings(self.known, self.side, environment)
        pods = max(rb.workloads.replicas(self.program), 1)
        watch, samples = Watch(now, pods, since, rb.catalog.numbers), list[Frames]()

        def sample(spent_s: float) -> tuple[bool, bool, Text]:
            samples.append(self._sample_flow(rb, since))
            return watch.judge(samples[0], samples[-1], spent_s)

        return sample_until_settled(rb, progress, sample)

    def _sample_flow(self, rb: Context, since: pd.Timestamp) -> Frames:
        with rb.snapshot() as db:
            frames = {name: db.ask(f"{self.table}/{name}") for name in ("batches", "holders", "backlog")}
            frames["created"] = db.ask(f"{self.table}/created_since", moment=since)
            if self.table == "notifications":
                frames["attempts"] = db.ask("notifications/attempts")
        return frames

    def _changed_settings(self) -> list[Setting]:
        return [self.known[name] for name in self.settings]

    def _find_problems(self) -> list[str]:
        return ["" if v is None else self.known[name].problem(v) for name, v in self.settings.items()]

    def _is_different(self, name: str, value: SettingValue | None, environment: Mapping[str, str]) -> bool:
        s = self.known[name]
        if value is None:
            return s.variable in environment
        return current_settings(self.known, side_of(name), environment)[name] != value


@dataclass(frozen=True)
class Watch:
    """Judge of whether the claims of `pods` pods since a change follow the values `now`."""

    now: Mapping[str, SettingValue | None]
    pods: int
    since: pd.Timestamp
    numbers: Mapping[str, float]

    def judge(self, first: Frames, latest: Frames, spent_s: float) -> tuple[bool, bool, Text]:
        """Return whether the result is final, whether the claims follow the values, and a text."""
        batch, pause, enabled = (next((v for k, v in self.now.items() if k.endswith(f".{x}")), None) for x in KINDS)
        claims, queue = claims_since(latest, self.since), rows.one(latest.get("backlog"), QueueCounts)
        held, came = self._count_held(latest, queue), rows.one(latest.get("created"), Count).n
        # A worker without a claim for this long is switched off, or idle if no row is due.
        still = self.numbers["change.still"]
        if pause is not None:
            still = max(still, self.numbers["change.still_polls"] * float(pause))
        if enabled is False:
            if len(claims) or held:
                return False, False, say("change.still_claims", rows=float(claims["n"].sum()) + held)
            text = say("change.held" if came else "change.held_idle", s=spent_s, came=came)
            return spent_s >= still and (bool(came) or spent_s >= 2 * still), True, text
        if batch is None or pause is None:
            return True, False, say("change.not_understood")
        allowed = allowed_rate(float(batch), float(pause), self.pods)
        if claims.empty:
            if held or _read_failed_tries(latest) != _read_failed_tries(first):
                return True, held <= batch * self.pods, say("change.tries_only", rows=held)
            if not queue.ready:
                return spent_s >= still, True, say("change.idle", waiting=queue.waiting_retry)
            return False, False, say("change.no_claim", due=queue.ready)
        newest = claims.head(2 * self.pods + 1)  # recent enough to leave out the claims of the old pod
        largest, rate = float(newest["n"].max()), rate_of(newest)
        facts = {"n": len(newest), "largest": largest, "rate": rate, "allowed": allowed, "batch": batch}
        if largest > batch:
            return False, False, say("change.too_large", **facts)
        if rate is None or len(newest) <= self.pods:
            return False, True, say("change.one_batch", **facts)
        if rate > allowed * self.numbers["change.tolerance"]:
            return False, False, say("change.too_fast", **facts)
        return len(newest) > 2 * self.pods, True, say("change.keeps_to_it", **facts)

    def _count_held(self, sample: Frames, queue: QueueCounts) -> float:
        if queue.now is None:
            raise UnreadError("QueueCounts.now")
        age = (queue.now - self.since).total_seconds()
        holders = rows.each(sample.get("holders"), Holder)
        return sum(h.n for h in holders if h.since_claim_s is not None and h.since_claim_s < age)


KINDS = ("batch_size", "poll_interval", "enabled")


def requested_settings(parameters: Parameters, side: str) -> dict[str, SettingValue]:
    """Return the settings of one side that the parameters name."""
    named = {
        f"{side}.batch_size": getattr(parameters, f"{side}_batch_size"),
        f"{side}.poll_interval": getattr(parameters, f"{side}_poll_interval_s"),
        f"{side}.enabled": getattr(parameters, f"{side}_enabled"),
    }
    return {name: value for name, value in named.items() if value is not None}


def propose_settings(rb: Context, side: str) -> dict[str, SettingValue | None]:
    """Return half the batch and twice the pause, or the defaults if a setting already differs from its default."""
    try:
        environment = rb.workloads.environment(rb.facts.workloads.program(SIDES[side][0]))
    except SourceError:
        return remedies.halved_rate(rb, side, facts_of(rb).batch_size, facts_of(rb).poll_interval_s)
    known = rb.catalog.settings
    now = current_settings(known, side, environment)
    if apart := [name for name, value in now.items() if value != known[name].standard]:
        return dict.fromkeys(apart)
    return remedies.halved_rate(rb, side, now[f"{side}.batch_size"] or 1, now[f"{side}.poll_interval"] or 1)


def side_of(name: str) -> str:
    """Return the side that a setting belongs to."""
    return name.partition(".")[0]


def current_settings(
    known: Mapping[str, Setting], side: str, environment: Mapping[str, str]
) -> dict[str, SettingValue | None]:
    """Return the values of a side's settings; None for a value that the application cannot parse."""
    return {
        name: s.understood(environment[s.variable]) if s.variable in environment else s.standard
        for name, s in known.items()
        if side_of(name) == side
    }


def other_spellings(setting: Setting, environment: Mapping[str, str]) -> list[str]:
    """Return other variables that the application binds to the same setting; it ignores dashes in names."""
    plain = setting.variable.replace("_", "").lower()
    return [v for v in environment if v != setting.variable and v.replace("_", "").lower() == plain]


def allowed_rate(batch_size: float, poll_interval_s: float, pods: int) -> float:
    """Return the upper limit of these settings in rows per minute: the time of the batches lowers it."""
    return pods * 60 * batch_size / (poll_interval_s or 1 / 1000)


def claims_since(frames: Frames, since: pd.Timestamp) -> pd.DataFrame:
    """Return the batches that began after a time, newest first."""
    batches = frames.get("batches")
    if batches is None or not {"started", "n"} <= set(batches.columns):
        return pd.DataFrame(columns=["started", "n"])
    return batches[batches["started"] > since]


def rate_of(batches: pd.DataFrame) -> float | None:
    """Return the rows per minute over the span of these batches; the newest may be unfinished, so it is left out."""
    if len(batches) < 2:
        return None
    span = (batches["started"].iloc[0] - batches["started"].iloc[-1]).total_seconds()
    return float(batches["n"].iloc[1:].sum()) * 60 / span if span > 0 else None


def _read_failed_tries(sample: Frames) -> object:
    """Return a value that changes with every failed try; failed tries do not show as batches."""
    if "attempts" in sample:
        return {a.attempt_count: a.n for a in rows.each(sample["attempts"], Attempts) if a.attempt_count > 0}
    queue = rows.one(sample.get("backlog"), Outbox)
    return queue.tried, queue.max_attempt_count, queue.failed
