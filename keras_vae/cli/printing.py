"""What a command prints of its results: tables for people, or JSON for programs."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # slow to import
    from rich.console import Console

Results = dict[str, Any]


@contextlib.contextmanager
def results(as_json: bool, printer: Callable[[Results], None] | None = None) -> Iterator[Callable[[Results], None]]:
    """Yields the function that prints results.

    Args:
        as_json: print JSON, alone on standard output: whatever else is printed within goes to standard error.
        printer: prints them otherwise; by default a table of names and values.
    """
    if not as_json:
        yield printer or table
        return
    found: list[Results] = []
    with contextlib.redirect_stdout(sys.stderr):
        yield found.append
    for each in found:
        for note in each.get("notes", ()):
            print(note, file=sys.stderr)
        print(json.dumps(_json_value(each), indent=2))


def _json_value(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {name: _json_value(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(results: Results) -> None:
    """Names and values, a row each."""
    from rich.table import Table

    rows = Table(show_header=False, title=results.get("title"), title_justify="left")
    rows.add_column()
    rows.add_column(overflow="fold")  # paths are there to be copied: never cut them short
    for name, value in results.items():
        if name != "title":
            rows.add_row(name.replace("_", " "), _shown(value))
    _console().print(rows)


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "\n".join(map(_shown, value)) or "none"
    if isinstance(value, dict):
        return "\n".join(f"{name}  {_shown(each)}" for name, each in value.items()) or "none"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2f}" if 100 <= abs(value) < 1e7 else f"{value:.4g}"  # thousands of nats keep their decimals


def _console() -> Console:
    from rich.console import Console

    # In a file or a pipe, names are not cut to a terminal's width. Brackets and colons in a name are what they are.
    return Console(markup=False, emoji=False, width=None if sys.stdout.isatty() else 200)


# What people look at first after training; every figure is in metrics.jsonl and in the JSON.
TRAINED = {
    "run": "run",
    "pictures": "pictures",
    "psnr": "psnr of held-out reconstructions, dB",
    "sharpness": "their sharpness (1 is the images' own)",
    "elbo": "elbo, nats per image",
    "val_elbo": "elbo of held-out images",
    "kl": "kl, nats per image",
    "val_kl": "kl of held-out images",
    "steps": "steps",
    "epochs": "epochs",
    "minutes": "minutes",
    "images_per_second": "images per second",
    "precision": "precision",
    "train_images": "images to train on",
    "test_images": "images held out",
    "skipped": "images skipped",
}


def training(results: Results) -> None:
    from keras_vae.training import next_commands

    table({label: results[name] for name, label in TRAINED.items() if name in results})
    if "pictures" in results:  # only the chief of several workers has them
        print("next:  " + "\n       ".join(next_commands(results)))


def evaluation(results: Results) -> None:
    from rich.table import Table

    from keras_vae.evaluation import report

    for title, rows in report.tables(results).items():
        shown = Table(title=title, title_justify="left", show_header=False)
        shown.add_column()
        shown.add_column(justify="right", no_wrap=True)
        shown.add_column()
        for row in rows:
            shown.add_row(*row)
        _console().print(shown)
    if "features" in results:
        print(f"Distances, precision and recall are taken in {results['features']}.")
    for note in results["notes"]:
        print(f"Note: {note}.")
    if "report" in results:
        print(f"Written: {results['figures']}\n         {results['report']}, with pictures")


def scores(results: Results) -> None:
    from rich.table import Table

    shown = Table("most unusual", "rank")
    for name, rank in results["most_unusual"].items():
        shown.add_row(name, f"{rank:.4f}")
    _console().print(shown)
    if "measured" in results:
        columns = {"auroc": "AUROC (95 % interval)", "average_precision": "average precision (95 % interval)"}
        shown = Table("score", *columns.values())
        for name, found in results["measured"].items():
            figures = (found[each] for each in columns)
            cells = (f"{each['value']:.3f} ({each['low']:.3f} to {each['high']:.3f})" for each in figures)
            shown.add_row(name.replace("_", " "), *cells)
        _console().print(shown)
    for note in results.get("notes", ()):
        print(f"Note: {note}.")
    print(
        f"{results['flagged']:,} of {results['images']:,} images have a rank of {results['flag']:.4g} or more among "
        f"{results['usual_images']:,} held-out images"
    )
    print(f"Written: {results['table']}\n         {results['page']}, with pictures")


def attributes(results: Results) -> None:
    from rich.table import Table

    shown = Table("attribute", "share", "accuracy", "majority", "balanced", "AUC", "images with, without")
    for each in sorted(results["predictions"], key=lambda each: -each["balanced_accuracy"]):
        shares = (f"{each[name]:.3f}" for name in ("share", "accuracy", "majority", "balanced_accuracy", "auc"))
        shown.add_row(each["name"], *shares, f"{each['with_it']}, {each['without_it']}")
    _console().print(shown)
    table({name: value for name, value in results.items() if name != "predictions"})


def comparison(results: Results) -> None:
    from rich.table import Table

    for title in ("settings", "figures"):
        names = list(dict.fromkeys(name for values in results[title].values() for name in values))
        shown = Table(title, *names)
        for key, values in results[title].items():
            shown.add_row(key, *(_shown(values.get(name, "")) for name in names))
        _console().print(shown)
    print(f"pictures of the same images: {results['picture']}")


def doctor(results: Results) -> None:
    from rich.table import Table

    from keras_vae.cli import doctor

    shown = Table(show_header=False)
    shown.add_column()
    shown.add_column(overflow="fold")
    for name, words in doctor.rows(results):
        shown.add_row(name, words)
    _console().print(shown)


def export(results: Results) -> None:
    for artifact in results["artifacts"]:
        is_uint8 = artifact["output"] == "uint8"
        equal = (
            f"equal to Keras within {artifact['max_difference']:.2g}{' and rounding' if is_uint8 else ''}"
            if artifact["precision"] == "float32"
            else f"{artifact['precision']}, {artifact['psnr']:.1f} dB from Keras"
        )
        images = ", uint8 images" if is_uint8 else ""
        print(f"{artifact['path']}: {artifact['part']}{images}, {equal}, {artifact['bytes'] / 1e6:.2f} MB")
    for path in results["beside"]:
        print(f"{path}: beside it, for these weights")


def verification(results: Results) -> None:
    from rich.table import Table

    pairs = Table("pair", "largest", "mean", "at ±50", "PSNR, dB", "result")
    pairs.title = f"differences over {results['latents']} latents"
    for pair in results["pairs"]:
        differences = (
            "none" if pair[name] == 0 else "not finite" if pair[name] is None else f"{pair[name]:.1e}"
            for name in ("max_difference", "mean_difference", "far_difference")
        )
        psnr = "" if pair["psnr"] is None else f"{pair['psnr']:.1f}"
        passed = "pass" if pair["passed"] else f"FAIL ({pair['error'] or pair['demanded']})"
        pairs.add_row(f"{pair['first']} / {pair['second']}", *differences, psnr, passed)
    _console().print(pairs)
    artifacts = Table("artifact", "MB", "checksum", "result")
    artifacts.columns[0].overflow = artifacts.columns[3].overflow = "fold"
    for artifact in results["artifacts"]:
        checksum = {True: "right", False: "", None: "none"}[artifact["checksum"]]
        result = "pass"
        if artifact["problem"] is not None:
            result = f"FAIL: {artifact['problem']}"
        elif artifact["skipped"] is not None:
            checksum, result = "", f"skipped: {artifact['skipped']}"
        artifacts.add_row(artifact["path"], f"{artifact['bytes'] / 1e6:.2f}", checksum, result)
    _console().print(artifacts)
