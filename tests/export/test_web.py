"""The kit for JavaScript: generator and decoder in Node, and in a page in headless Chromium."""

from __future__ import annotations

import functools
import http.client
import http.server
import io
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import onnx
import pytest
from browser import WEB, Page, few_draws, serving, tool
from conditional import ATTRIBUTES, CLASSES, conditional_vae
from PIL import Image
from scipy import stats
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

import keras_vae
from keras_vae.export.prior import export_prior
from keras_vae.export.runtime import Decoder, Generator

if TYPE_CHECKING:
    from tests.conftest import Deployed


Node = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def node(kit: Path, tmp_path: Path) -> Node:
    """Runs a script of the kit in an empty folder."""

    def run(script: str | Path, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [tool("node"), str(kit / script), *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, **options)

    return run


@pytest.fixture
def latents_json(deployed: Deployed, tmp_path: Path) -> Path:
    path = tmp_path / "z.json"
    path.write_text(json.dumps(deployed.z.tolist()))
    return path


def write_model(
    path: Path, names: tuple[str, str], z: list[Any], image: list[Any], dtype: int = onnx.TensorProto.FLOAT
) -> Path:
    """An ONNX file that reshapes its input."""
    shape = onnx.numpy_helper.from_array(np.array([-1, *image[1:]], np.int64), "shape")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Reshape", [names[0], "shape"], [names[1]])],
        "graph",
        [onnx.helper.make_tensor_value_info(names[0], dtype, z)],
        [onnx.helper.make_tensor_value_info(names[1], dtype, image)],
        [shape],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path


@pytest.fixture
def grey(tmp_path: Path) -> Path:
    """A decoder of images of 2 rows, 3 columns and one channel: its latents are their pixels."""
    return write_model(tmp_path / "grey.onnx", ("z", "image"), ["batch", 6], ["batch", 2, 3, 1])


def refusal(done: subprocess.CompletedProcess[str], status: int = 2) -> str:
    assert done.returncode == status, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not done.stdout
    return done.stderr


def grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Images (count, height, width, channels) in rows, as one picture, ones where there are none."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    blank = np.ones((rows * columns - count, height, width, channels), images.dtype)
    tiles = np.concatenate([images, blank]).reshape(rows, columns, height, width, channels)
    return tiles.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)


# ---------------------------------------------------------------- Node


def test_lock_file_names_no_registry() -> None:
    packages = json.loads((WEB / "package-lock.json").read_text())["packages"]
    assert not [name for name, package in packages.items() if "resolved" in package]
    assert all("integrity" in package for name, package in packages.items() if name)


