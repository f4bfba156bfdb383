"""Charts, drawn by Matplotlib without a screen."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

DPI = 100


def falling(values: np.ndarray, of: str, unit: str) -> Image.Image:
    """Bars in falling order.

    Args:
        values: float (count,).
        of: what each bar stands for.
        unit: of the values.
    """
    figure = Figure(figsize=(10, 2.6), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.bar(range(len(values)), np.sort(values)[::-1], width=0.9)
    axes.set(xlabel=of, ylabel=unit)
    axes.margins(x=0.01)
    return _drawn(figure)


def matrix(values: np.ndarray, names: Sequence[str], title: str) -> Image.Image:
    """A table of correlations in colour, from -1 to 1; what is not a number stays grey.

    Args:
        values: float (count, count).
        names: of rows and columns.
        title: above it.
    """
    side = 3.0 + 0.22 * len(names)
    figure = Figure(figsize=(side, side), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("0.8")
    shown = axes.imshow(np.ma.masked_invalid(values), cmap="RdBu_r", vmin=-1, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_title(title)
    if len(names) <= 16:
        for row, column in np.ndindex(values.shape):
            if np.isfinite(values[row, column]):
                colour = "white" if abs(values[row, column]) > 0.6 else "black"
                text = f"{values[row, column]:.1f}".replace("-0.0", "0.0")
                axes.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)
    figure.colorbar(shown, shrink=0.6)
    return _drawn(figure)


def shares(names: Sequence[str], values: dict[str, Sequence[float]], title: str) -> Image.Image:
    """Bars of shares side by side, a group a name.

    Args:
        names: of the groups.
        values: a share for each name, by what it is.
        title: above them.
    """
    figure = Figure(figsize=(8, 1.2 + 0.28 * len(names)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(values)
    for number, (label, each) in enumerate(values.items()):
        axes.barh(np.arange(len(names)) + number * height, each, height, label=label.replace("_", " "))
    axes.set_yticks(np.arange(len(names)) + 0.4 - height / 2, names, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), title=title)
    axes.axvline(0.5, color="0.5", linewidth=0.8, linestyle=":")
    figure.legend(fontsize=8, loc="outside lower center", ncols=len(values))
    return _drawn(figure)


def histograms(groups: Mapping[str, np.ndarray], of: str) -> Image.Image:
    """How values are distributed, each group to an area of 1; the outermost hundredths are drawn at the edges.

    Args:
        groups: float (count,) by name.
        of: what the values are.
    """
    figure = Figure(figsize=(10, 2.6), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    low, high = np.quantile(np.concatenate(list(groups.values())), [0.01, 0.99])
    edges = np.linspace(low, max(high, low + 1e-9), 60).tolist()
    for name, values in groups.items():
        axes.hist(values.clip(low, high), edges, density=True, histtype="stepfilled", alpha=0.5, label=name)
    axes.set(xlabel=of, yticks=[])
    axes.legend()
    return _drawn(figure)


def _drawn(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")
