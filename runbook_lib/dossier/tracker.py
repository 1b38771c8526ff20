"""The body of an issue that holds a postmortem: Markdown for GitHub and GitLab, wiki markup for Jira."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from markdown_it.token import Token

from runbook_lib.dossier import mandatory, postmortem
from runbook_lib.view import links

_LINK = re.compile(r"\[((?:[^\]\\]|\\.)*)\]\((?!\w+:)([^)\s]+)\)")
_MARKDOWN = links.markdown_parser()


def body(draft: str, tracker: str, dossier: str) -> str:
    """Return a draft as the body of an issue, with its measures as a list of tasks; the title is the issue's own.

    `dossier` is the URL of the dossier's folder; without one, links to its files become plain text.
    """
    text = re.sub(r"^(```yaml\n)#.*\n", r"\1", postmortem.without_markers(draft), flags=re.MULTILINE)
    text = text[max(text.find("\n| "), 0) :]  # title and instructions precede the first table
    lines = text.split("\n")
    marks = ("- ", "- **✔** ") if tracker == "jira" else ("- [ ] ", "- [x] ")
    for fence in reversed(_MARKDOWN.parse(text)):
        if fence.type == "fence" and fence.map and re.search(r"^measures:", fence.content, re.MULTILINE):
            tasks = list(_format_tasks(mandatory.measures_of(draft, suggested=True), marks))
            lines[slice(*fence.map)] = tasks or lines[slice(*fence.map)]
    text = _LINK.sub(lambda m: f"[{m[1]}]({dossier}/{m[2]})" if dossier else m[1], "\n".join(lines))
    text = re.sub(r"\n{3,}", "\n\n", text).strip()
    return "".join(_render_wiki(_MARKDOWN.parse(text))).strip() if tracker == "jira" else text


def _format_tasks(measures: Iterable[Mapping[str, Any]], marks: tuple[str, str]) -> Iterator[str]:
    for m in (m for m in measures if m["measure"]):
        named = ", ".join(filter(None, (m["kind"], m["owner"], m["due"])))
        yield f"{marks[m['done']]}{postmortem.md(m['measure'])}{f' ({postmortem.md(named)})' if named else ''}"


_WIKI = {
    "heading_close": "\n\n",
    "blockquote_open": "{quote}\n",
    "blockquote_close": "{quote}\n\n",
    "hr": "----\n\n",
    "table_close": "\n",
    "strong_open": "*",
    "strong_close": "*",
    "em_open": "_",
    "em_close": "_",
    "softbreak": " ",
    "hardbreak": "\n",
}


def _render_wiki(tokens: Sequence[Token]) -> Iterator[str]:
    """Iterate over the parts of parsed Markdown as wiki markup."""
    lists = href = cell = ""
    for t in tokens:
        if t.type in ("bullet_list_open", "ordered_list_open"):
            lists += "*" if t.tag == "ul" else "#"
        elif t.type in ("bullet_list_close", "ordered_list_close"):
            lists = lists[:-1]
            yield "" if lists else "\n"
        elif t.type == "list_item_open":
            yield f"{lists} "
        elif t.type == "paragraph_close":
            yield "\n" if lists else "\n\n"
        elif t.type == "heading_open":
            yield f"{t.tag}. "
        elif t.type in ("fence", "code_block"):
            yield f"{{code{f':{t.info}' if t.info else ''}}}\n{t.content}{{code}}\n\n"
        elif t.type == "inline":
            yield "".join(_render_wiki(t.children or [])) or " "
        elif t.type == "code_inline":
            yield f"{{{{{_escape_wiki(t.content)}}}}}"
        elif t.type in ("text", "image"):
            yield _escape_wiki(t.content)
        elif t.type == "link_open":
            href = str(t.attrs["href"])
            yield "["
        elif t.type == "link_close":
            yield f"|{href}]"
        elif t.type in ("th_open", "td_open"):
            cell = "||" if t.tag == "th" else "|"
            yield cell
        elif t.type == "tr_close":
            yield f"{cell}\n"
        else:
            yield _WIKI.get(t.type, "")


def _escape_wiki(text: str) -> str:
    """Escape what wiki markup would read as a mark: brackets everywhere, other marks where a word begins."""
    text = text.replace("\\", "&#92;")
    return re.sub(r"[{}\[\]|]|(?<!\w)[*_+^~!-](?=\w)", lambda m: "\\" + m[0], text)
