"""What is news in a verdict, for the target's Grafana: an onset, another verdict, a recovery."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from runbook_lib import catalog, mandatory, messages, settings
from runbook_lib.archive.artifact import Result
from runbook_lib.model.finding import Status, say
from runbook_lib.parameters import moment
from runbook_lib.sources import grafana
from runbook_lib.sources.grafana import Annotation
from runbook_lib.store import Archive
from runbook_lib.usage import UsageError
from runbook_lib.view import record, render


def tell(
    archive: Archive, results: Sequence[Result], said: dict[str, Any], kept: dict[str, Any] | None, lang: str
) -> None:
    """Tell the target's Grafana, if it has one, what is news in what was `kept`; a look back is none."""
    back = any(r.run.header.get("parameters", {}).get("as_of") for r in results)
    if kept is None or back or kept["sections"] == [mandatory.SECTION]:
        return
    with suppress(UsageError, OSError):
        target = settings.load().target(said["target"])
        if target.grafana_url:
            found = of(kept, [e for e in archive.manifest() if "verdict" in e], said["as_of"], lang)
            grafana.annotate(target, said["target"], archive.incident, found, lang)


def of(kept: dict[str, Any], concluded: Sequence[dict[str, Any]], as_of: str, lang: str) -> list[Annotation]:
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


def onset(said: dict[str, Any]) -> str | None:
    """Since when it is so: the value `onset`, or `....onset`, of a step; nothing where all is well."""
    values = (v for r in said["runs"] for f in r["findings"] for v in f["values"].items())
    told = (v["value"] for name, v in values if name.rpartition(".")[2] == "onset")
    for time in told if said["status"] != Status.OK.name else ():
        with suppress(ValueError):  # what a pack calls so may be anything
            if re.match(r"\d{4}-\d\d-\d\d[T ]", str(time)):
                return moment(str(time)).isoformat()
    return None
