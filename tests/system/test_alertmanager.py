"""Prometheus' own Alertmanager in front: amtool fires, the artifact lands, people are told, the end is looked at.

Then amtool fires once more.
"""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import yaml

from runbook_lib.gameday.sandbox.state import free_ports
from runbook_lib.store.archive import NOTE
from tests.kit.programs import DEPLOY, tool
from tests.kit.servers import Servers
from tests.kit.serving import TOKEN, serving
from tests.kit.waiting import until


@pytest.mark.slow
def test_from_alertmanager_to_artifact_and_message(tmp_path: Path, embedded: Servers) -> None:
    """With the configuration that ships: only addresses, the token's file and the waits are others."""
    alertmanager, amtool = (
        tool(name, "RUNBOOK_REQUIRE_ALERTMANAGER", "prometheus-alertmanager")
        for name in ("prometheus-alertmanager", "amtool")
    )
    routes = (DEPLOY / "runbook.toml").read_text().partition("[[routes]]")
    (tmp_path / "runbook.toml").write_text("".join(routes[1:]))
    (tmp_path / "token").write_text(TOKEN)
    (port,) = free_ports(1)
    with serving(tmp_path, env=embedded.env) as receiver, (tmp_path / "alertmanager.log").open("wb") as log:
        config = yaml.safe_load((DEPLOY / "alertmanager.yaml").read_text())
        config["route"] |= {"group_wait": "100ms", "group_interval": "1s"}
        (hook,) = next(r for r in config["receivers"] if r["name"] == "runbook")["webhook_configs"]
        hook["url"] = f"{receiver.url}alertmanager"
        hook["http_config"]["authorization"]["credentials_file"] = str(tmp_path / "token")
        (tmp_path / "alertmanager.yaml").write_text(yaml.safe_dump(config))
        process = subprocess.Popen(
            [
                *(alertmanager, f"--config.file={tmp_path}/alertmanager.yaml", f"--storage.path={tmp_path}/data"),
                *(f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address="),
            ],
            stdout=log,
            stderr=log,
        )
        try:

            def fire(*more: str) -> bool:
                command = [amtool, f"--alertmanager.url=http://127.0.0.1:{port}", "alert", "add"]
                labels = [
                    "alertname=NotificationBacklog",
                    "runbook_target=default",
                    "severity=critical",
                    *more,
                    "--annotation=summary=waiting",
                ]
                return subprocess.run([*command, *labels], capture_output=True, timeout=60).returncode == 0

            until(fire, "Alertmanager takes an alert")
            (incident,) = until(lambda: (tmp_path / "kept").is_dir() and receiver.incidents(), "an incident")
            until(lambda: "4.1" in sections(incident.artifacts()), "the artifact of 4.1")
            (first,) = until(lambda: receiver.told[:1], "a message")
            assert incident.incident in first["message"] and "4.1" in first["message"] + first["title"]

            assert fire(f"--end={pd.Timestamp.now('UTC').isoformat()}")
            until(lambda: "6" in sections(incident.artifacts()), "the artifact of 6")
            until(lambda: len(incident.lines(NOTE)) == 3, "the end in the timeline")
            assert set(sections(incident.artifacts()).values()) == {1}

            assert fire()
            until(lambda: sections(incident.artifacts())["4.1"] == 2, "a run of the second outage")
            again = "a message of the second outage"
            (title,) = until(lambda: [m["title"] for m in receiver.told if m["title"].startswith("Again: ")], again)
            assert incident.incident in title
        finally:
            process.terminate()
            process.wait(20)
    ran = sections(incident.artifacts())
    ran.pop("4.3", None)  # 4.1 points to it once the backlog is old enough, as on a slow machine
    assert ran == {"4.1": 2, "6": 1}
    assert incident.problems() == []
    assert len(receiver.incidents()) == 1
    texts = [n["text"] for n in incident.lines(NOTE)]
    assert texts[3].startswith("firing again after the recovery was checked: NotificationBacklog firing")
    assert "NotificationBacklog firing: waiting" in texts[0] and "NotificationBacklog resolved" in texts[1]


def sections(manifest: list[dict[str, object]]) -> Counter[object]:
    return Counter(e["section"] for e in manifest if "section" in e)
