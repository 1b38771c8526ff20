"""JupyterLab as a responder has it: `runbook lab` in a real browser, on a sandbox that works and then does not.

RUNBOOK_SCREENSHOTS=DIR keeps the pictures of the README.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
import pytest
import requests
from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright
from playwright.sync_api import TimeoutError as Late

from runbook_lib.book import catalog
from runbook_lib.gameday.sandbox import faults
from runbook_lib.gameday.sandbox.sandbox import Sandbox
from runbook_lib.gameday.sandbox.state import free_ports
from runbook_lib.notebook.notes import keep_note
from runbook_lib.store.archive import NOTE, Archive
from tests.kit import ROOT, barriers, sandboxes
from tests.kit.command import alone

pytestmark = pytest.mark.slow

INCIDENT, NOTEBOOK, FIRST = "INC-1", "04_1_not_delivered.ipynb", "4.1.1"
#: Of the sandbox only its addresses: commands are those of a cluster, as in the pictures of the README.
TARGET = """
[targets.production]
database_url = "env:PRODUCTION_DATABASE_URL"
nats_url = "env:PRODUCTION_NATS_URL"
nats_monitor_url = "env:PRODUCTION_NATS_MONITOR_URL"

[targets.production.workloads]
context = "production"
"""
#: Milliseconds for whatever takes a kernel and two servers; this machine may be busy.
PATIENCE = 60_000


@pytest.fixture(scope="module")
def sandbox(browser: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """A sandbox with little past."""
    with sandboxes.running(tmp_path_factory.mktemp("sandbox"), hours=0.5) as sandbox:
        yield sandbox


@dataclass(frozen=True)
class Server:
    """A running `runbook lab`."""

    url: str
    token: str
    folder: Path  # the git checkout in which it was started
    log: Path

    @property
    def archive(self) -> Archive:
        return Archive(str(self.folder / "outputs"), INCIDENT)

    def page(self, notebook: str) -> str:
        return f"{self.url}/lab/tree/{notebook}?token={self.token}"


@pytest.fixture(scope="module")
def server(browser: str, sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`runbook lab` in a checkout of its own, its personal settings apart from those of whoever runs the tests."""
    folder, own = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("jupyter")
    shutil.copy(ROOT / ".gitignore", folder)
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    (folder / "runbook.toml").write_text(TARGET)
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "-m", "notebooks")
    path = own / "config/lab/user-settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"windowingMode": "none"}))  # every cell is in the page
    (port,) = free_ports(1)
    found = Server(f"http://127.0.0.1:{port}", os.urandom(8).hex(), folder, own / "log")
    command = [sys.executable, "-m", "runbook_lib", "lab", "--target", "production", "--incident", INCIDENT, "--"]
    options = [f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={found.token}"]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RUNBOOK_", "JUPYTER_"))} | {
        **{k.replace("RUNBOOK_", "PRODUCTION_"): v for k, v in sandbox.state.env.items()},
        "PYTHONPATH": str(ROOT),
        **{f"JUPYTER_{kind.upper()}_DIR": str(own / kind) for kind in ("config", "data", "runtime")},
        "IPYTHONDIR": str(own / "ipython"),
    }
    with found.log.open("w") as log:
        running = psutil.Popen(
            [*command, "--no-browser", "--allow-root", *options], cwd=folder, env=env, stdout=log, stderr=log
        )
    try:
        eventually(lambda: requests.get(f"{found.url}/api", timeout=2).ok, "the server answers", found.log)
        yield found
    finally:
        family = [*running.children(recursive=True), running]
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        for process in psutil.wait_procs(family, timeout=10)[1]:
            process.kill()


@pytest.fixture(scope="module")
def opened(browser: str, server: Server) -> Iterator[Page]:
    """A browser with the notebook of section 4.1 open and run from the top."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(PATIENCE)
        page.goto(server.page(NOTEBOOK))
        ready(page)
        run_all(page)
        yield page
        chromium.close()


@pytest.fixture
def page(opened: Page, request: pytest.FixtureRequest, tmp_path: Path, server: Server) -> Iterator[Page]:
    """The page; when a test fails, what it showed."""
    before = request.session.testsfailed
    yield opened
    if request.session.testsfailed > before:
        opened.screenshot(path=tmp_path / "page.png", full_page=True)
        print(opened.locator(".jp-Notebook").inner_text())
        print(server.log.read_text()[-3000:], f"{tmp_path}/page.png", sep="\n")


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def eventually(holds: Callable[[], bool], what: str, log: Path | None = None, timeout: float = 120) -> None:
    until = time.monotonic() + timeout
    while True:
        with suppress(requests.RequestException):
            if holds():
                return
        assert time.monotonic() < until, f"waited for: {what}\n{log.read_text()[-3000:] if log else ''}"
        time.sleep(0.2)


def cell(page: Page, source: str) -> Locator:
    return page.locator(".jp-CodeCell").filter(has=page.locator(".jp-InputArea-editor", has_text=source))


def ready(page: Page) -> None:
    cell(page, "rb.conclude()").wait_for()
    page.get_by_text("(ipykernel) | Idle").wait_for()


def prompt(of: Locator) -> str:
    return of.locator(".jp-InputPrompt").first.inner_text()


def run(page: Page, source: str, *, done: bool = True) -> Locator:
    """Run one cell as a person does; returns it when it is `done`, or at once."""
    found = cell(page, source)
    before = prompt(found)
    found.locator(".cm-content").click()
    page.keyboard.press("Control+Enter")
    ended = re.compile(rf"^(?!{re.escape(before)}$)\[\d+\]:$")
    if done:
        found.locator(".jp-InputPrompt").filter(has_text=ended).first.wait_for()
    return found


def add(page: Page, source: str, *, done: bool = True) -> Locator:
    """Run a responder's own cell, below all others."""
    page.locator(".jp-CodeCell").last.locator(".cm-content").click()
    page.keyboard.press("Escape")
    page.keyboard.press("b")
    page.keyboard.press("Enter")
    page.keyboard.insert_text(source)
    return run(page, source, done=done)


