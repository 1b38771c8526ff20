"""Both catalogues are complete, and every text that the code names exists."""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest

import runbook_lib
from runbook_lib.book import catalog, messages, pack, patterns
from runbook_lib.diagnosis import snapshots
from runbook_lib.dossier import report
from runbook_lib.dossier.mandatory import IncidentRecord
from runbook_lib.governance import approval
from runbook_lib.model.finding import PROPOSAL_PARTS, Confidence, Reason, say
from runbook_lib.notebook import testing
from runbook_lib.packs.entitlement import PACK
from runbook_lib.packs.entitlement.actions import ACTIONS, canary
from runbook_lib.packs.entitlement.checks import duplicates, past, program, recovery, subscriber
from runbook_lib.packs.entitlement.event_place import PLACES
from runbook_lib.view import render

CODE = Path(runbook_lib.__file__).parent
ROOM = "runbook_lib.packs.queues"


def fields(template: str) -> set[str]:
    parsed = [(name, spec or "") for _, name, spec, _ in string.Formatter().parse(template) if name]
    return {name.split(".")[0].split("[")[0] for name, _ in parsed} | {n for _, spec in parsed for n in fields(spec)}


def test_same_keys() -> None:
    assert set(messages.catalogue("en")) == set(messages.catalogue("ja"))


def test_same_parameters() -> None:
    ja, en = messages.catalogue("ja"), messages.catalogue("en")
    assert {key: more for key in ja if (more := fields(ja[key]) - fields(en[key]))} == {}


PROPOSALS = """
    cancel_waiting change_settings check_clocks check_nats_credentials end_blocker end_sessions fix_producer
    hold_delivery list_sessions logs look_at_role pods redrive_broker redrive_delivery redrive_outbox
    restart_entitlement restart_nats restart_notification resume_delivery start_entitlement start_notification
    switch_on_delivery switch_on_relay throttle_delivery throttle_relay undo_settings"""
DATABASE = "keeps_out holds_up locks_rows no_session rolls_back slow_way"
#: Every family of keys that are composed: the prefix, and its members, or a text of their names.
FAMILIES: dict[str, Iterable[str]] = {
    "action.approval.differs.": (*approval._BOUND, "preconditions"),
    "action.canary.": canary._STEPS,
    "action.redrive.effect_": "outbox delivery broker",
    "action.result.": render.ACTION_MARKS,
    "action.title.": ACTIONS,
    "compare.": snapshots._HOP_UNITS,
    "confidence.": get_args(Confidence),
    "database.": """
        waits_for_standby own_work rows_held table_held blocked waits full rows_unread free""",
    "duplicates.": (*duplicates._ORDER_PROBLEMS.values(), "none", "in_order"),
    "duplicates.also_": [name for kind, name in duplicates._ORDER_PROBLEMS.items() if kind != "events"],
    "hop.": (*catalog.load().places, *(o.reporter for o in catalog.load().observations.values() if o.reporter)),
    "journey.at.": PLACES,
    "journey.next.": PLACES.keys() - {"outbox_failed", "refused", "failed"},
    "journey.queue_": "due retry held",
    "journey.relay_": "due retry held",
    "letters.failure.": [
        f"{kind}_{course}" for kind in ("dependency", "unclear", "stores") for course in ("going_on", "over", "untried")
    ],
    "letters.kinds.": """
        parse_failure unknown_type missing_field malformed_field undecodable bad_event_id bad_occurred_at empty_field
        decodes gone not_fetched refused unknown""",
    "letters.live_": "delivery publish delivery_publish",
    "letters.stores.": "outbox delivery broker",
    "letters.trend_": "none few burst burst_on step steady stopped",
    "postmortem.": [name for name in catalog.load().observations if name.startswith("past.")],
    "postmortem.hint.": IncidentRecord.model_fields,
    "postmortem.how.": """
        alert before broker first_run green letters lost notifications outbox returned run slo told unknown
        user_report""",
    "postmortem.item.": IncidentRecord.model_fields,
    "postmortem.kind.": "onset detection recovery confirmed run verdict action dry note died",
    "postmortem.missing.": IncidentRecord.model_fields,
    "postmortem.queue.": past.QUEUES,
    "postmortem.role.": "origin candidate named_elsewhere",
    "postmortem.why.": """
        denied earlier error no_data no_events no_time not_asked not_configured not_in_tables partly retention seen
        timeout unreachable""",
    "program.": (*{*program.ProcessState} - {"runs", "blocked"}, *DATABASE.split()),
    "program.loop_": program.SIGNS,
    "proposal.": [f"{name}.{part}" for name in PROPOSALS.split() for part in PROPOSAL_PARTS],
    "publish.kind_": (*patterns.source(PACK, "publish error").kinds, "no_subject", "no_receipt", "unseen", "other"),
    "reason.": Reason,
    "receiver.state.": "waiting running done failed",
    "recovery.": ("notifications", "outbox", *recovery.TRIED),
    "report.col.": report.SHOWN,
    "report.by.": "alert person",
    "report.took.": "postmortem detected_at not_known",
    "response.onset_": "oldest change slow",
    "response.target_": "1 2 3 4",
    "scope.clock_": "here postgres nats",
    "subscriber.": {*subscriber.MISSING_AT_BROKER} - {"no_leader"},
    "throttle.who_": program.SIGNS,
    "ui.": (*PROPOSAL_PARTS[1:], "waiting", "came", "gone"),
    "ui.because_": "observed excludes contradicted unseen elsewhere",
    "unit.": "ms s min h d % ratio 1/min rows events messages deliveries users tries jobs",
    "unknown.": Reason,
}
COMPOSED = {
    prefix + member
    for prefix, members in FAMILIES.items()
    for member in (members.split() if isinstance(members, str) else members)
}


