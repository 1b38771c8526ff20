"""Summarise the incidents of a period, from the dossiers' logs and postmortems only.

No notebook is opened and no system is queried; a value that the logs and postmortems lack is unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from markupsafe import escape
from pydantic import TypeAdapter, ValidationError

from runbook_lib.book import catalog, messages
from runbook_lib.diagnosis.verdict import BROKEN
from runbook_lib.dossier import mandatory
from runbook_lib.model.finding import Status, Text, Verdict, hop_text, say, worst
from runbook_lib.model.times import moment
from runbook_lib.store import record
from runbook_lib.store.archive import Archive
from runbook_lib.store.lines import ActionLine, Logs, RunLine, VerdictLine, read_logs
from runbook_lib.view import render

if TYPE_CHECKING:
    from runbook_lib.notebook.session import Session

#: The source of a duration: the postmortem, or `detected_at` and the run that confirmed the recovery.
By = Literal["", "postmortem", "detected_at"]

#: How many of the newest dossiers are searched for similar ones, and the minimum share of common hops and modes.
MAX_SEARCHED, MIN_SIMILARITY = 200, 0.5
#: How many similar incidents are shown.
MAX_SHOWN = 3
#: Results of actions that were not executed.
_NOT_YET = ("dry", "approved")
_ALERT = re.compile(r"(.+?) (?:firing|resolved)\b")
_SECONDS: TypeAdapter[float] = TypeAdapter(mandatory.Amount)
#: How a formula begins, also in East Asian width, and a number that begins like one.
_FORMULA, _NUMBER = re.compile(r"\s*[=+\-@＝＋－＠]|[\t\r\n]"), re.compile(r"-?\d+(\.\d+)?")
_MARKS = {True: "✔", False: "✖", None: "?"}
#: The columns of the table for people.
SHOWN = (
    "begun", "incident", "target", "begun_by", "worst", "last", "place", "modes", "ttd", "ttr", "sections", "actions",
    "measures",
)  # fmt: skip


@dataclass(frozen=True)
class ActionSummary:
    """An action; `helped` is None if it was refused or its effect is not known."""

    action: str
    what: str
    result: str
    helped: bool | None

    def __str__(self) -> str:
        return f"{_MARKS[self.helped]} {self.action} {self.what}".rstrip()


@dataclass(frozen=True)
class OpenMeasure:
    """A measure of a postmortem that is not done yet, as typed."""

    kind: str
    measure: str
    owner: str
    due: str

    def __str__(self) -> str:
        about = ", ".join(filter(None, (self.owner, self.due)))
        return f"{self.measure} ({about})" if about else self.measure


@dataclass(frozen=True)
class IncidentSummary:
    """The summary of a dossier; `worst` and `last` are "" without a verdict.

    `alert` is the alerting rule's name, if noted; `place` (hops) and `modes` have several values if undecided.
    """

    incident: str
    begun: pd.Timestamp
    target: str
    begun_by: Literal["alert", "person"]
    alert: str
    worst: str
    last: str
    place: tuple[str, ...]
    modes: tuple[str, ...]
    ttd_s: float | None
    ttd_by: By
    ttr_s: float | None
    ttr_by: By
    sections: tuple[str, ...]
    actions: tuple[ActionSummary, ...]
    measures: tuple[OpenMeasure, ...]

    def row(self) -> dict[str, Any]:
        """Return the fields as a flat row."""
        return {name: " / ".join(map(str, v)) if isinstance(v, tuple) else v for name, v in vars(self).items()}


# Reading ----------------------------------------------------------------------------------------------------


def read(
    output: str, since: pd.Timestamp | None, until: pd.Timestamp | None, only: Iterable[str] | None = None
) -> tuple[list[IncidentSummary], list[Text]]:
    """Return the incidents that began in [since, until), oldest first, and a text for each unreadable dossier.

    Raises OSError if the output itself cannot be read.
    """
    every = Archive(output, "").patient()
    names = every.names() if only is None else only
    came = [*every.read_each(lambda name: _read_dossier(replace(every, incident=name)), names)]
    unread = [each for each in came if isinstance(each, Text)]
    found = [each for each in came if isinstance(each, IncidentSummary)]
    found = [i for i in found if (since is None or since <= i.begun) and (until is None or i.begun < until)]
    return sorted(found, key=lambda i: (i.begun, i.incident)), unread


def _read_dossier(archive: Archive) -> IncidentSummary | Text | None:
    """Return the summary of a dossier, a text if it cannot be read, or None if it holds nothing."""
    try:
        logs = read_logs(archive)
        if not (logs.artifacts or logs.actions or logs.notes):
            return None
        draft = (archive.read_or_none(mandatory.MARKDOWN) or b"").decode(errors="replace")
        return summarise(archive.incident, logs, draft)
    except NotADirectoryError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:  # whatever a broken text raises
        detail = e.strerror if isinstance(e, OSError) else f"{type(e).__name__}: {e}"
        return say("report.unread", incident=archive.incident, detail=detail)


def summarise(incident: str, logs: Logs, draft: str = "") -> IncidentSummary:
    """Summarise an incident from its logs (one line at least) and its postmortem."""
    logged = [*(a.time for a in logs.actions), *(n.time for n in logs.notes)]
    begun = min([e.started for e in logs.artifacts] + logged)
    # A run of the postmortem looks back: it says nothing about the state at its time.
    looks = [e for e in logs.artifacts if e.sections != (catalog.section_with("postmortem"),)]
    runs = [e for e in looks if isinstance(e, RunLine)]
    # Only a command's verdict has failure modes; a run from a browser has no such verdict.
    worst_of = located([*(e for e in looks if isinstance(e, VerdictLine)), *runs])
    verdict = worst_of.verdict if worst_of else Verdict(Status.OK, None, "none")

    def told(name: str) -> Any:
        return next((run.parameters[name] for run in logs.runs if run.parameters.get(name)), None)

    noted = next((n for n in logs.notes if n.who == "alert"), None)
    alerted = told("detected_by") == "alert" or bool(noted and not told("detected_by") and noted.time == begun)
    rule = _ALERT.match(noted.text) if alerted and noted else None
    held = mandatory.parse_record(draft) if draft else {}
    ttd, ttr = (_recorded_seconds(held.get("timeline"), name) for name in ("ttd_seconds", "ttr_seconds"))
    seen = _observed_recovery_s(runs, told("detected_at")) if ttr is None else None
    return IncidentSummary(
        incident=incident,
        begun=begun,
        target=told("target") or next((a.target for a in logs.actions if a.target), "default"),
        begun_by="alert" if alerted else "person",
        alert=rule[1] if rule else "",
        worst=worst(e.status for e in looks).name if looks else "",
        last=looks[-1].status.name if looks else "",
        place=_list_hops(verdict),
        modes=_list_modes(verdict, held.get("origin")),
        ttd_s=ttd,
        ttd_by="" if ttd is None else "postmortem",
        ttr_s=seen if ttr is None else ttr,
        ttr_by="postmortem" if ttr is not None else "" if seen is None else "detected_at",
        sections=tuple(dict.fromkeys(run.section for run in logs.runs)),
        actions=tuple(
            _summarise_action(a) for a in {a.id: a for a in logs.actions}.values() if a.result not in _NOT_YET
        ),
        measures=tuple(
            OpenMeasure(*(m[f.name] for f in fields(OpenMeasure)))
            for m in mandatory.measures_of(draft)
            if not m["done"]
        ),
    )


def located(lines: Sequence[RunLine | VerdictLine]) -> RunLine | VerdictLine | None:
    """Return the line with the worst verdict, then the highest confidence, then the first; None if all are OK."""
    sure = ("none", "low", "medium", "high")
    found = [e for e in lines if e.status is not Status.OK]
    return max(found, key=lambda e: (e.status.rank, sure.index(e.verdict.confidence)), default=None)


def _list_hops(verdict: Verdict) -> tuple[str, ...]:
    return (verdict.stuck_at,) if verdict.stuck_at else verdict.undecided


def _list_modes(verdict: Verdict, origin: Any) -> tuple[str, ...]:
    """Return the postmortem's origin; else the undecided failure modes; else the most likely supported one."""
    if isinstance(origin, str) and origin in catalog.load().failure_modes:
        return (origin,)
    likeliest = tuple(m.id for m in verdict.failure_modes if m.score >= BROKEN)
    return verdict.between or likeliest[:1]


