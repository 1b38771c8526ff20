"""A thousand alerts at once: each is on disk when it is answered, and each group is investigated once."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.kit.serving import serving
from tests.kit.waiting import until

ALERTS, GROUPS = 1000, 25


@pytest.mark.slow
@pytest.mark.timeout(720)
def test_a_thousand_alerts_of_few_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = "".join(f'[targets.t{n}]\nnats_url = "nats://127.0.0.1:1"\n' for n in range(GROUPS))
    (tmp_path / "runbook.toml").write_text(f'{targets}[[routes]]\nsections = ["2"]\n')
    with serving(tmp_path) as receiver:

        def fire(n: int) -> float:
            group = f"t{n % GROUPS}"
            labels = {"alertname": "Burst", "n": str(n), "runbook_target": group}
            began = time.monotonic()
            answer = receiver.post([{"status": "firing", "labels": labels, "startsAt": "2026-01-31T03:00:00Z"}], group)
            assert answer.status_code == 202, answer.text
            return time.monotonic() - began

        began = time.monotonic()
        with ThreadPoolExecutor(16) as senders:
            slowest = max(senders.map(fire, range(ALERTS)))
        sent = time.monotonic() - began
        with ThreadPoolExecutor(16) as senders:  # Alertmanager says it again
            list(senders.map(fire, range(0, ALERTS, 10)))
        until(lambda: receiver.metric("runbook_investigations_waiting") == 0, "all begun", 500)
        until(lambda: receiver.metric("runbook_investigations_running") == 0, "all done")
        until(lambda: len(receiver.told) == GROUPS, "all told")
        accepted, counted = (receiver.metric(f"runbook_alerts_{what}_total") for what in ("accepted", "deduplicated"))
        incidents = receiver.incidents()
        took = time.monotonic() - began
    assert accepted == ALERTS + ALERTS / 10
    assert counted == ALERTS / 10
    assert len(incidents) == GROUPS
    for incident in incidents:
        left = Counter(e.get("section", "verdict") for e in incident.artifacts())
        assert left == {"2": 1, "verdict": 1}, incident.place
    with capsys.disabled():
        print(
            f"\n  {ALERTS} alerts of {GROUPS} groups: accepted {accepted:.0f} (with repeats), counted {counted:.0f}, "
            f"runs {len(incidents)}; {ALERTS / sent:.0f} a second, the slowest answer after {slowest:.2f} s; "
            f"all investigated and told after {took:.0f} s"
        )
