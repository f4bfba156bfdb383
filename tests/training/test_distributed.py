"""Training on several devices and workers: the same curve, no image twice, and one worker's death ends them all."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as some

from keras_vae import cli, data
from keras_vae.data.pipelines import Share
from keras_vae.runs import checkpoints
from keras_vae.training import strategies

Command = Callable[..., Any]
OPTIONS = ("--image-size", 16, "--latent-dim", 4, "--batch-size", 16, "--perceptual", "none", "--width", 4)
RUN = (*OPTIONS, "--precision", "float32", "--flip", "--epochs", 2)
# Logical devices have to be made before TensorFlow is used.
SCRIPT = """
import json, sys
import numpy as np, tensorflow as tf, keras
replicas, settings = int(sys.argv[1]), json.loads(sys.argv[2])
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)
from keras_vae import VAE, data
from keras_vae.training import strategies
x = np.load(sys.argv[3])
strategy = tf.distribute.get_strategy()
if replicas > 1:
    strategy = tf.distribute.MirroredStrategy([f"CPU:{number}" for number in range(replicas)])
found = []
for case in settings:
    rate, optimizer = case.pop("rate"), case.pop("optimizer")
    keras.utils.set_random_seed(0)
    with strategy.scope():
        vae = VAE((16, 16, 3), 4, network_options={"width": 4}, seed=1, **{"perceptual": None, **case})
        vae.compile(getattr(keras.optimizers, optimizer)(rate))
    images = data.load(x, batch_size=64, flip=True, random_crop=2, share=strategies.share(strategy))
    steps = images.train_size // 64
    vae.fit(
        strategies.distributed(strategy, images.train_from(0)), steps_per_epoch=steps, epochs=3, verbose=0,
        validation_data=strategies.distributed(strategy, images.test), validation_steps=-(-images.test_size // 64),
    )
    moments = [np.array(each).ravel().tolist() for each in vae.non_trainable_weights if "moving" in each.path]
    weights = [np.array(each).ravel().tolist() for each in vae.trainable_weights]
    found.append({"history": {name: [float(v) for v in values] for name, values in vae.history.history.items()},
                  "weights": sum(weights, []), "moments": sum(moments, [])})
# Arrays, which Keras hands out itself, the last batch smaller than the rest. Whatever follows is of the same type and
# of any number of images: each method is traced once.
x = (x / 255).astype(np.float32)
keras.utils.set_random_seed(0)
with strategy.scope():
    vae = VAE((16, 16, 3), 4, network_options={"width": 4}, seed=1, perceptual=None)
    vae.compile(keras.optimizers.SGD(1e-6, momentum=0.9, use_ema=True))
history = vae.fit(x[:72], batch_size=32, epochs=2, shuffle=False, verbose=0).history
found.append({"history": {name: [float(v) for v in values] for name, values in history.items()},
              "predicted": vae.predict(x[:10], batch_size=4, verbose=0).ravel().tolist()})
# A dataset, which Keras shares out itself.
whole = tf.data.Dataset.from_tensor_slices(x[:64]).batch(32)
found[-1]["history"] |= {
    f"dataset_{name}": [float(v) for v in values]
    for name, values in vae.fit(whole, epochs=2, validation_data=whole, verbose=0).history.items()
}
try:
    vae.fit(x[:65], batch_size=32, shuffle=False, verbose=0)
except Exception as error:
    found[-1]["refused"] = f"{type(error).__name__}: {error}"
try:
    with strategy.scope():
        VAE((16, 16, 3), 4, network_options={"width": 4}, perceptual=None, dtype="mixed_float16").compile("adam")
except Exception as error:
    found[-1]["mixed_float16"] = f"{type(error).__name__}: {error}"
if replicas == 1:  # what follows is compared with nothing
    print("RESULT" + json.dumps(found))
    sys.exit()
# A step that is not to be followed moves nothing, on no replica; here one replica alone has the bad image.
def state():
    variables = [each._value for each in (*vae.weights, *vae.likelihood.weights, *vae.optimizer.variables)]
    variables += vae.averaging.variables
    return [np.array(one) for each in variables for one in strategy.experimental_local_results(each)]
before, said = state(), []
for spoiled in (np.nan, 255.0):
    bad = x[:32].copy()
    bad[3] *= spoiled
    for method in (vae.fit, vae.evaluate, vae.predict):
        try:
            method(tf.data.Dataset.from_tensor_slices(bad).batch(32), verbose=0)
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
vae.beta_variable.assign(np.nan)
try:
    vae.fit(whole, verbose=0)
except Exception as error:
    said.append(f"{type(error).__name__}: {error}")
steps = strategy.experimental_local_results(vae.optimizer.iterations._value)[0]
found[-1] |= {"said": said, "step": int(np.array(steps)) + 1}
vae.beta_variable.assign(1.0)
found[-1]["elbo"] = [vae.evaluate(x[:9], batch_size=size, verbose=0, return_dict=True)["elbo"] for size in (1, 4, 9)]
found[-1]["one"] = list(vae.predict(x[:1], verbose=0).shape)
found[-1]["moved"] = sum(not np.array_equal(one, now) for one, now in zip(before, state(), strict=True))
found[-1]["variables"] = len(before)
print("RESULT" + json.dumps(found))
"""
CASES: list[dict[str, Any]] = [
    {"optimizer": "SGD", "rate": 1e-6},
    {"optimizer": "Adam", "rate": 1e-3, "free_bits": 0.1},
    {"optimizer": "SGD", "rate": 1e-6, "perceptual": "hed-vgg16", "perceptual_weight": "calibrated"},
    {"optimizer": "Adam", "rate": 1e-3, "dtype": "mixed_bfloat16"},
]


def in_subprocess(replicas: int, cases: list[dict[str, Any]], images: Path) -> list[dict[str, Any]]:
    arguments = [sys.executable, "-c", SCRIPT, str(replicas), json.dumps(cases), str(images)]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.partition("RESULT")[2])


@pytest.fixture(scope="module")
def array(images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """166 images of 16x16, of which 16 are held out and 150 trained on: two batches an epoch."""
    x = np.round(np.concatenate([images, images[:70, :, ::-1]])[:, ::2, ::2] * 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("array") / "images.npy"
    np.save(path, x)
    return path


@pytest.mark.slow  # two workers, below, are replicas too, and have the curve of one
@pytest.mark.parametrize("replicas", [2, 4])
def test_replicas_share_the_batch_and_take_the_same_steps(replicas: int, array: Path) -> None:
    """Batch statistics, noise, augmentation, calibrated variances, free bits and figures are the whole batch's."""
    cases = CASES if replicas == 4 else CASES[:1]  # the others take long
    found = in_subprocess(replicas, cases, array)
    alone = in_subprocess(1, cases, array)
    for case, expected, got in zip([*cases, {"optimizer": "SGD"}], alone, found, strict=True):
        # Adam's first steps hang on gradients' signs, and bfloat16 rounds: these follow each other, but for that.
        rough = case["optimizer"] == "Adam"
        for name, values in expected["history"].items():
            tolerance = 0.05 if case.get("dtype") else 0.01 if rough else 1e-3 if case.get("perceptual") else 2e-5
            np.testing.assert_allclose(
                got["history"][name], values, rtol=tolerance, atol=1e-4, err_msg=f"{case} {name}"
            )
        if not rough and "weights" in expected:
            least = 1e-4 if case.get("perceptual") else 1e-6
            np.testing.assert_allclose(got["weights"], expected["weights"], rtol=1e-3, atol=least)
            np.testing.assert_allclose(got["moments"], expected["moments"], rtol=1e-3, atol=least)
        if "predicted" in expected:
            assert not {"refused", "mixed_float16"} & set(expected)
            assert got["mixed_float16"].startswith("InputError: float16 on a CPU runs only when XLA compiles the whole")
            assert f"{replicas} replicas" in got["mixed_float16"]
            assert got["refused"].startswith(f"InputError: a batch has fewer images than the {replicas} replicas")
            np.testing.assert_allclose(got["predicted"], expected["predicted"], atol=1e-4)
            assert got["moved"] == 0
            assert got["variables"] > 100
            assert got["one"] == [1, 16, 16, 3]
            np.testing.assert_allclose(got["elbo"], got["elbo"][0], rtol=1e-5)
            assert got["step"] > 10  # six of arrays, four of the dataset, and those before what was refused
            step = f"step {got['step']}: loss is nan"
            for said, kind in zip(got["said"], ["NaN"] * 3 + ["255"] * 3 + [step], strict=True):
                assert said.startswith(("InputError: images", "NotFiniteError"))
                assert kind in said


FEWER = """
import numpy as np, tensorflow as tf, keras
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)
from keras_vae import VAE
x = np.random.default_rng(0).random((10, 8, 8, 3)).astype(np.float32)
keras.utils.set_random_seed(0)
with tf.distribute.MirroredStrategy([f"CPU:{number}" for number in range(4)]).scope():
    image, z = keras.Input((8, 8, 3)), keras.Input((4,))
    encoder = keras.Model(image, keras.layers.Dense(8)(keras.layers.Flatten()(image)))
    decoder = keras.Model(z, keras.layers.Reshape((8, 8, 3))(keras.layers.Dense(192, "sigmoid")(z)))
    vae = VAE((8, 8, 3), 4, perceptual=None, encoder=encoder, decoder=decoder, seed=1)
    vae.compile("sgd")
print("RESULT", *(vae.evaluate(x, batch_size=size, verbose=0, return_dict=True)["elbo"] for size in (10, 4, 1)))
"""


def test_replicas_without_images_count_for_nothing() -> None:
    """Of ten images in batches of 4 the last one has two for four replicas."""
    result = subprocess.run([sys.executable, "-c", FEWER], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-2000:]
    whole, *others = map(float, result.stdout.partition("RESULT")[2].split())
    assert others == pytest.approx([whole] * 2, rel=1e-5)


CLUSTERED = """
import sys
import numpy as np, tensorflow as tf, keras
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from keras_vae import VAE
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
x = (np.load(sys.argv[1])[:32, ::2, ::2] / 255).astype(np.float32)
keras.utils.set_random_seed(0)
with strategy.scope():
    image, z = keras.Input((8, 8, 3)), keras.Input((4,))
    encoder = keras.Model(image, keras.layers.Dense(8)(keras.layers.Flatten()(image)))
    hidden = keras.layers.Dense(32, "relu")(z)
    decoder = keras.Model(z, keras.layers.Reshape((8, 8, 3))(keras.layers.Dense(192, "sigmoid")(hidden)))
    vae = VAE((8, 8, 3), 4, perceptual=None, encoder=encoder, decoder=decoder, seed=1)
    vae.compile(keras.optimizers.SGD(1e-5), jit_compile=sys.argv[2] == "True")
history = vae.fit(x, batch_size=16, epochs=3, shuffle=False, validation_data=x[:16], verbose=0).history
print("RESULT", history["loss"] + history["val_loss"], tf.config.optimizer.get_jit(), vae.xla.why, sep="|")
"""


@pytest.mark.slow
def test_xla_compiles_what_lies_between_exchanges(array: Path, tmp_path: Path) -> None:
    """As on several GPUs, where TensorFlow does so by itself; a CPU needs its permission."""
    curves = []
    for compiles in (True, False):
        dumped = tmp_path / f"programs-{compiles}"
        environment = {
            **os.environ,
            "TF_XLA_FLAGS": "--tf_xla_cpu_global_jit",
            "XLA_FLAGS": f"--xla_dump_to={dumped}",
        }
        arguments = [sys.executable, "-c", CLUSTERED, str(array), str(compiles)]
        result = subprocess.run(arguments, capture_output=True, text=True, timeout=600, env=environment)
        assert result.returncode == 0, result.stderr[-2000:]
        _, curve, jit, why = result.stdout.strip().splitlines()[-1].split("|")
        curves.append(json.loads(curve))
        assert jit == ""  # the process's switch is as it was
        assert why == (
            "on (for the parts of a step between what 2 replicas exchange)" if compiles else "off (as asked)"
        )
        assert any(dumped.rglob("*cluster*")) == compiles
    np.testing.assert_allclose(*curves, rtol=1e-5)


# Data -----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=5)
@given(
    count=some.integers(20, 60),
    rows=some.integers(1, 3),
    replicas=some.sampled_from([1, 2, 4]),
    workers=some.sampled_from([1, 2]),
    step=some.integers(0, 30),
)
def test_shares_of_a_batch_are_the_batch_whatever_the_step(
    count: int, rows: int, replicas: int, workers: int, step: int
) -> None:
    x = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    replicas = max(replicas, workers)
    batch = rows * replicas

    def load(share: Share) -> data.ImageData:
        return data.load(x, batch_size=batch, seed=1, flip=True, share=share)

    whole = [each.numpy() for each in load(Share()).train_from(0).take(step + 3)][step:]
    here = replicas // workers
    parts = []
    for worker in range(workers):
        loaded = load(Share(worker * here, here, replicas))
        parts.append([each.numpy() for each in loaded.train_from(step).take(3 * here)])
        (together,) = loaded.first(batch + 1)  # what a network begins with: not this process's share alone
        expected = load(Share()).train_from(0).unbatch().take(batch + 1).as_numpy_iterator()
        np.testing.assert_array_equal(together, np.stack(list(expected)))
    for number, expected in enumerate(whole):
        got = [part for worker in parts for part in worker[number * here : (number + 1) * here]]
        np.testing.assert_array_equal(np.concatenate(got), expected)
    # An epoch goes once through the images.
    first = load(Share())
    steps = first.train_size // batch
    seen = np.concatenate([each.numpy()[:, 0, 0, 0] for each in first.train_from(0).take(steps)])
    assert len(np.unique(seen)) == len(seen) == steps * batch
    # The held-out images are all there, once.
    held_out = [each.numpy() for w in range(workers) for each in load(Share(w * here, here, replicas)).test]
    assert sum(map(len, held_out)) == first.test_size


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    x = np.zeros((40, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="batch size 9 cannot be shared among 2 replicas: give a multiple"):
        data.load(x, batch_size=9, share=Share(0, 2, 2))


# TF_CONFIG ------------------------------------------------------------------------------------


def cluster(index: int, ports: list[int], kind: str = "worker", **others: list[str]) -> str:
    workers = [f"localhost:{port}" for port in ports]
    return json.dumps({"cluster": {"worker": workers, **others}, "task": {"type": kind, "index": index}})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "which is not set"),
        ("{", "TF_CONFIG cannot be read"),
        ('{"cluster": {"worker": 3}, "task": {}}', "TF_CONFIG cannot be read"),
        ('{"cluster": {"worker": "localhost:1"}}', "TF_CONFIG cannot be read (it is not a cluster and task)"),
        ("[]", "TF_CONFIG cannot be read (it is not a cluster and task)"),
        (cluster(2, [1, 2]), "task 'worker' 2 is not in its cluster"),
        (cluster(0, [1, 2], ps=["a:1"]), "has ps in its cluster"),
        (cluster(0, [1, 2], kind="chief"), "task 'chief' 0 is not in"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused_at_once(
    text: str, said: str, command: Command, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TF_CONFIG", text)
    out = tmp_path / "run"
    result = command("train", "--data", image_folder, "--out", out, *OPTIONS, "--strategy", "multi-worker")
    assert result.status == 2
    assert said in result.err
    assert not out.exists()


@pytest.fixture(scope="module")
def alone(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two workers, of a cluster of one."""
    run = tmp_path_factory.mktemp("runs") / "alone"
    options = (*RUN, "--prior", "standard", "--strategy", "multi-worker")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TF_CONFIG", cluster(0, [1]))
        assert cli.run([str(each) for each in ("train", "--data", image_folder, "--out", run, *options)]) == 0
    return run


def test_a_cluster_of_one_is_a_machine_like_any_other(alone: Path) -> None:
    assert (alone / "model.keras").is_file()


def test_who_is_chief_and_what_auto_comes_to(monkeypatch: pytest.MonkeyPatch) -> None:
    assert strategies.is_chief()
    assert not strategies.is_multi_worker("auto")
    for text, chief, several in (
        (cluster(0, [1, 2]), True, True),
        (cluster(1, [1, 2]), False, True),
        (cluster(0, [1, 2], chief=["localhost:3"]), False, True),
        (cluster(0, [1, 2], kind="chief", chief=["localhost:3"]), True, True),
        (cluster(0, [1]), True, False),
    ):
        monkeypatch.setenv("TF_CONFIG", text)
        assert strategies.is_chief() is chief
        assert strategies.is_multi_worker("auto") is several
    assert strategies.choose("none")[1] == "one device"


# Workers --------------------------------------------------------------------------------------


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("localhost", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def workers(*arguments: object) -> list[subprocess.Popen[str]]:
    ports = free_ports(2)
    command = [str(Path(sys.executable).with_name("keras-vae")), *map(str, arguments)]
    return [
        subprocess.Popen(
            command,
            env={**os.environ, "TF_CONFIG": cluster(index, ports)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]


def figures(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_two_workers_train_die_and_go_on(image_folder: Path, alone: Path, tmp_path: Path) -> None:
    """When one is killed the other ends, and both go on; the curve is that of one process; the chief alone writes."""
    run = tmp_path / "run"
    both = workers("train", "--data", image_folder, "--out", run, *RUN, "--resume", "--checkpoint-minutes", 1e-6)
    try:
        end = time.monotonic() + 120
        while not list(run.glob("checkpoints/step-*1.keras")) and time.monotonic() < end:
            time.sleep(0.1)
        both[1].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        out, err = both[0].communicate(timeout=60)
        assert time.monotonic() - killed < 60
    finally:
        for each in both:
            each.kill()
    assert both[0].returncode == 1
    assert "worker 0 of 2 workers with 2 replicas altogether" in out
    last = err.splitlines()[-1]
    assert "keras-vae: another worker was lost at step" in err, err[-1500:]
    assert f"resume with: keras-vae train --resume --out {run}" in last
    found = checkpoints.latest(run)
    assert found is not None
    both = workers("train", "--out", run, "--resume", "--checkpoint-minutes", 5)
    said = [each.communicate(timeout=300) for each in both]
    assert [each.returncode for each in both] == [0, 0], said
    assert f"resuming from step {found[1].step}" in said[0][0]
    assert "epoch 2/2" in said[0][0]
    assert "epoch" not in said[1][0].lower()
    expected, got = figures(alone), figures(run)
    assert [each["step"] for each in got] == [each["step"] for each in expected]
    for name in ("loss", "kl", "active_units"):
        np.testing.assert_allclose([each[name] for each in got], [each[name] for each in expected], rtol=0.01)
    for name in ("val_loss", "val_kl"):  # of the first epoch and the last at least
        np.testing.assert_allclose([got[i][name] for i in (0, -1)], [expected[i][name] for i in (0, -1)], rtol=0.01)
    assert (run / "model.keras").is_file()
    validated = sum("val_loss" in each for each in got)
    assert len(list((run / "samples").glob("*.png"))) == 2 * validated + 2  # two in the end


@pytest.mark.slow
def test_a_signal_to_one_worker_stops_all(image_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    common = ("train", "--data", image_folder, *OPTIONS, "--epochs", 10_000, "--out", run)
    both = workers(*common)
    try:
        end = time.monotonic() + 120
        while not list(run.glob("checkpoints/step-*.keras")) and time.monotonic() < end:
            time.sleep(0.1)
        both[1].send_signal(signal.SIGTERM)
        said = [each.communicate(timeout=60) for each in both]
    finally:
        for each in both:
            each.kill()
    assert [each.returncode for each in both] == [143, 143], said
    found = checkpoints.latest(run)
    assert found is not None
    assert f"stopped at step {found[1].step}, saved in {found[0]}; resume with: " in said[0][1]


# The kit --------------------------------------------------------------------------------------


def test_the_manifest_starts_workers_that_this_command_line_takes(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = yaml.safe_load((Path(__file__).parents[2] / "kubernetes" / "tfjob.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("kubeflow.org/v1", "TFJob")
    ((kind, spec),) = manifest["spec"]["tfReplicaSpecs"].items()
    assert (kind, spec["restartPolicy"]) == ("Worker", "OnFailure")
    (container,) = spec["template"]["spec"]["containers"]
    assert container["name"] == "tensorflow"
    mounted = {each["name"] for each in container["volumeMounts"]}
    assert mounted == {each["name"] for each in spec["template"]["spec"]["volumes"]}
    # As the operator starts the second of two, but for the data, which is not there: the first thing to be missed.
    monkeypatch.setenv("TF_CONFIG", cluster(1, free_ports(2)))
    name, *arguments = [*container["command"], *container["args"]]
    assert name == "keras-vae"
    result = command(*arguments)
    assert result.status == 2
    assert "/data/faces" in result.err
