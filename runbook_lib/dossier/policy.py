"""Archive and read policies: the documents that a run was judged by, and the target's own thresholds.

A policy is archived once beside an incident's evidence, so that an old verdict can be explained and judged again by the
rules of its time.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from runbook_lib.book import catalog, pack
from runbook_lib.book.catalog import DOCUMENTS, MOVED_TABLES, Catalog
from runbook_lib.model.finding import OWN
from runbook_lib.model.usage import UsageError
from runbook_lib.store.files import digest

_PREFIX = "evidence/policy-"


def current_policy(own: Mapping[str, str]) -> dict[str, bytes]:
    """Return the policy file, by name: the active documents and a target's own thresholds. Its name is its digest."""
    return _policy_file(pack.active_runbook(), tuple(own.items()))


@cache
def _policy_file(runbook: pack.Runbook, own: tuple[tuple[str, str], ...]) -> dict[str, bytes]:
    texts: dict[str, Any] = catalog.read_texts(runbook.packs) | ({OWN: dict(own)} if own else {})
    content = json.dumps(texts, ensure_ascii=False, indent=1, sort_keys=True).encode()
    return {f"{_PREFIX}{digest(content)[:16]}.json": content}


def policy_file_of(names: Iterable[str]) -> str | None:
    """Return the policy file among the files of a run; None if there is none."""
    return next((name for name in names if name.startswith(_PREFIX)), None)


@lru_cache(maxsize=32)
def read(content: bytes) -> Catalog:
    """Read an archived policy; values that it lacks and present judges need are today's.

    Raises CatalogError or ValueError if this version cannot read it.
    """
    texts = json.loads(content)
    own = texts.pop(OWN, {})
    packs = [p for p in pack.active_runbook().packs if p.name in texts]
    return catalog.read(packs, texts).completed(catalog.load()).tuned(own)


@dataclass(frozen=True)
class OtherPolicy:
    """Another policy: documents, and thresholds by target; None if each run keeps its own thresholds."""

    book: Catalog
    thresholds: Mapping[str, Mapping[str, str]] | None = None

    def of(self, target: str, own: Catalog | None) -> Catalog:
        """Return the catalog for a run on the target; `own` is the run's archived policy."""
        if self.thresholds is not None:
            return self.book.tuned(self.thresholds.get(target, {}))
        book = self.book
        for name, text in (own.own if own else {}).items():
            with suppress(ValueError):  # these documents do not have the threshold, or it has another unit
                book = book.tuned({name: text})
        return book


def load_other(given: Path) -> OtherPolicy:
    """Load the active documents with replacements from `given`, a document or a folder of documents.

    A runbook.toml in the folder gives the targets' own thresholds. Raises UsageError if there is no document or one
    cannot be read, CatalogError for a malformed one.
    """
    names = [*(f"{name}.md" for name in DOCUMENTS), OWN]
    files = [given] if given.is_file() else [given / name for name in names]
    try:
        found = {f.name: f.read_text(encoding="utf-8") for f in files if f.is_file() and f.name in names}
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"{given} cannot be read: {getattr(e, 'strerror', None) or 'it is not UTF-8'}") from None
    if not found:
        raise UsageError(f"{given} is neither one of {', '.join(names)} nor a folder with one of them")
    toml = found.pop(OWN, None)
    replacements = {name.removesuffix(".md"): text for name, text in found.items()}
    texts = catalog.read_texts(packs := pack.active_runbook().packs)
    system = texts[packs[0].name]
    for name, (earlier, column) in MOVED_TABLES.items():
        if re.search(rf"^\| *{column} *\|", replacements.get(earlier, ""), re.MULTILINE):
            system.pop(name, None)  # a document of 0.5.0 has these tables itself
    system |= replacements
    book = read(json.dumps(texts).encode())
    return OtherPolicy(book, None if toml is None else _parse_thresholds(toml, book))


def _parse_thresholds(toml: str, book: Catalog) -> dict[str, dict[str, str]]:
    try:
        targets = tomllib.loads(toml).get("targets", {})
        return {name: book.tuned(target.get("thresholds", {})).own for name, target in targets.items()}
    except (ValueError, AttributeError) as e:
        wrong = e if isinstance(e, ValueError) else "targets and their thresholds must be tables"
        raise UsageError(f"{OWN}: {wrong}") from None
