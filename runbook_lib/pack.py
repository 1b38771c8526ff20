"""Packs: what belongs to one system. The engine knows no table, stream, workload or failure mode; it asks here.

A pack is a folder that Python can import, with a `PACK` in its `__init__.py`:

    docs/       runbook.md, slo.md, failure-modes.md, operations.md: text that is configuration (see `catalog`)
    notebooks/  one .ipynb per section
    sql/        one .sql file per question (see `questions`)
    messages/   en.toml and ja.toml (see `messages`)
    checks      a module whose CHECKS answer the steps (see `checks.check`)

Packs are found by the entry point group `runbook.packs`, and by `packs = ["folder or name"]` in runbook.toml. One of
them is the system's; those that extend it by name add sections of their own, and need only what they add.
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

from runbook_lib.usage import UsageError, config_file, config_folder, did_you_mean

V = TypeVar("V")
GROUP = "runbook.packs"


@dataclass(frozen=True)
class Pack:
    """What is in a pack's folder. What is written "module:name" is within the pack, and imported when it is used.

    `extends` names the pack whose runbook this one adds to; "" is a system of its own.
    """

    name: str
    folder: Path
    extends: str = ""
    docs: Path | None = None
    """Where the documents are, if not in `folder`/docs."""
    notebooks: Path | None = None
    """Where the notebooks are, if not in `folder`/notebooks."""
    checks: str = "checks:CHECKS"
    """Every check (a tuple of `checks.check.Check`)."""
    actions: str = ""
    """What `act` can do: a dict of names and of what makes an action (see `actions.action`)."""
    facts: str = ""
    """What a target's settings say of this system: a subclass of `settings.Facts`."""
    parameters: str = ""
    """What its notebooks accept beyond the engine's own: a subclass of `parameters.Parameters`."""
    commands: Mapping[str, str] = field(default_factory=dict)
    """Commands of its own beside the engine's, by name: click commands or groups."""
    asks: Mapping[str, str] = field(default_factory=dict)
    """What a notebook may ask beyond the steps, by name (`rb.<name>`): functions or classes of a `session.Session`."""
    module: str = ""
    """Its name as a module; whoever finds the pack fills it in."""

    def document(self, name: str) -> Path:
        """Where one of its documents is, such as "slo"; whether it is there is another question."""
        return (self.docs or self.folder / "docs") / f"{name}.md"

    def notebook(self, name: str) -> Path:
        """Where one of its notebooks is."""
        return (self.notebooks or self.folder / "notebooks") / name

    def get(self, reference: str) -> Any:
        """What "module:name" means within this pack."""
        module, _, name = reference.partition(":")
        return getattr(importlib.import_module(f"{self.module}.{module}"), name)


#: What a notebook may ask of any system; it stands above the session that it is asked of.
_ENGINE = Pack(
    "engine",
    Path(__file__).parent,
    asks={
        "compare": "archive.compare:compare",
        "watch": "archive.compare:watch",
        "seen_before": "archive.report:of_run",
    },
    module=__name__.rpartition(".")[0],
)


@dataclass(frozen=True, eq=False)
class Runbook:
    """The runbook in force: the system's pack first, then those that extend it."""

    packs: tuple[Pack, ...]
    _brought: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def every(self, kind: str) -> tuple[Any, ...]:
        """What the packs bring of a kind ("checks", "facts", ...), the system's first; imported once."""
        if kind not in self._brought:
            self._brought[kind] = tuple(p.get(getattr(p, kind)) for p in self.packs if getattr(p, kind))
        return self._brought[kind]

    def command(self, name: str) -> Any:
        """A command of a pack's own. Raises KeyError, and ImportError for a package that is not installed."""
        pack = next((p for p in self.packs if name in p.commands), None)
        if pack is None:
            raise KeyError(name)
        return pack.get(pack.commands[name])

    def ask(self, name: str) -> Any:
        """What a notebook may ask under that name. Raises KeyError."""
        pack = next((p for p in (_ENGINE, *self.packs) if name in p.asks), None)
        if pack is None:
            raise KeyError(name)
        return pack.get(pack.asks[name])

    @property
    def asks(self) -> list[str]:
        """The names of what a notebook may ask beyond the steps: of any system, and of this one."""
        return [name for p in (_ENGINE, *self.packs) for name in p.asks]

    @property
    def commands(self) -> list[str]:
        """The names of the packs' own commands."""
        return [name for p in self.packs for name in p.commands]

    def find(self, kind: str, name: str) -> Path:
        """A file below the packs' folder of that kind ("sql"), in the first pack that has it. Raises KeyError."""
        for pack in self.packs:
            if (path := pack.folder / kind / name).is_file():
                return path
        raise KeyError(name)


