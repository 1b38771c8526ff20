"""Sections, steps, SLOs, thresholds, hops and failure modes, read out of the packs' documents.

The documents that the runbook refers to are the configuration, so text and code cannot drift. The formats are
described at the head of each document; a malformed one is a `CatalogError` that names file and line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args

from markdown_it import MarkdownIt
from markdown_it.rules_block.table import escapedSplit
from markdown_it.tree import SyntaxTreeNode

from runbook_lib.book import messages, pack, patterns
from runbook_lib.book.pack import Pack
from runbook_lib.model.finding import OWN, Signal, Threshold, Value
from runbook_lib.model.quantity import readable
from runbook_lib.model.times import duration
from runbook_lib.model.unread import known
from runbook_lib.model.usage import UsageError, did_you_mean

#: Parses blocks with their lines; the text within a line is read as it is written.
_MARKDOWN = MarkdownIt("commonmark").enable("table").disable("inline")
#: Units of a duration as the applications spell it; a bare number is milliseconds.
#: The names of a pack's documents.
DOCUMENTS = ("runbook", "slo", "numbers", "failure-modes", "observations", "operations")
#: First columns of the tables that every system must have, with the document that has them.
_NEEDED = {"Step": "runbook", "Threshold": "slo", "Hop": "failure-modes"}
#: What the engine needs a section for. At most one section has a role; a command that needs one says so.
Role = Literal["reach", "triage", "flow", "logs", "restart", "throttle", "recover", "postmortem"]
ROLES: tuple[Role, ...] = get_args(Role)
#: The log levels that are known here.
LEVELS = ("INFO", "WARN", "ERROR")


class CatalogError(UsageError):
    """A document is not what the catalog can read; the text names file and line."""

    def __init__(self, path: Path, line: int, problem: str) -> None:
        super().__init__(path, line, problem)  # as given: it is sent from one process to another

    def __str__(self) -> str:
        return "{}:{}: {}".format(*self.args)


class Bilingual:
    """A text of a document in English and in Japanese; of a pack with one language, the same text twice."""

    en: str
    ja: str

    def words(self) -> str:
        """Return the text in the current language."""
        return self.ja if messages.language() == "ja" else self.en


@dataclass(frozen=True)
class Words(Bilingual):
    """A text of a bullet or a cell: `English · 日本語`; "" where a document has none."""

    en: str = ""
    ja: str = ""


@dataclass(frozen=True)
class Step(Bilingual):
    """One step of a section, with its question in both languages, and how to read the answer."""

    id: str
    en: str
    ja: str
    hint: Words = Words()


@dataclass(frozen=True)
class Section(Bilingual):
    """One section of docs/runbook.md; `notebook` is None where it is done by hand, `roles` are among `ROLES`.

    `parameters` are those of its notebook beside the common ones, some with a value of their own: `window_minutes=15`.
    """

    number: str
    en: str
    ja: str
    notebook: Path | None
    reads: Words
    takes: str
    steps: tuple[Step, ...]
    roles: tuple[str, ...] = ()
    when: Words = Words()
    parameters: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Return the first number of `takes`; infinity if it has none."""
        found = re.search(r"\d+", self.takes)
        return float(found[0]) if found else math.inf


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

    def met(self, value: float) -> bool:
        """Return whether an observed SLI value meets the objective."""
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

    `waits_for` are the hops and dependencies that may block rows waiting here. The failure of a `shared` one explains
    failures of others; one that is `under` all hops may block each of them, and is not on the strip.
    """

    name: str
    waits_for: tuple[str, ...]
    shared: bool
    under: bool


@dataclass(frozen=True)
class FailureMode(Bilingual):
    """A failure mode of docs/failure-modes.md: a hypothesis, as fine as the remedies differ.

    Any observation of `excluded_by` excludes it. `remedies` are the names of the proposals that help; `told_by` are the
    steps whose result distinguishes it from similar modes; `follows` are the modes that cause it as an aftermath.
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


SettingValue = bool | int | float


@dataclass(frozen=True)
class Phrase(Bilingual):
    """The meaning of a phrase in a workload's log; without `failure_modes` it is no evidence."""

    text: str
    workloads: tuple[str, ...]
    level: str
    failure_modes: tuple[str, ...]
    en: str
    ja: str


