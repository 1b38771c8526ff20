"""The page on many drills and plays of knobs, in Markdown; a pure function of the result lines."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .judge import LATER_S, NAMED, Answer, Help, Judged, Truth, alarms, helped, judge, took_effect, wilson
from .probe import FlowSample

Line = Mapping[str, Any]
ANSWERS: tuple[Answer, ...] = ("right", "undecided", "wrong")


@dataclass(frozen=True)
class Drill:
    """A line of the results, judged. `help` is None where nothing was proposed that changes anything."""

    line: Line
    judged: Judged
    effect: tuple[str, ...]
    help: Help | None

    @property
    def kinds(self) -> list[str]:
        """The kinds of its knobs."""
        return [knob["kind"] for knob in self.line.get("knobs", ())]

    @property
    def over(self) -> bool:
        """Whether its faults had ended before the first look."""
        return bool(self.line["scenario"].get("ended_s"))

    @property
    def names_knob(self) -> bool | None:
        """Whether a text names a knob that hurt the flow; None if none did, or a text can name none of them."""
        knobs = [knob["words"] for knob in self.line.get("knobs", ()) if knob["words"]]
        return self._names_one(knobs) if self.effect and knobs else None

    @property
    def answer(self) -> Answer:
        """The verdict's; where knobs hurt the flow, a text that names one of them is right whatever its place."""
        return "right" if self.names_knob else self.judged.answer

    @property
    def sure(self) -> bool:
        """Whether a wrong place, or a proposal that does not help, had high confidence."""
        return self.confidence == "high" and (self.judged.place == "wrong" or self.useless)

    @property
    def useless(self) -> bool:
        """Whether a proposal was carried out and did not help."""
        return self.help in ("nothing", "harms")

    def _names_one(self, groups: Iterable[Sequence[str]]) -> bool:
        """Return whether one text of the verdict, or of a step, has all words of a group; of "a|b" either."""
        modes = (self.line["verdict"] or {}).get("failure_modes", ())
        because = [
            b["headline"]["en"] for m in modes if m["score"] >= NAMED for b in m.get("because", ()) if b["headline"]
        ]
        texts = [text.lower() for text in (*because, *self.line.get("said", ()), self.line["headline"])]
        wanted = [[word.lower().split("|") for word in words] for words in groups]
        return any(all(any(w in text for w in word) for word in words) for words in wanted for text in texts)

    @property
    def confidence(self) -> str:
        """The confidence of the verdict; "none" if there was no verdict."""
        return str((self.line["verdict"] or {}).get("confidence", "none"))

    @property
    def counts(self) -> bool:
        """Whether there was something to find, or nothing of the system was broken at all."""
        return "knobs" in self.line or bool(self.effect) or not self.line["truth"] or not self.line["truth"]["modes"]

    @property
    def problem(self) -> str:
        """What is not right; "" if nothing is."""
        if self.answer != "right":
            return self.answer
        return f"the proposal: {self.help}" if self.useless else ""


def judged(line: Line) -> Drill:
    """Judge a result line without an error by its content."""
    before, acted, alone = (FlowSample(**line[name]) for name in ("before", "acted", "alone"))
    first = line.get("seen") or line.get("broken")
    at_look, later = took_effect(before, FlowSample(**first) if first else alone), took_effect(before, alone)
    if alone.again == 0:  # what was received twice can not be undone
        later = tuple(sign for sign in later if sign != "doubled")
    effect = tuple(dict.fromkeys((*at_look, *later))) if "knobs" in line else at_look
    verdict = judge(line["verdict"], _find_truth(line, effect, over=not (at_look and later)))
    if "knobs" in line:  # no failure mode is the right one for all that can be turned
        verdict = Judged(verdict.place, verdict.place)
    return Drill(line, verdict, effect, helped(acted, alone) if line["proposal"] else None)


def _find_truth(line: Line, effect: Sequence[str], *, over: bool) -> Truth | None:
    """Return the right answers; of knobs that hurt the flow their places, and none if it was not yet or no longer."""
    if "knobs" not in line:
        right = line["truth"]
        lists = {key: frozenset(value) for key, value in (right or {}).items() if isinstance(value, list)}
        return Truth(**{**right, **lists}) if right else None
    places = frozenset(place for knob in line["knobs"] for place in knob["places"])
    return Truth(places, frozenset({"FM-CFG-01"}), over=over) if effect else None


