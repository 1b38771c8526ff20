"""Both catalogues are complete, and every text that the code names exists."""

from __future__ import annotations

import ast
import string
from pathlib import Path

import pytest

import runbook_lib
from runbook_lib import messages
from runbook_lib.finding import say

CODE = Path(runbook_lib.__file__).parent


def fields(template: str) -> set[str]:
    return {name.split(".")[0].split("[")[0] for _, name, _, _ in string.Formatter().parse(template) if name}


def test_same_keys() -> None:
    assert set(messages.catalogue("en")) == set(messages.catalogue("ja"))


@pytest.mark.parametrize("key", sorted(messages.catalogue("en")))
def test_same_parameters(key: str) -> None:
    assert fields(messages.catalogue("ja")[key]) <= fields(messages.catalogue("en")[key])


def test_every_key_named_in_the_code_exists() -> None:
    named = {
        node.args[0].value
        for path in CODE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "say"
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }
    assert named - set(messages.catalogue("en")) == set()


def test_what_could_not_be_seen_is_shown_as_such() -> None:
    assert "?" in messages.text(say("unknown.timeout", source=None, detail=float("nan")), "en")
