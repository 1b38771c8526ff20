"""Tables of cases: what holds first decides, each is reached by a recording or a state here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from runbook_lib.book import messages, pack
from runbook_lib.checks.cases import Case, Cases
from runbook_lib.model.finding import Decision, OutageEnd, Reason, Status, say
from runbook_lib.packs.entitlement.checks import backlog, leases, program, publish, subscriber
from runbook_lib.packs.entitlement.missing import MissingEvents, Unprocessed
from runbook_lib.packs.entitlement.rows import Holder, Outbox
from runbook_lib.packs.jetstream import quorum
from runbook_lib.packs.jetstream.balance import StreamProblem
from runbook_lib.packs.jetstream.consumer import ConsumerRow
from runbook_lib.packs.queues.checks import work
from runbook_lib.runs import replay
from tests.kit import RECORDINGS, ROOT
from tests.kit.frames.delivery import consumer, look, outbox, runs
from tests.kit.steps import NOW, ago, make_given


@dataclass(frozen=True)
class Weather:
    rain: bool
    wind: float | None
    what: str = ""
    at: complex = 0j

    @property
    def storm(self) -> bool:
        return bool(self.rain and self.wind)


TABLE = Cases[Weather](
    Case(
        "storm",
        lambda seen: seen.storm and seen.what in ("hail", "snow") and not seen.at.imag,
        Status.CRITICAL,
        "a.storm",
        read="2",
    ),
    Case("wet", lambda seen: seen.rain or seen.what == "snow", lambda seen: Status.WARNING if seen.wind else Status.OK),
    Case("calm", lambda seen: not seen.wind, evidence=lambda seen: ("a.calm", f"a.{seen.what}")),
    Case("fair"),
)


def test_the_first_that_holds_says_it_all() -> None:
    found = TABLE.of(Weather(True, 9, "hail"))
    assert (found.name, found.status) == ("storm", Status.CRITICAL)
    assert (found.observations, found.sections) == (("a.storm",), ("2",))
    assert found.headline(mm=3) == say("storm", mm=3)
    assert found.decision == Decision("storm")
    assert TABLE.of(Weather(True, 9)).status is Status.WARNING
    assert TABLE.of(Weather(False, 0, "sun")).observations == ("a.calm", "a.sun")


def test_only_the_last_case_always_holds() -> None:
    several: list[list[Case[Weather]]] = [[Case("a"), Case("b")], [Case("a", lambda seen: seen.rain)]]
    for cases in several:
        with pytest.raises(ValueError, match="last case"):
            Cases(*cases)


# Those of the runbook ---------------------------------------------------------------------------------------------

TABLES: dict[str, Cases[Any]] = {
    "4.1.1": backlog.CASES,
    "4.1.2": subscriber.CASES,
    "4.1.3": publish.CASES,
    "4.3.1": leases.LEASES,
    "4.3.3": leases.HOLDER_CHANGES,
}


@pytest.mark.parametrize(
    ("folder", "tables"),
    [
        ("runbook_lib/packs/entitlement", (*TABLES.values(), publish.OUTBOX)),
        ("examples/procrastinate", (work.TAKERS, work.FAILURES)),
    ],
)
def test_each_case_has_its_words(folder: str, tables: tuple[Cases[Any], ...]) -> None:
    with pack.use_pack(ROOT / folder):
        known = {*messages.catalogue("en")}
    for cases in tables:
        assert len({case.name for case in cases}) == len([*cases])
        assert {case.says or case.name for case in cases if not callable(case.says)} - known == set()


BOUND = subscriber._read_subscriber(consumer(), make_given())
SENDING = backlog._read_backlog(look(), make_given())
STALLED = ConsumerRow(bound=True, num_pending=5, num_ack_pending=9, max_ack_pending=9)
FLOWING = publish._read_relay(outbox() | runs("relay"), make_given(), Outbox(now=NOW, last_published=ago(1)), 5.0)
FAILING = replace(FLOWING, failing=True, publishes=False)
LATE = backlog._read_backlog(look(due=9, oldest_due_s=20), make_given())
ONE_HAND = leases.HolderChanges(rows=9, taken=0, again=0, stolen=0, alive=False, side_by_side=False)
#: Those that no recording comes to, or only by chance.
STATES: dict[str, object] = {
    "publish.dated_back": replace(FLOWING, dated_back=True),
    "backlog.two_workers": replace(LATE, workers=("a", "b")),
    "backlog.elsewhere": replace(LATE, loop=program.LoopState("delivery", others=10)),
    "backlog.slow_outside": replace(LATE, spends="delivery.slow_outside"),
    "backlog.postponed": replace(LATE, postponed=20),
    "backlog.slow_statements": replace(LATE, spends="delivery.slow_statements"),
    "backlog.waits_for_lock": replace(LATE, spends="delivery.waits_for_lock"),
    "leases.taken_back": leases.Leases(leases.Processing([Holder(n=2, expired=1)]), False, False, False),
    "leases.without": leases.Leases(leases.Processing([Holder(n=2, without_lease=1)]), False, False, False),
    "leases.outlasted": leases.Leases(leases.Processing([Holder(n=2, expired=1)]), True, False, True),
    "leases.race": replace(ONE_HAND, taken=1, alive=True),
    "leases.takeover": replace(ONE_HAND, taken=1),
    "leases.two_workers": replace(ONE_HAND, side_by_side=True),
    "leases.circling": replace(ONE_HAND, again=2),
    "subscriber.cluster": replace(BOUND, broken=(quorum.RaftGroup("S", 3, "", False, ("n2", "n3")),)),
    "subscriber.deaf_idle": replace(BOUND, consumer=ConsumerRow(bound=False, num_pending=0, num_ack_pending=0)),
    "backlog.accepts_again": replace(SENDING, accepts_again=True),
    "subscriber.passed_by": replace(BOUND, missing=MissingEvents(5, 5, 5, lately=False)),
    "subscriber.lost_or_deleted": replace(BOUND, missing=MissingEvents(5, 5, 0, lately=False, doubtful=5)),
    "subscriber.not_registered": replace(
        BOUND, missing=MissingEvents(0, 0, 0, lately=False, notified=(Unprocessed(),))
    ),
    "subscriber.expired": replace(BOUND, missing=MissingEvents(5, 5, 0, lately=True), deleted=5),
    "subscriber.expires": replace(BOUND, expires=True),
    "balance.late": replace(BOUND, others=(StreamProblem("balance.unbound", say("-"), 9, False),)),
    "balance.differs": replace(BOUND, others=(StreamProblem("balance.unbound", say("-"), 9, True),)),
    "subscriber.stalled": replace(BOUND, consumer=STALLED),
    "subscriber.behind": replace(BOUND, consumer=replace(STALLED, max_ack_pending=99), late=True),
    "publish.unwritten": replace(FAILING, kind="timeout", writes=False),
    "publish.failing": FAILING,
    "publish.retries": replace(FLOWING, late=True, retrying=True, kind="timeout"),
    "publish.broker_gone": replace(FAILING, kind="closed", away=Reason.TIMEOUT),
    "publish.undecided": replace(FLOWING, stopped="stopped", away=Reason.TIMEOUT),
    "publish.seems_stopped": replace(FLOWING, stopped="seems_stopped"),
    "publish.stopped": replace(FLOWING, stopped="stopped"),
    "publish.quiet": replace(FLOWING, n=0.0),
    "publish.overload": replace(FLOWING, late=True, overloaded=True),
    "publish.late": replace(FLOWING, late=True),
    "publish.passed": replace(FLOWING, slow=True, passed=True),
    "publish.slow": replace(FLOWING, slow=True),
    "publish.postponed": replace(FLOWING, queue=Outbox(waiting_retry=20, postponed=20)),
    "publish.stray": replace(FLOWING, queue=Outbox(strays=3, stray_states="ON_HOLD")),
    "backlog.stray": backlog._read_backlog(look(strays=3, stray_states="ON_HOLD"), make_given()),
    "publish.waiting": replace(FLOWING, queue=Outbox(waiting_retry=2), n=0.0),
}


def test_each_case_is_reached() -> None:
    index = replay.read_index(RECORDINGS)
    recorded = {
        case
        for entry in index.values()
        for section in entry["expected"]["sections"].values()
        for case in section["cases"].values()
    }
    tables = {case.name: table for table in TABLES.values() for case in table}
    for name, state in STATES.items():
        found = tables[name].of(state)
        assert found.name == name
        assert all(p.command for p in found.proposals(make_given()))
    assert {*tables} - recorded - {*STATES} == set()
    over = OutageEnd(NOW, say("outage.published", n=1))
    assert publish.CASES.of(replace(FLOWING, slow=True, passed=True, ended=over)).name == "publish.over"