def _recorded_seconds(timeline: Any, name: str) -> float | None:
    try:
        return _SECONDS.validate_python(timeline[name])
    except (LookupError, TypeError, ValidationError):
        return None


def _observed_recovery_s(runs: Iterable[RunLine], detected_at: str | None) -> float | None:
    """Return seconds from the detection to the first OK recovery check after the last bad run; None if unknown."""
    good: pd.Timestamp | None = None
    for run in sorted(runs, key=lambda run: run.started):
        recovery = run.section == catalog.section_with("recover")
        if recovery and run.status is Status.OK:
            good = good or run.started
        elif recovery or run.status is Status.CRITICAL:
            good = None
    seconds = round((good - moment(detected_at)).total_seconds(), 1) if good and detected_at else -1.0
    return seconds if seconds >= 0 else None


def _summarise_action(a: ActionLine) -> ActionSummary:
    helped = {"done": a.verified, "failed": False}.get(a.result)
    return ActionSummary(a.action, a.about, a.result, helped)


def similar_incidents(rb: Session) -> render.Shown | None:
    """Return the past incidents most similar to this run's findings, with their actions; None if there are none.

    Searches the newest readable dossiers of the same output. Reads only, and does not raise OSError.
    """
    verdict, found = rb.verdict(), list[IncidentSummary]()
    if modes := _list_modes(verdict, None):
        with suppress(OSError):
            found = _find_similar(rb.context.archive, {*_list_hops(verdict), *modes}, pd.Timestamp.now("UTC"))
    if not found:
        return None
    rows = as_text(table(found), "begun", "incident", "place", "modes", "actions")
    text = f"{messages.text(say('dossier.seen_before'))}\n{rows}"
    page = render.html("seen_before", incidents=found, linked=False)
    return render.Shown({"text/html": page, "text/plain": text}, run=rb.opened)


