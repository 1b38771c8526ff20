"""The stored evidence of a dossier, judged once more: does it still give the same verdicts?"""

from __future__ import annotations

from runbook_lib import catalog
from runbook_lib.archive import artifact
from runbook_lib.checks import checks
from runbook_lib.context import Given
from runbook_lib.model.finding import Finding, Status, Text, say
from runbook_lib.store import MANIFEST, Archive, digest, entry_of


def judge_all(archive: Archive) -> tuple[int, list[Text]]:
    """Judge every concluded run once more: how many steps, and what comes out otherwise. Raises OSError.

    What is not as it was sealed is left out: that is the seal's to say.
    """
    book, judged, apart = catalog.load(), 0, list[Text]()
    for entry in filter(None, map(entry_of, archive.raw(MANIFEST))):
        name, section = entry.get("name"), entry.get("section")
        try:
            content = archive.read(f"{name}.ipynb") if section else b""
        except FileNotFoundError:
            continue
        if not section or digest(content) != entry.get("sha256", {}).get(f"{name}.ipynb"):
            continue
        if section not in book.sections:
            apart.append(say("seal.no_section", name=name, section=section))
            continue
        try:
            run = artifact.read(artifact.notebook(content), book.sections[section])
            differ = judge_again(run) if run.concluded else []
        except Exception as e:  # the code of today may not know what the one of then has written
            apart.append(say("seal.not_judged", name=name, detail=f"{type(e).__name__}: {e}"))
            continue
        judged += sum(1 for f in run.findings if f.frames) if run.concluded else 0
        apart += [
            say("seal.judged_apart", name=name, step=step, was=was.name, now=now.name) for step, was, now in differ
        ]
    return judged, apart


def judge_again(run: artifact.Run) -> list[tuple[str, Status, Status]]:
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
