"""The C program of export/cpp: what it decodes is what Keras decodes, and what it refuses it refuses in one line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
from browser import few_draws
from conditional import ATTRIBUTES, CLASSES, conditional_vae
from PIL import Image
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

import keras_vae
from keras_vae.export import seal

if TYPE_CHECKING:
    from tests.conftest import Deployed

SOURCES = Path(__file__).resolve().parents[2] / "export" / "cpp"
WARNINGS = "-Wall -Wextra -Wpedantic -Werror"
LATENTS = 8
TIMEOUT = 120

Run = Callable[..., subprocess.CompletedProcess[str]]


def need(present: bool, what: str) -> None:
    """Skips the test where a tool is missing, but fails it on CI, which has to have them all."""
    if not present:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"needs {what}")


def make(folder: Path, source: str, *settings: str) -> Path:
    """Builds this source with the Makefile, outside the tree; returns the program."""
    need(shutil.which("make") is not None and shutil.which("cc") is not None, "make and a C compiler")
    (folder / "decode.c").write_text(source)
    shutil.copy(SOURCES / "Makefile", folder)
    command = ["make", "-C", str(folder), f"PYTHON={sys.executable}", *settings]
    built = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    assert built.returncode == 0, built.stderr
    assert built.stderr == ""
    return folder / "decode"


def above(part: str) -> str:
    """decode.c up to the line that says this part begins."""
    text = (SOURCES / "decode.c").read_text()
    found = re.search(rf"^/\* =+ {part}\b", text, re.MULTILINE)
    assert found is not None
    return text[: found.start()]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = (SOURCES / "decode.c").read_text()
    return make(tmp_path_factory.mktemp("program"), source, f"CFLAGS=-std=c11 -O2 {WARNINGS}")


@pytest.fixture
def run(program: Path, tmp_path: Path) -> Run:
    """Runs `decode` in the test's folder, without the log level that the tests set for Python."""

    def run(*arguments: object, z: str = "", environment: Mapping[str, str] | None = None) -> Any:
        rest = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
        return subprocess.run(
            [program, *map(str, arguments)],
            cwd=tmp_path,
            env={**rest, **(environment or {})},
            input=z,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )

    return run


def text(z: np.ndarray) -> str:
    return "\n".join(" ".join(f"{value:.9g}" for value in row) for row in z)


def floats(path: Path, *shape: int) -> np.ndarray:
    return np.fromfile(path, np.float32).reshape(-1, *shape)


def save(folder: Path, serve: Callable[[tf.Tensor], dict[str, tf.Tensor]]) -> Path:
    """A SavedModel of one function of z, without the signature `sample`."""
    module = tf.Module()
    module.serve = tf.function(serve, input_signature=[tf.TensorSpec((None, LATENTS), tf.float32, name="z")])
    tf.saved_model.save(module, str(folder), signatures=module.serve)
    return folder


