"""How soon the explorer's page shows its first picture, and how long a frame takes, in headless Chromium.

    python -m benchmarks.explorer [MODEL]    # benchmarks/results/explorer.json and .png, a screenshot

MODEL is a run, a .keras file or a pretrained model's name. Needs chromium, chromedriver and npm. Each round has a
browser of its own with an empty cache. The first picture counts from the navigation on, the runtime's 14 MB and the
decoder's included; a frame is from the slider's move to the pixels in the canvas.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import shutil
import statistics
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from benchmarks import runners
from keras_vae import cli
from keras_vae.cli import explorer
from keras_vae.support.files import write_json

RESULTS = Path(__file__).parent / "results"
WEB = Path(__file__).resolve().parents[1] / "export" / "web"
FRAMES = 60
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--window-size=1200,900", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
)
FIRST = """
const done = arguments[arguments.length - 1];
import("/explore.mjs").then(async (page) => {
  await page.ready;
  done({ seconds: performance.now() / 1000, error: document.getElementById("error").textContent });
});
"""
# Each slider in turn, there and back, as a hand would: a value, the picture, the next value.
MOVES = """
const [count, done] = arguments;
import("/explore.mjs").then(async (page) => {
  const sliders = [...document.querySelectorAll(".sliders input")];
  const times = [];
  for (let frame = 0; frame < count; frame++) {
    const slider = sliders[frame % sliders.length];
    const begin = performance.now();
    slider.value = frame % 2 ? 0 : 1;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    await page.show();
    times.push(performance.now() - begin);
  }
  done(times);
});
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="avatars")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page"
        status = cli.run(["explore", options.model, "--out", str(page), "--runtime", str(_runtime(Path(folder)))])
        if status:
            raise SystemExit(status)
        handler = functools.partial(explorer.Handler, directory=str(page))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            for _ in range(options.rounds):
                rounds.append(_visit(f"http://127.0.0.1:{server.server_port}/", options.out / "explorer.png"))
                print(f"first picture {rounds[-1]['first_s']:.2f} s, frame {rounds[-1]['frame_ms']:.1f} ms", flush=True)
            server.shutdown()
    result: dict[str, Any] = {
        "device": runners.device_name("cpu"),
        "versions": runners.versions(("keras-vae", "selenium")),
        "browser": rounds[0].pop("browser"),
        "model": options.model,
        "first_picture_s": _spread([each["first_s"] for each in rounds]),
        "frame_ms": _spread([each["frame_ms"] for each in rounds]),
        "frames_a_round": FRAMES,
        "rounds": options.rounds,
    }
    write_json(options.out / "explorer.json", result, indent=1)
    print(json.dumps(result, indent=1))


def _visit(address: str, picture: Path) -> dict[str, Any]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        raise SystemExit("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=Service(chromedriver))
        try:
            driver.set_script_timeout(60)
            driver.get(address)
            first = driver.execute_async_script(FIRST)
            if first["error"]:
                raise SystemExit(f"the page says: {first['error']}")
            times = driver.execute_async_script(MOVES, FRAMES)
            driver.save_screenshot(str(picture))
            return {
                "first_s": first["seconds"],
                "frame_ms": statistics.median(times),
                "browser": f"Chromium {driver.capabilities['browserVersion']}",
            }
        finally:
            driver.quit()


def _runtime(folder: Path) -> Path:
    """onnxruntime-web, the checkout's or installed anew as the kit's lock file has it."""
    installed = WEB / "node_modules" / "onnxruntime-web" / "dist"
    if installed.is_dir():
        return installed
    for name in ("package.json", "package-lock.json"):
        shutil.copy(WEB / name, folder)
    subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder, check=True)
    return folder / "node_modules" / "onnxruntime-web" / "dist"


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "least": round(min(values), 3),
        "most": round(max(values), 3),
    }


if __name__ == "__main__":
    main()
