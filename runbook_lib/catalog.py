"""Sections, steps, SLOs, thresholds and failure modes, read out of docs/*.md.

The documents that the runbook refers to are the configuration, so text and code cannot drift. The formats are
described at the head of each document; a malformed one is a `CatalogError` that names file and line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from runbook_lib.model.finding import DATABASE, HOPS, Threshold, Value

_PACKAGE = Path(__file__).parent
#: Units of a duration as the applications spell it; a bare number is milliseconds.
_SECONDS = {"ns": 1e-9, "us": 1e-6, "": 1e-3, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
#: In a wheel the documents travel inside the package; in a checkout they lie beside it.
ROOT = _PACKAGE / "_data" if (_PACKAGE / "_data").is_dir() else _PACKAGE.parent


#: The levels of a log that mean something here.
LEVELS = ("INFO", "WARN", "ERROR")


class CatalogError(Exception):
    """A document is not what the catalog can read; the text names file and line."""

    def __init__(self, path: Path, line: int, problem: str) -> None:
        super().__init__(f"{path}:{line}: {problem}")


@dataclass(frozen=True)
class Step:
    """One step of a section, with its question in both languages."""

    id: str
    en: str
    ja: str


@dataclass(frozen=True)
class Section:
    """One section of docs/runbook.md; `notebook` is None where it is done by hand."""

    number: str
    en: str
    ja: str
    notebook: Path | None
    reads: str
    takes: str
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Slo:
    """A service level objective of docs/slo.md; the SLI's limit is `op number unit`."""

    id: str
    service: str
    sli: str
    op: str
    number: float
    unit: str
    window: str
    failure_modes: tuple[str, ...]

    def met(self, value: float) -> bool:
        """Whether an observed SLI value meets the objective."""
        return {
            "<": value < self.number,
            "<=": value <= self.number,
            ">=": value >= self.number,
            ">": value > self.number,
            "=": value == self.number,
        }[self.op]

    @property
    def objective(self) -> str:
        """The objective as it is written."""
        return f"{self.op} {self.number:g} {self.unit}"


@dataclass(frozen=True)
class FailureMode:
    """A failure mode of docs/failure-modes.md."""

    id: str
    en: str
    ja: str
    hops: tuple[str, ...]
    symptom: str
    detection: str
    mitigation: str
    slo: tuple[str, ...]
    sections: tuple[str, ...]


def duration(text: str) -> float | None:
    """Seconds of a duration as the applications spell it; None where they would not take it.

    >>> duration("500ms"), duration("2m"), duration("PT1S"), duration("soon")
    (0.5, 120.0, 1.0, None)
    """
    m = re.fullmatch(r"(?:pt)?(\d+(?:\.\d+)?)(ns|us|ms|s|m|h|d|)", text.strip().lower())
    return float(m[1]) * _SECONDS[m[2]] if m else None


SettingValue = bool | int | float


@dataclass(frozen=True)
class Phrase:
    """What a phrase in a workload's log means; without `failure_modes` it is normal, or too common to tell."""

    text: str
    workloads: tuple[str, ...]
    level: str
    failure_modes: tuple[str, ...]
    en: str
    ja: str


