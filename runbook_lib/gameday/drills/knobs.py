"""Drills without a catalogue: something that the servers themselves let a person change is changed at random.

`read` returns what a sandbox's servers can be told, `draw` the knobs of a seed, in the order in which they are tried;
`report.judged` says whether the turn hurt the flow, and whether the runbook was right.
"""

from __future__ import annotations

import contextlib
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from functools import partial
from http import HTTPStatus
from itertools import islice
from pathlib import Path
from typing import Any, get_args, get_type_hints

import nats.errors
import psycopg
from nats.js import JetStreamContext
from psycopg.rows import dict_row

from runbook_lib.gameday.sandbox import broker, entitlement, faults, network, notification, servers
from runbook_lib.gameday.sandbox.sandbox import PROGRAMS, Sandbox
from runbook_lib.gameday.sandbox.state import DATABASE, SERVICES, SandboxError, owners

from . import play, probe
from .judge import changing
from .scenario import Scenario

KINDS = ("setting", "privilege", "schema", "stream", "consumer", "variable", "process", "receiver", "broker", "network")
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
#: The right places, by kind or by program: whoever is told something, and the hops that need a stream.
_PLACES = {
    **dict.fromkeys(("setting", "privilege", "schema", "postgres"), ("database",)),
    **dict.fromkeys(("stream", "broker", "nats"), ("jetstream", "relay", "subscriber")),
    "consumer": ("subscriber",),
    "entitlement": ("producer", "relay"),
    "notification": ("subscriber", "delivery_worker"),
    "receiver": ("receiver",),
}


@dataclass(frozen=True)
class Knob:
    """One thing turned: `value` is what is set or done, `words` are those of a text that names it, if one can.

    `act` is a table as in faults.toml, which says how it is turned and restored.
    """

    kind: str
    item: str
    value: str
    places: Sequence[str]
    words: Sequence[str]
    act: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Tunables:
    """What the servers of a sandbox can be told.

    `settings` are rows of pg_settings, `objects` those of knobs.sql, `stream`, `consumer` and `broker` configurations,
    `subjects` those that a user of the broker can be denied, `variables` and their values, `programs` and the parts of
    those that have any.
    """

    settings: Sequence[Row]
    objects: Sequence[Row]
    stream: Row
    consumer: Row
    broker: Row
    subjects: Sequence[str]
    variables: Mapping[str, str]
    programs: Mapping[str, Sequence[str]]


def read(sandbox: Sandbox) -> Tunables:
    """Ask the servers. Raises psycopg.Error, SandboxError."""

    async def ask(js: JetStreamContext) -> list[Row]:
        found = [await js.stream_info(broker.STREAM), await js.consumer_info(broker.STREAM, broker.CONSUMER)]
        return [_read_fields(info.config) for info in found]

    with psycopg.connect(sandbox.state.addresses.admin_url, row_factory=dict_row) as connection:
        settings = connection.execute("SELECT * FROM pg_settings ORDER BY name").fetchall()
        objects = connection.execute(Path(__file__).with_suffix(".sql").read_bytes()).fetchall()
    stream, consumer = sandbox.visit(ask)
    parts = {name: sorted(sandbox.pod(name)["parts"]) if name in SERVICES else [] for name in PROGRAMS}
    variables = {**read_defaults(), **sandbox.settings}
    fields, subjects = _read_broker(sandbox), _read_subjects(sandbox)
    return Tunables(settings, objects, stream, consumer, fields, subjects, variables, parts)


def _read_broker(sandbox: Sandbox) -> Row:
    """Return the numbers that the broker shows of itself and takes as a configuration: durations with their unit."""
    shown = {name: value for name, value in sandbox.ask_broker("varz").items() if isinstance(value, int)}
    fields = {name: f"{value // 10**9}s" if value >= 10**9 else value for name, value in shown.items()}
    addresses = sandbox.state.addresses
    return {name: value for name, value in fields.items() if servers.takes(addresses, **{name: value})}


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


# The generator ----------------------------------------------------------------------------------------------


def draw(seed: int, tunables: Tunables) -> Iterator[tuple[Knob, ...]]:
    """Yield the turns of that seed without end: a server may refuse one, then the next is tried.

    Kinds follow one another; one seed in four turns two.
    """
    dice = random.Random(f"knobs {seed}")
    while True:
        yield tuple(_DRAWS[kind](kind, tunables, dice) for kind in draw_kinds(seed))


def draw_kinds(seed: int) -> list[str]:
    """Return the kinds that the seed turns."""
    dice = random.Random(f"kinds {seed}")
    first = KINDS[seed % len(KINDS)]
    return [first, *([dice.choice([kind for kind in KINDS if kind != first])] if dice.random() < 1 / 4 else [])]


def scenario(seed: int) -> Scenario:
    """Return what is around the turn of that seed: a steady load, and the time of the first look."""
    looked_at_s = random.Random(f"look {seed}").uniform(*_LOOKED_AT_S)
    return Scenario(seed, (), 1.0, "steady", "", round(looked_at_s, 1))


