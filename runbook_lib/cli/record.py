"""`runbook capsule`, `open` and `record`: an incident in one file, without names of machines and people."""

from __future__ import annotations

import shlex
import tempfile
import webbrowser
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from runbook_lib.book import catalog
from runbook_lib.cli.common import (
    FILE,
    RECORDING,
    existing_archive,
    lang_option,
    output_option,
    parse_pairs,
    write_file,
)
from runbook_lib.model.finding import Text, say
from runbook_lib.model.usage import UsageError, did_you_mean
from runbook_lib.sources import settings

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

    The last line is the file's seal: send it separately, for `runbook open --checkpoint`.
    """
    from runbook_lib.runs import replay
    from runbook_lib.store import recording
    from runbook_lib.store.archive import OutputError

    book = catalog.load()
    made = replay.record(existing_archive(incident, output), settings.load(), book)
    file = out or Path(f"{incident}{recording.SUFFIX}")
    try:
        sealed = recording.write(file, made)
    except OSError as e:
        raise OutputError(f"{file} could not be written: {e.strerror or e}") from None
    _, differ = replay.reopen(made, book)
    for line in (str(file), *_translate_lines([*replay.contents(made), *differ])):
        click.echo(line)
    click.echo(sealed)
    return 0


@click.command(name="open")
@click.argument("file", type=RECORDING, metavar="FILE|example")
@click.option("--no-browser", is_flag=True, help="print the page")
@click.option("--lab", "in_lab", is_flag=True, help="open the notebooks on the recorded frames in JupyterLab")
@click.option("--checkpoint", "checkpoints", multiple=True, metavar="SEAL|FILE|URL", help="the seal of the file")
@lang_option()
def open_(file: Path, no_browser: bool, in_lab: bool, checkpoints: tuple[str, ...]) -> int:
    """Open a capsule, and judge its evidence again.

    It shows the capsule's page and verifies its seal. No server is read.

    Exit code 0: unchanged; 1: unchanged, but judged differently today; 2: changed; 3: no change found, but no
    checkpoint covers it.
    """
    from runbook_lib.dossier import seal
    from runbook_lib.lab import copies
    from runbook_lib.runs import replay
    from runbook_lib.store import recording

    try:
        recorded = recording.read(file)
    except recording.ChangedError as e:
        click.echo(f"runbook: {e}", err=True)
        return 2
    name = recorded.seal.split(":")[1]
    kept = [str(head) for source in checkpoints for head in seal.read_checkpoints(name, source)]
    config, book = settings.load(), catalog.load()
    states = (
        (bool(kept) and recorded.seal not in kept, "capsule.seal.other", 2),
        (not kept, "capsule.seal.not_witnessed", 3),
        (True, "capsule.seal.whole", 0),
    )
    state, code = next((state, code) for found, state, code in states if found)
    if in_lab:
        if checkpoints and code:
            for line in _translate_lines([say(state)]):
                click.echo(line, err=True)
            return code
        target = recorded.first.header["target"]
        copies.open_lab(config, config.output, copies.replay_incident(file), target, book, (), file)
    replayed, differ = replay.reopen(recorded, book)
    judged = sum(map(len, replayed.findings.values()))
    verdict = say("capsule.judged_apart", n=len(differ)) if differ else say("capsule.judged_same", n=judged)
    notebooks = say("capsule.notebooks", command=f"runbook open {shlex.quote(str(file))} --lab")
    told = _translate_lines([*replay.contents(recorded), say(state), verdict, *differ, notebooks])
    if no_browser:
        told = [*replay.page_lines(replayed), "", *told]
    else:
        page = Path(tempfile.mkdtemp(prefix="runbook-open-"), f"{file.stem}.html")
        write_file(page, replay.page(recorded, replayed, told))
        webbrowser.open(page.as_uri())
        told = [str(page), *told]
    for line in told:
        click.echo(line)
    return code or int(bool(differ))


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
    from runbook_lib.store import recording
    from runbook_lib.store.archive import OutputError

    book = catalog.load()
    made = replay.record(existing_archive(incident, output), settings.load(), book)
    now = replay.evaluate(made, book)
    expected = _parse_expectations(parse_pairs(pairs, "--expect"), now) or now
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{incident}{recording.SUFFIX}"
        recording.write(file, made)
        index = replay.read_index(folder) | {incident: {"about": made.about, "expected": expected}}
        replay.write_index(folder, index)
    except OSError as e:
        raise OutputError(f"the recording could not be written to {folder}: {e.strerror or e}") from None
    click.echo(f"{file}: {', '.join(made.runs)}")
    for line in replay.differences(expected, now):
        click.echo(f"  {line}")
    return 0


def _translate_lines(texts: Iterable[Text]) -> list[str]:
    from runbook_lib.book import messages

    return [messages.text(text) for text in texts]


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
