"""`make bench`: what the runbook costs the application beside it, how long an alert waits for its artifact, a burst of
alerts, the triage of many systems, and the plans over a table of millions of rows.

Judges in words, never by its exit code.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from runbook_lib.book import queries

from . import burst, harm, load, many, questions, speed, supervise, timeline
from .fill import Filled

SMALLER = 100  # the small server has this many times fewer rows
SIZES = (1, 10, 100)  # times the rows that there are, by statistics
EVENT_S = 1.0

#: Why targets were missed when they were last looked into.
BECAUSE = {
    "cold": "imports take 1.1 s of one core before a section begins, and two samples 2.5 s where rows wait",
    "warm": "a chart takes up to 0.3 s, and two sections share a core",
    "memory": "one section more than cores runs at once, and kubectl takes 55 MiB",
    "harm": "while no core is idle, statements wait for a time slice of 3 to 5 ms: at p99 beside any work, at p95 here",
    "event": "the command imports for 0.6 s, pandas and SQLAlchemy first",
    "share": "the sessions of the runbook and of the application share the cores that the database has",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000, help="notifications  [default: 5,000,000]")
    parser.add_argument("--systems", type=int, default=many.SYSTEMS, help=f"for `many`  [default: {many.SYSTEMS}]")
    parser.add_argument(
        "only",
        nargs="?",
        choices=("triage", "speed", "harm", "plans", "burst", "many"),
        help="a part alone: the triage, the times and memory, what it does to the application, the plans of ten and a"
        " hundred times the rows, a burst of alerts, the triage of many systems",
    )
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw where the time of the triage goes")
    options = parser.parse_args(arguments)
    scratch = supervise.fork(harm.LIMIT_S if options.only == "harm" else math.inf)
    began = time.monotonic()

    def asked(*parts: str) -> bool:
        return options.only is None or options.only in parts

    # Each is printed when it is known: a bench that is ended loses none.
    with ExitStack() as stack:
        if asked("triage", "speed"):
            _print_triage(speed.triage(scratch / "triage"), options.picture)
        if asked("speed", "harm", "many"):
            small = stack.enter_context(Filled(scratch / "small", options.rows // SMALLER))
        if asked("speed"):
            with Filled(scratch / "delivered", options.rows // SMALLER) as delivered:
                delivered.deliver()
                _print_speed(speed.measure(small, delivered, scratch / "speed"))
        if asked("harm"):
            _harm(small, scratch)
        if asked("plans"):
            with Filled(scratch / "large", options.rows) as large:
                _print_event(questions.event_seconds(large.env, large.admin_url, scratch))
                _print_plans(large, options.rows)
        if asked("burst"):
            _print_burst(burst.measure(scratch / "burst"))
        if asked("many"):
            small.deliver()
            _print_many(many.measure(small, scratch / "many", options.systems))
    _say(f"\nThe bench took {time.monotonic() - began:.0f} s.")


def _print_event(took: float) -> None:
    missed = [f"{took:.1f} s"] if took > EVENT_S else []
    _target(f"`runbook event`: at most {EVENT_S:.1f} s ({took:.1f} s)", missed, BECAUSE["event"])


def _print_plans(filled: Filled, rows: int) -> None:
    """The planner's cost of each question at several sizes, and what the cost gate decides."""
    costs = [questions.plan_costs(filled.database_url, filled.admin_url, times) for times in SIZES]
    limit = questions.BUDGET.max_plan_cost
    _say(
        f"\nThe planner's cost of each question by statistics of so many notifications; of tier `scan`, above"
        f" {limit:,.0f} the gate\nrefuses it, and the step says so."
    )
    lines, over = [], []
    for name in costs[0]:
        tier, each = queries.query(name).cost, [c.get(name, 0.0) for c in costs]
        refused = [tier == "scan" and c > limit for c in each]
        lines.append((name, tier, *(f"{c:,.0f}{' refused' * r}" for c, r in zip(each, refused, strict=True))))
        if tier != "scan" and each[-1] > limit:
            over.append(f"{name} ({each[-1]:,.0f})")
    _table(("question", "tier", *(f"{int(rows * times):,}" for times in SIZES)), lines, left={0, 1})
    _say(
        "    read through an index, most up to a LIMIT, which an estimate of their parts does not know; beyond"
        f" statement_timeout they end: {', '.join(over) or '-'}"
    )


