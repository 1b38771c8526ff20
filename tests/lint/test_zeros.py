"""No form of code makes a zero of what was not read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import runbook_lib
from tests.kit.syntax import DECIDING, called

ENGINE = Path(runbook_lib.__file__).parent
#: Where something is decided: the packs, and of the engine what asks, reads and weighs.
FILES = sorted(
    {
        *(path for path in DECIDING if "cli" not in path.parts),
        *(
            path
            for part in ("actions", "analysis", "checks", "model", "sources")
            for path in (ENGINE / part).glob("*.py")
        ),
        *(ENGINE / f"{name}.py" for name in ("catalog", "context", "outcome", "rows", "session")),
    }
)
TALLY = "a tally: what was not met before has been met 0 times"
SERIES = "counts by minute: a minute without a row had none, and the frame was read"
#: Zeros that are real, by file and form, each with why.
REAL = {
    "account.py": {"enters.get(hop, 0)": "a hop where nothing enters beside what comes from the one before"},
    "backlog.py": {"max(seen.worker.tries, default=0)": "nothing that waits was tried"},
    "consistency.py": {
        "max((len(f) for f in frames if f is not None and f.attrs.get('capped')), default=0)": "no answer was cut"
    },
    "counterfactual.py": {
        "about.get(name, 0.0)": "an observation that was not weighed yet",
        "scores.get(place, 0.0)": "a place that no observation speaks of",
    },
    "database.py": {
        "max(waited + held_s, default=0.0)": "nobody waits, where those who do were asked for",
        "pivot_table(index='application', columns='state', values='n', aggfunc='sum', fill_value=0)": TALLY,
    },
    "dead_letters.py": {
        "max((r.n for r in retries), default=0.0)": "nothing is due, where what is due was asked for",
        "tried[name].get(tries, 0.0)": TALLY,
        "tried.get(name, {}).get(int(a), 0.0)": TALLY,
    },
    "exceptions.py": {
        "per_minute.get((minute, phrase or text), 0)": TALLY,
        "by.get('failed', 0.0)": "a counter that never counted has no series",
        "by.get('retry_scheduled', 0.0)": "a counter that never counted has no series",
        "reindex(span, fill_value=0)": SERIES,
    },
    "history.py": {"fillna(0.0)": SERIES, "shift(fill_value=0.0)": "before the first bucket is bucket -1"},
    "impact.py": {
        "0.0 if share is None else share": "an objective that is no share allows nothing",
        "0.0 if never is None else never['surely']": "a lower bound, and a note says so",
        "reindex(range(-1, span.buckets), fill_value=0.0)": SERIES,
        "fillna(0.0)": "no event, no bad one",
        "0.0 if began is None else math.ceil((span.until - began).total_seconds() / 60)": "none was given up",
        "max(span.of(begin), 0) if begin is not None else 0": "a bucket, and no measured number",
    },
    "context.py": {"header.get('behind_s', 0.0)": "recordings from before there was a replica"},
    "leases.py": {"max(values, default=0.0)": "nobody holds anything, where the holders were asked for"},
    "sample.py": {
        "min((w.silent_s for w in self.silent if w.silent_s is not None), default=0.0)": "the cautious side: just fell",
        "min((s for s in began if s is not None), default=0.0)": "nobody is missed",
        "given.limits['clock.offset'].critical or 0.0": "no limit, no allowance",
    },
    "past.py": {"fillna(0.0)": SERIES, "reindex(range(-1, self.buckets), fill_value=0.0)": SERIES},
    "postgres.py": {
        "db.place.behind_s or 0.0": "None is a primary, which is behind nobody",
        "self.place.behind_s or 0.0": "None is a primary, which is behind nobody",
    },
    "response.py": {
        "max((s.weight for s in f.signals if s.about == stuck_at), default=0.0)": "it says nothing about the place",
        "max((s.weight for s in f.signals if s.about == place), default=0.0)": "it says nothing about the place",
        "reindex(index, fill_value=0.0)": SERIES,
        "0.0 if failed is None else failed": "a counter that never counted has no series",
        "return 0.0": SERIES,
    },
    "services.py": {
        "found.get(how, 0.0)": TALLY,
        "before.get(how, 0.0)": "a counter begins at 0",
        "grown.get('none', 0.0)": TALLY,
        "max((s.value for s in self._of_worker(name, worker)), default=0.0)": "no series, no such run",
        "max((last.most(_ACTIVE_MAX, w) for w in others if last.most(_ACTIVE, w) > 0), default=0.0)": "as above",
    },
    "session.py": {
        "max((c.behind_s for c in self.context.clocks.values()), default=0.0)": "no clock, no replica",
        "numbers.get('settle.questions', 0)": "a runbook without the number asks nothing more",
        "numbers.get('settle.time', 0)": "a runbook without the number asks nothing more",
    },
    "stream.py": {"max((len(s) for s in spans.values()), default=0)": "a number of rounds"},
    "throttle.py": {"reindex(starts, fill_value=0.0)": SERIES, "return 0.0": "minutes until what is broken already"},
    "workloads.py": {"n or 0": "an uptime names its days only where there are some"},
}  # fmt: skip


def zero(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float) and str(node.value) in ("0", "0.0")


def of_absence(test: ast.AST) -> bool:
    """Whether a condition asks if something is there."""
    return any(
        (isinstance(n, ast.Constant) and n.value is None)
        or (isinstance(n, ast.Compare) and getattr(n.comparators[0], "id", "") == "frames")
        or (isinstance(n, ast.Attribute) and n.attr == "empty")
        or (isinstance(n, ast.Call) and called(n) == "isinstance")
        for n in ast.walk(test)
    )


def zeros_for_absence(tree: ast.AST) -> Iterator[str]:
    """Forms that make 0 of what is not there."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BoolOp):
            if isinstance(node.op, ast.Or) and zero(node.values[-1]):
                yield ast.unparse(node)
        elif isinstance(node, ast.IfExp):
            if (zero(node.body) or zero(node.orelse)) and of_absence(node.test):
                yield ast.unparse(node)
        elif isinstance(node, ast.If):
            if of_absence(node.test) and any(
                isinstance(n, ast.Return) and n.value and zero(n.value) for n in node.body
            ):
                yield "return 0.0"
        elif isinstance(node, ast.Call):
            fallback = called(node) in ("get", "getattr", "next", "pop", "setdefault") and len(node.args) > 1
            filled = called(node) in ("fillna", "nan_to_num") and any(map(zero, node.args))
            named = any(k.arg in ("default", "fill_value", "value") and zero(k.value) for k in node.keywords)
            if filled or (named and any(k.arg == "fill_value" for k in node.keywords)):
                yield f"{called(node)}({ast.unparse(node).rpartition(f'{called(node)}(')[2]}"
            elif (fallback and zero(node.args[-1])) or named:
                yield ast.unparse(node)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(p.parents[2])))
