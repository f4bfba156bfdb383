"""Attributes of folders: which tables are understood, and which image gets which row."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from keras_vae import Condition, InputError, data
from keras_vae.data import tables
from keras_vae.data.image_files import Listing

COUNT = 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images whose grey tells their number."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(COUNT):
        Image.new("RGB", (8, 8), (index, index, index)).save(folder / f"{index:03d}.png")
    return folder


def found(folder: Path, **options: object) -> tuple[data.ImageData, dict[int, list[int]]]:
    """What loading makes of a folder, and the attributes of each image by its number."""
    loaded = data.load(folder, 8, 1, attributes=True, **options)
    attributes = {}
    for part in (loaded.train, loaded.test):
        for batch in part.as_numpy_iterator():
            attributes[round(float(batch["image"][0, 0, 0, 0] * 255))] = batch["attributes"][0].tolist()
    return loaded, attributes


def rows(values: tuple[str, str], delimiter: str = ",", suffix: str = ".png") -> str:
    """A table that says of each image whether its number is even, and whether it is above twenty."""
    lines = [delimiter.join(("image", "Even", "Large"))]
    for index in range(COUNT):
        lines.append(delimiter.join((f"{index:03d}{suffix}", values[index % 2 == 0], values[index > 20])))
    return "\n".join(lines) + "\n"


RIGHT = {index: [int(index % 2 == 0), int(index > 20)] for index in range(COUNT)}


@pytest.mark.parametrize("values", [("0", "1"), ("-1", "1"), ("false", "true"), ("False", "True"), ("no", "yes")])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", "  "])
def test_every_way_to_write_a_table(folder: Path, values: tuple[str, str], delimiter: str) -> None:
    (folder / "attributes.csv").write_text(rows(values, delimiter), encoding="utf-8-sig")
    loaded, attributes = found(folder)
    assert loaded.attribute_names == ("Even", "Large")
    assert attributes == RIGHT


def test_celeba_list(folder: Path) -> None:
    lines = rows(("-1", " 1"), " ").splitlines()
    (folder / "list_attr_celeba.txt").write_text("\n".join([str(COUNT), "Even Large ", *lines[1:]]) + "\n")
    loaded, attributes = found(folder)
    assert loaded.attribute_names == ("Even", "Large")
    assert attributes == RIGHT


@pytest.mark.parametrize("place", ["in", "beside", "by the folder's name", "any csv in it"])
def test_where_tables_lie(folder: Path, place: str) -> None:
    path = {
        "in": folder / "attributes.csv",
        "beside": folder.parent / "list_attr_celeba.csv",
        "by the folder's name": folder.parent / "photos.csv",
        "any csv in it": folder / "LABELS.CSV",
    }[place]
    path.write_text(rows(("0", "1")))
    assert found(folder)[1] == RIGHT


def test_a_table_beside_under_another_name_is_pointed_at(folder: Path) -> None:
    (folder.parent / "labels.csv").write_text(rows(("0", "1")))
    with pytest.raises(InputError, match=r"if they are in .*labels.csv, name it photos.csv or attributes.csv"):
        data.load(folder, 8, 1, attributes=True)


def test_several_tables_in_a_folder_are_refused_where_attributes_are_wanted(folder: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (folder / name).write_text(rows(("0", "1")))
    with pytest.raises(InputError, match=r"2 CSV files, a.csv and b.csv"):
        data.load(folder, 8, 1, attributes=True)
    assert data.load(folder, 8, 1).attribute_names == ()


def test_images_without_attributes_and_attributes_without_images(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = rows(("0", "1")).splitlines()
    lines[3] = lines[3].rpartition(",")[0] + ","  # of 002.png the second value is missing
    lines[5] = "004.png,NA,1"
    del lines[1]  # 000.png
    (folder / "attributes.csv").write_text("\n".join([*lines, "nowhere.png,1,1"]) + "\n")
    with caplog.at_level(logging.WARNING):
        loaded, attributes = found(folder)
    assert attributes == {index: row for index, row in RIGHT.items() if index not in (0, 2, 4)}
    assert dict(loaded.skips.files) == {
        "000.png": "no attributes",
        "002.png": "an attribute is missing",
        "004.png": "an attribute is missing",
    }
    assert "names 1 images that are not in" in caplog.text
    assert "nowhere.png" in caplog.text
    loaded = data.load(folder, 8, 1)  # without attributes, all are there
    assert loaded.train_size + loaded.test_size == COUNT
    with pytest.raises(InputError, match=r"\(no attributes\)|\(an attribute is missing\)"):
        found(folder, strict=True)


def test_names_in_two_subfolders(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for index in range(COUNT):
        path = folder / ("a", "b")[index % 2] / f"{index // 2:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (index, index, index)).save(path)
    table = ["image,Even"]
    table += [f"{'ab'[index % 2]}/{index // 2:03d}.png,{1 - index % 2}" for index in range(COUNT)]
    (tmp_path / "photos.csv").write_text("\n".join(table))
    assert found(folder)[1] == {index: [1 - index % 2] for index in range(COUNT)}
    (tmp_path / "photos.csv").write_text("\n".join([*table[:-2], "019.png,1"]))
    loaded, attributes = found(folder)
    assert set(attributes) == set(range(COUNT - 2))
    assert set(loaded.skips.reasons) == {"attributes of a name that several images have"}


def test_subfolders_are_classes(tmp_path: Path) -> None:
    for index in range(COUNT):
        path = tmp_path / ("cats", "dogs", "ünknown")[index % 3] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (index, index, index)).save(path)
    loaded, attributes = found(tmp_path)
    assert loaded.attribute_names == ("cats", "dogs", "ünknown")
    assert attributes == {index: [int(index % 3 == number) for number in range(3)] for index in range(COUNT)}
    Image.new("RGB", (8, 8)).save(tmp_path / "one-more.png")
    assert data.load(tmp_path, 8, 1).attribute_names == ()


def test_other_columns_are_passed_over_and_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = rows(("0", "1")).splitlines()
    wider = [f"{lines[0]},Age", *(f"{line},{20 + index}" for index, line in enumerate(lines[1:]))]
    (folder / "attributes.csv").write_text("\n".join(wider))
    with caplog.at_level(logging.WARNING):
        loaded, attributes = found(folder)
    assert loaded.attribute_names == ("Even", "Large")
    assert attributes == RIGHT
    assert "column 'Age'" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot tell the columns"),
        ("image/Even\n000.png/1\n", "cannot tell the columns"),
        ("image,Even\n", "it has no rows"),
        ("image,Age\n000.png,33\n", "column 'Age' holds '33'"),
        ("image,Even\n000.png,1\n001.png,1\n002.png,1,0\n", "row 4: 3 columns, but the heading has 2"),
        ("image,Even\n000.png,1\n000.png,0\n", "row 3: 000.png is there twice"),
        ("image,Even,Even\n000.png,1,1\n", "two columns 'Even'"),
        ("image,Even\nother.png,1\n", "names none of the images"),
        ("000.png,1\n001.png,0\n", "begins with the image '000.png': give its columns a heading"),
        ("image,Even,\n000.png,1,1\n", "column 3 has no name"),
        (b"\xff\xfe\x00\x01", "save it as UTF-8"),
    ],
)
def test_unusable_tables_are_refused_in_a_line(folder: Path, text: str | bytes, message: str) -> None:
    (folder / "attributes.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message) as refused:
        data.load(folder, 8, 1, attributes=True)
    assert "\n" not in str(refused.value)
    assert "attributes.csv" in str(refused.value)
    loaded = data.load(folder, 8, 1)  # who wants no attributes is not stopped by them
    assert loaded.train_size + loaded.test_size == COUNT


@given(
    values=st.lists(st.lists(st.sampled_from([0, 1]), min_size=3, max_size=3), min_size=1, max_size=20),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    words=st.sampled_from([("0", "1"), ("-1", "1"), ("False", "True"), (" no", "YES ")]),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, values: list[list[int]], delimiter: str, words: tuple[str, str]
) -> None:
    lines = [("file", "a", "b c", "d"), *((f"{i} é.jpg", *(words[v] for v in row)) for i, row in enumerate(values))]
    path = tmp_path_factory.mktemp("table") / "t.csv"
    path.write_text("\n".join(delimiter.join(line) for line in lines), encoding="utf-8")
    table = tables.read(path)
    matched = tables.match(table, Listing(f"{index} é.jpg" for index in range(len(values))))
    assert table.names == ("a", "b c", "d")
    assert sorted(map(tuple, matched.values.tolist())) == sorted(map(tuple, values))
    assert not matched.faults
    assert not matched.unused
    np.testing.assert_array_equal(table.values, values)


def conditions(folder: Path, condition: object) -> tuple[data.ImageData, dict[int, list[float]]]:
    """What loading makes of a folder, and the condition of each image by its number."""
    loaded = data.load(folder, 8, 1, condition=condition)
    found = {}
    for part in (loaded.train, loaded.test):
        for batch in part.as_numpy_iterator():
            assert batch["condition"].dtype == np.float32
            found[round(float(batch["image"][0, 0, 0, 0] * 255))] = batch["condition"][0].tolist()
    return loaded, found


def test_attributes_as_conditions(folder: Path) -> None:
    (folder / "attributes.csv").write_text(rows(("0", "1")))
    loaded, given = conditions(folder, "all")
    assert loaded.condition == Condition(("Even", "Large"))
    assert given == {index: [2.0 * each - 1.0 for each in row] for index, row in RIGHT.items()}
    loaded, given = conditions(folder, ("Large",))  # as `--condition Large` has it
    assert loaded.condition == Condition(("Large",))
    assert given == {index: [2.0 * row[1] - 1.0] for index, row in RIGHT.items()}
    for condition, message in (
        ("label", r"photos has attributes, not classes: give names of these, Even, Large, or all"),
        (("Odd",), "no attribute 'Odd'"),
    ):
        with pytest.raises(InputError, match=message):
            data.load(folder, 8, 1, condition=condition)


@pytest.mark.parametrize("name", ["label", "Class"])
def test_a_column_of_labels_is_classes(folder: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    kinds = ("boot", "bag, small", "hat")
    lines = [f"{index:03d}.png,{index},{kinds[index % 3]!r}".replace("'", '"') for index in range(COUNT)]
    lines[4] = "004.png,4,"
    (folder / "attributes.csv").write_text("\n".join([f"image,number,{name}", *lines]) + "\n")
    with caplog.at_level(logging.WARNING):
        loaded, given = conditions(folder, "label")
    assert loaded.condition == Condition(("bag, small", "boot", "hat"), exclusive=True)
    place = (1, 0, 2)
    assert given == {index: np.eye(3)[place[index % 3]].tolist() for index in range(COUNT) if index != 4}
    assert dict(loaded.skips.files) == {"004.png": "an attribute is missing"}
    assert "column 'number'" in caplog.text
    with pytest.raises(InputError, match=r"photos has classes, bag, small, boot, hat: give label, not"):
        data.load(folder, 8, 1, condition=("boot",))


def test_subfolders_as_conditions(tmp_path: Path) -> None:
    for index in range(COUNT):
        path = tmp_path / "photos" / ("cats", "dogs")[index % 2] / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (index, index, index)).save(path)
    for condition in ("label", "all"):
        loaded, given = conditions(tmp_path / "photos", condition)
        assert loaded.condition == Condition(("cats", "dogs"), exclusive=True)
        assert given == {index: np.eye(2)[index % 2].tolist() for index in range(COUNT)}


def test_a_source_without_classes_or_attributes(folder: Path) -> None:
    with pytest.raises(InputError, match=r"photos has no attributes: give a table of them, attributes.csv"):
        data.load(folder, 8, 1, condition="label")


def test_a_quotation_mark_that_is_not_closed(tmp_path: Path) -> None:
    path = tmp_path / "attributes.csv"
    path.write_text('image,label\n0.png,"a\n1.png,b"\n2.png,a\n')
    with pytest.raises(InputError, match="row 2: a quotation mark is not closed in its line"):
        tables.read(path)
    path.write_text('image,label\n0.png,"a" b\n1.png,b\n')
    with pytest.raises(InputError, match=r"line 2: .*: mend its quotation marks"):
        tables.read(path)
    path.write_text('image,label\n0.png,"a, b"\n1.png,b\n2.png,-1\n')
    found = tables.read(path)
    assert (found.names, found.exclusive) == (("a, b", "b"), True)  # -1: not known
    assert found.values[2].tolist() == [tables.ABSENT] * 2
