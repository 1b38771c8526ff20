"""The report on many drills, a page of Markdown; a pure function of the result lines."""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from .judge import LATER_S, NAMED, Answer, Help, Judged, Truth, alarms, helped, judge, took_effect, wilson
from .probe import FlowSample

Line = Mapping[str, Any]
_WHOLE = (
    "By family and kind of fault, by confidence, and each miss: `runbook drill report tests/drills.jsonl.gz`, and the"
    " site (`make docs`)."
)
_LEVELS = ("high", "medium", "low", "none")
ANSWERS: tuple[Answer, ...] = ("right", "undecided", "wrong")
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
    def families(self) -> tuple[str, ...]:
        """Families of its faults, and what else it is counted by."""
        return (*self.line["families"], *(["after the end"] if self.over else []))

    @property
    def over(self) -> bool:
        """Whether its faults had ended before the first look."""
        return bool(self.line["scenario"].get("ended_s"))

    @property
    def named(self) -> bool | None:
        """Whether the verdict names what must be restored; None if nothing must, or an action does it."""
        words = self.line.get("restore")
        if not words or self.over or self.help == "helps":
            return None
        return self._names_one([[word] for word in words])

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
        """Return whether one text of the verdict, or of a step, has all words of one of these groups."""
        modes = (self.line["verdict"] or {}).get("failure_modes", ())
        because = [
            b["headline"]["en"] for m in modes if m["score"] >= NAMED for b in m.get("because", ()) if b["headline"]
        ]
        texts = [text.lower() for text in (*because, *self.line.get("said", ()), self.line["headline"])]
        return any(all(word.lower() in text for word in words) for words in groups for text in texts)

    @property
    def confidence(self) -> str:
        """The confidence of the verdict; "none" if there was no verdict."""
        return str((self.line["verdict"] or {}).get("confidence", "none"))

    @property
    def counts(self) -> bool:
        """Whether there was something to find, or nothing of the system was broken at all."""
        return bool(self.effect) or not self.line["truth"] or not self.line["truth"]["modes"]

    @property
    def missed(self) -> bool:
        """Whether the verdict is wrong, or the proposal does not help."""
        return self.answer == "wrong" or self.sure or self.useless


Column = Callable[[Sequence[Drill]], object]


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


def report(lines: Iterable[Line], *, short: bool = False) -> str:
    """Return the page: figures, kinds, calibration, drills without a fault, misses, and what does not count.

    With `short`, the figures alone.
    """
    lines = latest(lines)
    drills = [judged(line) for line in lines if "error" not in line]
    real = [d for d in drills if d.counts and d.kind]
    calm = [d for d in drills if not d.kind]
    parts = [
        "# What the drills show",
        "Random incidents on the sandbox, each with a triage, its first proposal that changes something, and a twin "
        "left alone (`runbook drill report`). "
        f"{_describe_span(lines, drills)}: {len(lines)} played, "
        f"{len(real)} with a fault that took effect, {len(calm)} without a fault.",
        "A verdict is *right* if it names a place and a failure mode that the fault allows (of two faults, either), "
        "and *undecided* if it names several with a right one among them, or none and is not OK. A proposal *helps*, "
        "does *nothing* or *harms* by the flow of the two sandboxes, checked again "
        f"{LATER_S:.0f} s after the proposal if they do not differ. If only the runbook's own view is broken, naming "
        "no place is right; after the end of a fault, naming none.",
        "## In short",
        _format_summary(real, calm),
        "## By family",
        "What a person must restore is named if the verdict's failure modes or its reason name it.",
        _format_answers("family", lambda d: d.families, real, {"names what to restore": _share_named}),
        "## By kind of fault",
        _format_answers("kind", lambda d: [d.kind], real, {name: partial(_count_help, name) for name in _HELP}),
        "## How sure is sure",
        "Drills with a fault; Wilson's bounds, 95 %.",
        _format_answers("confidence", lambda d: [d.confidence], real, {"share right": _share_right}, _LEVELS),
        "## Without a fault",
        _format_answers("noise", lambda d: [d.line["scenario"]["noise"]], calm, {"alarms": _count_alarms}),
        "## Seconds to the verdict",
        _format_durations(drills),
        "## Misses",
        _format_misses([*real, *calm]),
        "## Not counted",
        _format_not_counted(lines, drills),
    ]
    if short:
        parts = [*parts[: parts.index("## By family")], _WHOLE]
    return "\n\n".join(parts) + "\n"


def report_file(lines: Sequence[Line], *, short: bool = False) -> str:
    """Return the page on the lines of a file: of drills, or of plays of knobs."""
    make = report_knobs if any("knobs" in line for line in lines) else report
    return make(lines, short=short)


def join(pages: Sequence[str]) -> str:
    """Return one page: each further one is a chapter of the first."""
    return "\n".join([*pages[:1], *(re.sub(r"^#", "##", page, flags=re.MULTILINE) for page in pages[1:])])


