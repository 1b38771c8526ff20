"""Diagnosis: from findings to the stuck hop, the failure modes and the confidence; pure functions.

If rows wait too long and no hop stands out, the verdict is undecided between the candidates. A failure mode of another
hop is a consequence rather than the cause and counts for less; a mode that an observation excludes is out.

A failure mode is a hypothesis, and remedies belong to hypotheses: a proposal that helps none of the remaining modes is
dropped. If two remaining modes need different remedies, both are named with the step that would decide.

A source that cannot be read is no evidence: it may be healthy, and only unreachable from here.

A program is restarted only after its own side was read (its log, its variables, its connections). Until then the
confidence of a verdict that proposes it is at most medium, and the step that reads it is the next question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice

from runbook_lib.book import pack
from runbook_lib.book.catalog import Catalog, FailureMode, OwnSide
from runbook_lib.diagnosis.evidence import REPORT, SIGN, drop_contradicted, score, score_reason, strip, unique
from runbook_lib.model.finding import (
    LOOK_AGAIN,
    Confidence,
    Finding,
    OutageEnd,
    Proposal,
    RankedMode,
    Reason,
    ScoreReason,
    Status,
    Verdict,
    hop_text,
    overall,
    replace,
    worst,
)

#: From this score on a hop counts as broken.
BROKEN = 0.5
#: A hop is only named before a stronger one further down when its own score is near enough.
NEAR = 0.8
#: From this score on a hop may be what something waits for, and evidence against it as strong takes it out.
SUSPECT = 0.3
#: How the observations begin that something differs from what it was while all was well.
CHANGED = "changed."
#: Why a source was not read that may be away for everybody.
OUT_OF_REACH = (Reason.UNREACHABLE, Reason.TIMEOUT)
#: What the score of a failure mode elsewhere is worth once the place is known.
CONSEQUENCE = 0.6


def conclude(findings: Iterable[Finding], book: Catalog) -> Verdict:
    """Return the verdict of a section, or of all sections of a triage together."""
    findings, contradicted = drop_contradicted(findings, book)
    places = {place: score(findings, place, book) for place in book.places}
    scores = {name: place.score for name, place in places.items()}
    found = _find_places(scores, book)
    stuck_at = found[0] if len(found) == 1 else None
    accused = () if stuck_at else found or _find_accused(findings, scores, book)
    undecided = () if stuck_at else unique((*accused, *_find_candidates(findings, scores, accused, book)))
    ranked = _rank_modes(findings, stuck_at, book)
    stand = _find_standing({m.id: m.score for m in ranked}, book)
    between = _find_rivals(stand)
    seen = {s.observation for f in findings for s in f.signals}
    confidence = _rate_confidence(findings, stuck_at, undecided, ranked, between, book)
    doubtful = (stuck_at,) if stuck_at and confidence == "low" else undecided
    seen_broken = any(f.status in (Status.WARNING, Status.CRITICAL) for f in findings)
    away = not (undecided or (stuck_at and seen_broken)) and _misses_a_required_source(findings, OUT_OF_REACH)
    if away:
        doubtful = tuple(name for name, place in book.places.items() if place.under)
    settled_by = _find_settling_steps(between or _find_modes_at(doubtful, seen, book), findings, book)
    if away:
        # The services' logs tell whether it is away for everybody; other steps would not reach it either.
        settled_by = tuple(s for s in settled_by if sections_of([s]) == (book.section_with("logs"),))
    # What is stuck, or waits, is not in order, even if no single step has seen more than a part of it.
    proposals = _order_proposals(findings, stuck_at, stand)
    proposals = _filter_proposals(proposals, findings, stand, between, accused, undecided, ranked, seen, book)
    unread = _find_unread_steps(proposals, findings, book)
    tried = {f.step for f in findings} | {u.source for f in findings for u in f.unseen}
    settled_by = unique((*settled_by, *(step for step, source in unread.items() if tried.isdisjoint((step, source)))))
    # What calls itself too early to tell is not sure that nothing is wrong.
    again = [v.value for f in findings for v in f.values if v.name.endswith(LOOK_AGAIN) and isinstance(v.value, float)]
    if confidence == "high" and (unread or (again and not stuck_at)):
        confidence = "medium"
    status = worst([overall(findings), *([Status.WARNING] if stuck_at or undecided else [])])
    hops = strip(findings, book.hops)
    if status is Status.UNKNOWN and any(hop.late for hop in hops) and _is_silent(findings, stuck_at):
        status = Status.CRITICAL
    pointed = (*sections_of(settled_by[:1] if between else ()), *(n for f in findings for n in f.next_sections))
    if status is Status.CRITICAL and not pointed:
        pointed = _suggest_section(findings, ranked, book)
    ended = None if stuck_at or undecided or again else _find_outage_end(findings, status)
    if ended and (recovery := book.section_with("recover")):
        pointed = (recovery, *pointed)
    return Verdict(
        status=status,
        stuck_at=stuck_at,
        confidence=confidence,
        undecided=undecided,
        unseen=unique(u for f in findings for u in f.unseen),
        look_again_s=max(again, default=None),
        failure_modes=ranked,
        hops=hops,
        next_sections=unique(pointed),
        proposals=proposals,
        between=tuple(m.id for m in between),
        settled_by=settled_by,
        ended=ended,
        places=tuple(places[name] for name in ((stuck_at,) if stuck_at else undecided)),
        contradicted=tuple(score_reason("contradicted", [f], name) for name, f in contradicted.items()),
        read_first=tuple(unread),
    )


def _find_outage_end(findings: Sequence[Finding], status: Status) -> OutageEnd | None:
    """Return the end of an outage if each finding that is not OK only shows what the outage left, else None."""
    left = [f.ended for f in findings if f.counts and f.status is not Status.OK]
    if status is not Status.WARNING or None in left:
        return None
    last = max(filter(None, left), key=lambda e: e.since, default=None)
    return last and replace(last, after=next((f.ended.after for f in findings if f.ended and f.ended.after), None))


def _find_places(scores: Mapping[str, float], book: Catalog) -> tuple[str, ...]:
    """Return the hop that stands out by its score; several if there are only signs of each; () if there is none."""
    best = max(scores.values())
    if best < BROKEN:
        return ()
    near = [name for name in book.places if scores[name] >= max(BROKEN, NEAR * best)]
    shared = [name for name in near if book.places[name].shared]
    if shared:
        return (max(shared, key=lambda name: (scores[name], book.places[name].under)),)
    return tuple(near if best <= SIGN else near[:1])


def _is_silent(findings: Iterable[Finding], stuck_at: str | None) -> bool:
    """Return whether a step was not answered because of what is broken at the stuck hop."""
    unanswered = (f for f in findings if f.status is Status.UNKNOWN)
    return any(s.about == stuck_at and s.weight >= BROKEN for f in unanswered for s in f.signals)


def _find_accused(findings: list[Finding], scores: dict[str, float], book: Catalog) -> tuple[str, ...]:
    """Return a place that only one other place reports as broken, and the reporter before it; () if there is none.

    The reporter, the way between them or the accused may be what is broken. What the runbook alone has not reached is
    not accused.
    """
    for place in (name for name in book.places if scores[name] == REPORT):
        reporters = {b.witness for b in score(findings, place, book).because if b.weight == REPORT}
        if named := [name for name in book.places if name in reporters]:
            return unique((*named, place))
    return ()


def _find_candidates(
    findings: list[Finding], scores: dict[str, float], accused: Collection[str], book: Catalog
) -> tuple[str, ...]:
    """Return the hops that may block the rows which have waited too long, and do not wait for what is accused.

    The rows wait for these, unless evidence clears them. If there is no evidence for any of them, the hops where the
    rows wait are candidates too, since a running worker may have lost rows.
    """
    under = [name for name, place in book.places.items() if place.under]
    late = [
        hop.name
        for hop in strip(findings, book.hops)
        if hop.late and {hop.name, *book.places[hop.name].waits_for, *under}.isdisjoint(accused)
    ]
    against = {s.about for f in findings for s in f.signals if s.weight <= -SUSPECT}
    may_be = {hop for name in late for hop in (*book.places[name].waits_for, *under) if hop not in against}
    suspected = {hop for hop in scores if late and scores[hop] >= SUSPECT}
    return tuple(hop for hop in (*book.hops, *under) if hop in may_be | (suspected or {*late}))


def _rate_confidence(
    findings: list[Finding],
    stuck_at: str | None,
    undecided: tuple[str, ...],
    ranked: tuple[RankedMode, ...],
    between: Sequence[FailureMode],
    book: Catalog,
) -> Confidence:
    # What harms without stopping the flow (a doubled event) is told by its failure mode alone.
    told_by = stuck_at or (ranked[0].id if ranked and ranked[0].score >= BROKEN else None)
    # A step without an answer, or with a part of it, lowers the confidence, unless its silence is itself evidence
    # for the place.
    others = [f for f in findings if not any(s.about == told_by and s.weight > 0 for s in f.signals)]
    unanswered = [f for f in others if f.status is Status.UNKNOWN]
    required = pack.active_runbook().required
    in_part = any(q.error and not q.refused and q.source in required for f in others for q in f.queries)
    in_part = in_part or _misses_a_required_source(others)
    levels: tuple[Confidence, ...] = ("none", "low", "medium", "high")
    if told_by is None:
        answered = len(findings) - len(unanswered)
        level = 0 if not answered else 1 if undecided or overall(findings) is Status.CRITICAL else 3
    else:
        told = score(findings, stuck_at, book) if stuck_at else ranked[0]
        level = 3 if told.score > SIGN else 2 if sum(b.weight >= REPORT for b in told.because) > 1 else 1
        if stuck_at and not any(m.score > BROKEN and stuck_at in book.failure_modes[m.id].hops for m in ranked):
            level = 1  # where it is, and not what
    if unanswered:
        level -= 1 if len(unanswered) * 2 < len(findings) else 2
    elif in_part:
        level -= 1
    if between or undecided:
        level = min(level, 1)
    return levels[max(level, 1 if told_by or undecided else 0)]


def _misses_a_required_source(findings: Iterable[Finding], reasons: Collection[Reason] | None = None) -> bool:
    required = pack.active_runbook().required
    unseen = (u for f in findings for u in f.unseen if u.source in required)
    return any(reasons is None or u.reason in reasons for u in unseen)


def _rank_modes(findings: list[Finding], stuck_at: str | None, book: Catalog) -> tuple[RankedMode, ...]:
    """Return the failure modes that have evidence, the likeliest first and the excluded ones last."""
    seen: dict[str, list[Finding]] = {}
    for f in findings:
        for s in f.signals:
            seen.setdefault(s.observation, []).append(f)

    def weighed(id_: str) -> RankedMode:
        found, mode = score(findings, id_, book), book.failure_modes[id_]
        told = {step for b in found.because for step in b.steps}
        because = [
            *found.because,
            *(score_reason("excludes", seen[o], o) for o in mode.excluded_by if o in seen),
            *(
                score_reason("unseen", [f], ", ".join(unique(u.source for u in f.unseen)))
                for f in findings
                if f.step in mode.told_by and f.step not in told and (f.unseen or f.status is Status.UNKNOWN)
            ),
        ]
        if excluded := next((o for o in mode.excluded_by if o in seen), ""):
            return replace(found, score=0.0, because=tuple(because), excluded_by=excluded)
        if stuck_at is not None and stuck_at not in mode.hops:
            because.append(ScoreReason("elsewhere", (), stuck_at, CONSEQUENCE, hop_text(stuck_at)))
            found = replace(found, score=round(found.score * CONSEQUENCE, 3))
        return replace(found, because=tuple(because))

    told = {s.about for f in findings for s in f.signals}
    ranked = [weighed(id_) for id_ in book.failure_modes if id_ in told]  # of equal ones the first in the document
    said = (m for m in ranked if m.score > 0 or (m.excluded_by and any(b.weight > 0 for b in m.because)))
    return tuple(sorted(said, key=lambda m: (-m.score, -sum(b.weight > 0 for b in m.because))))


def _find_standing(scores: Mapping[str, float], book: Catalog) -> list[FailureMode]:
    """Return the modes whose score stands beside that of the first one."""
    least = max([BROKEN, *(NEAR * score for score in scores.values())])
    return [book.failure_modes[id_] for id_, score in scores.items() if score >= least]


def _find_rivals(stand: Sequence[FailureMode]) -> tuple[FailureMode, ...]:
    """Return the first mode and those that need a different remedy; () if the first one is decided.

    A mode without remedies has its mitigation in its own text, so it differs from every other mode. A mode that follows
    from the first one is no rival: its remedy comes afterwards.
    """
    apart = [m for m in stand[1:] if not {*m.remedies} & {*stand[0].remedies} and stand[0].id not in m.follows]
    return (stand[0], *apart) if apart else ()


def _find_modes_at(undecided: Collection[str], seen: set[str], book: Catalog) -> tuple[FailureMode, ...]:
    """Return the modes that usually sit at one of these hops and that no observation excludes."""
    modes = book.failure_modes.values()
    return tuple(m for m in modes if m.hops[0] in undecided and not seen & {*m.excluded_by})


def _find_settling_steps(
    candidates: Sequence[FailureMode], findings: Iterable[Finding], book: Catalog
) -> tuple[str, ...]:
    """Return the steps that can tell these modes apart and did not run yet.

    A step that ran without an answer lacks the same fact when it is run again. The first one tells most candidates per
    second that its section takes.
    """
    ran = {f.step for f in findings}
    told = Counter(step for mode in candidates for step in mode.told_by if step not in ran)
    seconds = {step: book.sections[section].seconds for step in told for section in sections_of([step])}
    return tuple(sorted(told, key=lambda step: seconds[step] / told[step]))


def sections_of(steps: Iterable[str]) -> tuple[str, ...]:
    """Return the sections of steps, each once."""
    return unique(step.rpartition(".")[0] for step in steps)


def _suggest_section(findings: Iterable[Finding], ranked: Sequence[RankedMode], book: Catalog) -> tuple[str, ...]:
    """Return the section to read next if no finding names one: CRITICAL never stands without a next section."""
    ran = {f.step.rpartition(".")[0] for f in findings}
    modes = (n for m in ranked for n in book.failure_modes[m.id].sections)
    general = (book.section_with(role) for role in ("triage", "reach"))
    further = (n for n in (*modes, *general) if n in book.sections and n not in ran)
    return tuple(islice(further, 1))


def _filter_proposals(
    proposals: Iterable[Proposal],
    findings: Sequence[Finding],
    stand: Sequence[FailureMode],
    between: Sequence[FailureMode],
    accused: Sequence[str],
    undecided: Sequence[str],
    ranked: Sequence[RankedMode],
    seen: set[str],
    book: Catalog,
) -> tuple[Proposal, ...]:
    """Drop the remedies of what does not stand, and all of them while it is undecided; what only looks stays.

    Between a reporter and the part that it accuses, only what helps each of them is proposed.

    If the likeliest mode has no remedy, the remedies of less likely modes are dropped too. If no mode remains, all
    remedies are dropped while the place is undecided, else only those of excluded modes. A proposal that an observation
    forbids is always dropped. An action that is no mode's remedy helps what its step speaks for.
    """
    out = {m.id for m in ranked if m.excluded_by}
    forbidden = {name for observation in seen for name in book.forbids.get(observation, ())}

    def helps(p: Proposal) -> bool:
        if p.name in forbidden:
            return False
        modes = [m for m in book.failure_modes.values() if p.name in m.remedies]
        if not modes:
            spoken_for = _find_modes_behind(p, findings, book) if p.guarded else set[str]()
            return not stand or not spoken_for or any(m.id in spoken_for for m in stand)
        if accused:
            return all(any(place in m.hops and m.id not in out for m in modes) for place in accused)
        if not stand:
            return not undecided and any(m.id not in out for m in modes)
        return not between and bool(stand[0].remedies) and any(m in stand for m in modes)

    return tuple(filter(helps, proposals))


def _find_modes_behind(proposal: Proposal, findings: Iterable[Finding], book: Catalog) -> set[str]:
    """Return the modes that each step with the proposal speaks for: one that repeats others speaks for theirs too."""
    with_it = (f for f in findings if proposal.command in (p.command for p in f.proposals))
    told = ({s.about for s in f.signals if s.weight > 0 and s.about in book.failure_modes} for f in with_it)
    return set[str].intersection(*found) if (found := [*filter(None, told)]) else set()


def _find_unread_steps(proposals: Iterable[Proposal], findings: Collection[Finding], book: Catalog) -> dict[str, str]:
    """Return the steps that read a program's own side before its restart, with their source, if none read all of it."""
    needed = (book.read_first[p.name] for p in proposals if p.name in book.read_first)

    def is_read(side: OwnSide) -> bool:
        """Return whether a finding has the observation and misses nothing of the source."""
        by = [f for f in findings if f.step in side.steps and all(u.source != side.source for u in f.unseen)]
        return any(s.observation == side.observation for f in by for s in f.signals)

    return {side.steps[0]: side.source for side in needed if not is_read(side)}


def _order_proposals(
    findings: list[Finding], stuck_at: str | None, stand: Sequence[FailureMode]
) -> tuple[Proposal, ...]:
    """Return each proposal once, first of the steps with a remedy of the likeliest mode or evidence for the stuck hop.

    That mode's remedies stand among themselves as its entry lists them: what another needs at its start comes first.
    """
    remedies = stand[0].remedies if stand else ()

    def later(f: Finding) -> tuple[bool, bool]:
        knows = any(p.name in remedies for p in f.proposals)
        return not knows, not any(s.about == stuck_at and s.weight > 0 for s in f.signals)

    once: dict[str, Proposal] = {}
    for p in (p for f in sorted(findings, key=later) for p in f.proposals):
        once.setdefault(p.command, p)
    steps = iter(sorted((p for p in once.values() if p.name in remedies), key=lambda p: remedies.index(p.name)))
    return tuple(next(steps) if p.name in remedies else p for p in once.values())
