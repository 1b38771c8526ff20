"""The incidents of a period, for whoever looks after the runbook: from the dossiers' logs and postmortems alone.

What is not written there is not known: no notebook is opened, no system is asked, nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from runbook_lib import catalog, mandatory, messages
from runbook_lib.analysis.diagnosis import BROKEN
from runbook_lib.model.finding import Status, Text, say, worst
from runbook_lib.parameters import moment
from runbook_lib.store import ACTION_LOG, MANIFEST, NOTES, Archive
from runbook_lib.view import record, render

if TYPE_CHECKING:
    from runbook_lib.session import Session

Lines = Sequence[Mapping[str, Any]]
#: What says how long something took: a postmortem's record, or a run's `detected_at` and the run that saw the recovery.
By = Literal["", "postmortem", "detected_at"]

#: Among so many dossiers beside one those that are like it are looked for, from this share of places and modes on.
NEWEST, ALIKE = 200, 0.5
#: So many of them are named.
MOST = 3
#: What becomes of an action before it is one.
_NOT_YET = ("dry", "approved")
_ALERT = re.compile(r"(.+?) (?:firing|resolved)\b")
_SECONDS: TypeAdapter[float] = TypeAdapter(mandatory.Amount)
_MARKS = {True: "✔", False: "✖", None: "?"}


@dataclass(frozen=True)
class Acted:
    """An action that was asked for; `helped` is None where it was refused, or nobody saw how it ended.

    `break_glass`: a rule of the target was waived for it.
    """

    action: str
    what: str
    result: str
    helped: bool | None
    break_glass: bool = False

    def __str__(self) -> str:
        loud = " ▲ BREAK-GLASS" if self.break_glass else ""
        return f"{_MARKS[self.helped]} {self.action} {self.what}".rstrip() + loud


@dataclass(frozen=True)
class Measure:
    """A measure of a postmortem that is not done yet, as it was typed."""

    kind: str
    measure: str
    owner: str
    due: str

    def __str__(self) -> str:
        return self.measure


@dataclass(frozen=True)
class Incident:
    """What a dossier says of its incident; `worst` and `last` are "" where nothing was concluded.

    `alert` is the rule's name where it was noted; `place` and `modes` are several where it stayed undecided.
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
    actions: tuple[Acted, ...]
    measures: tuple[Measure, ...]

    def row(self) -> dict[str, Any]:
        """The same, flat."""
        return {name: " / ".join(map(str, v)) if isinstance(v, tuple) else v for name, v in vars(self).items()}


# What is read -----------------------------------------------------------------------------------------------


def read(
    output: str, since: pd.Timestamp | None, until: pd.Timestamp | None, only: Iterable[str] | None = None
) -> tuple[list[Incident], list[Text]]:
    """The incidents that began in [since, until), the oldest first, and a line for each dossier that can not be read.

    Raises OSError where the output itself can not.
    """
    found, unread = list[Incident](), list[Text]()
    for name in Archive(output, "").names() if only is None else only:
        archive = Archive(output, name)
        try:
            manifest, actions, notes = (archive.lines(log) for log in (MANIFEST, ACTION_LOG, NOTES))
            if manifest or actions or notes:
                draft = b"\n".join(archive.raw(mandatory.MARKDOWN)).decode(errors="replace")
                found.append(of(name, manifest, actions, notes, draft))
        except NotADirectoryError:
            continue
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:  # whatever a broken line is
            said = e.strerror if isinstance(e, OSError) else f"{type(e).__name__}: {e}"
            unread.append(say("report.unread", incident=name, detail=said))
    found = [i for i in found if (since is None or since <= i.begun) and (until is None or i.begun < until)]
    return sorted(found, key=lambda i: (i.begun, i.incident)), unread


