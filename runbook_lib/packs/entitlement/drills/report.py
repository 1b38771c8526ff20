"""What many drills show, as a page of Markdown: the same for the same lines. Pure."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .judge import LATER_S, Answer, Help, Judged, Truth, alarms, helped, judge, took_effect, wilson
from .probe import Seen

Line = Mapping[str, Any]
_LEVELS = ("high", "medium", "low", "none")
_ANSWERS: tuple[Answer, ...] = ("right", "undecided", "wrong")
_HELP: tuple[Help, ...] = ("helps", "nothing", "harms")


@dataclass(frozen=True)
class Drill:
    """A line of the results, judged. `help` is None where nothing was proposed that changes anything."""

    line: Line
    judged: Judged
    effect: tuple[str, ...]
    help: Help | None

    @property
    def kind(self) -> str:
        """Its fault, "two at once", or "" where nothing was broken."""
        names = self.line["scenario"]["faults"]
        return "two at once" if len(names) > 1 else "".join(names)

    @property
    def confidence(self) -> str:
        """How sure the verdict was; "none" where there was none."""
        return str((self.line["verdict"] or {}).get("confidence", "none"))

    @property
    def counts(self) -> bool:
        """Whether there was something to find, or nothing of the system was broken at all."""
        return bool(self.effect) or not self.line["truth"] or not self.line["truth"]["modes"]

    @property
    def missed(self) -> bool:
        """What has to be looked at: a wrong verdict, or a proposal that does not help."""
        return self.judged.answer == "wrong" or self.help in ("nothing", "harms")


def judged(line: Line) -> Drill:
    """A line without an error, judged by what it holds."""
    right = line["truth"]
    before, acted, alone = (Seen(**line[name]) for name in ("before", "acted", "alone"))
    return Drill(
        line,
        judge(line["verdict"], Truth(frozenset(right["places"]), frozenset(right["modes"])) if right else None),
        took_effect(before, alone),
        helped(acted, alone) if line["proposal"] else None,
    )


def latest(lines: Iterable[Line]) -> list[Line]:
    """The last line of each seed, in the order of the seeds: a drill that failed may have been played again."""
    return sorted({line["seed"]: line for line in lines}.values(), key=lambda line: int(line["seed"]))


def report(lines: Iterable[Line]) -> str:
    """The page: figures, kinds, calibration, drills without a fault, misses, and what does not count."""
    lines = latest(lines)
    drills = [judged(line) for line in lines if "error" not in line]
    real = [d for d in drills if d.counts and d.kind]
    calm = [d for d in drills if not d.kind]
    seeds = [line["seed"] for line in lines]
    versions = ", ".join(sorted({str(d.line["version"]) for d in drills})) or "none"
    span = ", ".join(_spans(seeds)) or "none"
    parts = [
        "# What the drills show",
        "Written by `runbook drill report`: incidents made at random from a seed on the sandbox's real servers, a "
        "triage of each, its first proposal that changes something carried out as it stands, and a twin left alone. "
        f"Version {versions}, seeds {span}: {len(lines)} played, "
        f"{len(real)} with a fault that took effect, {len(calm)} without a fault.",
        "A verdict is *right* if it names a place and a failure mode that the fault allows, *undecided* if it names "
        "several with such a one among them, or nothing and does not call it well. Whether a proposal *helps*, does "
        "*nothing* or *harms* is the flow of the two sandboxes; where they do not differ yet, they are looked at once "
        f"more {LATER_S:.0f} s after the proposal, when ten tries are used up. Of two faults at once, either may be "
        "named; where only the runbook's own view is broken, none, and all is not well.",
        "## In short",
        _in_short(real, calm),
        "## By kind of fault",
        _kinds(real),
        "## How sure is sure",
        "Drills with a fault. The bounds are Wilson's, 95 %.",
        _calibration(real),
        "## Without a fault",
        _calm(calm),
        "## Seconds to the verdict",
        _seconds(drills),
        "## Misses",
        _misses([d for d in (*real, *calm) if d.missed]),
        "## Not counted",
        _not_counted(lines, drills),
    ]
    return "\n\n".join(parts) + "\n"


def _spans(numbers: Iterable[int]) -> list[str]:
    """Which these are, in rising order.

    >>> _spans([3, 4, 5, 9])
    ['3 to 5', '9']
    """
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return [f"{r[0]} to {r[-1]}" if len(r) > 1 else str(r[0]) for r in runs]


def _in_short(real: Sequence[Drill], calm: Sequence[Drill]) -> str:
    n, answers = len(real), Counter(d.judged.answer for d in real)
    high = [d for d in real if d.confidence == "high"]
    right = sum(d.judged.answer == "right" for d in high)
    helped_ = Counter(d.help for d in (*real, *calm))
    idle = sum(d.help == "nothing" and d.confidence == "high" for d in (*real, *calm))
    rows = [
        ("right or honestly undecided", _share(n - answers["wrong"], n), "at least 95 %"),
        ("undecided", _share(answers["undecided"], n), "at most 15 %"),
        ("*high* is right", f"{_share(right, len(high))}, lower bound {wilson(right, len(high))[0]:.0%}", "97 %, 90 %"),
        ("proposals of *high* confidence that do nothing", str(idle), "0"),
        ("proposals that harm", str(helped_["harms"]), "0"),
        ("proposals that help", _share(helped_["helps"], sum(helped_[name] for name in _HELP)), ""),
        ("alarms without a fault", _share(sum(_alarm(d) for d in calm), len(calm)), "0"),
    ]
    return _table(("", "seen", "to reach"), rows)


def _kinds(real: Sequence[Drill]) -> str:
    kinds = {kind: [d for d in real if d.kind == kind] for kind in sorted({d.kind for d in real})}
    rows = [(kind, *_counts(own)) for kind, own in (kinds | {"all": list(real)}).items()]
    return _table(("kind", "drills", *_ANSWERS, *_HELP, "no proposal"), rows)


def _counts(drills: Sequence[Drill]) -> tuple[int, ...]:
    answers, help_ = Counter(d.judged.answer for d in drills), Counter(d.help for d in drills)
    return (len(drills), *(answers[a] for a in _ANSWERS), *(help_[h] for h in (*_HELP, None)))


def _calibration(real: Sequence[Drill]) -> str:
    rows = []
    for level in _LEVELS:
        own = [d for d in real if d.confidence == level]
        answers = Counter(d.judged.answer for d in own)
        low, high = wilson(answers["right"], len(own))
        bounds = f"{low:.0%} to {high:.0%}" if own else "-"
        share = f"{answers['right'] / len(own):.0%}" if own else "-"
        bar = "#" * round(20 * answers["right"] / len(own)) if own else ""
        rows.append((level, len(own), *(answers[a] for a in _ANSWERS), share, bounds, f"`{bar:.<20}`"))
    return _table(("confidence", "drills", *_ANSWERS, "share right", "bounds", ""), rows)


def _calm(calm: Sequence[Drill]) -> str:
    rows = []
    for noise in sorted({d.line["scenario"]["noise"] for d in calm}):
        own = [d for d in calm if d.line["scenario"]["noise"] == noise]
        rows.append((noise, len(own), sum(_alarm(d) for d in own), sum(d.judged.answer == "undecided" for d in own)))
    return _table(("noise", "drills", "alarms", "undecided"), rows)


def _alarm(drill: Drill) -> bool:
    return drill.line["verdict"] is None or alarms(drill.line["verdict"])


def _seconds(drills: Sequence[Drill]) -> str:
    seconds = sorted(float(d.line["seconds"]) for d in drills)
    if not seconds:
        return "None."
    slow = seconds[min(int(len(seconds) * 0.95), len(seconds) - 1)]
    return f"Median {statistics.median(seconds):.0f}, p95 {slow:.0f}, longest {seconds[-1]:.0f}."


def _misses(missed: Sequence[Drill]) -> str:
    return "\n".join(_miss(d) for d in missed) or "None."


def _miss(drill: Drill) -> str:
    line, what = drill.line, drill.line["scenario"]
    verdict = line["verdict"] or {}
    modes = [m["id"] for m in verdict.get("failure_modes", ())[:2]]
    between = " / ".join([*verdict.get("undecided", ()), *verdict.get("between", ())])
    said = [verdict.get("status", "no verdict"), verdict.get("stuck_at") or between or "no place", *modes]
    done = f" {line['proposal']['name']}: {drill.help}." if line["proposal"] else ""
    if drill.judged.answer == "wrong" and line["truth"]:
        allowed = (name or "no place" for name in (*line["truth"]["places"], *line["truth"]["modes"]))
        done = f" Right: {', '.join(allowed)}.{done}"
    around = ", ".join(filter(None, (what["load"], what["noise"], f"first look after {what['look_after_s']:g} s")))
    # What a person found out afterwards, and wrote into the line of the results.
    cause = f" Cause: {line['cause']}" if line.get("cause") else ""
    return (
        f"- seed {line['seed']}, {' + '.join(what['faults']) or 'no fault'} ({around}): {drill.judged.answer} with "
        f"confidence {drill.confidence}: {', '.join(said)}.{done} “{line['headline']}”{cause}"
    )


def _not_counted(lines: Sequence[Line], drills: Sequence[Drill]) -> str:
    found = [f"- seed {line['seed']}: {line['error']}" for line in lines if "error" in line]
    # What a person wrote of a play that this line stands in the place of.
    found += [f"- seed {line['seed']}, played before: {line['before_that']}" for line in lines if "before_that" in line]
    found += [
        f"- seed {d.line['seed']}, {' + '.join(d.line['scenario']['faults'])}: took no effect"
        + "".join(f"; {problem}" for problem in d.line["problems"])
        for d in drills
        if not d.counts
    ]
    return "\n".join(found) or "None."


def _share(n: int, of: int) -> str:
    return f"{n} of {of}" + (f" ({n / of:.0%})" if of else "")


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