def run_all(page: Page) -> None:
    before = prompt(cell(page, "rb.conclude()"))
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    done = re.compile(rf"^(?!{re.escape(before)}$)\[\d+\]:$")
    cell(page, "rb.conclude()").locator(".jp-InputPrompt").filter(has_text=done).first.wait_for()


def save(page: Page) -> None:
    with page.expect_response(lambda r: "/api/contents/" in r.url and r.request.method == "PUT") as saved:
        page.keyboard.press("Control+s")
    assert saved.value.ok


def banner(page: Page) -> Locator:
    return cell(page, "open_section").locator(".rb-banner")


def shot(page: Page, top: Locator, height: int, path: Path) -> None:
    """A small picture that begins with a cell."""
    page.set_viewport_size({"width": 1280, "height": height})
    top.evaluate("e => e.scrollIntoView({block: 'start'})")
    Image.open(io.BytesIO(page.screenshot())).quantize(96).save(path, optimize=True)


def runs(server: Server) -> list[str]:
    return [e["name"] for e in server.archive.artifacts() if e.get("interactive")]


def test_the_verdict_stands_on_top_and_the_charts_below(page: Page) -> None:
    assert "OK" in banner(page).inner_text()
    assert banner(page).locator(".rb-strip li").count() == 6
    for step in catalog.load().sections["4.1"].steps:
        assert step.id in cell(page, f'rb.step("{step.id}")').locator(".rb-card").inner_text()
    charts = page.locator(".jp-OutputArea-output img")
    assert charts.count() == 1
    assert all(charts.nth(i).evaluate("e => e.naturalWidth > 100") for i in range(charts.count()))


def test_the_start_page_leads_on_by_keyboard_alone(opened: Page, server: Server) -> None:
    page = opened.context.browser.new_page(viewport={"width": 1280, "height": 800})  # type: ignore[union-attr]
    keep_note(server.archive, "the payments desk is awake", "oncall")
    page.goto(f"{server.url}/?token={server.token}")
    assert page.url.startswith(f"{server.url}/runbook/{INCIDENT}/") and "payments desk" in page.inner_text("body")
    rows = page.locator("tr", has=page.locator('a[href^="/lab/tree/"]'))
    assert rows.count() == len(catalog.load().runnable())
    barriers.none_on(page)
    while page.evaluate("document.activeElement.innerText || ''").split(" ")[0] != "4.1":
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/lab/tree/{NOTEBOOK}")
    page.close()
    anyone = requests.get(f"{server.url}/runbook/{INCIDENT}/", timeout=5)
    assert "login" in anyone.url and "payments" not in anyone.text


def test_the_servers_own_requests_pass_with_their_token_against_forgery(server: Server) -> None:
    """A save and a kernel's start, as the page sends them: a cookie, and its token in a header."""
    with requests.Session() as session:
        session.get(f"{server.url}/lab?token={server.token}", timeout=30).raise_for_status()
        copy, kernels = f"{server.url}/api/contents/02_scope.ipynb", f"{server.url}/api/kernels"
        notebook = session.get(copy, timeout=30).json()
        notebook["content"]["cells"].append({"cell_type": "markdown", "metadata": {}, "source": "a person's"})
        model = {"type": "notebook", "format": "json", "content": notebook["content"]}
        assert (
            session.put(copy, json=model, timeout=30).status_code
            == session.post(kernels, timeout=30).status_code
            == 403
        )
        session.headers["X-XSRFToken"] = session.cookies["_xsrf"]
        assert session.put(copy, json=model, timeout=30).status_code == 200
        assert "a person's" in (server.archive.local / "lab" / "02_scope.ipynb").read_text()  # type: ignore[operator]
        started = session.post(kernels, json={"name": "python3"}, timeout=30)
        assert started.status_code == 201
        assert session.delete(f"{kernels}/{started.json()['id']}", timeout=30).status_code == 204