def is_knob(setting: Row) -> bool:
    """Return whether a row of pg_settings may be turned."""
    fixed = setting["context"] == "internal" or (setting["context"], setting["vartype"]) == ("postmaster", "string")
    return not (fixed or _LEFT_OUT.search(setting["category"]) or setting["name"] in _OURS)


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


def _pick(rows: Sequence[Row], group: Callable[[Row], str], dice: random.Random) -> Row:
    """Pick a group, and one of it: else what there are many of would be all."""
    chosen = dice.choice(sorted({group(row) for row in rows}))
    return dice.choice([row for row in rows if group(row) == chosen])


def _draw_setting(kind: str, tunables: Tunables, dice: random.Random) -> Knob:
    setting = _pick([row for row in tunables.settings if is_knob(row)], lambda row: row["category"], dice)
    name, value = setting["name"], dice.choice(values(setting))
    where = ["SYSTEM"]
    if setting["context"] not in ("postmaster", "sighup"):
        where = [dice.choice(["SYSTEM", f"DATABASE {DATABASE}", f"ROLE {DATABASE}"])]
    do, undo = f"ALTER {where[0]} SET {name} = '{value}'", f"ALTER {where[0]} RESET {name}"
    begin = ["restart"] if setting["context"] == "postmaster" else ["reload", "new sessions"]
    act = {"do": [do, *begin], "undo": [undo, *begin]}
    return Knob(kind, name, do, _PLACES[kind], [name], act)


def _draw_object(kind: str, tunables: Tunables, dice: random.Random) -> Knob:
    row = _pick([row for row in tunables.objects if row["kind"] == kind], lambda row: row["value"].split()[1], dice)
    statements = {"do": row["do"], "undo": row["undo"]}
    return Knob(kind, row["item"], row["value"], _PLACES[kind], row["words"], statements)


