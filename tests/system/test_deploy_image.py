"""The images of docs/deploy, built with a real Docker engine and run as the manifests run them: as an arbitrary user of
group 0, on a read-only file system, without rights and without a network.

The build has no way to a package registry: what it installs was fetched before, and comes from an index on loopback.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from docker.errors import BuildError  # type: ignore[import-untyped]
from testcontainers.core.docker_client import DockerClient

from runbook_lib.packs.entitlement import ROOT
from tests.kit.containers import engine_problem

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

BASE = os.environ.get("RUNBOOK_TEST_PYTHON_IMAGE", "python:3.12-slim-trixie")
UNREACHABLE = {
    "RUNBOOK_DATABASE_URL": "postgresql://runbook:p4ss@127.0.0.1:1/miniserversystem",
    "RUNBOOK_NATS_URL": "nats://127.0.0.1:1",
}
#: As the manifests have it, with a user id as OpenShift hands them out.
CONFINED: dict[str, Any] = {
    "user": "1000660000:0",
    "read_only": True,
    "tmpfs": {"/tmp": ""},
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "network_mode": "none",
    "mem_limit": "2g",
}


@pytest.fixture(scope="module")
def docker() -> Any:
    if problem := engine_problem():
        if os.environ.get("RUNBOOK_REQUIRE_DOCKER") == "1":
            pytest.fail(f"RUNBOOK_REQUIRE_DOCKER=1 and no Docker engine answers: {problem}", pytrace=False)
        pytest.skip("no Docker engine answers")
    return DockerClient().client


@contextmanager
def index_of(docker: Any, folder: Path) -> Iterator[str]:
    """A package index on loopback with all that the images install, for the Python of their base."""
    program = "import sys; print('%d.%d' % sys.version_info[:2])"
    version = docker.containers.run(BASE, ["python3", "-c", program], remove=True).decode().strip()
    resolve = [
        *(sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "-", "--constraint", "requirements.lock"),
        *(f"--extra={extra}" for extra in ("serve", "dask", "s3", "lab")),
        *("--python-version", version, "--python-platform", "linux", "--no-emit-package", "runbook-notebooks"),
        *("--quiet", "--no-annotate", "--no-header"),
    ]
    # The build's own: uv installs, hatchling makes our wheel, setuptools those of what comes without one.
    own = "uv\nhatchling\nsetuptools\n"
    pinned = subprocess.run(resolve, cwd=ROOT, input=own, capture_output=True, text=True, check=True)
    names = re.findall(r"^([a-z0-9][\w.-]*==[^\s;]+)", pinned.stdout, re.MULTILINE)
    sources, wheels = ([n for n in names if n.startswith("nkeys==") is is_] for is_ in (True, False))
    fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    fetch += [f"--dest={folder / 'files'}"]
    binary = ["--only-binary=:all:", f"--python-version={version}"]
    parts = [*([*binary, *wheels[n::8]] for n in range(8)), ["--no-binary=:all:", *sources]]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda part: subprocess.run([*fetch, *part], check=True), parts))
    for wheel in (folder / "files").iterdir():
        project = folder / "simple" / re.sub(r"[-_.]+", "-", wheel.name.partition("-")[0]).lower()
        project.mkdir(parents=True, exist_ok=True)
        (project / wheel.name).symlink_to(wheel)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/simple/"
        server.shutdown()


def build(docker: Any, containerfile: str, tag: str, index: str, **arguments: str) -> str:
    try:
        docker.images.build(
            path=str(ROOT),
            dockerfile=f"docs/deploy/{containerfile}",
            tag=tag,
            buildargs={"PIP_INDEX_URL": index, "UV_DEFAULT_INDEX": index, **arguments},
            network_mode="host",
            rm=True,
            forcerm=True,
        )
    except BuildError as e:
        pytest.fail("".join(line.get("stream", "") for line in e.build_log)[-3000:], pytrace=False)
    return tag


@pytest.fixture(scope="module")
def images(docker: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The headless image and the one with JupyterLab."""
    tags: list[str] = []
    try:
        with index_of(docker, tmp_path_factory.mktemp("index")) as index:
            tags.append(build(docker, "Containerfile", f"runbook-test/headless:{os.getpid()}", index, BASE=BASE))
            lab = f"runbook-test/lab:{os.getpid()}"
            tags.append(build(docker, "Containerfile.lab", lab, index, IMAGE=tags[0]))
        yield tags[0], tags[1]
    finally:
        for tag in reversed(tags):
            docker.images.remove(tag, force=True)