def seen_before(archive: Archive) -> list[IncidentSummary]:
    """Return the earlier incidents with the most similar hops and failure modes, most similar first. Raises OSError."""
    own = next((i for i in read(archive.output, None, None, only=[archive.incident])[0]), None)
    return _find_similar(archive, {*own.place, *own.modes}, own.begun) if own and own.modes else []


def _find_similar(archive: Archive, own: set[str], before: pd.Timestamp) -> list[IncidentSummary]:
    """Search the newest readable dossiers of the same output. Raises OSError."""
    others = [n for n in Archive(archive.output, "").newest(MAX_SEARCHED + 1) if n != archive.incident][-MAX_SEARCHED:]
    like = {
        i: len(own & {*i.modes, *i.place}) / len(own | {*i.modes, *i.place})
        for i in read(archive.output, None, before, only=others)[0]
    }
    return sorted((i for i in like if like[i] >= MIN_SIMILARITY), key=lambda i: (-like[i], -i.begun.value))[:MAX_SHOWN]


# The JSON ---------------------------------------------------------------------------------------------------


def report(incidents: Sequence[IncidentSummary]) -> dict[str, Any]:
    """Return the incidents, and the medians of their times, as plain data."""
    return {
        "incidents": [record.plain(asdict(i)) for i in incidents],
        "ttd": _summarise_times(i.ttd_s for i in incidents),
        "ttr": _summarise_times(i.ttr_s for i in incidents),
    }


def _summarise_times(times: Iterable[float | None]) -> dict[str, Any]:
    known = [s for s in times if s is not None]
    return {"median_s": median(known) if known else None, "known": len(known)}


# The table ---------------------------------------------------------------------------------------------------


def table(incidents: Iterable[IncidentSummary]) -> pd.DataFrame:
    """Return one row per incident; the columns are the fields of `IncidentSummary`."""
    return pd.DataFrame([i.row() for i in incidents], columns=[f.name for f in fields(IncidentSummary)])


def as_csv(rows: pd.DataFrame) -> str:
    """Return the table for a spreadsheet."""
    return rows.map(_as_cell).to_csv(index=False)


def _as_cell(value: Any) -> Any:
    """Return a value that a spreadsheet does not run: a text that begins like a formula gets an apostrophe."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value) else value


def summary_lines(said: Mapping[str, Any]) -> list[Text]:
    """Return the number of incidents and the median times to detect and to recover."""
    ttd, ttr = said["ttd"], said["ttr"]
    return [
        say("report.incidents", n=len(said["incidents"])),
        say("report.median_ttd", s=ttd["median_s"], n=ttd["known"]),
        say("report.median_ttr", s=ttr["median_s"], n=ttr["known"]),
    ]


def as_text(rows: pd.DataFrame, *columns: str) -> str:
    """Return the table as lines of text."""
    with pd.option_context("display.unicode.east_asian_width", True):
        text: str = _with_headings(_format_cells(rows, columns or SHOWN)).to_string(index=False, justify="left")
    return text


def as_html(rows: pd.DataFrame) -> str:
    """Return the table as HTML."""
    cells = _format_cells(rows, SHOWN).map(escape)
    for column in ("worst", "last"):
        cells[column] = [render.status_tag(status) if status else "" for status in rows[column]]
    html: str = _with_headings(cells).to_html(index=False, border=0, escape=False)
    return html.replace("<table", '<table tabindex="0"', 1)


def _with_headings(cells: pd.DataFrame) -> pd.DataFrame:
    return cells.rename(columns=lambda c: messages.text(say(f"report.col.{c}")))


def _format_cells(rows: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return these columns as people read them."""
    known = messages.catalogue()  # a dossier may be of another runbook

    def cell(row: Mapping[Any, Any], column: str) -> str:
        match column:
            case "begun":
                return render.when(row["begun"])
            case "begun_by":
                return messages.text(say(f"report.by.{row['begun_by']}", alert=row["alert"]))
            case "place":
                return " / ".join(known.get(hop_text(p).key, p) for p in row["place"].split(" / "))
            case "modes":
                return " / ".join(f"{m} {render.mode_title(m)}".strip() for m in row["modes"].split(" / "))
            case "ttd" | "ttr":
                return messages.text(say(f"report.took.{row[f'{column}_by'] or 'not_known'}", s=row[f"{column}_s"]))
        return str(row[column])

    each = rows.to_dict("records")
    return pd.DataFrame({c: [cell(row, c) for row in each] for c in columns}, dtype=object)
