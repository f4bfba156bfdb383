"""The explorer: the page in headless Chromium, which shows what Keras decodes, and asks nothing of others."""

from __future__ import annotations

import contextlib
import functools
import http.server
import io
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import numpy as np
import onnxruntime
import pytest
from browser import Page, few_draws
from conditional import ATTRIBUTES, CLASSES, conditional_vae
from conftest import flow
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from keras_vae import cli
from keras_vae.cli import explorer
from keras_vae.data import avatar_drawing
from keras_vae.export import prior as prior_module
from keras_vae.export.errors import ExportError, VerificationError
from keras_vae.export.prior import export_prior
from keras_vae.export.runtime import Decoder, Encoder
from keras_vae.latents import directions
from keras_vae.model import priors
from keras_vae.runs.opening import open_model


class Site(NamedTuple):
    """A page that is served, the run it is of, and a picture file."""

    address: str
    run: Path
    folder: Path
    photo: Path


@pytest.fixture(scope="module")
def site(kit: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    base = tmp_path_factory.mktemp("explorer")
    images = base / "images"
    images.mkdir()
    drawn = avatar_drawing.draw_many(5, "train", range(260), 32)
    lines = ["image,hat,dark_skin"]
    for index, each in enumerate(drawn):
        Image.fromarray(each.image).save(images / f"{index:03d}.png")
        lines.append(f"{index:03d}.png,{each.attributes['hat']},{each.attributes['dark_skin']}")
    (base / "attributes.csv").write_text("\n".join(lines) + "\n")
    run = base / "faces"
    options = ("--image-size", 32, "--latent-dim", 8, "--batch-size", 32, "--perceptual", "none", "--epochs", 4)
    options = (*options, "--width", 8, "--prior", "standard")
    assert cli.run([str(each) for each in ("train", "--data", images, "--out", run, *options)]) == 0
    vae = open_model(run).whole("testing")
    vae.set_prior(flow(8))
    vae.save(run / "model.keras")
    runtime = kit / "node_modules" / "onnxruntime-web" / "dist"
    with few_draws():
        assert cli.run(["explore", str(run), "--out", str(base / "page"), "--runtime", str(runtime)]) == 0
    with served(base / "page") as address:
        yield Site(address, run, base / "page", images / "007.png")


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder that is served as `keras-vae explore` does."""
    handler = functools.partial(explorer.Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


@pytest.fixture
def explored(page: Page, site: Site) -> Page:
    explored = Page(page.driver, page.downloads, "explore.mjs")
    explored.open(site.address)
    return explored


def decoded(site: Site, page: Page) -> np.ndarray:
    """What Keras, in float32, makes of the latents that the page shows: 0 to 255."""
    z = np.array(page.run("return Array.from(await page.latents())"), np.float32)[None]
    from keras_vae.export.runtime import Decoder

    exported = Decoder(site.folder / "decoder.onnx").decode(z)[0]
    np.testing.assert_allclose(exported, open_model(site.run).decode(z)[0], atol=0.02)  # bfloat16, here and there
    return 255 * exported


def slide(page: Page, name: str, value: float) -> None:
    page.run(
        """
        const slider = document.querySelector(`.sliders input[name="${given[0]}"]`);
        slider.value = given[1];
        slider.dispatchEvent(new Event("input", { bubbles: true }));
        await page.show();
        """,
        name,
        value,
    )


HALF_WAY = """
    document.getElementById("way").value = 0.5;
    document.getElementById("way").dispatchEvent(new Event("input", { bubbles: true }));
    await page.show();
"""


def test_it_shows_what_keras_decodes_and_asks_nothing_of_others(site: Site, explored: Page) -> None:
    np.testing.assert_allclose(explored.canvas("#large")[..., :3], decoded(site, explored), atol=1)
    assert explored["name"].text == "faces"
    assert explored.run("return crossOriginIsolated")
    requests = explored.requests()
    assert any(address.endswith("encoder.onnx") for address in requests)
    assert any(address.endswith("prior.onnx") for address in requests)
    assert all(address.startswith((site.address, "data:")) for address in requests)
    assert not explored.complaints()


def test_sliders_move_the_latents_along_their_directions(site: Site, explored: Page) -> None:
    before = np.array(explored.run("return Array.from(await page.latents())"))
    shown = explored.canvas("#large")
    slide(explored, "hat", 1.5)
    vectors = directions.AttributeVectors.load(site.run / "vectors.npz")
    after = np.array(explored.run("return Array.from(await page.latents())"))
    np.testing.assert_allclose(after - before, 1.5 * vectors.direction("hat"), atol=1e-4)
    about = json.loads((site.folder / "explorer.json").read_text())
    strongest = about["latents"][0]
    slide(explored, strongest["name"], -2.0)
    moved = np.array(explored.run("return Array.from(await page.latents())"))
    axes = np.asarray(open_model(site.run).whole("testing").prior.axes)
    assert [each["name"] for each in about["latents"]] == [f"direction {number}" for number in range(1, 9)]
    np.testing.assert_allclose(strongest["direction"], axes[:, 0], atol=1e-5)
    np.testing.assert_allclose(moved - after, -2.0 * axes[:, 0], atol=1e-4)
    assert np.abs(explored.canvas("#large").astype(int) - shown).max() > 10
    np.testing.assert_allclose(explored.canvas("#large")[..., :3], decoded(site, explored), atol=1)
    explored["reset"].click()
    explored.wait_for(lambda: np.allclose(explored.run("return Array.from(await page.latents())"), before))


def test_samples_are_picked_and_morphed_between_by_keyboard(site: Site, explored: Page) -> None:
    buttons = explored.driver.find_elements(By.CSS_SELECTOR, "#grid button")
    assert len(buttons) == 16
    buttons[2].send_keys(Keys.ENTER)
    explored.wait_for(lambda: buttons[2].get_attribute("aria-pressed") == "true")
    one = np.array(explored.run("return Array.from(await page.latents())"))
    explored["morphing"].send_keys(Keys.SPACE)
    buttons[5].send_keys(Keys.ENTER)
    explored.wait_for(lambda: explored["morph"].is_displayed())
    other = np.array(explored.run("return Array.from(await page.latents())"))
    assert np.abs(one - other).max() > 0.1
    explored["way"].send_keys(Keys.HOME)
    explored.wait_for(lambda: np.allclose(explored.run("return Array.from(await page.latents())"), one, atol=1e-5))
    between = np.array(
        explored.run("return Array.from(page.between(given[0], given[1], 0.5))", one.tolist(), other.tolist())
    )
    np.testing.assert_allclose(between, directions.interpolate(one, other, 3)[1], atol=1e-4)


def test_samples_are_those_of_the_prior(site: Site, explored: Page) -> None:
    """The latents of the page's noise are what Keras's prior makes of it."""
    noise, z = explored.run(
        "await page.draw(11); const { noise, z } = page.state.grid; return [Array.from(noise), Array.from(z)];"
    )
    noise, z = (np.array(each, np.float32).reshape(16, 8) for each in (noise, z))
    prior = open_model(site.run).whole("testing").prior
    np.testing.assert_allclose(z, prior(noise), atol=1e-4)
    assert np.abs(z - noise).max() > 0.1


def test_a_morph_between_samples_leads_through_noise(site: Site, explored: Page) -> None:
    explored.run("await page.draw(3); await page.start(page.sample(2), 2);")
    explored["morphing"].click()
    explored.run("await page.start(page.sample(5), 5);")
    noise = [np.array(explored.run(f"return Array.from(page.sample({index}).noise)")) for index in (2, 5)]
    explored.run(HALF_WAY)
    prior = open_model(site.run).whole("testing").prior
    halfway = directions.interpolate(*noise, 3)[1].astype(np.float32)
    z = np.array(explored.run("return Array.from(await page.latents())"))
    np.testing.assert_allclose(z, prior(halfway[None])[0], atol=1e-4)
    address = explored.run("return location.href")
    explored.open(address)
    np.testing.assert_allclose(explored.run("return Array.from(await page.latents())"), z, atol=1e-6)
    assert explored["morph"].is_displayed()

    explored.run("await page.start(page.sample(2), 2);")
    explored["morphing"].click()
    explored.run("await page.start({ z: page.sample(5).z, noise: null });")  # as a picture is
    ends = [np.array(explored.run(f"return Array.from(page.sample({index}).z)")) for index in (2, 5)]
    explored.run(HALF_WAY)
    z = np.array(explored.run("return Array.from(await page.latents())"))
    np.testing.assert_allclose(z, directions.interpolate(*ends, 3)[1], atol=1e-4)


@pytest.mark.slow
def test_the_address_brings_everything_back(site: Site, explored: Page) -> None:
    explored.run("await page.draw(7); await page.start(page.sample(1), 1);")
    slide(explored, "dark_skin", -1.25)
    address = explored.run("return location.href")
    z, shown = explored.run("return Array.from(await page.latents())"), explored.canvas("#large")
    assert parse_qs(urlsplit(address).fragment)["seed"] == ["7"]
    explored.open(address)
    np.testing.assert_allclose(explored.run("return Array.from(await page.latents())"), z, atol=1e-6)
    np.testing.assert_array_equal(explored.canvas("#large"), shown)
    slider = explored.driver.find_element(By.CSS_SELECTOR, ".sliders input[name='dark_skin']")
    assert float(slider.get_attribute("value")) == -1.25
    for wrong in ("#seed=-1&z=@@@", "#seed=x", "#z=AAAA&to=AAAA&way=9", "#noise=AAAA&to-noise=@&way=1", "#s.hat=much"):
        explored.open(site.address + wrong)
        assert not explored["error"].is_displayed()
        assert np.isfinite(explored.run("return Array.from(await page.latents())")).all()


def test_a_picture_is_encoded_as_keras_does(site: Site, explored: Page) -> None:
    explored.wait_for(lambda: explored["upload"].is_displayed())
    explored["file"].send_keys(str(site.photo))
    explored.wait_for(lambda: not explored.driver.find_elements(By.CSS_SELECTOR, "#grid [aria-pressed='true']"))
    explored.run("await page.show()")
    pixels = np.asarray(Image.open(site.photo).convert("RGB"), np.float32)[None] / 255
    expected = np.asarray(open_model(site.run).whole("testing").encode(pixels).mode())[0]
    np.testing.assert_allclose(explored.run("return Array.from(await page.latents())"), expected, atol=0.1)  # bfloat16
    text = site.folder.parent / "no-picture.png"
    text.write_text("nothing")
    explored["file"].send_keys(str(text))
    explored.wait_for(lambda: "not a picture that this browser can read" in explored["error"].text)


@pytest.fixture(scope="module")
def conditional(kit: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Site]]:
    """Pages of conditional models, which are .keras files: of classes, and of attributes with the prior as at first."""
    base = tmp_path_factory.mktemp("conditional")
    (base / "images").mkdir()
    for index, each in enumerate(avatar_drawing.draw_many(5, "train", range(40), 32)):
        Image.fromarray(each.image).save(base / "images" / f"{index:03d}.png")
    runtime = kit / "node_modules" / "onnxruntime-web" / "dist"
    sites = {}
    with contextlib.ExitStack() as stack:
        for kind, condition in (("classes", CLASSES), ("attributes", ATTRIBUTES)):
            file, out = base / kind / "model.keras", base / f"{kind}-page"
            file.parent.mkdir()
            vae = conditional_vae(condition, (32, 32, 3))
            if kind == "attributes":
                vae.set_prior(priors.StandardNormal(4))
            vae.save(file)
            options = ("--data", base / "images", "--out", out, "--runtime", runtime)
            with few_draws():
                assert cli.run(["explore", str(file), *map(str, options)]) == 0
            sites[kind] = Site(stack.enter_context(served(out)), file, out, base / "images" / "007.png")
        yield sites


SHOWN = """
    await page.show();
    const plain = (each) => each && { ...each, z: Array.from(each.z), noise: each.noise && Array.from(each.noise) };
    const { seed, grid, first, second } = page.state;
    return { grid: plain(grid), first: plain(first), second: plain(second), z: Array.from(await page.latents()) };
"""


def test_another_class_is_shown_of_the_same_latents(conditional: dict[str, Site], page: Page) -> None:
    site = conditional["classes"]
    explored = Page(page.driver, page.downloads, "explore.mjs")
    explored.open(site.address)
    decoder, vae = Decoder(site.folder / "decoder.onnx"), open_model(site.run).whole("testing")
    menu = Select(explored.driver.find_element(By.CSS_SELECTOR, "#condition select"))
    assert [each.text for each in menu.options] == ["any", *CLASSES.names]

    def check(asked: str | None, drawn: str | None) -> dict[str, Any]:
        """The large picture is one of the class, of latents that were drawn as another; the samples are of it."""
        explored.wait_for(lambda: explored.run("return page.state.grid.condition?.join() ?? null") == rows(asked))
        found = explored.run(SHOWN)
        noise, z = (np.reshape(found["grid"][name], (16, 4)).astype(np.float32) for name in ("noise", "z"))
        np.testing.assert_allclose(z, vae.prior(noise, CLASSES.rows(asked, 16)), atol=1e-4)
        np.testing.assert_allclose(found["z"], vae.prior(noise[:1], CLASSES.rows(drawn, 1))[0], atol=1e-4)
        large = decoder.decode(np.array(found["z"], np.float32)[None], asked)[0]
        np.testing.assert_allclose(explored.canvas("#large")[..., :3], 255 * large, atol=1)
        explored.wait_for(  # drawn last
            lambda: np.allclose(
                explored.canvas("#grid li:nth-child(16) canvas")[..., :3],
                255 * decoder.decode(z[15:], asked)[0],
                atol=1,
            )
        )
        return found

    def rows(asked: str | None) -> str | None:
        return None if asked is None else ",".join(f"{each:g}" for each in CLASSES.rows(asked, 1)[0])

    plain = check(None, None)
    menu.select_by_visible_text("boot")
    boot = check("boot", None)
    assert boot["z"] == plain["z"]
    assert np.abs(np.subtract(boot["grid"]["z"], plain["grid"]["z"])).max() > 0.05
    images = [decoder.decode(np.array(plain["z"], np.float32)[None], asked) for asked in (None, "boot")]
    assert np.abs(images[0] - images[1]).max() > 0.05
    explored.run("await page.start(page.sample(0), 0);")
    check("boot", "boot")
    menu.select_by_visible_text(CLASSES.names[1])
    found = check(CLASSES.names[1], "boot")
    explored.open(explored.run("return location.href"))  # the address brings it back
    again = check(CLASSES.names[1], "boot")
    np.testing.assert_allclose(again["z"], found["z"], atol=1e-6)
    assert not explored.complaints()
    kept = urlsplit(explored.run("return location.href")).fragment
    assert "&of=" in kept
    for wrong in ("#c.class=9", "#c.class=@&of=@@", f"#{kept.replace('&of=', '&of=AAAA')}"):
        explored.open(site.address + wrong)
        assert not explored["error"].is_displayed()
        assert np.isfinite(explored.run("return Array.from(await page.latents())")).all()


def test_a_morph_of_samples_of_a_class(conditional: dict[str, Site], page: Page) -> None:
    """Through noise, as of the class that both were drawn as; between samples of two classes through latents."""
    site = conditional["classes"]
    explored = Page(page.driver, page.downloads, "explore.mjs")
    explored.open(site.address)
    vae = open_model(site.run).whole("testing")
    menu = Select(explored.driver.find_element(By.CSS_SELECTOR, "#condition select"))
    menu.select_by_visible_text("boot")
    explored.wait_for(lambda: explored.run("return page.state.grid.condition !== null"))
    explored.run("await page.start(page.sample(2), 2);")
    explored["morphing"].click()
    explored.run("await page.start(page.sample(5), 5);")
    explored.run(HALF_WAY)
    found = explored.run(SHOWN)
    halfway = directions.interpolate(*(np.array(found[each]["noise"]) for each in ("first", "second")), 3)[1]
    expected = vae.prior(halfway[None].astype(np.float32), CLASSES.rows("boot", 1))[0]
    np.testing.assert_allclose(found["z"], expected, atol=1e-4)
    menu.select_by_visible_text("any")
    explored.wait_for(lambda: explored.run("return page.state.grid.condition === null"))
    np.testing.assert_allclose(explored.run(SHOWN)["z"], expected, atol=1e-4)
    explored.run("await page.start(page.sample(5), 5);")
    explored.run(HALF_WAY)
    found = explored.run(SHOWN)
    expected = directions.interpolate(*(np.array(found[each]["z"]) for each in ("first", "second")), 3)[1]
    np.testing.assert_allclose(found["z"], expected, atol=1e-4)


def test_attributes_are_asked_for_and_a_picture_is_encoded_without(conditional: dict[str, Site], page: Page) -> None:
    site = conditional["attributes"]
    explored = Page(page.driver, page.downloads, "explore.mjs")
    explored.open(site.address)
    assert explored["condition"].text.split("\n")[0] == "Pictures of"
    glasses, hat = map(Select, explored.driver.find_elements(By.CSS_SELECTOR, "#condition select"))
    explored.wait_for(lambda: explored["upload"].is_displayed())
    explored["file"].send_keys(str(site.photo))
    explored.wait_for(lambda: not explored.driver.find_elements(By.CSS_SELECTOR, "#grid [aria-pressed='true']"))
    glasses.select_by_visible_text("no")
    hat.select_by_visible_text("yes")
    explored.wait_for(lambda: explored.run("return page.state.grid.condition?.join()") == "-1,1")
    found = explored.run(SHOWN)
    assert found["grid"]["z"] == found["grid"]["noise"]
    pixels = np.asarray(Image.open(site.photo).convert("RGB"), np.float32)[None] / 255
    mean, _ = Encoder(site.folder / "encoder.onnx").encode(pixels)
    vae = open_model(site.run).whole("testing")
    np.testing.assert_allclose(mean, vae.encode(pixels).mean, atol=1e-3)
    np.testing.assert_allclose(found["z"], mean[0], atol=1e-3)
    z = np.array(found["z"], np.float32)[None]
    asked = {"glasses": False, "dark_hat": True}
    expected = Decoder(site.folder / "decoder.onnx").decode(z, asked)[0]
    np.testing.assert_allclose(explored.canvas("#large")[..., :3], 255 * expected, atol=1)
    assert not explored.complaints()


def test_png(site: Site, explored: Page) -> None:
    explored["save"].click()
    path = explored.downloads / "picture.png"
    explored.wait_for(path.is_file)
    saved = np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"), float)
    np.testing.assert_allclose(saved, decoded(site, explored), atol=1)


def test_it_fits_a_phone(site: Site, explored: Page) -> None:
    metrics = {"width": 320, "height": 640, "deviceScaleFactor": 2, "mobile": True}
    explored.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        explored.open(site.address)
        assert explored.run("return document.documentElement.scrollWidth") <= 320
        sizes = explored.run("return [...document.querySelectorAll('button')].map((each) => each.offsetHeight)")
        assert min(sizes) >= 40
    finally:
        explored.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("explore", "RUN", "--out", "FULL"), "holds something else"),
        (("explore", "RUN", "--out", "x", "--runtime", "EMPTY"), "npm install onnxruntime-web"),
        (("explore", "nowhere"), "no model at nowhere"),
        (("explore", "RUN/model.keras", "--out", "x", "--runtime", "RUNTIME", "--data", "nowhere"), "nowhere"),
    ],
)
def test_wrong_use_is_one_line(
    arguments: tuple[str, ...], message: str, site: Site, kit: Path, tmp_path: Path, command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name in ("full", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    places = {
        "RUN": str(site.run),
        "FULL": "full",
        "EMPTY": "empty",
        "RUNTIME": str(kit / "node_modules/onnxruntime-web/dist"),
    }
    start = time.monotonic()
    outcome = command(*(places.get(each, each.replace("RUN/", f"{site.run}/")) for each in arguments))
    assert (outcome.status, outcome.out) == (2, "")
    assert message in outcome.err.splitlines()[-1]
    assert time.monotonic() - start < 20
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"


def test_of_a_standard_normal_prior_the_strongest_latents_are_the_directions(site: Site, tmp_path: Path) -> None:
    shutil.copytree(site.run, tmp_path / "faces")
    model = open_model(tmp_path / "faces")
    vae = model.whole("testing")
    vae.set_prior(priors.StandardNormal(8))
    about = explorer.about_of(model)
    assert (about["prior"], "mixture" in about) == ("standard", False)
    directions = np.array([each["direction"] for each in about["latents"]])
    assert directions.shape == (8, 8)
    assert ((directions != 0).sum(axis=1) == 1).all()
    assert (directions.max(axis=1) > 0).all()
    assert [each["name"] for each in about["latents"]] == [f"latent {each.argmax()}" for each in directions]


def test_a_prior_of_its_own(tmp_path: Path) -> None:
    """The ONNX file makes of noise what Keras does, the identity too, and nothing is written that cannot be."""
    for name, prior in (("flow", flow(5)), ("standard", priors.StandardNormal(5))):
        path = tmp_path / f"{name}.onnx"
        assert export_prior(prior, path, {"model": "abc"}) < 1e-5
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        noise = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
        np.testing.assert_allclose(session.run(["z"], {"noise": noise})[0], prior(noise), atol=1e-5)
        metadata = session.get_modelmeta().custom_metadata_map
        assert (metadata["latent_dim"], metadata["model"]) == ("5", "abc")
        assert "sha256" in metadata
    with pytest.raises(ExportError, match=r"name a file that ends in .onnx"):
        export_prior(prior, tmp_path / "prior.bin")
    with pytest.raises(ExportError, match="cannot write"):
        export_prior(prior, tmp_path / "flow.onnx" / "prior.onnx")
    before = (tmp_path / "flow.onnx").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prior_module, "TOLERANCE", -1.0)
        with pytest.raises(VerificationError, match=r"was not written: the prior differs from Keras by"):
            export_prior(flow(5, seed=4), tmp_path / "flow.onnx")
    assert (tmp_path / "flow.onnx").read_bytes() == before
