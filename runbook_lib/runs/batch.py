"""Headless runs: each section in a process of its own, all within one deadline, each leaving its artifact."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd

from runbook_lib import catalog, parameters, settings
from runbook_lib.archive import artifact
from runbook_lib.archive.artifact import Result, Run, stamp
from runbook_lib.masking import Masker
from runbook_lib.model.finding import Reason, Verdict, replace, say, unknown
from runbook_lib.runs import forks, kernels
from runbook_lib.store import PARTIAL, Archive
from runbook_lib.usage import UsageError, did_you_mean

#: Seconds that a runner is given beyond its deadline to save what it has, before it is killed.
GRACE_S = 8.0

#: Sections that are run at once: one more than there are cores, since each waits at times; no more than six.
AT_ONCE = min(settings.cores() + 1, 6)

#: Seconds that a run which acts is given beyond its deadline: a rollout must not be left in the middle.
ACTING_S = 240.0

Steps = Callable[[str, str], None]


@dataclass(frozen=True)
class Request:
    """One section to run, its parameters checked."""

    section: str
    parameters: dict[str, Any]
    output: str
    until: float
    job: str = ""
    """The mark of what must leave its artifact once, however often it is begun; "" for what a person runs."""
    unattended: bool = False
    """Started by an alert: it carries nothing out."""


def request(
    section: str, values: dict[str, Any], output: str, until: float, *, job: str = "", unattended: bool = False
) -> Request:
    """Check a section and its parameters before anything starts. Raises UsageError."""
    book = catalog.load()
    if section not in book.sections:
        raise UsageError(f"unknown section '{section}': {did_you_mean(section, list(book.runnable()))}")
    notebook = book.sections[section].notebook
    if notebook is None:
        raise UsageError(
            f"section {section} is done by hand, see docs/runbook.md; with a notebook: {', '.join(book.runnable())}"
        )
    names = parameters.declared(notebook)
    checked = parameters.validate(values, names)
    settings.load().target(checked.target)
    if checked.execute and not unattended:
        until += ACTING_S + checked.wait_s
    given = {k: v for k, v in checked.model_dump().items() if k in names}
    return Request(section, given, output, until, job, unattended)


def run_sections(requests: Iterable[Request], progress: Steps = lambda section, state: None) -> list[Result]:
    """Run the sections, some at once, each in a process of its own; each comes back, whatever became of it."""
    requests = list(requests)
    waiting = list(enumerate(requests))
    running: dict[forks.Forked[Result], _Started] = {}
    results: dict[int, Result] = {}

    def end(runner: forks.Forked[Result], problem: str = "") -> None:
        s = running.pop(runner)
        try:
            if problem:
                raise RuntimeError(problem)
            result = runner.result()
        except forks.Killed:
            result = _died(s.request, s.scratch, s.time, "the runner was killed")
        except Exception as e:
            runner.end()
            result = _died(s.request, s.scratch, s.time, problem or f"the runner failed: {type(e).__name__}: {e}")
        results[s.number] = result
        progress(s.request.section, result.run.status.name)

    with tempfile.TemporaryDirectory(prefix="runbook-") as scratch:
        try:
            while waiting or running:
                while waiting and len(running) < AT_ONCE:
                    n, r = waiting.pop(0)
                    own = Path(scratch) / str(n)
                    own.mkdir()
                    progress(r.section, "running")
                    running[forks.start(_run, r, own)] = _Started(n, r, own, _now())
                for runner in forks.ready(running, min(s.limit for s in running.values())):
                    end(runner)
                for runner in [r for r, s in running.items() if s.limit <= time.time()]:
                    end(runner, "the runner did not end in time")
        finally:
            forks.leave(running)
    return [results[n] for n in range(len(requests))]


@dataclass(frozen=True)
class _Started:
    number: int
    request: Request
    scratch: Path
    time: str

    @property
    def limit(self) -> float:
        return self.request.until + GRACE_S


def combined(results: Iterable[Result]) -> Verdict:
    """The verdict over all sections that were run."""
    from runbook_lib.analysis import diagnosis

    return diagnosis.conclude((f for r in results for f in r.run.findings), catalog.load())


def _run(r: Request, scratch: Path) -> Result:
    """In the runner's process: execute the notebook, keep it, whatever happens.

    `scratch` outlives it: the notebook so far is there where the archive is no folder.
    """
    os.environ["RUNBOOK_OUTPUT"] = r.output  # for the kernel: where this incident's actions and notes are written
    if r.unattended:
        os.environ["RUNBOOK_UNATTENDED"] = "1"
    kernels.fork_one()
    forks.end_with_parent()
    try:
        return _execute(r, scratch)
    finally:
        kernels.none_waits()


def _execute(r: Request, scratch: Path) -> Result:
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from papermill.execute import execute_notebook

    from runbook_lib.runs import engine

    section = catalog.load().sections[r.section]
    assert section.notebook is not None  # noqa: S101 - `request` has checked it
    archive = Archive(r.output, r.parameters["incident_id"])
    kept: list[artifact.Notebook] = []
    started, problem = _now(), ""
    stem = archive.reserve(f"{stamp(started)}-{r.section}")

    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        if r.parameters.get("execute") and not r.unattended:
            return kernels.interrupt()  # the action writes down what has become of it, and this runner the rest
        kernels.end()
        archive.release(stem)
        os._exit(1)

    def seconds(cell: object) -> int:
        if interrupted:
            raise RuntimeError("no further cell")
        return max(int(r.until - time.time()), 1)

    signal.signal(signal.SIGTERM, interrupt)
    try:
        with forks.interruptible():
            execute_notebook(
                nbformat.read(section.notebook, as_version=4),
                None,
                parameters=r.parameters,
                engine_name=engine.NAME,
                kernel_name="python3",
                progress_bar=False,
                partial=(archive.local or scratch) / f"{stem}{PARTIAL}",
                scratch=scratch,
                kept=kept,
                startup_timeout=30,
                timeout_func=seconds,
            )
    except CellTimeoutError:
        problem = "the deadline passed"
    except DeadKernelError:
        problem = "the kernel died"
    except PapermillExecutionError as e:
        problem = f"a cell failed: {e.ename}: {e.evalue}"
    except Exception as e:
        problem = f"the notebook could not be run: {type(e).__name__}: {e}"
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is kept is kept whole
    if interrupted:
        problem = "it was interrupted"
    return _keep(r, archive, stem, kept[0] if kept else None, started, problem)


def _keep(r: Request, archive: Archive, stem: str, nb: Any, started: str, problem: str) -> Result:
    """Turn the executed notebook into the artifact: notebook, page, evidence, manifest line."""
    target = settings.load().target(r.parameters["target"])
    masker = Masker.of(target.urls(), r.parameters["incident_id"], archive.salts)
    problem = masker.scrub(problem)
    nb = nb if nb is not None else nbformat.v4.new_notebook()
    artifact.scrub(nb, masker)
    run = artifact.read(nb, catalog.load().sections[r.section])
    if not run.concluded:
        problem = problem or "the notebook did not conclude"
        run = _unfinished(run, problem)
        nb.cells.insert(0, nbformat.v4.new_markdown_cell(f"**This run did not finish: {problem}.**", id="unfinished"))
    ended = _now()
    mark = {"job": r.job} if r.job else {}
    made = artifact.make(nb, run, r.parameters, stem=stem, started=started, ended=ended, problem=problem, **mark)
    place = archive.place
    try:
        before = archive.append(made.entry, made.files)
        archive.release(stem)
        if before:
            return kept(archive, before)
    except OSError as e:
        # The verdict must not be lost with the disk: keep the notebook wherever there is room.
        place, problem = _elsewhere(made.files), f"the artifact could not be written to {place} ({e.strerror or e})"
    if not place:
        return Result(run, started, ended, None, None, f"{problem}; it is lost")
    return Result(run, started, ended, f"{place}/{made.name}.ipynb", f"{place}/{made.name}.html", problem)


def kept(archive: Archive, entry: dict[str, Any]) -> Result:
    """A run that is in the archive, from its line of the manifest. Raises OSError."""
    name, section = entry["name"], catalog.load().sections[entry["section"]]
    run = artifact.read(artifact.notebook(archive.read(f"{name}.ipynb")), section)
    if entry["problem"] and not run.concluded:
        run = _unfinished(run, entry["problem"])
    place = archive.place
    ipynb, html = f"{place}/{name}.ipynb", f"{place}/{name}.html"
    return Result(run, entry["started"], entry["ended"], ipynb, html, entry["problem"])


def _died(r: Request, scratch: Path, started: str, what: str) -> Result:
    """What is known of a run whose runner is gone: the partial notebook, as far as it came."""
    archive, section = Archive(r.output, r.parameters["incident_id"]), catalog.load().sections[r.section]
    own: list[str] = []
    nb = nbformat.v4.new_notebook()
    with suppress(OSError, ValueError):
        for left in scratch.glob(f"*{PARTIAL}"):
            archive.write(left.name, left.read_bytes())
        own = [p for p in archive.partials() if f"-{r.section}." in p and p >= stamp(started)]
        nb = artifact.notebook(archive.read(own[-1])) if own else nb
    run = _unfinished(artifact.read(nb, section), what)
    return Result(run, started, _now(), f"{archive.place}/{own[-1]}" if own else None, None, what)


def _unfinished(run: Run, problem: str) -> Run:
    """The steps that were not reached say why."""
    from runbook_lib.analysis import diagnosis

    findings = tuple(
        unknown(f.step, Reason.NOT_RUN, say("unknown.unfinished", problem=problem)) if f.reason is Reason.NOT_RUN else f
        for f in run.findings
    )
    return replace(run, findings=findings, verdict=diagnosis.conclude(findings, catalog.load()))


def _elsewhere(files: dict[str, bytes]) -> str:
    try:
        folder = tempfile.mkdtemp(prefix="runbook-rescued-")
        for name, content in files.items():
            (Path(folder) / Path(name).name).write_bytes(content)
    except OSError:
        return ""
    return folder


def _now() -> str:
    return pd.Timestamp.now("UTC").isoformat(timespec="milliseconds")


def terminal_progress() -> Steps:
    """A line per section on a terminal, none in a pipe."""
    if not sys.stderr.isatty():
        return lambda section, state: None
    began: dict[str, float] = {}

    def show(section: str, state: str) -> None:
        took = f" {time.time() - began[section]:.1f} s" if section in began else ""
        began.setdefault(section, time.time())
        print(f"  {section:<5} {state}{took}", file=sys.stderr, flush=True)

    return show