def joined(kind: str, pairs: Iterable[tuple[str, V]]) -> dict[str, V]:
    """What the packs bring under names, together. Raises UsageError where two have the same."""
    found: dict[str, V] = {}
    for name, value in pairs:
        if name in found:
            raise UsageError(f"packs: two of them have the {kind} {name}")
        found[name] = value
    return found


def in_force() -> Runbook:
    """The runbook that runbook.toml asks for, or that of the pack that is installed. Raises UsageError."""
    if _tried:
        return _tried[-1]
    file = config_file()
    return _in_force(file and file.absolute(), file.stat().st_mtime_ns if file else 0)


@contextmanager
def tried(folder: Path) -> Iterator[Runbook]:
    """The runbook of the pack in a folder is in force for a while, whatever runbook.toml says: for its tests."""
    _tried.append(_joining([of_folder(folder)], _installed()))
    try:
        yield _tried[-1]
    finally:
        _tried.pop()


_tried: list[Runbook] = []


@lru_cache(maxsize=16)
def _in_force(file: Path | None, _: int) -> Runbook:
    installed = _installed()
    return _joining([_named(entry, installed) for entry in _asked(file)], installed)


def _joining(asked: list[Pack], installed: Mapping[str, Pack]) -> Runbook:
    every = list({p.name: p for p in (*asked, *installed.values())}.values())
    systems = [p for p in every if not p.extends]
    if not systems:
        raise UsageError(f"no pack is installed (entry point '{GROUP}'), and runbook.toml names none")
    packs = (systems[0], *(p for p in every if p.extends == systems[0].name))
    for pack in asked:
        if pack.extends and pack not in packs:
            raise UsageError(f"packs: '{pack.name}' extends '{pack.extends}', and '{systems[0].name}' is in force")
    return Runbook(packs)


def _asked(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        asked = tomllib.loads(file.read_text(encoding="utf-8")).get("packs", [])
    except tomllib.TOMLDecodeError:
        return []  # told by whoever reads the settings
    if not isinstance(asked, list) or not all(isinstance(p, str) for p in asked):
        raise UsageError(f'{file}: packs is a list of folders or names, such as packs = ["shop"]')
    return asked


@lru_cache(maxsize=1)
def _installed() -> dict[str, Pack]:
    """The packs that are installed, the library's own first."""
    found = sorted(entry_points(group=GROUP), key=lambda e: (e.module.partition(".")[0] != __package__, e.name))
    return {p.name: p for p in (_of_module(importlib.import_module(e.module), f"pack '{e.name}'") for e in found)}


def _named(entry: str, installed: Mapping[str, Pack]) -> Pack:
    """A pack by its folder, or by the name under which it is installed."""
    folder = (config_folder() / entry).resolve()
    if (folder / "__init__.py").is_file():
        return of_folder(folder)
    if entry in installed:
        return installed[entry]
    raise UsageError(f"packs: '{entry}' is no folder with an __init__.py; {did_you_mean(entry, list(installed))}")


def of_folder(folder: Path) -> Pack:
    """The pack in a folder, which is imported. Raises UsageError."""
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
        raise UsageError(f"packs: {init} cannot be imported: {type(e).__name__}: {e}") from None
    return _of_module(module, f"{init}")


def _of_module(module: Any, where: str) -> Pack:
    pack = getattr(module, "PACK", None)
    if not isinstance(pack, Pack):
        raise UsageError(f"packs: {where} has no PACK")
    return replace(pack, module=module.__name__)
