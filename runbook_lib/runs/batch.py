"""Headless runs: each section in a process of its own, all within one deadline, each leaving its artifact."""

from __future__ import annotations

import importlib
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat

from runbook_lib.book import messages, parameters
from runbook_lib.book.catalog import Catalog
from runbook_lib.dossier import artifact, postmortem
from runbook_lib.dossier.artifact import stamp
from runbook_lib.model.finding import Finding, Verdict, replace
from runbook_lib.model.times import now
from runbook_lib.model.usage import UsageError, did_you_mean
from runbook_lib.privacy.masking import Masker
from runbook_lib.runs import forks
from runbook_lib.sources.settings import Settings, Target, available_cores
from runbook_lib.store.archive import PARTIAL, Archive
from runbook_lib.store.files import write_whole
from runbook_lib.store.lines import run_line
from runbook_lib.store.run import Run, read_run, run_of_cells
from runbook_lib.view import prose

if TYPE_CHECKING:
    from runbook_lib.checks.sample import Sample

#: Seconds after its deadline in which a runner may save its notebook before it is killed.
GRACE_S = 8.0

#: How many sections run at once: one more than there are cores, since each waits at times; at most six.
AT_ONCE = min(available_cores() + 1, 6)

#: Seconds that a run with an action has after its deadline, so that a rollout is not left in the middle.
ACTING_S = 240.0
#: The signal that tells a runner that its deadline has passed.
LATE = signal.SIGUSR1
#: Where a runner leaves the name of its artifact, in its scratch folder.
_STEM = "stem"


class LateError(BaseException):
    """The deadline passed; no handler of errors in a cell may keep it."""


Steps = Callable[[str, Finding | None], None]
"""Called with a section that starts, and with each finding of it."""


@dataclass(frozen=True)
class Request:
    """One section to run, its parameters checked, with the target to read and the documents to judge by."""

    section: str
    parameters: dict[str, Any]
    target: Target
    book: Catalog
    output: str
    until: float
    """By `time.monotonic`, which is the same in all processes of a machine."""
    job: str = ""
    """The mark of a run that stores its artifact once, even if it is repeated; "" for a person's run."""
    unattended: bool = False
    """Started by an alert: it runs no action."""
    sample: Sample | None = None
    """What was read for all sections of the run."""


def request(
    section: str, values: dict[str, Any], config: Settings, book: Catalog, output: str, until: float, **marks: Any
) -> Request:
    """Check a section and its parameters before anything starts; `marks` are fields of `Request`. Raises UsageError."""
    if section not in book.sections:
        raise UsageError(f"unknown section '{section}': {did_you_mean(section, list(book.runnable()))}")
    notebook = book.sections[section].notebook
    if notebook is None:
        raise UsageError(
            f"section {section} is done by hand, see docs/runbook.md; with a notebook: {', '.join(book.runnable())}"
        )
    names = parameters.declared_names(notebook)
    checked = parameters.validate(values, names)
    target = config.target(checked.target)
    if checked.execute and not marks.get("unattended"):
        until += ACTING_S + checked.wait_s
    given = {k: v for k, v in checked.model_dump().items() if k in names}
    return Request(section, given, target, book, output, until, **marks)


