"""OpenTelemetry: export a run as a trace with spans for its sections, steps and queries (extra `otel`).

The spans are made from the findings after the run. The standard OTEL_ variables say where they go.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import pandas as pd

from runbook_lib.book import messages
from runbook_lib.model.finding import SentQuery, say
from runbook_lib.store.run import Run

#: Seconds for the export, unless OTEL_EXPORTER_OTLP_TIMEOUT says otherwise: the user waits for it.
EXPORT_S = 5.0

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_TIMEOUTS = ("OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT")
_log = logging.getLogger(__name__)


def export_trace(results: Sequence[Run], said: dict[str, Any]) -> None:
    """Export a run, if a variable names the endpoint and the extra is installed. A failure is logged, not raised."""
    if not any(map(os.environ.get, _ENDPOINTS)) or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import SpanExportResult
    except ModuleNotFoundError:
        return
    logger = logging.getLogger("opentelemetry")
    logger.handlers, logger.propagate = [logging.NullHandler()], False  # its lines have the endpoint, perhaps a secret
    problem = "the collector is unreachable, or refused"
    try:
        exporter = OTLPSpanExporter(timeout=None if any(map(os.environ.get, _TIMEOUTS)) else EXPORT_S)
        spans = _make_spans(results, said)
        problem = "" if not spans or exporter.export(spans) is SpanExportResult.SUCCESS else problem
    except Exception as e:  # a variable that OpenTelemetry cannot use
        problem = type(e).__name__
    if problem:
        _log.warning("%s", messages.text(say("ui.not_traced", incident=said["incident"], problem=problem)))


def _make_spans(results: Sequence[Run], said: dict[str, Any]) -> Sequence[Any]:
    """Return the ended spans; the sampler and resource of the standard variables apply."""
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from opentelemetry.trace import StatusCode, set_span_in_context

    memory, resource = InMemorySpanExporter(), Resource.create()
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "runbook"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = provider.get_tracer("runbook")

    def add(parent: Any, name: str, span: tuple[int, int], values: dict[str, Any], error: str = "") -> Any:
        attributes = {f"runbook.{k}": v for k, v in values.items() if v is not None}
        made = tracer.start_span(name, parent, attributes=attributes, start_time=span[0])
        if error:
            made.set_status(StatusCode.ERROR, error)
        made.end(span[1])
        return set_span_in_context(made)

    whole = _to_ns(min(r.started for r in results)), _to_ns(max(r.ended for r in results))
    about = {name: said[name] for name in ("incident", "target", "status")}
    about |= {name: said["verdict"][name] for name in ("stuck_at", "confidence")}
    run = add(None, f"runbook {said['incident']}", whole, about)
    for r in results:
        values = {"status": r.status.name} | {f"read_cost.{k}": v for k, v in r.read_cost.items()}
        section = add(run, f"section {r.section}", (_to_ns(r.started), _to_ns(r.ended)), values, r.problem)
        for f in r.findings:
            spans = [(q, _span_of(q)) for q in f.queries if q.started]
            if spans:  # a step lasts from its first query to the end of its last
                own = min(start for _, (start, _) in spans), max(end for _, (_, end) in spans)
                values = {"status": f.status.name, "reason": f.reason.value if f.reason else None}
                step = add(section, f"step {f.step}", own, values)
                for q, span in spans:
                    values = {"query": q.text, "rows": q.rows, "plan_cost": q.plan_cost}
                    add(step, f"{q.source} {q.name}", span, values, q.error)
    return memory.get_finished_spans()


def _span_of(query: SentQuery) -> tuple[int, int]:
    start = _to_ns(query.started)
    return start, start + round(query.ms * 1e6)


def _to_ns(time: str) -> int:
    return pd.Timestamp(time).value