@dataclass(frozen=True)
class Setting:
    """A setting that an action may change, and its range; docs/operations.md."""

    name: str
    workload: str
    variable: str
    default: str
    low: float | None
    high: float | None
    unit: str

    def problem(self, value: object) -> str:
        """Return why this value may not be set; "" if it may."""
        if isinstance(value, bool):
            return "" if self.unit == "flag" else f"{self.name} is a number of {self.unit}"
        if self.unit == "flag":
            return f"{self.name} is true or false"
        if not isinstance(value, int | float):
            return f"{self.name} is a number of {self.unit}"
        low, high = (limit if limit is not None else value for limit in (self.low, self.high))
        if not low <= value <= high:
            return f"{self.name} {readable(value)[0]} is outside {readable(low)[0]} to {readable(high)[0]} {self.unit}"
        if self.unit == "rows" and value != int(value):
            return f"{self.name} {readable(value)[0]} is not a whole number"
        return ""

    def read(self, text: str) -> bool | float | str | None:
        """Parse a typed value: a number, true or false, None for `default`; any other text is returned as it is.

        Seconds may be written as 2, 2s or 500ms.
        """
        if text in ("default", "true", "false"):
            return {"default": None, "true": True, "false": False}[text]
        try:
            return float(text)  # as a duration, the applications would take it for milliseconds
        except ValueError:
            seconds = duration(text) if self.unit == "s" else None
            return text if seconds is None else seconds

    def spelt(self, value: SettingValue | str) -> str:
        """Format the value as the application's variable takes it; a text that is no value stays as it is."""
        if isinstance(value, str):
            return value
        if isinstance(value, bool):
            return str(value).lower()
        if self.unit == "s":
            return f"{value:.0f}s" if float(value).is_integer() else f"{value * 1000:.0f}ms"  # no fractions there
        return f"{value:g}"

    @property
    def standard(self) -> SettingValue:
        """The default as a value."""
        return self.default == "true" if self.unit == "flag" else float(self.default)

    def understood(self, text: str) -> SettingValue | None:
        """Parse a variable's text as the application does; None if the application would not start with it.

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
    """The rules for sending dead letters of one store again; docs/operations.md."""

    store: str
    who: str
    at_once: int
    kinds: tuple[str, ...]
    per_event: int
    pause_s: float


@dataclass(frozen=True)
class EvidenceClass:
    """What evidence of a class weighs for a place or a failure mode; observations.md, "Classes".

    `cleared`: it is dropped if the same place is seen to work, then or later. `while_late`: it is dropped if nothing is
    late and an observation is seen that `passes`: that every event gets through in time, which is outdated if one is.
    """

    weight: float = 0.0
    cleared: bool = False
    while_late: bool = False
    passes: bool = False


#: The classes of evidence by name. No observation has a weight of its own.
CLASSES = {
    "own": EvidenceClass(0.9),
    "lacks": EvidenceClass(0.85, cleared=True, while_late=True),
    "stands": EvidenceClass(0.85, cleared=True),
    "sign": EvidenceClass(0.6),
    "seems": EvidenceClass(0.6, cleared=True),
    "differs": EvidenceClass(0.6, while_late=True),
    "report": EvidenceClass(0.45, cleared=True),
    "hint": EvidenceClass(0.4),
    "passes": EvidenceClass(passes=True),
    "-": EvidenceClass(),
}
#: The weight of what clears a place or a failure mode.
CLEARS = -0.6


@dataclass(frozen=True)
class Observation:
    """A row's observation with its class, what it supports and clears, and the part that reports it about another."""

    name: str
    kind: EvidenceClass
    signals: tuple[Signal, ...]
    reporter: str = ""

    @property
    def explains(self) -> bool:
        """Whether it supports something: what it clears then waits for that."""
        return any(s.weight > 0 for s in self.signals)

    def clears(self, about: str) -> bool:
        """Return whether it shows that a place or failure mode is well, or waits for another."""
        return any(s.about == about and s.weight < 0 for s in self.signals)


@dataclass(frozen=True)
class OwnSide:
    """What a program's own log and variables show once they were read: observations.md.

    `steps` read them from `source`; the first is asked if none did.
    """

    observation: str
    source: str
    steps: tuple[str, ...]