def run_sections(
    requests: Iterable[Request],
    progress: Steps = lambda section, found: None,
    follow: Callable[[str, Finding], Iterable[Request]] = lambda section, found: (),
) -> list[Run]:
    """Run the sections, several at once, each in a process of its own; each has a result, even if its process dies.

    `follow` gives the sections that a finding of a section adds; they start as soon as there is room.
    """
    importlib.import_module(forks.RUNNERS)
    requests = list(requests)
    waiting = list(enumerate(requests))
    running: dict[forks.Forked[Run], _StartedRun] = {}
    results: dict[int, Run] = {}

    def end(runner: forks.Forked[Run], problem: str = "") -> None:
        s = running.pop(runner)
        try:
            if not problem:
                results[s.number] = runner.result()
                return
        except forks.ProcessDiedError:
            problem = "the runner was killed"
        except Exception as e:
            problem = f"the runner failed: {type(e).__name__}: {e}"
        runner.end()
        if s.problem:  # of what the runner left nothing could be stored either
            results[s.number] = _result_of_dead_runner(s, s.problem)
        else:
            left = replace(s, problem=problem, limit=time.monotonic() + GRACE_S)
            running[forks.start(_store_partial, left)] = left

    def hear(r: Request, found: Finding) -> None:
        progress(r.section, found)
        more = list(follow(r.section, found))
        waiting.extend(enumerate(more, start=len(requests)))
        requests.extend(more)

    with tempfile.TemporaryDirectory(prefix="runbook-") as scratch:
        try:
            while waiting or running:
                while waiting and len(running) < AT_ONCE:
                    n, r = waiting.pop(0)
                    own = Path(scratch) / str(n)
                    own.mkdir()
                    progress(r.section, None)
                    runner = forks.start(_run_in_runner, r, own, hear=partial(hear, r))
                    running[runner] = _StartedRun(n, r, own, now(), r.until)
                for runner in forks.wait_for_any(running, min(s.limit for s in running.values())):
                    end(runner)
                for runner, s in [(r, s) for r, s in running.items() if s.limit <= time.monotonic()]:
                    if s.limit > s.request.until:
                        end(runner, "the runner did not end in time")
                    else:
                        runner.send(LATE)
                        running[runner] = replace(s, limit=s.limit + GRACE_S)
        finally:
            forks.end_in_order(running)
    return [results[n] for n in range(len(requests))]


@dataclass(frozen=True)
class _StartedRun:
    number: int
    request: Request
    scratch: Path
    time: str
    limit: float
    problem: str = ""
    """Why the runner did not store its run, which another process then does."""


def combine_verdict(results: Iterable[Run], book: Catalog) -> Verdict:
    """Return the verdict over all sections that were run."""
    from runbook_lib.diagnosis import verdict as diagnosis

    return diagnosis.conclude((f for r in results for f in r.findings), book)


def _run_in_runner(r: Request, scratch: Path) -> Run:
    """Execute the notebook in the runner's process and store it, even if it fails.

    `scratch` outlives the process: it holds the partial notebook if the archive is not a local folder.
    """
    from runbook_lib.checks import context

    os.environ["RUNBOOK_OUTPUT"] = r.output  # for the cells: where this incident's actions and notes are written
    context.inherit(r.sample)
    if r.unattended:
        os.environ["RUNBOOK_UNATTENDED"] = "1"
    os.setpgid(0, 0)  # what cells start ends with it; a session of its own would not be as polite
    random.seed()  # or all of them would wait in step
    forks.end_with_parent()
    return _execute_section(r, scratch)


def _execute_section(r: Request, scratch: Path) -> Run:
    from papermill.exceptions import PapermillExecutionError
    from papermill.execute import execute_notebook

    from runbook_lib.runs import engine, shell

    notebook = r.book.sections[r.section].notebook
    assert notebook is not None  # noqa: S101 - `request` has checked it
    archive = Archive(r.output, r.parameters["incident_id"])
    masker = Masker.of(r.target.urls(), archive.incident, archive.salt)
    # Before the notebook holds them: it is on disk as far as it has come, and its parameters in its metadata.
    r = replace(r, parameters=parameters.mask_free_texts(r.parameters, masker))
    kept: list[artifact.Notebook] = []
    started, problem = now(), ""
    stem = archive.reserve(f"{stamp(started)}-{r.section}")
    write_whole(scratch / _STEM, stem.encode(), durable=False)

    def interrupt(*_: object) -> None:
        if r.parameters.get("execute") and not r.unattended:
            return shell.end(
                KeyboardInterrupt()
            )  # the action writes down what has become of it, and this runner the rest
        archive.release(stem)
        os.killpg(0, signal.SIGKILL)

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(LATE, lambda *_: shell.end(LateError()))
    try:
        nb = nbformat.read(notebook, as_version=4)
        with messages.using(r.parameters.get("lang", "en")):
            prose.translate(nb)
        with forks.interruptible():
            execute_notebook(
                nb,
                None,
                parameters=r.parameters,
                engine_name=engine.NAME,
                kernel_name="python3",
                progress_bar=False,
                partial=(archive.local or scratch) / f"{stem}{PARTIAL}",
                kept=kept,
            )
    except LateError:
        problem = "the deadline passed"
    except KeyboardInterrupt:
        problem = "it was interrupted"
    except PapermillExecutionError as e:
        problem = f"a cell failed: {e.ename}: {e.evalue}"
    except Exception as e:
        problem = f"the notebook could not be run: {type(e).__name__}: {e}"
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is kept is kept whole
    return _store_artifact(r, archive, masker, stem, kept[0] if kept else None, started, problem)


