"""The patterns of the pack are read from one file: a slip names file and entry."""

from __future__ import annotations

from pathlib import Path

import pytest

from runbook_lib.book import catalog, patterns
from runbook_lib.book.pack import Pack
from runbook_lib.model.usage import UsageError
from runbook_lib.packs.entitlement import PACK


@pytest.mark.parametrize(
    ("old", "new", "entry", "problem"),
    [
        ("kinds.lost = { patterns", "kinds.lost = { patern", "service log.kinds.lost.patterns", "Field required"),
        ("kinds.sent = {", "kinds.sent = { level = 1,", "service log.kinds.sent.level", "Extra inputs are not"),
        ("form = '{}\\Z'", "from = '{}\\Z'", "run exception.from", "Extra inputs are not"),
        ("form = '{}\\Z'", "form = '\\Z'", "run exception.form", "it has no '{}' where the patterns go"),
        ("form = '{}\\Z'", "form = '({}'", "run exception.form", r"'\(\(\?:\)' is no regular expression: missing"),
        ("'handshake'", "'(hand'", "send error.kinds.no_trust.patterns", r"'\(hand' is no regular expression: missing"),
        ("['does not exist']", "[]", "server error.kinds.undefined.patterns", "there is no pattern"),
        ('"sends.refused"', '"sends.no"', "send error.kinds.refused", "'sends.no' is not among the observations"),
        ('["setting"]', "[setting", "cannot be read", r"Expected '\]'"),
    ],
)
def test_a_malformed_file_names_its_entry(tmp_path: Path, old: str, new: str, entry: str, problem: str) -> None:
    path, text = tmp_path / patterns.FILE, (PACK.folder / patterns.FILE).read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UsageError, match=rf"^{path}: {entry}: {problem}") as e:
        patterns.check_observations(tmp_path, catalog.load().observations)
    assert "\n" not in str(e.value)
    with pytest.raises(UsageError, match=rf"^{path}"):
        catalog.read([Pack("entitlement", tmp_path, docs=PACK.docs), Pack("also", PACK.folder, extends="entitlement")])


def test_a_source_that_nobody_wrote_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"patterns.toml: no source 'send eror': did you mean 'send error'\?"):
        patterns.source(PACK, "send eror")


def test_each_example_is_of_its_kind() -> None:
    examples = [
        (of, kind, text)
        for of in patterns.load(PACK.folder).values()
        for kind, meaning in of.kinds.items()
        for text in meaning.examples
    ]
    assert examples and {text: of.find(text).kind for of, _, text in examples} == {t: kind for _, kind, t in examples}
