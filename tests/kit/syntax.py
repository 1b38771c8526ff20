"""Where the library decides, and forms of its code."""

from __future__ import annotations

import ast

from runbook_lib.book import pack
from tests.kit import ROOT

PACK = pack.active_runbook().packs[0]


def called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


#: What decides beside the judges: the rest of the pack without its simulator, and the pack of the example.
EXAMPLE = ROOT / "examples" / "procrastinate"
DECIDING = sorted(
    path
    for folder in (PACK.folder, EXAMPLE)
    for path in folder.rglob("*.py")
    if not {"sandbox", "drills"} & {*path.relative_to(folder).parts}
)
