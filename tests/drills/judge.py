"""The judgement of a drill: a right, undecided or wrong verdict, and whether its proposal helped; pure functions."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .probe import FlowSample

Answer = Literal["right", "undecided", "wrong"]
Help = Literal["helps", "nothing", "harms"]

#: From this score on a failure mode is named rather than only considered.
NAMED = 0.5
#: What shows no difference after a proposal is looked at once more so many seconds after it: ten tries, which take four
#: minutes, are used up by then, and what is given up tells.
LATER_S = 240.0
#: Differences below these are chance: a share of the larger value, seconds of the load, rows, seconds of age.
_SHARE, _LOAD_S, _ROWS, _AGE_S = 0.2, 3.0, 2.0, 5.0


@dataclass(frozen=True)
class Truth:
    """The right answers for an incident.

    Hops (None if the flow does not break) and failure modes, of any of its faults.

    No mode at all: nothing is amiss but the runbook's own view. `over`: all faults have ended, so that to name none is
    right as well.
    """

    places: frozenset[str | None]
    modes: frozenset[str]
    over: bool = False


@dataclass(frozen=True)
class Judged:
    """One verdict against the truth; `answer` is the worse of the two."""

    place: Answer
    mode: Answer

    @property
    def answer(self) -> Answer:
        """A verdict is as good as its worse half."""
        worse: tuple[Answer, ...] = ("wrong", "undecided", "right")
        return next(a for a in worse if a in (self.place, self.mode))


def judge(verdict: Mapping[str, Any] | None, truth: Truth | None) -> Judged:
    """Judge a verdict in the form of `--json` (None if there was none); a truth of None is "no incident"."""
    if verdict is None:
        return Judged("wrong", "wrong")
    if truth and truth.over and not alarms(verdict):
        return Judged("right", "right")
    if truth is None or not truth.modes:
        blind = truth is not None and verdict["status"] == "OK"
        calm: Answer = "wrong" if blind or alarms(verdict) else "undecided" if verdict["undecided"] else "right"
        return Judged(calm, calm)
    place, mode = _judge_place(verdict, truth), _judge_mode(verdict, truth)
    if "nothing" in (place, mode):
        # Nothing is named: honest where it says that it can not know yet, and a miss where it says that all is well.
        blind = verdict["status"] == "OK" and not verdict.get("look_again_s")
        silent: Answer = "wrong" if blind else "undecided"
        return Judged(silent if place == "nothing" else place, silent if mode == "nothing" else mode)
    return Judged(place, mode)


def alarms(verdict: Mapping[str, Any]) -> bool:
    """Return whether this verdict would wake a person, or change something."""
    named = verdict["stuck_at"] is not None or verdict["status"] == "CRITICAL"
    return named or changing(verdict["proposals"]) is not None


def _judge_place(verdict: Mapping[str, Any], truth: Truth) -> Any:
    stuck_at, undecided = verdict["stuck_at"], verdict["undecided"]
    if stuck_at is not None:
        return "right" if stuck_at in truth.places else "wrong"
    if undecided:
        # What harms without stopping the flow has no place: whoever suspects one has not named it.
        return "undecided" if truth.places & {*undecided, None} else "wrong"
    return "right" if None in truth.places else "nothing"


def _judge_mode(verdict: Mapping[str, Any], truth: Truth) -> Any:
    if verdict.get("between"):
        return "undecided" if truth.modes & {*verdict["between"]} else "wrong"
    first = next((m for m in verdict["failure_modes"] if m["score"] >= NAMED), None)
    if first is None:
        return "nothing"
    return "right" if first["id"] in truth.modes else "wrong"


# Does it help? ----------------------------------------------------------------------------------------------


def changing(proposals: Collection[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the first proposal whose command changes something."""
    return next((p for p in proposals if changes(p["command"])), None)


#: Commands that only look, by their program and the words that follow somewhere behind it.
_LOOKS = {
    "supervisorctl": {"status", "tail", "avail", "pid"},
    "kubectl": {"get", "logs", "describe", "top", "--list"},
    "nats": {"info", "ls", "report", "view", "ping", "check"},
}


