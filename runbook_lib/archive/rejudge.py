"""The stored evidence of a dossier, judged once more: by the policy that was kept with it, or by another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from runbook_lib import catalog
from runbook_lib.analysis import diagnosis
from runbook_lib.archive import artifact, policy
from runbook_lib.catalog import Catalog
from runbook_lib.checks import checks
from runbook_lib.context import Given
from runbook_lib.model.finding import Finding, Status, Text, Verdict, say
from runbook_lib.store import MANIFEST, Archive, digest, entry_of


@dataclass(frozen=True)
class Kept:
    """A concluded run as it was sealed, with the policy that it was judged by; None where none was kept with it."""

    entry: dict[str, Any]
    run: artifact.Run
    policy: Catalog | None


def runs(archive: Archive) -> Iterator[Kept | Text]:
    """The concluded runs of a dossier, oldest first; a text for one that can not be read. Raises OSError.

    What is not as it was sealed is left out: that is the seal's to say.
    """
    for entry in filter(None, map(entry_of, archive.raw(MANIFEST))):
        name, section = entry.get("name"), entry.get("section")
        if not section:
            continue
        try:
            content = _sealed(archive, entry, f"{name}.ipynb")
            kept = policy.of_run(entry)
            documents = _sealed(archive, entry, kept) if kept else b""
        except (FileNotFoundError, ValueError):
            continue
        try:
            own = policy.read(documents) if kept else None
            book = own or catalog.load()
            if section not in book.sections:
                yield say("seal.no_section", name=name, section=section)
                continue
            run = artifact.read(artifact.notebook(content), book.sections[section], book)
        except Exception as e:  # the code of today may not know what the one of then has written
            yield say("seal.not_judged", name=name, detail=f"{type(e).__name__}: {e}")
            continue
        if run.concluded:
            yield Kept(entry, run, own)


def _sealed(archive: Archive, entry: dict[str, Any], name: str) -> bytes:
    content = archive.read(name)
    if digest(content) != entry["sha256"].get(name):
        raise ValueError(name)
    return content


def judge_all(archive: Archive) -> tuple[int, list[Text]]:
    """Judge every concluded run once more, by its own policy: how many steps, and what comes out otherwise.

    Raises OSError.
    """
    judged, apart = 0, list[Text]()
    for kept in runs(archive):
        if isinstance(kept, Text):
            apart.append(kept)
            continue
        name = kept.entry["name"]
        try:
            differ = judge_again(kept.run, kept.policy)
        except Exception as e:
            apart.append(say("seal.not_judged", name=name, detail=f"{type(e).__name__}: {e}"))
            continue
        judged += sum(1 for f in kept.run.findings if f.frames)
        apart += [
            say("seal.judged_apart", name=name, step=step, was=was.name, now=now.name) for step, was, now in differ
        ]
    return judged, apart


def judge_again(run: artifact.Run, book: Catalog | None = None) -> list[tuple[str, Status, Status]]:
    """Judge the stored frames once more: (step, stored status, status now) of those that differ.

    Steps whose source did not answer have no frames to judge and are left out.
    """
    again, _ = judge(run, book or catalog.load())
    return [
        (was.step, was.status, now.status)
        for was, now in zip(run.findings, again, strict=True)
        if now.status is not was.status
    ]


def judge(run: artifact.Run, book: Catalog) -> tuple[tuple[Finding, ...], Verdict]:
    """The findings of a run, and its verdict, as this policy has them.

    A step whose source did not answer stays as it is; what its silence speaks for is the policy's.
    """
    known, again = checks(), tuple[Finding, ...]()
    for finding in run.findings:
        if finding.frames:
            found = known[finding.step].judge_again(finding, Given.recorded(book, run.header, again))
        else:
            spoken = dict.fromkeys(s.observation for s in finding.signals if s.observation)
            now = [s for s in finding.signals if not s.observation]
            now += [s for observation in spoken for s in book.observations.get(observation, ())]
            found = replace(finding, signals=tuple(now))
        again += (found,)
    return again, diagnosis.conclude(again, book)
