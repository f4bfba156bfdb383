"""The tutorial runs as it stands, on few images, and its cells are a notebook's."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from pages import ROOT
from PIL import Image

TUTORIAL = ROOT / "docs" / "tutorial.py"


@pytest.mark.slow
def test_tutorial_runs(tfds_data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_VAE_TUTORIAL_QUICK", "1")
    monkeypatch.setattr(matplotlib, "rcParams", matplotlib.rcParams.copy())
    matplotlib.use("Agg")
    names = runpy.run_path(str(TUTORIAL))
    assert names["report"].passed
    assert np.asarray(names["images"]).shape == (12, 32, 32, 3)
    assert (tmp_path / "tutorial" / "served" / "faces" / "1" / "saved_model.pb").is_file()
    pictures = sorted((tmp_path / "tutorial").glob("*.png"))
    assert len(pictures) >= 9
    for picture in pictures:
        assert np.asarray(Image.open(picture)).std() > 10, picture  # something is on it


def test_cells_alternate_between_prose_and_code() -> None:
    cells = re.split(r"^# %%", TUTORIAL.read_text(), flags=re.MULTILINE)[1:]
    assert len(cells) > 20
    prose = [cell for cell in cells if cell.startswith(" [markdown]\n")]
    assert len(prose) > 10
    for cell in prose:
        assert all(line.startswith("#") or not line for line in cell.splitlines()[1:]), cell
    for link in re.findall(r"\]\(([^)]+)\)", "".join(prose)):
        assert (TUTORIAL.parent / link).exists(), link