class Limits(dict[str, Threshold]):
    """The thresholds of docs/slo.md by name; what a judge compares with."""

    def value(self, name: str, observed: float | int | None) -> Value:
        """Return an observed value with the threshold of the same name."""
        threshold, observed = self[name], known(observed)
        return Value(name, None if observed is None or observed != observed else observed, threshold.unit, threshold)


@dataclass(frozen=True)
class Catalog:
    """The content of the documents.

    `forbids` has, by observation, the proposals that would make the situation worse. `read_first` has, by proposal, how
    the program's own side is read.
    """

    sections: dict[str, Section]
    slos: dict[str, Slo]
    limits: Limits
    numbers: dict[str, float]
    places: dict[str, Place]
    observations: dict[str, Observation]
    forbids: dict[str, tuple[str, ...]]
    read_first: dict[str, OwnSide]
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

    def tuned(self, own: Mapping[str, Any]) -> Catalog:
        """Return a copy with a target's own thresholds: `{"backlog.due": "100 / 500 rows"}`, warning and critical.

        A name may be nested, as TOML reads one with dots. Raises ValueError, one line.
        """
        flat = dict(_flatten(own))
        limits = {name: self._parse_own_threshold(name, text) for name, text in flat.items()}
        return replace(self, limits=Limits(self.limits | limits), own=self.own | flat) if flat else self

    def _parse_own_threshold(self, name: str, text: str) -> Threshold:
        if name not in self.limits:
            raise ValueError(f"there is no threshold '{name}' in docs/slo.md: {did_you_mean(name, list(self.limits))}")
        limit = self.limits[name]
        m = re.fullmatch(r"(-|\d+\.?\d*) */ *(-|\d+\.?\d*) +(\S+)", text.strip())
        warning, critical = (None if n == "-" else float(n) for n in m.groups()[:2]) if m else (None, None)
        there = [(n is None) == (d is None) for n, d in ((warning, limit.warning), (critical, limit.critical))]
        if not m or m[3] != limit.unit or not all(there):
            # Questions rest on a limit that the document has: the numbers alone may be others.
            raise ValueError(
                f"{name}: '{text}' has not the form of docs/slo.md: write it like '{_format_limits(limit)}'"
            )
        if warning is not None and critical is not None and (warning < critical if limit.below else warning > critical):
            side = "below" if limit.below else "above"
            raise ValueError(f"{name}: '{text}': what is {side} {critical:g} would be critical before it is a warning")
        return replace(limit, warning=warning, critical=critical, origin=f"{OWN} `{name}`")

    def runnable(self) -> dict[str, Section]:
        """Return the sections that have a notebook."""
        return {n: s for n, s in self.sections.items() if s.notebook}

    def section_with(self, role: Role) -> str:
        """Return the number of the section with a role; "" if there is none."""
        return next((number for number, section in self.sections.items() if role in section.roles), "")

    def required_section(self, role: Role) -> str:
        """Return the number of the section with a role. Raises UsageError if there is none."""
        if not (number := self.section_with(role)):
            raise UsageError(f"no section of docs/runbook.md has the role '{role}': add the bullet '- Role: {role}'")
        return number

    def evidence(self, observation: str) -> tuple[Signal, ...]:
        """Return the evidence of an observation: what it supports and clears, by its class. Raises KeyError."""
        return self.observations[observation].signals

    def signals(self, observation: str) -> tuple[Signal, ...]:
        """Return the evidence of an observation; () if observations.md does not have it."""
        found = self.observations.get(observation)
        return found.signals if found else ()

    def reporter(self, observation: str, about: str) -> str:
        """Return the part that reports an observation about another place, or another place's failure mode.

        "" if the observation is not one part's report, or is about that part.
        """
        mode = self.failure_modes.get(about)
        place = mode.hops[0] if mode else about
        seen = self.observations.get(observation)
        return seen.reporter if seen and seen.reporter != place else ""

    def phrase_evidence(self, phrase: str, mode: str, class_: str) -> Signal:
        """Return the evidence of a log phrase for a failure mode, of a class of `CLASSES`.

        Raises KeyError for a mode that its row does not name.
        """
        if mode not in self.phrases[phrase].failure_modes:
            raise KeyError(mode)
        return Signal(mode, CLASSES[class_].weight, phrase)


