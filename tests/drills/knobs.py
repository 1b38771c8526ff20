"""Drills without a catalogue: something that the servers themselves let a person change is changed at random.

`read` returns all that can be turned in a sandbox, `draw` the knobs of a seed, in the order in which they are tried;
`report.judged` says whether the turn hurt the flow, and whether the runbook was right.
"""

from __future__ import annotations

import contextlib
import random
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from http import HTTPStatus
from itertools import islice, product
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args, get_type_hints

import nats.errors
import psycopg
from nats.js import JetStreamContext
from psycopg.rows import dict_row

from runbook_lib.gameday.sandbox import broker, entitlement, faults, notification, servers
from runbook_lib.gameday.sandbox.sandbox import PROGRAMS, Sandbox
from runbook_lib.gameday.sandbox.state import DATABASE, SERVICES, Addresses, SandboxError, owners
from tests.kit import network

from . import people, play
from .scenario import Scenario

KINDS = (
    "setting",
    "privilege",
    "schema",
    "stream",
    "consumer",
    "variable",
    "process",
    "receiver",
    "broker",
    "network",
    "person",
)
Row = Mapping[str, Any]
Line = dict[str, Any]

#: Categories of pg_settings that are no knobs: they would end the sandbox or hide its logs, or debug the server itself.
_LEFT_OUT = re.compile(r"File Locations|Preset Options|Developer Options|/ SSL|/ Where to Log|Customized Options")
#: By its port the sandbox finds the server; other kinds of shared memory would outlive it; the load is no setting.
_OURS = {"port", "shared_memory_type", "dynamic_shared_memory_type", "SANDBOX_RATE"}
#: No value takes more memory: the machine must have it.
_MOST_BYTES = 256 << 20
_UNITS = {"B": 1, "kB": 1 << 10, "8kB": 8 << 10, "MB": 1 << 20}
_TRIES = 20
_LOOKED_AT_S = (15.0, 60.0)
#: The right places, by program or by kind: whoever is told something, and the hops that need a stream.
_PLACES = {
    "postgres": ("database",),
    **dict.fromkeys(("stream", "broker", "nats"), ("jetstream", "relay", "subscriber")),
    "consumer": ("subscriber",),
    "entitlement": ("producer", "relay"),
    "notification": ("subscriber", "delivery_worker"),
    "receiver": ("receiver",),
}
#: The way to a server belongs to both ends; all services use the database.
_ENDS = {**_PLACES, "receiver": ("receiver", "delivery_worker")}


@dataclass(frozen=True)
class Knob:
    """One thing turned: `value` is what is set or done, `words` are those of a text that names it, if one can.

    `act` turns it. A seed picks a group of its kind, an
    item of that, and then a value: else what there are many of would be all.
    """

    kind: str
    group: str
    item: str
    value: str
    places: Sequence[str | None]
    words: Sequence[str]
    act: people.Act = field(repr=False)


def read(sandbox: Sandbox) -> list[Knob]:
    """Ask the servers what they can be told. Raises psycopg.Error, SandboxError."""

    async def ask(js: JetStreamContext) -> list[Row]:
        found = [await js.stream_info(broker.STREAM), await js.consumer_info(broker.STREAM, broker.CONSUMER)]
        return [_read_fields(info.config) for info in found]

    with psycopg.connect(sandbox.state.addresses.admin_url, row_factory=dict_row) as connection:
        settings = connection.execute("SELECT * FROM pg_settings ORDER BY name").fetchall()
        objects = connection.execute(Path(__file__).with_suffix(".sql").read_bytes()).fetchall()
    stream, consumer = sandbox.visit(ask)
    return [
        *list_settings(settings),
        *list_objects(objects),
        *list_fields("stream", stream),
        *list_fields("consumer", consumer),
        *list_variables({**read_defaults(), **sandbox.settings}),
        *list_signals({name: ["", *sandbox.pod(name)["parts"]] if name in SERVICES else [""] for name in PROGRAMS}),
        *list_fields("broker", _read_broker(sandbox)),
        *list_denials(_read_subjects(sandbox)),
        *list_network_rules(),
        *list_people(),
    ]


