"""The README's Python runs as it stands, on fewer and smaller images."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


def test_python_examples(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 3
    code = "\n".join(blocks)
    for shown, smaller in [
        ('"avatars", image_size=64, batch_size=64', f"{str(image_folder)!r}, image_size=32, batch_size=16"),
        ("(64, 64, 3)", "(32, 32, 3)"),
        ("epochs=5", "epochs=1"),
        ("epochs=20", "epochs=1"),
    ]:
        assert shown in code
        code = code.replace(shown, smaller)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["images"].shape == (8, 32, 32, 3)
    assert (tmp_path / "saved_models" / "faces" / "1" / "saved_model.pb").is_file()
