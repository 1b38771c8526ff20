"""Take the sample of a run, in a process of its own, before its sections start.

Each part is read in a thread, by connections of its own: one that hangs holds up no other, and ends with the process.
What was not read until the deadline is asked by the sections themselves.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from threading import Thread

import pandas as pd

from runbook_lib.book import messages, pack
from runbook_lib.book.catalog import Catalog
from runbook_lib.book.parameters import validate
from runbook_lib.checks.context import Context, Sources, open_context
from runbook_lib.checks.sample import FIRST, Collect, Part, Sample, Sampling, SecondMoment
from runbook_lib.model.finding import Frames, Hop
from runbook_lib.model.order import Order
from runbook_lib.runs import forks
from runbook_lib.sources.answers import Answers, KeptAnswer
from runbook_lib.sources.settings import Settings
from runbook_lib.sources.source import ClockOffset, ReadCost

#: The step for which the sample's answers are asked.
_STEP = "sample"
#: Whose clock the moment of a run is of, and the part that measures the clocks of the others.
_DATABASE, _CLOCKS = "postgres", "clocks"
#: Seconds after its deadline in which the process may send what it has.
_LEAVE_S = 3.0
#: The shares of an order's deadline within which the sample is taken, and is there: its sections need the rest.
_SHARE, _LAST = 0.4, 0.5

Numbers = tuple[pd.Timestamp | None, tuple[Hop, ...]]


def take(order: Order, config: Settings, book: Catalog, hear: Callable[[Numbers], None]) -> Sample | None:
    """Return the sample of an order's run; None if it cannot be taken. `hear` is called with the first numbers.

    Meanwhile this process imports what runs the sections.
    """
    sampling: Sampling = pack.hook("sampling")
    until = time.monotonic() + min(book.numbers[sampling.longest] + _LEAVE_S, _LAST * order.deadline_s)
    taken = forks.start(_take, order, config, book, hear=hear)
    imports = Thread(target=importlib.import_module, args=(forks.RUNNERS,))
    imports.start()
    try:
        while not forks.wait_for_any([taken], until):
            if time.monotonic() >= until:
                return None
        return taken.result()
    except forks.ProcessDiedError:
        return None
    finally:
        forks.end_in_order([taken])
        imports.join()  # a process that forks further ones has one thread


@dataclass
class _Read:
    """What a thread has read of a part so far."""

    cost: ReadCost
    sources: Sources
    clocks: dict[str, ClockOffset] = field(default_factory=dict)
    first: Frames = field(default_factory=dict)
    watched: Frames = field(default_factory=dict)
    shared: dict[Collect, Frames] = field(default_factory=dict)
    answers: dict[tuple[object, ...], KeptAnswer] = field(default_factory=dict)


def _take(order: Order, config: Settings, book: Catalog) -> Sample:
    messages.use(order.lang)
    began, section = time.monotonic(), order.sections[0]
    named = validate({"target": order.target, "incident_id": order.incident} | order.parameters)
    # The moment is of the database's clock; another server that hangs holds up its own part only.
    rb = open_context(book.sections[section], named, config, book, _DATABASE)
    sampling: Sampling = pack.hook("sampling")
    sample, told = Sample(section, rb.as_of, rb.clocks), SimpleQueue[str]()
    second = SecondMoment(time.monotonic() + rb.number(sampling.most))
    ends = began + min(rb.number(sampling.longest), _SHARE * order.deadline_s)

    def read_of() -> _Read:
        cost = ReadCost(rb.masker)
        return _Read(cost, rb.sources.anew(cost))

    parts = {name: read_of() for name in (_CLOCKS, *sampling.parts)}
    for name, part in sampling.parts.items():
        Thread(target=_read_part, args=(rb, name, part, parts[name], second, told), daemon=True).start()
    Thread(target=_measure_clocks, args=(parts[_CLOCKS], told), daemon=True).start()
    left = {*parts}
    while left:
        try:
            said = told.get(timeout=max(ends - time.monotonic(), 0.0))
        except Empty:  # a part hangs
            break
        left.discard(said)
        if said == FIRST + sampling.shown:
            first = parts[sampling.shown].first
            second.set(sampling.second(rb, first))
            numbers = sampling.numbers(first)
            sample.sections = sampling.sections(numbers[1], rb.catalog)
            forks.report(numbers)
    sample.queries += rb.read_cost.queries
    sample.down |= rb.sources.down()
    # Of a part that hangs, what is there: its thread may still add to it.
    for read in parts.values():
        sample.first |= {f"{FIRST}{name}": frame for name, frame in [*read.first.items()]} | read.watched
        sample.shared |= dict([*read.shared.items()])
        sample.answers |= {key: KeptAnswer(kept.value, kept.sent) for key, kept in [*read.answers.items()]}
        sample.queries += read.cost.queries
        sample.down |= read.sources.down()
        sample.clocks |= read.clocks
    sample.tokens = rb.masker.issued()
    return sample


def _read_part(rb: Context, name: str, part: Part, read: _Read, second: SecondMoment, told: SimpleQueue[str]) -> None:
    rb = replace(rb, read_cost=read.cost, sources=read.sources, answers=Answers(read.answers, _STEP))
    try:
        read.first |= part.first(rb)
        told.put(FIRST + name)
        twice = [*read.cost.queries]
        part.once(rb, read.first)
        read.watched |= part.watch(rb.of(""), read.first, second)
        rb.answers.forget(twice)  # it was not at the second moment
        read.shared |= part.again(rb)
    except Exception:
        if os.environ.get("RUNBOOK_DEBUG"):
            raise  # else the step that asks the same says what is wrong
    finally:
        told.put(name)


def _measure_clocks(read: _Read, told: SimpleQueue[str]) -> None:
    try:
        read.clocks |= read.sources.clocks(*(name for name in pack.active_runbook().sources if name != _DATABASE))
    finally:
        told.put(_CLOCKS)
