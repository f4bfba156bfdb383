# %% [markdown]
# # A VAE, from images to deployment
#
# This tutorial trains a variational autoencoder on cartoon faces, looks at its reconstructions and samples, steers its
# KL, swaps in custom components, and runs the exported model without Keras. It takes a few minutes on two cores, with
# no GPU and no network.
#
# Open it as a notebook: VS Code recognizes the cells of a `.py` file, Jupyter does with the package `jupytext`. Or run
# it as a script, `python docs/tutorial.py`. It needs `pip install 'keras-vae[demo]'`, and writes to the folder
# `tutorial`.

# %%
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # silences TensorFlow's startup messages

import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import layers, ops

import keras_vae
from keras_vae.data import Avatars, AvatarsConfig
from keras_vae.model import schedules

# The tests run this file with few images and one epoch. The text describes the results of the full run.
QUICK = "KERAS_VAE_TUTORIAL_QUICK" in os.environ
IMAGES, EPOCHS = (96, 1) if QUICK else (2000, 15)
OUT = Path("tutorial")
OUT.mkdir(exist_ok=True)
keras.utils.set_random_seed(0)


def show(title, *rows):
    """Shows and saves rows of images, each (count, height, width, channels) in [0, 1]."""
    picture = keras_vae.pictures.side_by_side(*rows)
    picture.save(OUT / f"{title}.png")
    plt.figure(figsize=(10, 10 * picture.height / picture.width), layout="tight")
    plt.imshow(picture)
    plt.axis("off")
    plt.title(title)
    plt.show()
    plt.close()


# %% [markdown]
# ## Data
#
# `keras_vae.data.load` takes a folder, a TFDS name, an array or a dataset. Here we draw a small, labelled set of
# avatars, 32 pixels per side. Batches are float32 in [0, 1]. With `attributes=True` they are dicts; a VAE uses their
# `image`.

# %%
builder = Avatars(
    config=AvatarsConfig(name=f"tutorial{IMAGES}", size=32, train_examples=IMAGES, test_examples=IMAGES // 4)
)
builder.download_and_prepare()
data = keras_vae.data.load(builder.data_dir, batch_size=24, attributes=True)
held_out = next(iter(data.test))["image"].numpy()
print(data.image_shape, data.train_size, "to train on,", data.test_size, "held out")
print("attributes:", ", ".join(data.attribute_names))
show("avatars", held_out[:12])

# %% [markdown]
# ## A VAE with `model.fit`
#
# A VAE is a `keras.Model` like any other: compile, fit, evaluate, predict. The loss is built in. With `perceptual=None`
# it is the negative ELBO, in nats per image: `-log p(x | z)` of the pixels plus the KL of the posterior. The default
# likelihood determines its variance by itself.

# %%
vae = keras_vae.VAE(image_shape=data.image_shape, latent_dim=32, perceptual=None, seed=0)
vae.compile(keras.optimizers.Adam(1e-3))
history = vae.fit(data.train, epochs=EPOCHS, validation_data=data.test, verbose=2).history

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 2.5))
for axis, name in zip(axes, ("elbo", "kl"), strict=True):
    axis.plot(history[name], label="training")
    axis.plot(history[f"val_{name}"], label="held out")
    axis.set_title(f"{name}, nats per image")
    axis.legend()
figure.savefig(OUT / "curves.png")
plt.show()

# %% [markdown]
# ## Reconstructions and samples
#
# `encode` returns the posterior: `.mean`, `.log_var`, `.sample(seed)`, `.mode()`, `.kl()`. `decode` takes latents.
# `predict` does both, using the posterior's mode. `sample` decodes draws from the prior: the same seed gives the same
# faces.

# %%
posterior = vae.encode(held_out)
print("KL of the first images, nats:", ops.convert_to_numpy(posterior.kl()[:4]).round(1))
show("reconstructions", held_out[:12], vae.predict(held_out[:12], verbose=0))
show("samples", ops.convert_to_numpy(vae.sample(12, seed=0)))

# %% [markdown]
# ## The weight of the KL
#
# Latents that carry many nats give close reconstructions, but draws from the prior fall between the codes. `vae.beta`
# weights the KL, and a schedule sets it before each step. `TargetKL` steers the KL to a number of nats, which is easier
# to choose than a weight. Training continues from the current weights.

# %%
before = vae.evaluate(data.test, verbose=0, return_dict=True)
vae.fit(data.train, epochs=EPOCHS, callbacks=[schedules.TargetKL(30, gain=0.02)], verbose=0)
after = vae.evaluate(data.test, verbose=0, return_dict=True)
for name in ("kl", "reconstruction", "elbo"):
    print(f"{name}: {before[name]:.0f} nats, now {after[name]:.0f}")
