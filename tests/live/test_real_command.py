"""What a responder meets first, by the command in a process of its own: a database that refuses, Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from runbook_lib.store.archive import Archive
from tests.kit import command
from tests.kit.breaks import Break, a_section_runs, after, down, environment, frozen, interrupted, swapped
from tests.kit.servers import Servers
from tests.kit.steps import bound


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Servers that these tests alone may break."""
    with Servers(tmp_path_factory.mktemp("private")) as servers:
        servers.ensure_streams()
        yield servers


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (down("postgres"), "postgres (unreachable)"),
        (swapped("RUNBOOK_DATABASE_URL", "runbook:", "runbook:not-the-password"), "postgres (denied)"),
    ],
    ids=["the database is down", "the password is wrong"],
)
def test_a_database_that_cannot_be_read(private: Servers, tmp_path: Path, broken: Break, said: str) -> None:
    env = environment(private) | {"MARK": str(tmp_path)}
    with bound(private.app_nats_url), broken(private, env):
        done = command.alone("run", "4.1", "--incident", "I", "--output", str(tmp_path), env=env, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (3, "")
    lines = done.stdout.splitlines()
    assert f"? UNKNOWN  The location is not known; could not be read: {said}  (confidence none)" in lines
    assert "Next section: 2 Scope and reachability" in lines and lines[-1] == f"{tmp_path}/I/index.html"
    assert command.processes("MARK", str(tmp_path)) == []
    archive = Archive(str(tmp_path), "I")
    assert (archive.partials(), archive.problems()) == ([], [])
    assert {Path(name).suffix for e in archive.artifacts() for name in e["sha256"]} == {".ipynb", ".html", ".json"}
    kept = done.stdout + "".join(p.read_text(encoding="utf-8") for p in (tmp_path / "I").glob("*.*") if p.is_file())
    assert "Traceback" not in kept and "not-the-password" not in kept


def test_ctrl_c_leaves_nothing(private: Servers, tmp_path: Path) -> None:
    env = environment(private)
    with frozen("postgres")(private, env):  # makes the run last
        interrupted(env, ["run", "4.1"], after(0, a_section_runs), signal.SIGINT, tmp_path / "run")
