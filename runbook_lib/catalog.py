"""Sections, steps, SLOs, thresholds, hops and failure modes, read out of the packs' documents.

The documents that the runbook refers to are the configuration, so text and code cannot drift. The formats are
described at the head of each document; a malformed one is a `CatalogError` that names file and line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

from markdown_it import MarkdownIt
from markdown_it.rules_block.table import escapedSplit
from markdown_it.tree import SyntaxTreeNode

from runbook_lib import pack
from runbook_lib.model.finding import OWN, Signal, Threshold, Value
from runbook_lib.pack import Pack
from runbook_lib.usage import did_you_mean

#: Blocks and the lines they stand on; what is within a line is read as it is written.
_MARKDOWN = MarkdownIt("commonmark").enable("table").disable("inline")
#: Units of a duration as the applications spell it; a bare number is milliseconds.
_SECONDS = {"ns": 1e-9, "us": 1e-6, "": 1e-3, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
#: What a pack's documents are called.
DOCUMENTS = ("runbook", "slo", "failure-modes", "operations")
#: Tables without which there is nothing to run, to compare with or to name.
_NEEDED = ("Step", "Threshold", "Hop")
#: What the sections of every runbook with such a number are for: the engine points to them.
REACHABILITY, FIRST_RESPONSE, RECOVERY, POSTMORTEM = "2", "3", "6", "7"
#: The levels of a log that mean something here.
LEVELS = ("INFO", "WARN", "ERROR")


class CatalogError(Exception):
    """A document is not what the catalog can read; the text names file and line."""

    def __init__(self, path: Path, line: int, problem: str) -> None:
        super().__init__(path, line, problem)  # as given: it is sent from one process to another

    def __str__(self) -> str:
        return "{}:{}: {}".format(*self.args)


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
class Place:
    """A hop of the pipeline, or what lies under all of them.

    `waits_for` is what may hold up whatever waits here. What is `shared` explains by its own failure those of others;
    what lies `under` all hops may hold up each, and is not on the strip.
    """

    name: str
    waits_for: tuple[str, ...]
    shared: bool
    under: bool


@dataclass(frozen=True)
class FailureMode:
    """A failure mode of docs/failure-modes.md: a hypothesis, as fine as the remedies differ.

    One observation of `excluded_by` takes it out. `remedies` are the proposals that help if it is so, by their names;
    `told_by` are the steps whose answer tells it from its neighbours; `follows` are the modes that leave it behind.
    """

    id: str
    en: str
    ja: str
    hops: tuple[str, ...]
    symptom: str
    detection: str
    mitigation: str
    slo: tuple[str, ...]
    sections: tuple[str, ...]
    excluded_by: tuple[str, ...]
    remedies: tuple[str, ...]
    told_by: tuple[str, ...]
    follows: tuple[str, ...] = ()


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

        >>> Setting("worker.poll_interval", "worker", "X", "1", 0.2, 30, "s").understood("500ms")
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


class _Watched(Limits):
    """A table that puts the name of each row that is read into `read`."""

    def __init__(self, rows: Mapping[str, Any], read: set[str]) -> None:
        super().__init__(rows)
        self._read = read

    def __getitem__(self, name: str) -> Any:
        self._read.add(name)
        return super().__getitem__(name)


@dataclass(frozen=True)
class Catalog:
    """What the documents say; `forbids` are the proposals that make it worse while an observation is there."""

    sections: dict[str, Section]
    slos: dict[str, Slo]
    limits: Limits
    numbers: dict[str, float]
    places: dict[str, Place]
    observations: dict[str, tuple[Signal, ...]]
    forbids: dict[str, tuple[str, ...]]
    failure_modes: dict[str, FailureMode]
    phrases: dict[str, Phrase]
    settings: dict[str, Setting]
    forbidden_variables: dict[str, str]
    redrive: dict[str, RedrivePolicy]
    own: dict[str, str] = field(default_factory=dict)
    """The thresholds that a target has for itself, as they were written (`tuned`)."""

    @property
    def hops(self) -> tuple[str, ...]:
        """The hops of the pipeline, upstream first."""
        return tuple(p.name for p in self.places.values() if not p.under)

    def decides(self, name: str) -> object:
        """The number, threshold or objective of docs/slo.md of that name; None where there is none."""
        return next((table[name] for table in (self.numbers, self.limits, self.slos) if name in table), None)

    def tuned(self, own: Mapping[str, Any]) -> Catalog:
        """The same with a target's own thresholds: `{"backlog.due": "100 / 500 rows"}`, warning and critical.

        A name may be nested, as TOML reads one with dots. Raises ValueError, one line.
        """
        flat = dict(_flat(own))
        limits = {name: self._tuned(name, text) for name, text in flat.items()}
        return replace(self, limits=Limits(self.limits | limits), own=self.own | flat) if flat else self

    def _tuned(self, name: str, text: str) -> Threshold:
        if name not in self.limits:
            raise ValueError(f"there is no threshold '{name}' in docs/slo.md: {did_you_mean(name, list(self.limits))}")
        limit = self.limits[name]
        m = re.fullmatch(r"(-|\d+\.?\d*) */ *(-|\d+\.?\d*) +(\S+)", text.strip())
        warning, critical = (None if n == "-" else float(n) for n in m.groups()[:2]) if m else (None, None)
        there = [(n is None) == (d is None) for n, d in ((warning, limit.warning), (critical, limit.critical))]
        if not m or m[3] != limit.unit or not all(there):
            # Questions rest on a limit that the document has: the numbers alone may be others.
            raise ValueError(f"{name}: '{text}' has not the form of docs/slo.md: write it like '{_spelt(limit)}'")
        if warning is not None and critical is not None and (warning < critical if limit.below else warning > critical):
            side = "below" if limit.below else "above"
            raise ValueError(f"{name}: '{text}': what is {side} {critical:g} would be critical before it is a warning")
        return replace(limit, warning=warning, critical=critical, origin=f"{OWN} `{name}`")

    def watched(self, read: set[str]) -> Catalog:
        """The same; what is read of numbers, thresholds and objectives puts its name into `read`."""
        numbers, limits, slos = (_Watched(rows, read) for rows in (self.numbers, self.limits, self.slos))
        return replace(self, numbers=cast(Any, numbers), limits=limits, slos=cast(Any, slos))

    def runnable(self) -> dict[str, Section]:
        """The sections that have a notebook."""
        return {n: s for n, s in self.sections.items() if s.notebook}

    def speaks(self, observation: str) -> tuple[Signal, ...]:
        """What an observation speaks for and against, and how strongly. Raises KeyError for one that has no row."""
        return self.observations[observation]


def _flat(own: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in own.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", str(value)


def _spelt(limit: Threshold) -> str:
    """The two limits of a threshold as a target may have its own."""
    return f"{' / '.join('-' if n is None else f'{n:g}' for n in (limit.warning, limit.critical))} {limit.unit}"


V = TypeVar("V")


def load() -> Catalog:
    """What the documents of the runbook in force say.

    Raises CatalogError when one is missing, malformed or refers to what does not exist.
    """
    return _load(pack.in_force())


@lru_cache(maxsize=8)
def _load(runbook: pack.Runbook) -> Catalog:
    return read(runbook.packs)


def read(packs: Sequence[Pack]) -> Catalog:
    """Read the documents of a system's pack and of those that extend it. Raises CatalogError."""

    def documents(name: str, *, needed: bool = True) -> list[_Document]:
        there = [p for p in packs if (needed and not p.extends) or p.document(name).is_file()]
        return [_Document.read(p, name) for p in there]

    slo, failures, runbook = documents("slo"), documents("failure-modes"), documents("runbook")
    operations = documents("operations", needed=False)
    places = _table(failures, "Hop", _place)
    slos = _table(slo, "SLO", _slo)
    limits = Limits(_table(slo, "Threshold", _threshold))
    sections = _read_runbook(runbook)
    steps = {step.id for section in sections.values() for step in section.steps}
    names = {row["Observation"] for document in failures for row in document.rows("Observation")}
    modes = _read_failure_modes(failures, places, slos, names, steps)
    known = {*places, *modes}
    catalog = Catalog(
        sections=sections,
        slos=slos,
        limits=limits,
        numbers=_table(slo, "Number", lambda row: row.number("Value") or 0.0),
        places=places,
        observations=_table(failures, "Observation", lambda row: row.signals(known)),
        forbids=_table(failures, "While", lambda row: row.words("Not proposed")),
        failure_modes=modes,
        phrases=_table(failures, "Log phrase", lambda row: _phrase(row, modes)),
        settings=_table(operations, "Setting", _setting),
        forbidden_variables=_table(operations, "Never set", lambda row: row["Why"]),
        redrive=_table(operations, "Redrive", _policy),
    )
    for row in (row for document in failures for row in document.rows("While")):
        row.words("While", names, "an observation of this document")
    for document in slo:
        for row in document.rows("Threshold"):
            row.words("Steps", steps, "in runbook.md")
        for row in document.rows("SLO"):
            row.words("Failure modes", modes, "in failure-modes.md")
    return catalog


