"""The page of a scorer in headless Chromium: it finds what Keras finds, and the most unusual come first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Page, serving
from PIL import Image
from selenium.webdriver.common.by import By

from keras_vae import VAE
from keras_vae.export import runtime
from keras_vae.support.pixels import to_uint8


@pytest.fixture(scope="module")
def scorer(deployed_vae: VAE, images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scored") / "scorer.onnx"
    deployed_vae.export_scorer(path, images[:60])
    return path


@pytest.fixture(scope="module")
def site(kit: Path, scorer: Path) -> Iterator[str]:
    with serving(kit / "serve.mjs", scorer) as address:
        yield f"{address}score.html"


@pytest.fixture
def scoring(page: Page, site: str) -> Page:
    page = Page(page.driver, page.downloads, "score.mjs")
    page.open(site)
    return page


@pytest.fixture
def pictures(images: np.ndarray, tmp_path: Path) -> dict[str, np.ndarray]:
    """Three avatars and noise, by file name: float32 (32, 32, 3) in [0, 1]."""
    noise = np.random.default_rng(0).uniform(size=(32, 32, 3))
    found = {f"avatar {index}.png": images[60 + index] for index in range(3)} | {"noise.png": noise}
    for name, image in found.items():
        Image.fromarray(to_uint8(image)).save(tmp_path / name)
    return {name: to_uint8(image).astype(np.float32) / 255 for name, image in found.items()}


def test_it_finds_what_keras_finds(
    scoring: Page, scorer: Path, pictures: dict[str, np.ndarray], tmp_path: Path
) -> None:
    scoring["file"].send_keys("\n".join(str(tmp_path / name) for name in pictures))
    scoring.wait_for(lambda: "4 scored" in scoring["status"].text)
    wanted = runtime.Scorer(scorer).score(np.stack(list(pictures.values())))
    scores = dict(zip(pictures, wanted.score, strict=True))
    items = scoring["found"].find_elements(By.TAG_NAME, "li")
    names = [item.find_element(By.TAG_NAME, "h2").text for item in items]
    assert names == sorted(scores, key=lambda name: -scores[name])
    found = scoring.run("return page.state.found.map(({ score, rank }) => [score, rank])")
    order = [list(pictures).index(name) for name in names]
    np.testing.assert_allclose(found, np.stack([wanted.score, wanted.rank], axis=1)[order], rtol=1e-3)
    noise = names.index("noise.png")
    canvas = f"#found li:nth-child({noise + 1}) figure:nth-child({{}}) canvas"
    np.testing.assert_array_equal(scoring.canvas(canvas.format(1))[..., :3], np.round(255 * pictures["noise.png"]))
    reconstruction = 255 * wanted.reconstruction[-1]
    np.testing.assert_allclose(scoring.canvas(canvas.format(2))[..., :3], reconstruction, atol=1)
    # Where the map is brightest is where the error is largest.
    bright = scoring.canvas(canvas.format(3))[..., :3].sum(axis=-1)
    place = np.unravel_index(wanted.error_map[-1].argmax(), bright.shape)
    assert bright[place] >= np.quantile(bright, 0.99)
    assert not scoring.complaints()
    assert all(address.startswith(("http://127.0.0.1", "blob:", "data:")) for address in scoring.requests())


def test_it_marks_from_the_rank_that_is_set(scoring: Page, pictures: dict[str, np.ndarray], tmp_path: Path) -> None:
    scoring["file"].send_keys("\n".join(str(tmp_path / name) for name in pictures))
    scoring.wait_for(lambda: "4 scored" in scoring["status"].text)
    ranks = np.array(scoring.run("return page.state.found.map(({ rank }) => rank)"))
    for start in (0.0, float(ranks[1]), 1.0):
        scoring.run(
            """
            const input = document.getElementById("from");
            Object.assign(input, { step: "any", value: given[0] });
            input.dispatchEvent(new Event("input"));
            """,
            start,
        )
        marked = scoring["found"].find_elements(By.CSS_SELECTOR, "li.flagged")
        assert len(marked) == (ranks >= start).sum()
    scoring["clear"].click()
    assert scoring["found"].find_elements(By.TAG_NAME, "li") == []


def test_what_is_no_picture_and_no_scorer_is_said(
    scoring: Page, pictures: dict[str, np.ndarray], tmp_path: Path, deployed_vae: VAE
) -> None:
    (tmp_path / "notes.png").write_text("not a picture")
    scoring["file"].send_keys(f"{tmp_path / 'notes.png'}\n{tmp_path / 'noise.png'}")
    scoring.wait_for(lambda: scoring["error"].is_displayed())
    assert scoring["error"].text == "not pictures that this browser can read: notes.png"
    assert "1 scored" in scoring["status"].text
    (tmp_path / "other.onnx").write_bytes(b"no model")
    scoring["file"].send_keys(str(tmp_path / "other.onnx"))
    scoring.wait_for(lambda: "other.onnx" in scoring["error"].text)
    assert scoring["status"].text == "Still scoring with scorer.onnx."
    assert scoring.run("return page.state.found.length") == 1