def report_knobs(lines: Iterable[Line], *, short: bool = False) -> str:
    """Return the page on plays of knobs: figures, a row by kind of knob, each miss, and what could not be played.

    With `short`, of each miss only its cause.
    """
    lines = latest(lines)
    plays = [judged(line) for line in lines if "error" not in line]
    hurt = [play for play in plays if play.effect]
    columns: dict[str, Column] = {
        "no effect": lambda own: sum(not play.effect for play in own),
        **{name: partial(_count_effective, name) for name in ANSWERS},
        "sure and wrong": lambda own: sum(play.sure for play in own),
    }
    kinds = (*sorted({knob["kind"] for play in plays for knob in play.line["knobs"]}), "all")
    rows = []
    for kind in kinds:
        own = [play for play in plays if kind in ("all", *(knob["kind"] for knob in play.line["knobs"]))]
        rows.append((kind, len(own), *(column(own) for column in columns.values())))
    parts = [
        "# Knobs",
        "What the servers let a person change, changed at random (`runbook drill knobs`), and a triage. "
        f"{_describe_span(lines, plays)}: {len(lines)} played, {len(hurt)} with an effect on the flow. With an effect, "
        "*right* is a place of the change, or a text that names it; *undecided* are several places with a right one, "
        "or none in a verdict that is not OK or says when to look again. Without one, *right* raises no alarm: no "
        "place, not CRITICAL, no change proposed. Side by side, plays share cores: alone is faster.",
        _format_knob_summary(plays, hurt),
        _format_table(("kind", "plays", *columns), rows),
        "## Not right" if short else "## Misses",
        _format_causes(plays) if short else _format_misses(plays),
        *([] if short else ["## Not played", "\n".join(_format_errors(lines)) or "None."]),
    ]
    return "\n\n".join(parts) + "\n"


def _describe_span(lines: Sequence[Line], drills: Sequence[Drill]) -> str:
    """Return which version was played, of which code, with which seeds."""
    versions = ", ".join(sorted({str(d.line["version"]) for d in drills})) or "none"
    codes, seeds = {str(line.get("code", "")) for line in lines}, [line["seed"] for line in lines]
    which = f"code {codes.pop()}" if len(codes) == 1 and all(codes) else "several states of the code"
    return f"Version {versions}, {which}, seeds {min(seeds)} to {max(seeds)}" if seeds else "No seeds"


def describe(line: Line) -> str:
    """Return what was turned, or the faults, in one line; "" if nothing was broken."""
    knobs = [f"{knob['kind']} {knob['item']}: {knob['value']}" for knob in line.get("knobs", ())]
    return " + ".join(knobs or line["scenario"].get("faults", ()))


def _format_answers(
    key: str,
    names: Callable[[Drill], Collection[str]],
    drills: Sequence[Drill],
    columns: Mapping[str, Column],
    rows: Sequence[str] = (),
) -> str:
    """Return a table of the answers, with a row for each name of drills (`rows`, or all) and further columns."""
    found = []
    for name in rows or (*sorted({name for d in drills for name in names(d)}), "all"):
        own = [d for d in drills if name == "all" or name in names(d)]
        answers = Counter(d.answer for d in own)
        further = [column(own) for column in columns.values()]
        found.append((name, len(own), *(answers[answer] for answer in ANSWERS), *further))
    return _format_table((key, "drills", *ANSWERS, *columns), found)


def _count_help(name: Help, drills: Sequence[Drill]) -> int:
    return sum(d.help == name for d in drills)


def _count_effective(answer: Answer, plays: Sequence[Drill]) -> int:
    return sum(bool(play.effect) and play.answer == answer for play in plays)


def _count_alarms(drills: Sequence[Drill]) -> int:
    return sum(d.line["verdict"] is None or alarms(d.line["verdict"]) for d in drills)


def _share_named(drills: Sequence[Drill]) -> str:
    named = [d.named for d in drills if d.named is not None]
    return _format_share(sum(named), len(named))


def _share_right(drills: Sequence[Drill]) -> str:
    right = sum(d.answer == "right" for d in drills)
    low, high = wilson(right, len(drills))
    return f"{right / len(drills):.0%} ({low:.0%} to {high:.0%})" if drills else "-"


def _format_errors(lines: Iterable[Line]) -> list[str]:
    return [f"- seed {line['seed']}: {line['error']}" for line in lines if "error" in line]


def _format_summary(real: Sequence[Drill], calm: Sequence[Drill]) -> str:
    n, answers = len(real), Counter(d.answer for d in real)
    high = [d for d in real if d.confidence == "high"]
    right = sum(d.answer == "right" for d in high)
    proposed = Counter(d.help for d in (*real, *calm))
    idle = sum(d.help == "nothing" and d.confidence == "high" for d in (*real, *calm))
    rows = [
        ("right", _format_share(answers["right"], n), "at least 92 %"),
        ("right or honestly undecided", _format_share(n - answers["wrong"], n), "at least 97 %"),
        ("undecided", _format_share(answers["undecided"], n), "at most 5 %"),
        (
            "*high* is right",
            f"{_format_share(right, len(high))}, lower bound {wilson(right, len(high))[0]:.0%}",
            "98 %, 95 %",
        ),
        ("names what a person must restore", _share_named(real), "at least 80 %"),
        ("proposals of *high* confidence that do nothing", str(idle), "0"),
        ("proposals that harm", str(proposed["harms"]), "0"),
        ("proposals that help", _format_share(proposed["helps"], sum(proposed[name] for name in _HELP)), ""),
        ("alarms without a fault", _format_share(_count_alarms(calm), len(calm)), "0"),
        ("seconds to the verdict, median", f"{_median_seconds([*real, *calm]):.0f}", "at most 9"),
    ]
    return _format_table(("", "seen", "to reach"), rows)


