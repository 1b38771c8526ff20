"""The published schemas (docs/schemas), as other tools would use them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from runbook_lib.store.record import FINDING_MIME
from tests.kit import ROOT

FOLDER = ROOT / "docs" / "schemas"
#: `common` is what the others are made of.
NAMES = sorted({p.stem for p in FOLDER.iterdir()} - {"common.v1"})
#: What lies in a dossier.
FILES = {"*-verdict-*.json": "run.v1", "evidence/[0-9]*.json": "evidence.v2", "log.jsonl": ""}
#: The lines of its log, by kind.
LINES = {"run": "artifact.v1", "verdict": "artifact.v1", "action": "action.v1", "note": "note.v1"}


def schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return found


@cache
def validator(name: str) -> Any:
    every = [schema(n) for n in ("common.v1", *NAMES)]
    registry: Registry[Any] = Registry().with_resources((s["$id"], Resource.from_contents(s)) for s in every)
    return Draft202012Validator(schema(name), registry=registry)


def problems(document: Any, name: str) -> list[str]:
    """What a schema has against a document, the nearest cause of each; a name alone is its first version."""
    name = name if name in NAMES else f"{name}.v1"
    return [f"{e.json_path}: {e.message[:300]}" for e in map(_cause, validator(name).iter_errors(document))]


def valid(document: Any, name: str) -> Any:
    """The document as it is, where its schema takes it."""
    assert not (found := problems(document, name)), f"{name}: {found}"
    return document


def valid_dossier(folder: Path) -> None:
    """Whatever lies in a dossier and is JSON is what its schema says."""

    def read(path: Path) -> list[Any]:
        text = path.read_text(encoding="utf-8")
        return [json.loads(line) for line in (text.splitlines() if path.suffix == ".jsonl" else [text])]

    for pattern, name in FILES.items():
        for path in folder.glob(pattern):
            for document in read(path):
                earlier = name == "evidence.v2" and "format" not in document
                valid(document, "evidence.v1" if earlier else name or LINES[document["kind"]])
    for path in folder.glob("*.ipynb"):
        outputs = [o for c in read(path)[0]["cells"] for o in c.get("outputs", ())]
        for finding in (o["data"][FINDING_MIME] for o in outputs if FINDING_MIME in o.get("data", {})):
            valid(finding, "finding")


def _cause(error: Any) -> Any:
    """Of what none of several forms takes, what is wrong in the form that it fits best: the deepest."""
    return max(map(_cause, error.context), key=lambda e: len(e.absolute_path)) if error.context else error