def _read_broker(sandbox: Sandbox) -> Row:
    """Return the numbers that the broker shows of itself and takes as a configuration: durations with their unit."""
    shown = {name: value for name, value in sandbox.ask_broker("varz").items() if isinstance(value, int)}
    fields = {name: f"{value // 10**9}s" if value >= 10**9 else value for name, value in shown.items()}
    addresses = sandbox.state.addresses
    return {name: value for name, value in fields.items() if takes(addresses, **{name: value})}


def takes(addresses: Addresses, **changes: Any) -> bool:
    """Return whether nats-server would start with these fields in its configuration."""
    with tempfile.TemporaryDirectory() as folder:
        servers.write_nats_config(Path(folder), addresses, **changes)
        command = [*servers.nats_command(Path(folder)), "-t"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _read_subjects(sandbox: Sandbox) -> list[str]:
    """Return what the clients subscribe to and what they may ask, by the first token, or two if that begins with $."""
    held = sandbox.ask_broker("subsz?subs=1")["subscriptions_list"]
    asked = sandbox.ask_broker("accountz?acc=$G")["account_detail"]["imports"]
    every = [*(one["subject"] for one in held if one["account"] == "$G"), *(one["subject"] for one in asked)]
    return sorted({re.sub(r"^(\$[^.]+\.[^.]+|[^.$]+)\..*", r"\1.>", subject) for subject in every})


def _read_fields(config: Any) -> Row:
    """Return the fields of a configuration; of those with a list of values, as members of their type."""
    row = {}
    for name, hint in get_type_hints(type(config)).items():
        kinds = [kind for kind in get_args(hint) if isinstance(kind, type) and issubclass(kind, Enum)]
        value = getattr(config, name)
        row[name] = kinds[0](value) if kinds and value is not None else value
    return row


def read_defaults() -> dict[str, str]:
    """Return the variables that the sandbox's programs read, with their defaults, from the code that reads them."""
    found: dict[str, str] = {}
    prefixes = [queue.SETTINGS for queue in (entitlement.OutboxQueue, notification.Deliveries)]
    for file in sorted(Path(faults.__file__).parent.glob("*.py")):
        text = file.read_text(encoding="utf-8")
        for name, default in re.findall(r'env\.get\(f?"([^"]+)", "([^"]*)"\)', text):
            found |= {re.sub(r"\{.*\}", s.upper(), name): default for s in SERVICES}
        for name, default in re.findall(r'[^.]get\("([A-Z_]+)", "([^"]*)"\)', text):
            found |= {f"{prefix}_{name}": default for prefix in prefixes}
    return found


# What can be turned -----------------------------------------------------------------------------------------


def list_settings(rows: Iterable[Row]) -> Iterator[Knob]:
    """Yield the knobs of rows of pg_settings."""
    for row in rows:
        name, start = row["name"], row["context"] == "postmaster"
        fixed = row["context"] == "internal" or (start and row["vartype"] == "string") or name in _OURS
        if fixed or _LEFT_OUT.search(row["category"]):
            continue
        begin = ["restart"] if start else ["reload", "new sessions"]
        of_session = not start and row["context"] != "sighup"
        for value, of in product(values(row), ["SYSTEM", *([f"DATABASE {DATABASE}", f"ROLE {DATABASE}"] * of_session)]):
            do = f"ALTER {of} SET {name} = '{value}'"
            yield Knob("setting", row["category"], name, do, _PLACES["postgres"], [name], faults.alter(do, *begin))


def list_objects(rows: Iterable[Row]) -> Iterator[Knob]:
    """Yield the knobs of rows of knobs.sql, in groups by what they are."""
    for row in rows:
        group, act = row["value"].split()[1], faults.alter(*row["do"])
        yield Knob(row["kind"], group, row["item"], row["value"], _PLACES["postgres"], row["words"], act)


def list_fields(kind: str, config: Row) -> Iterator[Knob]:
    """Yield the knobs of the configuration of the stream, the consumer, or the broker."""
    for name in sorted({*config} - {"name", "durable_name", *_OURS}):
        for value in vary(config[name]):
            act = people.make_act({kind: {name: [value] if kind == "broker" else value}})
            yield Knob(kind, "field", name, repr(value), _PLACES[kind], [name], act)


def list_variables(found: Mapping[str, str]) -> Iterator[Knob]:
    """Yield the knobs of variables; of one that both services read, one of them gets another value."""
    for name in sorted({*found} - _OURS):
        pods = owners([name])
        for value, pod in product(vary(found[name], name), pods):
            kind, words = ("receiver", []) if pod == "receiver" else ("variable", [name])
            as_set = name if len(pods) == 1 else f"{pod.upper()}__{name}"
            act = people.make_act({"settings": {as_set: [value]}, "restarts": [pod]})
            yield Knob(kind, name, as_set, value.rpartition("@")[2], _PLACES[pod], words, act)


def list_signals(parts: Mapping[str, Iterable[str]]) -> Iterator[Knob]:
    """Yield what can be done to programs and their parts. A text cannot name it."""
    for program, part in [(program, part) for program, own in parts.items() for part in own]:
        for how in ("STOP 5", "STOP 30", "STOP 120", "KILL", *(["FILES"] if part else [])):
            item, act = f"{program} {part}".strip(), people.make_act({"signal": [how, program, part]})
            yield Knob("process", program, item, how, _PLACES[program], [], act)


def list_denials(subjects: Iterable[str]) -> Iterator[Knob]:
    """Yield what the broker's users can be denied."""
    for (user, may), what, subject in product(servers.PERMISSIONS.items(), ("publish", "subscribe"), subjects):
        act = people.make_act(
            {"broker": {user: [{"permissions": {**may, what: {**may.get(what, {}), "deny": subject}}}]}}
        )
        words = [f'"{subject.removesuffix(">")}']  # the broker names the subject of the message
        yield Knob("broker", "user", f"{user} {what}", f"deny {subject}", _PLACES["nats"], words, act)


def list_network_rules() -> Iterator[Knob]:
    """Yield what can happen between the services and each server."""
    for server, rule in product(network.SERVERS, network.RULES):
        for value in network.RULES[rule]:
            act = people.make_act({"network": {server: (rule, value)}})
            yield Knob("network", server, f"to {server}", f"{rule} {value:g}", _ENDS[server], [], act)


def list_people() -> Iterator[Knob]:
    """Yield the rows of people.toml; what of them breaks no hop has no place."""
    for name, table in people.TABLES.items():
        yield Knob("person", name, name, table["en"], table["places"] or [None], table["words"], people.ACTS[name])


def values(setting: Row) -> list[str]:
    """Return other values of a setting, within its type and its bounds: the ends, and a large step each way."""
    now, kind = setting["setting"], setting["vartype"]
    if kind == "bool":
        return ["off" if now == "on" else "on"]
    if kind == "enum":
        return [value for value in setting["enumvals"] if value != now]
    if kind == "string":
        return ["knob"]
    make = int if kind == "integer" else float
    least, most, value = (make(setting[name]) for name in ("min_val", "max_val", "setting"))
    if setting["unit"] in _UNITS:
        most = min(most, max(make(_MOST_BYTES / _UNITS[setting["unit"]]), value))
    ends = [least] if setting["context"] == "postmaster" else [least, most]  # what it reserves at its start is bounded
    steps = [make(min(max(step, least), most)) for step in (value * 10, value / 10)]
    return [f"{v:.12g}" for v in sorted({*ends, *steps} - {value})] or [str(value)]


def vary(value: Any, name: str = "") -> list[Any]:
    """Return other values of the type of this one; the server may refuse them.

    >>> vary("true"), vary("30s"), vary("10"), vary("0", "X_STATUS")[:2]
    (['false'], ['1ms', '24h'], ['0', '1', '-1', '1000', '1000000'], ['200', '201'])
    """
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, Enum):
        return [other.value for other in type(value) if other is not value]
    if isinstance(value, (int, float)):
        kind = type(value)
        return [other for other in map(kind, (0, 1, -1, value * 100, 10**6)) if other != value]
    if isinstance(value, list):
        return [["knob.other"], [*value, "knob.also"]]
    if not isinstance(value, str):
        return []
    if value in ("true", "false"):
        return ["false" if value == "true" else "true"]
    if name.endswith("_STATUS"):
        return [str(int(status)) for status in HTTPStatus if status >= HTTPStatus.OK]
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return [f"{other}" for other in vary(float(value) if "." in value else int(value))]
    if re.fullmatch(r"[\d.]+(ms|s|m|h|d)", value):
        return [other for other in ("1ms", "24h") if other != value]
    if "://" in value:
        return [re.sub(r":\d+(?=/|$)", ":1", value), re.sub(r"[\d.]+:\d+", "knob.invalid", value)]
    return ["knob"]


