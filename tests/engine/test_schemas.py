"""The published schemas are sound, are used where their documents are made, and refuse what is not such a document."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.kit import ROOT
from tests.kit.schemas import NAMES, problems, schema, valid, valid_dossier

SAMPLE = ROOT / "outputs" / "sample"


#: What an example has and a document may lack.
OPTIONAL = {("run.v1", "seal"), ("receiver.v1", "problems"), *(("finding.v1", key) for key in ("unseen", "at"))}
#: Whose keys are data, or anybody's.
OPEN = {"evidence.v1", "message.v1"}


@pytest.mark.parametrize("name", ["common.v1", *NAMES])
def test_each_is_a_schema_of_its_version(name: str) -> None:
    found = schema(name)
    Draft202012Validator.check_schema(found)
    assert found["$id"] == f"{name}.json" and found["title"]


@pytest.mark.parametrize("name", NAMES)
def test_each_takes_its_examples_and_nothing_that_is_broken(name: str) -> None:
    nothings: list[Any] = [None, 7, "OK", [[]], [7], {}]
    for nothing in nothings:
        assert problems(nothing, name), nothing
    for example in schema(name)["examples"]:
        valid(example, name)
        inside = example[0] if isinstance(example, list) else example
        for key, value in inside.items():
            wrong = [inside | {key: [{"no": "such"}]}]
            wrong += [{k: v for k, v in inside.items() if k != key}] if (name, key) not in OPTIONAL else []
            wrong += [inside | {f"{key}_": value}] if name not in OPEN else []
            for broken in wrong:
                assert problems([broken] if isinstance(example, list) else broken, name), broken


def test_the_sample_and_what_is_not_a_dossier(tmp_path: Path) -> None:
    valid_dossier(SAMPLE)
    shutil.copytree(SAMPLE, tmp_path / "sample")
    for pattern in ("log.jsonl", "*-verdict-*.json", "evidence/2*.json", "*.ipynb"):
        path = next((tmp_path / "sample").glob(pattern))
        text = path.read_text(encoding="utf-8")
        assert '"CRITICAL"' in text
        path.write_text(text.replace('"CRITICAL"', '"BAD"'), encoding="utf-8")
        with pytest.raises(AssertionError, match="BAD"):
            valid_dossier(tmp_path / "sample")
        path.write_text(text, encoding="utf-8")
