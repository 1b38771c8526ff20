"""Names and words that a tool can check: each class name is unique, and texts avoid the words of a short list."""

from __future__ import annotations

import ast
import json
import re
from collections import defaultdict
from pathlib import Path

import pytest

import runbook_lib
from runbook_lib import messages

CODE = Path(runbook_lib.__file__).parent
#: Words that texts for people do not use, each with the plain one.
AVOIDED = {
    "speaks for": "supports",
    "speaks against": "contradicts",
    "in force": "active",
    "tell on": "mask",
    "nobody is named": "user ids are masked",
    "broken glass": "break-glass",
    "whoever asks": "the caller",
    "what is held": "the rows that are held",
    "of one's own": "of your own",
    "came to": "resulted in",
    "healthy look": "healthy sample",
    "two looks": "two samples",
    "second look": "second sample",
}
ROOT = CODE.parent
DOCUMENTS = sorted(
    [
        *(ROOT / "docs").rglob("*.md"),
        *(CODE / "packs").rglob("*.md"),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "outputs/README.md")),
    ]
)


def test_each_class_name_is_unique() -> None:
    """One name for one thing: a reader who searches for a class finds one."""
    places = defaultdict(list)
    for path in sorted(CODE.rglob("*.py")):
        if "_pb2" in path.name or "_data" in path.parts:
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(path.relative_to(CODE)))
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert twice == {}


def test_each_key_of_a_table_of_keys_is_a_message() -> None:
    """A table of keys is a module constant whose name ends in `_KEYS`."""
    known, missing = set(messages.catalogue("en")), []
    for path in sorted(CODE.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            name = node.targets[0].id if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) else ""
            value = node.value if isinstance(node, ast.Assign) else None
            if not name.endswith("_KEYS") or not isinstance(value, ast.Dict):
                continue
            missing += [v.value for v in value.values if isinstance(v, ast.Constant) and v.value not in known]
    assert missing == []


def avoided_in(text: str) -> list[str]:
    """The avoided words that a text has, with their line breaks and case ignored."""
    plain = re.sub(r"\s+", " ", text).lower()
    return [word for word in AVOIDED if re.search(rf"\b{re.escape(word)}\b", plain)]


def test_messages_avoid_these_words() -> None:
    found = {key: words for key, text in messages.catalogue("en").items() if (words := avoided_in(text))}
    assert found == {}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_avoid_these_words(document: Path) -> None:
    assert avoided_in(document.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_avoid_these_words(notebook: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert avoided_in("\n".join("".join(cell["source"]) for cell in cells)) == []


def test_the_list_finds_a_word_across_lines() -> None:
    assert avoided_in("It speaks\nfor the relay") == ["speaks for"]