# The generator ----------------------------------------------------------------------------------------------


def draw(seed: int, knobs: Iterable[Knob]) -> Iterator[tuple[Knob, ...]]:
    """Yield the turns of that seed without end: a server may refuse one, then the next is tried."""
    dice = random.Random(f"knobs {seed}")
    own = [[knob for knob in knobs if knob.kind == kind] for kind in draw_kinds(seed)]
    while True:
        yield tuple(_pick(of_kind, dice) for of_kind in own)


def draw_kinds(seed: int) -> list[str]:
    """Return the kinds that the seed turns: they follow one another, and one seed in four turns two."""
    dice = random.Random(f"kinds {seed}")
    first = KINDS[seed % len(KINDS)]
    return [first, *([dice.choice([kind for kind in KINDS if kind != first])] if dice.random() < 1 / 4 else [])]


def _pick(knobs: Sequence[Knob], dice: random.Random) -> Knob:
    for key in (attrgetter("group"), attrgetter("item")):
        chosen = dice.choice(sorted({key(knob) for knob in knobs}))
        knobs = [knob for knob in knobs if key(knob) == chosen]
    return dice.choice(knobs)


def scenario(seed: int) -> Scenario:
    """Return what is around the turn of that seed: a steady load, and the time of the first look."""
    looked_at_s = random.Random(f"look {seed}").uniform(*_LOOKED_AT_S)
    return Scenario(seed, (), 1.0, "steady", "", round(looked_at_s, 1))


