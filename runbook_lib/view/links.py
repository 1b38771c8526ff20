"""Links that are made of stored or configured data: only to pages of the web, and to files beside the page.

Any other address may be a script, which the browser would run with the page's rights.
"""

from __future__ import annotations

import re
from html import unescape
from urllib.parse import quote

from markdown_it import MarkdownIt

_TAG = re.compile(r"<[a-z][^>]*>", re.IGNORECASE)
_LINK = re.compile(r"""\b(?:href|action|formaction)\s*=\s*("[^"]*"|'[^']*'|[^\s>]+)""", re.IGNORECASE)


def web_link(url: str) -> str:
    """Return an address that a browser opens by http or https; "" for any other."""
    return url if re.match(r"https?://", url, re.IGNORECASE) else ""


def file_link(name: str) -> str:
    """Return the link to a file by its path from the page; whatever the name holds, it is no other address."""
    return f"./{quote(name)}"


def markdown_parser(*, html: bool = False) -> MarkdownIt:
    """Return a parser of Markdown that makes links to web pages and files only; with `html`, HTML stays HTML."""
    parser = MarkdownIt("commonmark", {"html": html}).enable("table")
    parser.validateLink = _is_page_or_file  # type: ignore[method-assign]
    return parser


def without_other_links(body: str) -> str:
    """Return HTML without the addresses of links and forms that lead to neither a web page nor a file."""
    return _TAG.sub(lambda tag: _LINK.sub(lambda m: m[0] if _is_page_or_file(m[1].strip("\"'")) else "", tag[0]), body)


def _is_page_or_file(url: str) -> bool:
    seen = re.sub(r"[\x00-\x20]", "", unescape(url))  # as a browser reads it
    scheme = re.match(r"([a-z][a-z0-9+.-]*):", seen, re.IGNORECASE)
    return scheme is None or scheme[1].lower() in ("http", "https")