def changes(command: str) -> bool:
    """Return whether a command as it stands changes anything; one that is not known counts as if it did.

    >>> changes("runbook act redrive outbox"), changes("runbook act restart notification --execute")
    (False, True)
    >>> changes("psql -d x -c 'SELECT 1'"), changes("psql -d x -c 'SELECT pg_terminate_backend(7)'")
    (False, True)
    """
    if not command.strip():
        return False
    words = shlex.split(command)
    program = next((w for w in words if "supervisorctl" in w and "=" not in w), words[0]).rsplit("/")[-1]
    if program == "psql":
        sql = command.lower()
        return "pg_terminate" in sql or "pg_cancel" in sql or not any(w.lower().startswith("select") for w in words)
    if program == "runbook":
        return words[1:3] == ["sandbox", "set"] or (words[1:2] == ["act"] and "--execute" in words)
    if program == "date":
        return "exec" in words
    known = next((looks for name, looks in _LOOKS.items() if program.endswith(name)), set[str]())
    return not known & set(words)


def helped(acted: FlowSample, alone: FlowSample) -> Help:
    """Compare the flow after the proposal with that of a twin of the same seed without the proposal.

    What is given up or doubled, or no longer taken in, is harm whatever else gets better; less of the former is help
    whatever waits for it, and so is what is taken in again. Then what counts is what waits and what is sent.
    """

    def gain(name: str, slack: float, *, more: bool = False) -> int:
        """Return 1 if it is clearly better than in the twin, -1 if clearly worse; less is better, or `more`."""
        ours, theirs = getattr(acted, name), getattr(alone, name)
        if ours is None or theirs is None:  # what can not be read (a table that is locked) is worse than any number
            return (theirs is None) - (ours is None)
        better: float = ours - theirs if more else theirs - ours
        apart = max(slack, _SHARE * max(ours, theirs))
        return int(better > apart) - int(better < -apart)

    load = max(acted.created or 0.0, alone.created or 0.0)
    rate = load * _LOAD_S / acted.s  # what three seconds of the load are in the mean of the whole time
    kept = gain("lost", _ROWS), gain("doubled", _ROWS), gain("created", rate, more=True)
    if min(kept) < 0:
        return "harms"
    if max(kept) > 0:
        return "helps"
    flow = gain("waiting", max(load * _LOAD_S, _ROWS))
    # What had just been on its way when the flow broke, in one sandbox and not in the other, is chance.
    if max(acted.waiting or 0.0, alone.waiting or 0.0) > _ROWS:
        flow += gain("oldest_s", _AGE_S)
    flow += gain("sent", rate, more=True) + gain("published", rate, more=True)
    return "helps" if flow > 0 else "harms" if flow < 0 else "nothing"


def took_effect(before: FlowSample, after: FlowSample) -> tuple[str, ...]:
    """Return the signs that something is wrong in a sandbox without a proposal; () if there are none."""
    found = []
    for name in ("created", "published", "processed", "sent"):
        was, now = getattr(before, name), getattr(after, name)
        if was and (now is None or now < was / 2):
            found.append(name)
    slack = {
        "waiting": max((before.created or 0.0) * _LOAD_S * 2, _ROWS),
        "oldest_s": 2 * _AGE_S,
        "retrying": 0.0,
        "lost": 0.0,
        "doubled": 0.0,
        "ahead_s": _AGE_S,
    }
    for name, most in slack.items():
        was, now = getattr(before, name), getattr(after, name)
        if was is not None and (now is None or now - was > most):
            found.append(name)
    return tuple(found)


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return the bounds of a share, as shares: Wilson's interval, 95 % with this z; (0, 1) where nothing was seen.

    >>> [round(b, 2) for b in wilson(9, 10)]
    [0.6, 0.98]
    """
    if not n:
        return 0.0, 1.0
    share, spread = hits / n, z * z / n
    middle = share + spread / 2
    half = z * ((share * (1 - share) + spread / 4) / n) ** 0.5
    return max((middle - half) / (1 + spread), 0.0), min((middle + half) / (1 + spread), 1.0)
