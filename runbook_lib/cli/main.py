"""The `runbook` command. Its exit code is the worst status (0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN); 64 is
wrong usage.
"""

from __future__ import annotations

import importlib.util
import io
import os
import re
import signal
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

import click
from click.core import ParameterSource

from runbook_lib import catalog, interrupts, pack, settings
from runbook_lib.catalog import CatalogError
from runbook_lib.cli.approve import approve
from runbook_lib.cli.common import Group, existing, no_incident, pairs_of, say_json, words
from runbook_lib.cli.compare import baseline, diff, watch
from runbook_lib.cli.keeping import erase, hold, retain
from runbook_lib.cli.new import new
from runbook_lib.cli.numbers import Number
from runbook_lib.cli.report import report
from runbook_lib.model.finding import Status, say
from runbook_lib.usage import UsageError, did_you_mean

if TYPE_CHECKING:
    from runbook_lib.model.order import Order

EX_USAGE = 64
EX_UNAVAILABLE = 69
EX_IOERR = 74

#: Seconds until section 6 is run again where no finding says when a look is worth while.
LOOK_AGAIN_S = 15.0

_COLOURS = {"OK": "green", "WARNING": "yellow", "CRITICAL": "red", "UNKNOWN": "magenta"}

_FILE = click.Path(dir_okay=False, path_type=Path)


FORMATS = ("text", "json", "nagios", "openmetrics")
_DEADLINE = Number(min=0, min_open=True, max=settings.DAY_S)


class _Commands(Group):
    """A pack's own commands are imported when they are called: they may need packages that a headless run does not."""

    def invoke(self, ctx: click.Context) -> Any:
        """An interrupt is one line and has its number in the exit code; click has neither."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as e:
            click.echo("runbook: interrupted", err=True)
            raise click.exceptions.Exit(128 + (e.args[0] if e.args else signal.SIGINT)) from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *pack.in_force().commands])

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if (known := super().get_command(ctx, name)) or name not in pack.in_force().commands:
            return known
        try:
            command: click.Command = pack.in_force().command(name)
        except ModuleNotFoundError as e:
            raise UsageError(f"{name} needs the package {e.name}: pip install 'runbook-notebooks[{name}]'") from None
        interrupts.unwind()  # what was started is stopped, and what has been done is written down
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="runbook-notebooks")
def cli() -> None:
    """An incident runbook that runs: notebooks that ask where the flow is stuck, and keep the evidence."""


for _command in (approve, baseline, diff, erase, hold, new, report, retain, watch):
    cli.add_command(_command)


def _run_options(f: Any) -> Any:
    for option in (
        click.option("--target", default="default", show_default=True, help="which system, from runbook.toml"),
        click.option("--incident", default="adhoc", show_default=True, help="names the folder of the artifacts"),
        click.option(
            "-p", "pairs", type=words, multiple=True, metavar="NAME=VALUE", help="a parameter of the notebook"
        ),
        click.option("--as-of", metavar="TIME", help="look at a past moment, as far as timestamps can answer"),
        click.option("--output", metavar="DIR|URL", help="where artifacts go  [default: outputs]"),
        click.option("--deadline", type=_DEADLINE, metavar="SECONDS", help="for the whole run  [default: 180]"),
        click.option("--lang", type=click.Choice(["ja", "en"]), help="of the artifacts  [default: en]"),
        click.option(
            "--format", "form", type=click.Choice(FORMATS), default="text", show_default=True,
            help="of what is said: nagios is a plugin's line, openmetrics a textfile for node_exporter",
        ),
        click.option("--json", "form", flag_value="json", help="one JSON document and nothing else: --format json"),
    ):  # fmt: skip
        f = option(f)
    return f


@cli.command()
def sections() -> None:
    """List every section: number, notebook, title, steps."""
    for section in catalog.load().sections.values():
        notebook = section.notebook.name if section.notebook else "(by hand)"
        click.echo(f"{section.number:<4} {notebook:<28} {section.en} · {section.ja}")
        for step in section.steps:
            click.echo(f"       {step.id:<6} {step.en}")


def _seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """A time to wait, written as 180, 180s or 3m."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([sm]?)", value.strip()) if value is not None else None
    if value is not None and not found:
        raise click.BadParameter(f"{value!r} is no time to wait: write it as 180, 180s or 3m", ctx, param)
    return float(found[1]) * (60 if found[2] == "m" else 1) if found else None


