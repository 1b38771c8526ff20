"""The texts for people, one catalogue per language: `en.toml` and `ja.toml`, same keys; of a pack in its languages.

A key is `topic.name`, or a prefix and a name such as an enum's value: `say(f"reason.{e.reason}")`. A text is a
`str.format` template over the parameters that a check gives it, and beyond that

    {ago:s}, {value:{unit}}            the number as people read it, with its unit (`quantity`)
    [[, the last {ago:s} ago]]         is left out where one of its parameters is not known
    [[about {ago:s}|never]]            is then "never"
    {n} event{n:/s} {n:was/were} lost  one word for 1, another for any other number

Texts are in the current language: that of the block (`using`), else that of the process (`use`).
"""

from __future__ import annotations

import re
import string
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from decimal import Decimal
from functools import lru_cache
from numbers import Real
from pathlib import Path
from typing import Any

from runbook_lib.book import pack
from runbook_lib.model.finding import Text, say
from runbook_lib.model.quantity import readable

LANGUAGES = pack.LANGUAGES
#: The key of a text that is read back from a record: its words, by language, are its parameters.
VERBATIM = "verbatim"
_language: ContextVar[str | None] = ContextVar("language", default=None)
_of_process = LANGUAGES[0]
#: A format that is a unit.
_UNIT = re.compile(r"[a-z]{2,}|[dhs%]|1/min")
_PART = re.compile(r"\[\[(.*?)(?:\|(.*?))?\]\]", re.DOTALL)


def language() -> str:
    """Return the current language, a member of `LANGUAGES`."""
    return _language.get() or _of_process


@contextmanager
def using(lang: str) -> Iterator[None]:
    """Make a language the current one within a block, in this thread only; what is rendered later is not in it."""
    token = _language.set(lang)
    try:
        yield
    finally:
        _language.reset(token)


def use(lang: str) -> None:
    """Make a language the current one of the process, also in threads that begin later.

    A thread begins with an empty context (Python 3.11), so the process has a default beside the context variable.
    """
    global _of_process
    _of_process = lang
    _language.set(None)


def catalogue(lang: str | None = None) -> dict[str, str]:
    """Return every text of a language by its dotted key: the engine's and those of the active packs."""
    return _catalogue(lang or language(), pack.active_runbook())


@lru_cache(maxsize=8)
def _catalogue(lang: str, runbook: pack.Runbook) -> dict[str, str]:
    texts: dict[str, str] = {}
    # A system's own text replaces that of a room.
    packs = (
        p.folder / "messages" / f"{p.language(lang)}.toml" for p in sorted(runbook.packs, key=lambda p: not p.room)
    )
    for file in (Path(__file__).with_name(f"{lang}.toml"), *packs):
        texts |= flat(tomllib.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
    return texts


def text(message: Text, lang: str | None = None) -> str:
    """Return the message in the current language. A parameter that is itself a message is translated too.

    `lang` is for records and checks that need every language.
    """
    lang = lang or language()
    if message.key == VERBATIM:
        return str(message.params[lang])
    params = {k: text(v, lang) if isinstance(v, Text) else v for k, v in message.params.items()}
    return _fill(catalogue(lang)[message.key], params, lang)


def quantity(value: Any, unit: str = "", lang: str | None = None) -> str:
    """Return a value with its unit as people read it, in the current language: a dash if it is not known."""
    if _is_unknown(value):
        return "–"
    if not isinstance(value, Real | Decimal) or isinstance(value, bool):
        return f"{value} {unit}".rstrip()
    number, unit = readable(float(value), unit)
    words = say(f"unit.{unit}", n=number)
    return text(words, lang) if words.key in catalogue(lang) else f"{number} {unit}".rstrip()


def _fill(template: str, params: Mapping[str, Any], lang: str) -> str:
    """Return the template with the parameters in their places."""

    def part(found: re.Match[str]) -> str:
        names = [name for _, name, _, _ in string.Formatter().parse(found[1]) if name]
        return (found[2] or "") if any(_is_unknown(params[name]) for name in names) else found[1]

    return _Sentence(lang).vformat(_PART.sub(part, template), (), params)


def shown(message: Text) -> Iterator[Any]:
    """Return the parameters that the message's text shows, including those of messages inside it."""
    if message.key == VERBATIM:
        return
    for _, field, spec, _ in string.Formatter().parse(catalogue(LANGUAGES[0])[message.key]):
        if field and "/" not in (spec or ""):  # "one/many" shows a word
            value = message.params[field]
            yield from shown(value) if isinstance(value, Text) else [value]


def _is_unknown(value: Any) -> bool:
    return value is None or value == "" or value != value


class _Sentence(string.Formatter):
    def __init__(self, lang: str) -> None:
        self._lang = lang

    def format_field(self, value: Any, spec: str) -> str:
        is_unit = _UNIT.fullmatch(spec)
        one, choice, many = spec.partition("/")
        if choice and not is_unit:
            return one if str(value) in ("1", "1.0") else many
        # A number that could not be seen is shown as such, whatever format the template asks for.
        if value is None or value != value:
            return "?"
        if is_unit or (spec in ("", ",") and isinstance(value, float)):
            return quantity(value, spec.strip(","), self._lang)
        return str(super().format_field(value, spec))


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the texts of a catalogue's file by their dotted keys."""
    texts: dict[str, str] = {}
    for key, value in table.items():
        texts |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return texts
