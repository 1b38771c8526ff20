"""A pack's kinds of rows, and whether the answers of a real server have what these declare."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Iterator

import pandas as pd
from pandas.api.types import infer_dtype

from runbook_lib.book.pack import Pack, load_room
from runbook_lib.model import rows

_NUMBERS = {"integer", "floating", "mixed-integer-float"}
#: What pandas calls the values of a column that a field of this type can hold; a field of another type holds anything.
_FITS = {
    int: _NUMBERS,
    float: _NUMBERS,
    bool: {"boolean"},
    str: {"string"},
    pd.Timestamp: {"datetime", "datetime64"},
}


def kinds_of_rows(own: Pack) -> list[type[rows.Row]]:
    """Return every kind of row of a pack and of the rooms that it uses; imports all of their modules."""
    packs = [own, *map(load_room, own.uses)]
    for pack in packs:
        for file in pack.folder.rglob("[!_]*.py"):
            importlib.import_module(".".join((pack.module, *file.relative_to(pack.folder).with_suffix("").parts)))
    return [
        kind
        for kind in _subclasses(rows.Row)
        if kind.__module__.startswith(tuple(f"{pack.module}." for pack in packs))
        and vars(sys.modules[kind.__module__]).get(kind.__name__) is kind  # and not of an earlier import of the pack
    ]


def _subclasses(of: type[rows.Row]) -> Iterator[type[rows.Row]]:
    for kind in of.__subclasses__():
        yield kind
        yield from _subclasses(kind)


def assert_fits(query: str, answer: pd.DataFrame, kinds: Iterable[type[rows.Row]]) -> None:
    """Fail unless the query's answer has the columns that its kinds of rows declare, with values of their types."""
    for kind in (kind for kind in kinds if getattr(kind, "QUERY", "") == query):
        types = rows._field_types(kind)  # type: ignore[arg-type]  # a type is hashable
        missing = types.keys() - {*answer.columns}
        assert not missing, f"{query} has no column for {kind.__name__}: {', '.join(sorted(missing))}"
        for name, of in types.items():
            found = infer_dtype(answer[name], skipna=True)
            fits = {"empty", *_FITS.get(of, {found})}
            assert found in fits, f"{query}: {name} is {found}, and {kind.__name__} takes {of.__name__}"