def of(incident: str, manifest: Lines, actions: Lines, notes: Lines, draft: str = "") -> Incident:
    """An incident by its logs, which hold a line at least, and its postmortem. Raises what a broken line does."""
    logs = ((manifest, "started"), (actions, "time"), (notes, "time"))
    begun = min(moment(line[name]) for log, name in logs for line in log)
    # A look back says nothing of how things stood.
    looks = [e for e in manifest if e.get("section") != mandatory.SECTION and e.get("sections") != [mandatory.SECTION]]
    runs = [e for e in looks if "section" in e]
    statuses = [Status[e.get("verdict", e)["status"]] for e in looks]
    # A run from a browser is in no command's verdict; of two that are as bad, that has the failure modes.
    worst_of = located([*(e for e in looks if "verdict" in e), *({"verdict": e} for e in runs)])
    verdict = worst_of["verdict"] if worst_of else {}
    given = [p for e in manifest if (p := e.get("parameters"))]

    def told(name: str, *more: Mapping[str, Any]) -> Any:
        return next((p[name] for p in (*given, *more) if p.get(name)), None)

    noted = next((n for n in notes if n["who"] == "alert"), None)
    alerted = told("detected_by") == "alert" or bool(
        noted and not told("detected_by") and moment(noted["time"]) == begun
    )
    rule = _ALERT.match(noted["text"]) if alerted and noted else None
    held = mandatory.record_of(draft) if draft else {}
    ttd, ttr = (_took(held.get("timeline"), name) for name in ("ttd_seconds", "ttr_seconds"))
    seen = _seen(runs, told("detected_at")) if ttr is None else None
    return Incident(
        incident=incident,
        begun=begun,
        target=told("target", *actions) or "default",
        begun_by="alert" if alerted else "person",
        alert=rule[1] if rule else "",
        worst=worst(statuses).name if statuses else "",
        last=statuses[-1].name if statuses else "",
        place=_place(verdict),
        modes=_modes(verdict, held.get("origin")),
        ttd_s=ttd,
        ttd_by="" if ttd is None else "postmortem",
        ttr_s=seen if ttr is None else ttr,
        ttr_by="postmortem" if ttr is not None else "" if seen is None else "detected_at",
        sections=tuple(dict.fromkeys(e["section"] for e in manifest if "section" in e)),
        actions=tuple(_acted(a) for a in {a["id"]: a for a in actions}.values() if a["result"] not in _NOT_YET),
        measures=tuple(
            Measure(*(m[f.name] for f in fields(Measure))) for m in mandatory.measures_of(draft) if not m["done"]
        ),
    )