def _table(documents: Iterable[_Document], first: str, read: Callable[[_Record], V]) -> dict[str, V]:
    """What the rows under the column `first` say, by what stands in it."""
    found: dict[str, V] = {}
    for row in (row for document in documents for row in document.rows(first)):
        if row[first] in found:
            raise row.error(f"'{row[first]}' is there already")
        found[row[first]] = read(row)
    return found


def _place(row: _Record) -> Place:
    role = row["Role"]
    if role not in ("hop", "shared", "under all"):
        raise row.error(f"role '{role}' is not among hop, shared, under all")
    return Place(row["Hop"], row.words("Waits for"), role != "hop", role == "under all")


def _setting(row: _Record) -> Setting:
    return Setting(
        row["Setting"], row["Workload"], row["Variable"], row["Default"], row.number("From"), row.number("To"),
        row["Unit"],
    )  # fmt: skip


def _policy(row: _Record) -> RedrivePolicy:
    return RedrivePolicy(
        row["Redrive"], row["Who"], int(row.number("At once") or 0), row.words("Kinds"),
        int(row.number("Times per event") or 0), row.number("Pause") or 0.0,
    )  # fmt: skip


def _slo(row: _Record) -> Slo:
    m = re.fullmatch(r"(<=|>=|<|>|=) *(\d+\.?\d*) *(\S+)", row["Objective"])
    if not m:
        raise row.error(f"objective '{row['Objective']}' is not like '< 5 s'")
    return Slo(
        row["SLO"], row["Service"], row["SLI"], m[1], float(m[2]), m[3], row["Window"], row.words("Failure modes")
    )