print(f"beta: {vae.beta:.2f}")
show("reconstructions at 30 nats", held_out[:12], vae.predict(held_out[:12], verbose=0))
show("samples at 30 nats", ops.convert_to_numpy(vae.sample(12, seed=0)))

# %% [markdown]
# `LinearWarmup`, `CosineWarmup` and `CyclicalAnnealing` are used in the same way: see [objectives.md](objectives.md).
#
# ## Directions in latent space
#
# The mean latents of faces with glasses, minus the mean of those without, is a direction. Adding it puts glasses on a
# face.

# %%
means, glasses = [], []
for batch in data.train:
    means.append(ops.convert_to_numpy(vae.encode(batch["image"]).mean))
    glasses.append(batch["attributes"].numpy()[:, data.attribute_names.index("glasses")])
means, glasses = np.concatenate(means), np.concatenate(glasses) == 1
direction = means[glasses].mean(axis=0) - means[~glasses].mean(axis=0)
z = ops.convert_to_numpy(vae.encode(held_out[:6]).mean)
show("glasses", *(ops.convert_to_numpy(vae.decode(z + strength * direction)) for strength in (0.0, 1.5, 3.0)))

# %% [markdown]
# ## Your own encoder, decoder and likelihood
#
# You can use any pair of matching Keras models. The encoder returns mean and log-variance, here as one output with the
# means first. The decoder returns images in [0, 1].

# %%
encoder = keras.Sequential(
    [
        keras.Input((32, 32, 3)),
        layers.Conv2D(32, 3, 2, "same", activation="silu"),
        layers.Conv2D(64, 3, 2, "same", activation="silu"),
        layers.Flatten(),
        layers.Dense(2 * 32),
    ]
)
decoder = keras.Sequential(
    [
        keras.Input((32,)),
        layers.Dense(8 * 8 * 64, "silu"),
        layers.Reshape((8, 8, 64)),
        layers.UpSampling2D(),
        layers.Conv2D(32, 3, padding="same", activation="silu"),
        layers.UpSampling2D(),
        layers.Conv2D(3, 3, padding="same", activation="sigmoid"),
    ]
)


@keras.saving.register_keras_serializable("tutorial")
class Laplace(keras_vae.distributions.Likelihood):
    """A Laplace distribution for each pixel value: absolute error instead of a Gaussian's squared error."""

    kind = "laplace"
    scale = 0.1

    def log_prob(self, images, decoded, training=False):
        error = ops.abs(images - decoded) / self.scale
        return -ops.sum(error + ops.log(2.0 * self.scale), axis=(1, 2, 3))  # nats, (batch,)


own = keras_vae.VAE(encoder=encoder, decoder=decoder, likelihood=Laplace(), perceptual=None, seed=0)
own.compile(keras.optimizers.Adam(1e-3))
own.fit(data.train, epochs=EPOCHS, validation_data=data.test, verbose=0)
print({name: round(value, 1) for name, value in own.evaluate(data.test, verbose=0, return_dict=True).items()})
show("own networks", held_out[:12], ops.convert_to_numpy(own(held_out[:12])))  # calling the model reconstructs too

# %% [markdown]
# ## Your own feature network
#
# The perceptual loss compares images in the layers of a frozen network. `hed-vgg16` and `vgg19` are available by name.
# Here we use a network that knows these images: a small classifier of the avatars' attributes, trained only on the
# training images.

