"""The API reference is built without a warning, and every public name in it has a docstring."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT

# In a process of its own: pdoc takes each lazy name for good, and warnings are errors there.
SCRIPT = """
import inspect, runpy, sys, warnings
warnings.filterwarnings("error", module="pdoc")
names = runpy.run_path({script!r})
from pathlib import Path
names["build"](Path(sys.argv[1]))
import pdoc.doc
def undocumented(doc):
    for member in doc.own_members:
        if member.name.startswith("_") or member.kind == "variable":
            continue  # attributes are described in their class's docstring
        wanted = member.kind == "class" or not is_override(doc, member)
        if wanted and not inspect.getdoc(member.obj):
            yield member.fullname
        if member.kind == "class":
            yield from undocumented(member)
def is_override(doc, member):
    return doc.kind == "class" and any(hasattr(base, member.name) for base in doc.obj.__mro__[1:])
for name in names["MODULES"]:
    module = pdoc.doc.Module(sys.modules[name])
    if not module.docstring:
        print(name)
    print(*undocumented(module))
"""


def test_reference_is_whole(tmp_path: Path) -> None:
    pytest.importorskip("pdoc")
    script = SCRIPT.format(script=str(ROOT / "docs" / "reference.py"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == []
    page = (tmp_path / "keras_vae.html").read_text()
    for name in ("VAE", "PerceptualLoss", "DiagonalGaussian", "from_pretrained", "OBJECTIVES"):
        assert f'id="{name}"' in page, name
    assert (tmp_path / "keras_vae" / "evaluation" / "distances.html").is_file()
    assert (tmp_path / "keras_vae" / "export" / "runtime.html").is_file()