@cli.command()
@click.argument("sections", nargs=-1, required=True, metavar="SECTION...")
@click.option("--wait", "wait_s", callback=_seconds, metavar="TIME", help="section 6: look until it is OK, such as 3m")
@_run_options
def run(sections: tuple[str, ...], wait_s: float | None, **options: Any) -> int:
    """Run sections of the runbook headless and keep their artifacts."""
    if wait_s is not None and (sections != ("6",) or options["as_of"]):
        raise UsageError("--wait is for the recovery at this moment: runbook run 6 --wait 3m")
    return _run(list(dict.fromkeys(sections)), follow=False, wait_s=wait_s or 0.0, **options)


@cli.command()
@_run_options
@click.option(
    "--alert", type=click.File("rb"), metavar="FILE", help="run what an alert asks for; - reads it from stdin"
)
@click.option("--targets", metavar="all|NAME,...", help="several systems, each into a folder <incident>-<target>")
@click.option("--executor", type=click.Choice(["local", "dask"]), default="local", show_default=True)
@click.option("--scheduler", metavar="URL", help="of Dask, such as tcp://scheduler:8786")
@click.option("--workers", type=click.IntRange(1, 64), help="systems at once, of a local executor  [default: per core]")
@click.pass_context
def triage(
    context: click.Context,
    /,
    alert: BinaryIO | None,
    targets: str | None,
    executor: str,
    scheduler: str | None,
    workers: int | None,
    **options: Any,
) -> int:
    """Run section 3, then the sections that it points to; with --alert, what the routes of runbook.toml say."""
    given = {n for n in ("target", "incident") if context.get_parameter_source(n) is not ParameterSource.DEFAULT}
    if targets is None:
        if executor != "local" or scheduler or workers:
            raise UsageError("--executor, --scheduler and --workers are for several systems: --targets all|NAME,...")
        return _run(["3"], follow=True, **options) if alert is None else _triage_alert(alert, given, **options)
    if alert:
        raise UsageError("--alert says which system it is about: --targets is for several")
    if "target" in given:
        raise UsageError("--target names one system, --targets several: give one of them")
    return _triage_many(targets, executor, scheduler, workers or settings.cores(), **options)


def _triage_many(
    targets: str,
    executor: str,
    scheduler: str | None,
    workers: int,
    *,
    target: str,
    incident: str,
    output: str | None,
    form: str,
    **options: Any,
) -> int:
    """A line for each system when it is done, or one JSON list of what each has come to; the worst decides."""
    from runbook_lib.runs import forks

    forks.context()
    from runbook_lib import parameters
    from runbook_lib.runs import executors

    config = settings.load()
    output = output or config.output
    output = output if "://" in output else str(Path(output).absolute())  # a worker has its own folder
    orders = [
        # By its job, what a worker that died has left is not done again.
        replace(
            _order(["3"], follow=True, target=name, incident=f"{incident}-{name}", output=output, **options),
            job=uuid.uuid4().hex,
        )
        for name in _several(targets, config)
    ]
    for order in orders:
        parameters.validate(order.parameters | {"incident_id": order.incident})
    said: dict[str, dict[str, Any]] = {}
    with executors.executor_of(executor, scheduler, workers) as doing:
        for order, came in executors.results(doing, executors.carry_out, orders):
            if isinstance(came, Exception):
                problem, unknown = executors.one_line(came), Status.UNKNOWN
                what = {"incident": order.incident, "target": order.target, "problem": problem}
                document = what | {"status": unknown.name, "exit_code": unknown.value}
                came = {"document": document, "index": None, "lines": [unknown.name], "problem": problem}
            said[order.target] = document = came["document"]
            if form == "text":
                verdict = click.style(came["lines"][0], fg=_COLOURS[document["status"]])
                click.echo(f"{order.target}  {verdict}  {came['index'] or ''}".rstrip())
                if document.get("seal"):
                    click.echo(f"  {document['seal']}")
            else:
                _tell(came | {"lines": [f"{order.target} {came['lines'][0]}"]}, form)
            if came["problem"]:
                click.echo(f"runbook: {order.target}: {came['problem']}", err=True)
    return _worst([said[o.target] for o in orders], form, several=True)


def _worst(said: list[dict[str, Any]], form: str, *, several: bool) -> int:
    """The exit code of what was concluded; as JSON the documents, a list where there are several, or as gauges."""
    if form == "json":
        say_json(said if several else said[0])
    elif form == "openmetrics":
        from runbook_lib.view import formats

        click.echo(formats.openmetrics(said), nl=False)
    return int(max((Status[d["status"]] for d in said), key=lambda s: s.rank).value)


