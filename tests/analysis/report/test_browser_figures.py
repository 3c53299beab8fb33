"""What a browser makes of the figures of a page: notes by pointer and keyboard, links to runs, colours, width."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from analysis.report.forms import forms
from tests.analysis.report.test_forms import PNG
from tests.analysis.report.test_html_figures import MEAN, SEED, figure, svg_of
from tests.harness.browser import complaints, emulated, opened, requests, without_javascript

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SECONDS = 30
PAGE = f"""# Study

## Effects

![A forest](effects.png)

[as SVG](effects.svg)

## Runs

<details>
<summary>Every run</summary>

| Cell | Runs |
| --- | --- |
| <a id="{SEED.runs}"></a>`residual=false` | 0123abcd |

</details>
"""


@dataclasses.dataclass(frozen=True)
class Shown:
    """The page in a window: its figure, and what floats above it."""

    browser: webdriver.Chrome

    @property
    def figure(self) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, ".figure")

    def mark(self, text: str) -> WebElement:
        return self.figure.find_element(By.XPATH, f".//*[@aria-label='{text}']")

    @property
    def note(self) -> str:
        """The note that is on display; empty if there is none."""
        return self.browser.find_element(By.CSS_SELECTOR, ".note").text

    def press(self, *keys: str) -> str:
        """Press keys one after another and return the note that is shown then."""
        ActionChains(self.browser).send_keys(*keys).perform()
        return self.note

    def colour(self, selector: str, name: str) -> str:
        script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
        return str(self.browser.execute_script(script, selector, name))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    files = {"report.md": PAGE.encode(), "effects.png": PNG, "effects.svg": svg_of(figure())}
    path.write_bytes(forms(files)["report.html"])
    return path


@pytest.fixture(scope="class")
def dark(browser: webdriver.Chrome, page: Path) -> Iterator[Shown]:
    """The page at 1440 pixels on a dark ground."""
    with emulated(browser, 1440, media={"prefers-color-scheme": "dark"}):
        opened(browser, page)
        yield Shown(browser)


@pytest.mark.usefixtures("dark")
class TestNotes:
    def test_the_pointer_shows_the_number_and_the_run_and_escape_hides_them(self, dark: Shown) -> None:
        ActionChains(dark.browser).move_to_element(dark.mark(SEED.text)).perform()
        assert dark.note == SEED.text
        assert dark.press(Keys.ESCAPE) == ""

    def test_a_mark_is_reached_from_beside_it(self, dark: Shown) -> None:
        ActionChains(dark.browser).move_to_element_with_offset(dark.mark(SEED.text), 0, 8).perform()
        assert dark.note == SEED.text
        ActionChains(dark.browser).move_to_element_with_offset(dark.mark(MEAN.text), -30, -5).perform()
        assert dark.note == MEAN.text
        ActionChains(dark.browser).move_to_element_with_offset(dark.mark(SEED.text), 0, 40).perform()
        assert dark.note == ""

    def test_one_tab_stop_leads_into_the_figure_and_arrows_from_mark_to_mark(self, dark: Shown) -> None:
        stops = dark.figure.find_elements(By.CSS_SELECTOR, "[tabindex='0']")
        assert len(stops) == 1
        dark.browser.execute_script("arguments[0].focus()", stops[0])
        assert [dark.note, dark.press(Keys.ARROW_RIGHT), dark.press(Keys.ARROW_RIGHT), dark.press(Keys.END)] == [
            *(MEAN.text, SEED.text, MEAN.text, SEED.text),
        ]
        assert len(dark.figure.find_elements(By.CSS_SELECTOR, "[tabindex='0']")) == 1
        assert dark.press(Keys.TAB) == ""

    def test_the_browser_shows_no_second_note(self, dark: Shown) -> None:
        assert not dark.figure.find_elements(By.TAG_NAME, "title")

    def test_a_screen_reader_is_told_of_a_group_with_the_marks_in_it(self, dark: Shown) -> None:
        assert (dark.figure.aria_role, dark.figure.accessible_name) == ("group", "A forest")
        assert (dark.mark(SEED.text).aria_role, dark.mark(SEED.text).accessible_name) == ("link", SEED.text)

    def test_enter_and_a_click_lead_to_the_runs_of_the_cell(self, dark: Shown) -> None:
        row = dark.browser.find_element(By.ID, SEED.runs).find_element(By.XPATH, "./ancestor::tr")
        for act in (lambda: dark.press(Keys.ENTER), lambda: dark.mark(SEED.text).click()):
            dark.browser.execute_script("document.querySelector('details').open = false; location.hash = '';")
            assert not row.is_displayed()
            dark.browser.execute_script("arguments[0].focus()", dark.mark(SEED.text))
            act()
            WebDriverWait(dark.browser, SECONDS).until(lambda _: row.is_displayed())

    def test_the_figure_is_in_the_colours_of_the_dark_page(self, dark: Shown) -> None:
        assert dark.colour(".figure > path", "fill") == dark.colour("body", "backgroundColor") == "rgb(22, 24, 28)"
        assert dark.colour(".figure", "fill") == dark.colour("body", "color") == "rgb(228, 230, 233)"

    def test_the_figure_is_saved_in_its_own_colours_with_its_notes_and_all_outlines(self, dark: Shown) -> None:
        saved = dark.browser.execute_script(
            """
            const made = URL.createObjectURL;
            let file;
            URL.createObjectURL = (content) => { file = content; return made(content); };
            document.querySelector("button[data-figure]").click();
            URL.createObjectURL = made;
            return file.text().then((text) => {
              const found = new DOMParser().parseFromString(text, "image/svg+xml");
              const uses = [...found.querySelectorAll("use")];
              return {error: Boolean(found.querySelector("parsererror")),
                      ground: found.querySelector("path[fill]").getAttribute("fill"),
                      notes: [...found.querySelectorAll("title")].map((title) => title.textContent), uses: uses.length,
                      lost: uses.filter((use) => !found.getElementById(use.getAttribute("href").slice(1))).length};
            });
            """
        )
        assert saved["uses"] > 20
        assert sorted(saved["notes"]) == sorted([MEAN.text, MEAN.text, SEED.text])
        assert (saved["error"], saved["ground"], saved["lost"]) == (False, "#ffffff", 0)

    def test_nothing_is_asked_for_and_nothing_is_complained_of(self, dark: Shown, page: Path) -> None:
        assert requests(dark.browser, page.as_uri()) == [page.as_uri()]
        assert complaints(dark.browser) == []


def test_on_a_phone_a_tap_shows_the_note_and_the_figure_scrolls_in_its_box(
    browser: webdriver.Chrome, page: Path
) -> None:
    with emulated(browser, 360):
        opened(browser, page)
        phone = Shown(browser)
        assert browser.execute_script("return document.documentElement.scrollWidth") == 360
        assert browser.execute_script("return arguments[0].getBoundingClientRect().width", phone.figure) > 600
        tap = ActionChains(browser)
        finger = tap.w3c_actions.add_pointer_input("touch", "finger")
        finger.create_pointer_move(origin=phone.mark(SEED.text))
        finger.create_pointer_down(button=0)
        finger.create_pointer_up(0)
        browser.execute_script(
            "arguments[0].scrollIntoView({inline: 'center', block: 'center'})", phone.mark(SEED.text)
        )
        tap.perform()
        assert phone.note == SEED.text
        assert browser.execute_script("return location.hash") == ""


def test_without_javascript_the_notes_are_titles_that_the_browser_shows(browser: webdriver.Chrome, page: Path) -> None:
    with emulated(browser, 1440, media={"prefers-color-scheme": "light"}), without_javascript(browser):
        opened(browser, page)
        titles = browser.find_elements(By.XPATH, "//*[name()='svg']//*[name()='title']")
        assert sorted(str(title.get_property("textContent")) for title in titles) == sorted(
            [MEAN.text, MEAN.text, SEED.text]
        )
        assert not browser.find_element(By.CSS_SELECTOR, "button[data-figure]").is_displayed()
        assert complaints(browser) == []
