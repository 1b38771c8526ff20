"""What Grafana is told, against a server that keeps it; that it is away, slow or refuses harms nothing."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from runbook_lib.actions import action
from runbook_lib.dossier import overview
from runbook_lib.integrations import grafana
from runbook_lib.integrations.grafana import Annotation
from runbook_lib.model.finding import Finding, Hop, Signal, Status, Window, say
from runbook_lib.notebook.session import _find_hop, quiet_session
from runbook_lib.privacy.masking import Masker
from runbook_lib.sources.settings import Target
from runbook_lib.store.archive import MANIFEST, Archive
from runbook_lib.view import render
from tests.kit.actions import WORD, Counter
from tests.kit.command import runbook
from tests.kit.logs import logs_of
from tests.kit.schemas import valid_dossier
from tests.kit.web import SECRET, Http

NOWHERE = "postgresql://u@127.0.0.1:1/x"
AT = pd.Timestamp("2026-01-31T03:00:00Z")
LINK = "https://grafana.example/d/abc?from={from_ms}&to={to_ms}&var-hop={hop}"


def target(**more: Any) -> Target:
    return Target.model_validate({"database_url": NOWHERE, **more})


def env(folder: Path, **more: str) -> dict[str, str]:
    own = {k: v for k, v in os.environ.items() if not k.startswith("RUNBOOK_")}
    return own | {"RUNBOOK_DATABASE_URL": NOWHERE, "RUNBOOK_OUTPUT": str(folder)} | more


# Links ------------------------------------------------------------------------------------------------------


def test_a_link_is_of_the_window_and_the_place() -> None:
    whole = target(grafana_link=LINK + '&t={target}&i={incident}&panes={"a":{"b":1}}')
    window = Window.before(AT, 60)
    found = grafana.dashboard_link(whole, "a&b", "INC-1", window)
    assert f"from={AT.value // 10**6 - 3_600_000}&to={AT.value // 10**6}&var-hop={{hop}}&t=a%26b&i=INC-1" in found
    assert found.endswith('{"a":{"b":1}}')
    assert "var-hop=relay&" in render.link_to_hop(found, "relay") and "var-hop=&" in render.link_to_hop(found, None)
    assert grafana.dashboard_link(target(), "a", "INC-1", window) == render.link_to_hop("", "relay") == ""


@pytest.mark.parametrize(
    ("signals", "hops", "hop"),
    [
        ((Signal("relay", 0.3), Signal("subscriber", 0.6), Signal("FM-OB-01", 0.9)), (Hop("producer"),), "subscriber"),
        ((Signal("relay", -0.3),), (Hop("producer"), Hop("relay", late=True)), "relay"),
        ((), (Hop("producer"),), "producer"),
        ((), (), None),
    ],
    ids=["spoken", "late", "any", "none"],
)
def test_a_finding_leads_to_the_place_that_it_speaks_of(signals: Any, hops: Any, hop: str | None) -> None:
    finding = Finding("4.1.1", Status.WARNING, say("unknown.not_run"), signals=signals, hops=hops)
    assert _find_hop(finding, ("producer", "relay", "subscriber")) == hop


# Annotations ------------------------------------------------------------------------------------------------


@pytest.fixture
def listened(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING)
    return lambda: [r.getMessage() for r in caplog.records if r.name.startswith("runbook_lib")]


def tell(url: str, *annotations: Annotation, token: str = SECRET) -> None:
    there = target(grafana_url=url, grafana_token=token)
    grafana.annotate(there, "main", "INC-1", annotations or [Annotation("verdict", "here", AT)])


def test_an_annotation_as_grafana_takes_it(http: Callable[..., Http], listened: Callable[[], list[str]]) -> None:
    place = http(200)
    tell(place.address + "/sub/", Annotation("recovery", "it is over", AT, AT + pd.Timedelta("1.5s"), ("OK",)))
    ms = AT.value // 10**6
    tags = ["runbook", "recovery", "target:main", "incident:INC-1", "OK"]
    assert place.taken == [{"time": ms, "timeEnd": ms + 1500, "tags": tags, "text": "it is over"}]
    ((path, head),) = place.heads
    assert (path, head["Authorization"]) == ("/sub/api/annotations", f"Bearer {SECRET}") and not listened()
    grafana.annotate(target(), "main", "INC-1", [Annotation("onset", "x", AT)])
    assert len(place.taken) == 1


@pytest.mark.parametrize("answer", [0, 401, 500, None], ids=["silent", "refused", "failed", "away"])
def test_a_grafana_that_does_not_take_it_is_one_line(
    http: Callable[..., Http], listened: Callable[[], list[str]], answer: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grafana, "POST_S", 0.5)
    place = http(200 if answer is None else answer)
    if answer is None:
        place.close()
    tell(place.address, *[Annotation("verdict", "here", AT)] * 3)
    (line,) = listened()
    assert line.startswith("INC-1: the annotation could not be written to Grafana: ") and "\n" not in line
    assert place.asked <= 1 and SECRET not in line and place.address not in line


def test_a_token_that_no_header_can_hold_is_one_line(
    http: Callable[..., Http], listened: Callable[[], list[str]]
) -> None:
    tell(http(200).address, token="トークン")
    assert [line.rpartition(": ")[2] for line in listened()] == ["UnicodeEncodeError"]


def test_the_token_is_a_secret_of_the_target() -> None:
    there = target(grafana_url="https://g.example", grafana_token="s3/cret")
    assert Masker.of(there.urls(), "x").scrub("it said s3/cret, s3%2Fcret") == "it said ***, ***"


# What is news -----------------------------------------------------------------------------------------------


def line(n: int, status: str, place: str | None = None, *sections: str, onset: str = "") -> dict[str, Any]:
    verdict = {"status": status, "stuck_at": place, "confidence": "high"}
    kept = {"name": f"{n}", "verdict": verdict, "sections": list(sections or ("3",)), "as_of": AT.isoformat()}
    return kept | {"started": at(n)} | ({"onset": onset} if onset else {})


def at(n: int) -> str:
    return (AT + pd.Timedelta(minutes=n)).isoformat()


SINCE = "2026-01-31T02:50:00+00:00"
#: Look after look, and of which kinds each is news.
COURSE: list[tuple[Any, list[str] | None]] = [
    (("OK", None), ["verdict"]),
    (("OK", None), []),
    (("CRITICAL", "relay", "4.1"), ["verdict"]),
    (("CRITICAL", "relay"), ["onset"]),
    (("CRITICAL", "relay"), []),
    (("CRITICAL", "subscriber"), ["verdict"]),
    (("CRITICAL", None, "7"), None),
    (("OK", None, "4.1"), ["verdict"]),
    (("WARNING", None, "6"), ["verdict"]),
    (("OK", None, "6"), ["recovery"]),
    (("OK", None, "6"), []),
    (("CRITICAL", "relay"), ["onset", "verdict"]),
]


def test_only_what_is_news_is_told() -> None:
    concluded: list[dict[str, Any]] = []
    for n, (look, kinds) in enumerate(COURSE):
        kept = line(n, *look, onset=SINCE if look[:1] != ("OK",) and look[2:] == () else "")
        concluded.append(kept)
        if kinds is not None:
            found = grafana.new_annotations(kept["name"], logs_of(*concluded).verdicts)
            assert [a.kind for a in found] == kinds, (n, look)
            for a in found:
                begin = SINCE if a.kind in ("onset", "recovery") else AT
                assert (a.at, a.until) == (pd.Timestamp(begin), AT if a.kind == "recovery" else None)


def test_a_verdict_whose_runs_were_not_kept_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, told = Archive(str(tmp_path), "INC-1"), list[Any]()
    archive.prepare()
    said = line(1, "CRITICAL", "relay")
    run = {"name": "r", "section": "3", "status": "OK", "started": at(0), "parameters": {"target": "other"}}
    for entry in (run, said):
        archive.add_line(MANIFEST, entry)
    for name, value in {"DATABASE_URL": NOWHERE, "GRAFANA_URL": "https://g.example", "GRAFANA_TOKEN": SECRET}.items():
        monkeypatch.setenv(f"RUNBOOK_{name}", value)
    monkeypatch.setattr(grafana, "annotate", lambda *given: told.extend(given[-1]))
    grafana.annotate_verdict(archive, [], {"target": "default"}, said)
    assert [a.kind for a in told] == ["verdict"]


def test_each_target_of_an_incident_has_its_own_news() -> None:
    entries: list[dict[str, Any]] = []
    for n, (name, look) in enumerate((t, look) for look in (("CRITICAL", "relay"), ("OK", None, "6")) for t in "ab"):
        said = line(n, *look, onset=SINCE if n < 2 else "")
        run = {"section": said["sections"][0], "started": at(n), "parameters": {"target": name}}
        entries += [run, said]
        logs = logs_of(*entries)
        own = [v for v in logs.verdicts if logs.target_of(v) == name]
        found = grafana.new_annotations(said["name"], own)
        assert [a.kind for a in found] == (["onset", "verdict"] if n < 2 else ["recovery"]), (n, name)


@pytest.mark.parametrize(
    ("values", "onset"),
    [
        ({"impact.onset": SINCE, "onset_how": "by rows"}, SINCE),
        ({"onset": "2026-01-31T11:50:00+09:00"}, SINCE),
        ({"a.onset": None, "b.onset": "soon", "c.onset": 7, "d.onset": "03:00", "e.onset": "2026-99-99T00:00"}, None),
    ],
    ids=["step-3.1", "elsewhere", "no-time"],
)
def test_an_onset_is_a_time(values: dict[str, Any], onset: str | None) -> None:
    finding = {"values": {name: {"value": value, "unit": ""} for name, value in values.items()}}
    assert overview.onset_of({"status": "CRITICAL", "runs": [{"findings": [finding]}]}) == onset
    assert overview.onset_of({"status": "OK", "runs": [{"findings": [finding]}]}) is None


def test_a_run_tells_its_verdict_and_leads_to_the_dashboard(http: Callable[..., Http], tmp_path: Path) -> None:
    place = http(200)
    own = env(tmp_path, RUNBOOK_GRAFANA_URL=place.address, RUNBOOK_GRAFANA_TOKEN=SECRET, RUNBOOK_GRAFANA_LINK=LINK)
    back = runbook("run", "2", "--incident", "INC-1", "--as-of", "2026-01-31T03:00:00Z", env=own)
    assert back.returncode == 3 and not place.asked, back.stderr
    done = runbook("run", "2", "--incident", "INC-2", env=own)
    assert done.returncode == 3, done.stderr
    (told,) = place.taken
    assert told["tags"] == ["runbook", "verdict", "target:default", "incident:INC-2", "UNKNOWN"]
    assert told["text"].startswith("UNKNOWN: ")
    valid_dossier(tmp_path / "INC-2")
    archive = Archive(str(tmp_path), "INC-2")
    run, concluded = archive.manifest()
    assert re.fullmatch(r"https://grafana\.example/d/abc\?from=\d{13}&to=\d{13}&var-hop=", concluded["dashboard"])
    for name, links in (("index.html", 1), (f"{run['name']}.html", 2)):
        assert archive.read(name).decode().count('href="https://grafana.example/d/abc?from=') >= links, name
    kept = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()).decode(errors="replace")
    assert SECRET not in kept + done.stdout + done.stderr


@pytest.mark.parametrize("fails", ["", "run"])
def test_an_action_is_told_without_whose_word_it_was(
    http: Callable[..., Http], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    place = http(200)
    for name, value in env(tmp_path, RUNBOOK_GRAFANA_URL=place.address, RUNBOOK_GRAFANA_TOKEN=SECRET).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(action, "actions", lambda: {"restart": lambda rb: Counter(fails)})
    rb = quiet_session("5.1", incident_id="A-1", wait_s=5)
    rb.act("restart")
    rb.act("restart", execute=True)
    assert not place.taken
    rb.act("restart", execute=True, **WORD)
    (told,) = place.taken
    assert told["tags"][1:] == ["action", "target:default", "incident:A-1", "restart", "failed" if fails else "done"]
    assert told["timeEnd"] >= told["time"] and told["text"].startswith("Restart")
    assert "Aoki" not in str(told) and "hangs" not in str(told)
