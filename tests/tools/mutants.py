"""Change what decides in one place at a time, and count the changes that the tests or the recordings notice.

The quick tests and the replay run once to learn which of them reach which line. Each mutant, imported in a process
of its own, then meets those that reach it, the most specific first, up to the first that fails.
"""

import argparse
import ast
import importlib
import os
import pickle
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib.machinery import SourceFileLoader
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from coverage import Coverage

ROOT, CORES = Path(__file__).resolve().parents[2], os.cpu_count() or 2
#: What decides: judges and evidence, diagnosis and statistics, masking, seal and approvals.
PARTS = ("packs/entitlement/checks/*", "packs/entitlement/evidence/*", "packs/entitlement/missing", "diagnosis/*",
         "checks/cases", "privacy/*", "dossier/seal", "governance/approval", "governance/ledger")  # fmt: skip
FILES = [str(file) for part in PARTS for file in sorted((ROOT / "runbook_lib").glob(f"{part}.py"))]
ROOMS = ("judges", "engine", "governance", "live", "replay/test_replay.py", "replay/test_states.py")
QUICK = ["-m", "not slow and not docker and not served and not lint", *(f"tests/{room}" for room in ROOMS)]
#: A function with such a parameter reads servers: no quick test is about it.
READS = {"rb", "db"}
#: Tests that a mutant meets at most, of the replay and of the others; seconds of one, after which it hangs, and fails.
MOST, LIMIT_S = {True: 150, False: 250}, 60
#: What no mutant changes and every process needs: imported once.
PRELOADED = ("hypothesis", "matplotlib.pyplot", "nats", "nbformat", "pandas", "papermill", "psycopg", "requests",
             "pydantic_settings", "sqlalchemy", "starlette.applications", "testcontainers.core.container")  # fmt: skip
#: In a process that learns: where what it has learnt is kept, and the lines that are reached.
KEPT = os.environ.get("RUNBOOK_MUTANTS", "")
MEASURED = Coverage(data_file=None, include=FILES)
if KEPT:
    MEASURED.start()
PAIRS = ((ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.In, ast.NotIn), (ast.Is, ast.IsNot),
         (ast.BitAnd, ast.BitOr))  # fmt: skip
SHIFTED: dict[type, type] = dict([*PAIRS, *((b, a) for a, b in PAIRS)])