@pytest.fixture(scope="module")
def reshaping(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes decoders whose images are z itself, in a shape."""

    def reshaping(*shape: int) -> Path:
        return save(tmp_path_factory.mktemp("reshaping"), lambda z: {"image": tf.reshape(z, (-1, *shape))})

    return reshaping


def test_the_same_latents_give_the_images_of_keras(run: Run, deployed: Deployed, tmp_path: Path) -> None:
    (tmp_path / "z.txt").write_text(text(deployed.z))
    done = run(deployed.saved_model, "z.txt", "images.f32")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "5 images of 32x32x3 in images.f32\n"
    np.testing.assert_allclose(floats(tmp_path / "images.f32", 32, 32, 3), deployed.images, rtol=0, atol=1e-5)


def test_latents_come_from_standard_input_too(run: Run, deployed: Deployed, tmp_path: Path) -> None:
    done = run(deployed.saved_model, "-", "image.f32", z=text(deployed.z[2:3]).replace(" ", "\n\t "))
    assert (done.returncode, done.stdout) == (0, "1 image of 32x32x3 in image.f32\n")
    np.testing.assert_allclose(floats(tmp_path / "image.f32", 32, 32, 3), deployed.images[2:3], rtol=0, atol=1e-5)


def test_more_latents_than_a_batch(run: Run, deployed: Deployed, tmp_path: Path) -> None:
    assert run(deployed.saved_model, "-", "images.f32", z=text(np.tile(deployed.z, (27, 1)))).returncode == 0
    expected = np.tile(deployed.images, (27, 1, 1, 1))  # 135: two batches and a part
    np.testing.assert_allclose(floats(tmp_path / "images.f32", 32, 32, 3), expected, rtol=0, atol=1e-5)


def test_a_picture_shows_the_images_as_a_grid(run: Run, deployed: Deployed, tmp_path: Path) -> None:
    (tmp_path / "images.ppm").write_text("the one before")
    assert run(deployed.saved_model, "-", "images.ppm", z=text(deployed.z)).returncode == 0
    pixels = np.asarray(Image.open(tmp_path / "images.ppm"))
    assert pixels.shape == (64, 96, 3)
    places = pixels.reshape(2, 32, 3, 32, 3).swapaxes(1, 2).reshape(6, 32, 32, 3)
    np.testing.assert_allclose(places[:5] / 255, deployed.images, rtol=0, atol=0.5 / 255 + 1e-5)
    assert (places[5] == 255).all()
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "images.ppm").stat().st_mode & 0o777 == 0o666 & ~mask


def test_images_from_0_to_255_are_the_same_pictures(run: Run, deployed_uint8: Deployed, tmp_path: Path) -> None:
    for file in ("images.ppm", "images.f32"):
        assert run(deployed_uint8.saved_model, "-", file, z=text(deployed_uint8.z)).returncode == 0
    found = floats(tmp_path / "images.f32", 32, 32, 3)
    np.testing.assert_allclose(found, deployed_uint8.images, rtol=0, atol=0.5 / 255 + 1e-4)
    levels = 255 * found.astype(np.float64)
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)
    pixels = np.asarray(Image.open(tmp_path / "images.ppm"))
    np.testing.assert_array_equal(pixels[:32, 32:64], np.round(levels[1]))
    assert run(deployed_uint8.saved_model, "--seed", 1, "--count", 2, "two.ppm").returncode == 0
    noise = run(deployed_uint8.saved_model, "--noise", "-", "noise.f32", z=text(np.tile(deployed_uint8.noise, (14, 1))))
    assert noise.returncode == 0  # more than a batch
    expected = np.tile(deployed_uint8.generated, (14, 1, 1, 1))
    np.testing.assert_allclose(floats(tmp_path / "noise.f32", 32, 32, 3), expected, rtol=0, atol=0.5 / 255 + 1e-4)


def test_a_picture_of_one_channel(run: Run, reshaping: Callable[..., Path], tmp_path: Path) -> None:
    z = np.array([[0, 0.2, 0.5, 1, -3, 7, 1e-3, 0.999]])  # what is beyond 0 and 1 is cut off
    assert run(reshaping(2, 4, 1), "-", "image.pgm", z=text(z)).returncode == 0
    picture = Image.open(tmp_path / "image.pgm")
    assert picture.mode == "L"
    np.testing.assert_array_equal(np.asarray(picture), [[0, 51, 128, 255], [0, 255, 0, 255]])


@pytest.mark.parametrize(("channels", "wrong", "right"), [(1, "ppm", "pgm"), (2, "ppm", "f32"), (4, "pgm", "f32")])
def test_a_picture_that_its_format_does_not_have(
    run: Run, reshaping: Callable[..., Path], tmp_path: Path, channels: int, wrong: str, right: str
) -> None:
    saved_model = reshaping(2, 4 // channels, channels)
    z = np.arange(8, dtype=np.float32)
    refused = run(saved_model, "-", f"image.{wrong}", z=text(z[None]))
    assert refused.returncode == 2
    assert refused.stderr.endswith(f"name a file that ends in .{right}\n")
    assert run(saved_model, "-", f"image.{right}", z=text(z[None])).returncode == 0
    if right == "f32":
        np.testing.assert_array_equal(np.fromfile(tmp_path / "image.f32", np.float32), z)


def test_a_seed_draws_what_the_saved_model_draws(run: Run, deployed: Deployed, tmp_path: Path) -> None:
    sample = tf.saved_model.load(str(deployed.saved_model)).signatures["sample"]
    expected = sample(count=tf.constant(3, tf.int64), seed=tf.constant(-7, tf.int64))["image"].numpy()
    assert run(deployed.saved_model, "--seed", -7, "--count=3", "three.f32").returncode == 0
    assert run("--seed=-7", deployed.saved_model, "one.f32").returncode == 0
    assert run(deployed.saved_model, "other.f32", "--seed", 8).returncode == 0
    np.testing.assert_allclose(floats(tmp_path / "three.f32", 32, 32, 3), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(floats(tmp_path / "one.f32", 32, 32, 3), expected[:1], rtol=0, atol=1e-5)
    assert abs(floats(tmp_path / "other.f32", 32, 32, 3) - expected[:1]).max() > 1e-3


def test_the_same_noise_gives_the_images_of_keras(run: Run, deployed: Deployed, tmp_path: Path) -> None:
    (tmp_path / "noise.txt").write_text(text(deployed.noise))
    done = run(deployed.saved_model, "--noise", "noise.txt", "images.f32")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "5 images of 32x32x3 in images.f32\n"
    np.testing.assert_allclose(floats(tmp_path / "images.f32", 32, 32, 3), deployed.generated, rtol=0, atol=1e-5)
    many = text(np.tile(deployed.noise, (27, 1)))
    assert run("--noise=-", deployed.saved_model, "many.f32", z=many).returncode == 0
    expected = np.tile(deployed.generated, (27, 1, 1, 1))
    np.testing.assert_allclose(floats(tmp_path / "many.f32", 32, 32, 3), expected, rtol=0, atol=1e-5)


class Conditional(NamedTuple):
    """Conditional models, of classes and of attributes, and their SavedModels."""

    models: dict[str, keras_vae.VAE]
    saved_models: dict[str, Path]

    def images(self, kind: str, z: np.ndarray, asked: Any, are_noise: bool = False) -> np.ndarray:
        """What Keras makes of latents, or of noise."""
        vae = self.models[kind]
        assert vae.condition is not None
        rows = vae.condition.rows(asked, len(z))
        found = vae.decode(vae.prior(z, rows) if are_noise else z, condition=rows)
        return keras.ops.convert_to_numpy(found)


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Conditional:
    models = {"classes": conditional_vae(CLASSES), "attributes": conditional_vae(ATTRIBUTES)}
    places = {kind: tmp_path_factory.mktemp(kind) / "1" for kind in models}
    for kind, vae in models.items():
        with few_draws():
            vae.export(places[kind])
    return Conditional(models, places)


ASKED = [("classes", CLASSES.names[1], CLASSES.names[1])]
ASKED += [("attributes", "dark_hat=0,glasses=1", {"dark_hat": False, "glasses": True})]


@pytest.mark.parametrize(("kind", "words", "asked"), ASKED)
def test_a_condition_gives_the_images_of_keras(
    run: Run, conditional: Conditional, tmp_path: Path, kind: str, words: str, asked: Any
) -> None:
    saved_model = conditional.saved_models[kind]
    z = np.random.default_rng(0).standard_normal((70, 4)).astype(np.float32)  # more than a batch
    for number, option in enumerate((["-"], ["--noise", "-"])):
        for condition, given in ((None, ()), (asked, ("--condition", words))):
            done = run(saved_model, *option, "images.f32", *given, z=text(z))
            assert (done.returncode, done.stderr) == (0, "")
            expected = conditional.images(kind, z, condition, are_noise=bool(number))
            np.testing.assert_allclose(floats(tmp_path / "images.f32", 16, 16, 1), expected, rtol=0, atol=1e-4)
        assert np.abs(expected - conditional.images(kind, z, None, are_noise=bool(number))).max() > 0.05
    sample = tf.saved_model.load(str(saved_model)).signatures["sample"]
    for condition, given in ((None, ()), (asked, (f"--condition={words}",))):
        row = conditional.models[kind].condition.rows(condition, 1)[0]
        scalars = {"count": tf.constant(3, tf.int64), "seed": tf.constant(7, tf.int64)}
        expected = sample(**scalars, condition=tf.constant(row))["image"].numpy()
        assert run(saved_model, "--seed", 7, "--count", 3, "three.f32", *given).returncode == 0
        np.testing.assert_allclose(floats(tmp_path / "three.f32", 16, 16, 1), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        ("classes", "shoe", f"no class 'shoe': this model knows {', '.join(CLASSES.names)}"),
        ("classes", "boot=1", f"no class 'boot=1': this model knows {', '.join(CLASSES.names)}"),
        ("classes", "", f"no class '': this model knows {', '.join(CLASSES.names)}"),
        ("attributes", "hat=1", "no attribute 'hat': this model knows glasses, dark_hat"),
        ("attributes", "glasses=1,=0", "attribute '=0': give a name and 1 or 0, such as glasses=1"),
        ("attributes", "glasses=1,", "attribute '': give a name and 1 or 0, such as glasses=1"),
        ("attributes", "glasses", "attribute 'glasses': give a name and 1 or 0, such as glasses=1"),
        ("attributes", "glasses=2", "attribute 'glasses=2': give a name and 1 or 0, such as glasses=1"),
    ],
)
def test_a_condition_that_a_model_does_not_know(
    run: Run, conditional: Conditional, tmp_path: Path, kind: str, words: str, message: str
) -> None:
    done = run(conditional.saved_models[kind], "--seed", 1, "out.f32", "--condition", words)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"decode: {message}\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow  # a model of its own for one message
def test_many_names_are_cut_short(run: Run, tmp_path: Path) -> None:
    vae = conditional_vae(keras_vae.Condition(tuple(f"{'x' * number} {number}" for number in range(200)), True))
    with few_draws():
        vae.export(tmp_path / "many" / "1")
    done = run(tmp_path / "many" / "1", "--seed", 1, "out.f32", "--condition", "one")
    assert done.returncode == 2
    assert done.stderr.startswith("decode: no class 'one': this model knows  0, x 1, xx 2, ")
    assert done.stderr.endswith(f"{'x' * 19} 19 and 180 more\n")
    assert run(tmp_path / "many" / "1", "--seed", 1, "out.f32", "--condition", f"{'x' * 150} 150").returncode == 0


def test_a_condition_of_a_model_without_any(run: Run, deployed: Deployed) -> None:
    done = run(deployed.saved_model, "--seed", 1, "out.f32", "--condition", "boot")
    assert done.returncode == 2
    assert done.stderr == "decode: a condition is given, and this model takes none: leave it out\n"


def test_a_conditional_model_that_does_not_say_its_names(run: Run, conditional: Conditional, tmp_path: Path) -> None:
    shutil.copytree(conditional.saved_models["classes"], tmp_path / "model")
    manifest = tmp_path / "model" / "assets.extra" / "keras_vae.json"
    manifest.write_text(manifest.read_text().replace('\\"boot\\"', '\\"boot\\", \\"bag\\"'))
    for names in (4, 0):
        done = run("model", "--seed", 1, "out.f32")
        assert done.returncode == 2
        wanted = f"model takes conditions of 3 numbers, and its file assets.extra/keras_vae.json names {names}"
        assert done.stderr == f"decode: {wanted}: export it again\n"
        manifest.unlink(missing_ok=True)


GIVE = "give SAVED_MODEL, Z or --seed N or --noise FILE, and OUT"
WRONG_USE = [
    ([], GIVE),
    (["MODEL", "-"], GIVE),
    (["MODEL", "-", "OUT", "more"], GIVE),
    (["MODEL", "-", "OUT", "--seed", "1"], GIVE),
    (["MODEL", "-", "OUT", "--noise", "-"], GIVE),
    (["MODEL", "OUT", "--noise", "-", "--seed", "1"], GIVE),
    (["MODEL", "OUT", "--noise"], "--noise: give a file after it"),
    (["MODEL", "-", "OUT", "--condition"], "--condition: give a class, or attributes, after it"),
    (["MODEL", "OUT", "--noise", "-", "--count", "2"], "--count goes with --seed"),
    (["MODEL", "OUT", "--noise", "noise.txt"], "cannot read noise.txt: No such file or directory"),
    (["MODEL", "-", "OUT", "--count", "2"], "--count goes with --seed"),
    (["MODEL", "OUT", "--seed"], "--seed: give a whole number"),
    (["MODEL", "OUT", "--seed", "1.5"], "--seed 1.5: give a whole number"),
    (["MODEL", "OUT", "--seed", "9223372036854775808"], "--seed 9223372036854775808: give a whole number"),
    (["MODEL", "OUT", "--seed", "1", "--count", "0"], "--count 0: give a whole number from 1 to 1000"),
    (["MODEL", "OUT", "--seed", "1", "--count", "1001"], "--count 1001: give a whole number from 1 to 1000"),
    (["MODEL", "-", "OUT", "--sead", "1"], "--sead: no such option"),
    (["MODEL", "-", "OUT", "-xy"], "-x: no such option"),
    (["MODEL", "-", "out.png"], "out.png: name a file that ends in .ppm, .pgm or .f32"),
    (["MODEL", "-", ".ppm"], ".ppm: name a file that ends in"),
    (["MODEL", "-", "missing/out.ppm"], "cannot write missing/out.ppm: No such file or directory"),
    (["MODEL", "-", "/out.d/out.ppm"], "cannot write /out.d/out.ppm: No such file or directory"),
    (["MODEL", "-", "folder.ppm"], "cannot write folder.ppm: Is a directory"),
    (["MODEL", "z.txt", "OUT"], "cannot read z.txt: No such file or directory"),
    (["MODEL", "folder.ppm", "OUT"], "cannot read folder.ppm: Is a directory"),
    (["missing\nmodel", "-", "OUT"], "cannot read missing model (give the folder of a saved_model.pb"),
    (["folder.ppm", "-", "OUT"], "cannot read folder.ppm (give the folder of a saved_model.pb"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG_USE)
def test_wrong_use_is_one_line_and_status_2(
    run: Run, deployed: Deployed, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "folder.ppm").mkdir()
    names = {"MODEL": str(deployed.saved_model), "OUT": "out.ppm"}
    done = run(*(names.get(argument, argument) for argument in arguments), z=text(deployed.z))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"decode: {message}")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["folder.ppm"]


@pytest.mark.parametrize(
    ("z", "message"),
    [
        ("", "standard input holds 0 numbers: this decoder takes vectors of 8"),
        ("1 2 3 4 5 6 7", "standard input holds 7 numbers: this decoder takes vectors of 8"),
        ("1 2 3 4\n5 6\n\n7 eight", "standard input, line 4: 'eight' is not a finite float32 number"),
        ("1, 2, 3, 4, 5, 6, 7, 8", "standard input, line 1: '1,' is not a finite float32 number"),
        ("1 2 3 4 5 6 7 nan", "standard input, line 1: 'nan' is not a finite float32 number"),
        ("1 2 3 4 5 6 7 -inf", "standard input, line 1: '-inf' is not a finite float32 number"),
        ("1 2 3 4 5 6 7 1e39", "standard input, line 1: '1e39' is not a finite float32 number"),
        ("1 2 3 4 5 6 7 8\x00", "standard input, line 1: '8' is not a finite float32 number"),
        ("\x00" * 5000, "standard input, line 1: '' is not a finite float32 number"),
        ("x" * 5000, f"standard input, line 1: '{'x' * 40}' is not a finite float32 number"),
    ],
)
def test_latents_that_are_none(run: Run, deployed: Deployed, tmp_path: Path, z: str, message: str) -> None:
    (tmp_path / "out.ppm").write_text("the one before")
    done = run(deployed.saved_model, "-", "out.ppm", z=z)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"decode: {message}")
    assert done.stderr.count("\n") == 1
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"out.ppm": "the one before"}


@pytest.fixture(scope="module")
def no_decoders(deployed: Deployed, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """SavedModels that cannot be decoded with, by what is wrong with them."""
    folder = tmp_path_factory.mktemp("no_decoders")
    for name in ("graph", "weights", "index"):
        shutil.copytree(deployed.saved_model, folder / name)
    graph = folder / "graph" / "saved_model.pb"
    graph.write_bytes(graph.read_bytes()[:1000])
    (weights,) = (folder / "weights" / "variables").glob("variables.data*")
    os.truncate(weights, 1000)
    (folder / "index" / "variables" / "variables.index").unlink()
    save(folder / "output", lambda z: {"logits": tf.reshape(z, (-1, 2, 4, 1))})
    save(folder / "rank", lambda z: {"image": tf.reshape(z, (-1, 2, 4))})
    save(folder / "type", lambda z: {"image": tf.cast(tf.reshape(z, (-1, 2, 4, 1)), tf.float64)})
    save(folder / "failing", lambda z: {"image": tf.reshape(tf.debugging.check_numerics(1 / z, "1/z"), (-1, 2, 4, 1))})
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("graph", 2, "cannot read {} (give the folder of a saved_model.pb, or export it again): "),
        ("weights", 2, "cannot read {} (give the folder of a saved_model.pb, or export it again): "),
        ("index", 2, "{} lacks its file variables/variables.index: copy it whole or export it again"),
        ("output", 2, "{} is not a decoder: its signature serving_default does not take z and return image"),
        ("rank", 2, "{} is not a decoder: its signature serving_default does not take z and return image"),
        ("type", 2, "{} is not a decoder: its signature serving_default does not take z and return image"),
        ("failing", 1, "decoding failed: 1/z : Tensor had Inf"),
    ],
)
def test_a_saved_model_that_is_no_decoder(
    run: Run, no_decoders: dict[str, Path], tmp_path: Path, name: str, status: int, message: str
) -> None:
    done = run(no_decoders[name], "-", "out.f32", z="0 1 2 3 4 5 6 7")
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(f"decode: {message.format(no_decoders[name])}")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_saved_model_that_cannot_sample(run: Run, reshaping: Callable[..., Path]) -> None:
    done = run(reshaping(2, 4, 1), "--seed", 1, "out.f32")
    assert done.returncode == 2
    assert done.stderr == "decode: the SavedModel has no signature sample: give latents, or export it again\n"
    done = run(reshaping(2, 4, 1), "--noise", "-", "out.f32", z="1 2 3 4 5 6 7 8")
    assert done.returncode == 2
    assert done.stderr == "decode: the SavedModel has no signature generate: give latents, or export it again\n"


def test_help(run: Run) -> None:
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: decode SAVED_MODEL Z OUT\n")


def test_tensorflow_logs_where_the_user_wants_it(run: Run, deployed: Deployed) -> None:
    def log(level: str, *arguments: object) -> str:
        done = run(*arguments, z=text(deployed.z), environment={"TF_CPP_MIN_LOG_LEVEL": level})
        assert done.returncode == 0
        return done.stderr

    decoding = (deployed.saved_model, "-", "out.ppm")
    assert "Reading SavedModel from" in log("0", *decoding)
    assert log("0", "--help") != ""  # what TensorFlow 2.21 logs before main
    assert log("3", *decoding) == ""
    refused = run(deployed.saved_model, "missing", "out.ppm", environment={"TF_CPP_MIN_LOG_LEVEL": "3"})
    assert (refused.returncode, refused.stderr) == (2, "decode: cannot read missing: No such file or directory\n")


def test_make_says_when_there_is_no_tensorflow(tmp_path: Path) -> None:
    need(shutil.which("make") is not None, "make")
    shutil.copy(SOURCES / "Makefile", tmp_path)
    shutil.copy(SOURCES / "decode.c", tmp_path)
    command = ["make", "-C", str(tmp_path), "PYTHON=true"]  # runs, and finds nothing
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 2
    assert "true has no TensorFlow: make PYTHON=" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_program_in_the_readme(deployed: Deployed, tmp_path: Path) -> None:
    (main,) = re.findall(r"```c\n(.*?)```", (SOURCES / "README.md").read_text(), re.DOTALL)
    app = make(tmp_path, above("The command") + main, f"CFLAGS=-std=c11 {WARNINGS}")
    done = subprocess.run([app, deployed.saved_model], capture_output=True, text=True, timeout=TIMEOUT, check=True)
    sample = tf.saved_model.load(str(deployed.saved_model)).signatures["sample"]
    pixel = sample(count=tf.constant(1, tf.int64), seed=tf.constant(0, tf.int64))["image"].numpy()[0, 0, 0]
    size, values = done.stdout.splitlines()
    assert size == "32x32x3"
    np.testing.assert_allclose([float(value) for value in values.split()], pixel, rtol=0, atol=2e-6)
    assert subprocess.run([app, tmp_path], capture_output=True, timeout=TIMEOUT).returncode == 2


READS_DAMAGED_BYTES = r"""
static void look(const unsigned char *from, size_t length, const char *signature, bool say)
{
    unsigned char *copy = (unsigned char *)malloc(length); /* of this very length: a byte beyond is found out */
    if (copy == NULL)
        abort();
    memcpy(copy, from, length);
    Bytes found = {copy, copy + length};
    TensorInfo info;
    if (find_entry(found, META_GRAPH_SIGNATURES, signature, &found) &&
        find_tensor(found, SIGNATURE_OUTPUTS, "image", &info) && say)
        printf("%.*s %d %d %lld %lld\n", (int)(info.name.end - info.name.at), (const char *)info.name.at,
               (int)info.dtype, info.rank, (long long)info.dims[0], (long long)info.dims[3]);
    free(copy);
}

int main(void)
{
    static unsigned char bytes[100000];
    const size_t length = fread(bytes, 1, sizeof bytes, stdin);
    look(bytes, length, "sample", true);
    look(bytes, length, "serving_default", true);
    for (size_t i = 0; i < length; i++) {
        look(bytes, i, "serving_default", false);
        const unsigned char kept = bytes[i];
        for (int value = 0; value < 256; value++) {
            bytes[i] = (unsigned char)value;
            look(bytes, length, "serving_default", false);
        }
        bytes[i] = kept;
    }
    return 0;
}
"""


@pytest.fixture
def sanitizers() -> list[str]:
    """Settings of make with which a read beyond an allocation ends the program."""
    need(shutil.which("gcc") is not None, "gcc")
    for library in ("libasan.so", "libubsan.so"):
        place = subprocess.run(["gcc", f"-print-file-name={library}"], capture_output=True, text=True, check=True)
        need("/" in place.stdout, f"gcc's {library}")
    return ["CC=gcc", "CFLAGS=-std=c11 -g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all"]


def test_damaged_signatures_are_read_within_their_bytes(
    deployed: Deployed, sanitizers: list[str], tmp_path: Path
) -> None:
    """Cut short anywhere, and with each byte made any other."""
    program = make(tmp_path, above("The decoder") + READS_DAMAGED_BYTES, *sanitizers, "TF_LIBS=")
    saved_model = saved_model_pb2.SavedModel.FromString((deployed.saved_model / "saved_model.pb").read_bytes())
    signatures = meta_graph_pb2.MetaGraphDef()
    for name, signature in saved_model.meta_graphs[0].signature_def.items():
        signatures.signature_def[name].CopyFrom(signature)
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}  # which wants ptrace, and not all containers have it
    done = subprocess.run(
        [program], input=signatures.SerializeToString(), env=environment, capture_output=True, timeout=TIMEOUT
    )
    assert (done.returncode, done.stderr) == (0, b"")
    expected = [
        f"{signatures.signature_def[name].outputs['image'].name} 1 4 -1 3" for name in ("sample", "serving_default")
    ]
    assert done.stdout.decode().splitlines() == expected


READS_DAMAGED_NAMES = r"""
static void look(const char *from, size_t length, bool say)
{
    char *copy = (char *)malloc(length + 1); /* of this very length: a byte beyond is found out */
    if (copy == NULL)
        abort();
    memcpy(copy, from, length);
    copy[length] = '\0';
    Names names;
    read_names(copy, &names);
    for (size_t i = 0; say && i < names.count; i++)
        printf("%d %s\n", names.exclusive, names.names[i]);
    free_names(&names);
    free(copy);
}

int main(void)
{
    static char text[100000];
    const size_t length = fread(text, 1, sizeof text, stdin);
    look(text, length, true);
    for (size_t i = 0; i < length; i++) {
        look(text, i, false);
        const char kept = text[i];
        for (int value = 0; value < 256; value++) {
            text[i] = (char)value;
            look(text, length, false);
        }
        text[i] = kept;
    }
    return 0;
}
"""


def test_damaged_names_are_read_within_their_bytes(sanitizers: list[str], tmp_path: Path) -> None:
    """Cut short anywhere, and with each byte made any other."""
    program = make(tmp_path, above("The decoder") + READS_DAMAGED_NAMES, *sanitizers, "TF_LIBS=")
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}  # as above
    odd = keras_vae.Condition(('a "b"\\ \n, ] } \t/', "é", "中", "👜", "\x7f", "boot"))
    for condition in (odd, CLASSES):
        manifest = seal.manifest({"a": '"condition": {[', **condition.metadata(), "z": "1"}, {"saved_model.pb": "0f"})
        done = subprocess.run([program], input=manifest.encode(), env=environment, capture_output=True, timeout=TIMEOUT)
        assert (done.returncode, done.stderr) == (0, b"")
        expected = "".join(f"{int(condition.exclusive)} {name}\n" for name in condition.names)
        assert done.stdout.decode() == expected