@dataclass(frozen=True)
class Setting:
    """A setting that an action may change, within what range; docs/operations.md."""

    name: str
    workload: str
    variable: str
    default: str
    low: float | None
    high: float | None
    unit: str

    def problem(self, value: object) -> str:
        """Why this value may not be set; "" where it may."""
        if isinstance(value, bool):
            return "" if self.unit == "flag" else f"{self.name} is a number of {self.unit}"
        if self.unit == "flag":
            return f"{self.name} is true or false"
        if not isinstance(value, int | float):
            return f"{self.name} is a number of {self.unit}"
        low, high = (limit if limit is not None else value for limit in (self.low, self.high))
        if not low <= value <= high:
            return f"{self.name} {value:g} is outside {low:g} to {high:g} {self.unit}"
        if self.unit == "rows" and value != int(value):
            return f"{self.name} {value:g} is not a whole number"
        return ""

    def read(self, text: str) -> bool | float | str | None:
        """A value as it was typed: a number, true or false, None for `default`; what is neither stays a text."""
        if text in ("default", "true", "false"):
            return {"default": None, "true": True, "false": False}[text]
        try:
            return float(text.removesuffix("s") if self.unit == "s" else text)
        except ValueError:
            return text

    def spelt(self, value: SettingValue) -> str:
        """The value as the application's variable takes it."""
        if isinstance(value, bool):
            return str(value).lower()
        if self.unit == "s":
            return f"{value:.0f}s" if value == int(value) else f"{value * 1000:.0f}ms"  # no fractions there
        return f"{value:g}"

    @property
    def standard(self) -> SettingValue:
        """The default as a value."""
        return self.default == "true" if self.unit == "flag" else float(self.default)

    def understood(self, text: str) -> SettingValue | None:
        """What the application makes of a variable's text; None where it would not start with it.

        >>> Setting("relay.poll_interval", "entitlement", "X", "1", 0.2, 30, "s").understood("500ms")
        0.5
        """
        word = text.strip().lower()
        if self.unit == "flag":
            return {"true": True, "on": True, "yes": True, "1": True,
                    "false": False, "off": False, "no": False, "0": False}.get(word)  # fmt: skip
        if self.unit == "s":
            return duration(word)
        return float(word) if word.isdecimal() else None


@dataclass(frozen=True)
class RedrivePolicy:
    """Who may send dead letters of one store again, and how; docs/operations.md."""

    store: str
    who: str
    at_once: int
    kinds: tuple[str, ...]
    per_event: int
    pause_s: float


class Limits(dict[str, Threshold]):
    """The thresholds of docs/slo.md by name; what a judge compares with."""

    def value(self, name: str, observed: float | int | None) -> Value:
        """An observed value beside the threshold of the same name."""
        threshold = self[name]
        return Value(name, None if observed is None or observed != observed else observed, threshold.unit, threshold)


@dataclass(frozen=True)
class Catalog:
    """What the documents say."""

    sections: dict[str, Section]
    slos: dict[str, Slo]
    limits: Limits
    failure_modes: dict[str, FailureMode]
    phrases: dict[str, Phrase]
    settings: dict[str, Setting]
    forbidden_variables: dict[str, str]
    redrive: dict[str, RedrivePolicy]

    def runnable(self) -> dict[str, Section]:
        """The sections that have a notebook."""
        return {n: s for n, s in self.sections.items() if s.notebook}


@cache
def load(root: Path = ROOT) -> Catalog:
    """Read the documents under `root`/docs.

    Raises CatalogError when one is missing, malformed or refers to what does not exist.
    """
    docs = root / "docs"
    slos, limits = _read_slo(docs / "slo.md")
    modes = _read_failure_modes(docs / "failure-modes.md", slos)
    sections = _read_runbook(docs / "runbook.md", root / "notebooks")
    steps = {step.id for section in sections.values() for step in section.steps}
    for path, line, row in _tables(docs / "slo.md", "Threshold"):
        for step in _words(row["Steps"]):
            if step not in steps:
                raise CatalogError(path, line, f"step '{step}' is not in runbook.md")
    for path, line, row in _tables(docs / "slo.md", "SLO"):
        for mode in _words(row["Failure modes"]):
            if mode not in modes:
                raise CatalogError(path, line, f"failure mode '{mode}' is not in failure-modes.md")
    operations = _read_operations(docs / "operations.md")
    return Catalog(sections, slos, limits, modes, _read_phrases(docs / "failure-modes.md", modes), *operations)