@contextmanager
def container(docker: Any, image: str, command: list[str], **options: Any) -> Iterator[Any]:
    """A confined container with a volume at /data, as it is made from the image."""
    volume = docker.volumes.create()
    mounts = {volume.name: {"bind": "/data", "mode": "rw"}} | options.pop("mounts", {})
    running = docker.containers.run(image, command, detach=True, volumes=mounts, **{**CONFINED, **options})
    try:
        yield running
    finally:
        running.remove(force=True)
        volume.remove(force=True)


def ended(running: Any, timeout: float = 120) -> tuple[int, str]:
    """Exit code and everything that was printed."""
    code = running.wait(timeout=timeout)["StatusCode"]
    return code, running.logs().decode()


def run(docker: Any, image: str, *command: str, **options: Any) -> str:
    with container(docker, image, list(command), **options) as running:
        code, said = ended(running)
    assert code == 0, said
    return said


def python(docker: Any, image: str, program: str) -> list[str]:
    return run(docker, image, program, entrypoint=["/opt/runbook/bin/python", "-c"]).split()


def files(running: Any, folder: str) -> dict[str, bytes]:
    """The files below a folder of a container, by their path in it."""
    chunks, _ = running.get_archive(folder)
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
        members = [(m.name.partition("/")[2], archive.extractfile(m)) for m in archive if m.isfile()]
        return {name: content.read() for name, content in members if content}


def test_the_command_answers(docker: Any, images: tuple[str, str]) -> None:
    assert "runbook, version" in run(docker, images[0], "--version")
    assert "04_1_not_delivered.ipynb" in run(docker, images[0], "sections")
    assert "runbook serve" in run(docker, images[0], "serve", "--help")


def test_what_is_inside_is_locked_and_lean(docker: Any, images: tuple[str, str]) -> None:
    program = "import importlib.metadata as m; print(*{f'{d.name}=={d.version}' for d in m.distributions()})"
    locked = re.findall(r"^([\w.-]+==\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    headless, lab = (
        {re.sub(r"[-_.]+", "-", d.lower().partition("==")[0]): d for d in python(docker, image, program)}
        for image in images
    )
    known = {re.sub(r"[-_.]+", "-", d.partition("==")[0]): set[str]() for d in locked}
    for d in locked:
        known[re.sub(r"[-_.]+", "-", d.partition("==")[0])].add(d.partition("==")[2])
    for name, own in lab.items():
        assert name == "runbook-notebooks" or own.partition("==")[2] in known[name]
    assert headless.items() <= lab.items()
    assert {"starlette", "uvicorn", "distributed", "s3fs", "papermill"} <= set(headless)
    for tool in ("jupyterlab", "jupyter-server", "pip", "uv", "hatchling", "pytest", "mypy", "playwright"):
        assert tool not in headless
    assert {"jupyterlab", "jupyter-server"} <= set(lab) and not {"pip", "uv", "hatchling"} & set(lab)
    # Nothing is compiled at each start: the file system could not keep it.
    compiled = "import runbook_lib.notebook.session, pandas, json; print(pandas.__cached__, json.__cached__)"
    paths = python(docker, images[0], compiled)
    python(docker, images[0], f"import pathlib; assert all(pathlib.Path(p).exists() for p in {paths})")


def test_an_unreachable_target_is_unknown_and_kept(docker: Any, images: tuple[str, str]) -> None:
    with container(docker, images[0], ["run", "2", "--incident", "drill"], environment=UNREACHABLE) as running:
        code, said = ended(running)
        kept = files(running, "/data/outputs")
    assert code == 3, said
    assert "UNKNOWN" in said and "p4ss" not in said and "Traceback" not in said
    assert "drill/index.html" in kept
    (notebook,) = [name for name in kept if name.endswith(".ipynb")]
    assert re.fullmatch(r"drill/\d{8}T\d{6}(\.?\d*)Z-2-UNKNOWN(-\d+)?\.ipynb", notebook), notebook