def edits(node: Any, function: str = "") -> Iterator[tuple[Any, str, str, Callable[[], object]]]:
    """Yield each change within a tree: the node, its function, what changes, and what makes the change."""
    items: list[Any] = []
    match node:
        case ast.FunctionDef():
            if READS & {a.arg for a in node.args.args} or (node.returns and "Chart" in ast.unparse(node.returns)):
                return
            function = node.name
        case ast.BoolOp(values=items) | ast.comprehension(ifs=items) | ast.Match(cases=[_, _, *_] as items):
            pass
        case ast.Call(func=ast.Subscript(value=ast.Name("Cases")), args=items):
            pass
        case ast.Tuple(elts=[_, _, *_] as elements) | ast.Set(elts=[_, _, *_] as elements) if not function:
            items = elements
        case (
            ast.Subscript(value=ast.Name("Literal"))
            | ast.keyword(arg="strict")
            | ast.If(test=ast.Name("TYPE_CHECKING"))
        ):
            return
        case ast.If() | ast.IfExp():
            yield node.test, function, "negated", lambda: setattr(node, "test", ast.UnaryOp(ast.Not(), node.test))
        case ast.Compare(ops=[op]) if type(op) in SHIFTED:
            yield node, function, "shifted", lambda: setattr(node, "ops", [SHIFTED[type(op)]()])
        case ast.BinOp(op=ast.BitAnd() | ast.BitOr() as op):
            yield node, function, "shifted", lambda: setattr(node, "op", SHIFTED[type(op)]())
        case ast.Constant(value=bool() | int() | float() as old):
            new = not old if isinstance(old, bool) else old + 1
            yield node, function, f"is {new}", lambda: setattr(node, "value", new)
    for n, item in enumerate(items):
        leave_out: Callable[[], object] = partial(items.pop, n)
        if isinstance(node, ast.BoolOp):  # one operand alone does not compile
            leave_out = partial(items.__setitem__, n, ast.Constant(isinstance(node.op, ast.And)))
        yield getattr(item, "pattern", item), function, "left out", leave_out
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and name not in ("annotation", "returns", "decorator_list"):
                yield from edits(child, function)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begin the lines of another test."""
    if KEPT:
        MEASURED.switch_context(re.sub(r"@[^@\[\]]+$", "", item.nodeid))  # without the group that xdist adds


def pytest_sessionfinish() -> None:
    """Keep what each line was reached by."""
    if KEPT:
        MEASURED.stop()
        data = MEASURED.get_data()
        reached = {path: data.contexts_by_lineno(path) for path in data.measured_files()}
        Path(KEPT, str(os.getpid())).write_bytes(pickle.dumps(reached))


def learn() -> dict[str, dict[int, list[str]]]:
    """Run all tests once; return the names of those that reach each line of a file."""
    with TemporaryDirectory() as folder:
        line = [sys.executable, "-m", "pytest", "-q", f"-n{CORES}", "-p", "tests.tools.mutants", *QUICK]
        if subprocess.run(line, env=os.environ | {"RUNBOOK_MUTANTS": folder}, check=False).returncode:
            raise SystemExit("a test fails without any change: see `make test`")
        reached: dict[str, dict[int, list[str]]] = {path: {} for path in FILES}
        for part in Path(folder).iterdir():
            for path, lines in pickle.loads(part.read_bytes()).items():
                for n, names in lines.items():
                    reached[path].setdefault(n, []).extend(filter(None, names))
        return reached


def start(path: str, n: int, tests: list[str]) -> int:
    """Start a process that has a module with its n-th change and ends with 0 if these tests pass; return its pid."""
    tree = ast.parse(Path(path).read_bytes())
    [*edits(tree)][n][3]()
    changed, usual = compile(ast.fix_missing_locations(tree), path, "exec"), SourceFileLoader.get_code
    if pid := os.fork():
        return pid
    code = 70
    with suppress(BaseException):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        SourceFileLoader.get_code = lambda file, name: changed if file.path == path else usual(file, name)  # type: ignore
        code = int(pytest.main(["-x", "-q", "-n0", "-p", "no:cacheprovider", f"--timeout={LIMIT_S}", *tests]))
    os._exit(code)


def main() -> None:
    """Print each mutant that nobody notices, and how many are noticed by whom."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("n", type=int, nargs="?", default=100, help="how many mutants (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="of files with this in their path")
    asked, begun = parser.parse_args(), time.monotonic()
    os.chdir(ROOT)
    trees = {path: ast.parse(Path(path).read_bytes()) for path in FILES if asked.only in path}
    places = [(path, n, *edit[:3]) for path, tree in trees.items() for n, edit in enumerate(edits(tree))]
    chosen = random.Random(asked.seed).sample(places, min(asked.n, len(places)))
    reached = learn()
    for name in PRELOADED:
        importlib.import_module(name)
    print(f"{time.monotonic() - begun:.0f} s: {len(chosen)} of {len(places)} changes", flush=True)
    lines = Counter(name for names_by_line in reached.values() for names in names_by_line.values() for name in names)
    noticed: dict[Any, set[str]] = {which: set() for which in chosen}
    jobs = [(which, replayed) for which in reversed(chosen) for replayed in (True, False)]
    running: dict[int, tuple[Any, bool]] = {}
    while jobs or running:
        if jobs and len(running) < CORES:
            which, replayed = jobs.pop()
            path, n, node, function, _ = which
            count = Counter(name for names in reached[path].values() for name in names)
            inside = range(node.lineno, node.end_lineno + 1) if function else reached[path]
            found = {name for line in inside for name in reached[path].get(line, ())}
            if found := {name for name in found if ("/replay/" in name) is replayed}:
                # First those that reach the fewest lines of the file, or little beside the file.
                word = str(getattr(node, "value", ""))
                order = sorted(
                    found,
                    key=lambda name: count[name] if function else (word not in name, lines[name] / count[name]),
                )
                running[start(path, n, order[: MOST[replayed]])] = which, replayed
        else:
            pid, code = os.wait()
            which, replayed = running.pop(pid)
            noticed[which] |= {"replay" if replayed else "unit"} if code else set()
    for (path, _, node, function, change), by in noticed.items():
        if not by:
            print(f"{Path(path).relative_to(ROOT)}:{node.lineno} {function}: {change}: {ast.unparse(node)[:90]}")
    count = Counter(" and ".join(sorted(by)) or "nobody" for by in noticed.values())
    print(f"{time.monotonic() - begun:.0f} s; noticed by", *(f"{who}: {n}" for who, n in count.most_common()), sep="  ")


if __name__ == "__main__":
    main()