def latest(lines: Iterable[Line]) -> list[Line]:
    """Return the last line of each seed, by seed: a failed drill may have been played again."""
    return sorted({line["seed"]: line for line in lines}.values(), key=lambda line: int(line["seed"]))


def report(drills: Iterable[Line] = (), knobs: Iterable[Line] = ()) -> str:
    """Return the page: figures of the drills and of plays of knobs, and what was not right in them."""
    drills, knobs = latest(drills), latest(knobs)
    parts = ["# What the drills show", *(_describe_drills(drills) if drills else ())]
    return "\n\n".join([*parts, *(_describe_knobs(knobs) if knobs else ())]) + "\n"


def _describe_drills(lines: Sequence[Line]) -> list[str]:
    drills = [judged(line) for line in lines if "error" not in line]
    counted = [d for d in drills if d.counts]
    real, calm = ([d for d in counted if bool(d.line["scenario"]["faults"]) is broken] for broken in (True, False))
    answers, helps = Counter(d.answer for d in real), Counter(d.help for d in counted)
    high = [d for d in real if d.confidence == "high"]
    right = sum(d.answer == "right" for d in high)
    idle = sum(d.help == "nothing" and d.confidence == "high" for d in counted)
    alarmed = sum(d.line["verdict"] is None or alarms(d.line["verdict"]) for d in calm)
    rows = [
        ("right", _format_share(answers["right"], len(real)), "at least 92 %"),
        ("right or honestly undecided", _format_share(len(real) - answers["wrong"], len(real)), "at least 97 %"),
        ("undecided", _format_share(answers["undecided"], len(real)), "at most 5 %"),
        (
            "*high* is right",
            f"{_format_share(right, len(high))}, lower bound {wilson(right, len(high))[0]:.0%}",
            "98 %, 95 %",
        ),
        ("proposals of *high* confidence that do nothing", str(idle), "0"),
        ("proposals that harm", str(helps["harms"]), "0"),
        ("proposals that help", _format_share(helps["helps"], len(counted) - helps[None]), ""),
        ("alarms without a fault", _format_share(alarmed, len(calm)), "0"),
        ("seconds to the verdict, median", _median_seconds(counted), "at most 9"),
    ]
    return [
        "Random faults on the sandbox (`make drills`), each with a triage, its first proposal that changes something, "
        f"and a twin left alone. {_describe_span(lines, drills)}: {len(lines)} played, {len(real)} with a fault that "
        f"took effect, {len(calm)} without a fault.",
        "A verdict is *right* if it names a place and a failure mode that the fault allows (of two faults, either), "
        "and *undecided* if it names several with a right one among them, or none and is not OK. A proposal *helps*, "
        "does *nothing* or *harms* by the flow of the two sandboxes, checked again "
        f"{LATER_S:.0f} s after the proposal if they do not differ. If only the runbook's own view is broken, naming "
        "no place is right; after the end of a fault, naming none.",
        _format_table(("", "seen", "to reach"), rows),
        "## Not right",
        _format_problems(counted),
    ]


