"""The text cells of a notebook: in one language, with what each step asks.

A committed notebook shows its pack's first language. Another is in a cell's metadata, `runbook.ja`, as a list of lines.
Link definitions (`[FM-DB-01]: ...`) are in the English text alone and hold for both.
"""

from __future__ import annotations

import re
from typing import Any

from runbook_lib.book import messages
from runbook_lib.view.queries import queries_of

_STEP = re.compile(r"""\.step\(["']([^"']+)["']\)""")
_DEFINITION = re.compile(r"^\[[^\]]+\]: .*$", re.MULTILINE)


def text_of(cell: Any) -> str:
    """Return the text of a Markdown cell in the current language; the visible one where it has no other."""
    other = cell.metadata.get("runbook", {}).get(messages.language())
    if not other:
        return str(cell.source)
    return "\n".join([*other, "", *_DEFINITION.findall(cell.source)]).rstrip()


def translate(nb: Any) -> None:
    """Put the text cells into the current language, with what each step asks under its heading."""
    heading: Any = None
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = text_of(cell)
            cell.metadata.pop("runbook", None)
            heading = cell
        elif heading is not None:
            asked = [queries_of(step).folded() for step in _STEP.findall(cell.source)]
            heading.source = "\n\n".join([heading.source, *filter(None, asked)])
