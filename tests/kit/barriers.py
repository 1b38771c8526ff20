"""What keeps somebody from using a page: axe-core's rules, in a browser."""

from __future__ import annotations

from typing import Literal

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

#: The widths and colours in which each page is looked at.
LOOKS: tuple[tuple[int, Literal["light", "dark"]], ...] = (
    (360, "dark"),
    (1280, "light"),
    (1920, "dark"),
    (360, "light"),
)


def none_on(page: Page) -> None:
    """Fail with each barrier and where it stands. Looked at is a copy: some pages reload, or run no JavaScript.

    It has the size and the colours of the page.
    """
    browser, dark = page.context.browser, page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert browser
    copy = browser.new_page(viewport=page.viewport_size, color_scheme="dark" if dark else "light")
    copy.set_content(page.content().replace('http-equiv="refresh"', ""))
    found = Axe().run(copy)
    copy.close()
    assert found.violations_count == 0, found.generate_report()
