"""The stored evidence of a run, judged once more: does it still give the same verdicts?"""

from __future__ import annotations

from runbook_lib import catalog
from runbook_lib.archive.artifact import Run
from runbook_lib.checks import checks
from runbook_lib.context import Given
from runbook_lib.model.finding import Finding, Status


def judge_again(run: Run) -> list[tuple[str, Status, Status]]:
    """Judge the stored frames once more: (step, stored status, status now) of those that differ.

    Steps whose source did not answer have no frames to judge and are left out.
    """
    book, known = catalog.load(), checks()
    differ: list[tuple[str, Status, Status]] = []
    earlier: tuple[Finding, ...] = ()
    for finding in run.findings:
        if finding.frames:
            again = known[finding.step].judge(finding.frames, Given.recorded(book, run.header, earlier))
            if again.status is not finding.status:
                differ.append((finding.step, finding.status, again.status))
        earlier += (finding,)
    return differ