def test_node_reproduces_keras(deployed: Deployed, node: Node, latents_json: Path, tmp_path: Path) -> None:
    done = node("decode.mjs", deployed.onnx, latents_json, "images.f32")
    assert (done.returncode, done.stderr) == (0, "")
    images = np.fromfile(tmp_path / "images.f32", "<f4").reshape(deployed.images.shape)
    np.testing.assert_allclose(images, deployed.images, atol=1e-4, rtol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.f32", "z.json"]


def test_node_makes_of_noise_what_keras_makes(deployed: Deployed, node: Node, tmp_path: Path) -> None:
    noise = json.dumps(deployed.noise.tolist())
    assert node("decode.mjs", deployed.generator, "-", "images.f32", input=noise).returncode == 0
    images = np.fromfile(tmp_path / "images.f32", "<f4").reshape(deployed.generated.shape)
    np.testing.assert_allclose(images, deployed.generated, atol=1e-4, rtol=0)
    assert "row 0 of the noise has 2 numbers: this generator takes 8" in refusal(
        node("decode.mjs", deployed.generator, "-", "images.f32", input="[[1, 2]]")
    )


def test_node_makes_the_same_pictures_of_images_from_0_to_255(
    deployed_uint8: Deployed, node: Node, latents_json: Path, tmp_path: Path
) -> None:
    latents_json.write_text(json.dumps(deployed_uint8.z.tolist()))
    for file in ("images.f32", "images.ppm"):
        assert node("decode.mjs", deployed_uint8.onnx, latents_json, file).returncode == 0
    images = np.fromfile(tmp_path / "images.f32", "<f4").reshape(deployed_uint8.images.shape)
    np.testing.assert_allclose(images, deployed_uint8.images, atol=0.5 / 255 + 1e-4, rtol=0)
    with Image.open(tmp_path / "images.ppm") as picture:
        np.testing.assert_array_equal(np.asarray(picture), np.round(255 * grid(images, 3)))


def test_generators_decoders_and_priors_are_known_by_their_inputs(
    deployed: Deployed, kit: Path, node: Node, tmp_path: Path
) -> None:
    write_model(tmp_path / "prior.onnx", ("noise", "z"), ["batch", 8], ["batch", 8])
    script = kit / "kinds.mjs"
    script.write_text("""
        import ort from "onnxruntime-node";
        import { Decoder, Generator, load, Prior } from "./decoder.mjs";
        const [generator, decoder, prior] = process.argv.slice(2);
        const [made, found] = [await load(ort, generator), await load(ort, decoder)];
        const { data, drawn } = await made.sample(3, 7);
        const again = (await (await Generator.load(ort, generator)).generate(drawn)).data;
        const z = await (await Prior.load(ort, prior)).latents(drawn);
        const say = (work) => work.catch((error) => error.message);
        console.log(JSON.stringify({
          kinds: [made instanceof Generator, found instanceof Decoder, made.input, found.input],
          same: `${data}` === `${again}` && `${z}` === `${drawn}`,
          errors: await Promise.all(
            [Generator.load(ort, decoder), Decoder.load(ort, generator), load(ort, prior)].map(say),
          ),
        }));
    """)
    try:
        done = node(script, deployed.generator, deployed.onnx, tmp_path / "prior.onnx")
    finally:
        script.unlink()
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert told["kinds"] == [True, True, "noise", "z"]
    assert told["same"]
    for message, words in zip(
        told["errors"],
        [
            "not a generator: it has z, image where a generator has noise and image",
            "not a decoder: it has noise, image where a decoder has z and image",
            "neither generator nor decoder: it has noise, z where a decoder has z and image, and a generator noise and",
        ],
        strict=True,
    ):
        assert words in message


def test_node_draws_a_grid(deployed: Deployed, node: Node, latents_json: Path, tmp_path: Path) -> None:
    assert node("decode.mjs", deployed.onnx, "-", "images.ppm", input=latents_json.read_text()).returncode == 0
    with Image.open(tmp_path / "images.ppm") as picture:
        pixels = np.asarray(picture).astype(np.float64)
    np.testing.assert_allclose(pixels, 255 * grid(deployed.images, columns=3), atol=0.5 + 255e-4)


def test_node_draws_grey_images_and_cuts_off_what_is_beyond(grey: Path, node: Node, tmp_path: Path) -> None:
    assert node("decode.mjs", grey, "-", "grey.ppm", input="[0, 0.2, 0.4, 0.6, -3, 1.5]").returncode == 0
    with Image.open(tmp_path / "grey.ppm") as picture:
        pixels = np.asarray(picture)
    expected = np.array([[0, 51, 102], [153, 0, 255]], np.uint8)
    np.testing.assert_array_equal(pixels, np.repeat(expected[..., None], 3, axis=2))


@pytest.mark.parametrize("kind", ["generator", "onnx"])
def test_node_draws_samples_by_seed(deployed: Deployed, node: Node, tmp_path: Path, kind: str) -> None:
    def sample(seed: int, count: int) -> np.ndarray:
        assert node("decode.mjs", getattr(deployed, kind), "--seed", seed, "--count", count, "out.f32").returncode == 0
        return np.fromfile(tmp_path / "out.f32", "<f4").reshape(count, -1)

    images = sample(7, 40)  # more than a batch
    np.testing.assert_allclose(sample(7, 3), images[:3], atol=1e-6)
    assert np.abs(sample(8, 3) - images[:3]).max() > 0.01


def test_latents_are_standard_normal(kit: Path, node: Node, tmp_path: Path) -> None:
    script = tmp_path / "draw.mjs"
    script.write_text(f"""
        import {{ standardNormal }} from {json.dumps((kit / "decoder.mjs").as_uri())};
        const draws = (seed, count) => Array.from({{ length: count }}, standardNormal(seed));
        const many = Array.from({{ length: 300 }}, (_, seed) => draws(seed, 4));
        console.log(JSON.stringify([draws(0, 20000), many, draws(2 ** 32 - 1, 4)]));
    """)
    stream, many, last = map(np.array, json.loads(node(script).stdout))
    assert stats.kstest(stream, "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(stream[:-1], stream[1:])[0, 1]) < 0.03
    for values in many.T:  # the first numbers of neighbouring seeds are as good
        assert stats.kstest(values, "norm").pvalue > 1e-3
    assert np.isfinite(last).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--help"),
        (("{model}", "z.json"), "--help"),
        (("{model}", "z.json", "out.png"), ".ppm or .f32"),
        (("{model}", "--bogus", "out.f32"), "--bogus"),
        (("{model}", "--seed", "x", "out.f32"), "whole number"),
        (("{model}", "--seed", "4294967296", "out.f32"), "4294967295"),
        (("{model}", "--count", "3", "out.f32"), "--seed"),
        (("{model}", "--seed", "1", "--count", "0", "out.f32"), "from 1 on"),
        (("{model}", "--seed", "1", "--count", "99999999999", "out.f32"), "2 GiB"),
        (("{model}", "--seed", "1", "nowhere/out.f32"), "no folder"),
        (("{model}", "--seed", "1", "folder.f32"), "is a folder"),
        (("{model}", "missing.json", "out.f32"), "missing.json"),
        (("missing.onnx", "--seed", "1", "out.f32"), "no ONNX file at missing.onnx"),
        (("damaged.onnx", "--seed", "1", "out.f32"), "export it again"),
        (("other.onnx", "--seed", "1", "out.f32"), "x, y where a decoder has z and image"),
        (("flat.onnx", "--seed", "1", "out.f32"), "image [batch, 8]"),
        (("half.onnx", "--seed", "1", "out.f32"), "image float16, not float32"),
    ],
)
def test_node_refuses_in_one_line(
    deployed: Deployed, node: Node, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    (tmp_path / "folder.f32").mkdir()
    (tmp_path / "damaged.onnx").write_bytes(deployed.onnx.read_bytes()[:5000])
    write_model(tmp_path / "other.onnx", ("x", "y"), ["batch", 6], ["batch", 2, 3, 1])
    write_model(tmp_path / "flat.onnx", ("z", "image"), ["batch", 8], ["batch", 8])
    half = onnx.TensorProto.FLOAT16
    write_model(tmp_path / "half.onnx", ("z", "image"), ["batch", 6], ["batch", 2, 3, 1], half)
    before = sorted(tmp_path.iterdir())
    assert words in refusal(node("decode.mjs", *(part.format(model=deployed.onnx) for part in arguments)))
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("latents", "words"),
    [
        ("[[1, 2]]", "row 0 of the latents has 2 numbers: this decoder takes 8"),
        ("[[0,0,0,0,0,0,0,0], [0,0,0,0,0,0,0,null]]", "row 1 of the latents holds null"),
        ('[["0",0,0,0,0,0,0,0]]', 'the text "0"'),
        ("[[1e39,0,0,0,0,0,0,0]]", "finite"),
        ("[[NaN,0,0,0,0,0,0,0]]", "not JSON"),
        ("[0,\n0\n]", "a list of 2"),
        ("[]", "no latents"),
        ("{}", "an object"),
        ("null", "null"),
    ],
)
def test_node_refuses_latents(deployed: Deployed, node: Node, tmp_path: Path, latents: str, words: str) -> None:
    (tmp_path / "out.f32").write_text("kept")
    assert words in refusal(node("decode.mjs", deployed.onnx, "-", "out.f32", input=latents))
    assert (tmp_path / "out.f32").read_text() == "kept"


