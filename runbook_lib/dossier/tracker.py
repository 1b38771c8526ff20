"""The body of an issue that holds a postmortem: Markdown, as GitHub and GitLab read it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from runbook_lib.dossier import mandatory, postmortem
from runbook_lib.view import links

_LINK = re.compile(r"\[((?:[^\]\\]|\\.)*)\]\((?!\w+:)([^)\s]+)\)")
_MARKDOWN = links.markdown_parser()


def body(draft: str, dossier: str) -> str:
    """Return a draft as the body of an issue, with its measures as a list of tasks; the title is the issue's own.

    `dossier` is the URL of the dossier's folder; without one, links to its files become plain text.
    """
    text = re.sub(r"^(```yaml\n)#.*\n", r"\1", postmortem.without_markers(draft), flags=re.MULTILINE)
    text = text[max(text.find("\n| "), 0) :]  # title and instructions precede the first table
    lines = text.split("\n")
    for fence in reversed(_MARKDOWN.parse(text)):
        if fence.type == "fence" and fence.map and re.search(r"^measures:", fence.content, re.MULTILINE):
            tasks = list(_format_tasks(mandatory.measures_of(draft, suggested=True)))
            lines[slice(*fence.map)] = tasks or lines[slice(*fence.map)]
    text = _LINK.sub(lambda m: f"[{m[1]}]({dossier}/{m[2]})" if dossier else m[1], "\n".join(lines))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _format_tasks(measures: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for m in (m for m in measures if m["measure"]):
        named = ", ".join(filter(None, (m["kind"], m["owner"], m["due"])))
        mark = "- [x]" if m["done"] else "- [ ]"
        yield f"{mark} {postmortem.md(m['measure'])}{f' ({postmortem.md(named)})' if named else ''}"
