"""`runbook run` and `runbook triage`: sections headless, and what they conclude."""

from __future__ import annotations

import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click
from click.core import ParameterSource

from runbook_lib.book import messages
from runbook_lib.cli import common
from runbook_lib.cli.terminal import draw, paint
from runbook_lib.model.finding import Status, say
from runbook_lib.model.incident import LATEST
from runbook_lib.model.usage import UsageError, did_you_mean, visible
from runbook_lib.privacy.urls import show_url
from runbook_lib.sources import settings

if TYPE_CHECKING:
    from runbook_lib.model.order import Order

#: Seconds until the recovery is looked at again where no finding says when a look is worth while.
LOOK_AGAIN_S = 15.0


def _run_options(f: Any) -> Any:
    options = (
        common.TARGET,
        common.incident_option("names the folder of the artifacts"),
        common.PAIRS,
        common.output_option("folder or URL for the artifacts"),
        common.DEADLINE,
        common.lang_option("language of the artifacts"),
        common.AS_JSON,
        click.option("--why", is_flag=True, help="print each step and each observation that the verdict rests on"),
    )  # fmt: skip
    for option in reversed(options):
        f = option(f)
    return f


@click.command()
@click.argument("sections", nargs=-1, required=True, metavar="SECTION...")
@click.option(
    "--wait",
    "wait_s",
    type=common.Duration(min=0),
    help="the section about recovery: repeat until it is OK, for at most this time, such as 3m",
)
@_run_options
def run(sections: tuple[str, ...], wait_s: float | None, as_json: bool, why: bool, **options: Any) -> int:
    """Run sections headless and store their artifacts.

    Exit code: the worst status: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN; 64 for wrong usage.
    """
    if wait_s is not None:
        from runbook_lib.book import catalog

        recovery = catalog.load().required_section("recover")
        if sections != (recovery,):
            raise UsageError(f"--wait needs section {recovery} alone: runbook run {recovery} --wait 3m")
    _start_fork_server()
    order = _build_order(list(dict.fromkeys(sections)), **options)
    return _carry_out_orders([order], as_json, wait_s or 0.0, why=why)


@click.command()
@_run_options
@click.option(
    "--alert", type=click.File("rb"), metavar="FILE", help="run the sections for an alert; - reads it from stdin"
)
@click.option("--targets", metavar="all|NAME,...", help="several systems, each with a folder <incident>-<target>")
@common.EXECUTOR
@common.SCHEDULER
@click.option(
    "--workers", type=click.IntRange(1, 64), help="systems at once, with the local executor  [default: one per core]"
)
@click.pass_context
def triage(
    context: click.Context,
    /,
    alert: BinaryIO | None,
    targets: str | None,
    executor: str,
    scheduler: str | None,
    workers: int | None,
    as_json: bool,
    why: bool,
    **options: Any,
) -> int:
    """Run the triage and the sections to which it points.

    What may decide an undecided verdict is run, too. With --alert the routes of runbook.toml choose the sections.

    Exit code: the worst status: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN; 64 for wrong usage.
    """
    given = {n for n in ("target", "incident") if context.get_parameter_source(n) is ParameterSource.COMMANDLINE}
    if targets is None:
        if executor != "local" or scheduler or workers:
            raise UsageError("--executor, --scheduler and --workers need --targets all|NAME,...")
        _start_fork_server()
        if alert:
            return _triage_alert(alert, given, as_json, why=why, **options)
        return _carry_out_orders([_build_order([], **options)], as_json, why=why)
    if alert:
        raise UsageError("--alert and --targets cannot be combined: the alert names its system")
    if "target" in given:
        raise UsageError("--target and --targets cannot be combined")
    if options["incident"] == LATEST:
        raise UsageError("--incident latest and --targets cannot be combined: name the incident")
    _start_fork_server()
    return _triage_many(targets, executor, scheduler, workers or settings.available_cores(), as_json, **options)


def _triage_many(
    targets: str, executor: str, scheduler: str | None, workers: int, as_json: bool, *, incident: str, output: str,
    **options: Any,
) -> int:  # fmt: skip
    """Run a triage for each system and print a line for each, or one JSON list; return the worst exit code."""
    from runbook_lib.book import parameters
    from runbook_lib.runs import executors
    from runbook_lib.store.archive import refuse_reserved

    config = settings.load()
    refuse_reserved(output, incident)
    output = output if "://" in output else str(Path(output).absolute())  # a worker has its own folder
    orders = [
        # By its job, what a worker that died has left is not done again.
        replace(
            _build_order([], incident=f"{incident}-{name}", output=output, **options),
            target=name,
            job=uuid.uuid4().hex,
        )
        for name in _target_names(targets, config)
    ]
    for order in orders:
        parameters.validate(order.parameters | {"incident_id": order.incident})
    ended: dict[str, dict[str, Any]] = {}
    began = time.monotonic()
    with executors.executor_of(executor, scheduler, workers) as doing:
        for order, came in executors.results(doing, executors.carry_out, orders):
            if isinstance(came, Exception):
                problem, unknown = executors.one_line(came), Status.UNKNOWN
                what = {"incident": order.incident, "target": order.target, "problem": problem}
                document = what | {"status": unknown.name, "exit_code": unknown.value}
                came = {"document": document, "index": None, "lines": [unknown.name], "problem": problem}
            ended[order.target], document = came, came["document"]
            if not as_json:
                verdict = paint(came["lines"][0], fg=common.COLOURS[document["status"]])
                draw(f"{visible(order.target)}  {verdict}  {visible(came['index'] or '')}".rstrip() + "\n")
                if document.get("seal"):
                    click.echo(f"  {document['seal']}")
            if came["problem"]:
                click.echo(f"runbook: {order.target}: {came['problem']}", err=True)
            now = time.monotonic()
            if sys.stderr.isatty() and (left := len(orders) - len(ended)):
                words = say("systems.left", n=len(ended), of=len(orders), seconds=left * (now - began) / len(ended))
                draw(f"  {visible(messages.text(words))}\x1b[K\r", err=True)
    return _print_documents([ended[o.target]["document"] for o in orders], as_json, several=True)


