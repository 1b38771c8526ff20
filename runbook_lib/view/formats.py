"""A command's document as other tools take it: a line of a Nagios plugin, a textfile for Prometheus. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

Document = Mapping[str, Any]


def nagios(line: str, document: Document) -> str:
    """One line: what the command says first, and behind `|` each value that has limits, as performance data.

    Form: https://www.monitoring-plugins.org/doc/guidelines.html; a value that was not seen is U.
    """
    status = document["status"]
    said = re.sub(r"\s+", " ", line.replace("|", "/").rpartition(status)[2]).strip(" :")
    told = " ".join(filter(None, (f"RUNBOOK {status}:", said)))
    return f"{told} | {' '.join(_performance(document))}".rstrip(" |")


def _performance(document: Document) -> Iterator[str]:
    for step, name, value in _values(document):
        if "origin" in value:
            known = isinstance(value["value"], int | float)
            unit = value["unit"] if value["unit"] == "s" and known else ""
            limits = ";".join(_range(value[level], value["below"]) for level in ("warning", "critical"))
            yield f"'{step} {name}'={value['value'] if known else 'U'}{unit};{limits}"


def _range(limit: float | None, below: bool) -> str:
    return "" if limit is None else f"{limit:g}{':' if below else ''}"


_HELP = {
    "runbook_status": "Worst of what was found: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN",
    "runbook_stuck_at": "1 for the place where the flow breaks",
    "runbook_section_status": "Status of a section, as runbook_status",
    "runbook_section_ended_timestamp_seconds": "When the section was done",
    "runbook_step_status": "Status of a step, as runbook_status",
    "runbook_value": "An observed value, in the unit of its label",
}
_STATUS = {"OK": 0, "WARNING": 1, "CRITICAL": 2, "UNKNOWN": 3}


def openmetrics(documents: Iterable[Document]) -> str:
    """Gauges of the statuses and of all numbers that were seen, in the text format of Prometheus and OpenMetrics.

    For the textfile collector of node_exporter: write it beside, then move it into the collector's folder.
    """
    samples: dict[str, list[str]] = {name: [] for name in _HELP}

    def add(metric: str, value: float, /, **labels: str) -> None:
        escaped = (f'{k}="{_escaped(v)}"' for k, v in labels.items())
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
        for step, name, value in _values(document):
            if isinstance(value["value"], int | float):
                add("runbook_value", float(value["value"]), target=target, step=step, name=name, unit=value["unit"])
    lines = []
    for name, found in samples.items():
        if found:
            lines += [f"# HELP {name} {_HELP[name]}", f"# TYPE {name} gauge", *dict.fromkeys(found)]
    return "\n".join([*lines, "# EOF", ""])


def _values(document: Document) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Step, name and value; each step once, though several sections may have it."""
    seen: set[tuple[str, str]] = set()
    for run in document.get("runs", ()):
        for finding in run["findings"]:
            for name, value in finding["values"].items():
                if (finding["step"], name) not in seen:
                    seen.add((finding["step"], name))
                    yield finding["step"], name, value


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