def _several(targets: str, config: settings.Settings) -> list[str]:
    """The systems that `all` or a list of names means. Raises UsageError."""
    names = list(config.targets) if targets == "all" else [t.strip() for t in targets.split(",") if t.strip()]
    if not names:
        raise UsageError("--targets names no system: write them in runbook.toml")
    known = ["default", "sandbox", *config.targets]
    for name in names:
        if name not in known:
            raise UsageError(f"unknown target '{name}': {did_you_mean(name, known)}")
    return list(dict.fromkeys(names))


def _triage_alert(file: BinaryIO, given: set[str], *, form: str, **options: Any) -> int:
    from runbook_lib.runs import forks

    forks.context()
    from runbook_lib.alerts import alert, routes
    from runbook_lib.masking import Masker
    from runbook_lib.notes import keep_note
    from runbook_lib.store import Archive

    try:
        alerts = alert.read(file.read())
    except alert.BadAlert as e:
        raise UsageError(f"{file.name}: {e}") from None
    except ModuleNotFoundError as e:
        raise UsageError(f"a CloudEvent needs the package {e.name}: pip install 'runbook-notebooks[serve]'") from None
    config, named = settings.load(), {n: options[n] if n in given else "" for n in ("target", "incident")}
    like = _order(["3"], follow=True, **options)
    orders = routes.orders(alerts, config, like, target=named["target"], named=named["incident"])
    for order, own in orders:
        archive = Archive(order.output, order.incident)
        masker = Masker.of(config.target(order.target).urls(), order.incident, archive.salts)
        archive.prepare()  # before somebody is given a token
        more = f" (+{len(own) - 1})" if len(own) > 1 else ""
        keep_note(archive, masker.scrub(own[0].line + more), "alert")
    return _carry_out([order for order, _ in orders], form)


def _run(numbers: list[str], *, follow: bool, form: str, wait_s: float = 0.0, **options: Any) -> int:
    from runbook_lib.runs import forks

    forks.context()
    return _carry_out([_order(numbers, follow=follow, **options)], form, wait_s)


def _order(
    numbers: list[str],
    *,
    follow: bool,
    target: str,
    incident: str,
    pairs: tuple[str, ...],
    as_of: str | None,
    output: str | None,
    deadline: float | None,
    lang: str | None,
) -> Order:
    from runbook_lib.model.order import Order

    config = settings.load()
    return Order(
        sections=tuple(numbers),
        output=output or config.output,
        target=target,
        incident=incident,
        lang=lang or config.lang,
        deadline_s=deadline if deadline is not None else config.deadline_s,
        follow=follow,
        parameters=pairs_of(pairs) | ({"as_of": as_of} if as_of else {}),
    )


def _carry_out(orders: list[Order], form: str, wait_s: float = 0.0) -> int:
    """Say what comes of each; as JSON one document (a list where there are several). The worst decides.

    With `wait_s` each is carried out again until it is OK; what the last look found is said.
    """
    from runbook_lib.runs import forks
    from runbook_lib.runs.executors import carry_out

    said: list[dict[str, Any]] = []
    for order in orders:
        until = time.monotonic() + wait_s
        try:
            came = carry_out(order)
            while came["document"]["status"] != Status.OK.name and _pause(came["document"], until, order.lang):
                came = carry_out(order)
        except forks.Killed:
            raise click.ClickException(
                f"the run was killed from outside; what it left is in {order.output}/{order.incident}"
            ) from None
        said.append(came["document"])
        _tell(came, form)
        for problem in [*came["problems"], *([] if came["index"] else [came["problem"]])]:
            click.echo(f"runbook: {problem}", err=True)
    return _worst(said, form, several=len(said) > 1)


def _tell(came: dict[str, Any], form: str) -> None:
    if form == "text":
        _print(came)
    elif form == "nagios":
        from runbook_lib.view import formats

        click.echo(formats.nagios(came["lines"][0], came["document"]))


def _pause(document: dict[str, Any], until: float, lang: str) -> bool:
    """Wait for as long as the findings ask, and say so; False when the time is up."""
    left = until - time.monotonic()
    if left <= 0:
        return False
    from runbook_lib import messages

    again = min(document["verdict"]["look_again_s"] or LOOK_AGAIN_S, left)
    words = {"status": document["status"], "again": again, "left": left}
    click.echo(f"  {messages.text(say('ui.until_ok', **words), lang)}", err=True)
    time.sleep(again)
    return True