# A play -----------------------------------------------------------------------------------------------------


def drill(scene: Scenario, clock: play.DrillClock, after_s: float = 30.0) -> Line:
    """Play one and return its line: what was turned, the flow before and after, and what the runbook said.

    A proposal of high confidence is carried out, and compared with a twin that has the same knobs and is left alone.
    """
    return play.record(scene, lambda scratch: _play(scene, scratch, clock, after_s))


def _play(scene: Scenario, scratch: Path, clock: play.DrillClock, after_s: float) -> Line:
    turned: list[Knob] = []
    turns, proxied = partial(turn, scene.seed, turned), "network" in draw_kinds(scene.seed)
    _, document, line = play.respond(scene, scratch, clock, after_s, scratch, turns, proxied)
    said = [finding["headline"] for run in document["runs"] for finding in run["findings"]] if document else []
    shown = ("kind", "item", "value", "places", "words")
    return {"knobs": [{key: getattr(knob, key) for key in shown} for knob in turned], "said": said, **line}


def turn(seed: int, turned: list[Knob], sandbox: Sandbox) -> None:
    """Turn the knobs of the seed, of each kind the first that the servers accept, and note them; or turn noted ones.

    A process is disturbed last: a server that is stopped takes nothing.
    """
    for knob in turned:
        knob.act(sandbox)
    if turned:
        return
    for knobs in islice(draw(seed, read(sandbox)), _TRIES):
        for knob in sorted(knobs, key=lambda knob: knob.kind == "process"):
            if knob.kind not in {known.kind for known in turned}:
                with contextlib.suppress(psycopg.Error, nats.errors.Error, ValueError):
                    knob.act(sandbox)
                    turned.append(knob)
        if len(turned) == len(knobs):
            return
    raise SandboxError(f"no server takes a turn of seed {seed}")
