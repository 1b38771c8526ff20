"""Now against then, against another run, or against what is usual here: `rb.compare`, `runbook diff`, `runbook watch`.

What is usual is kept per target, in a folder beside the incidents':

    <output>/baseline-<target>/usual.jsonl     the numbers of one healthy look a line
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pandas as pd
from IPython.display import display

from runbook_lib import catalog, messages
from runbook_lib.analysis import compare as differ
from runbook_lib.analysis.compare import Change, Key, Look, Usual
from runbook_lib.archive import artifact
from runbook_lib.model.finding import Status, Text, say
from runbook_lib.session import Session, quiet_session
from runbook_lib.store import Archive
from runbook_lib.usage import UsageError, did_you_mean
from runbook_lib.view import record, render

HEALTHY = "healthy"
USUAL = "usual.jsonl"
#: How long what is usual is remembered, and how many looks within an hour of the week's say what is usual then.
KEPT, ENOUGH = pd.Timedelta(weeks=8), 5


@dataclass(frozen=True)
class Compared(render.Shown):
    """What differs between two looks, or between one and what is usual: as text, in a notebook and as a page."""

    title: Text
    changes: tuple[Change, ...]
    lang: str

    def lines(self) -> list[str]:
        """As text: what is compared, then a line a difference."""
        table = render.columns(self.table(), right=(1, 2))
        return [self._t(self.title), *(f"  {line}" for line in table or [self._t(say("compare.same"))])]

    def table(self) -> list[tuple[str, str, str]]:
        """What, before and after, in words."""
        return [(self._what(c), self._shown(c, c.before), self._shown(c, c.after)) for c in self.changes]

    def record(self) -> dict[str, Any]:
        """As JSON."""
        plain = [record.plain(vars(c) | {"before": _plain(c.before), "after": _plain(c.after)}) for c in self.changes]
        return {"title": self._t(self.title), "changes": plain}

    def _what(self, c: Change) -> str:
        if c.kind == "verdict":
            return self._t(say("compare.verdict"))
        if c.kind == "mode":
            return f"{c.where} {render.mode_title(c.where, self.lang)}"
        if c.kind == "hop":
            return f"{self._t(say(f'hop.{c.where}'))}: {self._t(say(f'compare.{c.name}'))}"
        return f"{c.where} {c.name}".strip()

    def _shown(self, c: Change, value: Any) -> str:
        if value is None:
            return "-"
        if isinstance(value, Status):
            return f"{render.MARKS[value.name]} {value.name}"
        if isinstance(value, tuple):
            status, place = value
            return " ".join(filter(None, (status.name, place and self._t(say(f"hop.{place}")))))
        return f"{value:,.4g} {c.unit}".rstrip()

    def _bundle(self) -> dict[str, Any]:
        return {
            "text/html": render.html("compare", self.lang, title=self.title, table=self.table()),
            "text/plain": "\n".join(self.lines()),
        }

    def _t(self, text: Text) -> str:
        return messages.text(text, self.lang)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return {"status": value[0].name, "stuck_at": value[1]}
    return value.name if isinstance(value, Status) else value


# What is compared -------------------------------------------------------------------------------------------


def compare(rb: Session, other: str = "10m ago") -> Compared:
    """This run, as far as it has been answered, against "10m ago", "healthy", or a run of a dossier by its name.

    "10m ago" is a run of that time in this incident's dossier, or what the rows' own timestamps still tell of it; a
    name may be shortened, and has its incident before it where that is another (`INC-7/20261126T0312`). Raises
    UsageError, one line, where there is no such run, or nothing is known of what is usual.
    """
    after = of(rb)
    if other == HEALTHY:
        return against_usual(rb, after)
    ago_s = catalog.duration(other.removesuffix("ago")) if other.endswith("ago") else None
    before = _then(rb, pd.Timedelta(seconds=ago_s)) if ago_s is not None else run(rb.context.archive, other)
    return between(before, after, rb.lang, opened=rb.opened)


def between(before: Look, after: Look, lang: str, opened: str = "") -> Compared:
    """Two looks."""
    title = say("compare.title", before=before.name, after=after.name)
    return Compared(title, differ.compare(before, after), lang, run=opened)


def of(rb: Session) -> Look:
    """What a run has found so far."""
    findings = tuple(rb.findings[step.id] for step in rb.context.section.steps if step.id in rb.findings)
    at, window = rb.context.as_of, rb.context.parameters.window_minutes
    return Look(render.when(at), at, findings, rb.verdict(), window)


def run(archive: Archive, name: str) -> Look:
    """A concluded run of a dossier; the beginning of its name is enough where it is the only one. Raises UsageError."""
    incident, _, short = name.rpartition("/")
    archive = Archive(archive.output, incident or archive.incident)
    names = [e["name"] for e in archive.manifest() if e.get("section")]
    found = [n for n in names if n.startswith(short)]
    if len(found) != 1:
        problem = "no run" if not found else f"{len(found)} runs"
        raise UsageError(f"{archive.incident} has {problem} '{short}': {did_you_mean(short, names)}")
    return _read(archive, found[0])


def _read(archive: Archive, name: str) -> Look:
    entry = next(e for e in archive.manifest() if e.get("name") == name)
    section = catalog.load().sections[entry["section"]]
    try:
        kept = artifact.read(artifact.notebook(archive.read(f"{name}.ipynb")), section)
    except (OSError, ValueError) as e:
        raise UsageError(f"{archive.incident}: {name} can not be read: {e}") from None
    at, window = pd.Timestamp(kept.header["as_of"]), kept.header["window_minutes"]
    return Look(name, at, kept.findings, kept.verdict, window)


def _then(rb: Session, ago: pd.Timedelta) -> Look:
    """A run of this section that was made about then, or one that looks back now."""
    moment, section = rb.context.as_of - ago, rb.context.section.number
    parameters = rb.context.parameters
    made = [
        e
        for e in rb.context.archive.manifest()
        if e.get("section") == section and e["parameters"].get("target") == parameters.target
    ]
    apart = {e["name"]: abs(pd.Timestamp(e["started"]) - moment) for e in made}
    nearest = min(apart, key=lambda name: apart[name], default=None)
    if nearest and apart[nearest] <= ago / 4:
        return _read(rb.context.archive, nearest)
    same = parameters.model_dump(exclude_unset=True) | {"as_of": moment.isoformat()}
    return of(answered(section, **same))


def answered(section: str, **parameters: Any) -> Session:
    """A run of a section in which every step has been asked, and nothing shown. Raises UsageError."""
    rb = quiet_session(section, **parameters)
    rb.look()
    return rb


# What is usual ----------------------------------------------------------------------------------------------


def baseline(output: str, target: str) -> Archive:
    """Where what is usual for a target is kept."""
    return Archive(output, f"baseline-{target}")


def keep(rb: Session, output: str) -> None:
    """Keep the numbers of a run, which its caller has found healthy, and drop what is too old. Raises OSError."""
    archive, look = baseline(output, rb.context.parameters.target), of(rb)
    oldest = rb.context.as_of - KEPT
    seen = differ.numbers(look.findings, look.verdict)
    line = {
        "at": rb.context.as_of.isoformat(),
        "section": rb.context.section.number,
        "window_minutes": look.window_minutes,
        "numbers": [[*key, number.value] for key, number in seen.items()],
    }
    archive.prepare(people=False)
    with archive.locked():
        kept = [e for e in archive.lines(USUAL) if pd.Timestamp(e["at"]) >= oldest]
        archive.write(USUAL, "".join(json.dumps(e) + "\n" for e in [*kept, line]).encode())


def against_usual(rb: Session, look: Look) -> Compared:
    """A look against the healthy ones at the same hour of the week, or of any hour where these are too few.

    Raises UsageError where there is none at all.
    """
    target, section = rb.context.parameters.target, rb.context.section.number
    alike = {"section": section, "window_minutes": look.window_minutes}
    kept = [e for e in baseline(rb.context.archive.output, target).lines(USUAL) if alike.items() <= e.items()]
    near = [e for e in kept if _apart_h(pd.Timestamp(e["at"]), rb.context.as_of) <= 1]
    enough = len(near) >= ENOUGH
    if not kept:
        raise UsageError(f"nothing is known of what is usual: runbook baseline {section} --target {target} keeps it")
    title = say("compare.usual" if enough else "compare.usual_any", n=len(near if enough else kept), after=look.name)
    changes = differ.beside(_levels(near if enough else kept), look)
    return Compared(title, changes, rb.lang, run=rb.opened)


def _levels(lines: Sequence[dict[str, Any]]) -> dict[Key, Usual]:
    return differ.usual([{(where, name): value for where, name, value in e["numbers"]} for e in lines])


def _apart_h(one: pd.Timestamp, other: pd.Timestamp) -> float:
    """Hours between two moments of a week, whichever weeks they are of."""
    week = pd.Timedelta(weeks=1)
    apart = abs(one - other) % week
    return float(min(apart, week - apart) / pd.Timedelta(hours=1))


# Look after look --------------------------------------------------------------------------------------------


def first_and_last(archive: Archive) -> list[tuple[str, str]]:
    """The first run and the last of each section that ran more than once. Raises UsageError where none did."""
    names: dict[str, list[str]] = {}
    for entry in archive.manifest():
        if section := entry.get("section"):
            names.setdefault(section, []).append(entry["name"])
    pairs = [(ran[0], ran[-1]) for ran in names.values() if len(ran) > 1]
    if not pairs:
        raise UsageError(f"{archive.incident} has no section that ran twice: there is nothing to compare")
    return pairs


def watching(section: str, every_s: float, **parameters: Any) -> Iterator[tuple[Status, list[str]]]:
    """The state of each look and what a person reads of it, for ever; a look begins so many seconds after another."""
    before: Look | None = None
    while True:
        begun = time.monotonic()
        rb = answered(section, **parameters)
        look = of(rb)
        lines = [f"{look.name}  {parameters['target']} {section}", *render.verdict_lines(look.verdict, rb.lang)]
        if before:
            lines += ["", *between(before, look, rb.lang).lines()]
        yield look.verdict.status, lines
        before = look
        time.sleep(max(every_s - (time.monotonic() - begun), 0.0))


def watch(rb: Session, every_s: float = 10.0) -> None:
    """Look again and again, in one cell, until the kernel is interrupted; what the last look has seen stays.

    Nothing is kept of it. Each look is one more run of this section.
    """
    handle = display(render.Plain((), run=rb.opened), display_id=True)
    parameters = rb.context.parameters.model_dump(exclude_unset=True)
    with suppress(KeyboardInterrupt):
        for _, lines in watching(rb.context.section.number, every_s, **parameters):
            handle.update(render.Plain(lines, run=rb.opened))