def test_node_finds_one_wrong_bit(deployed: Deployed, node: Node, tmp_path: Path) -> None:
    content = bytearray(deployed.onnx.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped.onnx").write_bytes(content)
    result = node("decode.mjs", tmp_path / "flipped.onnx", "--seed", 0, tmp_path / "out.f32")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "is not what was exported (its checksum differs)" in line
    assert not (tmp_path / "out.f32").exists()


def test_node_says_what_to_install(bare_kit: Path, deployed: Deployed, node: Node) -> None:
    assert "npm ci" in refusal(node(bare_kit / "decode.mjs", deployed.onnx, "--seed", 1, "out.f32"), status=1)


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of conditional models, of classes and of attributes: decoder.onnx, generator.onnx and prior.onnx."""
    folders = {}
    for kind, condition in (("classes", CLASSES), ("attributes", ATTRIBUTES)):
        folders[kind] = folder = tmp_path_factory.mktemp(kind)
        vae = conditional_vae(condition)
        with few_draws():
            vae.export(folder / "decoder.onnx", format="onnx")
            vae.export(folder / "generator.onnx", format="onnx", part="generator")
        export_prior(vae.prior, folder / "prior.onnx", condition.metadata())
    return folders


@pytest.mark.parametrize("file", ["decoder.onnx", "generator.onnx"])
@pytest.mark.parametrize(
    ("kind", "words", "asked"),
    [
        pytest.param("classes", CLASSES.names[1], CLASSES.names[1], marks=pytest.mark.slow),
        ("attributes", "dark_hat=0,glasses=1", {"dark_hat": False, "glasses": True}),
    ],
)
def test_node_asks_by_a_condition_as_python_does(
    conditional: dict[str, Path], node: Node, tmp_path: Path, file: str, kind: str, words: str, asked: Any
) -> None:
    model = conditional[kind] / file
    rows = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)  # more than a batch
    opened = (Decoder if file == "decoder.onnx" else Generator)(model, providers=["CPUExecutionProvider"])
    images = []
    for condition, given in ((None, ()), (asked, ("--condition", words))):
        done = node("decode.mjs", model, "-", "images.f32", *given, input=json.dumps(rows.tolist()))
        assert (done.returncode, done.stderr) == (0, "")
        images.append(np.fromfile(tmp_path / "images.f32", "<f4").reshape(40, 16, 16, 1))
        np.testing.assert_allclose(images[-1], opened._run(rows, condition), atol=1e-4, rtol=0)
    assert np.abs(images[1] - images[0]).max() > 0.05


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        ("classes", "shoe", f'no class "shoe": this decoder knows {", ".join(CLASSES.names)}'),
        ("attributes", "hat=1", 'no attribute "hat": this decoder knows glasses, dark_hat'),
        ("attributes", "glasses=1,", "--condition : give a name and 1 or 0, such as glasses=1"),
        ("attributes", "glasses", "--condition glasses: give a name and 1 or 0, such as glasses=1"),
        ("attributes", "glasses=2", "--condition glasses=2: give a name and 1 or 0, such as glasses=1"),
    ],
)
def test_node_refuses_a_condition_that_a_model_does_not_know(
    conditional: dict[str, Path], node: Node, tmp_path: Path, kind: str, words: str, message: str
) -> None:
    done = node("decode.mjs", conditional[kind] / "decoder.onnx", "--seed", 1, "out.f32", "--condition", words)
    assert refusal(done) == f"decode.mjs: {' '.join(message.split())}\n"
    assert not list(tmp_path.iterdir())


def test_node_refuses_a_condition_of_a_model_without_any(deployed: Deployed, node: Node) -> None:
    done = node("decode.mjs", deployed.generator, "--seed", 1, "out.f32", "--condition", "boot")
    assert "a condition is given, and this generator takes none: leave it out" in refusal(done)


def test_conditions_in_every_form(deployed: Deployed, conditional: dict[str, Path], kit: Path, node: Node) -> None:
    script = kit / "asking.mjs"
    script.write_text("""
        import ort from "onnxruntime-node";
        import { Decoder, Generator, load, Prior } from "./decoder.mjs";
        const [classes, attributes, plain] = process.argv.slice(2);
        const decoder = await load(ort, `${classes}/decoder.onnx`);
        const prior = await Prior.load(ort, `${classes}/prior.onnx`);
        const faces = await Decoder.load(ort, `${attributes}/decoder.onnx`);
        const generator = await Generator.load(ort, `${classes}/generator.onnx`);
        const unconditional = await Decoder.load(ort, plain);
        const list = ({ data }) => Array.from(data);
        const z = decoder.draw(3, 5);
        const parts = [];
        for await (const images of decoder.batches(z, 2, [0, 0, 0, 1, 0, 0, 0, 0, 1])) parts.push(...list(images));
        const message = (error) => `${error.name}: ${error.message}`;
        const say = (model, asked) => model.run(model.draw(3, 5), asked).then(() => "", message);
        const noised = await generator.sample(3, 5, "boot");
        console.log(JSON.stringify({
          known: [decoder, prior, faces, generator, unconditional].map((each) => each.condition),
          z: Array.from(z),
          latents: [Array.from(await prior.latents(z)), Array.from(await prior.latents(z, "boot"))],
          sampled: list(noised),
          same: [
            list(await decoder.decode(z, "boot")),
            list(await decoder.decode(z, [0, 0, 1])),
            list(await decoder.run(z, Float32Array.of(0, 0, 1, 0, 0, 1, 0, 0, 1))),
          ],
          mixed: list(await decoder.decode(z, Float32Array.of(0, 0, 0, 1, 0, 0, 0, 0, 1))),
          parts,
          has: [
            list(await faces.decode(z, { glasses: true, dark_hat: null })),
            list(await faces.decode(z, "glasses")),
            list(await faces.decode(z, { glasses: 1 })),
          ],
          lacks: list(await faces.decode(z, { glasses: 0, dark_hat: true })),
          errors: await Promise.all([
            say(decoder, "shoe"), say(decoder, 2), say(decoder, { boot: true }), say(decoder, [1, 0]),
            say(decoder, [1, 0, NaN]), say(faces, { hat: true }), say(faces, { glasses: "yes" }), say(faces, false),
            say(unconditional, "boot"),
          ]),
        }));
    """)
    try:
        done = node(script, conditional["classes"], conditional["attributes"], deployed.onnx)
    finally:
        script.unlink()
    assert done.stderr == ""
    told = json.loads(done.stdout)
    classes, attributes = CLASSES.config(), ATTRIBUTES.config()
    assert told["known"] == [classes, classes, attributes, classes, None]
    z = np.array(told["z"], np.float32).reshape(3, 4)
    decoder, faces = (Decoder(conditional[kind] / "decoder.onnx") for kind in ("classes", "attributes"))
    vae = conditional_vae(CLASSES)
    for found, asked in zip(told["latents"], (None, "boot"), strict=True):
        np.testing.assert_allclose(np.reshape(found, (3, 4)), vae.prior(z, CLASSES.rows(asked, 3)), atol=1e-4)

    def equal(found: list[float], expected: np.ndarray) -> None:
        np.testing.assert_allclose(np.reshape(found, (3, 16, 16, 1)), expected, atol=1e-4)

    equal(told["sampled"], Generator(conditional["classes"] / "generator.onnx").generate(z, "boot"))
    for found in told["same"]:
        equal(found, decoder.decode(z, "boot"))
    mixed = decoder.decode(z, [None, CLASSES.names[0], "boot"])
    equal(told["mixed"], mixed)
    equal(told["parts"], mixed)
    for found in told["has"]:
        equal(found, faces.decode(z, {"glasses": True}))
    equal(told["lacks"], faces.decode(z, {"glasses": False, "dark_hat": True}))
    knows = ", ".join(CLASSES.names)
    for message, words in zip(
        told["errors"],
        [
            f'no class "shoe": this decoder knows {knows}',
            "the condition is 2: give the name of a class or 3 numbers",
            "the condition is an object: give the name of a class or 3 numbers",
            "the condition has 2 numbers: this decoder takes 3, once or for each of 3 rows",
            "the condition holds NaN: give finite numbers, 0 for what is not known",
            'no attribute "hat": this decoder knows glasses, dark_hat',
            'glasses of the condition is the text "yes": give true or false, or null for either',
            "the condition is false: give a name, an object of attributes, or 2 numbers",
            "a condition is given, and this decoder takes none: leave it out",
        ],
        strict=True,
    ):
        assert message == f"DecoderError: {words}"


def test_metadata_that_do_not_say_what_a_model_takes(conditional: dict[str, Path], node: Node, tmp_path: Path) -> None:
    for entry, words in (
        (keras_vae.Condition(("a", "b")).metadata(), "takes conditions of 3 numbers, and its metadata name 2"),
        ({}, "takes conditions of 3 numbers, and its metadata name none"),
        ({"condition": '{"names": 3}'}, 'its metadata\'s entry "condition" is damaged: export it again'),
        ({"condition": "boot"}, 'its metadata\'s entry "condition" is damaged: export it again'),
    ):
        model = onnx.load(conditional["classes"] / "decoder.onnx")
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, {"a": "1", **entry})
        onnx.save(model, tmp_path / "other.onnx")
        assert words in refusal(node("decode.mjs", "other.onnx", "--seed", 1, "out.f32"))


# ---------------------------------------------------------------- the server


@pytest.fixture(scope="module")
def site(kit: Path, deployed: Deployed) -> Iterator[str]:
    with serving(kit / "serve.mjs", deployed.generator) as address:
        yield address


def test_server_serves_the_kit_and_nothing_beside_it(site: str, kit: Path, deployed: Deployed) -> None:
    (kit.parent / "secret").write_text("secret")
    (kit.parent / "kit-secret").write_text("secret")

    def get(path: str, method: str = "GET") -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection(urlsplit(site).netloc, timeout=10)
        connection.request(method, path)
        response = connection.getresponse()
        return response, response.read()

    page, body = get("/?model=other.onnx")
    assert (page.status, body) == (200, (kit / "index.html").read_bytes())
    assert page.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert page.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert get("/generator.onnx")[1] == deployed.generator.read_bytes()
    assert get("/page.mjs")[0].headers["Content-Type"].startswith("text/javascript")
    wasm, body = get("/node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm", "HEAD")
    assert (wasm.status, wasm.headers["Content-Type"], body) == (200, "application/wasm", b"")
    for path in ("/missing", "/../secret", "/%2e%2e/secret", "/..%2fsecret", "/..%2fkit-secret", "/%00", "/%ff", "//"):
        assert get(path)[0].status == 404, path
    assert get("/", "POST")[0].status == 405


def test_server_refuses_in_one_line(node: Node) -> None:
    assert "no ONNX file at missing.onnx" in refusal(node("serve.mjs", "missing.onnx"))
    assert "65535" in refusal(node("serve.mjs", "--port", "65536"))
    assert "--bogus" in refusal(node("serve.mjs", "--bogus"))


def test_server_says_that_its_port_is_taken(site: str, node: Node) -> None:
    assert "another --port" in refusal(node("serve.mjs", "--port", urlsplit(site).port))


# ---------------------------------------------------------------- the page


def test_page_reproduces_keras(deployed: Deployed, page: Page, site: str) -> None:
    page.open(site)
    images = page.floats("const images = await page.state.model.run(given[0]);", deployed.noise.tolist())
    np.testing.assert_allclose(images, deployed.generated, atol=1e-4, rtol=0)
    page.run("await page.show(Float32Array.from(given[0]), 'Mine')", deployed.noise[2].tolist())
    large = page.canvas("#large")
    np.testing.assert_allclose(large[..., :3], 255 * deployed.generated[2], atol=0.5 + 255e-3)
    assert (large[..., 3] == 255).all()
    assert page["title"].text == "Mine"
    assert page.run("return crossOriginIsolated")
    assert not page.complaints()
    requests = page.requests()
    assert any(address.endswith(".wasm") for address in requests)
    assert all(address.startswith((site, "data:")) for address in requests)


def test_page_decodes_many_at_once(deployed: Deployed, page: Page, site: str) -> None:
    page.open(site)
    script = """
        const calls = Array.from({ length: 20 }, (_, index) => given[0].slice(0, 1 + (index % 5)));
        const parts = await Promise.all(calls.map((z) => page.state.model.run(z)));
        const images = { data: new Float32Array(await new Blob(parts.map((part) => part.data)).arrayBuffer()) };
        images.dims = [60, ...page.state.model.imageShape];
    """
    images = page.floats(script, deployed.noise.tolist())
    expected = np.concatenate([deployed.generated[: 1 + index % 5] for index in range(20)])
    np.testing.assert_allclose(images, expected, atol=1e-3, rtol=0)


def test_page_draws_the_samples_of_its_seed(deployed: Deployed, page: Page, site: str) -> None:
    page.open(site)
    Select(page["count"]).select_by_visible_text("4")
    page["seed"].send_keys(Keys.CONTROL, "a")
    page["seed"].send_keys("12", Keys.ENTER)
    page.wait_for(lambda: page["title"].text == "Sample 1 of seed 12" and "4 images in" in page["status"].text)
    noise = page.floats("const images = { data: page.state.grid, dims: [4, page.state.model.latentDim] };")
    again = page.floats("const images = await page.state.model.sample(4, 12);")
    expected = Generator(deployed.generator, providers=["CPUExecutionProvider"]).generate(noise)
    np.testing.assert_allclose(again, expected, atol=1e-3)
    assert len(page.driver.find_elements(By.CSS_SELECTOR, "#grid canvas")) == 4
    for number, image in enumerate(expected, start=1):
        drawn = page.canvas(f"#grid li:nth-child({number}) canvas")
        np.testing.assert_allclose(drawn[..., :3], 255 * image, atol=0.5 + 255e-3)
    page["new"].click()
    page.wait_for(lambda: page.run("return page.state.seed") != 12)
    assert page["seed"].get_attribute("value") == str(page.run("return page.state.seed"))
    assert not page.complaints()


def test_page_shows_a_sample_large_with_its_noise(page: Page, site: str, tmp_path: Path) -> None:
    page.open(site)
    page.driver.find_element(By.CSS_SELECTOR, "[aria-label='Sample 3']").click()
    page.wait_for(lambda: page["title"].text == "Sample 3 of seed 0")
    np.testing.assert_array_equal(page.canvas("#large"), page.canvas("#grid li:nth-child(3) canvas"))
    noise = page.floats("const images = { data: page.state.grid, dims: [16, 8] };")
    np.testing.assert_array_equal(np.array(json.loads(page["row"].get_attribute("value")), np.float32), noise[2])
    pressed = page.driver.find_elements(By.CSS_SELECTOR, "#grid [aria-pressed=true]")
    assert [each.get_attribute("aria-label") for each in pressed] == ["Sample 3"]

    page["save"].click()
    saved = page.wait_for(lambda: next(tmp_path.glob("*.png"), None))
    assert saved.name == "sample-3-of-seed-0.png"
    with Image.open(io.BytesIO(saved.read_bytes())) as picture:
        np.testing.assert_array_equal(np.asarray(picture.convert("RGBA")), page.canvas("#large"))
    page["copy"].click()
    page.wait_for(lambda: "the noise of this image" in page["status"].text)
    assert not page.complaints()


def test_page_shows_images_from_0_to_255(deployed_uint8: Deployed, page: Page, site: str) -> None:
    page.open(site)
    page["file"].send_keys(str(deployed_uint8.generator))
    page.wait_for(lambda: page.run("return page.state.model?.outputType") == "uint8")
    page.run("await page.show(Float32Array.from(given[0]), 'Mine')", deployed_uint8.noise[2].tolist())
    np.testing.assert_allclose(page.canvas("#large")[..., :3], 255 * deployed_uint8.generated[2], atol=0.5 + 255e-3)
    assert not page.complaints()


def test_page_draws_the_class_that_is_chosen(conditional: dict[str, Path], page: Page, site: str) -> None:
    page.open(site)
    assert not page["condition"].is_displayed()
    model = conditional["classes"] / "generator.onnx"
    page["file"].send_keys(str(model))
    page.wait_for(lambda: page["condition"].is_displayed() and "16 images in" in page["status"].text)
    menu = Select(page.driver.find_element(By.CSS_SELECTOR, "#condition select"))
    assert [each.text for each in menu.options] == ["any", *CLASSES.names]
    noise = page.floats("const images = { data: page.state.grid, dims: [16, 4] };")
    generator = Generator(model, providers=["CPUExecutionProvider"])
    page.driver.find_element(By.CSS_SELECTOR, "[aria-label='Sample 3']").click()

    def shows(asked: Any) -> bool:
        if page["title"].text != "Sample 3 of seed 0" or "16 images in" not in page["status"].text:
            return False
        expected = 255 * np.repeat(generator.generate(noise, asked), 3, axis=-1)
        places = {"#large": 2, "#grid li:nth-child(3) canvas": 2, "#grid li:nth-child(16) canvas": 15}
        return all(np.allclose(page.canvas(at)[..., :3], expected[which], atol=1) for at, which in places.items())

    page.wait_for(lambda: shows(None))
    menu.select_by_visible_text("boot")
    page.wait_for(lambda: shows("boot"))
    assert not shows(None)
    menu.select_by_visible_text("any")
    page.wait_for(lambda: shows(None))
    assert not page.complaints()


def test_page_draws_the_attributes_that_are_chosen(conditional: dict[str, Path], page: Page, site: str) -> None:
    page.open(site)
    model = conditional["attributes"] / "decoder.onnx"
    page["file"].send_keys(str(model))
    page.wait_for(lambda: page["condition"].is_displayed() and "16 images in" in page["status"].text)
    glasses, hat = map(Select, page.driver.find_elements(By.CSS_SELECTOR, "#condition select"))
    assert [each.text for each in glasses.options] == ["any", "yes", "no"]
    assert page["condition"].text.split("\n")[0] == "Images of"
    assert "dark hat" in page["condition"].text
    decoder = Decoder(model, providers=["CPUExecutionProvider"])
    z = page.floats("const images = { data: page.state.grid, dims: [16, 4] };")[:1]
    glasses.select_by_visible_text("yes")
    hat.select_by_visible_text("no")
    expected = 255 * decoder.decode(z, {"glasses": True, "dark_hat": False})[0]
    page.wait_for(lambda: np.allclose(page.canvas("#large")[..., :3], expected, atol=1))
    page["file"].send_keys(str(model.with_name("generator.onnx")))  # another model, of any kind again
    page.wait_for(lambda: page["copy"].text == "Copy noise")
    assert page.run("return document.querySelector('#condition select').value") == ""
    assert not page.complaints()


def test_page_says_that_there_is_no_model(page: Page, site: str) -> None:
    page.open(f"{site}?model=nowhere.onnx")
    assert page["error"].text == "no ONNX file at nowhere.onnx: the server answers 404"
    assert "choose or drop an .onnx file" in page["status"].text
    assert not page["view"].is_displayed()


def test_page_refuses_a_damaged_file_and_keeps_its_model(
    deployed: Deployed, grey: Path, page: Page, site: str, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(deployed.onnx.read_bytes()[:5000])
    page.open(site)
    page["file"].send_keys(str(damaged))
    page.wait_for(lambda: page["error"].is_displayed())
    assert "damaged.onnx is not an ONNX model that onnxruntime can read: export it again" in page["error"].text
    assert page["status"].text == "Still showing generator.onnx."
    assert page.floats("const images = await page.state.model.sample(2, 0);").shape == (2, 32, 32, 3)
    page["file"].send_keys(str(grey))
    page.wait_for(lambda: "grey.onnx" in page["facts"].text and "16 images in" in page["status"].text)
    assert not page["error"].is_displayed()
    assert page["copy"].text == "Copy latents"
    z = page.floats("const images = { data: page.state.grid, dims: [16, 2, 3, 1] };")
    expected = np.broadcast_to(np.clip(z[0], 0, 1), (2, 3, 3))
    np.testing.assert_allclose(page.canvas("#grid li:nth-child(1) canvas")[..., :3], 255 * expected, atol=0.5001)
    assert not page.complaints()


def test_page_takes_a_dropped_file(grey: Path, page: Page, site: str) -> None:
    page.open(f"{site}?model=nowhere.onnx")
    page.run(
        """
        const transfer = new DataTransfer();
        transfer.items.add(new File([Uint8Array.from(given[0])], "grey.onnx"));
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
        """,
        list(grey.read_bytes()),
    )
    page.wait_for(lambda: "grey.onnx" in page["facts"].text and "16 images in" in page["status"].text)
    assert not page["error"].is_displayed()


def test_page_refuses_a_seed_that_is_none(page: Page, site: str) -> None:
    page.open(site)
    page["seed"].send_keys(Keys.CONTROL, "a")
    page["seed"].send_keys("-1", Keys.TAB)
    page.wait_for(lambda: page["error"].text.startswith("Seed: "))
    page["new"].click()
    page.wait_for(lambda: not page["error"].is_displayed())


def test_of_quick_wishes_the_last_is_drawn(page: Page, site: str) -> None:
    page.open(site)
    page.run(
        """
        document.getElementById("count").value = "128";
        page.draw();
        document.getElementById("count").value = "4";
        document.getElementById("seed").value = "5";
        await page.draw();
        """
    )
    time.sleep(0.3)
    assert (page["title"].text, page.run("return page.state.grid.length")) == ("Sample 1 of seed 5", 32)
    assert page["status"].text.startswith("4 images in")
    assert not page["error"].is_displayed()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone_in_both_schemes(page: Page, site: str, scheme: str) -> None:
    metrics = {"width": 320, "height": 640, "deviceScaleFactor": 2, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        page.open(site)
        assert page.run("return document.documentElement.scrollWidth") <= 320
        colours = "return [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        surface, text = (sum(map(int, each[4:-1].split(","))) for each in page.run(colours))
        assert surface > text if scheme == "light" else surface < text
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_page_says_what_to_install(bare_kit: Path, deployed: Deployed, page: Page) -> None:
    with serving(bare_kit / "serve.mjs", deployed.generator) as address:
        page.open(address)
        assert "npm ci" in page["error"].text


def test_page_says_that_the_runtime_did_not_start(bare_kit: Path, kit: Path, page: Page, tmp_path: Path) -> None:
    shutil.copytree(bare_kit, tmp_path / "kit")
    runtime = Path("node_modules", "onnxruntime-web", "dist", "ort.wasm.bundle.min.mjs")
    (tmp_path / "kit" / runtime).parent.mkdir(parents=True)
    shutil.copy(kit / runtime, tmp_path / "kit" / runtime)
    with serving(tmp_path / "kit" / "serve.mjs", kit / "package.json") as address:
        page.open(address)
        assert "onnxruntime did not start" in page["error"].text


def test_page_opened_without_a_server_says_so(kit: Path, page: Page) -> None:
    page.driver.get((kit / "index.html").as_uri())
    page.wait_for(lambda: "serve.mjs" in page["status"].text)


def test_any_server_will_do(deployed: Deployed, kit: Path, page: Page) -> None:
    """Without the headers for threads: one thread, the same images."""
    shutil.copy(deployed.generator, kit / "generator.onnx")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(kit))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            page.open(f"http://127.0.0.1:{server.server_port}/")
            assert not page.run("return crossOriginIsolated")
            images = page.floats("const images = await page.state.model.run(given[0]);", deployed.noise.tolist())
            np.testing.assert_allclose(images, deployed.generated, atol=1e-4, rtol=0)
            assert not page.complaints()
        finally:
            server.shutdown()
            (kit / "generator.onnx").unlink()
