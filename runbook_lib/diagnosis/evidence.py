"""What evidence counts, and how strong it is for a place or a failure mode; pure functions.

Every finding carries signals: evidence for a hop or a failure mode, as strong as the class of its observation
(observations.md). Four sentences decide:

- What works, or waits for another, is cleared of what only seemed to be wrong with it, and of what others report.
- A difference counts only while something is late.
- The strongest evidence wins: a part's own word before its silence, that before a report, that before the past.
- Among equals, a dependency of several hops is named, else the first hop upstream.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Literal, TypeVar

from runbook_lib.book.catalog import CLASSES, Catalog, Observation
from runbook_lib.model.finding import Finding, Hop, RankedMode, ScoreReason, Signal, Status, replace
from runbook_lib.sources.source import SourceError

T = TypeVar("T")

#: Evidence that is as strong as this is sure only beside other evidence.
SIGN = CLASSES["sign"].weight
#: What one part reports of another proves less than this: the reporter, or the way between them, may be broken.
REPORT = CLASSES["report"].weight


def drop_contradicted(findings: Iterable[Finding], book: Catalog) -> tuple[list[Finding], dict[str, Finding]]:
    """Return the findings without evidence that does not count, and by its observation the finding that shows why.

    A place that works, then or later, or waits for another, is cleared of what seemed to be wrong with it. What only
    differs counts while something is late. A finding whose evidence for a cause is all dropped proposes nothing, unless
    its own step has seen both, and is a warning at most if something only differed.
    """
    findings = list(findings)
    seen: dict[str, Finding] = {}
    for f in findings:
        for s in f.signals:
            last = seen.setdefault(s.observation, f)
            if last.at is not None and f.at is not None and f.at > last.at:
                seen[s.observation] = f
    late = any(hop.late for hop in strip(findings, book.hops))
    known = {name: o for name in seen if (o := book.observations.get(name)) and not (late and o.kind.passes)}
    passes = next((seen[name] for name, o in known.items() if o.kind.passes), None)

    def find_clearing(about: str, found: Finding) -> Finding | None:
        clearing = [(seen[name], o) for name, o in known.items() if o.clears(about)]
        by = [f for f, o in clearing if o.explains or _is_later(f, found)]
        return found if found in by else next(iter(by), None)

    dropped: dict[tuple[str, str], Finding] = {}
    for name, observation in known.items():
        about = [s.about for s in observation.signals if s.weight > 0]
        places = [each for each in about if each in book.places]
        if observation.kind.while_late and passes and places:
            dropped |= {(name, each): passes for each in about}
        elif observation.kind.cleared:
            cleared = {each: by for each in about if (by := find_clearing(each, seen[name]))}
            if places and cleared.keys() >= {*places}:
                cleared = dict.fromkeys(about, cleared[places[0]])
            dropped |= {(name, each): by for each, by in cleared.items()}
    whole = {name: dropped[key] for name, o in known.items() if (key := _dropped_whole(o, dropped))}
    outdated = [name for name in seen if name not in known and name in book.observations]
    return [_drop_evidence(f, dropped, outdated, book) for f in findings], whole


def _is_later(now: Finding, then: Finding) -> bool:
    return now.at is None or then.at is None or now.at >= then.at


def _dropped_whole(observation: Observation, dropped: Mapping[tuple[str, str], Finding]) -> tuple[str, str] | None:
    """Return what was dropped first of an observation of which nothing is left; None if something is, or never was."""
    supports = [(observation.name, s.about) for s in observation.signals if s.weight > 0]
    return supports[0] if supports and all(key in dropped for key in supports) else None


def _drop_evidence(
    found: Finding, dropped: Mapping[tuple[str, str], Finding], outdated: Collection[str], book: Catalog
) -> Finding:
    gone = [s for s in found.signals if s.weight > 0 and (s.observation, s.about) in dropped]
    kept = tuple(s for s in found.signals if s not in gone and s.observation not in outdated)
    if not gone or any(s.weight > 0 for s in kept):
        return replace(found, signals=kept)
    differs = any(book.observations[s.observation].kind.while_late for s in gone)
    by_itself = all(dropped[s.observation, s.about] is found for s in gone)
    return replace(
        found,
        signals=kept,
        proposals=found.proposals if by_itself else (),
        status=Status.WARNING if differs and found.status is Status.CRITICAL else found.status,
    )


def score(findings: Iterable[Finding], about: str, book: Catalog) -> RankedMode:
    """Return the score of a hop or failure mode from the findings, and the reasons for it: its strongest evidence.

    Reports of two different parts about a third one are together as strong as a sign.
    """
    once: dict[object, list[tuple[Finding, Signal]]] = {}
    for f in findings:
        for s in f.signals:
            if s.about == about and s.weight:
                once.setdefault(s.observation or len(once), []).append((f, s))
    because = []
    for told in once.values():
        strongest = max((s for _, s in told), key=lambda s: abs(s.weight))
        reason = score_reason("observed", (f for f, _ in told), strongest.observation, strongest.weight)
        because.append(replace(reason, witness=book.reporter(strongest.observation, about)))
    whole = max((b.weight for b in because if b.weight > 0), default=0.0)
    if whole == REPORT and len({b.witness for b in because if b.weight == REPORT}) > 1:
        whole = SIGN
    return RankedMode(about, whole, tuple(sorted(because, key=lambda b: -b.weight)))


def score_reason(
    kind: Literal["observed", "excludes", "contradicted", "unseen"],
    findings: Iterable[Finding],
    observation: str,
    weight: float = 0.0,
) -> ScoreReason:
    """Return why something counts or does not, in the words of the last of the findings that show it."""
    told = list(findings)
    last = told[-1]
    steps = unique(f.step for f in told)
    return ScoreReason(kind, steps, observation, weight, last.headline, last.at, next(iter(last.deciding), None))


def strip(findings: Iterable[Finding], names: Iterable[str]) -> tuple[Hop, ...]:
    """Return the hops of the pipeline with all that the findings know of each; a number that no step read is None."""
    hops = {name: Hop(name) for name in names}
    for finding in findings:
        for seen in finding.hops:
            before = hops[seen.name]
            known = {k: v for k, v in vars(seen).items() if v is not None}
            hops[seen.name] = replace(before, **known | {"late": before.late or seen.late})
    return tuple(hops.values())


def evidence_from_error(e: SourceError, book: Catalog) -> tuple[Signal, ...]:
    """Return the evidence that a source's failure is about the source itself.

    A source that cannot be reached, a refusal of the runbook's own credentials, and a query that the cost gate stopped
    are no evidence about it: observations.md has no observation `source.code` for them.
    """
    return book.signals(f"{e.source}.{e.code}")


def unique(items: Iterable[T]) -> tuple[T, ...]:
    """Return the items, each once, in their order."""
    return tuple(dict.fromkeys(items))
