"""Read the concluded runs of a dossier, and judge their archived evidence again, by their own or another policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from runbook_lib.book.catalog import Catalog
from runbook_lib.checks.check import checks
from runbook_lib.checks.context import JudgeInput
from runbook_lib.diagnosis import snapshots
from runbook_lib.diagnosis import verdict as diagnosis
from runbook_lib.diagnosis.snapshots import Difference, RunSnapshot
from runbook_lib.dossier import policy
from runbook_lib.model.finding import Finding, Text, Verdict, say
from runbook_lib.store.archive import MANIFEST, Archive, LogError, NotSealedError, entry_of
from runbook_lib.store.lines import RunLine, run_line
from runbook_lib.store.run import Run, read_run
from runbook_lib.view import differences

R = TypeVar("R")


@dataclass(frozen=True)
class SealedRun:
    """A concluded run as it was sealed, with its archived policy; None if it has none."""

    line: RunLine
    run: Run
    policy: Catalog | None

    @property
    def judged(self) -> int:
        """The number of steps that have evidence."""
        return sum(1 for f in self.run.findings if f.frames)


def runs(archive: Archive, book: Catalog) -> Iterator[SealedRun | Text]:
    """Iterate over the concluded runs of a dossier, oldest first; a text stands for an unreadable run. Raises OSError.

    Runs that were changed after they were sealed are left out: `seal.check` reports them.
    """
    return judge_runs(archive, book, lambda kept: kept)


def judge_runs(archive: Archive, book: Catalog, judge: Callable[[SealedRun], R]) -> Iterator[R | Text]:
    """Iterate over what `judge` returns for each of `runs`; a text stands for a run that this version cannot judge.

    `book` are today's documents, for a run without a policy of its own.
    """
    for entry in filter(None, map(entry_of, archive.raw(MANIFEST))):
        if not entry.get("section"):
            continue
        try:
            line = run_line(archive, entry)
            kept = policy.policy_file_of(line.sha256)
            own = policy.read(archive.read_sealed(line.sha256, kept)) if kept else None
            if line.section not in (own or book).sections:
                yield say("seal.no_section", name=line.name, section=line.section)
            elif (run := read_run(archive, line)).concluded:
                yield judge(SealedRun(line, run, own))
        except NotSealedError:
            continue
        except Exception as e:  # this version may not be able to read what an earlier one wrote
            if isinstance(e, OSError) and not isinstance(e, LogError):
                raise
            yield not_judged(str(entry.get("name")), e)


def not_judged(name: str, e: Exception) -> Text:
    """Return a text about a run that this version cannot judge."""
    return say("seal.not_judged", name=name, detail=f"{type(e).__name__}: {e}")


def judge_all(archive: Archive, book: Catalog) -> tuple[int, list[Text]]:
    """Judge every concluded run again by its own policy; return the number of steps and the differences.

    Raises OSError.
    """
    judged, apart = 0, list[Text]()
    for result in judge_runs(archive, book, lambda kept: (kept, judge_again(kept.run, kept.policy or book))):
        if isinstance(result, Text):
            apart.append(result)
            continue
        kept, changes = result
        judged += kept.judged
        name = kept.line.name
        apart += [say("seal.judged_apart", name=name, **differences.changed_judgement(c)) for c in changes]
    return judged, apart


def judge_again(run: Run, book: Catalog) -> list[Difference]:
    """Return the steps whose evidence is judged differently now, by these documents."""
    changes = snapshots.difference(look(run), look(run, book), same_evidence=True)
    return [c for c in changes if c.kind == "step"]


def look(run: Run, book: Catalog | None = None, name: str = "") -> RunSnapshot:
    """Return a run as a sample: with its original verdict, or as the policy `book` judges its evidence."""
    findings, verdict = judge(run.findings, run.header, book) if book else (run.findings, run.verdict)
    return snapshots.take_snapshot(name, findings, verdict, run.header.get("window_minutes"))


def judge(findings: Iterable[Finding], header: dict[str, Any], book: Catalog) -> tuple[tuple[Finding, ...], Verdict]:
    """Judge the findings of a run by a policy; return the new findings and the verdict."""
    known, again = checks(), tuple[Finding, ...]()
    for finding in findings:
        again += (known[finding.step].judge_again(finding, JudgeInput.recorded(book, header, again)),)
    return again, diagnosis.conclude(again, book)