def vary(value: Any) -> list[Any]:
    """Return other values of the type of this one, from a configuration; the server may refuse them."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, Enum):
        return [other.value for other in type(value) if other is not value]
    if isinstance(value, (int, float)):
        kind = type(value)
        return [other for other in (kind(0), kind(1), kind(-1), kind(value * 100), kind(10**6)) if other != value]
    if isinstance(value, list):
        return [["knob.other"], [*value, "knob.also"]]
    return ["knob.other"] if isinstance(value, str) else []


def _draw_field(kind: str, tunables: Tunables, dice: random.Random) -> Knob:
    config = tunables.stream if kind == "stream" else tunables.consumer
    name = dice.choice(sorted(n for n, v in config.items() if vary(v) and n not in ("name", "durable_name")))
    value, right = dice.choice(vary(config[name])), config[name]
    right = right.value if isinstance(right, Enum) else right
    return Knob(kind, name, f"{value!r}", _PLACES[kind], [name], {kind: {name: [value, right]}})


def vary_variable(name: str, default: str) -> list[str]:
    """Return other values of a variable: of a switch the other one, both ends of a number or of a duration, ...

    >>> vary_variable("X_ENABLED", "true"), vary_variable("X_LEASE", "30s"), vary_variable("X_STATUS", "0")[:2]
    (['false'], ['1ms', '24h'], ['200', '201'])
    """
    if default in ("true", "false"):
        return ["false" if default == "true" else "true"]
    if re.fullmatch(r"[\d.]+(ms|s|m|h|d)", default):
        return [value for value in ("1ms", "24h") if value != default]
    if name.endswith("_STATUS"):
        return [str(int(status)) for status in HTTPStatus if status >= HTTPStatus.OK]
    if re.fullmatch(r"[\d.]+", default):
        return [value for value in ("0", "1", "1000000") if float(value) != float(default)]
    if "://" in default:
        return [re.sub(r":\d+(?=/|$)", ":1", default), re.sub(r"[\d.]+:\d+", "knob.invalid", default)]
    return ["knob"]


def _draw_variable(kind: str, tunables: Tunables, dice: random.Random) -> Knob:
    readers = {name: owners([name]) for name in sorted({*tunables.variables} - _OURS)}
    name = dice.choice([name for name, pods in readers.items() if ("receiver" in pods) == (kind == "receiver")])
    value = dice.choice(vary_variable(name, tunables.variables[name]))
    pods, as_set = readers[name], name
    if len(pods) > 1:  # of both services: one of them gets another value
        pods = [dice.choice(pods)]
        as_set = f"{pods[0].upper()}__{name}"
    act = {"settings": {as_set: [value]}, "restarts": pods}
    words = [] if kind == "receiver" else [name]  # how the sandbox tells its receiver is no setting of the system
    return Knob(kind, as_set, value.rpartition("@")[2], _PLACES[pods[0]], words, act)


def _draw_broker(kind: str, tunables: Tunables, dice: random.Random) -> Knob:
    if dice.random() < 1 / 2:
        name = dice.choice(sorted({*tunables.broker} - _OURS))
        now = tunables.broker[name]
        value = dice.choice(vary_variable(name, now) if isinstance(now, str) else vary(now))
        return Knob(kind, name, str(value), _PLACES[kind], [name], {kind: {name: value}})
    user, what, subject = (
        dice.choice(of) for of in ([*servers.PERMISSIONS], ["publish", "subscribe"], tunables.subjects)
    )
    may = servers.PERMISSIONS[user]
    denied = {"permissions": {**may, what: {**may.get(what, {}), "deny": subject}}}
    return Knob(kind, f"{user} {what}", f"deny {subject}", _PLACES[kind], [subject], {kind: {user: denied}})


def _draw_network(kind: str, tunables: Tunables, dice: random.Random) -> Knob:
    server, rule = dice.choice(network.SERVERS), dice.choice(sorted(network.RULES))
    value = dice.choice(network.RULES[rule])
    return Knob(
        kind, f"to {server}", f"{rule} {value or ''}".strip(), _PLACES[server], [], {kind: {server: [rule, value]}}
    )


def _draw_process(kind: str, tunables: Tunables, dice: random.Random) -> Knob:
    program = dice.choice(sorted(tunables.programs))
    part = dice.choice(["", *tunables.programs[program]])
    how = dice.choice(["STOP 5", "STOP 30", "STOP 120", "KILL", *(["FILES"] if part else [])])
    # No text can name a change: a process that was disturbed has its place only.
    return Knob(kind, f"{program} {part}".strip(), how, _PLACES[program], [], {"signal": [how, program, part]})


_DRAWS: dict[str, Callable[[str, Tunables, random.Random], Knob]] = {
    "setting": _draw_setting,
    **dict.fromkeys(("privilege", "schema"), _draw_object),
    **dict.fromkeys(("stream", "consumer"), _draw_field),
    **dict.fromkeys(("variable", "receiver"), _draw_variable),
    "process": _draw_process,
    "broker": _draw_broker,
    "network": _draw_network,
}


# A play -----------------------------------------------------------------------------------------------------


def drill(scene: Scenario, clock: play.DrillClock, after_s: float = 30.0) -> Line:
    """Play one and return its line: what was turned, the flow before and after, and what the runbook said.

    A proposal of high confidence is carried out, and compared with a twin that has the same knobs and is left alone.
    """
    return play.record(scene, lambda scratch: _play(scene, scratch, clock, after_s))


def _play(scene: Scenario, scratch: Path, clock: play.DrillClock, after_s: float) -> Line:
    turned: list[Knob] = []
    turns, proxied = partial(turn, scene.seed, turned), "network" in draw_kinds(scene.seed)
    with play.incident(scene, scratch / "sandbox", clock, output=scratch, turn=turns, proxied=proxied) as it:
        onset = time.monotonic()
        clock.wait(scene.look_after_s)
        seen = probe.sample_flow(it.sandbox, scene.look_after_s)
        document, seconds, problem = play.triage(it.sandbox, scene, scratch, clock)
        verdict = document["verdict"] if document else None
        sure = bool(verdict and verdict["confidence"] == "high")
        proposal = changing(verdict["proposals"]) if verdict and sure else None
        with contextlib.ExitStack() as up:
            done, acted_at = None, time.monotonic()
            if proposal:
                done = play.carry_out(proposal["command"], it.sandbox, scratch, clock)
                again = faults.each(*(faults.pair(knob.act)[0] for knob in turned))
                twin = up.enter_context(play.Twin(scene, scratch / "twin", clock, turn=again, proxied=proxied))
                alone = twin.look_at(acted_at + after_s - onset, after_s)
            clock.wait(acted_at + after_s - time.monotonic())
            acted = probe.sample_flow(it.sandbox, after_s)
            left = alone.result() if proposal else acted
    return {
        "knobs": [{key: value for key, value in asdict(knob).items() if key != "act"} for knob in turned],
        "verdict": verdict,
        "headline": play.find_headline(document) if document else problem,
        "said": [f["headline"] for run in document["runs"] for f in run["findings"]] if document else [],
        "seconds": round(seconds, 1),
        "proposal": {**proposal, **done} if proposal and done else None,
        "before": asdict(it.before),
        "seen": asdict(seen),
        "acted": asdict(acted),
        "alone": asdict(left),
    }


def turn(seed: int, turned: list[Knob], sandbox: Sandbox) -> None:
    """Turn the knobs of the seed, and note them; of a kind the first that the servers accept.

    A process is disturbed last: a server that is stopped takes nothing.
    """
    for knobs in islice(draw(seed, read(sandbox)), _TRIES):
        for knob in sorted(knobs, key=lambda knob: knob.kind == "process"):
            if knob.kind not in {known.kind for known in turned}:
                with contextlib.suppress(psycopg.Error, nats.errors.Error, ValueError):
                    faults.pair(knob.act)[0](sandbox)
                    turned.append(knob)
        if len(turned) == len(knobs):
            return
    raise SandboxError(f"no server takes a turn of seed {seed}")