@cache
def code() -> tuple[list[ast.AST], str]:
    """Return the nodes of the product's Python, and the text of its templates."""
    # A room has texts of its own, which are part of a runbook that uses it; tests/live/test_queues.py has such a one.
    files = (path for path in CODE.rglob("*.py") if pack.load_room(ROOM).folder not in path.parents)
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    templates = "".join(path.read_text(encoding="utf-8") for path in CODE.rglob("*.j2"))
    return [node for tree in trees for node in ast.walk(tree)], templates


def test_every_key_in_the_code_has_its_text() -> None:
    """A literal one itself; a composed one belongs to a family, of which each member has its text."""
    nodes, templates = code()
    calls = [
        n for n in nodes if isinstance(n, ast.Call) and getattr(n.func, "id", "") in ("say", "t", "_text", "words")
    ]
    named = {name for call in calls if call.args for name in testing.names_in(call.args[0])}
    families = {name.partition("*")[0] for name in named if "*" in name}
    families |= set(re.findall(r'\bt\("([^"]+)" ~', templates))
    assert families == set(FAMILIES)
    keys = COMPOSED | {name for name in named if "*" not in name}
    assert {lang: keys - set(messages.catalogue(lang)) for lang in messages.LANGUAGES} == {"en": set(), "ja": set()}


def test_every_text_is_named_in_the_code() -> None:
    nodes, templates = code()
    named = {n.value for n in nodes if isinstance(n, ast.Constant)} | set(re.findall(r'"([\w.]+)"', templates))
    assert {key for key in messages.catalogue("en") if key not in named | COMPOSED} == set()


def parts(template: str) -> set[str]:
    """The parameters of the parts that may be left out."""
    return {name for part in messages._PART.findall(template) for name in fields(part[0])}


@pytest.mark.parametrize("lang", messages.LANGUAGES)
def test_a_part_whose_parameters_are_unknown_is_left_out(lang: str) -> None:
    """Each alone and all together; what a part and the rest share is known."""
    for key, template in messages.catalogue(lang).items():
        rest = fields(messages._PART.sub(lambda m: m[2] or "", template))
        optional = sorted(parts(template) - rest)
        for unknown in [*([name] for name in optional), optional]:
            known = dict.fromkeys(fields(template), pd.Timestamp(0) if ":%" in template else 7)
            for nothing in (None, float("nan")):
                sentence = messages.text(say(key, **known | dict.fromkeys(unknown, nothing)), lang)
                assert sentence.count("?") == template.count("?") and "[[" not in sentence, (key, sentence)


@pytest.mark.parametrize(
    ("key", "params", "sentence"),
    [
        ("response.impact", {"n": 1, "missed": "NOTI-B", "events": 1, "users": 1, "given_up": 0.0, "since": None},
         "1 objective missed (NOTI-B); 1 event of 1 user waits, 0 given up"),
        ("response.impact", {"n": 2, "missed": "A, B", "events": 2, "users": 1, "given_up": 0.0, "since": "12:00"},
         "2 objectives missed (A, B); 2 events of 1 user wait, 0 given up, since about 12:00"),
        ("response.do_look", {"place": None, "section": "4.1"},
         "No finding justifies a command; continue with section 4.1"),
        ("recovery.outbox_growing", {"failed": 9999.0},
         "The relay still gives up events, or the time of the last one is not known: 9,999 in FAILED"),
        ("postmortem.times_open", {"ttd": None, "entries": 1},
         "Not recovered yet, according to the tables and the runs; the onset is unknown; 1 entry"),
        ("publish.slow", {"p95": float("nan"), "n": 0, "minutes": 15, "due": 0.0},
         "The outbox flows, but events were late; 0 due now"),
    ],
)  # fmt: skip
def test_sentences_say_what_is_known_and_count_by_one(key: str, params: dict[str, Any], sentence: str) -> None:
    assert messages.text(say(key, **params), "en") == sentence


def test_what_could_not_be_seen_is_shown_as_such() -> None:
    assert "?" in messages.text(say("unknown.timeout", source=None, detail=float("nan")), "en")
