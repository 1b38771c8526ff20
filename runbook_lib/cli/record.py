"""`runbook capsule`, `open` and `record`: an incident in one file, without names of machines and people."""

from __future__ import annotations

import shlex
import shutil
import tempfile
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runbook_lib.book import catalog
from runbook_lib.cli.common import (
    FILE,
    RECORDING,
    echo_text,
    existing_archive,
    lang_option,
    output_option,
    parse_pairs,
    say_verified,
)
from runbook_lib.model.finding import say
from runbook_lib.model.usage import UsageError, did_you_mean
from runbook_lib.sources import settings

if TYPE_CHECKING:
    from runbook_lib.store.archive import Archive

#: What may be expected, beside the steps by their numbers.
_EXPECTED = ("status", "stuck_at", "confidence", "failure_mode")


@click.command()
@click.argument("incident")
@click.option("--out", type=FILE, metavar="FILE", help="the file to write  [default: INCIDENT.runbook]")
@output_option()
@lang_option()
def capsule(incident: str, out: Path | None, output: str) -> int:
    """Pack a dossier into one masked file.

    `runbook open` opens it on any machine.

    The last line is the seal of the masked dossier: send it separately, for `runbook open --checkpoint`.
    """
    from runbook_lib.dossier import seal
    from runbook_lib.runs import replay
    from runbook_lib.store.archive import OutputError
    from runbook_lib.store.capsule import SUFFIX, write

    source, file = existing_archive(incident, output), out or Path(f"{incident}{SUFFIX}")
    with tempfile.TemporaryDirectory(prefix="runbook-") as folder:
        packed = replay.pack(source, settings.load(), catalog.load(), folder)
        try:
            write(file, packed)
        except OSError as e:
            raise OutputError(f"{file} could not be written: {e.strerror or e}") from None
        click.echo("\n".join([str(file), *_describe(packed), str(seal.chain_head(packed))]))
    return 0


@click.command(name="open")
@click.argument("file", type=RECORDING, metavar="FILE|example")
@click.option("--no-browser", is_flag=True, help="print the page")
@click.option("--lab", "in_lab", is_flag=True, help="open the notebooks on the recorded frames in JupyterLab")
@click.option("--checkpoint", "checkpoints", multiple=True, metavar="SEAL|FILE|URL", help="the seal of the capsule")
@lang_option()
def open_(file: Path, no_browser: bool, in_lab: bool, checkpoints: tuple[str, ...]) -> int:
    """Open a capsule, and judge its evidence again.

    It verifies the capsule and shows its page. No server is read.

    Exit code 0: unchanged; 2: changed, and not shown; 3: no change found, but no checkpoint covers it.
    """
    from runbook_lib.dossier import overview, seal
    from runbook_lib.lab import copies
    from runbook_lib.store.capsule import unpack

    with tempfile.TemporaryDirectory(prefix="runbook-") as folder:
        archive = unpack(file, Path(folder))
        kept = [head for source in checkpoints for head in seal.read_checkpoints(archive.incident, source)]
        head = seal.chain_head(archive)
        report = seal.check(archive, [head] if head in kept else kept)  # an earlier capsule has another seal
        if report.changed or (in_lab and checkpoints and report.uncovered):
            return say_verified(report, str(file))
        if not in_lab:
            try:
                overview.write_index(archive)
                lines = [*(_list_findings(archive) if no_browser else ()), *_describe(archive)]
            except OSError as e:
                raise UsageError(f"the recording {file} cannot be read: {e.strerror or e}") from None
            if not no_browser:  # a browser reads the page after this command
                page = Path(shutil.move(archive.place, tempfile.mkdtemp(prefix="runbook-open-")), overview.INDEX)
                webbrowser.open(page.as_uri())
                lines = [str(page), *lines]
    if in_lab:
        config = settings.load()
        copies.open_lab(config, config.output, copies.replay_incident(file), "", catalog.load(), (), file)
    click.echo("\n".join(lines))
    echo_text(say("capsule.notebooks", command=f"runbook open {shlex.quote(str(file))} --lab"))
    return say_verified(report, str(file))


@click.command()
@click.argument("incident")
@output_option()
@click.option(
    "--to", "folder", type=click.Path(file_okay=False, path_type=Path), default=Path("recordings"), show_default=True,
    help="folder for the recording and its entry in index.json",
)  # fmt: skip
@click.option(
    "--expect", "pairs", multiple=True, metavar="NAME=VALUE",
    help=f"the expected verdict: {', '.join(_EXPECTED)}, or a step such as 4.1.1=OK  [default: today's verdict]",
)  # fmt: skip
def record(incident: str, output: str, folder: Path, pairs: tuple[str, ...]) -> int:
    """Turn a dossier into a recording: a regression test.

    The recording contains masked frames and the documents that judged them, and no address. `none` expects no hop.
    """
    from runbook_lib.runs import replay
    from runbook_lib.store.archive import OutputError
    from runbook_lib.store.capsule import SUFFIX, write
    from runbook_lib.store.run import read_runs

    book, source, file = catalog.load(), existing_archive(incident, output), folder / f"{incident}{SUFFIX}"
    with tempfile.TemporaryDirectory(prefix="runbook-") as scratch:
        packed = replay.pack(source, settings.load(), book, scratch)
        runs = {run.section: run for run in read_runs(packed)}
        now = replay.evaluate(runs, book)
        expected = _parse_expectations(parse_pairs(pairs, "--expect"), now) or now
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write(file, packed)
            index = replay.read_index(folder) | {incident: {"expected": expected}}
            replay.write_index(folder, index)
        except OSError as e:
            raise OutputError(f"the recording could not be written to {folder}: {e.strerror or e}") from None
    click.echo(f"{file}: {', '.join(runs)}")
    for line in replay.differences(expected, now):
        click.echo(f"  {line}")
    return 0


def _describe(archive: Archive) -> list[str]:
    """Return what was left out of a capsule and where it is from, and what today's documents say about its runs."""
    from runbook_lib.book import messages
    from runbook_lib.dossier import backtest
    from runbook_lib.store.lines import read_logs
    from runbook_lib.view import differences

    report, unread = backtest.run(archive.output, [archive.incident], None)
    notes = [note.text for note in read_logs(archive).notes]
    return [*notes, *differences.backtest_lines(report), *map(messages.text, unread)]


def _list_findings(archive: Archive) -> list[str]:
    """Return what the page says first, as text: the verdict and a line for each step."""
    from runbook_lib.dossier import course
    from runbook_lib.store.lines import read_logs
    from runbook_lib.view import render

    logs = read_logs(archive)
    findings = [f for _, f in course.read_findings(archive, logs.runs)[0]]
    verdicts = [line for verdict in logs.verdicts for line in render.verdict_lines(verdict.verdict)]
    return [*verdicts, "", *(line for _, line in render.finding_lines(findings)), ""]


def _parse_expectations(given: dict[str, str], now: dict[str, Any]) -> dict[str, Any]:
    """Return what was given by the names that the index has. Raises UsageError for what cannot be expected."""
    steps = {step: section for section, found in now["sections"].items() for step in found["steps"]}
    expected: dict[str, Any] = {}
    for name, value in given.items():
        if name in _EXPECTED:
            expected[name] = None if value == "none" and name != "confidence" else value
        elif name in steps:
            own = expected.setdefault("sections", {}).setdefault(steps[name], {"steps": {}})
            own["steps"][name] = value
        else:
            raise UsageError(f"--expect {name}: {did_you_mean(name, [*_EXPECTED, *steps])}")
    return expected
