"""``cocu browse`` as people see it: a real browser on desktop and phone, with keys, an edit, and no word in its console."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import pytest

from curation.wordlists import read_concepts

pytest.importorskip("uvicorn", reason="browse needs the extra browse")
playwright = pytest.importorskip("playwright.sync_api", reason="a browser is driven by playwright")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def served(finished, tmp_path_factory):
    """The address of a server, and the file that edits go to."""
    folder = tmp_path_factory.mktemp("served")
    options = ["--edits", str(folder / "edited.csv"), "--cache", str(folder / "cache")]
    server = subprocess.Popen(
        [sys.executable, "-m", "cocu", "browse", str(finished), *options], stdout=subprocess.PIPE, text=True
    )
    try:
        yield server.stdout.readline().strip(), folder / "edited.csv"
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield opened
        opened.close()


@pytest.fixture(params=[(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop", "phone"])
def page(request, browser, served):
    """The first page, on a screen; fails for whatever its console says."""
    size, scheme = request.param
    page = browser.new_page(viewport=size, color_scheme=scheme)
    page.set_default_timeout(120_000)
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(served[0])
    yield page
    page.close()
    assert said == []


def fits(page):
    """No page scrolls sideways, and every picture that is in view has been loaded."""
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    # Each is decoded, or raises; to wait for a condition would need eval, which the pages forbid.
    page.evaluate(
        "Promise.all([...document.images].filter((image) => image.getBoundingClientRect().top < innerHeight)"
        ".map((image) => image.decode()))"
    )
    return True


def test_a_search_a_gallery_an_image(page):
    assert fits(page)
    page.keyboard.press("/")
    page.keyboard.type("apple")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search?q=apple*")
    assert fits(page)
    assert page.locator(".grid li").count() == 48

    page.locator("#by").select_option("concept")
    page.locator("#q").press("Enter")
    page.wait_for_url("**/concept?name=apple")
    assert page.locator("h1").inner_text() == "apple"
    page.get_by_role("link", name="clusters").click()
    page.wait_for_url("**view=clusters")
    assert fits(page)

    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_url("**/image/*")
    assert fits(page)
    assert "apple" in page.locator(".archive").inner_text()
    page.locator(".archive .why a").first.click()
    assert page.locator(".grid li:target").count() == 1


def test_an_edit_by_keys(page, served):
    page.get_by_role("link", name="Vocabulary").click()
    page.get_by_role("link", name="concept", exact=True).click()
    page.wait_for_url("**sort=concept*")
    assert fits(page)
    page.keyboard.press("j")
    page.keyboard.press("x")
    page.wait_for_url("**#c=apple")
    assert page.evaluate("document.activeElement.dataset.name") == "apple"
    assert "apple" not in read_concepts(str(served[1]))
    page.keyboard.press("u")
    page.locator("tr[data-name=apple].kept").wait_for()
    assert "apple" in read_concepts(str(served[1]))


def test_the_keys_are_listed(page):
    page.keyboard.press("?")
    assert "next page" in page.locator("dialog").inner_text()
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
