"""The incident's dossier: what was concluded, when, and every artifact it was concluded from.

`document` is what one command says (and prints with --json); each is kept and sealed with the artifacts,
and the index page is made of them alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from runbook_lib import catalog, mandatory, messages, settings
from runbook_lib.archive import postmortem, report
from runbook_lib.archive.artifact import Result, stamp
from runbook_lib.model.finding import Status, Verdict, say
from runbook_lib.parameters import moment
from runbook_lib.sources import grafana
from runbook_lib.sources.grafana import Annotation
from runbook_lib.store import ACTION_LOG, NOTES, Archive
from runbook_lib.usage import UsageError
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
    onset = _onset(said)
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


def annotate(
    archive: Archive, results: Sequence[Result], said: dict[str, Any], kept: dict[str, Any] | None, lang: str
) -> None:
    """Tell the target's Grafana, if it has one, what is news in what was `kept`; a look back is none."""
    back = any(r.run.header.get("parameters", {}).get("as_of") for r in results)
    if kept is None or back or kept["sections"] == [mandatory.SECTION]:
        return
    with suppress(UsageError, OSError):
        target = settings.load().target(said["target"])
        if target.grafana_url:
            found = news(kept, [e for e in archive.manifest() if "verdict" in e], said["as_of"], lang)
            grafana.annotate(target, said["target"], archive.incident, found, lang)


def news(kept: dict[str, Any], concluded: Sequence[dict[str, Any]], as_of: str, lang: str) -> list[Annotation]:
    """What an incident's new line says that the lines before it did not: an onset, another verdict, a recovery."""
    looks = [e for e in concluded if e.get("sections") != [mandatory.SECTION]]
    before = looks[: next((n for n, e in enumerate(looks) if e.get("name") == kept["name"]), len(looks))]
    since: list[dict[str, Any]] = []
    for line in before:
        since = [] if _recovered(line) else [*since, line]
    verdict, at = kept["verdict"], moment(as_of)
    onset = next((moment(e["onset"]) for e in (*since, kept) if "onset" in e), None)
    if _recovered(kept) and any(e["verdict"]["status"] != Status.OK.name for e in since):
        text = messages.text(say("ui.annotated_recovery"), lang)
        return [Annotation("recovery", text, at if onset is None else onset, at)]
    found = []
    if "onset" in kept and not any("onset" in e for e in since):
        found.append(Annotation("onset", messages.text(say("ui.annotated_onset"), lang), moment(kept["onset"])))
    if not before or record.signature(verdict) != record.signature(before[-1]["verdict"]):
        tags = tuple(filter(None, (verdict["status"], verdict["stuck_at"])))
        found.append(Annotation("verdict", f"{verdict['status']}: {render.location(verdict, lang)}", at, tags=tags))
    return found


def _recovered(line: dict[str, Any]) -> bool:
    return line["verdict"]["status"] == Status.OK.name and catalog.RECOVERY in line.get("sections", ())


def _onset(said: dict[str, Any]) -> str | None:
    """Since when it is so: the value `onset`, or `....onset`, of a step; nothing where all is well."""
    values = (v for r in said["runs"] for f in r["findings"] for v in f["values"].items())
    told = (v["value"] for name, v in values if name.rpartition(".")[2] == "onset")
    for time in told if said["status"] != Status.OK.name else ():
        with suppress(ValueError):  # what a pack calls so may be anything
            if re.match(r"\d{4}-\d\d-\d\d[T ]", str(time)):
                return moment(str(time)).isoformat()
    return None


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
