"""Headless Chromium, which the browser tests share, and what a page has asked for and complained of in it."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from selenium import webdriver

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1600,1000",
)


STILL = {"prefers-reduced-motion": "reduce"}


def program(name: str) -> str:
    """The path of an installed program; without it the tests are skipped, but fail where CI promises it."""
    path = shutil.which(name)
    if path is None:
        reason = f"{name} is not installed"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """One browser for all tests of a process; a test leaves no emulation behind, see :func:`emulated`."""
    options = webdriver.ChromeOptions()
    options.binary_location = program("chromium")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(program("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


@contextlib.contextmanager
def emulated(browser: webdriver.Chrome, width: int, height: int = 900, media: Mapping[str, str] = {}) -> Iterator[None]:
    """Show pages in a window of ``width`` x ``height`` pixels, with ``media`` features such as prefers-color-scheme.

    Nothing moves by itself, so that a click finds what it is meant for.
    """
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    features = [{"name": name, "value": value} for name, value in {**STILL, **media}.items()]
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        yield
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@contextlib.contextmanager
def without_javascript(browser: webdriver.Chrome) -> Iterator[None]:
    """Have pages that are loaded inside run no script of their own; the test's still run."""
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        yield
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def requests(browser: webdriver.Chrome, page: str) -> list[str]:
    """The addresses that a page has asked for since the last call, with its own, other than those that hold data."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    found = [each["request"]["url"] for each in sent if each["documentURL"] == page]
    return [address for address in found if not address.startswith("data:")]


def complaints(browser: webdriver.Chrome) -> list[str]:
    """What the console shows since the last call: errors, warnings and what the policy of a page refused."""
    return [str(entry["message"]) for entry in browser.get_log("browser")]


def opened(browser: webdriver.Chrome, page: Path) -> str:
    """Load a page from a file, with nothing in the logs of pages before it; returns its address."""
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(page.as_uri())
    return page.as_uri()