def _threshold(row: _Record) -> Threshold:
    name = row["Threshold"]
    (warning, below_w), (critical, below_c) = row.limit("Warning"), row.limit("Critical")
    if warning is not None and critical is not None and below_w != below_c:
        raise row.error(f"`{name}`: one limit is '<' and the other is not")
    return Threshold(name, row["Unit"], warning, critical, below_w or below_c, f"docs/slo.md `{name}`")


def _phrase(row: _Record, modes: Collection[str]) -> Phrase:
    if row["Level"] not in LEVELS:
        raise row.error(f"level '{row['Level']}' is not among {', '.join(LEVELS)}")
    return Phrase(
        row["Log phrase"], row.words("Workload"), row["Level"],
        row.words("Failure mode", modes, "a heading of this document"), row["Meaning"], row["意味"],
    )  # fmt: skip


def _read_failure_modes(
    documents: Iterable[_Document],
    places: Collection[str],
    slos: Collection[str],
    observations: Collection[str],
    steps: Collection[str],
) -> dict[str, FailureMode]:
    modes: dict[str, FailureMode] = {}
    read: list[_Record] = []
    form = (3, r"(FM-[A-Z]+-\d\d) +(.+?) +· +(.+)", "FM-DB-01 Title · 題")
    for (id_, en, ja), facts, _ in (found for d in documents for found in d.headings(*form)):
        if id_ in modes:
            raise facts.error(f"{id_} is there already")
        modes[id_] = FailureMode(
            id_, en, ja, facts.words("Hop", places, f"among {', '.join(places)}"), facts["Symptom"],
            facts["Detection"], facts["Mitigation"], facts.words("SLO", slos, "in slo.md"), facts.words("Sections"),
            facts.words("Excluded by", observations, "an observation of this document"), facts.words("Remedies"),
            facts.words("Told by", steps, "in runbook.md"), facts.words("Follows") if "Follows" in facts else (),
        )  # fmt: skip
        read.append(facts)
    for facts in read:
        if "Follows" in facts:
            facts.words("Follows", modes, "a heading of this document")
    return modes


