"""Grafana: write annotations to a target's dashboards and make links to them. Nothing is read from Grafana."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Thread
from typing import Any, Literal
from urllib.parse import quote

import pandas as pd

from runbook_lib.book import catalog, messages
from runbook_lib.checks.context import Context
from runbook_lib.model.finding import Status, Verdict, Window, action_title, say
from runbook_lib.model.outcome import Outcome
from runbook_lib.model.usage import UsageError
from runbook_lib.privacy.masking import Masker
from runbook_lib.sources import settings
from runbook_lib.sources.http import HttpServer
from runbook_lib.sources.settings import Target
from runbook_lib.sources.source import ReadCost, SourceError
from runbook_lib.store import record
from runbook_lib.store.archive import Archive
from runbook_lib.store.lines import VerdictLine, read_logs
from runbook_lib.store.run import Run
from runbook_lib.view import render

#: Seconds for all annotations of one call: the user waits for them.
POST_S = 5.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Annotation:
    """A moment or a time range with a text; user ids in the text are masked."""

    kind: Literal["onset", "verdict", "action", "recovery"]
    text: str
    at: pd.Timestamp
    until: pd.Timestamp | None = None
    tags: tuple[str, ...] = ()


def dashboard_link(target: Target, name: str, incident: str, window: Window) -> str:
    """Return the URL of the target's dashboard over a window, with `{hop}` not replaced; "" if it has none."""
    values = {
        "target": name,
        "incident": incident,
        "from_ms": str(_to_ms(window.since)),
        "to_ms": str(_to_ms(window.as_of)),
    }
    return re.sub(r"\{(\w+)\}", lambda m: quote(values[m[1]], safe="") if m[1] in values else m[0], target.grafana_link)


def annotate(target: Target, name: str, incident: str, annotations: Sequence[Annotation]) -> None:
    """Write annotations to the target's Grafana, if it has one, within `POST_S`. A failure is logged, not raised."""
    if not target.grafana_url or not annotations:
        return
    results: list[str] = []
    posting = Thread(target=lambda: results.append(_post_annotations(target, name, incident, annotations)), daemon=True)
    posting.start()
    posting.join(POST_S)
    problem = results[0] if results else f"no answer within {POST_S:.0f} s"
    if problem:
        _log.warning("%s", messages.text(say("ui.not_annotated", incident=incident, problem=problem)))


def annotate_action(rb: Context, outcome: Outcome, begun: pd.Timestamp) -> None:
    """Annotate an action that was executed."""
    if outcome.result in ("done", "failed"):
        title = messages.text(action_title(outcome.action))
        result = messages.text(say(f"action.result.{outcome.result}"))
        text = rb.masker.scrub(f"{title} {record.describe_action(outcome.what)}: {result}")
        done = Annotation("action", text, begun, pd.Timestamp.now("UTC"), (outcome.action, outcome.result))
        annotate(rb.target, rb.parameters.target, rb.parameters.incident_id, [done])


def annotate_verdict(
    archive: Archive, results: Sequence[Run], said: dict[str, Any], kept: dict[str, Any] | None
) -> None:
    """Annotate what is new in the manifest line `kept`; nothing for a run that looks back (`as_of`)."""
    back = any(r.header.get("parameters", {}).get("as_of") for r in results)
    if kept is None or back or kept["sections"] == [catalog.section_with("postmortem")]:
        return
    with suppress(UsageError, OSError):
        target = settings.load().target(said["target"])
        if target.grafana_url:
            logs = read_logs(archive)
            # Another target has a dashboard of its own; of a verdict whose runs were not kept no line tells the target.
            own = [v for v in logs.verdicts if v.name == kept["name"] or logs.target_of(v) == said["target"]]
            annotate(target, said["target"], archive.incident, new_annotations(kept["name"], own))


def new_annotations(name: str, verdicts: Sequence[VerdictLine]) -> list[Annotation]:
    """Return what is new in a verdict of a target: an onset, a changed verdict, or a recovery."""
    kept = next(v for v in verdicts if v.name == name)
    before = [v for v in verdicts[: verdicts.index(kept)] if v.sections != (catalog.section_with("postmortem"),)]
    since: list[VerdictLine] = []
    for line in before:
        since = [] if _shows_recovery(line) else [*since, line]
    verdict, at = kept.verdict, kept.looked_at
    onset = next((v.onset for v in (*since, kept) if v.onset is not None), None)
    if _shows_recovery(kept) and any(v.status is not Status.OK for v in since):
        text = messages.text(say("ui.annotated_recovery"))
        return [Annotation("recovery", text, at if onset is None else onset, at)]
    found = []
    if kept.onset is not None and not any(v.onset is not None for v in since):
        found.append(Annotation("onset", messages.text(say("ui.annotated_onset")), kept.onset))
    if not before or _signature(verdict) != _signature(before[-1].verdict):
        tags = tuple(filter(None, (verdict.status.name, verdict.stuck_at)))
        found.append(Annotation("verdict", f"{verdict.status.name}: {render.location(verdict)}", at, tags=tags))
    return found


def _signature(verdict: Verdict) -> str:
    return record.signature(record.verdict(verdict))


def _shows_recovery(line: VerdictLine) -> bool:
    return line.status is Status.OK and catalog.section_with("recover") in line.sections


def _post_annotations(target: Target, name: str, incident: str, annotations: Sequence[Annotation]) -> str:
    """Send annotations; return "" or the error, without any part of the URL or the token."""
    token = target.grafana_token.get_secret_value() if target.grafana_token else ""
    # Not part of the run's read cost: the system under test is not queried.
    url, headers = target.url("grafana_url") or "", {"Authorization": f"Bearer {token}"}
    grafana = HttpServer("grafana", url, ReadCost(Masker()), headers)
    try:
        for a in annotations:
            tags = ["runbook", a.kind, f"target:{name}", f"incident:{incident}", *a.tags]
            content = {"time": _to_ms(a.at), "tags": tags, "text": a.text}
            content |= {"timeEnd": _to_ms(a.until)} if a.until is not None else {}
            status, _ = grafana.post_json("api/annotations", content)
            if status != 200:
                return f"HTTP {status}"
    except SourceError as e:
        return e.detail
    except Exception as e:  # its text may contain the token
        return type(e).__name__
    return ""


def _to_ms(at: pd.Timestamp) -> int:
    return round(at.timestamp() * 1000)
