"""The settings that the pods read from their environment, with the names and defaults of the real system."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from runbook_lib.model.times import duration

Environment = Mapping[str, str]

#: The variables of the services, and of what is around them: the receiver, and the users' rate. The runbook sees the
#: former only: what a receiver is set to is seen by nobody else.
PODS_FILE, AROUND_FILE = "pods.env", "around.env"
_AROUND = ("RECEIVER_", "SANDBOX_RATE")


def read_env(path: Path) -> dict[str, str]:
    """Read the NAME=VALUE lines that all pods share."""
    return dict(line.split("=", 1) for line in path.read_text().splitlines() if line)


def split_env(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the lines of each file, by its name.

    >>> split_env({"NATS_URL": "nats://a", "RECEIVER_DELAY": "1s"})
    {'pods.env': 'NATS_URL=nats://a\\n', 'around.env': 'RECEIVER_DELAY=1s\\n'}
    """
    lines: dict[str, str] = {PODS_FILE: "", AROUND_FILE: ""}
    for name, value in variables.items():
        lines[AROUND_FILE if name.startswith(_AROUND) else PODS_FILE] += f"{name}={value}\n"
    return lines


def read_own_env(path: Path, program: str) -> dict[str, str]:
    """Read them as one program does: NOTIFICATION__NAME is NAME for notification alone."""
    prefix = program.upper().replace("-", "_") + "__"
    shared = read_env(path)
    return shared | {k.removeprefix(prefix): v for k, v in shared.items() if k.startswith(prefix)}


def seconds(text: str) -> float:
    """Parse a duration as the applications do.

    >>> seconds("1s"), seconds("500ms"), seconds("24h")
    (1.0, 0.5, 86400.0)
    """
    found = duration(text)
    if found is None:
        raise ValueError(f"not a duration: {text!r} (meant: 500ms, 1s, 2m, 24h)")
    return found


def flag(text: str) -> bool:
    """Parse a boolean as the applications do."""
    return text.strip().lower() == "true"


@dataclass(frozen=True)
class Backoff:
    """The wait after the n-th failure: exponential, capped, then jittered, never under the minimum."""

    base: float = 1.0
    exponent_base: float = 2.0
    maximum: float = 60.0
    minimum: float = 1.0
    jitter_min: float = 0.5
    jitter_max: float = 1.5

    def delay(self, failures: int, jitter: float | None = None) -> timedelta:
        """Return the wait after failure number `failures`; the cap comes before the jitter, so it can reach 90 s.

        >>> Backoff().delay(3, jitter=1.0)
        datetime.timedelta(seconds=4)
        """
        factor = random.uniform(self.jitter_min, self.jitter_max) if jitter is None else jitter
        capped = min(self.base * self.exponent_base ** (failures - 1), self.maximum)
        return timedelta(milliseconds=math.ceil(max(capped * factor, self.minimum) * 1000))


@dataclass(frozen=True)
class WorkerSettings:
    """The knobs of a polling worker; the relay and the delivery worker share their shape."""

    enabled: bool = True
    poll_interval: float = 1.0
    batch_size: int = 50
    max_attempts: int = 10
    lease: timedelta = timedelta(seconds=30)
    backoff: Backoff = Backoff()

    @classmethod
    def read(cls, prefix: str, env: Environment) -> WorkerSettings:
        """Read ENTITLEMENT_OUTBOX_* or NOTIFICATION_DELIVERY_*."""

        def get(name: str, default: str) -> str:
            return env.get(f"{prefix}_{name}", default)

        return cls(
            enabled=flag(get("ENABLED", "true")),
            poll_interval=seconds(get("POLL_INTERVAL", "1s")),
            batch_size=int(get("BATCH_SIZE", "50")),
            max_attempts=int(get("MAX_ATTEMPTS", "10")),
            lease=timedelta(seconds=seconds(get("LEASE", "30s"))),
            backoff=Backoff(
                base=seconds(get("BACKOFF_BASE", "1s")),
                exponent_base=float(get("BACKOFF_EXPONENT_BASE", "2.0")),
                maximum=seconds(get("BACKOFF_MAX", "60s")),
                minimum=seconds(get("BACKOFF_MIN", "1s")),
                jitter_min=float(get("BACKOFF_JITTER_MIN", "0.5")),
                jitter_max=float(get("BACKOFF_JITTER_MAX", "1.5")),
            ),
        )


def nats_timeout(env: Environment) -> float:
    """Return NATS_CONNECTION_TIMEOUT, which is also how long a publish waits for its receipt."""
    return float(env.get("NATS_CONNECTION_TIMEOUT", "5"))


def error_text(error: BaseException) -> str:
    """Return an exception's message, cut to 1000 characters; `unknown error` if it has none."""
    return str(error)[:1000] or "unknown error"