def _print(came: dict[str, Any]) -> None:
    first, *rest = came["lines"]
    click.secho(first, fg=_COLOURS[came["document"]["status"]], bold=True)
    for line in rest:
        click.echo(line)
    for status, line in came["details"]:
        click.secho(line, fg=_COLOURS.get(status))
    if came["index"]:
        click.echo(f"\n{came['index']}")
    if came["document"]["seal"]:
        click.echo(came["document"]["seal"])


@cli.command()
@click.argument("target", default="default")
@click.option("--lang", type=click.Choice(["ja", "en"]), help="of what is said  [default: en]")
def connect(target: str, lang: str | None) -> None:
    """Open the ways into a cluster that section 2 needs (kubectl port-forward), and hold them until Ctrl-C."""
    from runbook_lib.cli.connect import hold

    hold(target, lang)


@cli.command()
@click.argument("incident")
@click.argument("text", type=words)
@click.option("--new", is_flag=True, help="the incident's folder is not there yet: begin it")
@click.option("--output", metavar="DIR|URL", help="where the incident's folder is  [default: outputs]")
def note(incident: str, text: str, new: bool, output: str | None) -> int:
    """Put a line into an incident's timeline."""
    from runbook_lib import messages
    from runbook_lib.archive import keeping, seal
    from runbook_lib.masking import Masker
    from runbook_lib.notes import keep_note, whoami
    from runbook_lib.parameters import validate
    from runbook_lib.store import Archive, OutputError

    validate({"incident_id": incident})
    config = settings.load()
    archive = Archive(output or config.output, incident)
    try:
        if not new and not archive.names():
            raise UsageError(f"{no_incident(archive)} (--new begins one)")
    except OSError as e:
        raise OutputError(f"the note could not be written to {archive.place}: {e.strerror or e}") from None
    if text.strip():
        archive.prepare()  # before somebody is given a token
    # People under the tokens of the incident's runs, which are of one target as a rule.
    urls: list[str] = []
    with suppress(UsageError, ValueError):
        if len(about := keeping.targets(archive)) == 1:
            urls = config.target(about.pop()).urls()
    kept = keep_note(archive, Masker.of(urls, incident, archive.salts).scrub(text), whoami())
    click.echo(messages.text(kept, config.lang))
    click.echo(seal.told(archive))
    return 0


@cli.command(name="dossier")
@click.argument("incident")
@click.option("--output", metavar="DIR|URL", help="where artifacts are  [default: outputs]")
@click.option("--lang", type=click.Choice(["ja", "en"]), help="of the page  [default: en]")
def dossier_(incident: str, output: str | None, lang: str | None) -> int:
    """Make an incident's index page again and print where it is."""
    from runbook_lib.archive import dossier

    archive = existing(incident, output)
    dossier.write_index(archive, lang or settings.load().lang)
    click.echo(f"{archive.place}/{dossier.INDEX}")
    return 0


@cli.command()
@click.argument("incidents", nargs=-1, metavar="[INCIDENT]...")
@click.option(
    "--policy",
    "given",
    type=click.Path(exists=True, path_type=Path),
    required=True,
    metavar="FILE|DIR",
    help="others: slo.md, failure-modes.md, runbook.toml for targets' own thresholds, or a folder with such",
)
@click.option("--output", metavar="DIR|URL", help="where artifacts are  [default: outputs]")
@click.option("--page", type=click.Path(dir_okay=False, path_type=Path), help="what differs, as a page")
@click.option("--json", "as_json", is_flag=True, help="all of it as JSON on standard output")
@click.option("--lang", type=click.Choice(["ja", "en"]), help="of what is said  [default: en]")
def backtest(
    incidents: tuple[str, ...], given: Path, output: str | None, page: Path | None, as_json: bool, lang: str | None
) -> int:
    """Say what the dossiers of the past would have concluded by other documents. All incidents if none is named.

    Exit code 0: nothing would be otherwise; 1: something would, or can not be told.
    """
    from runbook_lib.cli.backtest import told

    return told([existing(i, output).incident for i in incidents], given, output, page, as_json, lang)


