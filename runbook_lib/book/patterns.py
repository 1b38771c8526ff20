r"""A pack's text patterns: what the texts of other programs mean, such as log lines and the errors of servers.

They are in `patterns.toml` of the pack's folder: a table for each source of texts, with its kinds in order.

    ["send error"]
    form = '(?i){}'
    kinds.refused = { observation = "sends.refused", patterns = ['refused', 'no route to host'] }

One of a kind's `patterns` (regular expressions) has to be in the text; the first kind found counts. `form` surrounds
the patterns of each kind. `observation` is what a kind shows, `fold` what `Source.fold` writes in place of a match.
`examples` are texts of a kind, for the tests.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, TypeAdapter, ValidationError, field_validator

from runbook_lib.book.pack import Pack
from runbook_lib.model.usage import UsageError, did_you_mean, first_problem

FILE = "patterns.toml"


class Kind(BaseModel, extra="forbid"):
    """The patterns of one meaning."""

    patterns: tuple[str, ...]
    observation: str = ""
    fold: str = ""
    examples: tuple[str, ...] = ()

    @field_validator("patterns")
    @classmethod
    def _check(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            _compile(pattern)
        if not all(patterns) or not patterns:
            raise ValueError("there is no pattern")
        return patterns


class Found(NamedTuple):
    """What a text means: a kind and its observation, and the pattern's group `detail`, or else all that it matched."""

    kind: str = ""
    observation: str = ""
    detail: str = ""


class Source(BaseModel, extra="forbid"):
    """The kinds of one source of texts, in order."""

    kinds: dict[str, Kind]
    form: str = "{}"
    _regexes: dict[str, re.Pattern[str]] = {}

    @field_validator("form")
    @classmethod
    def _check(cls, form: str) -> str:
        _compile(form.replace("{}", "(?:)"))
        if form.count("{}") != 1:
            raise ValueError("it has no '{}' where the patterns go, or several")
        return form

    def model_post_init(self, _: object) -> None:
        """Compile the patterns."""
        every = {name: "|".join(kind.patterns) for name, kind in self.kinds.items()}
        self._regexes = {name: _compile(self.form.replace("{}", f"(?:{joined})")) for name, joined in every.items()}

    def find(self, text: str) -> Found:
        """Return the first kind found in a text; an empty one if there is none."""
        for name, regex in self._regexes.items():
            if match := regex.search(text):
                detail = match["detail"] if "detail" in regex.groupindex else match[0]
                return Found(name, self.kinds[name].observation, detail)
        return Found()

    def says(self, kind: str, text: str) -> bool:
        """Return whether a text is of a kind, whatever other kinds it is of. Raises KeyError."""
        return bool(self._regexes[kind].search(text))

    def fold(self, text: str) -> str:
        """Return a text in which the `fold` of each kind stands in place of what its patterns match."""
        for name, regex in self._regexes.items():
            text = regex.sub(self.kinds[name].fold, text)
        return text


def source(pack: Pack, name: str) -> Source:
    """Return one of a pack's sources. Raises UsageError."""
    sources = load(pack.folder)
    if name not in sources:
        raise UsageError(f"{pack.folder / FILE}: no source '{name}': {did_you_mean(name, list(sources))}")
    return sources[name]


@lru_cache(maxsize=8)
def load(folder: Path) -> dict[str, Source]:
    """Read the patterns of a pack's folder, none if it has no file of them.

    Raises UsageError, one line that names the file and the entry.
    """
    path = folder / FILE
    try:
        written = tomllib.loads(path.read_text(encoding="utf-8"))
        return TypeAdapter(dict[str, Source]).validate_python(written)
    except FileNotFoundError:
        return {}
    except ValidationError as e:
        raise UsageError(f"{path}: {' '.join(': '.join(first_problem(e)).split())}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise UsageError(f"{path}: cannot be read: {e}") from None


def check_observations(folder: Path, known: Collection[str]) -> None:
    """Refuse an observation of a pack's patterns that is not `known`. Raises UsageError."""
    for name, of in load(folder).items():
        for kind, meaning in of.kinds.items():
            if meaning.observation and meaning.observation not in known:
                where = f"{folder / FILE}: {name}.kinds.{kind}"
                raise UsageError(f"{where}: '{meaning.observation}' is not among the observations")


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as e:
        raise ValueError(f"'{pattern}' is no regular expression: {e}") from None
