"""A headless browser, the kit for JavaScript with its packages, and exports that take seconds: what modules share."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import selectors
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from keras_vae.export import verify

WEB = Path(__file__).resolve().parents[1] / "export" / "web"
FILES = (
    "decoder.mjs",
    "encoder.mjs",
    "scorer.mjs",
    "conditions.mjs",
    "browser.mjs",
    "pages.css",
    "score.html",
    "score.mjs",
    "decode.mjs",
    "page.mjs",
    "serve.mjs",
    "index.html",
    "package.json",
    "package-lock.json",
)
CHROMIUM = """--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic --no-first-run
    --disable-background-networking --disable-component-update --disable-sync"""


@contextlib.contextmanager
def few_draws() -> Iterator[None]:
    """What is exported is compared with Keras on one round of draws, and the extremes, not on a thousand draws.

    That is what takes longest of an export. It is for artifacts that are compared again by the test that needs them.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "DRAWS", sum(verify.BATCH_SIZES))
        yield


def tool(*names: str) -> str:
    """Where one of these programs is. Without any the tests skip; where CI is set they fail."""
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None and os.environ.get("CI"):
        pytest.fail(f"needs {names[0]}")
    if found is None:
        pytest.skip(f"needs {names[0]}")
    return found


@pytest.fixture(scope="session")
def bare_kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kit as it is copied into an app, nothing installed."""
    kit = tmp_path_factory.mktemp("bare")
    for name in FILES:
        shutil.copy(WEB / name, kit)
    return kit


@pytest.fixture(scope="session")
def kit(bare_kit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kit with its packages: those of the checkout where they are the locked ones, else installed."""
    kit = tmp_path_factory.mktemp("web") / "kit"
    shutil.copytree(bare_kit, kit)
    locked = json.loads((kit / "package-lock.json").read_text())["packages"]
    del locked[""]
    installed = WEB / "node_modules" / ".package-lock.json"
    if installed.is_file() and json.loads(installed.read_text())["packages"] == locked:
        (kit / "node_modules").symlink_to(WEB / "node_modules")
        return kit
    command = [tool("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    done = subprocess.run(command, cwd=kit, capture_output=True, text=True, timeout=300)
    if done.returncode and not os.environ.get("CI"):
        pytest.skip(f"npm ci failed: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return kit


@contextmanager
def serving(*arguments: object) -> Iterator[str]:
    """The address of the kit's server, run with these arguments."""
    command = [tool("node"), *map(str, arguments), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            with selectors.DefaultSelector() as selector:
                selector.register(server.stdout, selectors.EVENT_READ)
                assert selector.select(timeout=30), "the server did not start"
            yield server.stdout.readline().split()[0]
        finally:
            server.terminate()


class Page:
    """The page in a browser that reaches 127.0.0.1 alone."""

    def __init__(self, driver: webdriver.Chrome, downloads: Path, module: str = "page.mjs") -> None:
        self.driver = driver
        self.downloads = downloads
        self.module = module

    def open(self, address: str) -> None:
        """Loads the page and waits until it has drawn its grid, or said why not."""
        self.driver.get("about:blank")
        self.driver.get_log("browser")
        self.driver.get_log("performance")
        self.driver.get(address)
        self.run("await page.ready")

    def run(self, script: str, *arguments: object) -> Any:
        """Runs JavaScript that may await, `page` being the page's own module, and gives what it returns."""
        wrapped = f"""
            const done = arguments[arguments.length - 1];
            (async (...given) => {{ const page = await import("/{self.module}"); {script} }})(...arguments)
                .then((value) => done({{ value }}), (error) => done({{ error: String(error) }}));
        """
        result = self.driver.execute_async_script(wrapped, *arguments)
        assert "error" not in result, result["error"]
        return result.get("value")

    def floats(self, script: str, *arguments: object) -> np.ndarray:
        """Runs JavaScript that leaves {data, dims} in `images`."""
        encoded = self.run(
            script
            + """
            const bytes = new Uint8Array(images.data.buffer, images.data.byteOffset, images.data.byteLength);
            return [btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join("")), images.dims];
            """,
            *arguments,
        )
        return np.frombuffer(base64.b64decode(encoded[0]), "<f4").reshape(encoded[1])

    def canvas(self, selector: str) -> np.ndarray:
        """The pixels of a canvas: (height, width, 4)."""
        data, width = self.run(
            """
            const canvas = document.querySelector(given[0]);
            const { width, height } = canvas;
            const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
            copy.drawImage(canvas, 0, 0);
            return [Array.from(copy.getImageData(0, 0, width, height).data), width];
            """,
            selector,
        )
        return np.array(data).reshape(-1, width, 4)

    def __getitem__(self, name: str) -> Any:
        return self.driver.find_element(By.ID, name)

    def wait_for(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, 30, poll_frequency=0.05).until(lambda _: condition())

    def complaints(self) -> list[str]:
        """What the browser's console shows."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """The addresses of all requests of the page and its workers."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = tool("chromium", "chromium-browser", "google-chrome")
    for argument in CHROMIUM.split():
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(tool("chromedriver")))
    try:
        driver.set_page_load_timeout(30)
        driver.set_script_timeout(30)
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def page(driver: webdriver.Chrome, tmp_path: Path) -> Page:
    downloads = {"behavior": "allow", "downloadPath": str(tmp_path)}
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", downloads)
    return Page(driver, tmp_path)