# %%
classifier = keras.Sequential(
    [
        keras.Input((32, 32, 3)),
        layers.Conv2D(32, 3, padding="same", activation="relu", name="fine"),
        layers.MaxPooling2D(),
        layers.Conv2D(64, 3, padding="same", activation="relu", name="middle"),
        layers.MaxPooling2D(),
        layers.Conv2D(64, 3, padding="same", activation="relu", name="coarse"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(len(data.attribute_names), "sigmoid"),
    ],
    name="classifier",
)
classifier.compile("adam", "binary_crossentropy", metrics=["binary_accuracy"])


def labelled(batch):
    return batch["image"], batch["attributes"]


classifier.fit(data.train.map(labelled), epochs=EPOCHS, shuffle=False, verbose=0)  # the pipeline shuffles
accuracy = classifier.evaluate(data.test.map(labelled), verbose=0, return_dict=True)["binary_accuracy"]
labels = np.concatenate([batch["attributes"].numpy() for batch in data.test])
majority = np.maximum(labels.mean(axis=0), 1 - labels.mean(axis=0)).mean()
print(f"attributes predicted correctly: {accuracy:.1%}; always predicting the majority: {majority:.1%}")

# %% [markdown]
# `preprocessing` describes the input that the network expects. Each of its layers enters the loss as a Gaussian with
# its own variance, balanced with the pixels. The network is frozen, and is not saved with the model.

# %%
features = keras_vae.PerceptualLoss(classifier, ["fine", "middle", "coarse"], preprocessing="0..1")
featured = keras_vae.VAE(image_shape=data.image_shape, latent_dim=32, perceptual=features, seed=0)
featured.compile(keras.optimizers.Adam(1e-3))
steered = [schedules.TargetKL(30, gain=0.02)]  # compare objectives at the same KL
featured.fit(data.train, epochs=2 * EPOCHS, callbacks=steered, verbose=0)
print({name: round(value, 1) for name, value in featured.evaluate(data.test, verbose=0, return_dict=True).items()})
show(
    "pixels alone, and with features",
    held_out[:12],
    ops.convert_to_numpy(vae(held_out[:12])),
    ops.convert_to_numpy(featured(held_out[:12])),
)

# %% [markdown]
# At the same KL, contours are crisper and colours less accurate, and the ELBO, which sees only pixels, is lower. A
# feature network can only pass on what it has learned, and this one has seen 2,000 avatars.
#
# ## Unusual images
#
# An image that the model cannot draw, or whose code lies far from all others, is unusual. Its rank is among images that
# the model has not been trained on, and its error map shows where it differs from its reconstruction.

# %%
faulty = held_out[:12].copy()
faulty[:, 18:23, 12:17] = [1.0, 0.0, 1.0]  # a spot on each face
usual = vae.score(data.test, draws=0)
print("ranks with a spot:", vae.score(faulty, draws=0).ranks(usual)["combined"].round(2))
print("and without:", vae.score(held_out[:12], draws=0).ranks(usual)["combined"].round(2))
maps = ops.convert_to_numpy(vae.error_maps(faulty))[..., np.newaxis]
show("spots, and where they are", faulty, np.repeat(maps / maps.max(), 3, axis=-1))

# %% [markdown]
# ## Attributes by name
#
# A conditional model is told in training what each image has, and draws what you name: classes, or attributes as here.
# What is not named may be there or not. Both rows come from the same noise.

# %%
asked = keras_vae.data.load(builder.data_dir, batch_size=24, condition=("glasses", "hat"))
conditional = keras_vae.VAE(asked.image_shape, latent_dim=32, perceptual=None, condition=asked.condition, seed=0)
conditional.compile(keras.optimizers.Adam(1e-3))
conditional.fit(asked.train, epochs=EPOCHS, verbose=2)
conditional.fit_prior(asked.train)
with_hats, without = (conditional.sample(12, seed=0, condition={"hat": each}) for each in (True, False))
show("with hats, and without", with_hats, without)

# %% [markdown]
# ## Save and load
#
# One file holds the weights, the optimizer and the noise state. `keras.saving.load_model` needs `import keras_vae`, and
# your own classes must be registered.

# %%
vae.save(OUT / "faces.keras")
loaded = keras.saving.load_model(OUT / "faces.keras")
assert np.array_equal(loaded.predict(held_out, verbose=0), vae.predict(held_out, verbose=0))

# %% [markdown]
# ## Export, and run without Keras
#
# The model is exported to ONNX or to a SavedModel. Each export is compared with Keras before it is kept, and the report
# says how large the difference is.

# %%
report = vae.export(OUT / "faces.onnx", format="onnx", part="generator")
print(report.summary())
vae.export(OUT / "served" / "faces" / "1")  # for TF Serving

# %% [markdown]
# Any other app needs only onnxruntime: standard normal `noise` in, `image` out.

# %%
import onnxruntime  # noqa: E402

session = onnxruntime.InferenceSession(OUT / "faces.onnx", providers=["CPUExecutionProvider"])
noise = np.random.default_rng(0).standard_normal((12, 32), dtype=np.float32)
(images,) = session.run(["image"], {"noise": noise})
assert np.allclose(images, vae.sample(12, seed=0), atol=1e-4)  # the same draws, the same faces
show("onnxruntime", images)

# %% [markdown]
# Next: [objectives.md](objectives.md), [data.md](data.md), [export.md](export.md), [evaluation.md](evaluation.md),
# [scale.md](scale.md). All of this is also available on the command line: `keras-vae --help`.
