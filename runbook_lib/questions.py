"""`runbook_lib.queries` by its earlier name, for packs."""

from runbook_lib.queries import Query, names, query, statement

__all__ = ["Query", "names", "query", "statement"]
