"""The policy that a run was judged by: the documents in force, kept once beside an incident's evidence.

So an old verdict can be judged, and explained, by what held then, whatever the documents say today.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from runbook_lib import catalog, pack
from runbook_lib.catalog import DOCUMENTS, Catalog
from runbook_lib.store import digest
from runbook_lib.usage import UsageError

_PREFIX = "evidence/policy-"


def in_force() -> dict[str, bytes]:
    """The file that keeps the documents in force, by its name, which is that of its content."""
    return _file(pack.in_force())


@cache
def _file(runbook: pack.Runbook) -> dict[str, bytes]:
    content = json.dumps(_texts(runbook.packs), ensure_ascii=False, indent=1, sort_keys=True).encode()
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
    return _catalog(json.loads(content))


def changed(given: Path) -> Catalog:
    """The documents in force with those in their places that `given` is, or holds: a file or a folder.

    Raises UsageError where there is none of them or one cannot be read, CatalogError for one that is malformed.
    """
    files = [given] if given.is_file() else [given / f"{name}.md" for name in DOCUMENTS]
    try:
        found = {f.stem: f.read_text(encoding="utf-8") for f in files if f.is_file() and f.stem in DOCUMENTS}
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"{given} cannot be read: {getattr(e, 'strerror', None) or 'it is not UTF-8'}") from None
    if not found:
        raise UsageError(f"{given} is none of {', '.join(f'{name}.md' for name in DOCUMENTS)}, and holds none")
    texts = _texts(packs := pack.in_force().packs)
    return _catalog(texts | {packs[0].name: texts[packs[0].name] | found})


def _catalog(texts: dict[str, dict[str, str]]) -> Catalog:
    with tempfile.TemporaryDirectory(prefix="runbook-policy-") as folder:
        packs = [replace(p, docs=Path(folder, p.name)) for p in pack.in_force().packs if p.name in texts]
        for name, documents in texts.items():
            for document, text in documents.items():
                file = Path(folder, Path(name).name, f"{Path(document).name}.md")
                file.parent.mkdir(exist_ok=True)
                file.write_text(text, encoding="utf-8")
        return catalog.read(packs)
