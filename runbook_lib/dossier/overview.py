"""The incident's dossier: its verdicts, their times, and the artifacts behind them.

`document` is the result of one command (printed with --json); each is archived and sealed with the artifacts, and the
index page is made only from them.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import pandas as pd
from markupsafe import Markup

from runbook_lib.book import catalog, messages
from runbook_lib.book.parameters import moment
from runbook_lib.dossier import course, mandatory, postmortem, report
from runbook_lib.dossier.artifact import stamp
from runbook_lib.model.finding import Proposal, Status, Verdict
from runbook_lib.store import record
from runbook_lib.store.archive import ACTION_LOG, NOTES, SEALED, Archive, LogError
from runbook_lib.store.run import Run
from runbook_lib.view import render, timeline

Entry = Mapping[str, Any]

INDEX = "index.html"
#: How often the page is made while others write to the logs.
MAX_RENDERS = 4


def document(incident: str, target: str, results: Sequence[Run], verdict: Verdict) -> dict[str, Any]:
    """Return a command's result as its JSON contract defines it (docs/architecture.md, "The command")."""
    header = next((r.header for r in results if r.header), {})
    as_of = header.get("as_of", results[0].started)
    dashboard = render.link_to_hop(header.get("dashboard", ""), verdict.stuck_at)
    return {
        "incident": incident,
        "target": target,
        "as_of": as_of,
        "status": verdict.status.name,
        "exit_code": verdict.status.value,
        "verdict": record.verdict(verdict),
        "runs": [
            {
                "section": r.section,
                "status": r.status.name,
                "started": r.started,
                "ended": r.ended,
                "problem": r.problem or None,
                "artifact": {"ipynb": r.ipynb, "html": r.html},
                "findings": [
                    {
                        "step": f.step,
                        "status": f.status.name,
                        "reason": f.reason.value if f.reason else None,
                        "headline": record.finding(f)["headline"][messages.language()],
                        "values": record.values(f),
                    }
                    for f in r.findings
                ],
                "read_cost": r.read_cost,
            }
            for r in results
        ],
        **({"dashboard": dashboard} if dashboard else {}),
    }


