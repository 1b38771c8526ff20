"""Compare the servers that a program's variables name with those of the other program."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pandas as pd

from runbook_lib.book import patterns
from runbook_lib.model.frames import row
from runbook_lib.packs.entitlement import PACK
from runbook_lib.packs.entitlement.facts import facts_of

if TYPE_CHECKING:
    from runbook_lib.checks.context import Context

_SERVER_VARIABLE = patterns.source(PACK, "server variable")


def collect(rb: Context, workload: str) -> pd.DataFrame:
    """Return the user by which a service logs in to the broker, and what of its servers `differs` from the other's."""
    own = own_variables(rb.workloads.environment(rb.facts.workloads.program(workload)), workload)
    (other,) = (s for s in facts_of(rb).services if s != workload)
    others = own_variables(rb.workloads.environment(rb.facts.workloads.program(other)), other)
    ours = [url for url in (rb.target.url(s) for s in ("database_url", "nats_url")) if url]
    return row(user=_find_user(own.values()), differs=", ".join(sorted(find_other_servers(own, others, ours))))


def own_variables(environment: Mapping[str, str], workload: str) -> dict[str, str]:
    """Return the variables as the program sees them: in a file of both programs, its own have its name in front."""
    own = f"{workload.upper()}__"
    return {**environment, **{name.removeprefix(own): v for name, v in environment.items() if name.startswith(own)}}


def find_other_servers(own: Mapping[str, str], others: Mapping[str, str], ours: Iterable[str] = ()) -> list[str]:
    """Return the variables that name another server than the other program's, unless the runbook uses it (`ours`).

    >>> find_other_servers({"NATS_URL": "nats://a:pw@nats:4222"}, {"NATS_URL": "nats://b:pw@nats.prod.svc:4222"})
    []
    """
    named = [v for v in own.keys() & others.keys() if _SERVER_VARIABLE.says("address", v)]
    known = {name for url in ours for server in _read_servers(url) for name in (server, server.partition(":")[0] + ":")}
    named = [v for v in named if own[v] and others[v] and known.isdisjoint(_read_servers(own[v]))]
    return [v for v in named if _read_servers(own[v]).isdisjoint(_read_servers(others[v]))]


def _read_servers(value: str) -> set[str]:
    """Return the servers of an address, or of several, as HOST:PORT without the host's domain.

    >>> sorted(_read_servers("postgresql://u:pw@a.prod,b:5432/x")), sorted(_read_servers("nats://a:4222,nats://b:4222"))
    (['a:', 'b:5432'], ['a:4222', 'b:4222'])
    """
    places = value.split(",") if value.count("://") > 1 else [value]
    servers = (urlsplit(a.removeprefix("jdbc:")).netloc.rpartition("@")[2] or a for a in places)
    parts = (server.partition(":") for several in servers for server in several.split(","))
    return {f"{host if host[:1].isdigit() else host.partition('.')[0]}:{port}" for host, _, port in parts}


def _find_user(values: Iterable[str]) -> str:
    addresses = (urlsplit(v) for v in values if v.startswith(("nats://", "tls://")))
    return next((a.username for a in addresses if a.username and a.password), "")
