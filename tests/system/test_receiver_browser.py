"""The receiver's page and the dossiers behind it, in a browser that runs no JavaScript.

RUNBOOK_SCREENSHOTS=DIR keeps the picture of the README.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from runbook_lib.receiver.auth import Auth
from runbook_lib.receiver.work import Job
from runbook_lib.sources.settings import Settings
from runbook_lib.store.archive import Archive
from tests.kit import ROOT, barriers
from tests.kit.serving import NOWHERE, Running, one, running, webhook

TOKEN = "a-token-for-the-browser"
SENT = {"content-type": "application/json", "authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def receiver(browser: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A receiver with one incident of each kind."""
    folder = tmp_path_factory.mktemp("receiver")
    config = Settings(targets={**NOWHERE, "staging": NOWHERE["production"]})
    with running(folder, Auth(token=TOKEN), config=config) as here:

        def post(*alerts: dict[str, object], group: str) -> None:
            assert here.post(webhook(*alerts, group=group), headers=SENT).status_code == 202

        def job() -> Job:
            found = here.journal.next_job(time.time(), ())
            assert found
            return found

        said = json.loads(next((ROOT / "outputs" / "sample").glob("*-verdict-*.json")).read_text())["verdict"]
        well = said | {"status": "OK", "stuck_at": None, "confidence": "high", "failure_modes": []}

        for status in ("firing", "resolved"):
            post(one("OutboxLagging", status), group="a")
            here.journal.conclude(job(), well, time.time() + 9)
        keep(here, here.journal.incidents()[0].id)

        post(one("ReplicaLag", runbook_target="staging"), group="b")
        full = "the archive cannot be written: No space left on device"
        here.journal.conclude(job(), None, time.time() + 31, problem=full)

        pods = [one("NotificationsNotDelivered", incident="INC-1", pod=f"notification-{n}") for n in range(3)]
        for _ in range(4):
            post(*pods, group="c")
        here.journal.conclude(job(), said, time.time() + 14)
        keep(here, "INC-1")

        post(one("DeadLettersGrowing", runbook_target="staging"), group="d")
        yield here


def keep(here: Running, incident: str) -> None:
    shutil.copytree(ROOT / "outputs" / "sample", Path(here.output) / incident)


@pytest.fixture
def page(browser: str, receiver: Running) -> Iterator[Page]:
    """A page of somebody who knows the token; whatever the browser complains of fails the test."""
    complaints: list[str] = []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        context = chromium.new_context(
            java_script_enabled=False,
            http_credentials={"username": "oncall", "password": TOKEN},
            viewport={"width": 1280, "height": 860},
        )
        page = context.new_page()
        page.on("console", lambda m: complaints.append(m.text))
        page.on("response", lambda r: complaints.append(f"{r.url} {r.status}") if r.status >= 400 else None)
        yield page
        chromium.close()
    assert complaints == []


def test_at_a_glance(page: Page, receiver: Running) -> None:
    page.goto(receiver.url)
    cards = page.locator("article")
    assert cards.count() == 4
    located = page.locator("#INC-1")
    assert "✖ CRITICAL" in located.locator("h2").inner_text()
    assert "confidence" in located.locator("h2").inner_text()
    assert located.locator(".rb-strip li").count() == 6 and located.locator(".rb-strip li.stuck").count() == 1
    assert "alerts: 3, repeats: 9" in located.inner_text()
    assert "✖ given up" in page.locator("article", has_text="ReplicaLag").inner_text()
    assert "No space left on device" in page.locator("article", has_text="ReplicaLag").inner_text()
    assert "○ waiting" in page.locator("article", has_text="DeadLettersGrowing").inner_text()
    assert page.locator("a.dossier").count() == 2
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 1280
    if pictures := os.environ.get("RUNBOOK_SCREENSHOTS"):
        picture = Image.open(io.BytesIO(page.screenshot(full_page=True)))
        picture.quantize(96).save(Path(pictures) / "receiver.png", optimize=True)
    page.set_viewport_size({"width": 390, "height": 800})  # a telephone
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_text("日本語").click()
    assert "ここで詰まり" in page.locator("#INC-1").inner_text()


def test_from_the_page_to_the_evidence(page: Page, receiver: Running) -> None:
    page.goto(receiver.url)
    page.locator("#INC-1 a.dossier").click()
    assert page.url.endswith("/incidents/INC-1/index.html")
    assert page.locator(".rb-strip").first.evaluate("e => getComputedStyle(e).display") == "flex"
    page.locator('a[href*="-4.1-"]', has_text="html").click()
    assert page.locator(".rb-banner").first.evaluate("e => getComputedStyle(e).borderTopStyle") == "solid"
    images = page.locator("img")
    assert images.count() >= 1
    assert all(images.nth(i).evaluate("e => e.naturalWidth > 100") for i in range(images.count()))
    page.go_back()
    with page.expect_download() as download:
        page.get_by_role("link", name="ipynb").last.click()
    assert download.value.suggested_filename.endswith(".ipynb")


def test_nobody_is_kept_out(page: Page, receiver: Running) -> None:
    for width, scheme in barriers.LOOKS:
        page.set_viewport_size({"width": width, "height": 740})
        page.emulate_media(color_scheme=scheme)
        page.goto(receiver.url)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
        barriers.none_on(page)
    page.locator("#INC-1 a.dossier").click()
    barriers.none_on(page)
    page.locator('a[href*="-4.1-"]', has_text="html").click()
    barriers.none_on(page)


def test_what_stands_in_a_dossier_runs_nothing_and_loads_nothing(browser: str, receiver: Running) -> None:
    hostile = (
        "<title>as it was</title><script>document.title = 'run'</script><img src='/healthz?loaded'>"
        "<a href='javascript:document.title=1'>x</a><svg onload='document.title = 2'></svg>"
        "<form action='/alertmanager' method='post'><input type='submit'></form><iframe src='/healthz?framed'></iframe>"
    )
    Archive(receiver.output, "INC-1").write("hostile.html", hostile.encode())
    asked: list[str] = []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        context = chromium.new_context(http_credentials={"username": "oncall", "password": TOKEN})
        page = context.new_page()
        page.on("response", lambda r: asked.append(r.url))
        page.goto(f"{receiver.url}incidents/INC-1/hostile.html")
        page.locator("a").click()
        assert page.title() == "as it was"
        page.locator("input").evaluate("e => e.click()")  # a real click would wait for where it leads
        page.wait_for_timeout(300)
        assert page.url.endswith("hostile.html")
        chromium.close()
    assert [url for url in asked if not url.endswith(("hostile.html", "favicon.ico"))] == []