def _print_triage(measured: speed.Triage, picture: Path | None = None) -> None:
    if picture:
        timeline.draw(measured.bars, measured.first_screen[-1], measured.verdict[-1], picture)
    _say("\nImported from nothing, in ms of one core; the packages that take most of it, without what they import.")
    for what, modules in speed.IMPORTED.items():
        whole, packages = speed.imports(modules)
        _say(f"  {what}: {whole:,.0f}; " + ", ".join(f"{name} {ms:,.0f}" for name, ms in packages))
    _say("\nTriage from nothing of a sandbox whose delivery worker has stopped: median of the rounds. Targets")
    for what, limit, took in (
        ("first screen", speed.FIRST_SCREEN_S, measured.first_screen),
        ("verdict", speed.TRIAGE_S, measured.verdict),
    ):
        got = statistics.median(took)
        _target(f"{what}: at most {limit:.1f} s ({got:.1f})", [f"{got:.1f}"] if got > limit else [])
    _say(f"    the archive is written and the command has ended after {statistics.median(measured.ended):.1f} s")


def _print_speed(cases: list[speed.Case]) -> None:
    _say(
        "\nTo the finished artifact, page and dossier included, against `papermill` one notebook after another: from"
        "\nnothing (`runbook run`), and from an alert to a receiver that is up. `one` is section 4.1 where all is"
        "\ndelivered; with a backlog it looks twice, 2.5 s apart. Median of the rounds; memory is the peak of the"
        "\nprocess tree in a round of its own, a shared page counted once."
    )
    lines = []
    for case in cases:
        for name in ("papermill", "cold", "warm"):
            way: speed.Way = getattr(case, name)
            ratio = "-" if name == "papermill" else f"{case.ratio(name):.2f}"
            lines.append((case.name, name, f"{statistics.median(way.seconds):.1f}", ratio, f"{way.mebibytes:.0f}"))
    _table(("sections", "way", "s", "ratio", "MiB"), lines, left={0, 1})
    _say("\nTargets")
    for case in cases:
        for name in ("cold", "warm"):
            if limit := speed.TARGETS.get((name, case.name)):
                got = case.ratio(name)
                _target(
                    f"{case.name}, {name}: at most {limit} of papermill's time ({got:.2f})",
                    [f"{got:.2f}"] if got > limit else [],
                    BECAUSE[name],
                )
            if case.name == "ten":
                peak: float = getattr(case, name).mebibytes
                _target(
                    f"ten, {name}: at most {speed.MEBIBYTES} MiB ({peak:.0f})",
                    [f"{peak:.0f}"] if peak > speed.MEBIBYTES else [],
                    BECAUSE["memory"],
                )


def _harm(small: Filled, scratch: Path) -> None:
    for phase, seconds in harm.database_seconds(small, scratch / "alone").items():
        _say(f"\nThe database works {seconds:.2f} s of one core for {phase}.")
    _say(
        f"\nWhat the application's statements take at {1 / load.EVERY_S:.0f} of each kind a second, in ms: medians of"
        "\nthe rounds so far. `as shipped` all share the cores, and times are held against the idle ones. For `the"
        "\ndatabase's share` the runbook has the last core, everything else the others, and times are held against"
        f"\n`{harm.BUSY}`: a process on each of the runbook's cores that computes as politely and asks nothing."
    )
    kinds = [(kind, p) for kind in harm.KINDS for p in harm.PERCENTILES]
    widths = (20, 14, 10, *(14 for _ in kinds))

    def show(way: harm.Way, phase: str) -> None:
        cells = [
            f"{way.ms(phase, kind, p):.2f}" + ("" if phase == way.against else f" (x{way.ratio(phase, kind, p):.2f})")
            for kind, p in kinds
        ]
        _row((way.name, phase, str(way.statements[phase]), *cells), widths, left={0, 1})

    _row(("way", "meanwhile", "statements", *(f"{kind} p{p}" for kind, p in kinds)), widths, left={0, 1})
    _print_harm(harm.measure(small, scratch / "harm", show))