def keep(archive: Archive, results: Sequence[Run], said: dict[str, Any], job: str = "") -> dict[str, Any] | None:
    """Archive a command's document; return its manifest line, None if its job has one already. Raises OSError."""
    onset = onset_of(said)
    stem = f"{stamp(results[0].started)}-verdict"
    content = json.dumps(_with_relative_paths(archive, said), ensure_ascii=False, indent=1).encode()
    entry = {
        "verdict": said["verdict"],
        "as_of": said["as_of"],
        "sections": [r.section for r in results],
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


def _with_relative_paths(archive: Archive, said: dict[str, Any]) -> dict[str, Any]:
    """Return the document with its artifacts' paths relative to the dossier: the folder may be moved."""

    def inside(path: str | None) -> str | None:
        return path and path.removeprefix(f"{archive.place}/")

    runs = [r | {"artifact": {kind: inside(path) for kind, path in r["artifact"].items()}} for r in said["runs"]]
    return said | {"runs": runs}


def write_index(archive: Archive) -> None:
    """Make index.html from the logs, and again if they grew meanwhile. Raises OSError.

    Another command may have written its newer page before this one.
    """
    for _ in range(MAX_RENDERS):
        heads = [archive.raw(log)[-1:] for log in SEALED]
        archive.write(INDEX, page(archive).encode())
        if heads == [archive.raw(log)[-1:] for log in SEALED]:
            break


def page(archive: Archive, copies: Mapping[str, str] | None = None) -> str:
    """Return the incident's page from its logs, with links to a responder's own notebooks by section.

    Raises OSError, also if a changed line of a log cannot be shown: callers handle only OSError and must go on.
    """
    try:
        return _render_page(archive, copies)
    except OSError:
        raise
    except Exception as e:
        if os.environ.get("RUNBOOK_DEBUG"):
            raise
        wrong = f"a line of its logs cannot be shown ({type(e).__name__}: {e}): run `runbook verify`"
        raise LogError(errno.EBADMSG, wrong, archive.place) from e


def _render_page(archive: Archive, copies: Mapping[str, str] | None) -> str:
    entries, actions, notes = archive.manifest(), archive.lines(ACTION_LOG), archive.lines(NOTES)
    # A section 7 run looks back: it says nothing about the present state.
    verdicts = [e for e in entries if "verdict" in e and e.get("sections") != [mandatory.SECTION]]
    artifacts = [e for e in entries if "section" in e]
    nows = _list_present(verdicts, entries)
    now = nows[0] if nows else None
    runs = {v["name"]: _runs_of(archive, v, artifacts) for v in nows}
    last = {a["section"]: a for a in artifacts}
    judged = [run for own in runs.values() for run in own]
    read = course.read_findings(archive, (a for a in artifacts if a in artifacts[-course.MAX_READ :] or a in judged))
    shown = [(run, f) for run, f in read if run in judged]
    lanes = course.lanes(entries, verdicts, actions, notes, (f for _, f in read))
    span, opens = course.span(lanes), course.incident(lanes, entries, verdicts)
    return render.html(
        "dossier",
        incident=archive.incident,
        nows=nows,
        past={v["name"] for v in nows if report.looks_back(v, entries)},
        targets={v["name"]: report.target_of(v, entries) for v in nows} if len(nows) > 1 else {},
        copies=copies or {},
        last=last,
        timeline=Markup(timeline.html(lanes, *span, opens)) if span else "",  # noqa: S704 - our own rendering
        findings=sorted(shown, key=lambda e: -Status[e[1]["status"]].rank),
        # A step of one target only has its place on the page.
        linked=runs[now["name"]] if now else (),
        steps={now["name"]: _steps_of_hops(f for run, f in shown if run in runs[now["name"]])} if now else {},
        following=now["verdict"]["next_sections"] if now else [catalog.FIRST_RESPONSE],
        located=report.located(verdicts),
        proposals={v["name"]: render.proposal_texts(Proposal(**p) for p in v["verdict"]["proposals"]) for v in nows},
        verdicts=verdicts,
        artifacts=artifacts,
        actions=[a | {"what": record.describe_action(a["what"])} for a in actions if _is_shown(a, actions)],
        notes=notes,
        partials=archive.partials(),
        seen_before=report.seen_before(archive),
        postmortem=postmortem.PAGE if postmortem.PAGE in archive.names() else None,
    )


def _list_present(verdicts: Sequence[Entry], entries: Sequence[Entry]) -> list[Entry]:
    """Return each target's newest verdict, the worst first.

    One about a past moment counts only if there is no other, then one without a finding of a part of the flow only.
    """
    newest: dict[str, tuple[tuple[bool, bool, pd.Timestamp], Entry]] = {}
    for v in verdicts:
        target = report.target_of(v, entries)
        age = not report.looks_back(v, entries), course.tells_of_all(v), moment(v["started"])
        if target not in newest or newest[target][0] <= age:
            newest[target] = age, v
    return sorted((v for _, v in newest.values()), key=lambda v: -Status[v["verdict"]["status"]].rank)


def _runs_of(archive: Archive, verdict: Entry, artifacts: Sequence[Entry]) -> list[Entry]:
    """Return the runs on which a verdict is based; if its document cannot be read, the last of each section."""
    try:
        document = json.loads(archive.read_sealed(verdict, verdict["name"]))
        names = {str(run["artifact"]["ipynb"]) for run in document["runs"]}
    except (OSError, ValueError, LookupError, TypeError):  # whatever a broken file raises
        return [a for a in {a["section"]: a for a in artifacts}.values() if a["section"] in verdict["sections"]]
    return [a for a in artifacts if f"{a['name']}.ipynb" in names]


def _steps_of_hops(findings: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Return the step from which each hop of the strip has its numbers: the last that knows one."""
    return {
        hop["name"]: f["step"]
        for f in findings
        for hop in f["hops"]
        if any(hop[name] is not None for name in ("waiting", "rate_in", "rate_out", "oldest_s"))
    }


def _is_shown(line: dict[str, Any], actions: list[dict[str, Any]]) -> bool:
    """Return whether a line is an action's result, or its begin if there is no other line: it was interrupted."""
    return line["result"] != "begun" or [a["id"] for a in actions].count(line["id"]) == 1


def onset_of(said: dict[str, Any]) -> str | None:
    """Return the onset: the value `onset` or `....onset` of a step; None if the status is OK."""
    values = (v for r in said["runs"] for f in r["findings"] for v in f["values"].items())
    told = (v["value"] for name, v in values if name.rpartition(".")[2] == "onset")
    for time in told if said["status"] != Status.OK.name else ():
        with suppress(ValueError):  # a pack may use this name for any value
            if re.match(r"\d{4}-\d\d-\d\d[T ]", str(time)):
                return moment(str(time)).isoformat()
    return None
