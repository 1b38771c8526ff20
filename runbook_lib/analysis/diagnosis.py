"""Findings -> where the flow breaks, which failure mode, how sure. Pure.

Every finding carries signals: how strongly it speaks for or against a hop or a failure mode. Those for are joined as
independent evidence (noisy-or), one observation once; those against discount it. The first hop, upstream first, whose
score stands out is where the flow is stuck, unless what more than one hop depends on explains it better. Where
something waits too long and none stands out, it is undecided between those that it may be. A failure mode of another
place than that is a consequence rather than the cause, and counts for less; one that an observation excludes is out.

A failure mode is a hypothesis, and remedies belong to hypotheses: what helps none of those that stand is not proposed,
and where two stand that call for different remedies, both are named with the step that would settle it.

What was only not seen speaks for nothing: a source that cannot be reached from here may be in the best of order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Literal, TypeVar

from runbook_lib.analysis.stats import combine
from runbook_lib.catalog import FIRST_RESPONSE, REACHABILITY, Catalog, FailureMode
from runbook_lib.model.finding import (
    LOOK_AGAIN,
    Because,
    Confidence,
    Finding,
    Hop,
    Proposal,
    RankedMode,
    Signal,
    Status,
    Verdict,
    overall,
    replace,
    say,
    worst,
)
from runbook_lib.sources import SourceError

T = TypeVar("T")

#: From this score on a hop counts as broken.
BROKEN = 0.5
#: A hop is only named before a stronger one further down when its own score is near enough.
NEAR = 0.7
#: From this score on a hop may be what something waits for, and evidence against it as strong takes it out.
SUSPECT = 0.3
#: The sources without which no verdict can be complete.
REQUIRED = ("postgres", "jetstream", "nats_monitor")
#: What the score of a failure mode elsewhere is worth once the place is known.
CONSEQUENCE = 0.6


def conclude(findings: Iterable[Finding], book: Catalog) -> Verdict:
    """The verdict of a section, or of all sections of a triage together, over the places and modes of the catalog."""
    findings = list(findings)
    scores = {place: score(findings, place).score for place in book.places}
    stuck_at = _stuck_at(scores, book)
    undecided = () if stuck_at else _undecided(findings, scores, book)
    ranked = _ranked(findings, stuck_at, book)
    stand = [book.failure_modes[m.id] for m in ranked if m.score >= max(BROKEN, NEAR * ranked[0].score)]
    between = _between(stand)
    settled_by = _unsettled(between, findings)
    # What is stuck, or waits, is not in order, even if no single step has seen more than a part of it.
    status = worst([overall(findings), *([Status.WARNING] if stuck_at or undecided else [])])
    pointed = (*(step.rpartition(".")[0] for step in settled_by), *(n for f in findings for n in f.next_sections))
    if status is Status.CRITICAL and not pointed:
        pointed = _reads_on(findings, ranked, book)
    seen = {s.observation for f in findings for s in f.signals}
    again = [v.value for f in findings for v in f.values if v.name.endswith(LOOK_AGAIN) and isinstance(v.value, float)]
    confidence = _confidence(findings, scores, stuck_at, undecided, ranked, between)
    return Verdict(
        status=status,
        stuck_at=stuck_at,
        # What calls itself too early to tell is not sure that nothing is wrong.
        confidence="medium" if again and confidence == "high" and not stuck_at else confidence,
        undecided=undecided,
        unseen=_unique(u for f in findings for u in f.unseen),
        look_again_s=max(again, default=None),
        failure_modes=ranked,
        hops=strip(findings, book.hops),
        next_sections=_unique(pointed),
        proposals=_helping(_first_response(findings, stuck_at, stand), stand, between, ranked, seen, book),
        between=tuple(m.id for m in between),
        settled_by=settled_by,
    )


def score(findings: Iterable[Finding], about: str) -> RankedMode:
    """How strongly the findings speak for a hop or failure mode, and why.

    What several steps tell of one observation is one piece of evidence: a section that asks what another has asked
    makes nothing surer.
    """
    once: dict[object, list[tuple[Finding, Signal]]] = {}
    for f in findings:
        for s in f.signals:
            if s.about == about and s.weight:
                once.setdefault(s.observation or (f.step, len(once)), []).append((f, s))
    because = []
    for told in once.values():
        strongest = max((s for _, s in told), key=lambda s: abs(s.weight))
        because.append(_because("observed", (f for f, _ in told), strongest.observation, strongest.weight))
    weights = [b.weight for b in because]
    whole = combine([w for w in weights if w > 0], [-w for w in weights if w < 0])
    return RankedMode(about, round(whole, 3), tuple(sorted(because, key=lambda b: -b.weight)))


def _because(
    kind: Literal["observed", "excludes", "unseen"],
    findings: Iterable[Finding],
    observation: str,
    weight: float = 0.0,
) -> Because:
    told = list(findings)
    last = told[-1]
    steps = _unique(f.step for f in told)
    return Because(kind, steps, observation, weight, last.headline, last.at, next(iter(last.deciding), None))


def strip(findings: Iterable[Finding], names: Iterable[str]) -> tuple[Hop, ...]:
    """The pipeline, each hop with all that the findings know of it; what nobody asked stays None."""
    hops = {name: Hop(name) for name in names}
    for finding in findings:
        for seen in finding.hops:
            before = hops[seen.name]
            known = {k: v for k, v in vars(seen).items() if v is not None}
            hops[seen.name] = replace(before, **known | {"late": before.late or seen.late})
    return tuple(hops.values())


def signals_of_silence(e: SourceError, book: Catalog) -> tuple[Signal, ...]:
    """What a source's failure says of the source: only what it has told itself, or left unanswered once it was reached.

    That it cannot be reached from here, a refusal of the runbook's own credentials, and a question that the cost gate
    held back say nothing about it: docs/failure-modes.md has no observation `source.code` for them.
    """
    return book.observations.get(f"{e.source}.{e.code}", ())


def _stuck_at(scores: dict[str, float], book: Catalog) -> str | None:
    best = max(scores.values())
    if best < BROKEN:
        return None
    for name, place in sorted(book.places.items(), key=lambda p: (-scores[p[0]], not p[1].under)):
        if place.shared and scores[name] >= max(BROKEN, NEAR * best):
            return name
    return next(hop for hop in book.hops if scores[hop] >= max(BROKEN, NEAR * best))


def _undecided(findings: list[Finding], scores: dict[str, float], book: Catalog) -> tuple[str, ...]:
    """What may hold up that which has waited too long: what the hops where it waits depend on and nothing has cleared.

    Where nothing speaks for any of these, those hops too: who works may all the same have lost what waits.
    """
    late = [hop.name for hop in strip(findings, book.hops) if hop.late]
    under = [name for name, place in book.places.items() if place.under]
    against = {s.about for f in findings for s in f.signals if s.weight <= -SUSPECT}
    may_be = {hop for name in late for hop in (*book.places[name].waits_for, *under) if hop not in against}
    suspected = {hop for hop in scores if late and scores[hop] >= SUSPECT}
    return tuple(hop for hop in (*book.hops, *under) if hop in may_be | (suspected or {*late}))


def _confidence(
    findings: list[Finding],
    scores: dict[str, float],
    stuck_at: str | None,
    undecided: tuple[str, ...],
    ranked: tuple[RankedMode, ...],
    between: Sequence[FailureMode],
) -> Confidence:
    # What harms without stopping the flow (a doubled event) is told by its failure mode alone.
    told_by = stuck_at or (ranked[0].id if ranked and ranked[0].score >= BROKEN else None)
    # A step without an answer, or with a part of it, lowers the confidence, unless its silence is itself evidence
    # for the place.
    others = [f for f in findings if not any(s.about == told_by and s.weight > 0 for s in f.signals)]
    unanswered = [f for f in others if f.status is Status.UNKNOWN]
    in_part = any(q.error and not q.refused and q.source in REQUIRED for f in others for q in f.questions)
    in_part = in_part or any(u.source in REQUIRED for f in others for u in f.unseen)
    levels: tuple[Confidence, ...] = ("none", "low", "medium", "high")
    if told_by is None:
        answered = len(findings) - len(unanswered)
        level = 0 if not answered else 1 if undecided or overall(findings) is Status.CRITICAL else 3
    else:
        told = scores[stuck_at] if stuck_at else ranked[0].score
        level = 3 if told >= 0.85 else 2 if told >= 0.65 else 1
    if unanswered:
        level -= 1 if len(unanswered) * 2 < len(findings) else 2
    elif in_part:
        level -= 1
    if between or undecided:
        level = min(level, 1)
    return levels[max(level, 1 if told_by or undecided else 0)]


def _ranked(findings: list[Finding], stuck_at: str | None, book: Catalog) -> tuple[RankedMode, ...]:
    """The failure modes that something speaks for, the likeliest first; those that are excluded stand at the end."""
    seen: dict[str, list[Finding]] = {}
    for f in findings:
        for s in f.signals:
            seen.setdefault(s.observation, []).append(f)

    def weighed(id_: str) -> RankedMode:
        found, mode = score(findings, id_), book.failure_modes[id_]
        told = {step for b in found.because for step in b.steps}
        because = [
            *found.because,
            *(_because("excludes", seen[o], o) for o in mode.excluded_by if o in seen),
            *(
                _because("unseen", [f], ", ".join(_unique(u.source for u in f.unseen)))
                for f in findings
                if f.step in mode.told_by and f.step not in told and (f.unseen or f.status is Status.UNKNOWN)
            ),
        ]
        if excluded := next((o for o in mode.excluded_by if o in seen), ""):
            return replace(found, score=0.0, because=tuple(because), excluded_by=excluded)
        if stuck_at is not None and stuck_at not in mode.hops:
            because.append(Because("elsewhere", (), stuck_at, CONSEQUENCE, say(f"hop.{stuck_at}")))
            found = replace(found, score=round(found.score * CONSEQUENCE, 3))
        return replace(found, because=tuple(because))

    ranked = [
        weighed(id_) for id_ in _unique(s.about for f in findings for s in f.signals if s.about in book.failure_modes)
    ]
    said = (m for m in ranked if m.score > 0 or (m.excluded_by and any(b.weight > 0 for b in m.because)))
    return tuple(sorted(said, key=lambda m: -m.score))


def _between(stand: Sequence[FailureMode]) -> tuple[FailureMode, ...]:
    """The modes that stand beside the first and call for something else than it does; () where it is decided.

    Where nothing of the runbook's helps a mode, what is to be done is in its own words, and not in those of another.
    What the first leaves behind is no rival: its remedy comes afterwards.
    """
    apart = [m for m in stand[1:] if not {*m.remedies} & {*stand[0].remedies} and stand[0].id not in m.follows]
    return (stand[0], *apart) if apart else ()


def _unsettled(between: Sequence[FailureMode], findings: Iterable[Finding]) -> tuple[str, ...]:
    """The steps that would tell these modes apart and have not been answered."""
    answered = {f.step for f in findings if f.status is not Status.UNKNOWN}
    return _unique(step for mode in between for step in mode.told_by if step not in answered)


def _reads_on(findings: Iterable[Finding], ranked: Sequence[RankedMode], book: Catalog) -> tuple[str, ...]:
    """Where to read on when no finding says so: whoever is told CRITICAL is not left alone with it."""
    ran = {f.step.rpartition(".")[0] for f in findings}
    modes = (n for m in ranked for n in book.failure_modes[m.id].sections)
    further = (n for n in (*modes, FIRST_RESPONSE, REACHABILITY) if n in book.sections and n not in ran)
    return tuple(islice(further, 1))


def _helping(
    proposals: Iterable[Proposal],
    stand: Sequence[FailureMode],
    between: Sequence[FailureMode],
    ranked: Sequence[RankedMode],
    seen: set[str],
    book: Catalog,
) -> tuple[Proposal, ...]:
    """Without the remedies of what does not stand, and without any while it is undecided; what only looks stays.

    Where nothing helps the likeliest, that of one less likely is none either. Where nothing stands a step may know
    better: only what helps nothing but excluded modes goes. What an observation forbids goes whatever stands.
    """
    out = {m.id for m in ranked if m.excluded_by}
    forbidden = {name for observation in seen for name in book.forbids.get(observation, ())}

    def helps(p: Proposal) -> bool:
        if p.name in forbidden:
            return False
        modes = [m for m in book.failure_modes.values() if p.name in m.remedies]
        if not modes:
            return True
        if not stand:
            return any(m.id not in out for m in modes)
        return not between and bool(stand[0].remedies) and any(m in stand for m in modes)

    return tuple(filter(helps, proposals))


def _first_response(
    findings: list[Finding], stuck_at: str | None, stand: Sequence[FailureMode]
) -> tuple[Proposal, ...]:
    """Each proposal once; first those of steps that know a remedy of the likeliest mode or speak for the broken hop."""

    def later(f: Finding) -> tuple[bool, bool]:
        knows = any(p.name in mode.remedies for mode in stand[:1] for p in f.proposals)
        return not knows, not any(s.about == stuck_at and s.weight > 0 for s in f.signals)

    ordered = [p for f in sorted(findings, key=later) for p in f.proposals]
    return tuple({p.command: p for p in reversed(ordered)}[c] for c in dict.fromkeys(p.command for p in ordered))


def _unique(items: Iterable[T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(items))
