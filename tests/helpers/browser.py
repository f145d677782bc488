"""A real browser without a window, for pages that do something."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def opened(page: Path, width: int = 1200, height: int = 1400, dark: bool = False) -> Iterator[Any]:
    """Open a page in Chromium, cut off from the network; skip the test, saying why, where there is none.

    Yields selenium's driver. At the end the page must have reported no error and no refused request.
    """
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    browser = next((found for name in _BROWSERS if (found := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no Chromium with chromedriver here (Debian: chromium, chromium-driver)")
    options = selenium.ChromeOptions()
    options.binary_location = browser
    words = ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", f"window-size={width},{height}")
    for word in words:
        options.add_argument(f"--{word}")
    if dark:
        options.add_argument("--blink-settings=preferredColorScheme=0")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    try:
        chrome.set_network_conditions(offline=True, latency=0, throughput=0)
        chrome.get(page.as_uri())
        yield chrome
        log = chrome.get_log("browser")
        assert log == [], log
    finally:
        chrome.quit()