def located(verdicts: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The verdict that names the incident: the worst, of these the surest, of these the first; None if all are OK."""
    sure = ("none", "low", "medium", "high")
    found = [v for v in verdicts if v["verdict"]["status"] != "OK"]
    return max(
        found,
        key=lambda v: (Status[v["verdict"]["status"]].rank, sure.index(v["verdict"]["confidence"])),
        default=None,
    )


def _place(verdict: Mapping[str, Any]) -> tuple[str, ...]:
    return (verdict["stuck_at"],) if verdict.get("stuck_at") else tuple(verdict.get("undecided", ()))


def _modes(verdict: Mapping[str, Any], origin: Any) -> tuple[str, ...]:
    """The postmortem's origin; else the modes that it stayed undecided between, or the likeliest that stands."""
    if isinstance(origin, str) and origin in catalog.load().failure_modes:
        return (origin,)
    likeliest = [m["id"] for m in verdict.get("failure_modes", ()) if m["score"] >= BROKEN]
    return tuple(verdict.get("between") or likeliest[:1])


def _took(timeline: Any, name: str) -> float | None:
    try:
        return _SECONDS.validate_python(timeline[name])
    except (LookupError, TypeError, ValidationError):
        return None


def _seen(runs: Lines, detected_at: str | None) -> float | None:
    """Seconds from the detection to the first run of section 6 that was OK after the last bad run."""
    good: pd.Timestamp | None = None
    for e in sorted(runs, key=lambda e: moment(e["started"])):
        recovery = e["section"] == catalog.RECOVERY
        if recovery and e["status"] == "OK":
            good = good or moment((e.get("parameters") or {}).get("as_of") or e["started"])
        elif recovery or e["status"] == "CRITICAL":
            good = None
    seconds = round((good - moment(detected_at)).total_seconds(), 1) if good and detected_at else -1.0
    return seconds if seconds >= 0 else None


def _acted(a: Mapping[str, Any]) -> Acted:
    helped = {"done": a.get("verified"), "failed": False}.get(a["result"])
    return Acted(a["action"], record.what(a.get("what") or {}), a["result"], helped, bool(a.get("break_glass")))


@dataclass(frozen=True)
class SeenBefore(render.Shown):
    """Past incidents, with what was done and whether it helped."""

    incidents: Sequence[Incident]
    lang: str

    def _bundle(self) -> dict[str, Any]:
        shown = [*self.incidents]
        title = messages.text(say("dossier.seen_before"), self.lang)
        rows = [
            [_cell(i.row(), c, self.lang) for c in ("begun", "incident", "place", "modes", "actions")] for i in shown
        ]
        return {
            "text/html": render.html("seen_before", self.lang, incidents=shown, linked=False),
            "text/plain": "\n".join([title, *(f"  {line}" for line in render.columns(rows))]),
        }


def of_run(rb: Session) -> SeenBefore | None:
    """The past incidents most like what this run has found so far, and what helped then; None where none is.

    Of the newest dossiers under the same output, as far as they can be read at once. Only looks, and never raises.
    """
    verdict = record.verdict(rb.verdict())
    own = {*_place(verdict), *_modes(verdict, None)}
    try:
        found = _likest(rb.context.archive, own, pd.Timestamp.now("UTC")) if _modes(verdict, None) else []
    except OSError:
        found = []
    return SeenBefore(found, rb.lang, run=rb.opened) if found else None


def seen_before(archive: Archive) -> list[Incident]:
    """The incidents before this one whose place and failure modes are most like its own, the likest first.

    Raises OSError.
    """
    own = next((i for i in read(archive.output, None, None, only=[archive.incident])[0]), None)
    return _likest(archive, {*own.place, *own.modes}, own.begun) if own and own.modes else []


def _likest(archive: Archive, own: set[str], before: pd.Timestamp) -> list[Incident]:
    """Of the newest dossiers beside it, as far as they can be read. Raises OSError."""
    others = [n for n in Archive(archive.output, "").names() if n != archive.incident][-NEWEST:]
    like = {
        i: len(own & {*i.modes, *i.place}) / len(own | {*i.modes, *i.place})
        for i in read(archive.output, None, before, only=others)[0]
    }
    return sorted((i for i in like if like[i] >= ALIKE), key=lambda i: (-like[i], -i.begun.value))[:MOST]


# What it comes to -------------------------------------------------------------------------------------------


def report(incidents: Sequence[Incident]) -> dict[str, Any]:
    """The incidents and their sums as plain data."""
    kinds: dict[tuple[str, str], list[str]] = {}
    rules: dict[str, list[Incident]] = {}
    for i in incidents:
        for mode in i.modes or ("",) * bool(i.place):
            kinds.setdefault((mode, " / ".join(i.place)), []).append(i.incident)
        if i.begun_by == "alert":
            rules.setdefault(i.alert, []).append(i)
    nothing = {rule: [i.incident for i in begun if i.worst == Status.OK.name] for rule, begun in rules.items()}
    return {
        "incidents": [record.plain(asdict(i)) for i in incidents],
        "modes": [
            {"mode": mode, "place": place, "incidents": names}
            for (mode, place), names in sorted(kinds.items(), key=lambda k: (-len(k[1]), k[0]))
        ],
        "alerts_for_nothing": [
            {"alert": rule, "incidents": names, "of": len(rules[rule])}
            for rule, names in sorted(nothing.items(), key=lambda n: (-len(n[1]), n[0]))
            if names
        ],
        "actions_not_helped": [
            {"incident": i.incident} | asdict(a) for i in incidents for a in i.actions if a.helped is False
        ],
        "break_glass": [{"incident": i.incident} | asdict(a) for i in incidents for a in i.actions if a.break_glass],
        "open_measures": sorted(
            ({"incident": i.incident} | asdict(m) for i in incidents for m in i.measures),
            key=lambda m: (m["due"] or "~", m["incident"]),
        ),
        "ttd": _median(i.ttd_s for i in incidents),
        "ttr": _median(i.ttr_s for i in incidents),
    }


def _median(times: Iterable[float | None]) -> dict[str, Any]:
    known = [s for s in times if s is not None]
    return {"median_s": median(known) if known else None, "known": len(known)}


def frame(incidents: Iterable[Incident]) -> pd.DataFrame:
    """A row an incident; columns: the fields of `Incident`."""
    return pd.DataFrame([i.row() for i in incidents], columns=[f.name for f in fields(Incident)])


# In words ---------------------------------------------------------------------------------------------------

#: Its title, the heads of its columns, its rows.
Table = tuple[str, list[str], list[list[str]]]

_COLUMNS = {
    "list": ("begun", "incident", "target", "begun_by", "worst", "last", "place", "modes"),
    "course": ("incident", "ttd", "ttr", "sections", "actions", "measures"),
    "modes": ("n", "mode", "place", "incidents"),
    "alerts_for_nothing": ("alert", "n", "of", "incidents"),
    "actions_not_helped": ("incident", "action", "what", "result"),
    "break_glass": ("incident", "action", "what", "result"),
    "open_measures": ("incident", "kind", "measure", "owner", "due"),
}


def sums(said: Mapping[str, Any]) -> list[Text]:
    """How many there were, and how long they took to be detected and to be over."""
    times = (say(f"report.median_{name}", s=said[name]["median_s"], n=said[name]["known"]) for name in ("ttd", "ttr"))
    return [say("report.incidents", n=len(said["incidents"])), *times]


def tables(incidents: Iterable[Incident], said: Mapping[str, Any], lang: str) -> list[Table]:
    """The incidents and what `report` says of them; what would be empty is left out."""
    flat = [i.row() for i in incidents]
    rows = dict(said) | {"list": flat, "course": flat}
    return [
        (
            messages.text(say(f"report.{name}"), lang),
            [messages.text(say(f"report.col.{c}"), lang) for c in columns],
            [[_cell(row, c, lang) for c in columns] for row in rows[name]],
        )
        for name, columns in _COLUMNS.items()
        if rows[name]
    ]


def lines(incidents: Iterable[Incident], said: Mapping[str, Any], lang: str) -> list[str]:
    """The same as text."""
    told = [messages.text(line, lang) for line in sums(said)]
    for name, heads, rows in tables(incidents, said, lang):
        told += ["", name, *(f"  {line}" for line in render.columns([heads, *rows]))]
    return told


def _cell(row: Mapping[str, Any], column: str, lang: str) -> str:
    def t(key: str, **params: Any) -> str:
        return messages.text(say(key, **params), lang)

    value = row.get(column)
    match column:
        case "n":
            return str(len(row["incidents"]))
        case "begun":
            return render.when(row[column])
        case "begun_by":
            return t(f"report.by.{value}", alert=row["alert"])
        case "alert":
            return value or t("report.unnamed")
        case "place":
            known = messages.catalogue(lang)  # the dossier may be of another runbook
            return " / ".join(known.get(f"hop.{p}", p) for p in row[column].split(" / "))
        case "mode" | "modes":
            return " / ".join(f"{m} {render.mode_title(m, lang)}".strip() for m in row[column].split(" / "))
        case "ttd" | "ttr":
            return t(f"report.took.{row[f'{column}_by'] or 'not_known'}", s=row[f"{column}_s"])
        case "result":
            return t(f"action.result.{value}")
    return ", ".join(value) if isinstance(value, list) else str(value)
