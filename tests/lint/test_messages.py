"""Both catalogues are complete, and every text that the code names exists."""

from __future__ import annotations

import ast
import re
import string
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import runbook_lib
from runbook_lib.book import messages
from runbook_lib.model.finding import PROPOSAL_PARTS, say

CODE = Path(runbook_lib.__file__).parent


def fields(template: str) -> set[str]:
    return {name.split(".")[0].split("[")[0] for _, name, _, _ in string.Formatter().parse(template) if name}


def test_same_keys() -> None:
    assert set(messages.catalogue("en")) == set(messages.catalogue("ja"))


def test_same_parameters() -> None:
    ja, en = messages.catalogue("ja"), messages.catalogue("en")
    assert {key: more for key in ja if (more := fields(ja[key]) - fields(en[key]))} == {}


def test_every_key_named_in_the_code_exists() -> None:
    named = {
        node.args[0].value
        for path in CODE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "say"
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }
    assert named - set(messages.catalogue("en")) == set()


#: Every key that is made from a name, which a document, a pack or a record gives: what it begins with, and the names.
NAMED = {
    "hop": """
        hop.producer hop.relay hop.jetstream hop.subscriber hop.delivery_worker hop.receiver hop.database""",
    "action.title": """
        action.title.canary action.title.redrive action.title.restart action.title.scale action.title.set""",
    "proposal": """
        proposal.cancel_waiting proposal.change_settings proposal.check_clocks proposal.check_nats_credentials
        proposal.end_blocker proposal.end_sessions proposal.fix_producer proposal.hold_delivery proposal.list_sessions
        proposal.logs proposal.look_at_role proposal.pods proposal.redrive_broker proposal.redrive_delivery
        proposal.redrive_outbox proposal.restart_entitlement proposal.restart_nats proposal.restart_notification
        proposal.resume_delivery proposal.start_entitlement proposal.start_notification proposal.switch_on_delivery
        proposal.switch_on_relay proposal.throttle_delivery proposal.throttle_relay proposal.undo_settings""",
    "postmortem.why": """
        postmortem.why.denied postmortem.why.earlier postmortem.why.error postmortem.why.no_data
        postmortem.why.no_events postmortem.why.no_time postmortem.why.not_asked postmortem.why.not_configured
        postmortem.why.not_in_tables postmortem.why.partly postmortem.why.retention postmortem.why.seen
        postmortem.why.timeout postmortem.why.unreachable""",
    "postmortem.how": """
        postmortem.how.alert postmortem.how.before postmortem.how.broker postmortem.how.first_run postmortem.how.green
        postmortem.how.letters postmortem.how.lost postmortem.how.notifications postmortem.how.outbox
        postmortem.how.returned postmortem.how.run postmortem.how.slo postmortem.how.told postmortem.how.unknown
        postmortem.how.user_report""",
}


@pytest.mark.parametrize("family", NAMED)
def test_every_key_that_is_made_from_a_name_is_listed(family: str) -> None:
    listed = set(NAMED[family].split())
    if family == "proposal":
        listed = {f"{key}.{part}" for key in listed for part in PROPOSAL_PARTS}
    assert listed == {key for key in messages.catalogue("en") if key.startswith(f"{family}.")}


def test_no_other_key_is_made_at_run_time() -> None:
    made = set()
    for path in CODE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("say", "t") and node.args:
                key = node.args[0]
                assert not isinstance(key, ast.BinOp), f"{path.name}:{node.lineno} adds up a key"
                if isinstance(key, ast.JoinedStr):
                    made.add(ast.unparse(key.values[0]).strip("'.") if key.values else "")
    assert made == set(NAMED)
    for template in CODE.rglob("*.j2"):
        assert not re.search(r"\bt\([^()]*~", template.read_text(encoding="utf-8")), template.name


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