def _store_partial(s: _StartedRun) -> Run:
    """Store the notebook of a runner that died, as far as it came."""
    archive = Archive(s.request.output, s.request.parameters["incident_id"])
    masker = Masker.of(s.request.target.urls(), archive.incident, archive.salt)
    r = replace(s.request, parameters=parameters.mask_free_texts(s.request.parameters, masker))
    stem = (s.scratch / _STEM).read_text()
    nb = nbformat.read((archive.local or s.scratch) / f"{stem}{PARTIAL}", as_version=4)
    for cell in nb.cells:
        if cell.metadata.papermill["status"] == "running":
            cell.metadata.papermill.update(status="failed", exception=True)
    return _store_artifact(r, archive, masker, stem, nb, s.time, s.problem)


def _store_artifact(
    r: Request, archive: Archive, masker: Masker, stem: str, nb: Any, started: str, problem: str
) -> Run:
    """Turn the executed notebook into the artifact: notebook, page, evidence, line of the log."""
    problem = masker.scrub_once(problem)  # a cell's text holds tokens already
    nb = nb if nb is not None else nbformat.v4.new_notebook()
    artifact.scrub(nb, masker)
    run = run_of_cells(nb.cells, r.section, r.book)
    run = replace(run, started=started, ended=now(), problem=problem)
    if not run.concluded:
        run = run.unfinished(problem or "the notebook did not conclude", r.book)
        told = f"**This run did not finish: {postmortem.md(run.problem)}.**"
        nb.cells.insert(0, nbformat.v4.new_markdown_cell(told, id="unfinished"))
    mark = {"job": r.job} if r.job else {}
    made = artifact.make(nb, run, r.parameters, stem, **mark)
    place = archive.place
    try:
        try:
            before = archive.append(made.entry, made.files)
        finally:
            archive.release(stem)
        if before:
            return read_run(archive, run_line(archive, before))
    except OSError as e:
        # The verdict must not be lost with the disk: keep the notebook wherever there is room.
        problem = f"the artifact could not be written to {place} ({e.strerror or e})"
        place = _rescue_files(made.files)
        run = replace(run, problem=problem if place else f"{problem}; it is lost")
    return replace(run, ipynb=f"{place}/{made.name}.ipynb", html=f"{place}/{made.name}.html") if place else run


def _result_of_dead_runner(s: _StartedRun, problem: str) -> Run:
    """Return the result of a run whose runner died, from its partial notebook."""
    r = s.request
    archive = Archive(r.output, r.parameters["incident_id"])
    own: list[str] = []
    nb = nbformat.v4.new_notebook()
    with suppress(OSError, ValueError):
        for left in s.scratch.glob(f"*{PARTIAL}"):
            archive.write(left.name, left.read_bytes())
        stem = (s.scratch / _STEM).read_text()  # another target's run of this section may have one, too
        own = [p for p in archive.partials() if p == f"{stem}{PARTIAL}"]
        nb = artifact.notebook(archive.read(own[-1])) if own else nb
    run = replace(run_of_cells(nb.cells, r.section, r.book), started=s.time, ended=now())
    run = run.unfinished(problem, r.book)
    return replace(run, ipynb=f"{archive.place}/{own[-1]}") if own else run


def _rescue_files(files: dict[str, bytes]) -> str:
    try:
        folder = tempfile.mkdtemp(prefix="runbook-rescued-")
        for name, content in files.items():
            write_whole(Path(folder) / Path(name).name, content)
    except OSError:
        return ""
    return folder
