"""Files and folders are put in place whole, and what killed processes left is removed."""

from __future__ import annotations

import contextlib
import fcntl
from pathlib import Path

import pytest

from keras_vae.support.files import ASIDE, LOCK, aside, replace, sweep, write_aside, write_json


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_takes_its_place_whole_or_not_at_all(durable: bool, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    with write_aside(path, durable) as new:
        new.write_text("one")
        assert new.suffix == path.suffix
        assert not path.exists()
    assert path.read_text() == "one"
    with contextlib.suppress(KeyboardInterrupt), write_aside(path, durable) as new:
        new.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_json_ends_with_a_line(tmp_path: Path) -> None:
    write_json(tmp_path / "figures.json", {"elbo": -1.5})
    assert (tmp_path / "figures.json").read_text() == '{\n  "elbo": -1.5\n}\n'


def test_what_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), write_aside(tmp_path / "missing" / "file"):
        pass


def test_a_file_does_not_replace_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "letter").write_text("dear")
    with pytest.raises(IsADirectoryError), write_aside(tmp_path / "folder") as new:
        new.write_text("file")
    assert (tmp_path / "folder" / "letter").read_text() == "dear"


def test_a_folder_replaces_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for name in ("one", "other"):
        with aside(target) as new:
            new.mkdir()
            (new / name).touch()
            replace(new, target)
        assert [path.name for path in target.iterdir()] == [name]
    assert list(tmp_path.iterdir()) == [target]


def test_only_what_killed_processes_left_is_swept(tmp_path: Path) -> None:
    for name in ("killed", "working"):
        (tmp_path / f"{ASIDE}{name}" / "new").mkdir(parents=True)
        (tmp_path / f"{ASIDE}{name}" / LOCK).touch()
    with (tmp_path / f"{ASIDE}working" / LOCK).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with aside(tmp_path / "file") as new:
            sweep(tmp_path)
            assert {path.name for path in tmp_path.iterdir()} == {f"{ASIDE}working", new.parent.parent.name}
