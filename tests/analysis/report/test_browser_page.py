"""What a reader can do with a report's page in a browser, and what is there without JavaScript."""

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from analysis.report.forms import forms
from analysis.report.page import report_of
from tests.harness.browser import complaints, emulated, opened, requests, without_javascript
from tests.harness.studies import components_study, full_trial, in_memory

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SECONDS = 20

SERVER = "https://mlflow.example/#/experiments/7"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    """A report of four crossed factors whose runs are on a tracking server."""
    finished, left_out = components_study((0, 1))
    finished += [full_trial(seed, bn="pre") for seed in (0, 1)]
    unsteady = [full_trial(seed, bn="out") for seed in (0, 1)]
    finished += [dataclasses.replace(each, psnr_db={"Set5": 32.0 + each.seed}) for each in unsteady]
    study = in_memory(finished, left_out=left_out)
    runs = [f"{number:032x}" for number in range(len(study.trials))]
    report = report_of(dataclasses.replace(study, experiment=SERVER, trials=study.trials.assign(run_id=runs)))
    return {**report.files, **forms(report.files, report.details)}


@pytest.fixture(scope="module")
def path(files: Mapping[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("page") / "report.html"
    found.write_bytes(files["report.html"])
    return found


@pytest.fixture(scope="module")
def loaded(browser: webdriver.Chrome, path: Path) -> Iterator[webdriver.Chrome]:
    """The page in a wide window, with everything unfolded and with motion reduced."""
    browser.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite"]})
    with emulated(browser, 1440, media={"prefers-color-scheme": "light"}):
        opened(browser, path)
        browser.execute_script("for (const fold of document.querySelectorAll('details')) fold.open = true")
        yield browser


@pytest.fixture
def page(loaded: webdriver.Chrome) -> Iterator[webdriver.Chrome]:
    """The same page, with all rows in their first order."""
    yield loaded
    loaded.execute_script("document.dispatchEvent(new Event('show-every-row'))")


def first(page: webdriver.Chrome) -> WebElement:
    return page.find_element(By.CSS_SELECTOR, ".table")


def column(page: webdriver.Chrome, place: int) -> list[str]:
    """The texts of a column of the first table, from 1 on."""
    cells = first(page).find_elements(By.CSS_SELECTOR, f"tbody tr > :nth-child({place})")
    return [cell.text for cell in cells]


def press(page: webdriver.Chrome, element: WebElement) -> None:
    """Click on an element wherever it is, since nothing is laid out for long before a click."""
    page.execute_script("arguments[0].click()", element)


def wait_for_order(page: webdriver.Chrome, head: WebElement, order: str) -> None:
    WebDriverWait(page, SECONDS).until(lambda _: head.get_attribute("aria-sort") == order, f"not {order}")


def filters(box: WebElement) -> WebElement:
    """The filters above a table."""
    return box.find_element(By.XPATH, "./preceding-sibling::*[1][@role='group']")


def field(group: WebElement, name: str) -> WebElement:
    return group.find_element(By.XPATH, f".//label[starts-with(normalize-space(), '{name}')]/*")


def test_a_table_sorts_by_its_numbers_with_mouse_and_keyboard(page: webdriver.Chrome) -> None:
    before = [float(text.split()[0]) for text in column(page, 2)]
    assert before != sorted(before)
    head = first(page).find_element(By.CSS_SELECTOR, "th:nth-child(2)")
    press(page, head)
    wait_for_order(page, head, "ascending")
    assert [float(text.split()[0]) for text in column(page, 2)] == sorted(before)
    head.find_element(By.CSS_SELECTOR, "[role=button]").send_keys(Keys.ENTER)
    wait_for_order(page, head, "descending")
    assert [float(text.split()[0]) for text in column(page, 2)] == sorted(before, reverse=True)


def test_rows_that_are_equal_stay_in_the_order_of_the_report(page: webdriver.Chrome) -> None:
    before = list(zip(column(page, 3), column(page, 1), strict=True))
    head = first(page).find_element(By.CSS_SELECTOR, "th:nth-child(3)")
    for order in ("ascending", "descending"):
        press(page, head)
        wait_for_order(page, head, order)
    after = list(zip(column(page, 3), column(page, 1), strict=True))
    assert after == sorted(before, key=lambda row: row[0], reverse=True)  # stable in Python
    assert len(before) > len({verdict for verdict, _ in before}) > 1


def test_missing_numbers_come_last_in_either_order(page: webdriver.Chrome) -> None:
    box = page.find_element(By.XPATH, "//div[@class='table'][.//th[contains(., 'At the reference')]]")
    head = box.find_element(By.CSS_SELECTOR, "th:nth-child(2)")
    for order in ("ascending", "descending"):
        press(page, head)
        wait_for_order(page, head, order)
        texts = [cell.text for cell in box.find_elements(By.CSS_SELECTOR, "tbody td:nth-child(2)")]
        assert "—" in texts
        assert "—" not in texts[: texts.index("—")]
        assert set(texts[texts.index("—") :]) == {"—"}


def test_rows_are_filtered_by_verdict_by_level_and_by_text(page: webdriver.Chrome, files: Mapping[str, bytes]) -> None:
    group = filters(first(page))
    count = group.find_element(By.CSS_SELECTOR, "[role=status]")
    verdicts = column(page, 3)
    total = len(verdicts)
    assert count.text == f"{total} rows"
    Select(field(group, "Verdict")).select_by_value("worse")
    assert column(page, 3) == ["worse"] * verdicts.count("worse")
    assert count.text == f"{verdicts.count('worse')} of {total} rows"
    Select(field(group, "residual")).select_by_value("false")
    assert column(page, 1) == ["Without the residual"]
    group.find_element(By.TAG_NAME, "button").click()
    assert column(page, 3) == verdicts
    field(group, "Text").send_keys("batchnorm")
    assert column(page, 1)
    assert all("BatchNorm" in text for text in column(page, 1))
    field(group, "Text").send_keys(" no such row")
    assert count.text == f"0 of {total} rows"


ENDINGS = ("csv", "tex")

CLIPBOARD = """
window.kept ??= navigator.clipboard;
Object.defineProperty(navigator, "clipboard", {value: arguments[0] ? kept : undefined, configurable: true});
"""


def copied(page: webdriver.Chrome, language: str, *, modern: bool = True) -> str:
    """What the clipboard holds after the button below the first table is pressed."""
    page.execute_script(CLIPBOARD, modern)
    button = page.find_element(By.XPATH, f"//p[@class='copies'][1]/button[text()='Copy as {language}']")
    press(page, button)
    said = button.find_element(By.XPATH, "../span[@role='status']")
    assert said.text.endswith(f"as {language}.")
    return str(page.execute_async_script("kept.readText().then(arguments[0])"))


def test_a_table_is_copied_in_three_languages_as_the_report_has_it(
    page: webdriver.Chrome, files: Mapping[str, bytes]
) -> None:
    in_csv, in_latex = (next(name for name in files if re.match(rf"tables/01-.*\.{each}", name)) for each in ENDINGS)
    assert copied(page, "CSV") == files[in_csv].decode()
    assert copied(page, "LaTeX", modern=False) == files[in_latex].decode()
    header, rule, *rows = copied(page, "Markdown").splitlines()
    assert header + "\n" + rule in files["report.md"].decode()
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == column(page, 1)


def test_the_rows_that_are_shown_are_copied_in_their_order(page: webdriver.Chrome) -> None:
    head = first(page).find_element(By.CSS_SELECTOR, "th:nth-child(2)")
    press(page, head)
    wait_for_order(page, head, "ascending")
    Select(field(filters(first(page)), "Verdict")).select_by_value("worse")
    found = [line.split(",")[0] for line in copied(page, "CSV").splitlines()[1:]]
    assert found == column(page, 1)
    assert len(found) > 1


def test_a_row_leads_to_its_runs_and_they_to_the_server(page: webdriver.Chrome) -> None:
    row = first(page).find_element(By.CSS_SELECTOR, "tbody tr")
    link = row.find_element(By.TAG_NAME, "a")
    target = page.find_element(By.ID, str(link.get_dom_attribute("href")).removeprefix("#"))
    runs, fold = target.find_element(By.XPATH, "./ancestor::tr"), target.find_element(By.XPATH, "./ancestor::details")
    box = runs.find_element(By.XPATH, "./ancestor::div[@class='table']")
    field(filters(box), "Text").send_keys("no such row")
    page.execute_script("arguments[0].open = false", fold)
    row.find_element(By.CSS_SELECTOR, "td:last-child").click()
    assert runs.is_displayed()
    links = [each.get_dom_attribute("href") for each in runs.find_elements(By.XPATH, ".//a[@href]")]
    assert links
    assert all(str(each).startswith(f"{SERVER}/runs/0") for each in links)


def background(page: webdriver.Chrome) -> str:
    return str(page.execute_script("return getComputedStyle(document.body).backgroundColor"))


LIGHT, DARK = "rgb(255, 255, 255)", "rgb(22, 24, 28)"


def test_colours_follow_the_system_until_the_reader_chooses(browser: webdriver.Chrome, path: Path) -> None:
    with emulated(browser, 1440, media={"prefers-color-scheme": "dark"}):
        opened(browser, path)
        assert background(browser) == DARK
        choice = Select(browser.find_element(By.CSS_SELECTOR, ".colours select"))
        choice.select_by_value("light")
        assert background(browser) == LIGHT
        browser.refresh()
        assert background(browser) == LIGHT
        Select(browser.find_element(By.CSS_SELECTOR, ".colours select")).select_by_value("auto")
        assert background(browser) == DARK


@pytest.mark.parametrize("width", [360, 1440])
def test_the_page_complains_of_nothing_asks_for_nothing_and_fits(
    browser: webdriver.Chrome, path: Path, width: int
) -> None:
    with emulated(browser, width):
        address = opened(browser, path)
        browser.execute_script("for (const fold of document.querySelectorAll('details')) fold.open = true")
        size = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
        browser.get(f"{address}#%")  # no place of the page, and no encoded text
        WebDriverWait(browser, SECONDS).until(lambda _: browser.execute_script("return location.hash === '#%'"))
    assert size[0] <= size[1] == width
    assert complaints(browser) == []
    assert requests(browser, address) == [address]


def test_a_long_value_of_a_filter_does_not_widen_the_page_of_a_phone(browser: webdriver.Chrome, path: Path) -> None:
    with emulated(browser, 360):
        opened(browser, path)
        select = browser.find_element(By.CSS_SELECTOR, ".filters select")
        browser.execute_script("arguments[0].append(new Option('0'.repeat(64)))", select)
        size = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert size == [360, 360]


def test_without_javascript_everything_is_there_and_nothing_that_does_nothing(
    browser: webdriver.Chrome, path: Path, files: Mapping[str, bytes]
) -> None:
    with emulated(browser, 1440), without_javascript(browser):
        opened(browser, path)
        controls = browser.find_elements(By.CSS_SELECTOR, "button, select, input")
        assert [control for control in controls if control.is_displayed()] == []
        for summary in browser.find_elements(By.TAG_NAME, "summary"):
            summary.click()
        rows = browser.find_elements(By.CSS_SELECTOR, ".table tr")
        lines = [line for line in files["report.md"].decode().splitlines() if line.startswith("|")]
        assert len(rows) == len([line for line in lines if not set(line) <= set("|- :")])
        assert all(row.is_displayed() for row in rows)
        assert browser.find_elements(By.CSS_SELECTOR, "svg")


def test_print_shows_what_is_folded_on_white_and_no_controls(browser: webdriver.Chrome, path: Path) -> None:
    with emulated(browser, 1440, media={"prefers-color-scheme": "dark"}), without_javascript(browser):
        opened(browser, path)
        with printing(browser):
            folded = browser.find_element(By.CSS_SELECTOR, "details:not([open]) .table tr")
            assert browser.execute_script("return arguments[0].checkVisibility()", folded)
            assert background(browser) == LIGHT


@contextlib.contextmanager
def printing(browser: webdriver.Chrome) -> Iterator[None]:
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        yield
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_a_long_table_is_copied_in_parts_as_the_report_has_it(browser: webdriver.Chrome, tmp_path: Path) -> None:
    texts = [" ".join(["words"] * 60) if number % 3 else "short" for number in range(40)]
    rows = [f"| {number} | {text} | {number / 7:.3f} |" for number, text in enumerate(texts)]
    page = "\n".join(["# Study", "", "## Long", "", "| Row | Text | PSNR (dB) |", "| --- | --- | ---: |", *rows, ""])
    files = forms({"report.md": page.encode()})
    (tmp_path / "report.html").write_bytes(files["report.html"])
    wanted = files["tables/01-long.tex"].decode()
    assert wanted.count(r"\begin{table}") > 2
    browser.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite"]})
    opened(browser, tmp_path / "report.html")
    assert copied(browser, "LaTeX") == wanted
