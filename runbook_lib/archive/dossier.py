"""The incident's dossier: what was concluded, when, and every artifact it was concluded from.

`document` is what one command says (and prints with --json); each is kept and sealed with the artifacts,
and the index page is made of them alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from runbook_lib import catalog, mandatory
from runbook_lib.archive import news, postmortem, report
from runbook_lib.archive.artifact import Result, stamp
from runbook_lib.model.finding import Verdict
from runbook_lib.store import ACTION_LOG, NOTES, Archive
from runbook_lib.view import record, render

INDEX = "index.html"


def document(incident: str, target: str, results: Sequence[Result], verdict: Verdict, lang: str) -> dict[str, Any]:
    """What a command concluded, as the contract has it (docs/architecture.md, "The command")."""
    header = next((r.run.header for r in results if r.run.header), {})
    as_of = header.get("as_of", results[0].started)
    dashboard = render.at_hop(header.get("dashboard", ""), verdict.stuck_at)
    return {
        "incident": incident,
        "target": target,
        "as_of": as_of,
        "status": verdict.status.name,
        "exit_code": verdict.status.value,
        "verdict": record.verdict(verdict),
        "runs": [
            {
                "section": r.run.section,
                "status": r.run.status.name,
                "started": r.started,
                "ended": r.ended,
                "problem": r.problem or None,
                "artifact": {"ipynb": r.ipynb, "html": r.html},
                "findings": [
                    {
                        "step": f.step,
                        "status": f.status.name,
                        "reason": f.reason.value if f.reason else None,
                        "headline": record.finding(f)["headline"][lang],
                        "values": record.values(f),
                    }
                    for f in r.run.findings
                ],
                "read_cost": r.run.read_cost,
            }
            for r in results
        ],
        **({"dashboard": dashboard} if dashboard else {}),
    }


def keep(archive: Archive, results: Sequence[Result], said: dict[str, Any], job: str = "") -> dict[str, Any] | None:
    """Seal what a command concluded beside its artifacts; its line, None where its job has left one. Raises OSError."""
    onset = news.onset(said)
    stem = f"{stamp(results[0].started)}-verdict"
    content = json.dumps(_inside(archive, said), ensure_ascii=False, indent=1).encode()
    entry = {
        "verdict": said["verdict"],
        "sections": [r.run.section for r in results],
        "started": results[0].started,
        "ended": results[-1].ended,
        **({"job": job} if job else {}),
        **({"onset": onset} if onset else {}),
        **({"dashboard": said["dashboard"]} if "dashboard" in said else {}),
    }
    taken = set(archive.names())
    n = 0
    while True:
        n += 1
        name = f"{stem}{f'.{n}' if n > 1 else ''}-{said['status']}.json"
        with suppress(FileExistsError):
            if name not in taken:
                entry["name"] = name
                return None if archive.append(entry, {name: content}, new=True) else entry


def _inside(archive: Archive, said: dict[str, Any]) -> dict[str, Any]:
    """The document with its artifacts as names within the dossier: a folder may be moved."""

    def inside(path: str | None) -> str | None:
        return path and path.removeprefix(f"{archive.place}/")

    runs = [r | {"artifact": {kind: inside(path) for kind, path in r["artifact"].items()}} for r in said["runs"]]
    return said | {"runs": runs}


def write_index(archive: Archive, lang: str) -> None:
    """Make index.html from the logs. Raises OSError."""
    archive.write(INDEX, page(archive, lang).encode())


def page(archive: Archive, lang: str, copies: Mapping[str, str] | None = None) -> str:
    """The incident's page from its logs, with links to a responder's own notebooks by section. Raises OSError."""
    entries, actions = archive.manifest(), archive.lines(ACTION_LOG)
    # A look back says nothing of how things stand.
    verdicts = [e for e in entries if "verdict" in e and e.get("sections") != [mandatory.SECTION]]
    artifacts = [e for e in entries if "section" in e]
    now = verdicts[-1] if verdicts else None
    return render.html(
        "dossier",
        lang,
        incident=archive.incident,
        now=now,
        copies=copies or {},
        last={a["section"]: a for a in artifacts},
        following=now["verdict"]["next_sections"] if now else [catalog.FIRST_RESPONSE],
        located=report.located(verdicts),
        proposals=_proposals(verdicts, lang),
        verdicts=verdicts,
        artifacts=artifacts,
        actions=[a | {"what": record.what(a["what"])} for a in actions if a["result"] != "begun" or _died(a, actions)],
        notes=archive.lines(NOTES),
        partials=archive.partials(),
        seen_before=report.seen_before(archive),
        postmortem=postmortem.PAGE if postmortem.PAGE in archive.names() else None,
    )


def _died(begun: dict[str, Any], actions: list[dict[str, Any]]) -> bool:
    """An action that has no second line: whoever carried it out was stopped in the middle."""
    return [a["id"] for a in actions].count(begun["id"]) == 1


def _proposals(verdicts: list[dict[str, Any]], lang: str) -> list[dict[str, str]]:
    from runbook_lib.model.finding import Proposal

    return render.worded((Proposal(**p) for p in verdicts[-1]["verdict"]["proposals"]), lang) if verdicts else []
