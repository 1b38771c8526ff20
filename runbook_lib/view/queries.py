"""What a step asks, before it is asked: the SQL or the call, its index and cost class.

A pack says it in `queries.toml`: for each step a list of names, such as `orders/backlog` for a query of `sql/`,
or a source and a call, such as `nats_monitor connz`. Nothing is asked to show it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pandas as pd

from runbook_lib.book import messages, pack, queries
from runbook_lib.book.queries import Query
from runbook_lib.model.finding import say

FILE = "queries.toml"
#: A folded block with more characters has names only: a step may ask what three sections ask.
FOLDED_MOST = 20_000
PARAMETER = re.compile(r"(?<![:\w]):([A-Za-z_]\w*)")
#: What psql puts in place of the parameters that every query may have: the defaults of a run.
_SET = {"as_of": "now()", "since": "(now() - interval ''60 minutes'')", "max_rows": "1000"}
#: How a person repeats a call of a source.
_CALLS = {
    "postgres": "psql -c '{call};'",
    "jetstream": "nats request '$JS.API.{call}' ''",
    "nats_monitor": "curl -s http://127.0.0.1:8222/{call}",
    "prometheus": "GET {call}",
    "redis": "redis-cli {call}",
}


@dataclass(frozen=True)
class StepQueries:
    """What a step asks; it shows itself in a notebook. `sql` holds the queries, `calls` source and call of the rest."""

    step: str
    sql: tuple[Query, ...]
    calls: tuple[tuple[str, str], ...]
    lang: str = field(default_factory=messages.language)

    def __len__(self) -> int:
        return len(self.sql) + len(self.calls)

    def __repr__(self) -> str:
        return "\n\n".join([*map(psql, self.sql), *self._format_calls()]) or self._say_nothing_asked()

    def _repr_markdown_(self) -> str:
        calls = ["```", *self._format_calls(), "```"] if self.calls else []
        parts = [*map(self._describe_query, self.sql), "\n".join(calls)]
        return "\n\n".join(filter(None, parts)) or self._say_nothing_asked()

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each query: name, cost, index, sql."""
        rows = [(q.name, q.cost, q.index, q.sql) for q in self.sql]
        return pd.DataFrame(rows, columns=["name", "cost", "index", "sql"])

    def folded(self) -> str:
        """Return the same as Markdown that opens on a click; "" if the step has no query."""
        title = messages.text(say("ui.what_is_asked"), self.lang)
        shown = self._repr_markdown_()
        if len(shown) > FOLDED_MOST:
            names = ", ".join(f"`{name}`" for name in (*(q.name for q in self.sql), *map(" ".join, self.calls)))
            shown = messages.text(say("ui.queries_by_name", names=names, step=self.step), self.lang)
        return f"<details><summary>{title}</summary>\n\n{shown}\n\n</details>" if len(self) else ""

    def _describe_query(self, q: Query) -> str:
        said = messages.text(say("ui.query", name=q.name, cost=q.cost, index=q.index), self.lang)
        return f"{said}\n\n```\n{psql(q)}\n```"

    def _format_calls(self) -> Iterator[str]:
        for source, call in self.calls:
            yield _CALLS.get(source, "# {source}: {call}").format(source=source, call=call)

    def _say_nothing_asked(self) -> str:
        return messages.text(say("ui.asks_nothing", step=self.step), self.lang)


def queries_of(step: str) -> StepQueries:
    """Return what the packs say that a step asks; nothing for a step that judges what other steps have found."""
    runbook = pack.active_runbook()
    names = [name for p in runbook.packs for name in declared(p.folder / FILE).get(step, ())]
    filled = (q for checks in runbook.every("checks") for check in checks if check.step == step for q in check.queries)
    every = (*filled, *(queries.query(name) for name in names if " " not in name))
    sql = tuple({q.name: q for q in every}.values())
    calls = tuple((name.partition(" ")[0], name.partition(" ")[2]) for name in names if " " in name)
    return StepQueries(step, sql, calls)


def psql(q: Query) -> str:
    """Return a query as psql takes it; what has no default is named in a comment."""
    lines = [f"-- {q.name}: {q.question}", *(rf"\set {name} '{_SET[name]}'" for name in _parameters(q) if name in _SET)]
    if own := [f":{name}" for name in own_parameters(q)]:
        lines.append(f"-- set first: {', '.join(own)}")
    return "\n".join([*lines, f"{q.sql};"])


def own_parameters(q: Query) -> list[str]:
    """Return the parameters of a query that a run does not set."""
    return [name for name in _parameters(q) if name not in _SET]


def _parameters(q: Query) -> list[str]:
    return list(dict.fromkeys(PARAMETER.findall(re.sub(r"--.*", "", q.sql))))


@cache
def declared(file: Path) -> dict[str, list[str]]:
    """Return what a pack's file says that each step asks; nothing where there is no file."""
    return tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