@cli.command()
@click.argument("incident")
@click.option("--witness", "witnesses", multiple=True, metavar="SEAL|FILE|URL", help="a seal that was kept elsewhere")
@click.option("--signed", is_flag=True, help="only a seal counts whose signature holds ([sign.keys] in runbook.toml)")
@click.option("--output", metavar="DIR|URL", help="where artifacts are  [default: outputs]")
@click.option("--lang", type=click.Choice(["ja", "en"]), help="of what is said  [default: en]")
def verify(incident: str, witnesses: tuple[str, ...], signed: bool, output: str | None, lang: str | None) -> int:
    """Hold an incident's dossier against its seal and against witnesses, and judge its evidence once more.

    Exit code 0: whole; 1: whole, and judged otherwise today; 3: some of it no witness has seen; 2: changed.
    """
    from runbook_lib import messages
    from runbook_lib.archive import rejudge, seal
    from runbook_lib.parameters import validate
    from runbook_lib.store import SEALED, Archive

    validate({"incident_id": incident})
    config = settings.load()
    lang = lang or config.lang
    kept = [head for witness in witnesses for head in seal.witnessed(incident, witness)]
    counted, doubted = seal.vouched(kept, config.sign.keys, only=signed)
    # Where all of it is gone, a witness still says what was there.
    archive = Archive(output or config.output, incident) if kept else existing(incident, output)
    report = seal.check(archive, counted)
    judged, apart = rejudge.judge_all(archive)
    for text in (*report.changed, *doubted, *report.loose, *apart):
        click.echo(messages.text(text, lang), err=True)
    if upto := ", ".join(f"{log} {n}" for log, n in zip(SEALED, report.anchored, strict=True) if n):
        click.echo(messages.text(say("seal.anchored", upto=upto), lang))
    for by, last in {h.by: h.bare for h in sorted(counted, key=lambda h: sum(h.lines)) if h.by}.items():
        click.echo(messages.text(say("seal.signed", by=by, seal=str(last)), lang))
    states: tuple[tuple[object, str, int], ...] = (
        (report.changed, "changed", 2),
        (report.loose or doubted, "not_witnessed", 3),
        (apart, "apart", 1),
        (True, "whole", 0),
    )
    state, code = next((state, code) for found, state, code in states if found)
    what = {"place": archive.place, "sealed": sum(report.head.lines), "judged": judged}
    click.echo(messages.text(say("seal.said", state=say(f"seal.state.{state}"), **what), lang))
    if not report.changed:
        click.echo(seal.signed(report.head))
    return code


@cli.command(name="postmortem")
@click.argument("incident")
@click.option("--target", help="which system, from runbook.toml  [default: that of the incident]")
@click.option("-p", "pairs", type=words, multiple=True, metavar="NAME=VALUE", help="a parameter of notebook 7")
@click.option("--output", metavar="DIR|URL", help="where artifacts are  [default: outputs]")
@click.option("--deadline", type=_DEADLINE, metavar="SECONDS", help="for the run  [default: 180]")
@click.option("--lang", type=click.Choice(["ja", "en"]), help="of the draft  [default: en]")
@click.option("--check", is_flag=True, help="run nothing: name the mandatory items that are missing (exit code 2)")
@click.option("--json", "as_json", is_flag=True, help="one JSON document and nothing else")
def postmortem_(incident: str, check: bool, lang: str | None, output: str | None, as_json: bool, **options: Any) -> int:
    """Draft an incident's postmortem (section 7), keeping what a person wrote into it; or check it."""
    lang = lang or settings.load().lang
    archive = existing(incident, output)
    if check:
        return _check_postmortem(archive, lang, as_json)
    return _draft_postmortem(archive, lang, as_json, **options)


def _check_postmortem(archive: Any, lang: str, as_json: bool) -> int:
    from runbook_lib import catalog, mandatory, messages

    try:
        text = archive.read(mandatory.MARKDOWN).decode(errors="replace")
    except FileNotFoundError:
        text = ""
        click.echo(messages.text(say("postmortem.no_draft", incident=archive.incident), lang), err=True)
    missing = mandatory.missing(text, catalog.load())
    lines = [
        (m, messages.text(say(f"postmortem.item.{m.item}"), lang), messages.text(m.problem, lang)) for m in missing
    ]
    if as_json:
        lacks = [{"number": m.number, "item": m.item, "problem": problem} for m, _, problem in lines]
        said = {"incident": archive.incident, "complete": not missing, "missing": lacks}
        say_json(said)
    elif mandatory.old_form(text):
        old = say("postmortem.old_form", file=f"{archive.place}/{mandatory.MARKDOWN}", incident=archive.incident)
        click.echo(messages.text(old, lang), err=True)
    else:
        for m, item, problem in lines:
            text = messages.text(say("postmortem.lacks", number=m.number, item=item, problem=problem), lang)
            click.echo(text, err=True)
        if not missing:
            file = f"{archive.place}/{mandatory.MARKDOWN}"
            click.echo(messages.text(say("postmortem.complete", file=file), lang))
    return 2 if missing else 0


