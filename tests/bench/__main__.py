"""`make bench`: what the runbook costs a table of millions of rows and the application beside it, how long an alert
waits for its artifact, and how long another policy takes to be tested on the past.

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

from . import burst, by_hand, harm, load, many, obvious, past, questions, runs, speed, supervise, timeline
from .fill import DAYS, Filled
from .questions import Row
from .runs import Measured

SMALLER = 100  # the small server has this many times fewer rows
MEMORY_SLACK = 0.10
RATIO = 0.1
TENFOLD = 10
SIZES = (1, 10, 100)  # times the rows that there are, by statistics
GROWTH, FEW = 1.5, 20  # buffers: one more level of an index is no growth
SECTIONS = ("4.1", "4.3")  # whose questions have the target

#: Why targets were missed when they were last looked into.
BECAUSE = {
    "cold": "imports take 1.1 s of one core before a section begins, and two samples 2.5 s where rows wait",
    "warm": "a chart takes up to 0.3 s, and two sections share a core",
    "memory": "one section more than cores runs at once, and kubectl takes 55 MiB",
    "harm": "while no core is idle, statements wait for a time slice of 3 to 5 ms: at p99 beside any work, at p95 here",
    "event": "the command imports for 0.6 s, pandas and SQLAlchemy first",
    "share": "the sessions of the runbook and of the application share the cores that the database has",
}

Runs = dict[str, dict[str, Measured]]  # by section, then by how


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000, help="notifications  [default: 5,000,000]")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="fill this folder, or use what it already holds")
    parser.add_argument("--systems", type=int, default=many.SYSTEMS, help=f"for `many`  [default: {many.SYSTEMS}]")
    parser.add_argument(
        "only",
        nargs="?",
        choices=("speed", "triage", "log", "harm", "past", "many", "growth", "plans", "burst"),
        help="a part alone: the times and memory, the triage, a section with a long log, what it does to the"
        " application, the backtest of many dossiers, the triage of many systems, the plans of ten and a hundred times"
        " the rows, a burst of alerts; not part of the whole: what ten times the rows cost each question",
    )
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw where the time of the triage goes")
    options = parser.parse_args(arguments)
    scratch = supervise.fork(harm.LIMIT_S if options.only == "harm" else math.inf)
    began = time.monotonic()
    if options.only:
        with ExitStack() as stack:
            if options.only == "triage":
                return _print_triage(speed.triage(scratch / "triage"), options.picture)
            if options.only == "log":
                return _print_log(*speed.long_log(scratch / "log"))
            if options.only == "burst":
                return _print_burst(burst.measure(scratch / "burst"))
            if options.only == "past":
                return _print_past(past.measure(scratch / "past"))
            if options.only == "growth":
                return _growth(stack, scratch, options.keep or scratch / "large", options.rows)
            if options.only == "plans":
                return _print_plans(
                    stack.enter_context(Filled(options.keep or scratch / "large", options.rows)), options.rows
                )
            small = stack.enter_context(Filled(scratch / "small", options.rows // SMALLER))
            if options.only == "speed":
                _speed(small, scratch, options.rows)
            elif options.only == "many":
                small.deliver()
                _print_many(many.measure(small, scratch / "many", options.systems))
            else:
                _harm(small, scratch)
        return
    with ExitStack() as stack:
        small = stack.enter_context(Filled(scratch / "small", options.rows // SMALLER))
        large = stack.enter_context(Filled(options.keep or scratch / "large", options.rows))
        size = large.table_size("notification.notifications") / 2**30
        _say(f"{options.rows:,} notifications ({size:.2f} GiB) and what belongs to them: {_since(began)} s")
        # Each is printed when it is known: a bench that is ended loses none.
        _speed(small, scratch, options.rows)
        _harm(small, scratch)
        measured = _notebooks(large, small, scratch)
        large.renew_leases()
        rows = list(questions.measure(large.database_url))
        asked = {
            name: sorted(s for s, how in measured.items() if name in how["runbook"].questions) for name in _names(rows)
        }
        late = [r for r in _judged(rows, asked) if _late(r)]
        typed = by_hand.measure(large, scratch / "by-hand")
        large.vacuum()
        vacuumed = list(questions.measure(large.database_url, _names(late)))
        _print_questions(rows, asked)
        _print_notebooks(measured, options.rows)
        _print_targets(rows, vacuumed, asked, measured)
        _print_by_hand(typed)
        _print_plans(large, options.rows)
        _print_burst(burst.measure(scratch / "burst"))
        small.deliver()
        _print_many(many.measure(small, scratch / "many", options.systems))
        _print_past(past.measure(scratch / "past"))
    _say(f"\nThe bench took {_since(began)} s.")


def _growth(stack: ExitStack, scratch: Path, folder: Path, rows: int) -> None:
    """As many rows a day, ten times the days."""
    few = stack.enter_context(Filled(scratch / "few", rows // TENFOLD))
    before = {r.query.name: r for r in questions.measure(few.database_url, besides=False)}
    large = stack.enter_context(Filled(folder, rows, DAYS * TENFOLD))
    large.vacuum()
    after = list(questions.measure(large.database_url, besides=False))
    _say(
        f"\nBuffers of each question at {rows // TENFOLD:,} notifications in {DAYS} days, and at {rows:,} in ten times"
        " as many.\nThose of tier `scan` read a table without an index for them; the gate refuses what is too dear."
    )
    lines, grown = [], []
    for r in after:
        was = before[r.query.name]
        if not r.tuned or not was.tuned:
            lines.append((r.query.name, r.query.cost, "-", "-", "refused" if r.refused else r.error or "-"))
            continue
        ratio = r.tuned.buffers / max(was.tuned.buffers, 1)
        lines.append((r.query.name, r.query.cost, f"{was.tuned.buffers:,}", f"{r.tuned.buffers:,}", f"{ratio:.2f}"))
        if ratio > GROWTH and r.tuned.buffers > was.tuned.buffers + FEW:
            grown.append(f"{r.query.name} ({r.query.cost}, {ratio:.2f})")
    _table(("question", "tier", "before", "after", "ratio"), lines, left={0, 1})
    _target(f"each question at most {GROWTH} times the buffers (or {FEW} more)", grown)


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


def _speed(small: Filled, scratch: Path, rows: int) -> None:
    _print_triage(speed.triage(scratch / "triage"))
    _print_log(*speed.long_log(scratch / "log"))
    with Filled(scratch / "delivered", rows // SMALLER) as delivered:
        delivered.deliver()
        _print_speed(speed.measure(small, delivered, scratch / "speed"))


def _notebooks(large: Filled, small: Filled, scratch: Path) -> Runs:
    found = runs.sections()
    measured: Runs = {}
    if found:  # the first run of all compiles and caches
        runs.by_product(found[0], small, scratch / "warm")
        runs.by_papermill(found[0], small, scratch / "warm")
    for section in found:
        large.renew_leases()
        small.renew_leases()
        measured[section.number] = {
            "runbook": runs.by_product(section, large, scratch / "runbook"),
            "papermill": runs.by_papermill(section, large, scratch / "papermill"),
            "small": runs.by_product(section, small, scratch / "runbook-small"),
        }
        took = ", ".join(f"{way} {m.seconds:.1f} s" for way, m in measured[section.number].items())
        _say(f"  section {section.number}: {took}")
    return measured


def _print_questions(rows: list[Row], asked: dict[str, list[str]]) -> None:
    _say(
        "\nQuestions, warm, median of 3. Buffers of 8 kB. `cost` is the planner's; questions of tier `scan` pass the"
        f"\ngate only up to {questions.BUDGET.max_plan_cost:,.0f}. `Seq Scan` names the large tables that the plan"
        " reads in sequence."
    )
    lines = []
    for r in rows:
        lines.append(
            (
                r.query.name,
                " ".join(asked[r.query.name]) or "-",
                r.query.cost,
                f"{r.plan_cost:,.0f}",
                *((f"{r.tuned.ms:,.1f}", f"{r.tuned.buffers:,}") if r.tuned else ("-", "-")),
                *((f"{r.obvious.ms:,.1f}", f"{r.obvious.buffers:,}") if r.obvious else ("-", "-")),
                "-" if r.ratio is None else f"{r.ratio:.4f}",
                " ".join(sorted(r.tuned.scanned)) if r.tuned and r.tuned.scanned else "none" if r.tuned else "-",
                "refused" if r.refused else r.error or "passes" if r.query.cost == "scan" else r.error or "-",
            )
        )
    _table(
        ("question", "sections", "tier", "cost", "ms", "buffers", "obvious ms", "buffers", "ratio", "Seq Scan", "gate"),
        lines,
        left={0, 1, 2, 9, 10},
    )


def _print_notebooks(measured: Runs, rows: int) -> None:
    _say(
        f"\nNotebooks, headless, {rows:,} rows and {rows // SMALLER:,} rows. Memory: peak of the summed RSS of the"
        "\nprocess tree, sampled every 50 ms (shared pages count once per process). Scans: of the two large tables."
    )
    lines = []
    for number, how in measured.items():
        product, plain, small = how["runbook"], how["papermill"], how["small"]
        lines.append(
            (
                number,
                f"{product.seconds:.1f}",
                f"{plain.seconds:.1f}",
                f"{product.seconds / plain.seconds:.2f}",
                f"{product.mebibytes:.0f}",
                f"{plain.mebibytes:.0f}",
                f"{product.mebibytes / max(plain.mebibytes, 1):.2f}",
                f"{small.mebibytes:.0f}",
                f"{small.seconds:.1f}",
                f"{product.seq_scans}",
                f"{product.index_scans}",
                f"{plain.seq_scans}",
                "; ".join(f"{name}: {m.problem}" for name, m in how.items() if m.problem) or "-",
            )
        )
    _table(
        (
            *("section", "runbook s", "papermill s", "ratio", "runbook MiB", "papermill MiB", "ratio", "small MiB"),
            *("small s", "seq", "index", "papermill seq", "problem"),
        ),
        lines,
        left={0, 12},
    )


def _print_targets(rows: list[Row], vacuumed: list[Row], asked: dict[str, list[str]], measured: Runs) -> None:
    _say("\nTargets")
    judged = _judged(rows, asked)
    own = [r for r in rows if set(asked[r.query.name]) & set(SECTIONS) and r not in judged]
    late = [r for r in judged if _late(r)]
    absent = [s for s in SECTIONS if s not in measured]
    _target(
        f"each question of 4.1 and 4.3 at most 1/10 of the obvious query's buffers ({len(judged)} compared)",
        [f"{r.query.name} ({'not measured' if r.ratio is None else f'{r.ratio:.2f}'})" for r in late]
        + [f"section {s} was not run" for s in absent],
    )
    for r in vacuumed:
        if r.ratio is not None:
            _say(f"    {r.query.name} right after a VACUUM, when index-only scans read no table page: {r.ratio:.2f}")
    for r in own:
        if r.query.cost != "catalog":
            _say(f"    not compared: {r.query.name}: {obvious.ITSELF[r.query.name]}")
    catalog = [r.query.name for r in own if r.query.cost == "catalog"]
    _say(f"    not compared, read no table: {', '.join(catalog) or '-'}")
    refused = [f"{r.query.name} (cost {r.plan_cost:,.0f})" for r in rows if r.refused]
    _say(f"    refused by the cost gate at this size, never run: {', '.join(refused) or '-'}")
    _target(
        "no sequential scan of notifications or outbox_events in any notebook",
        [f"section {n}: {m.seq_scans}" for n, how in measured.items() if (m := how["runbook"]).seq_scans]
        + ([] if measured else ["no notebook was run"]),
    )
    _target(
        f"memory of a run independent of table size (within {MEMORY_SLACK:.0%} of {SMALLER} times fewer rows)",
        [
            f"section {n}: {how['runbook'].mebibytes:.0f} MiB against {how['small'].mebibytes:.0f} MiB"
            for n, how in measured.items()
            if how["runbook"].mebibytes > how["small"].mebibytes * (1 + MEMORY_SLACK)
        ]
        + ([] if measured else ["no notebook was run"]),
    )


def _print_by_hand(asked: list[by_hand.Asked]) -> None:
    _say("\nAsked by hand, in ms: as a command, in a cell of an open notebook, and the bare or obvious query.")
    lines = []
    for a in asked:
        cells = (a.command_s, a.cell_s, a.beside_s)
        lines.append((a.name, *("-" if s is None else f"{s * 1000:,.0f}" for s in cells)))
    _table(("", "command", "cell", "query"), lines, left={0})
    _say("\nTargets")
    for a in asked:
        took = f"{a.counted_s * 1000:,.0f} ms"
        over = "over the bare query " if a.command_s is None else ""
        _target(
            f"{a.name}: {over}at most {a.target_s * 1000:,.0f} ms ({took})",
            [took] if a.counted_s > a.target_s else [],
            BECAUSE["event"] if a.name == "runbook event" else "",
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


def _print_log(before: list[float], after: list[float]) -> None:
    more = statistics.median(after) - statistics.median(before)
    what = "a section that reads 20 MB of log with stack traces"
    missed = [f"{more:.1f}"] if more > speed.LOG_S else []
    _target(f"{what}: at most {speed.LOG_S:.0f} s more than without ({more:.1f})", missed)


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
    for case in cases:
        if case.outside:
            share = statistics.median(case.outside)
            _say(f"Of an alert's time, {case.name}: {share:.0%} is not the notebook's own work.")
        verdict = statistics.median(case.verdicts)
        _say(f"From an alert to its verdict, before pages are rendered, {case.name}: {verdict:.1f} s")
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


def _print_past(tested: past.Tested) -> None:
    took = f"{tested.seconds:.0f} s by the clock, {tested.cpu_s:.0f} s of the cores"
    _say(f"\nA backtest of {past.DOSSIERS} dossiers: {took}")
    late = tested.problem or (f"{tested.alone_s:.0f} s" if tested.alone_s > past.SECONDS else "")
    _target(
        f"{past.DOSSIERS} dossiers tested in at most {past.SECONDS:.0f} s of each of {past.CORES} cores"
        f" ({tested.alone_s / past.SECONDS:.2f} of it)",
        [late] if late else [],
    )


def _print_many(course: many.IncidentTimes) -> None:
    parts = ", ".join(f"{s:.0f}" for s in course.seconds)
    grown = (course.scheduler_mib[-1] - course.scheduler_mib[0]) * 1024 / course.systems
    sent, came = (n / course.systems for n in (course.sent, course.came))
    _say(
        f"\nTriage of {course.systems:,} systems over Dask, two workers of two threads, one killed after the first"
        f"\nfifth: {parts} s by fifths. The scheduler's memory: {course.scheduler_mib[0]:.0f} MiB before,"
        f" {course.scheduler_mib[-1]:.0f} after, {grown:.1f} KiB\na system. Sent {sent:,.0f} bytes a system, and"
        f" {came:,.0f} came back."
    )
    _target(f"{course.systems:,} systems, each once", course.wrong[:5])
    _target("time and memory grow with their number alone", course.bends)
    took = "no browser here" if course.page_s is None else f"{course.page_s:.2f} s"
    late = course.page_s is None or course.page_s > many.PAGE_S
    _target(f"the page of all systems is open within {many.PAGE_S:.0f} s ({took})", [took] if late else [])


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


def _judged(rows: list[Row], asked: dict[str, list[str]]) -> list[Row]:
    """The questions that the target is about: of its sections, reading a table, and not the obvious query itself."""
    return [
        r
        for r in rows
        if set(asked[r.query.name]) & set(SECTIONS) and r.query.cost != "catalog" and r.query.name not in obvious.ITSELF
    ]


def _late(row: Row) -> bool:
    return not row.refused and (row.ratio is None or row.ratio > RATIO)


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


def _names(rows: Iterable[Row]) -> list[str]:
    return [r.query.name for r in rows]


def _since(moment: float) -> str:
    return f"{time.monotonic() - moment:.0f}"


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
