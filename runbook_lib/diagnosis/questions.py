"""Ask further questions while a verdict is undecided: one at a time, within the budget of numbers.md."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from runbook_lib.book.catalog import Catalog
from runbook_lib.book.parameters import declared_names
from runbook_lib.diagnosis.evidence import unique
from runbook_lib.diagnosis.verdict import SUSPECT, conclude
from runbook_lib.model.finding import Answer, Finding, Verdict


def ask_until_decided(
    look: Callable[[], Iterable[Finding]],
    options: Callable[[Verdict], Iterable[str]],
    ask: Callable[[str], Iterable[Finding]],
    book: Catalog,
    now: Callable[[], float],
    answers: tuple[Answer, ...] = (),
) -> Verdict:
    """Ask until the verdict is decided, no question is left, or the budget is used up; return the verdict.

    `look` returns all findings so far, `options` the questions that may decide a verdict, the next one first, and `ask`
    the new findings of one. `now` is in seconds; `answers` are those to earlier questions.
    """
    verdict, begun, asked = replace(conclude(look(), book), asked=answers), now(), 0
    while asked < book.numbers.get("settle.questions", 0) and now() - begun < book.numbers.get("settle.time", 0):
        if (question := next(iter(options(verdict)), None)) is None:
            break
        earlier = tuple(look())
        answers += read_answers(verdict, earlier, ask(question), book)
        verdict = replace(conclude(look(), book), asked=answers)
        asked += 1
    return verdict


def sections_to_follow(next_sections: Iterable[str], had: Collection[str], book: Catalog) -> dict[str, list[str]]:
    """Return the sections that triage opens next with their parameters, without those that can act or that it had."""
    runnable = book.runnable()
    found: dict[str, list[str]] = {}
    for section in next_sections:
        notebook = runnable[section].notebook if section in runnable else None
        if notebook and section not in had and "execute" not in (names := declared_names(notebook)):
            found[section] = names
    return found


def read_answers(
    before: Verdict, earlier: Iterable[Finding], new: Iterable[Finding], book: Catalog
) -> tuple[Answer, ...]:
    """Return what new findings support and exclude by observations that the earlier ones did not have.

    A step that was asked to decide is listed even if it shows nothing new.
    """
    known = {s.observation for f in earlier for s in f.signals}
    candidates = unique((before.stuck_at, *before.undecided, *(m.id for m in before.failure_modes if m.score)))
    answers = []
    for f in new:
        signals = sorted((s for s in f.signals if s.observation not in known), key=lambda s: -s.weight)
        seen = {s.observation for s in signals}
        against = {s.about for s in signals if s.weight <= -SUSPECT}
        against |= {m.id for m in book.failure_modes.values() if seen & {*m.excluded_by}}
        supports = unique(s.about for s in signals if s.weight > 0 and s.about not in against)
        answer = Answer(f.step, supports, tuple(c for c in candidates if c and c in against))
        if answer.supports or answer.excludes or f.step in before.settled_by:
            answers.append(answer)
    return tuple(answers)