def test_no_form_of_code_makes_zero_of_what_is_not_there(path: Path) -> None:
    found = set(zeros_for_absence(ast.parse(path.read_text(encoding="utf-8")))) - {*REAL.get(path.name, {})}
    assert not found, f"{path.name}: None where it was not read; if the zero is real, say in REAL why"


def test_each_zero_that_is_called_real_is_there() -> None:
    there = {(p.name, form) for p in FILES for form in zeros_for_absence(ast.parse(p.read_text(encoding="utf-8")))}
    assert not {(name, form) for name, forms in REAL.items() for form in forms} - there


@pytest.mark.parametrize(
    "code",
    [
        "x = lag or 0", "x = (missed or 0) - lag", "x = d.get('n', 0)", "x = getattr(row, 'n', 0.0)",
        "x = max(s, default=0)", "x = s.fillna(0)", "x = s.fillna(value=0)", "x = s.reindex(i, fill_value=0)",
        "x = n if n is not None else 0", "x = 0 if n is None else n",
        "x = frames['n'] if 'n' in frames else 0.0", "x = next((n for n in s), 0)", "x = int(row or 0)",
        "x = v if isinstance(v, float) else 0.0",
        "def f(x):\n    if x is None:\n        return 0.0",
    ],
)  # fmt: skip
def test_the_guard_finds_each_form(code: str) -> None:
    assert list(zeros_for_absence(ast.parse(code)))


@pytest.mark.parametrize("code", ["x = a or b", "x = d.get('n')", "x = max(s, default=None)", "x = 0 if a > b else 1"])
def test_the_guard_leaves_others_alone(code: str) -> None:
    assert not list(zeros_for_absence(ast.parse(code)))
