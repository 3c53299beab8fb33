"""What a browser shows: a report's page, and MLflow's pages of a run with its pictures and report."""

import contextlib
import functools
import http.server
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from ablations.tracking.client import experiment_id, search_runs
from analysis.__main__ import main
from analysis.report.forms import forms
from analysis.report.html.page import digest
from analysis.report.html.tables import MOST_VALUE_LETTERS
from analysis.report.markup import one_line
from analysis.report.words import in_markdown
from tests.analysis.report.test_forms import PNG
from tests.analysis.report.test_gallery import report as write_summary
from tests.analysis.report.test_markup import HOSTILE, PAGE
from tests.harness.browser import complaints, requests
from tests.harness.servers import free_port
from tests.harness.support import STUDY, Workplace, wait_until

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SECONDS = 60


@pytest.fixture(scope="module")
def study(browser: webdriver.Chrome, tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Workplace:
    """A sweep of two cells, finished; it waits for the browser, so that nothing is trained where there is none."""
    workplace = Workplace.apart(tmp_path_factory.mktemp("study"), migrated_database)
    assert workplace.sweep("bn=pre,post").status == 0
    return workplace


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def server(study: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an MLflow server on the study's database; it and all its workers are gone afterwards."""
    port = free_port()
    log = tmp_path_factory.mktemp("server") / "server.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
                *("--backend-store-uri", study.uri, "--host", "127.0.0.1", "--port", str(port)),
            ],
            cwd=study.folder,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
        )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(address) or process.poll() is not None, f"the MLflow server, see {log}", SECONDS)
        assert process.poll() is None, log.read_text(encoding="utf-8")
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def experiment(server: str, study: Workplace) -> str:
    """The address of the study's experiment on the server."""
    return f"{server}/#/experiments/{experiment_id(study.uri, STUDY)}"


def shown(browser: webdriver.Chrome, path: str) -> list[WebElement]:
    return [element for element in browser.find_elements(By.XPATH, path) if element.is_displayed()]


def wait_for(browser: webdriver.Chrome, path: str) -> WebElement:
    """The first element at the XPath that is displayed, as soon as there is one."""
    found: list[WebElement] = WebDriverWait(browser, SECONDS).until(
        lambda _: shown(browser, path), f"{path} is not on {browser.current_url}"
    )
    return found[0]


def test_a_sample_picture_of_a_run_is_rendered(browser: webdriver.Chrome, experiment: str, study: Workplace) -> None:
    run = study.runs("FINISHED")[0].info.run_id
    browser.get(f"{experiment}/runs/{run}/artifacts/samples/Tiny/third/output.png")
    picture = wait_for(browser, "//img[contains(@src, 'blob:') or contains(@src, 'output.png')]")
    WebDriverWait(browser, SECONDS).until(
        lambda _: browser.execute_script("return arguments[0].complete && arguments[0].naturalWidth > 0", picture)
    )
    size = browser.execute_script("return [arguments[0].naturalWidth, arguments[0].naturalHeight]", picture)
    assert size == [48, 48]


@pytest.fixture(scope="module")
def report(study: Workplace) -> Path:
    """The report of the study as the command writes it, which logs it to MLflow too."""
    places = ["--tracking-uri", study.uri, "--outputs", str(study.outputs), "--reports", str(study.folder / "reports")]
    main([STUDY, *places])
    return study.folder / "reports" / STUDY


@pytest.mark.parametrize("width", [1280, 640])
def test_the_report_fits_the_window_and_shows_every_picture(
    browser: webdriver.Chrome, report: Path, width: int
) -> None:
    browser.set_window_size(width, 900)
    browser.get((report / "report.html").as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    sizes = browser.execute_script("return [...document.images].map(image => image.naturalWidth)")
    assert sizes
    assert all(size > 0 for size in sizes)
    assert not browser.find_elements(By.XPATH, "//img[not(starts-with(@src, 'data:'))]")
    assert not browser.find_elements(By.XPATH, "//link | //script[@src]")


def test_a_phone_shows_the_page_without_scrolling_sideways(browser: webdriver.Chrome, report: Path) -> None:
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        browser.get((report / "report.html").as_uri())
        sizes = browser.execute_script(
            """
            const boxes = [...document.querySelectorAll('.table')];
            return {page: document.documentElement.scrollWidth, window: window.innerWidth,
                    hidden: Math.max(...boxes.map(box => box.scrollWidth - box.clientWidth)),
                    font: parseFloat(getComputedStyle(document.body).fontSize)};
            """
        )
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert sizes["page"] <= sizes["window"] == 360
    assert sizes["hidden"] > 0
    assert sizes["font"] >= 16


def test_no_heading_of_a_table_is_broken_inside_a_word(browser: webdriver.Chrome, report: Path) -> None:
    browser.set_window_size(1280, 900)
    browser.get((report / "report.html").as_uri())
    assert not browser.execute_script(
        "return [...document.querySelectorAll('thead th')].filter(head => head.scrollWidth > head.clientWidth + 1"
        " || getComputedStyle(head).overflowWrap !== 'normal').map(head => head.textContent)"
    )


def test_a_row_leads_to_the_runs_of_its_cells_which_are_folded_until_then(
    browser: webdriver.Chrome, report: Path
) -> None:
    browser.get((report / "report.html").as_uri())
    link = browser.find_element(By.XPATH, "//a[starts-with(@href, '#runs-')]")
    target = browser.find_element(By.ID, str(link.get_dom_attribute("href")).removeprefix("#"))
    runs = target.find_element(By.XPATH, "./ancestor::tr")
    assert not runs.is_displayed()
    browser.execute_script("arguments[0].click()", link)
    WebDriverWait(browser, SECONDS).until(lambda _: runs.is_displayed())


CHOICES = """| Name | {{ header }} |
| --- | --- |
{% for name in names %}
| {{ name }} | {{ values[loop.index0 % 9] }} |
{% endfor %}
"""
"""A table that can be filtered by hostile values of a column with a hostile name."""

SHORT = [name for name in HOSTILE if len(name) <= MOST_VALUE_LETTERS][:9]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """The server of a page with every hostile name in every kind of place, and the paths that it is asked for."""
    texts = [in_markdown().from_string(PAGE).render(name=name) for name in HOSTILE]
    texts += [
        in_markdown().from_string(CHOICES).render(names=HOSTILE, values=SHORT, header=name) for name in HOSTILE[:3]
    ]
    text = "\n\n".join(texts)
    (tmp_path / "report.html").write_bytes(forms({"report.md": text.encode(), "a.png": PNG})["report.html"])
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, code: object = "-", size: object = "-") -> None:
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=os.fspath(tmp_path))
    )
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()


