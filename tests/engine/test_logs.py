"""What is kept of a run is read back as it was, and a line that nobody wrote is one message that names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runbook_lib.dossier import seal
from runbook_lib.model.finding import Finding, RankedMode, Status, Verdict, replace, say
from runbook_lib.store import archive as kinds
from runbook_lib.store import record
from runbook_lib.store.archive import LOG, Archive, LogError, NotSealedError
from runbook_lib.store.files import digest
from runbook_lib.store.lines import read_logs, run_line
from runbook_lib.store.run import Run, read_run, run_to_json

STARTED = "2026-01-31T03:00:00Z"
RUN = {"name": "r", "section": "3", "status": "OK", "started": STARTED}
TOLD = {"name": "v", "started": STARTED, "verdict": {"status": "OK", "stuck_at": None, "confidence": "high"}}
NOTE = {"time": STARTED, "who": "aoki", "text": "called"}
ACTION = {"id": "a", "time": STARTED, "action": "restart", "result": "done", "what": {}, "why": {"en": "-", "ja": "-"}}


@pytest.mark.parametrize(
    ("kind", "line", "problem"),
    [
        (kinds.RUN, RUN | {"started": "soon"}, "started: not a time"),
        (kinds.RUN, RUN | {"status": "GOOD"}, "status: 'GOOD' is no status"),
        (kinds.RUN, RUN | {"status": ["OK"]}, "status: '['OK']' is no status"),
        (kinds.RUN, RUN | {"parameters": {"detected_at": "soon"}}, "parameters: not a time"),
        (kinds.RUN, RUN | {"parameters": {"detected_at": [7]}}, "parameters: not a time"),
        (kinds.RUN, {"name": "r"}, "started: Field required"),
        (kinds.VERDICT, TOLD | {"verdict": {}}, "verdict: is no verdict"),
        (kinds.VERDICT, TOLD | {"verdict": "OK"}, "verdict: is no verdict"),
        (kinds.VERDICT, TOLD | {"as_of": 7}, "as_of: "),
        (kinds.NOTE, NOTE | {"text": None}, "text: Input should be a valid string"),
        (kinds.ACTION, ACTION | {"why": "done"}, "why: is no text in each language"),
        (kinds.ACTION, {k: v for k, v in ACTION.items() if k != "why"}, "why: Field required"),
    ],
)
def test_a_line_of_no_known_kind_names_its_log_and_field(
    tmp_path: Path, kind: kinds.Kind, line: dict[str, Any], problem: str
) -> None:
    archive = Archive(str(tmp_path), "INC-1")
    archive.prepare()
    for name, whole in ((kinds.RUN, RUN), (kinds.VERDICT, TOLD), (kinds.NOTE, NOTE), (kinds.ACTION, ACTION)):
        archive.add_line(name, whole | {"of": "a later version"})
    logs = read_logs(archive)
    assert (len(logs.artifacts), logs.runs[0].status, logs.verdicts[0].status) == (2, Status.OK, Status.OK)
    assert (logs.notes[0].text, logs.actions[0].action) == ("called", "restart")
    archive.add_line(kind, line)
    with pytest.raises(LogError) as e:
        read_logs(archive)
    assert problem in str(e.value.strerror) and "\n" not in str(e.value) and str(e.value.filename).endswith(LOG)
    assert say("seal.not_json", n=len(archive.raw())) in seal.check(archive).changed


def test_a_run_is_read_as_it_was_kept_and_not_when_it_was_changed(tmp_path: Path) -> None:
    archive = Archive(str(tmp_path), "INC-1")
    archive.prepare()
    verdict = Verdict(Status.CRITICAL, "relay", "low", (RankedMode("FM-OB-01", 0.9),), next_sections=("4.1",))
    found = Finding("3.1", Status.CRITICAL, say("ui.no_action"), next_sections=("4.1",))
    run = Run("3", {"target": "t"}, [record.finding(found)], verdict, {"queries": 1}, False, STARTED, STARTED, "late")
    content = json.dumps(run_to_json(run)).encode()
    entry = RUN | {"sha256": {"evidence/r.json": digest(content)}}
    archive.write("evidence/r.json", content)
    kept = read_run(archive, run_line(archive, entry))
    assert kept == replace(run, ipynb=f"{archive.place}/r.ipynb", html=f"{archive.place}/r.html")
    assert kept.by_step["3.1"].next_sections == ("4.1",) and kept.status is Status.CRITICAL
    archive.write("evidence/r.json", content.replace(b"CRITICAL", b"OK"))
    with pytest.raises(NotSealedError, match=r"evidence/r.json is missing or changed: run `runbook verify`"):
        read_run(archive, run_line(archive, entry))
