"""The notebooks of a pack, written from its documents.

Titles, questions and how to read an answer come from docs/runbook.md, parameters from the packs' classes, charts from
the checks. A cell with an id of its own is a person's: it stays behind the cell that it follows. A digest in the
notebook's metadata shows whether a person changed a generated cell.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import nbformat
from nbformat import NotebookNode, v4

from runbook_lib.book import messages, queries
from runbook_lib.book.catalog import Bilingual, Catalog, Section
from runbook_lib.book.pack import Pack
from runbook_lib.book.parameters import validate
from runbook_lib.checks.check import checks
from runbook_lib.model.finding import Text, say
from runbook_lib.model.usage import UsageError
from runbook_lib.view.queries import own_parameters, queries_of

#: The parameters that every notebook has.
_COMMON = ("incident_id", "target", "window_minutes", "lang")
#: The ids of generated cells.
_GENERATED = re.compile(
    r"intro|parameters|open|response|first-response|verdict|conclude|example(-text)?|(text|step|chart)(-\d)+"
)
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def notebooks(own: Pack, book: Catalog, *, force: bool = False) -> Iterator[tuple[Path, str, list[str]]]:
    """Yield path and text of each notebook of a pack, and the ids of generated cells kept as a person changed them.

    With `force` none does. Raises UsageError for a file that is no notebook, and for a parameter that does not exist.
    """
    paths = {n: s.notebook for n, s in book.sections.items() if s.notebook and own.has_notebook(s.notebook)}
    for number, path in paths.items():
        section = book.sections[number]
        cells = [_intro(section, own, book, paths), *_cells(section, own)]
        nb = v4.new_notebook(cells=cells, metadata=_METADATA)
        nb.metadata["runbook"] = {"generated": _digest(nb)}
        kept = _merge(_read(path), nb, force) if path.is_file() else []
        yield path, f"{nbformat.writes(nb)}\n", kept


def _read(path: Path) -> NotebookNode:
    try:
        nb = nbformat.read(path, as_version=4)
    except ValueError:
        raise UsageError(f"{path} is not a notebook: move it away, or restore it") from None
    return NotebookNode(v4.upgrade(nb, from_minor=nb.nbformat_minor))  # cells of earlier versions have no ids


def _merge(old: NotebookNode, new: NotebookNode, force: bool) -> list[str]:
    """Put a person's cells of the old notebook into the new one; return the ids of generated cells that are kept."""
    replace = force or old.metadata.get("runbook", {}).get("generated") == _digest(old)
    groups: dict[str, list[NotebookNode]] = {"": [], **{cell.id: [cell] for cell in new.cells}}
    kept, last = list[str](), ""
    for cell in old.cells:
        generated = _GENERATED.fullmatch(cell.id)
        if cell.id in groups:
            last = cell.id
            if not replace and _content(cell) != _content(groups[last][0]):
                groups[last][0] = cell
                kept.append(last)
        elif not (generated and replace):
            groups[last].append(cell)
            kept += [cell.id] if generated else []
    new.cells = [cell for group in groups.values() for cell in group]
    return kept


def _content(cell: NotebookNode) -> tuple[str, ...]:
    return cell.id, cell.cell_type, cell.source, json.dumps(cell.metadata, sort_keys=True)


def _digest(nb: NotebookNode) -> str:
    generated = sorted(_content(cell) for cell in nb.cells if _GENERATED.fullmatch(cell.id))
    return hashlib.sha256(json.dumps(generated).encode()).hexdigest()[:16]


def _intro(section: Section, own: Pack, book: Catalog, paths: Mapping[str, Path]) -> NotebookNode:
    where = {section.number, *(step.id for step in section.steps)}
    modes = [m.id for m in book.failure_modes.values() if where & {*m.sections, *m.told_by}]
    to_modes = _links(own, "failure-modes", modes)
    said = say(
        "notebook.intro",
        number=section.number,
        title=_both(section),
        when=_both(section.when),
        reads=_both(section.reads),
        seconds=section.seconds if section.takes != "-" else None,
        only=None if "execute" in section.parameters else say("notebook.reads_only"),
        sections=" · ".join(f"[{n}]({path.name})" for n, path in paths.items() if n != section.number),
        modes=" · ".join(f"[{name}]" for name in to_modes),
    )
    links = _links(own, "runbook", [section.number]) | to_modes
    return _markdown("intro", own, said, "".join(f"\n[{name}]: {target}" for name, target in links.items()))


def _links(own: Pack, document: str, names: Collection[str]) -> dict[str, str]:
    """Return the links from a notebook to the headings of a document that begin with these names, by name."""
    file = own.document(document)
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    relative = Path(os.path.relpath(file, own.notebook("."))).as_posix()
    headings = re.findall(r"^##+ ((\S+) .+)$", text, re.MULTILINE)
    anchors = {name: re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading, name in headings}
    return {name: f"{relative}#{anchor}" for name, anchor in anchors.items() if name in names}


def _cells(section: Section, own: Pack) -> Iterator[NotebookNode]:
    yield _code("parameters", _parameters(section), "parameters")
    yield _code("open", f'from runbook_lib import open_section\n\nrb = open_section("{section.number}", globals())')
    for step in section.steps:
        name = step.id.replace(".", "-")
        said = say("notebook.question", step=step.id, question=_both(step), hint=_both(step.hint))
        yield _markdown(f"text-{name}", own, said)
        yield _code(f"step-{name}", f'rb.step("{step.id}")')
        if getattr(checks().get(step.id), "charts", ()):  # a step that is being written may have no check yet
            yield _code(f"chart-{name}", f'rb.chart("{step.id}")')
    yield _markdown("response", own, say("notebook.response"))
    yield _code("first-response", "rb.first_response()")
    yield _markdown("verdict", own, say("notebook.conclusion"))
    yield _code("conclude", "rb.conclude()")
    named = (q for step in section.steps for q in queries_of(step.id).sql if q.name in queries.names())
    if example := next((q.name for q in named if not own_parameters(q)), ""):
        yield _markdown("example-text", own, say("notebook.example"))
        yield _code("example", f'rb.ask("{example}")', "skip-execution", "nbval-skip")


def _code(name: str, source: str, *tags: str) -> NotebookNode:
    return NotebookNode(v4.new_code_cell(source, id=name, metadata={"tags": [*tags]} if tags else {}))


def _markdown(name: str, own: Pack, said: Text, definitions: str = "") -> NotebookNode:
    """Return a text cell: the pack's first language is visible, the others are in the metadata."""
    visible, *others = (messages.text(said, lang).strip() for lang in own.languages)
    lines = {lang: text.split("\n") for lang, text in zip(own.languages[1:], others, strict=True)}
    source = f"{visible}\n{definitions}".strip()
    return NotebookNode(v4.new_markdown_cell(source, id=name, metadata={"runbook": lines} if lines else {}))


def _both(words: Bilingual) -> Text:
    return Text(messages.VERBATIM, {"en": words.en, "ja": words.ja})


def _parameters(section: Section) -> str:
    given = {name.strip(): value.strip() for name, _, value in (p.partition("=") for p in section.parameters)}
    names = dict.fromkeys([*_COMMON, *given])
    values = validate({name: given.get(name) or None for name in names})
    lines = []
    for name in names:
        value, about = getattr(values, name), type(values).model_fields[name].description
        shown = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
        lines.append(f"{name} = {shown}{f'  # {about}' if about else ''}")
    return "\n".join(lines)
