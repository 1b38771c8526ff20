"""The plays of drills.jsonl.gz and knobs.jsonl.gz, judged again by today's evidence.

A line has the verdict of its day, and the observations that spoke for or against its places and modes. From these alone
today's diagnosis has to find as many right places, and to be as seldom sure of a wrong one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from runbook_lib.book import catalog
from runbook_lib.diagnosis.verdict import conclude
from runbook_lib.model.finding import Finding, Hop, Signal, Status, Verdict, say
from tests.drills.results import read

BOOK = catalog.load()
FOLDER = Path(__file__).parent


def evidence(observation: str) -> tuple[Signal, ...]:
    phrase = BOOK.phrases.get(observation)
    told = (BOOK.phrase_evidence(observation, mode, "hint") for mode in (phrase.failure_modes if phrase else ()))
    return (*BOOK.signals(observation), *told)


def judge_again(said: Mapping[str, Any]) -> Verdict:
    """Conclude from what a verdict lists; where differences did not count, the flow passed."""
    explained = [*said["failure_modes"], *said.get("places", ())]
    reasons = [*(reason for each in explained for reason in each["because"]), *said.get("contradicted", ())]
    hops = tuple(Hop(hop["name"], late=hop["late"]) for hop in said["hops"])
    passes = evidence("flow.passes") if said.get("contradicted") else ()
    findings = [Finding("3.1", Status.OK, say("ui.no_action"), hops=hops, signals=passes)]
    for reason in {
        r["observation"]: r for r in reasons if r["kind"] in ("observed", "excludes", "contradicted")
    }.values():
        signals = evidence(reason["observation"])
        status = Status[said["status"]] if any(s.weight > 0 for s in signals) else Status.OK
        at = pd.Timestamp(reason["at"]) if reason["at"] else None
        findings.append(Finding(reason["steps"][-1], status, say("ui.no_action"), signals=signals, at=at))
    return conclude(findings, BOOK)


def plays_with_a_place() -> Iterator[tuple[set[str], Mapping[str, Any]]]:
    for name in ("drills", "knobs"):
        for line in (line for line in read(FOLDER / f"{name}.jsonl.gz") if line.get("verdict")):
            places = {
                *(line.get("truth") or {}).get("places", ()),
                *(p for k in line.get("knobs", ()) for p in k["places"]),
            }
            if places:
                yield places, line["verdict"]


def test_no_fewer_places_are_right_and_no_more_are_surely_wrong() -> None:
    was, now = Counter[str](), Counter[str]()
    for places, said in plays_with_a_place():
        again = judge_again(said)
        for counted, place, sure in (
            (was, said["stuck_at"], said["confidence"] == "high"),
            (now, again.stuck_at, again.confidence == "high"),
        ):
            counted["right"] += place in places
            counted["surely wrong"] += sure and place not in {None, *places}
    assert was["right"] > 250, "the files have plays"
    assert now["right"] >= was["right"] and now["surely wrong"] <= was["surely wrong"], (was, now)