def _draft_postmortem(
    archive: Any, lang: str, as_json: bool, *, target: str | None, pairs: tuple[str, ...], deadline: float | None
) -> int:
    from runbook_lib import mandatory
    from runbook_lib.runs import forks

    forks.context()
    from runbook_lib import messages
    from runbook_lib.archive import dossier, postmortem, seal
    from runbook_lib.runs import batch
    from runbook_lib.view import render

    config = settings.load()
    target = target or postmortem.target_of(archive)
    until = time.time() + (deadline if deadline is not None else config.deadline_s)
    values = pairs_of(pairs) | {"target": target, "incident_id": archive.incident, "lang": lang}
    results = batch.run_sections(
        [batch.request(mandatory.SECTION, values, archive.output, until)], batch.terminal_progress()
    )
    result, verdict = results[0], batch.combined(results)
    try:
        written = postmortem.write_of(archive, result, lang, target)
        dossier.write_index(archive, lang)
    except OSError as e:
        raise click.ClickException(
            f"the postmortem could not be written to {archive.place}: {e.strerror or e}"
        ) from None
    if as_json:
        said = dossier.document(archive.incident, target, results, verdict, lang)
        say_json(said | {"postmortem": vars(written), "seal": seal.told(archive)})
    else:
        for finding in result.run.findings:
            click.echo(render.finding_line(finding, lang))
        if written.kept:
            click.echo(messages.text(say("postmortem.kept", names=", ".join(written.kept)), lang))
        click.echo(f"\n{written.markdown}\n{written.page}\n{seal.told(archive)}")
    if written.backup:
        click.echo(f"runbook: {messages.text(say('postmortem.backup', file=written.backup), lang)}", err=True)
    if result.problem:
        click.echo(f"runbook: section {result.run.section}: {result.problem}", err=True)
    return int(verdict.status.value)


@cli.command()
@click.option("--target", default="default", show_default=True, help="which system, from runbook.toml")
@click.option("--incident", default="adhoc", show_default=True, help="names the folder of the copies")
@click.option("--output", metavar="DIR", help="where artifacts go  [default: outputs]")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- JUPYTER-OPTION...]")
def lab(target: str, incident: str, output: str | None, arguments: tuple[str, ...]) -> None:
    """Open JupyterLab on copies of the notebooks, with the target and the incident filled in.

    What stands behind -- goes to JupyterLab, such as: runbook lab -- --no-browser --port 8899
    """
    from runbook_lib.lab import copies as interactive

    config = settings.load()
    config.target(target)
    interactive.open_lab(output or config.output, incident, target, arguments)


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="the address that is listened on")
@click.option("--port", type=click.IntRange(0, 65535), default=9095, show_default=True, help="0 takes a free one")
@click.option("--output", metavar="DIR|URL", help="where artifacts go  [default: outputs]")
@click.option(
    "--journal", type=_FILE, default="receiver.db", show_default=True, help="what was accepted, and its state"
)
@click.option("--tls-cert", type=_FILE, help="a certificate with its chain, PEM: listen with TLS")
@click.option("--tls-key", type=_FILE, help="its key, PEM")
@click.option("--workers", type=click.IntRange(1, 64), help="investigations at once  [default: per core, 2 to 4]")
@click.option("--executor", type=click.Choice(["local", "dask"]), default="local", show_default=True)
@click.option("--scheduler", metavar="URL", help="of Dask, such as tcp://scheduler:8786")
@click.option("--lang", type=click.Choice(["ja", "en"]), help="of the page and the artifacts  [default: en]")
def serve(**options: Any) -> int:
    """Receive alerts over HTTP, run what they ask for, and show the incidents (docs/operations.md)."""
    return _serve(**options)