def _print_harm(ways: list[harm.Way]) -> None:
    _say("\nTargets")
    if len(ways) < len(harm.TARGETS):
        _say("    not measured on one core: the database's share")
    for way in ways:
        for phase, limit in zip(harm.PHASES, harm.TARGETS[way.name], strict=True):
            ratios = {kind: way.ratio(phase, kind, 95) for kind in harm.KINDS}
            _target(
                f"{way.name}, {phase}: p95 at most x{limit} of {way.against} (x{max(ratios.values()):.2f})",
                [f"{kind} x{r:.2f}" for kind, r in ratios.items() if r > limit],
                BECAUSE["harm" if way.against == harm.IDLE else "share"],
            )


def _print_many(course: many.IncidentTimes) -> None:
    parts = ", ".join(f"{s:.0f}" for s in course.seconds)
    grown = (course.scheduler_mib[-1] - course.scheduler_mib[0]) * 1024 / course.systems
    _say(
        f"\nTriage of {course.systems:,} systems over Dask, two workers of two threads, one killed after the first"
        f"\nfifth: {parts} s by fifths. The scheduler's memory: {course.scheduler_mib[0]:.0f} MiB before,"
        f" {course.scheduler_mib[-1]:.0f} after, {grown:.1f} KiB\na system."
    )
    _target(f"{course.systems:,} systems, each once", course.wrong[:5])
    _target("time and memory grow with their number alone", course.bends)


def _print_burst(measured: burst.Burst) -> None:
    alerts, memory = burst.GROUPS * burst.TIMES * burst.ALERTS, ", ".join(f"{m:.0f}" for m in measured.memory)
    _say(
        f"\n{alerts:,} alerts in {burst.GROUPS} groups, the receiver killed {burst.KILLS} times: sent in"
        f" {measured.sent_s:.0f} s, investigated after {measured.seconds:.0f} s.\nThe receiver's memory after each"
        f" fifth of the investigations: {memory} MiB."
    )
    _target(f"each of {burst.GROUPS} groups investigated once", measured.wrong[:5])
    p99 = f"{measured.p99_ms:.0f} ms"
    _target(f"99 of 100 answers within {burst.P99_MS:.0f} ms ({p99})", [p99] * (measured.p99_ms > burst.P99_MS))
    grown = measured.memory[-1] / measured.memory[2] if len(measured.memory) == 5 else 0.0
    _target(f"memory grows at most x{burst.GROWTH} in the last two fifths (x{grown:.2f})",
            [f"x{grown:.2f}"] * (not 0 < grown <= burst.GROWTH))  # fmt: skip


def _target(what: str, missed: list[str], because: str = "") -> None:
    """Print a target as reached or missed; `because` is what is known of why it is missed (docs/speed.md)."""
    _say(f"  {'MISSED ' if missed else 'reached'}  {what}{': ' if missed else ''}{', '.join(missed)}")
    if missed and because:
        _say(f"           because {because}")


def _table(head: Sequence[str], lines: Iterable[Sequence[str]], left: set[int]) -> None:
    lines = [head, *lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        _row(line, widths, left)


def _row(line: Sequence[str], widths: Sequence[int], left: set[int]) -> None:
    side: tuple[Callable[[str, int], str], Callable[[str, int], str]] = (str.rjust, str.ljust)
    _say("  ".join(side[i in left](cell, widths[i]) for i, cell in enumerate(line)).rstrip())


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
