"""Recordings made from dossiers, judged again by the code and the documents of today, and compared with an index.

The index (`index.json`) stands beside the recordings: what is known about each, and what is expected of it.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from runbook_lib.book import messages
from runbook_lib.book.catalog import Catalog
from runbook_lib.book.parameters import whoami
from runbook_lib.diagnosis import verdict as diagnosis
from runbook_lib.diagnosis.questions import ask_until_decided, sections_to_follow
from runbook_lib.dossier import artifact, overview, rejudge, seal
from runbook_lib.model.finding import HOP_NUMBERS, Finding, Text, Verdict, say
from runbook_lib.model.usage import UsageError
from runbook_lib.privacy.masking import hide_names
from runbook_lib.sources.settings import Settings
from runbook_lib.store.archive import ACTION, NOTE, Archive
from runbook_lib.store.capsule import SUFFIX
from runbook_lib.store.files import read_regular, replace_file
from runbook_lib.store.run import Run, read_runs, run_from_json, run_to_json

INDEX = "index.json"


def pack(archive: Archive, config: Settings, book: Catalog, output: str) -> Archive:
    """Write the last concluded run of each section into a dossier under `output`; return it.

    It has no names of machines and people. Raises OSError and UsageError.
    """
    found = list(rejudge.runs(archive, book))
    concluded = [run for run in found if not isinstance(run, Text)]
    last = {run.section: run for run in concluded}
    about_responders = book.section_with("postmortem")
    runs = [last[n] for n in book.sections if n in last and n != about_responders]
    if not runs:
        raise UsageError(f"{archive.place} holds no concluded run that is as it was sealed")
    known = _known_names(archive, runs, config)
    keep = {*book.hops, *_find_words([_without_context(r.header.get("given", {})) for r in runs])}
    sealed = seal.check(archive)
    logs = {kind: len(archive.lines(kind)) for kind in (ACTION, NOTE)}
    left_out = [
        *sealed.changed,
        *sealed.unread,
        *(text for text in found if isinstance(text, Text)),
        say("capsule.left.pages"),
        *(say("capsule.left.log", name=name, n=n) for name, n in logs.items() if n),
        *([say("capsule.left.earlier", n=n)] if (n := len(concluded) - len(last)) else []),
        *([say("capsule.left.responders", section=about_responders)] if about_responders in last else []),
    ]
    stored = [run_to_json(replace(r, header=_strip_header(r.header))) for r in runs]
    notes = [messages.text(say("capsule.left_out", what=text)) for text in left_out]
    (stored, notes), hidden = hide_names([stored, notes], known, keep)
    packed = say("capsule.packed", version=version("runbook-notebooks"), seal=str(sealed.chain_head))
    more = (say("capsule.left_out", what=say("capsule.left.names", **hidden)), packed)
    return build(output, archive.incident, map(run_from_json, stored), book, [*notes, *map(messages.text, more)])


def build(output: str, incident: str, runs: Iterable[Run], book: Catalog, notes: Iterable[str] = ()) -> Archive:
    """Write runs, what they come to together, and notes into a dossier under `output`; return it. Raises OSError."""
    archive = Archive(output, f"{incident}{SUFFIX}", people=False)
    archive.make()
    for run in runs:
        parameters = {"target": run.header["target"], "detected_at": run.header.get("given", {}).get("detected_at")}
        made = artifact.make_evidence(run, parameters, f"{artifact.stamp(run.started)}-{run.section}")
        archive.append(made.entry, made.files)
    sealed = read_runs(archive)
    verdict = replay({run.section: run for run in sealed}, book, again=False).verdict
    overview.keep(archive, sealed, overview.document(archive.incident, sealed[0].header["target"], sealed, verdict))
    for text in notes:
        archive.add_line(NOTE, {"time": sealed[-1].ended, "who": "capsule", "text": text})
    return archive


def _strip_header(header: Mapping[str, Any]) -> dict[str, Any]:
    """Return the header of a run without who ran it, the dashboard's address and the notebook's own parameters."""
    return dict(header) | {"by": "-", "dashboard": "", "parameters": {}}


def _known_names(archive: Archive, runs: Iterable[Run], config: Settings) -> dict[str, list[str]]:
    """Return the names of hosts and people that the target, this machine and the dossier's logs tell, by kind.

    A context of kubectl, or a word of the command that opens psql, counts as a host: it often holds the name of one, of
    a customer or of an account.
    """
    given = [_workloads(r.header.get("given", {})) for r in runs]
    places = [str(workloads.get(key) or "") for workloads in given for key in ("context", "psql")]
    lines = archive.lines(ACTION, NOTE)
    people = [line.get(name) for line in lines for name in ("who", "approved_by")]
    urls = list[str]()
    for target in archive.targets():
        with suppress(UsageError):  # of another machine's runbook.toml
            urls += config.target(target).urls()
    return {
        "host": [
            socket.gethostname(),
            *filter(None, (urlsplit(url).hostname for url in urls)),
            *(word for place in places for word in place.split() if not word.startswith("-")),
        ],
        "person": [whoami(), *(r.header.get("by", "") for r in runs), *map(str, filter(None, people))],
    }


def _workloads(given: Mapping[str, Any]) -> dict[str, Any]:
    return dict(given.get("workloads") or {})


def _without_context(given: Mapping[str, Any]) -> dict[str, Any]:
    return dict(given) | {"workloads": _workloads(given) | {"context": ""}}


def _find_words(value: Any) -> Iterator[str]:
    """Yield the words within JSON: not paths, addresses and sentences."""
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _find_words(each)
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w-]*", value):
        yield value


@dataclass(frozen=True)
class Replayed:
    """What a recording comes to: its findings and its verdict by section, and the verdict of a triage.

    The triage is its own section, the recorded sections that it points to, then those that may decide; without a
    recorded run of its own all sections.
    """

    findings: dict[str, tuple[Finding, ...]]
    verdicts: dict[str, Verdict]
    ran: list[str]
    verdict: Verdict


def replay(runs: Mapping[str, Run], book: Catalog, *, again: bool = True) -> Replayed:
    """Judge the runs of a recording by the documents `book`; with `again` False, take their findings as recorded."""
    return triage({section: judge(run, book, again=again) for section, run in runs.items()}, book)


def judge(run: Run, book: Catalog, *, again: bool = True) -> tuple[tuple[Finding, ...], Verdict]:
    """Return the findings and the verdict of a recorded section; with `again` False, its findings as recorded."""
    own = book.tuned(run.header.get("given", {}).get("thresholds", {}))
    if again:
        return rejudge.judge(run.findings, run.header, own)
    return run.findings, diagnosis.conclude(run.findings, own)


def triage(judged: Mapping[str, tuple[tuple[Finding, ...], Verdict]], book: Catalog) -> Replayed:
    """Conclude from judged sections what a triage would."""
    findings = {section: found for section, (found, _) in judged.items()}
    verdicts = {section: verdict for section, (_, verdict) in judged.items()}
    first = book.section_with("triage")
    if first not in findings:
        verdict = diagnosis.conclude((f for found in findings.values() for f in found), book)
        return Replayed(findings, verdicts, list(findings), verdict)

    def follow(sections: Iterable[str]) -> list[str]:
        return [n for n in sections_to_follow(sections, ran, book) if n in findings]

    def ask(section: str) -> tuple[Finding, ...]:
        ran.append(section)
        return findings[section]

    ran = [first]
    ran += follow(verdicts[first].next_sections)
    verdict = ask_until_decided(
        lambda: (f for n in ran for f in findings[n]),
        lambda verdict: follow(diagnosis.sections_of(verdict.settled_by)),
        ask,
        book,
        now=lambda: 0.0,  # what was recorded takes no time
    )
    return Replayed(findings, verdicts, ran, verdict)


def evaluate(runs: Mapping[str, Run], book: Catalog) -> dict[str, Any]:
    """Return what the runs of a recording come to by the documents `book`, as the index has it."""
    return as_expected(replay(runs, book))


def as_expected(replayed: Replayed) -> dict[str, Any]:
    """Return a replayed recording as the index has it."""
    verdict, ran = replayed.verdict, replayed.ran
    return {
        "exit_code": verdict.status.value,
        "triage": " then ".join(ran),
        **_verdict_fields(verdict, ran),
        "sections": {n: section_as_expected(n, found, replayed.verdicts[n]) for n, found in replayed.findings.items()},
    }


def section_as_expected(section: str, findings: Iterable[Finding], verdict: Verdict) -> dict[str, Any]:
    """Return a judged section as the index has it: its steps with their evidence, and its verdict."""
    findings = list(findings)
    return {
        "steps": {f.step: _finding_line(f) for f in findings},
        "cases": {f.step: f.decision.case for f in findings if f.decision},
        "evidence": {f.step: list(_evidence_lines(f)) for f in findings},
        **_verdict_fields(verdict, [section]),
    }


def _verdict_fields(v: Verdict, ran: Iterable[str]) -> dict[str, Any]:
    ran = list(ran)
    return {
        "status": v.status.name,
        "stuck_at": v.stuck_at,
        "confidence": v.confidence,
        "failure_mode": v.failure_modes[0].id if v.failure_modes else None,
        "failure_modes": [f"{m.id} {m.score:.2f}" for m in v.failure_modes],
        "undecided": [*v.undecided, *v.between],
        "proposals": [p.name for p in v.proposals],
        "next_sections": [n for n in v.next_sections if n not in ran],
    }


def _finding_line(f: Finding) -> str:
    """Return a finding as one line of the index: status, reason, and the key of its headline with parameters."""
    status = f"{f.status.name} {f.reason.value}" if f.reason else f.status.name
    return f"{status}: {_format(f.headline)}"


def _evidence_lines(f: Finding) -> Iterator[str]:
    """Yield what a finding shows and contributes to a verdict beside its headline, a line each."""
    for value in f.values:
        yield f"{value.name} {_format(value.value)} {value.status.name if value.status else ''}".rstrip()
    for observation in dict.fromkeys(signal.observation for signal in f.signals):
        spoken = [f"{s.about} {s.weight:+g}" for s in f.signals if s.observation == observation]
        yield f"{observation or '-'}: {', '.join(spoken)}"
    for hop in f.hops:
        yield f"{hop.name}: {_format_params({name: getattr(hop, name) for name in (*HOP_NUMBERS, 'late')})}"
    for note in f.notes:
        yield _format(note)
    for proposal in f.proposals:
        yield f"propose {proposal.name}({_format_params(proposal.params)})"
    if f.ended:
        yield f"over since {f.ended.since} {_format(f.ended.by)}"
    if f.next_sections:
        yield f"next {' '.join(f.next_sections)}"


def _format(value: Any) -> str:
    """Return a parameter as the index has it: a message as its key with parameters, a number with four digits."""
    match value:
        case Text():
            return value.key + (
                f"({said})" if value.key != messages.VERBATIM and (said := _format_params(value.params)) else ""
            )
        case float():
            return f"{value:.4g}"
        case list() | tuple():
            return f"[{' '.join(map(_format, value))}]"
        case _:
            return str(value)


def _format_params(params: Mapping[str, Any]) -> str:
    said = {name: shown for name, value in sorted(params.items()) if value is not None and (shown := _format(value))}
    return ", ".join(f"{name}={shown}" for name, shown in said.items())


def differences(expected: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Yield a line for each value that differs from the expected one; values without an expectation are skipped."""
    for name, value in expected.items():
        found, at = now.get(name), f"{path} {name}".strip()
        if isinstance(value, dict) and isinstance(found, dict):
            yield from differences(value, found, at)
        elif value != found and not str(found).startswith(f"{value}: "):  # a step's status alone may be expected
            yield f"{at}: expected {_format_value(value)}, now {_format_value(found)}"


def _format_value(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def read_index(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the index of a folder of recordings by name; {} where there is none. Raises UsageError."""
    try:
        index: dict[str, dict[str, Any]] = json.loads(read_regular(folder / INDEX))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise UsageError(f"{folder / INDEX} cannot be read: {getattr(e, 'strerror', None) or e}") from None
    return index


def write_index(folder: Path, index: Mapping[str, dict[str, Any]]) -> None:
    """Write the index, its names in order. Raises OSError."""
    text = json.dumps(dict(sorted(index.items())), ensure_ascii=False, indent=1)
    replace_file(folder / INDEX, f"{text}\n".encode())