def _serve(
    *,
    host: str,
    port: int,
    output: str | None,
    journal: Path,
    tls_cert: Path | None,
    tls_key: Path | None,
    workers: int | None,
    executor: str,
    scheduler: str | None,
    lang: str | None,
) -> int:
    from runbook_lib.runs import forks

    forks.context()
    for package in ("apprise", "cloudevents", "prometheus_client", "starlette", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"serving needs the package {package}: pip install 'runbook-notebooks[serve]'")
    from runbook_lib.runs import quick  # noqa: F401, I001 - before what it makes quick
    from runbook_lib import messages
    from runbook_lib.runs import executors
    from runbook_lib.alerts import auth, notify, routes, server
    from runbook_lib.alerts.journal import Journal

    config = settings.load()
    config.receiver.workers = workers or config.receiver.workers
    lang, output = lang or config.lang, output or config.output
    output = output if "://" in output else str(Path(output).absolute())  # a Dask worker has its own folder
    routes.check(config)
    places, secrets = notify.places(config), auth.load(config.receiver)
    if bool(tls_cert) != bool(tls_key):
        raise UsageError("--tls-cert and --tls-key belong together")
    tls = server.Tls(tls_cert, tls_key) if tls_cert and tls_key else None
    if tls:
        tls.check()
    if not secrets.needed:
        host = "127.0.0.1"
        click.echo(messages.text(say("receiver.alone"), lang), err=True)
    try:
        listening = server.listen(host, port)
    except OSError as e:
        raise click.ClickException(f"cannot listen on {host} port {port}: {e.strerror}") from None
    kept, doing = Journal(journal), executors.executor_of(executor, scheduler, config.receiver.workers)
    server.log_to_stderr()
    words = {"auth": say(f"receiver.auth.{secrets.name}"), "output": output, "journal": journal}
    here = say("receiver.listening", url=server.url(listening, tls), routes=len(config.routes), **words)
    hello = messages.text(here, lang)
    if not server.serve(config, output, lang, secrets, kept, doing, places, listening, tls, hello):
        click.echo(messages.text(say("receiver.left"), lang), err=True)
        sys.stdout.flush()
        os._exit(0)
    return 0


class _Output(io.FileIO):
    """Standard output or error. Who reads it may go, and the disk be full: what is under way goes on."""

    problem: OSError | None = None

    def write(self, content: Any) -> int:
        """Write all of it, or behave so."""
        try:
            written = super().write(content)
        except BrokenPipeError:
            written = len(content)
        except OSError as e:
            self.problem, written = e, len(content)
        return written


def _open(stream: TextIO | None) -> tuple[TextIO | None, _Output | None]:
    """A standard stream opened anew: each line as it comes, and what its encoding does not have as \\uNNNN."""
    try:
        number = -1 if stream is None else stream.fileno()
    except OSError:
        number = -1  # nothing of the system's, such as a buffer
    if stream is None or number < 0:
        return stream, None
    stream.flush()
    raw = _Output(number, "w", closefd=False)
    text = io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, "backslashreplace", line_buffering=True)
    return text, raw


def main(arguments: list[str] | None = None) -> None:
    """Run the command; whatever is wrong is one line, never a traceback."""
    sys.stdout, raw = _open(sys.stdout)
    sys.stderr, _ = _open(sys.stderr)
    code = _main(arguments)
    if raw and raw.problem:
        click.echo(f"runbook: could not write to standard output: {raw.problem.strerror}", err=True)
        code = EX_IOERR
    sys.exit(code)


def _main(arguments: list[str] | None) -> int:
    try:
        code = cli.main(args=arguments, prog_name="runbook", standalone_mode=False)
    except (UsageError, CatalogError) as e:
        click.echo(f"runbook: {e}", err=True)
        code = EX_USAGE
    except click.exceptions.NoArgsIsHelpError as e:
        click.echo(e.format_message(), err=True)
        code = EX_USAGE
    except click.UsageError as e:
        click.echo(
            f"runbook: {e.format_message()} (see `{e.ctx.command_path if e.ctx else 'runbook'} --help`)",
            err=True,
        )
        code = EX_USAGE
    except click.ClickException as e:
        click.echo(f"runbook: {e.format_message()}", err=True)
        code = EX_UNAVAILABLE
    except OSError as e:  # of the archive: `Archive` raises nothing else
        click.echo(f"runbook: {f'{e.filename}: ' if e.filename else ''}{e.strerror or e}", err=True)
        code = EX_UNAVAILABLE
    return code if isinstance(code, int) else 0