def _format_knob_summary(plays: Sequence[Drill], hurt: Sequence[Drill]) -> str:
    answers, named = Counter(play.answer for play in hurt), [play.names_knob for play in hurt]
    known, calm = [name for name in named if name is not None], [play for play in plays if not play.effect]
    last = plays[-200:]
    rows = [
        ("right", _format_share(answers["right"], len(hurt)), "at least 85 %"),
        ("right or undecided", _format_share(len(hurt) - answers["wrong"], len(hurt)), "at least 95 %"),
        ("sure and wrong, in the last 200", _format_share(sum(play.sure for play in last), len(last)), "0"),
        ("names what was changed, where a text can", _format_share(sum(known), len(known)), "at least 80 %"),
        ("alarms without an effect", _format_share(sum(p.answer == "wrong" for p in calm), len(calm)), "0"),
        ("seconds to the verdict, median", f"{_median_seconds(plays):.0f}", "at most 8"),
    ]
    return _format_table(("", "seen", "to reach"), rows)


def _median_seconds(drills: Sequence[Drill]) -> float:
    return statistics.median([float(d.line["seconds"]) for d in drills] or [0.0])


def _format_durations(drills: Sequence[Drill]) -> str:
    seconds = sorted(float(d.line["seconds"]) for d in drills)
    if not seconds:
        return "None."
    slow = seconds[min(int(len(seconds) * 0.95), len(seconds) - 1)]
    return f"Median {statistics.median(seconds):.0f}, p95 {slow:.0f}, longest {seconds[-1]:.0f}."


def _format_misses(drills: Iterable[Drill]) -> str:
    return "\n".join(_format_miss(d) for d in drills if d.missed) or "None."


def _format_causes(plays: Iterable[Drill]) -> str:
    """Return each cause of what is not right, with what was turned; what nobody has explained is "unknown"."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for play in plays:
        if play.missed or (play.effect and play.answer != "right"):
            found[f"*{play.answer}*, {play.line.get('cause', 'unknown')}"][describe(play.line)] += 1
    return (
        "\n".join(
            f"- {cause}: " + "; ".join(f"{turned} ({n})" if n > 1 else turned for turned, n in what.items())
            for cause, what in found.items()
        )
        or "None."
    )


def _format_miss(drill: Drill) -> str:
    line, what = drill.line, drill.line["scenario"]
    done = f" {line['proposal']['name']}: {drill.help}." if line["proposal"] else ""
    if drill.answer == "wrong" and line.get("truth"):
        allowed = (name or "no place" for name in (*line["truth"]["places"], *line["truth"]["modes"]))
        done = f" Right: {', '.join(allowed)}.{done}"
    flow = f"flow: {', '.join(drill.effect) or 'not hurt'}" if "knobs" in line else ""
    look = f"first look after {what['look_after_s']:g} s"
    around = ", ".join(filter(None, (flow, what["load"], what["noise"], look)))
    if drill.over:
        around += f" and {what['ended_s']:g} s after the end"
    # The cause is what a person found out afterwards, and wrote into the line of the results.
    cause = f"Cause: {line['cause']}" if line.get("cause") else f"“{line['headline']}”"
    return (
        f"- seed {line['seed']}, {describe(line) or 'no fault'} ({around}): {drill.answer} with "
        f"confidence {drill.confidence}: {_format_verdict(line['verdict'])}.{done} {cause}"
    )


def _format_verdict(verdict: Mapping[str, Any] | None) -> str:
    if verdict is None:
        return "no verdict, no place"
    between = " / ".join([*verdict["undecided"], *verdict.get("between", ())])
    modes = [m["id"] for m in verdict["failure_modes"][:2]]
    return ", ".join([verdict["status"], verdict["stuck_at"] or between or "no place", *modes])


def _format_not_counted(lines: Sequence[Line], drills: Sequence[Drill]) -> str:
    found = _format_errors(lines)
    # What a person wrote of a play that this line stands in the place of.
    found += [f"- seed {line['seed']}, played before: {line['before_that']}" for line in lines if "before_that" in line]
    found += [
        f"- seed {d.line['seed']}, {describe(d.line)}: took no effect"
        + "".join(f"; {problem}" for problem in d.line["problems"])
        for d in drills
        if not d.counts
    ]
    return "\n".join(found) or "None."


def _format_share(n: int, of: int) -> str:
    return f"{n} of {of}" + (f" ({n / of:.0%})" if of else "")


def _format_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    first, *rest = ("| " + " | ".join(str(cell) for cell in line) + " |" for line in (head, *rows))
    return "\n".join([first, "|" + "---|" * len(head), *rest])