def _read_runbook(documents: Iterable[_Document]) -> dict[str, Section]:
    sections: dict[str, Section] = {}
    form = (2, r"(\d(?:\.\d)?) +(.+?) +· +(.+)", "4.1 Title · 題")
    for document in documents:
        for (number, en, ja), facts, body in document.headings(*form):
            if number in sections:
                raise facts.error(f"section {number} is there already")
            steps = []
            for row in body.rows("Step"):
                if not row["Step"].startswith(number + "."):
                    raise row.error(f"step '{row['Step']}' is not of section {number}")
                steps.append(Step(row["Step"], row["What is asked"], row["確認すること"]))
            notebook = None if facts["Notebook"] == "-" else document.pack.notebook(facts["Notebook"])
            sections[number] = Section(number, en, ja, notebook, facts["Reads"], facts["Takes"], tuple(steps))
    return dict(sorted(sections.items(), key=lambda s: [int(n) for n in s[0].split(".")]))


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

    def signals(self, known: Collection[str]) -> tuple[Signal, ...]:
        """What stands in the two columns of an observation, such as `relay 0.9, FM-OB-01 0.85`."""
        found = []
        for column, sign in (("Speaks for", 1), ("Speaks against", -1)):
            for words in self.words(column):
                m = re.fullmatch(r"(\S+) +(0\.\d+|1)", words)
                if not m or m[1] not in known:
                    raise self.error(f"'{words}' is not a hop or a failure mode and a weight up to 1")
                found.append(Signal(m[1], sign * float(m[2]), self["Observation"]))
        # What speaks for nothing by itself may exclude a failure mode: it is told all the same.
        return tuple(found) or (Signal("", 0.0, self["Observation"]),)

    def limit(self, column: str) -> tuple[float | None, bool]:
        """A limit, and whether it is one from below."""
        m = re.fullmatch(r"-|(<)? *(\d+\.?\d*)", self[column])
        if not m:
            raise self.error(f"limit '{self[column]}' is not a number, '< number' or '-'")
        return float(m[2]) if m[2] else None, m[1] is not None


@dataclass(frozen=True)
class _Document:
    """A pack's document, or what stands in it under one heading."""

    pack: Pack
    path: Path
    line: int
    lines: list[str]
    blocks: Sequence[SyntaxTreeNode]

    @staticmethod
    def read(pack: Pack, name: str) -> _Document:
        path = pack.document(name)
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as e:
            raise CatalogError(path, 1, f"cannot be read ({e.strerror})") from None
        return _Document(pack, path, 1, text.split("\n"), SyntaxTreeNode(_MARKDOWN.parse(text)).children)

    def headings(self, level: int, pattern: str, like: str) -> Iterator[tuple[Sequence[str], _Record, _Document]]:
        """The parts of each such heading, the bullets `- Name: text` under it, and all down to the next heading."""
        starts = [i for i, b in enumerate(self.blocks) if _depth(b) == level and re.fullmatch(pattern, _text(b))]
        if not starts and not self.pack.extends:
            raise CatalogError(self.path, self.line, f"no heading like '{like}'")
        for i in starts:
            under = list(takewhile(lambda b: _depth(b) > level, self.blocks[i + 1 :]))
            items = (item.children[:1] for b in under if b.type == "bullet_list" for item in b.children)
            named = (" ".join(_text(first).split()).partition(": ")[::2] for item in items for first in item)
            part = replace(self, line=(self.blocks[i].map or (0,))[0] + 1, blocks=under)
            facts = _Record(self.path, part.line, "the bullet '- {}: ...'", named)
            yield re.findall(pattern, _text(self.blocks[i]))[0], facts, part

    def rows(self, first: str) -> Iterator[_Record]:
        """The rows of the tables whose first column is named `first`; those of `_NEEDED` every system has."""
        spans = (b.map for b in self.blocks if b.type == "table" and b.map)
        tables = [(begin, end) for begin, end in spans if _cells(self.lines[begin])[0] == first]
        if not tables and first in _NEEDED and not self.pack.extends:
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
