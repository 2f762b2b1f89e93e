"""The page as a browser sees it, opened from disk."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from example_contents import everything, hostile, least, pictures, trajectory
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from stages.report.page import write_report

DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    DRIVER is None or shutil.which("chromium") is None,
    reason="chromium or chromedriver is not installed (apt-get install chromium chromium-driver)",
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDTHS = (400, 1400)
REPORTS = {
    "everything": everything,
    "colour": lambda: least(pictures=pictures(3, 32, images=9), trajectories=(trajectory(3, 32, steps=20),)),
    "least": least,
    "hostile": hostile,
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module", params=REPORTS, ids=str)
def page(request, tmp_path_factory) -> Path:
    return write_report(REPORTS[request.param](), tmp_path_factory.mktemp("report")).page


def resize(browser: webdriver.Chrome, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_from_disk_without_complaint_and_fits(browser, page, width, scheme):
    browser.get_log("performance")
    resize(browser, width)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(page.as_uri())
    assert browser.get_log("browser") == []
    asked = [entry["message"] for entry in browser.get_log("performance") if "requestWillBeSent" in entry["message"]]
    assert [message for message in asked if '"url":"http' in message] == []
    assert browser.execute_script("return innerWidth") == width
    assert browser.execute_script("return document.scrollingElement.scrollWidth") <= width
    browser.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert browser.execute_script("return document.scrollingElement.scrollWidth") <= width
    assert browser.execute_script("return [...document.images].filter(each => !each.naturalWidth).length") == 0


def test_every_figure_is_labelled_and_visible(browser, page):
    browser.get(page.as_uri())
    untitled = (
        "return [...document.querySelectorAll('figure')].filter(f => !f.querySelector('figcaption')?.textContent)"
    )
    assert browser.execute_script(f"{untitled}.length") == 0
    drawn = "return [...document.querySelectorAll('figure svg')].map(s => [s.ariaLabel, s.getBBox().width > 100])"
    found = browser.execute_script(drawn)
    assert found
    assert all(label and wide for label, wide in found)


def test_labels_of_figures_are_legible_on_a_phone(browser, page):
    resize(browser, 400)
    browser.get(page.as_uri())
    heights = """return [...document.querySelectorAll('figure svg text')]
        .filter(t => t.textContent.trim() && t.getBoundingClientRect().width)
        .map(t => parseFloat(getComputedStyle(t).fontSize) * Math.hypot(t.getScreenCTM().c, t.getScreenCTM().d))"""
    assert min(browser.execute_script(heights)) >= 8


def test_pictures_are_large_enough_to_see(browser, page):
    for width in WIDTHS:
        resize(browser, width)
        browser.get(page.as_uri())
        sizes = browser.execute_script("return [...document.images].map(each => each.clientWidth)")
        assert all(shown >= 48 for shown in sizes)


def test_the_print_holds_the_recipe_and_fits_its_pages(browser, page):
    browser.get(page.as_uri())
    resize(browser, 700)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        overflow = "return document.scrollingElement.scrollWidth - innerWidth"
        assert browser.execute_script(overflow) <= 0
        tables = "return [...document.querySelectorAll('.recipe table')]"
        assert all(
            height > 0
            for height in browser.execute_script(f"{tables}.map(each => each.checkVisibility() && each.clientHeight)")
        )
        wider = "return [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
        assert browser.execute_script(wider) == 0
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
