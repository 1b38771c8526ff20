"""Every key of runbook.toml stands in the documents."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import get_args

import pytest
from pydantic import BaseModel

from runbook_lib.packs.entitlement.facts import EntitlementFacts
from runbook_lib.sources.settings import Settings
from tests.kit import ROOT

DOCUMENTS = "\n".join(
    path.read_text(encoding="utf-8")
    for folder in (ROOT / "docs", ROOT / "docs" / "howto")
    for path in folder.glob("*.md")
)


def keys(model: type[BaseModel]) -> Iterator[str]:
    """Yield the keys of a table of settings, and of the tables in it."""
    for name, field in model.model_fields.items():
        yield name
        kinds = [field.annotation, *get_args(field.annotation)]
        for kind in [*kinds, *(inner for k in kinds for inner in get_args(k))]:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from keys(kind)


@pytest.mark.parametrize("key", sorted({*keys(Settings), *keys(EntitlementFacts)}))
def test_a_key_of_runbook_toml_is_documented(key: str) -> None:
    assert re.search(rf"\b{key}\b", DOCUMENTS)
