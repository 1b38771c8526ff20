"""The policy that a run was judged by: the documents in force, and the target's own thresholds if it has any.

They are kept once beside an incident's evidence, so that an old verdict can be judged, and explained, by what held
then, whatever the documents and runbook.toml say today.
"""

from __future__ import annotations

import json
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from runbook_lib import catalog, pack
from runbook_lib.catalog import DOCUMENTS, Catalog
from runbook_lib.model.finding import OWN
from runbook_lib.store import digest
from runbook_lib.usage import UsageError

_PREFIX = "evidence/policy-"


def in_force(own: Mapping[str, str]) -> dict[str, bytes]:
    """The file that keeps the documents in force, and a target's own thresholds, by its name: that of its content."""
    return _file(pack.in_force(), tuple(own.items()))


@cache
def _file(runbook: pack.Runbook, own: tuple[tuple[str, str], ...]) -> dict[str, bytes]:
    texts = _texts(runbook.packs) | ({OWN: dict(own)} if own else {})
    content = json.dumps(texts, ensure_ascii=False, indent=1, sort_keys=True).encode()
    return {f"{_PREFIX}{digest(content)[:16]}.json": content}


def _texts(packs: Iterable[pack.Pack]) -> dict[str, dict[str, str]]:
    """The documents by pack and name."""
    there = {p.name: [(name, p.document(name)) for name in DOCUMENTS] for p in packs}
    return {
        name: {document: path.read_text(encoding="utf-8") for document, path in files if path.is_file()}
        for name, files in there.items()
    }


def of_run(entry: dict[str, Any]) -> str | None:
    """The file with the policy of a run, from its line of the manifest; None where none was kept."""
    return next((name for name in entry.get("sha256", {}) if name.startswith(_PREFIX)), None)


@lru_cache(maxsize=32)
def read(content: bytes) -> Catalog:
    """A policy that was kept. Raises CatalogError or ValueError where the program of today can not read it."""
    texts = json.loads(content)
    own = texts.pop(OWN, {})
    return _catalog(texts).tuned(own)


@dataclass(frozen=True)
class Other:
    """Another policy: documents, and thresholds by target, or None where each run keeps those of its own."""

    book: Catalog
    thresholds: Mapping[str, Mapping[str, str]] | None = None

    def of(self, target: str, own: Catalog | None) -> Catalog:
        """What a run on the target would have been judged by; `own` is what it was."""
        if self.thresholds is not None:
            return self.book.tuned(self.thresholds.get(target, {}))
        book = self.book
        for name, text in (own.own if own else {}).items():
            with suppress(ValueError):  # these documents have no such threshold any more, or another unit
                book = book.tuned({name: text})
        return book


def changed(given: Path) -> Other:
    """The documents in force with those in their places that `given` is, or holds: a file or a folder.

    A runbook.toml among them says what thresholds targets have for themselves. Raises UsageError where there is none
    of them or one cannot be read, CatalogError for one that is malformed.
    """
    names = [*(f"{name}.md" for name in DOCUMENTS), OWN]
    files = [given] if given.is_file() else [given / name for name in names]
    try:
        found = {f.name: f.read_text(encoding="utf-8") for f in files if f.is_file() and f.name in names}
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"{given} cannot be read: {getattr(e, 'strerror', None) or 'it is not UTF-8'}") from None
    if not found:
        raise UsageError(f"{given} is none of {', '.join(names)}, and holds none")
    toml = found.pop(OWN, None)
    texts = _texts(packs := pack.in_force().packs)
    texts[packs[0].name] |= {name.removesuffix(".md"): text for name, text in found.items()}
    book = read(json.dumps(texts).encode())
    return Other(book, None if toml is None else _thresholds(toml, book))


def _thresholds(toml: str, book: Catalog) -> dict[str, dict[str, str]]:
    try:
        targets = tomllib.loads(toml).get("targets", {})
        return {name: book.tuned(target.get("thresholds", {})).own for name, target in targets.items()}
    except (ValueError, AttributeError) as e:
        wrong = e if isinstance(e, ValueError) else "targets, and their thresholds, are tables"
        raise UsageError(f"{OWN}: {wrong}") from None


def _catalog(texts: dict[str, dict[str, str]]) -> Catalog:
    with tempfile.TemporaryDirectory(prefix="runbook-policy-") as folder:
        packs = [replace(p, docs=Path(folder, p.name)) for p in pack.in_force().packs if p.name in texts]
        for name, documents in texts.items():
            for document, text in documents.items():
                file = Path(folder, Path(name).name, f"{Path(document).name}.md")
                file.parent.mkdir(exist_ok=True)
                file.write_text(text, encoding="utf-8")
        return catalog.read(packs)