def scripts(browser: webdriver.Chrome) -> list[str]:
    """The scripts of a page, without its data."""
    found = "return [...document.scripts].filter(each => each.type !== 'application/json').map(each => each.text)"
    return list(browser.execute_script(found))


def policy(browser: webdriver.Chrome) -> str:
    return str(browser.find_element(By.XPATH, "//meta[@http-equiv]").get_attribute("content"))


def test_hostile_values_are_chosen_as_text(browser: webdriver.Chrome, site: tuple[str, list[str]]) -> None:
    browser.get(f"{site[0]}/report.html")
    groups = browser.find_elements(By.CSS_SELECTOR, ".filters select")
    assert len(groups) == 3
    for group in groups:
        texts = [option.get_attribute("textContent") for option in group.find_elements(By.TAG_NAME, "option")]
        assert texts == ["all", *map(one_line, SHORT)]


def test_a_page_of_hostile_names_asks_for_nothing_and_runs_nothing(
    browser: webdriver.Chrome, site: tuple[str, list[str]]
) -> None:
    address, asked = site
    complaints(browser)
    browser.get(f"{address}/report.html")
    assert browser.find_elements(By.TAG_NAME, "img")
    assert requests(browser, f"{address}/report.html") == [f"{address}/report.html"]
    assert asked == ["/report.html"]
    assert not browser.find_elements(By.XPATH, "//script[@src] | //link | //iframe | //*[@onerror]")
    assert all(digest(script) in policy(browser) for script in scripts(browser))
    assert browser.title != "run"
    assert complaints(browser) == []
    assert not browser.find_elements(By.XPATH, "//a[not(starts-with(@href, '#')) and not(@id)]")


BREACH = """
const done = arguments[arguments.length - 1], refused = [];
document.addEventListener("securitypolicyviolation", event => {
    refused.push(event.effectiveDirective);
    if (refused.length === 5) done(refused.sort());
});
const add = (tag, attributes) => document.body.appendChild(Object.assign(document.createElement(tag), attributes));
add("img", {src: "/picture.png"});
add("script", {textContent: "document.title = 'run'"});
add("script", {src: "/script.js"});
add("style", {textContent: "body { display: none }"});
add("iframe", {src: "/frame.html"});
"""


def test_the_browser_refuses_what_is_put_into_a_page(browser: webdriver.Chrome, site: tuple[str, list[str]]) -> None:
    address, asked = site
    browser.get(f"{address}/report.html")
    browser.set_script_timeout(SECONDS)
    refused = browser.execute_async_script(BREACH)
    assert refused == ["frame-src", "img-src", "script-src-elem", "script-src-elem", "style-src-elem"]
    assert browser.title != "run"
    assert browser.find_element(By.TAG_NAME, "h1").is_displayed()
    assert asked == ["/report.html"]


def test_the_style_of_a_page_is_the_one_that_its_policy_allows(
    browser: webdriver.Chrome, site: tuple[str, list[str]]
) -> None:
    browser.get(f"{site[0]}/report.html")
    cell = browser.find_element(By.CSS_SELECTOR, "td.right")
    assert cell.value_of_css_property("text-align") == "right"


@pytest.mark.parametrize("width", [360, 1440])
def test_the_index_fits_any_window_is_light_or_dark_and_asks_for_its_figures_alone(
    browser: webdriver.Chrome, tmp_path: Path, width: int
) -> None:
    (write_summary(tmp_path / "first") / "effects.png").write_bytes(PNG)
    main(["index", "--reports", str(tmp_path)])
    page = (tmp_path / "index.html").as_uri()
    window = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)
    grounds = []
    try:
        for scheme in ("light", "dark"):
            media = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
            browser.get(page)
            assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
            assert browser.execute_script("return [...document.images].map(image => image.naturalWidth > 0)") == [True]
            assert set(requests(browser, page)) == {page, (tmp_path / "first" / "effects.png").as_uri()}
            grounds.append(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert grounds == ["rgb(255, 255, 255)", "rgb(22, 24, 28)"]


def test_mlflow_shows_the_report(browser: webdriver.Chrome, experiment: str, study: Workplace, report: Path) -> None:
    runs = search_runs(study.uri, experiment_id(study.uri, STUDY), "tags.kind = 'report'")
    browser.set_window_size(1600, 1000)
    browser.get(f"{experiment}/runs/{runs[0].info.run_id}/artifacts/report.html")
    frame = wait_for(browser, "//iframe")
    browser.switch_to.frame(frame)
    try:
        assert wait_for(browser, "//h1").text.startswith("Study")
    finally:
        browser.switch_to.default_content()
    for name in ("report.md", "effects.csv", "tables"):
        assert wait_for(browser, f"//*[normalize-space(text())='{name}']").is_displayed()
