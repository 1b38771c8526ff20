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
from runbook_lib.dossier import course, postmortem, report
from runbook_lib.dossier.artifact import stamp
from runbook_lib.model.finding import Finding, Status, Verdict, replace
from runbook_lib.model.times import moment
from runbook_lib.store import record
from runbook_lib.store.archive import Archive, LogError
from runbook_lib.store.lines import ActionLine, Logs, RunLine, VerdictLine, read_logs
from runbook_lib.store.run import Run
from runbook_lib.view import render, timeline

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
    """Archive a command's document; return its line, None if its job has one already. Raises OSError."""
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
    """Make index.html from the log, and again if it grew meanwhile. Raises OSError.

    Another command may have written its newer page before this one.
    """
    for _ in range(MAX_RENDERS):
        last = archive.raw()[-1:]
        archive.write(INDEX, page(archive).encode())
        if last == archive.raw()[-1:]:
            break


def page(archive: Archive, copies: Mapping[str, str] | None = None) -> str:
    """Return the incident's page from its logs, with links to a responder's own notebooks by section.

    Raises OSError, also if a changed line of a log cannot be shown: callers handle only OSError and must go on.
    """
    try:
        return _render_page(archive.patient(), copies)
    except OSError:
        raise
    except Exception as e:
        if os.environ.get("RUNBOOK_DEBUG"):
            raise
        wrong = f"a line of its logs cannot be shown ({type(e).__name__}: {e}): run `runbook verify`"
        raise LogError(errno.EBADMSG, wrong, archive.place) from e


def _render_page(archive: Archive, copies: Mapping[str, str] | None) -> str:
    logs = read_logs(archive)
    # A run of the postmortem looks back: it says nothing about the present state.
    own = catalog.section_with("postmortem")
    told = [e for e in logs.artifacts if isinstance(e, RunLine) or e.sections != (own,)]
    logs = replace(logs, artifacts=told)
    nows = _list_present(logs)
    now = next(iter(nows), None)
    runs = {v.name: _runs_of(archive, v, logs.runs) for v in nows}
    judged = {run.name for own in runs.values() for run in own}
    recent = {run.name for run in logs.runs[-course.MAX_READ :]}
    read, unread = course.read_findings(archive, (run for run in logs.runs if run.name in judged | recent))
    shown = [(run, f) for run, f in read if run.name in judged]
    linked = {run.name for run in runs[now.name]} if now else set[str]()
    files = archive.names()
    lanes = course.lanes(logs, (f for _, f in read))
    span, opens = course.span(lanes), course.incident(lanes, logs)
    return render.html(
        "dossier",
        incident=archive.incident,
        nows=nows,
        targets={v.name: logs.target_of(v) for v in nows} if len(nows) > 1 else {},
        copies=copies or {},
        last={run.section: run for run in logs.runs},
        timeline=Markup(timeline.html(lanes, *span, opens)) if span else "",  # noqa: S704 - our own rendering
        findings=sorted(shown, key=lambda e: -e[1].status.rank),
        # A step of one target only has its place on the page.
        linked=linked,
        steps={now.name: _steps_of_hops(f for run, f in shown if run.name in linked)} if now else {},
        following=now.verdict.next_sections if now else [*filter(None, [catalog.section_with("triage")])],
        located=report.located(logs.verdicts),
        proposals={v.name: render.proposal_texts(v.verdict.proposals) for v in nows},
        verdicts=logs.verdicts,
        artifacts=logs.runs,
        unread=unread,
        actions=[a for a in logs.actions if _is_shown(a, logs.actions)],
        notes=logs.notes,
        files=files,  # a capsule has no notebooks
        partials=archive.partials(),
        seen_before=report.seen_before(archive),
        postmortem=postmortem.PAGE if postmortem.PAGE in files else None,
    )


def _list_present(logs: Logs) -> list[VerdictLine]:
    """Return each target's newest verdict, the worst first.

    One that found nothing in a part of the flow counts only if there is no other.
    """
    newest: dict[str, tuple[tuple[bool, pd.Timestamp], VerdictLine]] = {}
    for v in logs.verdicts:
        target = logs.target_of(v)
        age = course.tells_of_all(v), v.started
        if target not in newest or newest[target][0] <= age:
            newest[target] = age, v
    return sorted((v for _, v in newest.values()), key=lambda v: -v.status.rank)


def _runs_of(archive: Archive, verdict: VerdictLine, runs: Sequence[RunLine]) -> list[RunLine]:
    """Return the runs on which a verdict is based; if its document cannot be read, the last of each section."""
    try:
        document = json.loads(archive.read_sealed(verdict.sha256, verdict.name))
        names = {str(run["artifact"]["ipynb"]) for run in document["runs"]}
    except (OSError, ValueError, LookupError, TypeError):  # whatever a broken file raises
        return [run for run in {run.section: run for run in runs}.values() if run.section in verdict.sections]
    return [run for run in runs if f"{run.name}.ipynb" in names]


def _steps_of_hops(findings: Iterable[Finding]) -> dict[str, str]:
    """Return the step from which each hop of the strip has its numbers: the last that knows one."""
    numbers = ("waiting", "rate_in", "rate_out", "oldest_s")
    known = ((hop, f.step) for f in findings for hop in f.hops)
    return {hop.name: step for hop, step in known if any(getattr(hop, name) is not None for name in numbers)}


def _is_shown(line: ActionLine, actions: Sequence[ActionLine]) -> bool:
    """Return whether a line is an action's result, or its begin if there is no other line: it was interrupted."""
    return line.result != "begun" or [a.id for a in actions].count(line.id) == 1


def onset_of(said: dict[str, Any]) -> str | None:
    """Return the onset: the value `onset` or `....onset` of a step; None if the status is OK."""
    values = (v for r in said["runs"] for f in r["findings"] for v in f["values"].items())
    told = (v["value"] for name, v in values if name.rpartition(".")[2] == "onset")
    for time in told if said["status"] != Status.OK.name else ():
        with suppress(ValueError):  # a pack may use this name for any value
            if re.match(r"\d{4}-\d\d-\d\d[T ]", str(time)):
                return moment(str(time)).isoformat()
    return None