def _print_documents(said: list[dict[str, Any]], as_json: bool, *, several: bool) -> int:
    """Print the documents if they are wanted as JSON, a list if there are several; return the worst exit code."""
    if as_json:
        common.say_json(said if several else said[0])
    return int(max((Status[d["status"]] for d in said), key=lambda s: s.rank).value)


def _target_names(targets: str, config: settings.Settings) -> list[str]:
    """Return the systems that `all` or a list of names means. Raises UsageError."""
    names = list(config.targets) if targets == "all" else [t.strip() for t in targets.split(",") if t.strip()]
    if not names:
        raise UsageError("--targets names no system: add targets to runbook.toml")
    known = ["default", "sandbox", *config.targets]
    for name in names:
        if name not in known:
            raise UsageError(f"unknown target '{name}': {did_you_mean(name, known)}")
    return list(dict.fromkeys(names))


def _triage_alert(file: BinaryIO, given: set[str], as_json: bool, *, why: bool, **options: Any) -> int:
    from runbook_lib.notebook.notes import keep_note
    from runbook_lib.privacy.masking import Masker
    from runbook_lib.receiver import alert, routes
    from runbook_lib.store.archive import Archive

    try:
        alerts = alert.read(file.read(alert.MAX_BODY + 1))
    except alert.BadAlert as e:
        raise UsageError(f"{file.name}: {e}") from None
    config, named = settings.load(), {n: options[n] if n in given else "" for n in ("target", "incident")}
    like = _build_order([], **options)
    orders = routes.orders(alerts, config, like, target=named["target"], named=named["incident"])
    for order, own in orders:
        archive = Archive(order.output, order.incident)
        masker = Masker.of(config.target(order.target).urls(), order.incident, archive.salt)
        archive.prepare()  # before the first token is made
        more = f" (+{len(own) - 1})" if len(own) > 1 else ""
        keep_note(archive, masker.scrub_once(own[0].line + more), "alert")
    return _carry_out_orders([order for order, _ in orders], as_json, why=why)


def _start_fork_server() -> None:
    """Start the process that runs are forked from: it imports what they need while this one does the same."""
    from runbook_lib.runs import forks

    forks.context()


def _build_order(numbers: list[str], *, pairs: tuple[str, ...], **fields: Any) -> Order:
    """Return an order for the sections, or for the triage; `fields` are the options that are fields of `Order`."""
    from runbook_lib.book import catalog
    from runbook_lib.model.order import Order

    fields["incident"] = common.resolve_incident(fields["incident"], fields["output"])
    return Order(
        tuple(numbers or [catalog.load().required_section("triage")]),
        follow=not numbers,
        lang=messages.language(),
        parameters=common.parse_parameters(pairs),
        **fields,
    )


def _carry_out_orders(orders: list[Order], as_json: bool, wait_s: float = 0.0, *, why: bool = False) -> int:
    """Carry the orders out and print each result; return the worst exit code.

    With `wait_s` each order is repeated until it is OK; the last result is printed.
    """
    from runbook_lib.cli.progress import carry_out_shown
    from runbook_lib.runs import forks

    said: list[dict[str, Any]] = []
    for order in orders:
        until = time.monotonic() + wait_s
        try:
            while True:
                came = carry_out_shown(order, in_pipe=order.follow and not as_json)
                if not _wait_before_rerun(came["document"], until):
                    break
        except forks.ProcessDiedError:
            left = f"{show_url(order.output)}/{order.incident}"
            raise click.ClickException(f"the run was killed from outside; what it left is in {left}") from None
        said.append(came["document"])
        if not as_json:
            _print_text(came, why=why)
        for problem in [*came["problems"], *([] if came["index"] else [came["problem"]])]:
            click.echo(f"runbook: {problem}", err=True)
    return _print_documents(said, as_json, several=len(said) > 1)


def _wait_before_rerun(document: dict[str, Any], until: float) -> bool:
    """Wait for as long as the findings ask, and say so; return False if the run is OK or the time is up."""
    left = until - time.monotonic()
    if left <= 0 or document["status"] == Status.OK.name:
        return False
    again = min(document["verdict"]["look_again_s"] or LOOK_AGAIN_S, left)
    words = {"status": document["status"], "again": again, "left": left}
    click.echo(f"  {messages.text(say('ui.until_ok', **words))}", err=True)
    time.sleep(again)
    return True


def _print_text(came: dict[str, Any], *, why: bool) -> None:
    """Print what was found, and last what matters first: the verdict, the safe command, its risk, the page."""
    # On a terminal each step has been shown when it ended.
    if why or not (sys.stdout.isatty() and sys.stderr.isatty()):
        for status, line in came["details"]:
            draw(paint(line, fg=common.COLOURS.get(status)) + "\n")
    for line in came["why"] if why else ():
        click.echo(line)
    click.echo()
    first, *rest = came["lines"]
    draw(paint(first, fg=common.COLOURS[came["document"]["status"]], bold=True) + "\n")
    for line in rest:
        click.echo(line)
    click.echo()
    for line in filter(None, (came["draft"], came["document"]["seal"], came["index"])):
        click.echo(line)