def test_an_idle_kernel_holds_no_connection(page: Page, sandbox: Sandbox) -> None:
    add(page, "1 + 1")  # it lives

    def held() -> list[str]:
        with psycopg.connect(sandbox.state.addresses.admin_url) as db:
            rows = db.execute(
                "SELECT application_name, state FROM pg_stat_activity WHERE application_name ~ '^runbook'"
            )
            sessions = [f"{name}: {state}" for name, state in rows]
        url = f"{sandbox.state.addresses.nats_monitor_url}/connz"
        clients = [c.get("name") or "" for c in requests.get(url, timeout=2).json()["connections"]]
        return sessions + [c for c in clients if c.startswith("runbook")]

    eventually(lambda: not held(), "no connection of the runbook", timeout=5)


def test_a_step_runs_alone_twice_and_in_any_order(page: Page) -> None:
    verdict = banner(page).inner_text()
    for step in ("4.1.4", FIRST, FIRST):
        shown = run(page, f'rb.step("{step}")')
        assert shown.locator(".rb-card").count() == 1
        assert step in shown.locator(".rb-card").inner_text()
    assert banner(page).inner_text().split("\n")[0] == verdict.split("\n")[0]


def test_a_note_is_a_line_of_the_incident(page: Page, server: Server) -> None:
    shown = add(page, 'rb.note("paged the payments team")')
    assert "paged the payments team" in shown.locator(".jp-OutputArea").inner_text()
    (note,) = [n for n in server.archive.lines(NOTE) if n["text"] == "paged the payments team"]
    assert note["section"] == "4.1"


def test_a_run_is_archived_once_without_a_save_and_a_reload_shows_it(page: Page, server: Server) -> None:
    run(page, f'rb.step("{FIRST}")')
    archived = runs(server)
    assert re.fullmatch(r"\d{8}T\d{6}Z-4\.1(\.\d+)?-OK", archived[-1])
    names = server.archive.names()
    assert {f"{archived[-1]}.ipynb", f"{archived[-1]}.html", "index.html"} <= set(names)
    assert f"{archived[-1]}.html" in server.archive.read("index.html").decode()
    add(page, "# nothing of the runbook's own")
    save(page)
    assert runs(server) == archived
    done = alone("verify", INCIDENT, "--output", server.archive.output)
    assert done.returncode == 3, done.stderr  # nobody was told of its seal
    page.reload()
    ready(page)
    strip = banner(page).locator(".rb-strip")
    assert strip.evaluate("e => getComputedStyle(e).display") == "flex"


def test_git_stays_clean(page: Page, server: Server) -> None:
    save(page)
    assert git(server.folder, "status", "--porcelain") == ""


def test_the_verdict_follows_a_parameter_and_a_step(page: Page, server: Server, sandbox: Sandbox) -> None:
    parameters = cell(page, "window_minutes = 60")
    source = parameters.locator(".cm-content").inner_text()
    parameters.locator(".cm-content").click()
    page.keyboard.press("Control+a")
    page.keyboard.insert_text(source.replace("window_minutes = 60", "window_minutes = 15"))
    run(page, "window_minutes = 15")
    faults.inject(sandbox, "worker_stopped")
    until = time.monotonic() + 60
    while True:
        run(page, "open_section(")
        run(page, f'rb.step("{FIRST}")')
        run(page, "rb.conclude()")
        with suppress(Late):
            banner(page).get_by_text("CRITICAL").first.wait_for(timeout=2000)
            break
        assert time.monotonic() < until, banner(page).inner_text()
    assert "15 min before" in cell(page, "open_section(").locator(".jp-OutputArea").inner_text()
    steps = cell(page, "rb.conclude()").locator(".jp-OutputArea").inner_text()
    assert "4.1.2" in steps and "not_run" in steps
    save(page)
    assert runs(server)[-1].endswith("-CRITICAL")
    kept_run = json.loads(server.archive.read(f"evidence/{runs(server)[-1]}.json"))
    found = {f["step"]: f for f in kept_run["findings"]}
    assert found[FIRST]["status"] == "CRITICAL" and found["4.1.2"]["frames"] == {}
    if pictures := os.environ.get("RUNBOOK_SCREENSHOTS"):
        run_all(page)
        shot(page, cell(page, "open_section("), 800, Path(pictures) / "lab.png")
        shot(page, cell(page, f'rb.step("{FIRST}")'), 1060, Path(pictures) / "lab-step.png")
        with psycopg.connect(sandbox.state.addresses.admin_url) as db:
            row = db.execute("SELECT event_id FROM notification.notifications ORDER BY created_at DESC LIMIT 1")
            (waiting,) = row.fetchone() or ("",)
        shot(page, add(page, f'rb.event("{waiting}")'), 760, Path(pictures) / "journey.png")
        watching = add(page, "rb.watch(every_s=5)", done=False)
        page.wait_for_timeout(15_000)
        shot(page, watching, 460, Path(pictures) / "watch.png")
        page.set_viewport_size({"width": 1280, "height": 860})
        page.goto(f"{server.url}/runbook/{INCIDENT}/")
        shot(page, page.locator("h1"), 860, Path(pictures) / "lab-start.png")
