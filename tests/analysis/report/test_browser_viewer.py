"""The viewer of pictures in a browser: two versions, a divider, one zoom for both, and the maps of the error."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from analysis.report.forms import forms
from analysis.report.html.details import Details
from analysis.report.pictures import Pixels, Strip
from tests.harness.browser import complaints, emulated, opened, requests, without_javascript
from tests.harness.strips import SIDE, a_strip

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SECONDS = 60
# The baseline of the first strip has larger errors than its cells.
STRIPS = {"one.png": a_strip(errors=(0.02, 0.05)), "other.png": a_strip(colours=1, scale=1, picture="boat")}
TEXT = "# Study\n\n<details>\n<summary>Pictures</summary>\n\n![one](one.png)\n\n![other](other.png)\n\n</details>\n"
PIXEL = """
const [canvas, across, down] = arguments;
const [x, y] = [Math.floor(across * canvas.width), Math.floor(down * canvas.height)];
return [...canvas.getContext("2d").getImageData(x, y, 1, 1).data];
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with two strips, folded as in a report."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    files = {"report.md": TEXT.encode(), **dict.fromkeys(STRIPS, b"")}
    path.write_bytes(forms(files, Details(strips=STRIPS))["report.html"])
    return path


def unfolded(browser: webdriver.Chrome, page: Path) -> list[WebElement]:
    """Load the page, unfold the pictures, and return the canvas of each viewer once it shows something."""
    opened(browser, page)
    browser.find_element(By.TAG_NAME, "summary").click()

    def drawn(_: webdriver.Chrome) -> list[WebElement]:
        found = browser.find_elements(By.CSS_SELECTOR, ".viewer canvas")
        ready = len(found) == len(STRIPS) and all(canvas.accessible_name for canvas in found)
        return found if ready else []

    canvases: list[WebElement] = WebDriverWait(browser, SECONDS).until(drawn)
    return canvases


def pixel(browser: webdriver.Chrome, canvas: WebElement, across: float, down: float) -> list[int]:
    """The colour and opacity of the canvas at these parts of its width and height."""
    found: list[int] = browser.execute_script(PIXEL, canvas, across, down)
    return found


def tile(strip: Strip, title: str) -> Pixels:
    """A picture of the strip, from 0 to 255."""
    return np.rint(255 * next(tile.pixels for tile in strip.tiles if tile.title == title))


def choose(panel: WebElement, side: str, label: str) -> None:
    Select(panel.find_element(By.XPATH, f".//label[starts-with(., '{side}')]/select")).select_by_visible_text(label)


def panel_of(canvas: WebElement) -> WebElement:
    return canvas.find_element(By.XPATH, "./parent::div")


def shown(
    browser: webdriver.Chrome, canvas: WebElement, row: int, column: int, part: Sequence[float] = (0, 0, SIDE)
) -> list[int]:
    """The colour where the canvas shows a pixel of the truth, if it shows the ``part`` of so many from top, left."""
    top, left, side = part
    return pixel(browser, canvas, (column + 0.5 - left) / side, (row + 0.5 - top) / side)[:3]


