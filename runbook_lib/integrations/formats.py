"""Format a command's document for other tools: Nagios plugin output, OpenMetrics text. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from runbook_lib.model.usage import visible

Document = Mapping[str, Any]


def nagios(line: str, document: Document) -> str:
    """Return one line: the command's first line, then `|` and the values that have limits, as performance data.

    The format is https://www.monitoring-plugins.org/doc/guidelines.html; an unknown value is U.
    """
    status = document["status"]
    headline = re.sub(r"\s+", " ", line.replace("|", "/").partition(status)[2]).strip(" :")
    output = " ".join(filter(None, (f"RUNBOOK {status}:", headline)))
    return f"{output} | {' '.join(_format_performance(document))}".rstrip(" |")


def _format_performance(document: Document) -> Iterator[str]:
    for step, name, value in _unique_values(document):
        if "origin" in value:
            known = isinstance(value["value"], int | float)
            unit = value["unit"] if value["unit"] == "s" and known else ""
            limits = ";".join(_format_range(value[level], value["below"]) for level in ("warning", "critical"))
            yield f"'{step} {name}'={value['value'] if known else 'U'}{unit};{limits}"


def _format_range(limit: float | None, below: bool) -> str:
    return "" if limit is None else f"{limit:g}{':' if below else ''}"


_HELP = {
    "runbook_status": "Worst status: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN",
    "runbook_stuck_at": "1 for the hop where the flow is stuck",
    "runbook_section_status": "Status of a section, values as runbook_status",
    "runbook_section_ended_timestamp_seconds": "Time when the section ended",
    "runbook_step_status": "Status of a step, values as runbook_status",
    "runbook_value": "An observed value, in the unit of its label",
}
_STATUS = {"OK": 0, "WARNING": 1, "CRITICAL": 2, "UNKNOWN": 3}


def openmetrics(documents: Iterable[Document]) -> str:
    """Return gauges of all statuses and known numbers, in the text format of Prometheus and OpenMetrics.

    For node_exporter's textfile collector: write a temporary file, then move it into the collector's folder.
    """
    samples: dict[str, list[str]] = {name: [] for name in _HELP}

    def add(metric: str, value: float, /, **labels: str) -> None:
        escaped = (f'{k}="{_escape_label(v)}"' for k, v in labels.items())
        samples[metric].append(f"{metric}{{{','.join(escaped)}}} {value}")

    for document in documents:
        target = str(document["target"])
        add("runbook_status", _STATUS[document["status"]], target=target)
        verdict = document.get("verdict") or {}
        if verdict.get("stuck_at"):
            add("runbook_stuck_at", 1, target=target, place=verdict["stuck_at"], confidence=verdict["confidence"])
        for run in document.get("runs", ()):
            labels = {"target": target, "section": str(run["section"])}
            add("runbook_section_status", _STATUS[run["status"]], **labels)
            ended = datetime.fromisoformat(run["ended"]).timestamp()
            add("runbook_section_ended_timestamp_seconds", ended, **labels)
            for finding in run["findings"]:
                add("runbook_step_status", _STATUS[finding["status"]], target=target, step=finding["step"])
        for step, name, value in _unique_values(document):
            if isinstance(value["value"], int | float):
                add("runbook_value", float(value["value"]), target=target, step=step, name=name, unit=value["unit"])
    lines = []
    for name, found in samples.items():
        if found:
            lines += [f"# HELP {name} {_HELP[name]}", f"# TYPE {name} gauge", *dict.fromkeys(found)]
    return "\n".join([*lines, "# EOF", ""])


def _unique_values(document: Document) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Iterate over step, name and value; a step of several sections comes once."""
    seen: set[tuple[str, str]] = set()
    for run in document.get("runs", ()):
        for finding in run["findings"]:
            for name, value in finding["values"].items():
                if (finding["step"], name) not in seen:
                    seen.add((finding["step"], name))
                    yield finding["step"], name, value


def _escape_label(text: str) -> str:
    return visible(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
