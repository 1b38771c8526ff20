"""Generate one page per failure mode for the documentation site.

The pages are made from the runbook's documents, the texts of its proposals and the faults of the sandbox: they cannot
disagree with the configuration. `on_files` is the hook of MkDocs; `pages` needs no MkDocs.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import runbook_lib
from runbook_lib.book import catalog, messages
from runbook_lib.book.catalog import Catalog, FailureMode
from runbook_lib.packs.entitlement import PACK

FOLDER = "failure-modes"
HEADINGS = (
    "Symptom · 症状",
    "Detection · 検知",
    "Neighbours · 似た障害モードとの違い",
    "Response · 対応",
    "Faults · 再現する障害",
)
_FAULTS = Path(runbook_lib.__file__).parent / "gameday" / "sandbox" / "faults.toml"
#: Observations in a cell of the table of neighbours; the strongest come first.
_LONGEST_CELL = 4


def pages() -> dict[str, str]:
    """Return the Markdown of each page by its path in the documentation, such as "failure-modes/FM-OB-01.md"."""
    book = catalog.read([PACK])
    found = {f"{FOLDER}/{mode.id}.md": _page(mode, book) for mode in book.failure_modes.values()}
    # Not index.md: its URL would be that of failure-modes.md.
    return {f"{FOLDER}/overview.md": _overview(book)} | found


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to the files of the site (MkDocs 1.6 or newer)."""
    from mkdocs.structure.files import File, InclusionLevel

    for path, content in pages().items():
        files.append(File.generated(config, path, content=content, inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Link the generated pages from docs/failure-modes.md."""
    if page.file.src_uri != f"{FOLDER}.md":
        return markdown
    link = f"\n\nFor responders: [one page per failure mode]({FOLDER}/overview.md).\n"
    return markdown.replace("\n", link, 1)


def _overview(book: Catalog) -> str:
    rows = [(_link(mode.id), mode.en, mode.ja, ", ".join(mode.hops)) for mode in book.failure_modes.values()]
    return "\n".join(
        ["# Failure modes, one by one · 障害モード別", "", *_table("Id", "Name", "名称", "Hop", rows=rows), ""]
    )


def _page(mode: FailureMode, book: Catalog) -> str:
    parts = (_symptom, _detection, _neighbours, _response, _shown_by)
    lines = [f"# {mode.id} {mode.en} · {mode.ja}"]
    for heading, part in zip(HEADINGS, parts, strict=True):
        lines += ["", f"## {heading}", "", *part(mode, book)]
    return "\n".join([*lines, ""])


def _symptom(mode: FailureMode, book: Catalog) -> Iterator[str]:
    yield _sentence(mode.symptom)
    yield ""
    yield f"Hop: {', '.join(f'`{hop}`' for hop in mode.hops)}. Objectives at risk:"
    yield ""
    objectives = (book.slos[id_] for id_ in mode.slo)
    yield from _table("SLO", "SLI", "Objective", rows=[(slo.id, slo.sli, slo.objective) for slo in objectives])


def _detection(mode: FailureMode, book: Catalog) -> Iterator[str]:
    yield _sentence(mode.detection)
    weights = _weights(book, mode.id)
    for sign, verb in ((1, "support"), (-1, "contradict")):
        rows = [
            (f"`{name}`", f"{abs(weight):g}", _supported_hops(book, name))
            for name, weight in _strongest_first(weights)
            if weight * sign > 0
        ]
        if rows:
            yield from ("", f"Observations that {verb} this mode:", "")
            yield from _table("Observation", "Weight", "Hop it supports", rows=rows)
    phrases = [p for p in book.phrases.values() if mode.id in p.failure_modes]
    if phrases:
        yield "Log phrases (each a hint; a connection that was given up is a sign):"
        yield ""
        texts = [(f"`{p.text}`", ", ".join(p.workloads), p.en, p.ja) for p in phrases]
        yield from _table("Log phrase", "Workload", "Meaning", "意味", rows=texts)
    if mode.excluded_by:
        yield from ("", f"Excluded by any of: {_codes(mode.excluded_by)}.")
    yield from ("", "Steps that decide:", "")
    steps = {step.id: step for section in book.sections.values() for step in section.steps}
    decide = [steps[id_] for id_ in mode.told_by]
    yield from _table("Step", "Question", "確認すること", rows=[(step.id, step.en, step.ja) for step in decide])


def _neighbours(mode: FailureMode, book: Catalog) -> Iterator[str]:
    yield "Failure modes that share an observation or a hop with this one, and the observations that support only"
    yield "one of the two. **Bold** observations also exclude or contradict the other one."
    yield ""
    own = _weights(book, mode.id)
    rows: list[tuple[int, tuple[str, ...]]] = []
    for other in book.failure_modes.values():
        theirs = _weights(book, other.id)
        shared = [name for name, _ in _strongest_first(own) if own[name] > 0 and theirs.get(name, 0) > 0]
        hops = [hop for hop in mode.hops if hop in other.hops]
        if other is mode or not (shared or hops):
            continue
        common = "; ".join(filter(None, [f"hop {', '.join(hops)}" if hops else "", _shortened(shared)]))
        apart = (_tells_apart(mode, other, book), _tells_apart(other, mode, book))
        rows.append((len(shared), (_link(other.id, other.en), common, *apart)))
    most_similar_first = [row for _, row in sorted(rows, key=lambda row: -row[0])]
    yield from _table("Failure mode", "In common", f"For {mode.id}", "For the other", rows=most_similar_first)
    if mode.follows:
        yield ""
        yield f"This mode is often caused by {', '.join(map(_link, mode.follows))}; respond to the cause first."
    causes = [_link(other.id) for other in book.failure_modes.values() if mode.id in other.follows]
    if causes:
        yield from ("", f"This mode can cause {', '.join(causes)}.")


def _tells_apart(mode: FailureMode, other: FailureMode, book: Catalog) -> str:
    """List what supports `mode` and not `other`; observations that exclude or contradict `other` come first."""
    own, theirs = _weights(book, mode.id), _weights(book, other.id)
    against = {name: 1.0 if name in other.excluded_by else -theirs.get(name, 0) for name in own}
    alone = [name for name in own if own[name] > 0 and against[name] >= 0]
    alone.sort(key=lambda name: -own[name] - against[name])
    return _shortened(alone, bold=[name for name in alone if against[name] > 0]) or "-"


def _response(mode: FailureMode, book: Catalog) -> Iterator[str]:
    yield _sentence(mode.mitigation)
    en, ja = messages.catalogue("en"), messages.catalogue("ja")
    yield ""
    if not mode.remedies:
        yield "The runbook proposes no command for this mode. · この障害モードには runbook の提案がありません。"
    else:
        yield "Proposals, in the order of execution. `runbook act` is a dry run by default."
    for name in mode.remedies:
        yield from ("", f"### {name}", "")
        rows = [
            (
                what,
                _without_values(en.get(f"proposal.{name}.{key}", "-")),
                _without_values(ja.get(f"proposal.{name}.{key}", "-")),
            )
            for what, key in (("Before", "preconditions"), ("Effect", "effect"), ("Risk", "risk"), ("Check", "verify"))
        ]
        yield from _table("", "English", "日本語", rows=rows)
        forbidden = [observation for observation, names in book.forbids.items() if name in names]
        if forbidden:
            yield from ("", f"Not proposed while one of these is observed: {_codes(forbidden)}.")
    sections = [book.sections[number] for number in mode.sections]
    yield from ("", "Sections of the [runbook](../runbook.md):", "")
    yield from (f"- {section.number} {section.en} · {section.ja}" for section in sections)


def _shown_by(mode: FailureMode, book: Catalog) -> Iterator[str]:
    expected = {name: f for name, f in _faults().items() if f.get("failure_mode") == mode.id}
    accepted = {name: f for name, f in _faults().items() if mode.id in f.get("also_right", ())}
    if not expected:
        yield "No fault of the sandbox has this mode as its expected answer."
        yield "この障害モードを正解とする sandbox の障害はありません。"
    else:
        yield "Faults whose expected answer is this mode. `runbook sandbox fault NAME` injects one."
        yield ""
        yield from _fault_table(expected)
    if accepted:
        yield from ("", "Faults for which this mode is also right:", "")
        yield from _fault_table(accepted)


def _fault_table(faults: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    rows = [
        (
            f"`{name}`",
            fault["en"],
            fault["ja"],
            _codes(fault.get("helps", ())) or "-",
            _codes(fault.get("harms", ())) or "-",
        )
        for name, fault in faults.items()
    ]
    return _table("Fault", "Description", "説明", "Helps", "Harms", rows=rows)


@lru_cache
def _faults() -> Mapping[str, Mapping[str, Any]]:
    return tomllib.loads(_FAULTS.read_text(encoding="utf-8"))


def _weights(book: Catalog, about: str) -> dict[str, float]:
    """Return the weight of each observation about a hop or failure mode; negative weights contradict it."""
    return {name: s.weight for name in book.observations for s in book.signals(name) if s.about == about}


def _supported_hops(book: Catalog, observation: str) -> str:
    signals = book.signals(observation)
    return ", ".join(s.about for s in signals if s.about in book.places and s.weight > 0) or "-"


def _strongest_first(weights: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(weights.items(), key=lambda item: -abs(item[1]))


def _codes(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _shortened(names: list[str], bold: Iterable[str] = ()) -> str:
    """List the first names as code and count the others."""
    shown = [f"**`{name}`**" if name in bold else f"`{name}`" for name in names[:_LONGEST_CELL]]
    more = len(names) - len(shown)
    return ", ".join([*shown, f"{more} more"] if more else shown)


def _link(id_: str, title: str = "") -> str:
    return f"[{id_}]({id_}.md)" + (f" {title}" if title else "")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _without_values(text: str) -> str:
    """Replace the parameters of a message, which only a run knows."""
    return re.sub(r"\{[^{}]*\}", "…", re.sub(r"\[\[.*?\]\]", "", text))


def _table(*columns: str, rows: Iterable[Iterable[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
