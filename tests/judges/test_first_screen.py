"""The first screen agrees with itself, whatever the findings are: the rules that no judge can break."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from runbook_lib.book import catalog, messages, pack
from runbook_lib.checks.check import Check, checks
from runbook_lib.diagnosis import verdict as diagnosis
from runbook_lib.diagnosis.evidence import REPORT, strip
from runbook_lib.diagnosis.verdict import BROKEN
from runbook_lib.model.finding import (
    Finding,
    Hop,
    Reason,
    Signal,
    Status,
    Threshold,
    Unseen,
    Value,
    judged,
    overall,
    say,
)
from runbook_lib.model.frames import row
from runbook_lib.view import render
from tests.kit.steps import make_given, words

BOOK = catalog.load()
REQUIRED = sorted(pack.active_runbook().required)
HOPS, DATABASE = BOOK.hops, "database"
BAD = (Status.WARNING, Status.CRITICAL)

numbers = st.floats(0, 1e6, allow_nan=False).map(lambda n: round(n, 2))
values = st.builds(
    lambda name, value, limits, below: Value(name, value, "s", Threshold(name, "s", limits[0], limits[1], below)),
    st.sampled_from(["backlog.due", "burn.slow", "outbox.failed"]),
    numbers,
    st.tuples(numbers, numbers),
    st.booleans(),
)
#: Sentences that show a number, one of another, or none.
headlines = st.one_of(
    st.just(say("response.no_impact")),
    st.just(say("backlog.empty")),
    st.builds(lambda n, age: say("backlog.flowing", due=n, oldest=age), numbers, numbers),
)
hops = st.builds(
    Hop, st.sampled_from(HOPS), waiting=numbers, oldest_s=st.one_of(st.none(), numbers), late=st.booleans()
)
signals = st.builds(
    Signal,
    st.sampled_from([*HOPS, DATABASE, "FM-NOTI-06", "FM-NATS-04"]),
    st.floats(-1, 1, allow_nan=False),
    st.sampled_from(sorted(BOOK.observations)),
)
unseen = st.builds(Unseen, st.sampled_from([*REQUIRED, "prometheus"]), st.sampled_from(list(Reason)))


@st.composite
def findings(draw: st.DrawFn, *, least: int = 0, most_signals: int = 4) -> list[Finding]:
    """Draw findings that have `least` values, hops and unseen sources each, or more."""
    found = []
    for n in range(draw(st.integers(1, 5))):
        made = judged(
            draw(headlines),
            draw(st.lists(values, min_size=least, max_size=3)),
            at_least=draw(st.sampled_from(Status)),
            hops=tuple(draw(st.lists(hops, min_size=least, max_size=3))),
            signals=tuple(draw(st.lists(signals, max_size=most_signals))),
            next_sections=tuple(draw(st.lists(st.sampled_from(["2", "4.1", "4.3", "5.1"]), max_size=3))),
            unseen=tuple(draw(st.lists(unseen, min_size=least, max_size=2))),
        )
        about = Check(f"9.{n}", lambda rb: {}, lambda frames, given, made=made: made)  # type: ignore[misc]
        found.append(about.finding({"read": row(n=1)}, make_given()))
    return found


@given(findings(least=1))
def test_the_headline_names_the_value_that_decided(found: list[Finding]) -> None:
    for f in found:
        words(f)
    decided = [(f, [v for v in f.values if v.status is f.status]) for f in found if f.status in BAD]
    assume(any(deciding for _, deciding in decided))
    for f, deciding in decided:
        said = {round(n, 6) for n in messages.shown(f.headline) if isinstance(n, float)}
        near = [n for v in deciding for n in said if isinstance(v.value, float) and abs(n - v.value) <= 0.01 * n]
        assert near or not deciding or {v.name for v in deciding} & set(messages.shown(f.headline))


@given(findings(least=1, most_signals=1))
def test_whoever_waits_has_a_place_or_an_undecided_between(found: list[Finding]) -> None:
    verdict = diagnosis.conclude(found, BOOK)
    waits = [h for f in found for h in f.hops if h.late]
    assume(waits and verdict.stuck_at is None)
    assert verdict.undecided
    against = {s.about for f in found for s in f.signals if s.weight < 0}
    for hop in waits:
        assert {*BOOK.places[hop.name].waits_for, DATABASE} & {*verdict.undecided, *against}
    if not any(m.score >= BROKEN for m in verdict.failure_modes):
        for lang in messages.LANGUAGES:
            with messages.using(lang):
                assert messages.text(say(f"hop.{verdict.undecided[0]}")) in render.location(verdict)


@given(findings(least=1))
def test_a_place_that_is_stuck_or_undecided_is_never_ok(found: list[Finding]) -> None:
    verdict = diagnosis.conclude(found, BOOK)
    assume(verdict.stuck_at or verdict.undecided)
    assert verdict.status is not Status.OK
    assert "othing" not in render.location(verdict)


def test_what_one_witness_accuses_does_not_explain_what_waits_elsewhere() -> None:
    told = judged(say("response.no_impact"), signals=(Signal("relay", REPORT, "sends.refused"),))
    waits = judged(say("response.no_impact"), hops=(Hop("producer", late=True),))
    accused = diagnosis.conclude([told], BOOK).undecided
    assert "relay" in accused and not {*BOOK.places["producer"].waits_for, DATABASE} & {*accused}
    assert {*BOOK.places["producer"].waits_for, *accused} < {*diagnosis.conclude([told, waits], BOOK).undecided}


@given(findings(least=1, most_signals=1))
def test_what_was_not_seen_is_said_and_never_sure(found: list[Finding]) -> None:
    verdict = diagnosis.conclude(found, BOOK)
    missing = {u.source for f in found for u in f.unseen if u.source in REQUIRED}
    assert verdict.status.rank >= overall(found).rank
    assume(missing and not verdict.stuck_at and not verdict.failure_modes)
    assert all(source in render.location(verdict) for source in missing)
    assert verdict.confidence != "high"


@given(findings())
def test_a_section_that_a_finding_points_to_is_pointed_to_by_the_verdict(found: list[Finding]) -> None:
    """So triage starts it at once, and never one that the verdict would not name."""
    assert {n for f in found for n in f.next_sections} <= {*diagnosis.conclude(found, BOOK).next_sections}


@given(findings())
def test_a_provisional_strip_never_looks_like_a_verdict(found: list[Finding]) -> None:
    title_of, known = say("ui.provisional_of", done=1, of=9), strip(found, HOPS)
    for lang in messages.LANGUAGES:
        with messages.using(lang):
            title, *shown = render.provisional_lines(title_of, known)
        assert not {*" ".join([title, *shown])} & {*render.MARKS.values()} - {"?"}
        assert not any(status.name in line for status in Status for line in [title, *shown])
        unknown = messages.text(say("ui.not_known_yet"), lang)
        named = {h.name for f in found for h in f.hops}
        assert len([line for line in shown if unknown in line]) == len(HOPS) - len(named)


@given(findings())
def test_sure_is_said_once(found: list[Finding]) -> None:
    """The verdict's line alone has the confidence: a step that said another one would contradict it."""
    verdict = diagnosis.conclude(found, BOOK)
    lines = [*render.verdict_lines(verdict), *(render.finding_line(f) for f in found)]
    assert sum("confidence" in line for line in lines) == 1


@given(findings())
def test_3_2_says_of_its_parts_what_the_verdict_says(found: list[Finding]) -> None:
    """3.2 beside a 3.1 that counts people who wait: no "nothing is stuck", and no OK over a place."""
    impact = Finding("3.1", Status.WARNING, say("response.no_impact"), hops=tuple(h for f in found for h in f.hops))
    place = checks()["3.2"].judge({}, make_given(earlier=(impact,)))
    late = any(h.late for h in impact.hops)
    assert place.headline.key in (
        ("response.undecided",) if late else ("response.not_seen", "response.unclear", "response.undecided")
    )
    assert place.status is not Status.OK
    words(place)
