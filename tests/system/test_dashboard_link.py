"""The links to a dashboard."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from runbook_lib.dossier import overview
from runbook_lib.model.finding import Finding, Hop, Signal, Status, Window, say
from runbook_lib.notebook.session import _find_hop, dashboard_link
from runbook_lib.sources.settings import Target
from runbook_lib.store.archive import Archive
from runbook_lib.view import render
from tests.kit.command import runbook
from tests.kit.schemas import valid_dossier

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
    found = dashboard_link(whole, "a&b", "INC-1", window)
    assert f"from={AT.value // 10**6 - 3_600_000}&to={AT.value // 10**6}&var-hop={{hop}}&t=a%26b&i=INC-1" in found
    assert found.endswith('{"a":{"b":1}}')
    assert "var-hop=relay&" in render.link_to_hop(found, "relay") and "var-hop=&" in render.link_to_hop(found, None)
    assert dashboard_link(target(), "a", "INC-1", window) == render.link_to_hop("", "relay") == ""


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


ONSET = "2026-01-31T02:50:00+00:00"


@pytest.mark.parametrize(
    ("values", "onset"),
    [
        ({"impact.onset": ONSET, "onset_how": "by rows"}, ONSET),
        ({"onset": "2026-01-31T11:50:00+09:00"}, ONSET),
        ({"a.onset": None, "b.onset": "soon", "c.onset": 7, "d.onset": "03:00", "e.onset": "2026-99-99T00:00"}, None),
    ],
    ids=["step-3.1", "elsewhere", "no-time"],
)
def test_an_onset_is_a_time(values: dict[str, Any], onset: str | None) -> None:
    finding = {"values": {name: {"value": value, "unit": ""} for name, value in values.items()}}
    assert overview.onset_of({"status": "CRITICAL", "runs": [{"findings": [finding]}]}) == onset
    assert overview.onset_of({"status": "OK", "runs": [{"findings": [finding]}]}) is None


def test_a_run_leads_to_the_dashboard(tmp_path: Path) -> None:
    done = runbook("run", "2", "--incident", "INC-2", env=env(tmp_path, RUNBOOK_GRAFANA_LINK=LINK))
    assert done.returncode == 3, done.stderr
    valid_dossier(tmp_path / "INC-2")
    archive = Archive(str(tmp_path), "INC-2")
    run, concluded = archive.artifacts()
    assert re.fullmatch(r"https://grafana\.example/d/abc\?from=\d{13}&to=\d{13}&var-hop=", concluded["dashboard"])
    for name, links in (("index.html", 1), (f"{run['name']}.html", 2)):
        assert archive.read(name).decode().count('href="https://grafana.example/d/abc?from=') >= links, name
