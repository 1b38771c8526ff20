"""Both catalogues are complete, and every text that the code names exists."""

from __future__ import annotations

import ast
import re
import string
import tomllib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import runbook_lib
from runbook_lib import messages
from runbook_lib.gameday.sandbox.faults import CATALOGUE
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


# Counts -----------------------------------------------------------------------------------------------------

COUNTS = (0, 1, 2, 1_234_567)
TOP = CODE.parent


def templates(lang: str) -> dict[str, str]:
    """Every text of a language by file and key, those of the example's pack as well."""
    files = [*CODE.rglob(f"messages/{lang}.toml"), *(TOP / "examples").rglob(f"messages/{lang}.toml")]
    return {
        f"{path.relative_to(TOP)} {key}": text
        for path in files
        for key, text in messages.flat(tomllib.loads(path.read_text(encoding="utf-8"))).items()
    }


#: Whatever is counted somewhere: "row{n:/s}"; and the irregular "tries".
NOUNS = {noun for text in templates("en").values() for noun in re.findall(r"(\w{3,})\{\w+:/s\}", text)} - {"other"}
#: A number and what it counts, with at most one adjective between them, right or wrong.
COUNTED = re.compile(
    r"\{(?P<number>(?!name\b)\w+)(?::,?(?:\.0f)?)?\} (?:(?!of |has |with )[\w-]+ )??"
    rf"(?:(?P<noun>{'|'.join(sorted(NOUNS))})(?:s|\{{(?P=number):/s\}})|tries|\{{(?P=number):try/tries\}})(?![\w{{])"
)


def counted(lang: str) -> dict[str, tuple[str, set[str]]]:
    """Each text that counts, with the names of its numbers; a language has the numbers of the English text."""
    found = {
        key.replace("/en.toml", f"/{lang}.toml"): {m["number"] for m in COUNTED.finditer(text)}
        for key, text in templates("en").items()
    }
    return {key: (text, found[key]) for key, text in templates(lang).items() if found[key]}


def test_what_is_counted_agrees_with_its_number() -> None:
    wrong = []
    for key, text in templates("en").items():
        for found in COUNTED.finditer(text):
            for n in COUNTS:
                said = messages.fill(found[0], {found["number"]: n})
                if said.endswith(found["noun"] or "try") is not (n == 1):
                    wrong.append(f"{key}: {said}")
    assert len(counted("en")) > 100 and wrong == []


@pytest.mark.parametrize("n", COUNTS)
@pytest.mark.parametrize("lang", messages.LANGUAGES)
def test_every_number_that_counts_is_shown_whole(lang: str, n: int) -> None:
    """As whole numbers, whether the check gives an int or the float of a frame."""
    wrong = []
    for key, (text, numbers) in counted(lang).items():
        for value in (n, float(n)):
            params = dict.fromkeys(fields(text), pd.Timestamp(0) if ":%" in text else "x")
            said = messages.fill(_without_formats(text, numbers), params | dict.fromkeys(numbers, value))
            shown = set(re.findall(r"[\d,.]*\d", said))
            if fields(text) & numbers and (not {str(n), f"{n:,}"} & shown or f"{n}.0" in said):
                wrong.append(f"{key}: {said}")
    assert wrong == []


def _without_formats(text: str, numbers: set[str]) -> str:
    """The text with the format of other parameters taken out, so that any value fits them."""
    return re.sub(r"\{(\w+):[^{}/]*\}", lambda m: m[0] if m[1] in numbers else f"{{{m[1]}}}", text)


@pytest.mark.parametrize(
    ("n", "en", "ja"),
    [(0, "waiting 0 events of 0 users", "滞留 0 イベント/0 ユーザー"),
     (1, "waiting 1 event of 1 user", "滞留 1 イベント/1 ユーザー"),
     (2, "waiting 2 events of 2 users", "滞留 2 イベント/2 ユーザー"),
     (1_234_567, "waiting 1,234,567 events of 1,234,567 users", "滞留 1,234,567 イベント/1,234,567 ユーザー")],
)  # fmt: skip
def test_the_line_to_paste_counts_events_and_users(n: int, en: str, ja: str) -> None:
    names = fields(messages.catalogue("en")["response.paste"])
    line = say("response.paste", **dict.fromkeys(names) | {"events_waiting": float(n), "users_waiting": float(n)})
    assert en in messages.text(line, "en") and ja in messages.text(line, "ja")


# The Japanese style -----------------------------------------------------------------------------------------

_POLITE = re.compile(r"(?:です|ます|ません|でした|ました|ください)(?=$|[:、]| /)")
_PLAIN = re.compile(r"(?:[うくぐすつぬぶむるただい])$")


def sentences(template: str) -> list[tuple[str, bool]]:
    """The sentences of a Japanese text, what is in brackets left out; whether a full stop ends each."""
    template = re.sub(r"`[^`]*`", "{command}", template)
    while template != (template := re.sub(r"\([^()]*\)", "", re.sub(r"\[\[([^\[\]|]*)[^\[\]]*\]\]", r"\1", template))):
        pass
    *ended, last = (s.strip() for s in template.split("。"))
    return [(s, True) for s in ended] + [(last, False)] * bool(last)


def is_in_style(sentence: str, ended: bool) -> bool:
    """Polite, or a condition ("... こと"), or a parameter's own words, or a noun phrase (no topic, no stop)."""
    said = re.sub(r": \{[^{}]*\}$", "", sentence)
    if _POLITE.search(said) or said.endswith(("こと", "}")):
        return True
    return not ((ended and said == sentence) or _PLAIN.search(said) or re.search(r"(?<!また)は(?![ぁ-ん])", said))


def test_each_japanese_sentence_is_polite() -> None:
    texts = messages.catalogue("ja") | {f"fault {f.name}": f.description["ja"] for f in CATALOGUE}
    wrong = {key: [s for s, ended in sentences(text) if not is_in_style(s, ended)] for key, text in texts.items()}
    assert {key: found for key, found in wrong.items() if found} == {}


@pytest.mark.parametrize(
    ("text", "well"),
    [("詰まりはない", False), ("接続できない: {detail}", False), ("件数を数えた。", False), ("原因は不明", False),
     ("リスクなし。", False), ("詰まりはありません: {detail}", True), ("再起動(参照のみ)", True),
     ("応答すること", True), ("{a}。{b}", True), ("{n} 件です[[(最後は {ago} 秒前)]]", True)],
)  # fmt: skip
def test_what_is_in_style(text: str, well: bool) -> None:
    assert all(is_in_style(*s) for s in sentences(text)) is well


def test_japanese_has_one_word_for_confidence() -> None:
    texts = [*messages.catalogue("ja").values(), (CODE.parent / "README.ja.md").read_text(encoding="utf-8")]
    words = set(re.findall(r"確信度|信頼度|確からしさ|確度", " ".join(texts)))
    assert words == {"確度"}


def test_who_is_alive_is_told_in_japanese() -> None:
    told = {k: messages.text(say(k, s=12.0), "ja") for k in messages.catalogue("ja") if k.startswith("alive.")}
    assert told and {key: text for key, text in told.items() if re.search(r"[A-Za-z]", text)} == {}
