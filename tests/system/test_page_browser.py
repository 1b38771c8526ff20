"""The pages in a browser, from files: barriers, cursor and zoom by keys, narrow screens, dark, print."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner
from playwright.sync_api import Locator, Page, sync_playwright

from runbook_lib.book import messages
from runbook_lib.cli.main import cli
from runbook_lib.dossier import overview, postmortem
from runbook_lib.model.times import moment
from runbook_lib.store.archive import NOTE, Archive
from tests.kit import ROOT, barriers

SAMPLE = ROOT / "outputs" / "sample"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The sample's page with a note of three hours later in it."""
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(SAMPLE, folder / "sample")
    archive = Archive(str(folder), "sample")
    later = moment(archive.artifacts()[-1]["ended"]) + pd.Timedelta("3h")
    archive.add_line(NOTE, {"time": later.isoformat(), "who": "aoki", "text": "called the team", "section": ""})
    overview.write_index(archive)
    return (folder / "sample" / "index.html").as_uri()


@pytest.fixture
def page(browser: str, index: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page; whatever the browser complains of fails the test."""
    complaints: list[str] = []
    options: dict[str, Any] = getattr(request, "param", {})
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page(**options)
        page.on("console", lambda m: complaints.append(m.text))
        page.on("pageerror", lambda e: complaints.append(str(e)))
        page.goto(index)
        yield page
        chromium.close()
    assert complaints == []


@pytest.mark.parametrize(
    "page",
    [{"viewport": {"width": width, "height": 740}, "color_scheme": scheme} for width, scheme in barriers.LOOKS],
    indirect=True,
)
def test_nobody_is_kept_out(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator(".rb-banner button").first.bounding_box()["y"] < 740, "the command is on the first screen"  # type: ignore[index]
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    barriers.none_on(page)


def test_the_cursor_reads_values_out_and_the_keys_zoom(page: Page) -> None:
    box, read = page.locator(".rb-time"), page.locator(".rb-read")

    def width() -> float:
        return float(page.locator("rect.known").first.evaluate("e => +e.getAttribute('width')"))

    box.focus()
    box.press("0")
    box.press("End")
    box.press("ArrowLeft")
    assert "aoki: called the team" in read.inner_text() and read.get_attribute("aria-live") == "polite"
    box.press("Home")
    first = read.inner_text()
    box.press("ArrowRight")
    assert read.inner_text() != first and re.match(r"\d\d:\d\d:\d\dZ · ", read.inner_text())
    whole = width()
    box.press("+")
    assert width() > whole
    box.press("0")
    assert width() == pytest.approx(whole, abs=1)


def test_it_opens_on_the_incident_and_zooms_out_to_the_whole_span(page: Page) -> None:
    shown, button = page.locator(".rb-shown"), page.locator(".rb-whole")
    note, onset = page.locator("g[data-say='aoki: called the team']"), page.locator("g[data-say=onset]")

    def inside(mark: Locator) -> bool:
        place, box = mark.bounding_box(), page.locator(".rb-time").bounding_box()
        assert place and box
        return box["x"] + 0.15 * box["width"] < place["x"] < box["x"] + box["width"]

    incident = shown.inner_text()
    assert inside(onset) and not inside(note), "the note is of much later"
    button.press("Enter")
    assert inside(note) and shown.inner_text() != incident and button.inner_text() == "Zoom in on the incident"
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert inside(onset) and not inside(note) and shown.inner_text() == incident
    assert button.inner_text() == "Zoom out to the whole span"


@pytest.mark.parametrize("page", [{"viewport": {"width": 360, "height": 740}}], indirect=True)
def test_on_a_narrow_screen_the_incident_is_seen_first(page: Page) -> None:
    mark, box = page.locator("g[data-say=onset]").bounding_box(), page.locator(".rb-time").bounding_box()
    names = page.locator(".names rect").bounding_box()
    assert mark and box and names and names["x"] + names["width"] < mark["x"] < box["x"] + box["width"]


def test_the_mouse_reads_values_out_and_zooms(page: Page) -> None:
    place, read = page.locator(".rb-time svg").bounding_box(), page.locator(".rb-read")
    assert place
    known = page.locator("rect.known").first
    before = float(known.evaluate("e => +e.getAttribute('width')"))
    page.mouse.move(place["x"] + 0.6 * place["width"], place["y"] + 60)
    assert re.match(r"\d\d:\d\d:\d\dZ · ", read.inner_text())
    page.keyboard.down("Control")
    page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    page.wait_for_function(f"+document.querySelector('rect.known').getAttribute('width') > {before}")


def test_a_command_is_copied(page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button = page.locator(".rb-banner button").first
    button.click()
    page.wait_for_function("document.querySelector('.rb-banner button').textContent.startsWith('✔')")
    assert page.evaluate("navigator.clipboard.readText()") == button.get_attribute("data-copy")


@pytest.mark.parametrize("page", [{"java_script_enabled": False}], indirect=True)
def test_without_a_script_nothing_is_missing_but_the_cursor(page: Page) -> None:
    assert page.locator(".rb-time svg").is_visible() and page.locator("button:visible").count() == 0
    onset, plot = page.locator("g[data-say=onset]").bounding_box(), page.locator(".rb-time").bounding_box()
    assert onset and plot and 0.15 < (onset["x"] - plot["x"]) / plot["width"] < 0.5, "the incident, not all"
    page.locator(".rb-src summary").first.click()
    assert " --target default --incident sample" in page.locator(".rb-src").first.inner_text()


@pytest.mark.parametrize("page", [{"color_scheme": "dark"}], indirect=True)
def test_printed_it_is_light_and_its_folds_are_open(page: Page) -> None:
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0 and page.locator("button:visible").count() == 0
    assert page.locator("body").evaluate("e => getComputedStyle(e).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")


# The other pages ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every page that a command writes of the sample, in Japanese, but the receiver's."""
    folder = tmp_path_factory.mktemp("pages")
    shutil.copytree(SAMPLE, folder / "sample")
    words = ["report", "--page", str(folder / "report.html"), "--output", str(folder), "--lang", "ja"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code in (0, 1, 2), done.output
    draft = (
        "---\norigin: " + "long" * 60 + "\n---\n# sample\n\n## 1\n\n| a | b |\n|---|---|\n| 1 | " + "long " * 40 + "|\n"
    )
    with messages.using("ja"):
        (folder / "postmortem.html").write_text(postmortem.page(draft, "sample"), encoding="utf-8")
    shutil.copy(next((folder / "sample").glob("*-4.1-*.html")), folder / "artifact.html")
    return folder


@pytest.mark.parametrize("name", ["artifact", "postmortem", "report"])
def test_no_page_keeps_anybody_out(pages: Path, name: str, browser: str) -> None:
    """Narrow, wide, light, dark, and printed."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        for width, scheme in barriers.LOOKS:
            page = chromium.new_page(viewport={"width": width, "height": 740}, color_scheme=scheme)
            page.goto((pages / f"{name}.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} at {width}"
            page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            barriers.none_on(page)
        page.emulate_media(media="print")
        assert page.locator("button:visible").count() == 0
        chromium.close()
