"""What `keras-vae explore` does: writes a static page on which to explore a model, or serves it locally."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from keras_vae import networks
from keras_vae.export.encoder import export_encoder
from keras_vae.export.files import aside
from keras_vae.export.prior import export_prior
from keras_vae.latents.fitting import encode_training, vectors_of
from keras_vae.model.encoding import Encoded
from keras_vae.model.priors import FlowMatchingPrior
from keras_vae.model.vae import VAE
from keras_vae.runs.opening import Model, open_model
from keras_vae.support.errors import InputError
from keras_vae.support.files import replace

PAGE = ("explore.html", "pages.css", "explore.mjs", "browser.mjs", "conditions.mjs", "decoder.mjs", "encoder.mjs")
RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
RUNTIME_FOLDER = "ort"
ABOUT = "explorer.json"
LATENTS = 12
DIGITS = 5
MARK = "explore.mjs"  # marks a folder as an earlier explorer


def write(
    path: Path, out: Path, runtime: Path | None = None, source: str | None = None, name: str = ""
) -> dict[str, Any]:
    """Writes the page, with the model's prior, decoder and encoder, to a folder that any web server can serve.

    Args:
        path: a run or .keras file. An `explorer.json` beside a .keras file is used as it is.
        out: the folder to write; an earlier explorer there is replaced.
        runtime: folder of onnxruntime-web's two files; by default where `npm ci` puts them.
        source: images by which to find the strongest latents and the attributes; by default what the run trained on.
        name: title of the page; by default the model's name.

    Returns:
        `folder`, the number of sliders for `latents` and for `attributes`, and `bytes`.

    Raises:
        InputError, ExportError: there is no model or no runtime, or the folder holds something else.
    """
    if out.exists() and not (out / MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} holds something else: name a new folder, or an explorer's")
    runtime = find_runtime(runtime)
    model = open_model(path)
    vae = model.whole("exploring")
    about = _known(model, source) or about_of(model, source)
    about["name"] = name or _title(path)
    known = {} if vae.condition is None else vae.condition.metadata()
    with aside(out) as new:
        new.mkdir()
        vae.export(new / "decoder.onnx", format="onnx", run_id=model.config.get("run_id", ""))
        with vae.averaged_weights():
            encoder = networks.without_condition(vae.encoder)  # the page does not ask what a picture is of
            export_encoder(encoder, new / "encoder.onnx", {"model": vae.fingerprint()})
        # Not the generator: sliders act on latents, between prior and decoder, and it would hold their weights twice.
        export_prior(vae.prior, new / "prior.onnx", {"model": vae.fingerprint(), **known})
        for file in PAGE:
            shutil.copyfile(_web() / file, new / ("index.html" if file == "explore.html" else file))
        (new / RUNTIME_FOLDER).mkdir()
        for file in RUNTIME:
            shutil.copyfile(runtime / file, new / RUNTIME_FOLDER / file)
        (new / ABOUT).write_text(json.dumps(about))
        replace(new, out)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return {
        "folder": str(out),
        "latents": len(about["latents"]),
        "attributes": len(about["attributes"]),
        "bytes": size,
    }


def serve(folder: Path, port: int) -> None:
    """Serves a folder on this machine until interrupted.

    Raises:
        InputError: the port is taken.
    """
    handler = functools.partial(Handler, directory=str(folder))
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise InputError(f"cannot listen on port {port} ({error.strerror}): give another --port") from error
    with server:
        print(f"http://127.0.0.1:{server.server_port}/ (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


def explore(path: Path, out: Path | None, port: int, runtime: Path | None, source: str | None, name: str = "") -> None:
    """Writes the page to a folder, or serves it from a temporary one until interrupted."""
    if out is not None:
        found = write(path, out, runtime, source, name)
        print(f"{out}: {found['latents']} latents, {found['attributes']} attributes, {found['bytes'] / 1e6:.0f} MB")
        return
    with tempfile.TemporaryDirectory() as folder:
        write(path, Path(folder) / "explorer", runtime, source, name)
        serve(Path(folder) / "explorer", port)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder the way the page needs it: modules with their type, isolated from other sites."""

    extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript"}  # noqa: RUF012

    def end_headers(self) -> None:
        # Isolation from other sites, which threads require.
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def find_runtime(folder: Path | None) -> Path:
    """The folder of onnxruntime-web's two files.

    Raises:
        InputError: they are not there.
    """
    places = [_web() / "node_modules" / "onnxruntime-web" / "dist", Path("node_modules/onnxruntime-web/dist")]
    if folder is not None:
        places = [folder, folder / "dist", folder / "onnxruntime-web" / "dist"]
    for place in places:
        if all((place / file).is_file() for file in RUNTIME):
            return place
    where = folder or places[0]
    raise InputError(
        f"onnxruntime-web, which the page computes with, is not in {where}: npm install onnxruntime-web, and give "
        "--runtime node_modules/onnxruntime-web/dist"
    )