def _read_operations(path: Path) -> tuple[dict[str, Setting], dict[str, str], dict[str, RedrivePolicy]]:
    settings = {
        row["Setting"].strip("`"): Setting(
            row["Setting"].strip("`"), row["Workload"], row["Variable"].strip("`"), row["Default"],
            _number(file, line, row["From"]), _number(file, line, row["To"]), row["Unit"],
        )
        for file, line, row in _tables(path, "Setting")
    }  # fmt: skip
    forbidden = {row["Never set"].strip("`"): row["Why"] for _, _, row in _tables(path, "Never set")}
    policies = {
        row["Redrive"]: RedrivePolicy(
            row["Redrive"], row["Who"], int(_number(file, line, row["At once"]) or 0), _words(row["Kinds"]),
            int(_number(file, line, row["Times per event"]) or 0), _number(file, line, row["Pause"]) or 0.0,
        )
        for file, line, row in _tables(path, "Redrive")
    }  # fmt: skip
    if not settings or not policies:
        raise CatalogError(path, 1, "no Setting table, or no Redrive table")
    return settings, forbidden, policies


def _number(path: Path, line: int, cell: str) -> float | None:
    if cell == "-":
        return None
    try:
        return float(cell)
    except ValueError:
        raise CatalogError(path, line, f"'{cell}' is not a number or '-'") from None


def _read_slo(path: Path) -> tuple[dict[str, Slo], Limits]:
    slos: dict[str, Slo] = {}
    for file, line, row in _tables(path, "SLO"):
        m = re.fullmatch(r"`?(<=|>=|<|>|=) *([0-9.]+) *([^`\s]+)`?", row["Objective"])
        if not m:
            raise CatalogError(file, line, f"objective '{row['Objective']}' is not like '< 5 s'")
        slos[row["SLO"]] = Slo(
            row["SLO"], row["Service"], row["SLI"], m[1], float(m[2]), m[3], row["Window"],
            _words(row["Failure modes"]),
        )  # fmt: skip
    limits = Limits()
    for file, line, row in _tables(path, "Threshold"):
        name = row["Threshold"].strip("`")
        (warning, below_w), (critical, below_c) = (_limit(file, line, row[c]) for c in ("Warning", "Critical"))
        if warning is not None and critical is not None and below_w != below_c:
            raise CatalogError(file, line, f"`{name}`: one limit is '<' and the other is not")
        limits[name] = Threshold(name, row["Unit"], warning, critical, below_w or below_c, f"docs/slo.md `{name}`")
    if not slos or not limits:
        raise CatalogError(path, 1, "no SLO table, or no Threshold table")
    return slos, limits


def _limit(path: Path, line: int, cell: str) -> tuple[float | None, bool]:
    if cell == "-":
        return None, False
    m = re.fullmatch(r"(<)? *([0-9.]+)", cell)
    if not m:
        raise CatalogError(path, line, f"limit '{cell}' is not a number, '< number' or '-'")
    return float(m[2]), m[1] is not None


def _read_failure_modes(path: Path, slos: dict[str, Slo]) -> dict[str, FailureMode]:
    modes: dict[str, FailureMode] = {}
    for line, heading, body in _headings(path, 3):
        m = re.fullmatch(r"(FM-[A-Z]+-\d\d) +(.+?) +· +(.+)", heading)
        if not m:
            continue
        facts = _facts(path, line, body, ("Hop", "Symptom", "Detection", "Mitigation", "SLO", "Sections"))
        hops, linked = _words(facts["Hop"]), _words(facts["SLO"])
        for hop in hops:
            if hop not in (*HOPS, DATABASE):
                raise CatalogError(path, line, f"{m[1]}: hop '{hop}' is none of {', '.join((*HOPS, DATABASE))}")
        for slo in linked:
            if slo not in slos:
                raise CatalogError(path, line, f"{m[1]}: SLO '{slo}' is not in slo.md")
        modes[m[1]] = FailureMode(
            m[1], m[2], m[3], hops, facts["Symptom"], facts["Detection"], facts["Mitigation"], linked,
            _words(facts["Sections"]),
        )  # fmt: skip
    if not modes:
        raise CatalogError(path, 1, "no heading like '### FM-DB-01 Title · 題'")
    return modes


