"""`runbook new`: the skeleton of a section of one's own, in a pack that extends the system's."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from runbook_lib import catalog, pack
from runbook_lib.cli.common import Group
from runbook_lib.usage import UsageError, config_file

_SKELETON = Path(__file__).parent / "skeleton"


@click.group(cls=Group)
def new() -> None:
    """Begin something of one's own."""


@new.command()
@click.argument("number")
@click.option(
    "--pack", "folder", type=click.Path(file_okay=False, path_type=Path), default="own", show_default=True,
    help="the folder of the pack that it goes into; made where it is not there",
)  # fmt: skip
@click.option("--title", default="A section of our own", show_default=True)
@click.option("--title-ja", default="独自の節", show_default=True)
def section(number: str, folder: Path, title: str, title_ja: str) -> int:
    """Write a section that runs, with its test: notebook, document, question, check, words in two languages."""
    for path in write_section(number, folder, title, title_ja):
        click.echo(path)
    asked = f'packs = ["{folder}"]'
    config = config_file()
    if config is None:
        Path("runbook.toml").write_text(f"{asked}\n", encoding="utf-8")
        click.echo("runbook.toml")
    elif pack.of_folder(folder).name not in {p.name for p in pack.in_force().packs}:
        click.echo(f"\nTo put it in force, write into {config}, above all tables:  {asked}")
    click.echo(f"\nIts tests: pytest {folder}    Run it: runbook run {number}")
    return 0


def write_section(number: str, folder: Path, title: str, title_ja: str) -> list[Path]:
    """Write a section's skeleton into a pack's folder, which is made where it is not there; the files it is in.

    Raises UsageError for a number or a folder that cannot be used, before anything is written.
    """
    if not re.fullmatch(r"\d(\.\d)?", number):
        raise UsageError(f"'{number}' is no number of a section: write it as 8 or 8.1")
    if number in catalog.load().sections:
        raise UsageError(f"section {number} is there already: {catalog.load().sections[number].en}")
    if not folder.resolve().name.isidentifier():
        raise UsageError(f"'{folder.resolve().name}' cannot be imported: use letters, digits and '_' for the folder")
    there = (folder / "__init__.py").is_file()
    if folder.exists() and not there and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty, and no pack")
    topic = f"section_{number.replace('.', '_')}"
    notebook = f"{number.replace('.', '_').zfill(len(number) + 1)}_own.ipynb"
    words = {
        "number": number, "title": title, "title_ja": title_ja, "topic": topic, "notebook": notebook,
        "name": folder.resolve().name, "system": pack.in_force().packs[0].name,
    }  # fmt: skip
    text = partial(_text, words=words)
    files = {
        folder / "checks" / f"{topic}.py": text("check.py"),
        folder / "sql" / topic / "sessions.sql": text("question.sql"),
        folder / "notebooks" / notebook: _notebook(words),
        folder / "tests" / f"test_{topic}.py": text("test.py"),
    }
    if taken := [path for path in files if path.exists()]:
        raise UsageError(f"{taken[0]} is there already")
    if not there:
        files |= {folder / "__init__.py": text("pack.py"), folder / "checks" / "__init__.py": text("checks.py")}
    added = {
        folder / "docs" / "runbook.md": text("runbook.md"),
        folder / "docs" / "slo.md": text("slo.md"),
        folder / "messages" / "en.toml": text("en.toml"),
        folder / "messages" / "ja.toml": text("ja.toml"),
    }
    for path, content in added.items():
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        files[path] = f"{before}\n{content}" if before else content
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return sorted(files)


def _text(name: str, words: dict[str, str]) -> str:
    import jinja2

    source = (_SKELETON / f"{name}.j2").read_text(encoding="utf-8")
    template = jinja2.Template(source, keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    return str(template.render(words))


def _notebook(words: dict[str, str]) -> str:
    import nbformat

    md: Callable[..., nbformat.NotebookNode] = nbformat.v4.new_markdown_cell
    code: Callable[..., nbformat.NotebookNode] = nbformat.v4.new_code_cell
    number, title, title_ja = words["number"], words["title"], words["title_ja"]
    parameters = (
        'incident_id = "adhoc"  # the dossier that this run belongs to\n'
        'target = "default"  # a target of runbook.toml, or "sandbox"\n'
        "window_minutes = 60  # how far the rates, delays and charts look back\n"
        'as_of = None  # None: now; or a moment such as "2025-01-31T03:00:00Z", as far as timestamps can tell\n'
        'lang = "en"  # "en" or "ja"'
    )
    named = ",\n    ".join(f"{n}={n}" for n in ("incident_id", "target", "window_minutes", "as_of", "lang"))
    opening = f'from runbook_lib import open_section\n\nrb = open_section(\n    "{number}",\n    {named},\n)'
    step = f"{number}.1"
    cells = [
        md(f"# {number} {title} · {title_ja}\n\n**When · いつ使うか**: write it here. · ここに書きます。", id="intro"),
        code(parameters, metadata={"tags": ["parameters"]}, id="parameters"),
        code(opening, id="open"),
        md(
            f"## {step} Who waits · 待っているもの\n\nDoes a session wait for a lock? · ロック待ちがあるか", id="text-1"
        ),
        code(f'rb.step("{step}")', id="step-1"),
        md("## Conclusion · 結論", id="verdict"),
        code("rb.conclude()", id="conclude"),
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nb = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
    return f"{nbformat.writes(nb, version=4)}\n"
