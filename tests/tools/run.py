"""Run the tests, then each one that failed once more, alone, when everything else is over.

    python -m tests.tools.run [PATH ...]   what is deterministic, of these files: `make test`
    python -m tests.tools.run --all        everything, with a table at the end: `make test-all`

A test that fails and then passes is UNSTEADY: its name is printed at the end. More than three of them, a test that
fails twice, and whatever else pytest ends with (a file that cannot be imported, an interrupt) fail the run.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

UNSTEADY_MOST = 3
#: More failures than this are no accident: none of them is tried again.
RETRIED_MOST = 20
#: Workers: more than two cores, because most tests wait; their sandboxes and servers are busy, too.
WORKERS = 5
#: What `make test-all` tries beside the tests themselves.
COMMANDS = {
    "make lint": ["make", "--no-print-directory", "lint"],
    "make docs": ["make", "--no-print-directory", "docs"],
}
#: What xdist adds to the id of a test in a group.
_GROUP = re.compile(r"@[^@\[\]]+$")


@dataclass
class Tried:
    """What became of a test, or of a command that is one: `passed`, `failed` or `skipped`; seconds of all tries."""

    result: str
    seconds: float = 0.0
    tries: int = 1


class Outcomes:
    """A plugin of pytest that notes each test's outcome by its id, and the files that could not be imported."""

    def __init__(self) -> None:
        self.tests: dict[str, Tried] = {}
        self.unread: set[str] = set()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a file of which no test is known."""
        if report.failed:
            self.unread.add(report.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the outcome: a test has failed if any of its phases has."""
        test = self.tests.setdefault(_GROUP.sub("", report.nodeid), Tried("passed"))
        test.seconds += report.duration
        if report.failed or (report.skipped and test.result != "failed"):
            test.result = report.outcome


def run(paths: Sequence[str], everything: bool, workers: int) -> int:
    """Run the tests and print what became of them. Returns the exit code."""
    commands: dict[str, Tried] = {}
    which = "not lint" if everything else "not lint and not slow and not docker"
    if everything:
        os.environ["RUNBOOK_TEST_ALL"] = "1"
        commands = {name: _try_command(line) for name, line in COMMANDS.items()}
    seen = Outcomes()
    code = int(pytest.main(["-n", str(workers), "-m", which, *paths], plugins=[seen]))
    failed = [name for name, test in seen.tests.items() if test.result == "failed"]
    if len(failed) <= RETRIED_MOST:
        for name in failed:
            _try_again(seen.tests[name], [sys.executable, "-m", "pytest", "-n", "0", "-q", "--durations", "0", name])
    for name, test in commands.items():
        if test.result == "failed":
            _try_again(test, COMMANDS[name])
    tests = commands | {name: Tried("failed") for name in seen.unread} | seen.tests
    if everything:
        print("", *_table(tests), sep="\n")
    return _conclude(tests, code)


def _try_command(line: list[str]) -> Tried:
    began = time.monotonic()
    done = subprocess.run(line, check=False)
    return Tried("failed" if done.returncode else "passed", time.monotonic() - began)


def _try_again(test: Tried, line: list[str]) -> None:
    print(f"\nonce more, alone: {line[-1]}", flush=True)
    again = _try_command(line)
    test.result, test.seconds, test.tries = again.result, test.seconds + again.seconds, 2


def _table(tests: dict[str, Tried]) -> Iterator[str]:
    """Yield a row per test that failed at a try, and one per file for the others: test, result, seconds, tries."""
    alone = {name: test for name, test in tests.items() if test.tries > 1 or test.result == "failed"}
    files: dict[str, list[Tried]] = {}
    for name, test in tests.items():
        if name not in alone:
            files.setdefault(name.partition("::")[0], []).append(test)
    rows = [("test", "result", "seconds", "tries")]
    for name, those in files.items():
        counted = Counter(test.result for test in those)
        result = ", ".join(f"{n} {result}" for result, n in sorted(counted.items()))
        rows.append((name, result, f"{sum(test.seconds for test in those):.0f}", "1"))
    rows += [(name, test.result, f"{test.seconds:.0f}", str(test.tries)) for name, test in alone.items()]
    widths = [max(len(row[n]) for row in rows) for n in range(3)]
    for name, result, seconds, tries in rows:
        yield f"{name:<{widths[0]}}  {result:<{widths[1]}}  {seconds:>{widths[2]}}  {tries}"


def _conclude(tests: dict[str, Tried], code: int) -> int:
    counted = Counter(test.result for test in tests.values())
    unsteady = [name for name, test in tests.items() if test.result == "passed" and test.tries > 1]
    print("")
    for name, test in tests.items():
        if test.result == "failed":
            print(f"FAILED {name}" + (" (twice)" if test.tries > 1 else ""))
    if len(unsteady) > UNSTEADY_MOST:
        print(f"more than {UNSTEADY_MOST} tests passed only at the second try")
    print(f"total: {counted['passed']} passed, {counted['failed']} failed, {counted['skipped']} skipped")
    for name in unsteady:
        print(f"UNSTEADY {name}")
    if code and (code != pytest.ExitCode.TESTS_FAILED or not (unsteady or counted["failed"])):
        return code  # no test is to blame
    return 1 if counted["failed"] or len(unsteady) > UNSTEADY_MOST or not counted["passed"] else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="also what depends on how long things take")
    parser.add_argument("paths", nargs="*", metavar="PATH", help="of these files or folders only")
    parser.add_argument("--workers", type=int, default=WORKERS, help="default: %(default)s")
    given = parser.parse_args()
    sys.exit(run(given.paths, given.all, given.workers))