def _read_phrases(path: Path, modes: dict[str, FailureMode]) -> dict[str, Phrase]:
    phrases: dict[str, Phrase] = {}
    for file, line, row in _tables(path, "Log phrase"):
        phrase = Phrase(
            row["Log phrase"].strip("`"), _words(row["Workload"]), row["Level"], _words(row["Failure mode"]),
            row["Meaning"], row["意味"],
        )  # fmt: skip
        for mode in phrase.failure_modes:
            if mode not in modes:
                raise CatalogError(file, line, f"failure mode '{mode}' has no heading in this document")
        if phrase.level not in LEVELS:
            raise CatalogError(file, line, f"level '{phrase.level}' is none of {', '.join(LEVELS)}")
        phrases[phrase.text] = phrase
    if not phrases:
        raise CatalogError(path, 1, "no Log phrase table")
    return phrases


def _read_runbook(path: Path, notebooks: Path) -> dict[str, Section]:
    sections: dict[str, Section] = {}
    for line, heading, body in _headings(path, 2):
        m = re.fullmatch(r"(\d(?:\.\d)?) +(.+?) +· +(.+)", heading)
        if not m:
            continue
        facts = _facts(path, line, body, ("Notebook", "Reads", "Takes"))
        steps = tuple(
            Step(row["Step"], row["What is asked"], row["確認すること"])
            for _, _, row in _rows(path, line, body, "Step")
        )
        for step in steps:
            if not step.id.startswith(m[1] + "."):
                raise CatalogError(path, line, f"step '{step.id}' is not of section {m[1]}")
        notebook = None if facts["Notebook"] == "-" else notebooks / facts["Notebook"]
        sections[m[1]] = Section(m[1], m[2], m[3], notebook, facts["Reads"], facts["Takes"], steps)
    if not sections:
        raise CatalogError(path, 1, "no heading like '## 4.1 Title · 題'")
    return sections


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as e:
        raise CatalogError(path, 1, f"cannot be read ({e.strerror})") from None


def _headings(path: Path, level: int) -> Iterator[tuple[int, str, list[str]]]:
    """Each heading of that level with its line number and the lines down to the next of it or above."""
    lines = _lines(path)
    starts = [(i, len(m[1]), m[2]) for i, text in enumerate(lines) if (m := re.match(r"(#{1,6}) +(.+?) *$", text))]
    for n, (i, depth, heading) in enumerate(starts):
        if depth == level:
            end = next((j for j, d, _ in starts[n + 1 :] if d <= level), len(lines))
            yield i + 1, heading, lines[i + 1 : end]


def _facts(path: Path, line: int, body: list[str], names: tuple[str, ...]) -> dict[str, str]:
    """The bullets `- Name: text` under a heading; a text may go on in indented lines."""
    joined = re.sub(r"\n +(?=\S)", " ", "\n".join(body))
    found = {m[1]: m[2].strip() for m in re.finditer(r"^- ([A-Z]\w*): (.+)$", joined, re.MULTILINE)}
    for name in names:
        if name not in found:
            raise CatalogError(path, line, f"the bullet '- {name}: ...' is missing under this heading")
    return found


def _tables(path: Path, first: str) -> Iterator[tuple[Path, int, dict[str, str]]]:
    yield from _rows(path, 0, _lines(path), first)


def _rows(path: Path, offset: int, lines: list[str], first: str) -> Iterator[tuple[Path, int, dict[str, str]]]:
    """Rows of the pipe tables whose first column is named `first`, as dicts by column name."""
    header: list[str] | None = None
    for n, text in enumerate(lines, start=offset + 1):
        if not text.startswith("|"):
            header = None
            continue
        cells = [c.strip().replace("\\|", "|") for c in re.split(r"(?<!\\)\|", text.strip())[1:-1]]
        if header is None:
            header = cells
        elif header[0] == first and not set("".join(cells)) <= set("-: "):
            if len(cells) != len(header):
                raise CatalogError(path, n, f"{len(cells)} cells under {len(header)} columns")
            yield path, n, dict(zip(header, cells, strict=True))


def _words(cell: str) -> tuple[str, ...]:
    return () if cell.strip() == "-" else tuple(w.strip() for w in cell.split(",") if w.strip())
