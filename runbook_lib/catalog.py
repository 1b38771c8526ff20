"""Sections, steps, SLOs, thresholds and failure modes, read out of docs/*.md.

The documents that the runbook refers to are the configuration, so text and code cannot drift. The formats are
described at the head of each document; a malformed one is a `CatalogError` that names file and line.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import NoReturn

from markdown_it import MarkdownIt
from markdown_it.rules_block.table import escapedSplit
from markdown_it.tree import SyntaxTreeNode

from runbook_lib.model.finding import DATABASE, HOPS, Threshold, Value

_PACKAGE = Path(__file__).parent
#: Blocks and the lines they stand on; what is within a line is read as it is written.
_MARKDOWN = MarkdownIt("commonmark").enable("table").disable("inline")
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
    slo, failures, runbook, operations = (
        _Document.read(root / "docs" / f"{name}.md") for name in ("slo", "failure-modes", "runbook", "operations")
    )
    slos, limits = _read_slo(slo)
    modes = _read_failure_modes(failures, slos)
    sections = _read_runbook(runbook, root / "notebooks")
    steps = {step.id for section in sections.values() for step in section.steps}
    for row in slo.rows("Threshold"):
        row.words("Steps", steps, "in runbook.md")
    for row in slo.rows("SLO"):
        row.words("Failure modes", modes, "in failure-modes.md")
    return Catalog(sections, slos, limits, modes, _read_phrases(failures, modes), *_read_operations(operations))


def _read_operations(document: _Document) -> tuple[dict[str, Setting], dict[str, str], dict[str, RedrivePolicy]]:
    settings = {
        row["Setting"]: Setting(
            row["Setting"], row["Workload"], row["Variable"], row["Default"],
            row.number("From"), row.number("To"), row["Unit"],
        )
        for row in document.rows("Setting")
    }  # fmt: skip
    forbidden = {row["Never set"]: row["Why"] for row in document.rows("Never set")}
    policies = {
        row["Redrive"]: RedrivePolicy(
            row["Redrive"], row["Who"], int(row.number("At once") or 0), row.words("Kinds"),
            int(row.number("Times per event") or 0), row.number("Pause") or 0.0,
        )
        for row in document.rows("Redrive")
    }  # fmt: skip
    return settings, forbidden, policies


def _read_slo(document: _Document) -> tuple[dict[str, Slo], Limits]:
    slos: dict[str, Slo] = {}
    for row in document.rows("SLO"):
        m = re.fullmatch(r"(<=|>=|<|>|=) *(\d+\.?\d*) *(\S+)", row["Objective"])
        if not m:
            raise row.error(f"objective '{row['Objective']}' is not like '< 5 s'")
        slos[row["SLO"]] = Slo(
            row["SLO"], row["Service"], row["SLI"], m[1], float(m[2]), m[3], row["Window"],
            row.words("Failure modes"),
        )  # fmt: skip
    limits = Limits()
    for row in document.rows("Threshold"):
        name = row["Threshold"]
        (warning, below_w), (critical, below_c) = row.limit("Warning"), row.limit("Critical")
        if warning is not None and critical is not None and below_w != below_c:
            raise row.error(f"`{name}`: one limit is '<' and the other is not")
        limits[name] = Threshold(name, row["Unit"], warning, critical, below_w or below_c, f"docs/slo.md `{name}`")
    return slos, limits


def _read_failure_modes(document: _Document, slos: Collection[str]) -> dict[str, FailureMode]:
    modes: dict[str, FailureMode] = {}
    for (id_, en, ja), facts, _ in document.headings(3, r"(FM-[A-Z]+-\d\d) +(.+?) +· +(.+)", "FM-DB-01 Title · 題"):
        hops = (*HOPS, DATABASE)
        modes[id_] = FailureMode(
            id_, en, ja, facts.words("Hop", hops, f"among {', '.join(hops)}"), facts["Symptom"], facts["Detection"],
            facts["Mitigation"], facts.words("SLO", slos, "in slo.md"), facts.words("Sections"),
        )  # fmt: skip
    return modes


def _read_phrases(document: _Document, modes: Collection[str]) -> dict[str, Phrase]:
    phrases: dict[str, Phrase] = {}
    for row in document.rows("Log phrase"):
        if row["Level"] not in LEVELS:
            raise row.error(f"level '{row['Level']}' is not among {', '.join(LEVELS)}")
        phrases[row["Log phrase"]] = Phrase(
            row["Log phrase"], row.words("Workload"), row["Level"],
            row.words("Failure mode", modes, "a heading of this document"), row["Meaning"], row["意味"],
        )  # fmt: skip
    return phrases


def _read_runbook(document: _Document, notebooks: Path) -> dict[str, Section]:
    sections: dict[str, Section] = {}
    for (number, en, ja), facts, body in document.headings(2, r"(\d(?:\.\d)?) +(.+?) +· +(.+)", "4.1 Title · 題"):
        steps = []
        for row in body.rows("Step"):
            if not row["Step"].startswith(number + "."):
                raise row.error(f"step '{row['Step']}' is not of section {number}")
            steps.append(Step(row["Step"], row["What is asked"], row["確認すること"]))
        notebook = None if facts["Notebook"] == "-" else notebooks / facts["Notebook"]
        sections[number] = Section(number, en, ja, notebook, facts["Reads"], facts["Takes"], tuple(steps))
    return sections


class _Record(dict[str, str]):
    """A table's row by its columns, or a heading's bullets by their names, and where it stands."""

    def __init__(self, path: Path, line: int, kind: str, values: Iterable[tuple[str, str]]) -> None:
        super().__init__(values)
        self.path, self.line, self.kind = path, line, kind

    def error(self, problem: str) -> CatalogError:
        return CatalogError(self.path, self.line, problem)

    def __missing__(self, name: str) -> NoReturn:
        raise self.error(f"{self.kind.format(name)} is missing here")

    def words(self, column: str, known: Collection[str] | None = None, where: str = "") -> tuple[str, ...]:
        """The words between commas, '-' being none; each must be `known`."""
        words = () if self[column] == "-" else tuple(w.strip() for w in self[column].split(",") if w.strip())
        for word in words:
            if known is not None and word not in known:
                raise self.error(f"{column.lower().removesuffix('s')} '{word}' is not {where}")
        return words

    def number(self, column: str) -> float | None:
        """A number, or None for '-'."""
        try:
            return None if self[column] == "-" else float(self[column])
        except ValueError:
            raise self.error(f"'{self[column]}' is not a number or '-'") from None

    def limit(self, column: str) -> tuple[float | None, bool]:
        """A limit, and whether it is one from below."""
        m = re.fullmatch(r"-|(<)? *(\d+\.?\d*)", self[column])
        if not m:
            raise self.error(f"limit '{self[column]}' is not a number, '< number' or '-'")
        return float(m[2]) if m[2] else None, m[1] is not None


@dataclass(frozen=True)
class _Document:
    """A document, or what stands in it under one heading."""

    path: Path
    line: int
    lines: list[str]
    blocks: Sequence[SyntaxTreeNode]

    @staticmethod
    def read(path: Path) -> _Document:
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as e:
            raise CatalogError(path, 1, f"cannot be read ({e.strerror})") from None
        return _Document(path, 1, text.split("\n"), SyntaxTreeNode(_MARKDOWN.parse(text)).children)

    def headings(self, level: int, pattern: str, like: str) -> Iterator[tuple[Sequence[str], _Record, _Document]]:
        """The parts of each such heading, the bullets `- Name: text` under it, and all down to the next heading."""
        starts = [i for i, b in enumerate(self.blocks) if _depth(b) == level and re.fullmatch(pattern, _text(b))]
        if not starts:
            raise CatalogError(self.path, self.line, f"no heading like '{like}'")
        for i in starts:
            under = list(takewhile(lambda b: _depth(b) > level, self.blocks[i + 1 :]))
            items = (item.children[:1] for b in under if b.type == "bullet_list" for item in b.children)
            named = (" ".join(_text(first).split()).partition(": ")[::2] for item in items for first in item)
            part = replace(self, line=(self.blocks[i].map or (0,))[0] + 1, blocks=under)
            facts = _Record(self.path, part.line, "the bullet '- {}: ...'", named)
            yield re.findall(pattern, _text(self.blocks[i]))[0], facts, part

    def rows(self, first: str) -> Iterator[_Record]:
        """The rows of the tables whose first column is named `first`."""
        spans = (b.map for b in self.blocks if b.type == "table" and b.map)
        tables = [(begin, end) for begin, end in spans if _cells(self.lines[begin])[0] == first]
        if not tables:
            raise CatalogError(self.path, self.line, f"no table whose first column is '{first}'")
        for begin, end in tables:
            header, _, *rows = map(_cells, self.lines[begin:end])
            for line, cells in enumerate(rows, start=begin + 3):
                if len(cells) != len(header):
                    raise CatalogError(self.path, line, f"{len(cells)} cells under {len(header)} columns")
                yield _Record(self.path, line, "the column '{}'", zip(header, cells, strict=True))


def _cells(line: str) -> list[str]:
    """The cells of a table's line; one that is nothing but code stands without its marks."""
    cells = escapedSplit(line.strip().removeprefix("|").removesuffix("|"))
    return [re.sub(r"^`([^`]*)`$", r"\1", cell.strip()) for cell in cells]


def _depth(block: SyntaxTreeNode) -> int:
    return int(block.tag[1]) if block.type == "heading" else 7


def _text(block: SyntaxTreeNode) -> str:
    """The words of a heading or a paragraph, as they are written."""
    return block.children[0].content if block.children else ""
