"""A run as a trace: what a collector on this machine is sent by a real run, and that its absence harms nothing."""

from __future__ import annotations

import json
import os
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from runbook_lib.gameday.sandbox.servers import Servers
from runbook_lib.store.archive import Archive
from runbook_lib.store.lines import read_logs
from runbook_lib.store.run import read_run
from tests.kit import web
from tests.kit.command import runbook
from tests.kit.schemas import valid_dossier


def test_a_run_is_a_trace_of_its_sections_steps_and_queries(servers: Servers, tmp_path: Path) -> None:
    requests: list[ExportTraceServiceRequest] = []

    def collect(request: BaseHTTPRequestHandler) -> None:
        assert (request.path, request.headers["x-tenant"]) == ("/v1/traces", "ours")
        body = request.rfile.read(int(request.headers["content-length"]))
        requests.append(ExportTraceServiceRequest.FromString(body))
        web.reply(request)

    with web.web(collect) as address:
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": address, "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=ours"}
        own = {**os.environ, **servers.env, "RUNBOOK_OUTPUT": str(tmp_path)} | variables
        done = runbook("run", "2", "3", "--incident", "INC-1", "--json", env=own)
    said = json.loads(done.stdout)
    (resource,) = requests[0].resource_spans
    assert len(requests) == 1 and not done.stderr
    assert "runbook" in [a.value.string_value for a in resource.resource.attributes if a.key == "service.name"]
    spans = {s.span_id: s for scope in resource.scope_spans for s in scope.spans}
    (root,) = (s for s in spans.values() if not s.parent_span_id)
    values = {s.span_id: {a.key.removeprefix("runbook."): a.value for a in s.attributes} for s in spans.values()}
    assert root.name == "runbook INC-1" and values[root.span_id]["status"].string_value == said["status"]
    below: dict[bytes, list[Any]] = {}
    for s in spans.values():
        below.setdefault(s.parent_span_id, []).append(s)
        above = spans.get(s.parent_span_id, s)
        assert s.trace_id == root.trace_id
        assert above.start_time_unix_nano - 5e6 <= s.start_time_unix_nano <= s.end_time_unix_nano
        assert s.end_time_unix_nano <= above.end_time_unix_nano + 5e6
    archive = Archive(str(tmp_path), "INC-1")
    valid_dossier(tmp_path / "INC-1")
    for section, run in zip(below[root.span_id], said["runs"], strict=True):
        assert section.name == f"section {run['section']}"
        (line,) = (e for e in read_logs(archive).runs if e.section == run["section"])
        findings = read_run(archive, line).findings
        found = [
            (step.name, q.name, values[q.span_id]["query"].string_value, values[q.span_id]["rows"].int_value)
            for step in below[section.span_id]
            for q in below[step.span_id]
        ]
        assert found == [
            (f"step {f.step}", f"{q.source} {q.name}", q.text, q.rows) for f in findings for q in f.queries
        ]
        assert len(found) > 10


@pytest.mark.parametrize("exporter", ["otlp", "none"])
def test_a_collector_that_is_not_there_is_one_line(tmp_path: Path, exporter: str) -> None:
    own = {"RUNBOOK_DATABASE_URL": "postgresql://u@127.0.0.1:1/x", "RUNBOOK_OUTPUT": str(tmp_path)}
    own |= {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/secret", "OTEL_TRACES_EXPORTER": exporter}
    done = runbook("run", "2", "--incident", "INC-1", env={**os.environ, **own})
    line = "INC-1: the trace could not be exported to OpenTelemetry: the collector is unreachable, or refused\n"
    assert done.returncode == 3 and done.stderr == ("" if exporter == "none" else line)