def _describe_knobs(lines: Sequence[Line]) -> list[str]:
    plays = [judged(line) for line in lines if "error" not in line]
    hurt, calm = ([play for play in plays if bool(play.effect) is effect] for effect in (True, False))
    answers, last = Counter(play.answer for play in hurt), plays[-200:]
    named = [play.names_knob for play in hurt if play.names_knob is not None]
    rows = [
        ("right", _format_share(answers["right"], len(hurt)), "at least 85 %"),
        ("right or undecided", _format_share(len(hurt) - answers["wrong"], len(hurt)), "at least 95 %"),
        ("sure and wrong, in the last 200", _format_share(sum(play.sure for play in last), len(last)), "0"),
        ("names what was changed, where a text can", _format_share(sum(named), len(named)), "at least 80 %"),
        ("alarms without an effect", _format_share(sum(p.answer == "wrong" for p in calm), len(calm)), "0"),
        ("seconds to the verdict, median", _median_seconds(plays), "at most 8"),
    ]
    by_kind = []
    for kind in (*sorted({kind for play in plays for kind in play.kinds}), "all"):
        own = [play for play in plays if kind in ("all", *play.kinds)]
        found = Counter(play.answer for play in own if play.effect)
        effects = (sum(not play.effect for play in own), *(found[answer] for answer in ANSWERS))
        by_kind.append((kind, len(own), *effects, sum(play.sure for play in own)))
    return [
        "## Knobs",
        "What the servers let a person change, changed at random (`make knobs`), and a triage. "
        f"{_describe_span(lines, plays)}: {len(lines)} played, {len(hurt)} with an effect on the flow. With an effect, "
        "*right* is a place of the change, or a text that names it; *undecided* are several places with a right one, "
        "or none in a verdict that is not OK or says when to look again. Without one, *right* raises no alarm: no "
        "place, not CRITICAL, no change proposed. Side by side, plays share cores: alone is faster.",
        _format_table(("", "seen", "to reach"), rows),
        _format_table(("kind", "plays", "no effect", *ANSWERS, "sure and wrong"), by_kind),
        "### Not right",
        _format_problems(plays),
    ]


def _describe_span(lines: Sequence[Line], drills: Sequence[Drill]) -> str:
    """Return which version was played, of which code, with which seeds."""
    versions = ", ".join(sorted({str(d.line["version"]) for d in drills})) or "none"
    codes, seeds = {str(line.get("code", "")) for line in lines}, [line["seed"] for line in lines]
    which = f"code {codes.pop()}" if len(codes) == 1 and all(codes) else "several states of the code"
    return f"Version {versions}, {which}, seeds {min(seeds)} to {max(seeds)}"


def describe(line: Line) -> str:
    """Return what was turned, or the faults, in one line."""
    knobs = [f"{knob['kind']} {knob['item']}: {knob['value']}" for knob in line.get("knobs", ())]
    return " + ".join(knobs or line["scenario"].get("faults", ())) or "no fault"


def describe_result(line: Line) -> str:
    """Return the result of one play in a line, for who waits for the others."""
    played = f"{line['seed']}: {describe(line)}"
    if "error" in line:
        return f"{played}: could not be played: {line['error']}"
    drill, what = judged(line), line["scenario"]
    ended = f" and {what['ended_s']:g} s after the end" if drill.over else ""
    look = f"first look after {what['look_after_s']:g} s{ended}"
    around = ", ".join(
        filter(None, (f"flow: {', '.join(drill.effect) or 'not hurt'}", what["load"], what["noise"], look))
    )
    proposal = f"the proposal: {drill.help}" if drill.help else "no proposal"
    said = f"{drill.answer}, confidence {drill.confidence}, {proposal}; {line['seconds']:.0f} s to the verdict"
    return f"{played} ({around}): {said}" + ("" if drill.counts else "; no effect, so it does not count")


def _format_problems(drills: Iterable[Drill]) -> str:
    """Return each cause of what is not right, with the plays; what nobody has explained is "unknown"."""
    found: dict[str, list[str]] = defaultdict(list)
    for drill in drills:
        if drill.problem and (drill.effect or drill.answer == "wrong" or drill.useless):
            # The cause is what a person found out afterwards, and wrote into the line of the results.
            cause = f"*{drill.problem}*, {drill.line.get('cause', 'unknown')}"
            found[cause].append(f"{describe(drill.line)} (seed {drill.line['seed']})")
    return "\n".join(f"- {cause}: {'; '.join(plays)}" for cause, plays in found.items()) or "None."


def _median_seconds(drills: Sequence[Drill]) -> str:
    return f"{statistics.median([float(d.line['seconds']) for d in drills] or [0.0]):.0f}"


def _format_share(n: int, of: int) -> str:
    return f"{n} of {of}" + (f" ({n / of:.0%})" if of else "")


def _format_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    first, *rest = ("| " + " | ".join(str(cell) for cell in line) + " |" for line in (head, *rows))
    return "\n".join([first, "|" + "---|" * len(head), *rest])