def _web() -> Path:
    """The folder of the page's files: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "kits" / "web"
    return installed if installed.is_dir() else package.parent / "export" / "web"


def _title(path: Path) -> str:
    return path.resolve().parent.name if path.suffix == ".keras" else path.resolve().name


def about_of(model: Model, source: str | None = None) -> dict[str, Any]:
    """What the page needs to know about a model besides its networks, for JSON.

    Args:
        model: a model with its encoder.
        source: training images by which to find the strongest latents and the attributes; by default what the model
            was trained on.

    Returns:
        `model`, a fingerprint of its weights, and `prior`, the kind of its prior; the `latents` that vary most, each
        with its `direction`, the change of z for one standard deviation; `attributes` with their vectors.

    Raises:
        InputError: the model is a decoder alone, or the images are not available.
    """
    vae = model.whole("exploring")
    encoded = encode_training(model, vae, source, limit=5_000)
    attributes: list[dict[str, Any]] = []
    with contextlib.suppress(InputError):  # images without attributes
        vectors = vectors_of(model, vae, source)
        attributes = [
            {"name": each, "label": each.replace("_", " "), "vector": _rounded(vectors.direction(each))}
            for each in vectors.names
        ]
    return {
        "model": vae.fingerprint(),
        "prior": vae.prior.kind,
        "encoder": True,
        "latents": [{"name": name, "direction": _rounded(each)} for name, each in _directions(vae, encoded)],
        "attributes": attributes,
    }


def _directions(vae: VAE, encoded: Encoded) -> list[tuple[str, np.ndarray]]:
    """Names and directions to move latents along: the codes' widest axes, or the latents with the highest KL.

    Each direction, float32 (latent_dim,), is as long as the codes' standard deviation along it.
    """
    if isinstance(vae.prior, FlowMatchingPrior):
        axes = np.asarray(vae.prior.axes).T[:LATENTS]
        return [(f"direction {number}", each) for number, each in enumerate(axes, start=1)]
    deviations = np.sqrt(encoded.mean.var(axis=0) + np.exp(encoded.log_var).mean(axis=0))
    strongest = np.argsort(-encoded.kl_per_latent())[:LATENTS]
    return [(f"latent {each}", np.eye(vae.latent_dim, dtype=np.float32)[each] * deviations[each]) for each in strongest]


def _known(model: Model, source: str | None) -> dict[str, Any] | None:
    """What was found for a pretrained model when it was made, so that its images are not needed."""
    file = model.folder / ABOUT
    if source is not None or not file.is_file():
        return None
    about, vae = json.loads(file.read_text()), model.whole("exploring")
    is_of_it = (about.get("model"), about.get("prior")) == (vae.fingerprint(), vae.prior.kind)
    return about if is_of_it else None


def _rounded(values: np.ndarray) -> Any:
    return np.round(values.astype(np.float64), DIGITS).tolist()
