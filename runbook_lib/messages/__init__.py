"""The texts for people, one catalogue per language: `en.toml` and `ja.toml`, same keys.

A key is `topic.name`; a text is a `str.format` template over the parameters that a check gives it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any

from runbook_lib.finding import Text

LANGUAGES = ("en", "ja")
#: The key of a text that is read back from a record: its words, by language, are its parameters.
VERBATIM = "verbatim"


@cache
def catalogue(lang: str) -> dict[str, str]:
    """Every text of a language by its dotted key."""
    tables = tomllib.loads((Path(__file__).parent / f"{lang}.toml").read_text(encoding="utf-8"))
    return dict(_flatten("", tables))


def text(message: Text, lang: str) -> str:
    """The message in that language. A parameter that is itself a message is translated too."""
    if message.key == VERBATIM:
        return str(message.params[lang])
    params = {k: text(v, lang) if isinstance(v, Text) else _plain(v) for k, v in message.params.items()}
    return catalogue(lang)[message.key].format(**params)


def shown(message: Text) -> Iterator[Any]:
    """The parameters that the message's words show, those of messages inside it too."""
    if message.key == VERBATIM:
        return
    for _, field, _, _ in Formatter().parse(catalogue(LANGUAGES[0])[message.key]):
        if field:
            value = message.params[field]
            yield from shown(value) if isinstance(value, Text) else [value]


def _plain(value: Any) -> Any:
    # A number that could not be seen is shown as such, whatever format the template asks for.
    return _Missing() if value is None or value != value else value


class _Missing:
    def __format__(self, spec: str) -> str:
        return "?"


def _flatten(prefix: str, table: dict[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in table.items():
        if isinstance(value, dict):
            rows += _flatten(f"{prefix}{key}.", value)
        else:
            rows.append((prefix + key, value))
    return rows
