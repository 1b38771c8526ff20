"""Read the concluded runs of a dossier, and judge their archived evidence again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from runbook_lib.book.catalog import Catalog
from runbook_lib.checks.check import checks
from runbook_lib.checks.context import JudgeInput
from runbook_lib.diagnosis import snapshots
from runbook_lib.diagnosis import verdict as diagnosis
from runbook_lib.diagnosis.snapshots import RunSnapshot
from runbook_lib.model.finding import Finding, Text, Verdict, say
from runbook_lib.store.archive import RUN, Archive, LogError, NotSealedError, entry_of
from runbook_lib.store.lines import RunLine, run_line
from runbook_lib.store.run import Run, read_run

R = TypeVar("R")


def runs(archive: Archive, book: Catalog) -> Iterator[Run | Text]:
    """Iterate over the concluded runs of a dossier, oldest first; a text stands for an unreadable run. Raises OSError.

    Runs that were changed after they were sealed are left out: `seal.check` reports them.
    """
    return judge_runs(archive, book, lambda _, run: run)


def judge_runs(archive: Archive, book: Catalog, judge: Callable[[RunLine, Run], R]) -> Iterator[R | Text]:
    """Iterate over what `judge` returns for each of `runs`; a text stands for a run that this version cannot judge."""

    def judge_run(entry: dict[str, Any]) -> R | Text | None:
        try:
            line = run_line(archive, entry)
            if line.section not in book.sections:
                return say("seal.no_section", name=line.name, section=line.section)
            return judge(line, run) if (run := read_run(archive, line)).concluded else None
        except NotSealedError:
            return None
        except Exception as e:  # this version may not be able to read what an earlier one wrote
            if isinstance(e, OSError) and not isinstance(e, LogError):
                raise
            return not_judged(str(entry.get("name")), e)

    entries = (entry for entry in map(entry_of, archive.raw()) if entry and entry.get("kind") == RUN)
    yield from (found for found in archive.read_each(judge_run, entries) if found is not None)


def not_judged(name: str, e: Exception) -> Text:
    """Return a text about a run that this version cannot judge."""
    return say("seal.not_judged", name=name, detail=f"{type(e).__name__}: {e}")


def look(run: Run, book: Catalog | None = None) -> RunSnapshot:
    """Return a run as a sample: with its original verdict, or as the documents `book` judge its evidence."""
    findings, verdict = judge(run.findings, run.header, book) if book else (run.findings, run.verdict)
    return snapshots.take_snapshot("", findings, verdict, run.header.get("window_minutes"))


def judge(findings: Iterable[Finding], header: dict[str, Any], book: Catalog) -> tuple[tuple[Finding, ...], Verdict]:
    """Judge the findings of a run by documents; return the new findings and the verdict."""
    known, again = checks(), tuple[Finding, ...]()
    for finding in findings:
        again += (known[finding.step].judge_again(finding, JudgeInput.recorded(book, header, again)),)
    return again, diagnosis.conclude(again, book)
