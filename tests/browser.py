"""A real Chromium for pages, with everything off that would ask the network by itself."""

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BROWSER, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
MISSING = "" if BROWSER and DRIVER else "no Chromium with chromedriver (apt-get install chromium chromium-driver)"
QUIET = ("disable-background-networking", "disable-quic", "no-first-run", "disable-sync", "hide-scrollbars")


def open_browser() -> Any:
    """A headless browser that writes down its console's messages and what it asks for."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "window-size=1400,1000", *QUIET):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))


def look_like(browser: Any, width: int, height: int, scheme: str) -> None:
    """A screen of this size, on a phone where it is narrow; scheme: light or dark."""
    size = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    wanted = dict(features=[dict(name="prefers-color-scheme", value=scheme)])
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", wanted)


def charts_of(page: Path) -> dict[str, Any]:
    """The charts that a page holds, by name."""
    found = re.search(r"^const data = (.*);$", page.read_text(), re.MULTILINE)
    assert found
    return json.loads(found[1])


def asked(browser: Any) -> list[str]:
    """Addresses outside the page that the browser asked for since it was last looked at."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith(("file:", "data:"))]


def wait_for(found: Callable[[], Any], seconds: float = 20) -> Any:
    end = time.monotonic() + seconds
    while not (value := found()) and time.monotonic() < end:
        time.sleep(0.1)
    return value


def draw_all(browser: Any) -> None:
    """Unfold all of a page and draw each chart. On a busy machine the page's script may come after the page."""
    assert wait_for(lambda: browser.execute_script("return typeof window.drawAll === 'function'")), "no drawAll"
    browser.execute_async_script("const done = arguments[0]; window.drawAll().then(() => done());")