def test_a_divider_shows_one_picture_on_its_left_and_another_on_its_right(
    browser: webdriver.Chrome, page: Path
) -> None:
    with emulated(browser, 1440):
        canvas, other = unfolded(browser, page)
        panel, strip = panel_of(canvas), STRIPS["one.png"]
        before = pixel(browser, other, 0.1, 0.1)
        choose(panel, "Left", "truth")
        choose(panel, "Right", "bad cell")
        truth, cell = tile(strip, "truth"), tile(strip, "bad cell")
        assert shown(browser, canvas, 3, 5) == truth[3, 5].tolist()
        assert shown(browser, canvas, 3, 40) == cell[3, 40].tolist()
        assert "bad cell" in panel.text
        assert "29.00 dB on Set5" in panel.text

        divider = panel.find_element(By.CSS_SELECTOR, "input[type=range]")
        divider.send_keys(Keys.HOME, *[Keys.ARROW_RIGHT] * 3)
        assert divider.get_attribute("ariaValueText") == "3 % truth, 97 % bad cell"
        assert shown(browser, canvas, 3, 5) == cell[3, 5].tolist()

        wide = canvas.size["width"]
        drag = ActionChains(browser, duration=0).move_to_element_with_offset(canvas, 0, -wide // 2 + 20)
        drag.click_and_hold().move_by_offset(round(0.4 * wide), 0).release().perform()
        assert divider.get_attribute("value") == "90"
        assert shown(browser, canvas, 3, 40) == truth[3, 40].tolist()
        assert pixel(browser, other, 0.1, 0.1) == before


def test_both_sides_are_zoomed_and_moved_together(browser: webdriver.Chrome, page: Path) -> None:
    with emulated(browser, 1440):
        canvas, _ = unfolded(browser, page)
        panel, strip = panel_of(canvas), STRIPS["one.png"]
        choose(panel, "Left", "truth")
        choose(panel, "Right", "good cell")
        truth, cell = tile(strip, "truth"), tile(strip, "good cell")
        panel.find_element(By.XPATH, ".//button[. = 'Frame']").click()
        top, left, rows, columns = strip.place
        assert panel.find_element(By.TAG_NAME, "output").text == "300 %"
        for row in (top + 1, top + rows - 2):
            there = (top, left, rows)
            assert shown(browser, canvas, row, left + 1, there) == truth[row, left + 1].tolist()
            assert shown(browser, canvas, row, left + columns - 2, there) == cell[row, left + columns - 2].tolist()

        canvas.send_keys("0", "+", "+", *[Keys.ARROW_LEFT] * 20, *[Keys.ARROW_UP] * 20)
        corner = (0, 0, SIDE / 2.25)
        assert shown(browser, canvas, 2, 2, corner) == truth[2, 2].tolist()
        assert shown(browser, canvas, 2, 18, corner) == cell[2, 18].tolist()
        wheel = {"deltaY": -100, "ctrlKey": True, "bubbles": True, "cancelable": True}
        browser.execute_script("arguments[0].dispatchEvent(new WheelEvent('wheel', arguments[1]))", canvas, wheel)
        assert panel.find_element(By.TAG_NAME, "output").text == "318 %"
        panel.find_element(By.XPATH, ".//button[. = 'Whole']").click()
        assert shown(browser, canvas, 3, 40) == cell[3, 40].tolist()


@pytest.mark.parametrize("name", STRIPS)
def test_an_error_map_is_white_at_the_largest_error_of_any_cell(
    browser: webdriver.Chrome, page: Path, name: str
) -> None:
    strip = STRIPS[name]
    truth = tile(strip, "truth")
    good, bad = (
        np.abs(tile(strip, title) - truth).reshape(SIDE, SIDE, -1).mean(axis=2) for title in ("good cell", "bad cell")
    )
    with emulated(browser, 1440):
        canvas = unfolded(browser, page)[list(STRIPS).index(name)]
        panel = panel_of(canvas)
        choose(panel, "Left", "error of good cell")
        choose(panel, "Right", "error of bad cell")
        assert f"white is {bad.max():.0f} of 255" in panel.text
        for row, column, error in [(3, 5, good), (44, 12, good), (3, 40, bad), (44, 33, bad)]:
            level = 255 * error[row, column] / bad.max()
            assert np.allclose(shown(browser, canvas, row, column), level, atol=0.51)


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_the_viewers_fit_the_window_and_ask_for_nothing(
    browser: webdriver.Chrome, page: Path, width: int, colours: str
) -> None:
    with emulated(browser, width, media={"prefers-color-scheme": colours}):
        canvases = unfolded(browser, page)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert all(canvas.size["width"] >= min(width - 40, 500) for canvas in canvases)
        assert complaints(browser) == []
        assert requests(browser, page.as_uri()) == [page.as_uri()]


def test_without_javascript_every_picture_is_shown_with_its_name(browser: webdriver.Chrome, page: Path) -> None:
    with emulated(browser, 360), without_javascript(browser):
        opened(browser, page)
        browser.find_element(By.TAG_NAME, "summary").click()
        assert not browser.find_elements(By.CSS_SELECTOR, "canvas, .viewer select")
        pictures = browser.find_elements(By.CSS_SELECTOR, ".viewer img")
        assert len(pictures) == 5 + 4  # the baseline of the second is its input
        assert all(picture.is_displayed() and picture.get_attribute("alt") for picture in pictures)
        assert all(picture.size["width"] > 2 * SIDE for picture in pictures)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
        assert complaints(browser) == []