def _flatten(own: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in own.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", str(value)


def _format_limits(limit: Threshold) -> str:
    """Format the two limits of a threshold as runbook.toml writes them."""
    return f"{' / '.join('-' if n is None else f'{n:g}' for n in (limit.warning, limit.critical))} {limit.unit}"


V = TypeVar("V")


def load() -> Catalog:
    """Read the documents of the active runbook.

    Raises CatalogError when one is missing, malformed or refers to what does not exist.
    """
    return _load(pack.active_runbook())


def section_with(role: Role) -> str:
    """Return the number of the active runbook's section with a role; "" if there is none. Raises CatalogError."""
    return load().section_with(role)


@lru_cache(maxsize=8)
def _load(runbook: pack.Runbook) -> Catalog:
    return read(runbook.packs)


Texts = Mapping[str, Mapping[str, str]]
"""The texts of documents, by pack and name."""


def read_texts(packs: Iterable[Pack]) -> dict[str, dict[str, str]]:
    """Return the texts of the packs' documents, for packs that have any. Raises CatalogError."""
    found: dict[str, dict[str, str]] = {}
    for each in packs:
        for name in DOCUMENTS:
            path = each.document(name)
            try:
                found.setdefault(each.name, {})[name] = path.read_text(encoding="utf-8")
            except FileNotFoundError:
                continue
            except OSError as e:
                raise CatalogError(path, 1, f"cannot be read ({e.strerror})") from None
            except UnicodeDecodeError:
                raise CatalogError(path, 1, "cannot be read (it is not UTF-8)") from None
    return {name: texts for name, texts in found.items() if texts}


def read(packs: Sequence[Pack], texts: Texts | None = None) -> Catalog:
    """Read the documents of a system's pack and of those that extend it, or `texts` in their place.

    Raises CatalogError.
    """
    given = read_texts(packs) if texts is None else texts

    def path(pack: Pack, name: str) -> Path:
        return pack.document(name) if texts is None else Path(f"{name}.md")

    def documents(*names: str) -> list[_Document]:
        there = [(p, name) for p in packs for name in names if name in given.get(p.name, {})]
        return [_Document.parse(p, path(p, name), given[p.name][name]) for p, name in there]

    for each, name in ((p, name) for p in packs for name in _NEEDED.values() if p.must_have(name)):
        if name not in given.get(each.name, {}):
            raise CatalogError(path(each, name), 1, "cannot be read (No such file or directory)")
    runbook, operations = documents("runbook"), documents("operations")
    # A pack may have the tables of numbers and observations in documents of their own.
    slo, failures = documents("slo", "numbers"), documents("failure-modes", "observations")
    places = _read_table(failures, "Hop", _read_place)
    # Objectives are a system's own promise: where it has any, those of a room are none.
    promised = any(True for d in slo if not d.pack.extends for _ in d.rows("SLO"))
    slos = _read_table((d for d in slo if not (promised and d.pack.room)), "SLO", _read_slo)
    limits = Limits(_read_table(slo, "Threshold", _read_threshold))
    sections = _read_runbook(runbook)
    steps = {step.id for section in sections.values() for step in section.steps}
    names = {name for d in failures for row in d.rows("Observation") for name in row.words("Observation")}
    modes = _read_failure_modes(failures, places, slos, names, steps)
    known = {*places, *modes}
    catalog = Catalog(
        sections=sections,
        slos=slos,
        limits=limits,
        numbers=_read_table(slo, "Number", lambda row: row.given("Value")),
        places=places,
        observations=_read_lists(failures, "Observation", lambda row, name: row.observation(name, known)),
        forbids=_read_lists(failures, "While", lambda row, _: row.words("Not proposed")),
        read_first=_read_table(
            failures, "Before", lambda row: OwnSide(row["Seen"], row["Source"], row.words("Read by"))
        ),
        failure_modes=modes,
        phrases=_read_table(failures, "Log phrase", lambda row: _read_phrase(row, modes)),
        settings=_read_table(operations, "Setting", _read_setting),
        forbidden_variables=_read_table(operations, "Never set", lambda row: row["Why"]),
        redrive=_read_table(operations, "Redrive", _read_policy),
    )
    observation = "among the observations"
    references: tuple[tuple[str, str, Collection[str], str], ...] = (
        ("While", "While", names, observation),
        ("Before", "Seen", names, observation),
        ("Before", "Read by", steps, "among the steps"),
    )
    for first, column, referenced, where in references:
        for row in (row for document in failures for row in document.rows(first)):
            row.words(column, referenced, where)
    for document in slo:
        for row in document.rows("Threshold"):
            row.words("Steps", steps, "in runbook.md")
    for each in packs if texts is None else ():
        patterns.check_observations(each.folder, names)
    return catalog


def _read_table(documents: Iterable[_Document], first: str, read: Callable[[_Record], V]) -> dict[str, V]:
    """Read the rows of the tables whose first column is `first`, by the text in that column."""
    found: dict[str, V] = {}
    for row in (row for document in documents for row in document.rows(first)):
        if row[first] in found:
            if row.room:
                continue
            raise row.error(f"'{row[first]}' is there already")
        found[row[first]] = read(row)
    return found


def _read_lists(documents: Iterable[_Document], first: str, read: Callable[[_Record, str], V]) -> dict[str, V]:
    """Read the rows of the tables whose first column is `first`, by each of the names that the column lists."""
    found: dict[str, V] = {}
    for record in (row for document in documents for row in document.rows(first)):
        for name in record.words(first):
            if name not in found:
                found[name] = read(record, name)
            elif not record.room:
                raise record.error(f"'{name}' is there already")
    return found


def _read_place(row: _Record) -> Place:
    role = row["Role"]
    if role not in ("hop", "shared", "under all"):
        raise row.error(f"role '{role}' is not among hop, shared, under all")
    return Place(row["Hop"], row.words("Waits for"), role != "hop", role == "under all")


def _read_setting(row: _Record) -> Setting:
    return Setting(
        row["Setting"], row["Workload"], row["Variable"], row["Default"], row.number("From"), row.number("To"),
        row["Unit"],
    )  # fmt: skip


def _read_policy(row: _Record) -> RedrivePolicy:
    return RedrivePolicy(
        row["Redrive"], row["Who"], int(row.given("At once")), row.words("Kinds"),
        int(row.given("Times per event")), row.given("Pause"),
    )  # fmt: skip


def _read_slo(row: _Record) -> Slo:
    m = re.fullmatch(r"(<=|>=|<|>|=) *(\d+\.?\d*) *(\S+)", row["Objective"])
    if not m:
        raise row.error(f"objective '{row['Objective']}' is not like '< 5 s'")
    return Slo(row["SLO"], row["Service"], row["SLI"], m[1], float(m[2]), m[3], row["Window"])


def _read_threshold(row: _Record) -> Threshold:
    name = row["Threshold"]
    (warning, below_w), (critical, below_c) = row.limit("Warning"), row.limit("Critical")
    if warning is not None and critical is not None and below_w != below_c:
        raise row.error(f"`{name}`: one limit is '<' and the other is not")
    return Threshold(name, row["Unit"], warning, critical, below_w or below_c, f"docs/slo.md `{name}`")


def _read_phrase(row: _Record, modes: Collection[str]) -> Phrase:
    if row["Level"] not in LEVELS:
        raise row.error(f"level '{row['Level']}' is not among {', '.join(LEVELS)}")
    return Phrase(
        row["Log phrase"], row.words("Workload"), row["Level"],
        row.words("Failure mode", modes, "in failure-modes.md"), *row.bilingual("Meaning", "意味"),
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
    form = (3, r"FM-[A-Z]+-\d\d", "FM-DB-01")
    for (id_, en, ja), facts, _ in (found for d in documents for found in d.headings(*form)):
        if id_ in modes:
            if facts.room:
                continue
            raise facts.error(f"{id_} is there already")
        modes[id_] = FailureMode(
            id_, en, ja, facts.words("Hop", places, f"among {', '.join(places)}"), facts["Symptom"],
            facts["Detection"], facts["Mitigation"], facts.words("SLO", slos, "in slo.md"), facts.words("Sections"),
            facts.words("Excluded by", observations, "among the observations"), facts.words("Remedies"),
            facts.words("Told by", steps, "in runbook.md"), facts.words("Follows") if "Follows" in facts else (),
        )  # fmt: skip
        read.append(facts)
    for facts in read:
        if "Follows" in facts:
            facts.words("Follows", modes, "a heading of this document")
    return modes


def _read_runbook(documents: Iterable[_Document]) -> dict[str, Section]:
    sections: dict[str, Section] = {}
    given: dict[str, str] = {}
    for document in documents:
        when = {row["Go to"]: row.text("What you see") for row in document.rows("What you see")}
        for (number, en, ja), facts, body in document.headings(2, r"\d(?:\.\d)?", "4.1"):
            if number in sections:
                raise facts.error(f"section {number} is there already")
            steps = []
            for row in body.rows("Step"):
                if not row["Step"].startswith(number + "."):
                    raise row.error(f"step '{row['Step']}' is not of section {number}")
                asked = row.bilingual("What is asked", "確認すること")
                steps.append(Step(row["Step"], *asked, facts.text(row["Step"])))
            for name in facts.keys() - {step.id for step in steps}:
                if re.fullmatch(r"\d(\.\d)+", name):
                    raise facts.error(f"step '{name}' is not of section {number}")
            notebook = None if facts["Notebook"] == "-" else document.pack.notebook(facts["Notebook"])
            facts.setdefault("Role", "-")
            roles = facts.words("Role", ROLES, f"among {', '.join(ROLES)}")
            for role in roles:
                if given.setdefault(role, number) != number:
                    raise facts.error(f"section {given[role]} has the role '{role}' already")
            facts.setdefault("Parameters", "-")
            sections[number] = Section(
                number, en, ja, notebook, facts.text("Reads"), facts["Takes"], tuple(steps), roles,
                when.get(number, Words()), facts.words("Parameters"),
            )  # fmt: skip
    return dict(sorted(sections.items(), key=lambda s: [int(n) for n in s[0].split(".")]))


class _Record(dict[str, str]):
    """A table's row by its columns, or a heading's bullets by their names, with its file and line."""

    def __init__(self, pack: Pack, path: Path, line: int, kind: str, values: Iterable[tuple[str, str]]) -> None:
        super().__init__(values)
        self.pack, self.path, self.line, self.kind = pack, path, line, kind
        #: Of a room's document: the system's own row of that name replaces it, and it may name what a system left out.
        self.room = pack.room

    def error(self, problem: str) -> CatalogError:
        return CatalogError(self.path, self.line, problem)

    def __missing__(self, name: str) -> NoReturn:
        raise self.error(f"{self.kind.format(name)} is missing here")

    def bilingual(self, en: str, ja: str) -> tuple[str, str]:
        """Return the cells of the English and of the Japanese column, as far as the pack declares the languages."""
        columns = {"en": en, "ja": ja}
        return self[columns[self.pack.language("en")]], self[columns[self.pack.language("ja")]]

    def text(self, name: str) -> Words:
        """Return a text in both languages; of a pack with one language, the same text twice."""
        text = self.get(name, "")
        en, _, ja = text.partition(" · ") if len(self.pack.languages) > 1 else (text, "", "")
        return Words(en, ja or en)

    def words(self, column: str, known: Collection[str] | None = None, where: str = "") -> tuple[str, ...]:
        """Split a cell at its commas; '-' is (). Raises CatalogError for a word that is not in `known`."""
        words = () if self[column] == "-" else tuple(w.strip() for w in self[column].split(",") if w.strip())
        if self.room and known is not None:
            return tuple(w for w in words if w in known)
        for word in words:
            if known is not None and word not in known:
                raise self.error(f"{column.lower().removesuffix('s')} '{word}' is not {where}")
        return words

    def number(self, column: str) -> float | None:
        """Return a cell as a number; None for '-'."""
        try:
            return None if self[column] == "-" else float(self[column])
        except ValueError:
            raise self.error(f"'{self[column]}' is not a number or '-'") from None

    def given(self, column: str) -> float:
        """Return a cell as a number. Raises CatalogError for '-'."""
        number = self.number(column)
        if number is None:
            raise self.error(f"{column.lower()} is missing: '-' is no number")
        return number

    def observation(self, name: str, known: Collection[str]) -> Observation:
        """Read one of a row's observations, with its class: `own`, or `report of relay` about another part."""
        class_, _, reporter = self["Class"].partition(" of ")
        if class_ not in CLASSES:
            raise self.error(f"class '{class_}' is not among {', '.join(CLASSES)}")
        kind, where = CLASSES[class_], "a hop or a failure mode"
        found = [Signal(about, kind.weight, name) for about in self.words("Supports", known, where)]
        found += [Signal(about, CLEARS, name) for about in self.words("Clears", known, where)]
        # An observation that supports nothing may still exclude a failure mode, so it is a signal without weight.
        return Observation(name, kind, tuple(found) or (Signal("", 0.0, name),), reporter)

    def limit(self, column: str) -> tuple[float | None, bool]:
        """Read a limit, and whether it is a lower limit ('< number')."""
        m = re.fullmatch(r"-|(<)? *(\d+\.?\d*)", self[column])
        if not m:
            raise self.error(f"limit '{self[column]}' is not a number, '< number' or '-'")
        return float(m[2]) if m[2] else None, m[1] is not None


@dataclass(frozen=True)
class _Document:
    """A pack's document, or the part of it under one heading."""

    pack: Pack
    path: Path
    line: int
    lines: list[str]
    blocks: Sequence[SyntaxTreeNode]

    @staticmethod
    def parse(pack: Pack, path: Path, text: str) -> _Document:
        return _Document(pack, path, 1, text.split("\n"), SyntaxTreeNode(_MARKDOWN.parse(text)).children)

    def headings(self, level: int, id_: str, like: str) -> Iterator[tuple[Sequence[str], _Record, _Document]]:
        """Yield each such heading (id, English and Japanese title), its bullets `- Name: text`, and its text."""
        both = len(self.pack.languages) > 1
        pattern = re.compile(rf"({id_}) +(.+?) +· +(.+)" if both else rf"({id_}) +((.+))")
        heads = ((i, _block_text(b)) for i, b in enumerate(self.blocks) if _heading_level(b) == level)
        starts = [(i, m) for i, text in heads if (m := pattern.fullmatch(text))]
        if not starts and self.path.stem in _NEEDED.values() and self.pack.must_have(self.path.stem):
            raise CatalogError(self.path, self.line, f"no heading like '{like} Title{' · 題' if both else ''}'")
        for i, head in starts:
            under = list(takewhile(lambda b: _heading_level(b) > level, self.blocks[i + 1 :]))
            items = (item.children[:1] for b in under if b.type == "bullet_list" for item in b.children)
            named = (" ".join(_block_text(first).split()).partition(": ")[::2] for item in items for first in item)
            part = replace(self, line=(self.blocks[i].map or (0,))[0] + 1, blocks=under)
            facts = _Record(self.pack, self.path, part.line, "the bullet '- {}: ...'", named)
            yield head.groups(), facts, part

    def rows(self, first: str) -> Iterator[_Record]:
        """Yield the rows of the tables whose first column is `first`.

        Raises CatalogError if a table of `_NEEDED` is missing.
        """
        spans = (b.map for b in self.blocks if b.type == "table" and b.map)
        tables = [(begin, end) for begin, end in spans if _split_cells(self.lines[begin])[0] == first]
        if not tables and _NEEDED.get(first) == self.path.stem and self.pack.must_have(self.path.stem):
            raise CatalogError(self.path, self.line, f"no table whose first column is '{first}'")
        for begin, end in tables:
            header, _, *rows = map(_split_cells, self.lines[begin:end])
            for line, cells in enumerate(rows, start=begin + 3):
                if len(cells) != len(header):
                    raise CatalogError(self.path, line, f"{len(cells)} cells under {len(header)} columns")
                yield _Record(self.pack, self.path, line, "the column '{}'", zip(header, cells, strict=True))


def _split_cells(line: str) -> list[str]:
    """Split a table's line into cells; a cell that is only code loses its backquotes."""
    cells = escapedSplit(line.strip().removeprefix("|").removesuffix("|"))
    return [re.sub(r"^`([^`]*)`$", r"\1", cell.strip()) for cell in cells]


def _heading_level(block: SyntaxTreeNode) -> int:
    return int(block.tag[1]) if block.type == "heading" else 7


def _block_text(block: SyntaxTreeNode) -> str:
    """Return the source text of a heading or a paragraph."""
    return block.children[0].content if block.children else ""