POST = """
import json, sys, urllib.error, urllib.request
alert = {"status": "firing", "labels": {"alertname": "ServiceDown"}, "startsAt": "2026-01-31T03:00:00Z",
         "endsAt": "0001-01-01T00:00:00Z", "annotations": {}, "fingerprint": "1", "generatorURL": ""}
body = {"version": "4", "status": "firing", "receiver": "runbook", "groupKey": "{}:{}", "groupLabels": {},
        "commonLabels": {}, "commonAnnotations": {}, "externalURL": "", "truncatedAlerts": 0, "alerts": [alert]}
def ask(path, token=None, data=None):
    headers = {"Content-Type": "application/json"} | ({"Authorization": "Bearer " + token} if token else {})
    try:
        request = urllib.request.Request("http://127.0.0.1:9095" + path, data, headers)
        return urllib.request.urlopen(request, timeout=5).status
    except urllib.error.HTTPError as e:
        return e.code
    except OSError:
        return 0
"""


def test_the_receiver_as_the_manifest_runs_it(docker: Any, images: tuple[str, str], tmp_path: Path) -> None:
    """With the shipped routes, secrets in files: an alert is taken, looked into and kept; SIGTERM is an orderly end."""
    secrets = {"receiver/token": "t0ken", "receiver/notify-urls": "", "target/database-url": "", "target/nats-url": ""}
    secrets |= {f"target/{k[8:-4].lower().replace('_', '-')}-url": v for k, v in UNREACHABLE.items()}
    for name, content in secrets.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    mounts = {
        str(tmp_path / "receiver"): {"bind": "/run/secrets/receiver", "mode": "ro"},
        str(tmp_path / "target"): {"bind": "/run/secrets/target", "mode": "ro"},
        str(ROOT / "docs" / "deploy" / "runbook.toml"): {"bind": "/etc/runbook/runbook.toml", "mode": "ro"},
    }
    environment = {
        "RUNBOOK_CONFIG": "/etc/runbook/runbook.toml",
        "RUNBOOK_RECEIVER_TOKEN": "file:/run/secrets/receiver/token",
        "RUNBOOK_UNATTENDED": "1",
    } | yaml.safe_load((ROOT / "docs" / "deploy" / "names.yaml").read_text(encoding="utf-8"))["spec"]["environment"]
    command = ["serve", "--host", "0.0.0.0", "--port", "9095", "--output", "/data/outputs"]
    command += ["--journal", "/data/receiver.db"]
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)

    with container(docker, images[0], command, environment=environment, mounts=mounts) as running:

        def ask(what: str) -> str:
            done = running.exec_run(["/opt/runbook/bin/python", "-c", POST + what])
            return str(done.output.decode().strip())

        def wait_for(what: str, seconds: float = 90) -> None:
            until = time.monotonic() + seconds
            while ask(f"print(bool({what}))") != "True":
                assert time.monotonic() < until, f"{what}: {running.logs().decode()}"
                time.sleep(0.5)

        wait_for("ask('/readyz') == 200")
        assert ask("print(ask('/healthz'), ask('/metrics'), ask('/', 't0ken'))") == "200 401 200"
        sent = "data=json.dumps(body).encode()"
        assert ask(f"print(ask('/alertmanager', None, {sent}), ask('/alertmanager', 't0ken', {sent}))") == "401 202"
        wait_for("__import__('glob').glob('/data/outputs/*/*-verdict-*.json')")
        running.stop(timeout=30)
        code, said = ended(running)
        kept = set(files(running, "/data"))
    assert code == 0, said
    assert "Traceback" not in said and "p4ss" not in said and "t0ken" not in said
    assert "receiver.db" in kept
    sections = {m[1] for name in kept if (m := re.search(r"Z-([\d.]+)-[A-Z]+\.ipynb$", name))}
    assert {"2", "3"} <= sections, sorted(kept)


def test_jupyterlab_answers_inside(docker: Any, images: tuple[str, str]) -> None:
    program = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8888/api', timeout=5).status)"
    command = ["lab", "--incident", "INC-1", "--", "--no-browser"]
    with container(docker, images[1], command, environment=UNREACHABLE) as running:
        until = time.monotonic() + 180
        while (done := running.exec_run(["/opt/runbook/bin/python", "-c", program])).exit_code:
            assert time.monotonic() < until, running.logs().decode()
            time.sleep(0.5)
    assert done.output.strip() == b"200"
