"""What a model can be asked for: names, labels, attributes and arrays, and what is said of wrong ones."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_vae import Condition, InputError
from keras_vae.support.conditions import asked_for, check_none, in_words

CLASSES = Condition(("boot", "bag", "T-shirt/top"), exclusive=True)
ATTRIBUTES = Condition(("glasses", "hat"))


class Column:
    """What numpy makes an array of, such as a data frame's column."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.array(self.values, dtype)


@pytest.mark.parametrize(
    ("condition", "asked", "row"),
    [
        (CLASSES, None, [0, 0, 0]),
        (CLASSES, "any", [0, 0, 0]),
        (CLASSES, "bag", [0, 1, 0]),
        (CLASSES, "Bag", [0, 1, 0]),
        (CLASSES, 2, [0, 0, 1]),
        (CLASSES, np.int64(0), [1, 0, 0]),
        (CLASSES, -1, [0, 0, 0]),
        (ATTRIBUTES, None, [0, 0]),
        (ATTRIBUTES, "hat", [0, 1]),
        (ATTRIBUTES, {"glasses": True, "hat": 0}, [1, -1]),
        (ATTRIBUTES, {"hat": False}, [0, -1]),
        (ATTRIBUTES, {"glasses": None}, [0, 0]),
    ],
)
def test_one_row_for_all(condition: Condition, asked: Any, row: list[float]) -> None:
    found = condition.rows(asked, 2)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [row, row])


@pytest.mark.parametrize(
    ("condition", "asked", "rows"),
    [
        (CLASSES, ["bag", None], [[0, 1, 0], [0, 0, 0]]),
        (CLASSES, [2, -1], [[0, 0, 1], [0, 0, 0]]),
        (CLASSES, np.array([1, 0], np.uint8), [[0, 1, 0], [1, 0, 0]]),
        (CLASSES, np.array([[1], [0]]), [[0, 1, 0], [1, 0, 0]]),
        (CLASSES, Column(["bag", "boot"]), [[0, 1, 0], [1, 0, 0]]),
        (CLASSES, Column([1, 0]), [[0, 1, 0], [1, 0, 0]]),
        (CLASSES, np.eye(3, dtype=int)[:2], [[1, 0, 0], [0, 1, 0]]),
        (CLASSES, np.array([[0.5, 0.5, 0], [0, 0, 0]]), [[0.5, 0.5, 0], [0, 0, 0]]),
        (ATTRIBUTES, np.array([[1, 0], [0, 1]]), [[1, -1], [-1, 1]]),
        (ATTRIBUTES, np.array([[True, False], [False, True]]), [[1, -1], [-1, 1]]),
        (ATTRIBUTES, np.array([[1, -1], [-1, 1]]), [[1, -1], [-1, 1]]),
        (ATTRIBUTES, np.array([[0.0, -1], [0.5, 1]]), [[0, -1], [0.5, 1]]),
        (ATTRIBUTES, [{"hat": 1}, "glasses"], [[0, 1], [1, 0]]),
        (ATTRIBUTES, np.array([[0.5, -1.0]]), [[0.5, -1], [0.5, -1]]),
    ],
)
def test_a_row_for_each(condition: Condition, asked: Any, rows: list[list[float]]) -> None:
    np.testing.assert_array_equal(condition.rows(asked, 2), np.array(rows, np.float32))


@pytest.mark.parametrize(
    ("condition", "asked", "message"),
    [
        (CLASSES, "bags", "no class 'bags': did you mean 'bag'? this model knows boot, bag, T-shirt/top"),
        (CLASSES, "x", "no class 'x': this model knows boot, bag, T-shirt/top"),
        (ATTRIBUTES, {"hats": 1}, "no attribute 'hats': did you mean 'hat'? this model knows glasses, hat"),
        (CLASSES, 3, "class 3: this model knows 3, from 0 on: boot, bag, T-shirt/top"),
        (CLASSES, -2, "class -2: this model knows 3"),
        (CLASSES, [0, 7], "class 7: this model knows 3"),
        (CLASSES, {"bag": 1}, "this model knows classes; name one: boot, bag"),
        (CLASSES, ["bag"], "a list of 1 conditions, and 2 images: give one for each, or no list"),
        (ATTRIBUTES, {"hat": 2}, "condition hat=2: give True or False, or None if it is not asked for"),
        (CLASSES, np.zeros((2, 4)), r"conditions of 2 images are of shape (2, 4) and type float64"),
        (CLASSES, np.zeros((3,), int), r"conditions of 2 images are of shape (3,)"),
        (ATTRIBUTES, np.full((2, 2), np.nan), "conditions hold NaN or numbers beyond 100: give 1 for what is"),
        (ATTRIBUTES, np.array([[1e300, 0], [0, 0]]), "conditions hold NaN or numbers beyond 100"),
        (CLASSES, ["bag", 1.7], "class 1.7: give a name, a whole number, or None: boot, bag, T-shirt/top"),
        (CLASSES, [None, np.nan], "class nan: give a name, a whole number, or None"),
        (CLASSES, np.array([np.nan, "bag"], object), "class nan: give a name, a whole number, or None"),
        (CLASSES, ["bag", ["boot"]], "class ['boot']: give a name, a whole number, or None"),
        (CLASSES, [b"bag", None], "class b'bag': give a name, a whole number, or None"),
        (CLASSES, [[1, 0, 0], [1]], "conditions are lists of different lengths"),
        (ATTRIBUTES, {"hat": np.array([1, 0])}, "condition hat=array([1, 0]): give True or False, or None"),
        (ATTRIBUTES, np.array(["hat", "b"]), "no attribute 'b': this model knows glasses, hat"),
        (ATTRIBUTES, np.array([1j, 2j]), "conditions of 2 images are of shape (2,) and type complex128"),
    ],
)
def test_what_there_is_not(condition: Condition, asked: Any, message: str) -> None:
    with pytest.raises(InputError) as refused:
        condition.rows(asked, 2)
    assert message in str(refused.value)


@pytest.mark.parametrize("labels", [[0, 1], np.array([[1, 0, 0]]), "bag", {"bag": 1}, 1, np.array([True])])
def test_labels_are_one_for_each_image(labels: Any) -> None:
    with pytest.raises(InputError, match=r"3 images and \d labels?: give one for each image"):
        CLASSES.of_images(labels, 3)


def test_labels_that_are_true_or_false() -> None:
    two = Condition.of(2)
    assert two is not None
    np.testing.assert_array_equal(two.of_images(np.array([True, False]), 2), [[0, 1], [1, 0]])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a", "b", "a"], "condition: 'a' is there twice; give each name once"),
        (1, "condition=1: give 2 to 1000 classes"),
        (2000, "condition=2000: give 2 to 1000 classes"),
        (-3, "condition=-3: give 2 to 1000 classes"),
        ({"names": None, "exclusive": True}, "condition names None: give a sequence of names"),
        (["any", "one"], "condition: 'any' is what images of which nothing is known are called; rename yours"),
        ([], "condition of 0 attributes: give 1 to 1000"),
        ("glasses", "condition='glasses': give a number of classes, names of attributes, or a keras_vae.Condition"),
        (2.5, "condition=2.5: give a number of classes"),
        (True, "condition=True: give a number of classes"),
        (["a", ""], "give a sequence of names"),
    ],
)
def test_what_is_no_condition(given: Any, message: str) -> None:
    with pytest.raises(InputError) as refused:
        Condition.of(given)
    assert message in str(refused.value)


names = st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=6, unique=True)


@given(names, st.booleans())
def test_names_survive_files_and_metadata(names: list[str], exclusive: bool) -> None:
    condition = Condition(tuple(names), exclusive)
    assert Condition.of(json.loads(json.dumps(condition.config()))) == condition
    assert Condition.of_metadata(condition.metadata()) == condition
    for place, name in enumerate(names):
        assert condition.rows(name, 1)[0].tolist() == np.eye(len(names))[place].tolist()


def test_no_condition() -> None:
    assert Condition.of(None) is None
    assert Condition.of_metadata({"run_id": "1"}) is None
    check_none(None)
    with pytest.raises(InputError, match="condition='boot': this model was trained without conditions; leave it out"):
        check_none("boot")


def test_what_the_command_line_asks_for() -> None:
    assert asked_for(None, (), ()) == []
    assert asked_for(CLASSES, (), ()) == []
    assert asked_for(CLASSES, ("BAG", "any"), ()) == ["bag", None]
    assert asked_for(ATTRIBUTES, (), ("glasses=1,hat=0",)) == [{"glasses": True, "hat": False}]
    assert asked_for(ATTRIBUTES, (), ("glasses=1", "Hat=0")) == [{"glasses": True}, {"hat": False}]
    assert in_words({"glasses": True, "hat": False}) == "glasses=1, hat=0"
    assert (in_words(None), in_words("boot")) == ("any", "boot")
    assert asked_for(ATTRIBUTES, (), ("glasses =1",)) == [{"glasses": True}]


def test_names_with_commas_are_quoted() -> None:
    hair = Condition(("Hair, blond", 'the "best"', "hat"))
    assert asked_for(hair, (), ('"Hair, blond"=1, hat=0',)) == [{"Hair, blond": True, "hat": False}]
    assert asked_for(hair, (), ('"Hair, blond=0"',)) == [{"Hair, blond": False}]
    assert asked_for(hair, (), ('"the ""best"""=1',)) == [{'the "best"': True}]
    assert asked_for(hair, (), ("hat=1\n",)) == [{"hat": True}]
    with pytest.raises(InputError, match="--attribute 'Hair': give a name and 1 or 0"):
        asked_for(hair, (), ("Hair, blond=1",))


@pytest.mark.parametrize(
    ("condition", "labels", "attributes", "message"),
    [
        (None, ("boot",), (), "--label: this model was trained without conditions"),
        (None, (), ("hat=1",), "--attribute: this model was trained without conditions"),
        (CLASSES, (), ("boot=1",), "--attribute: this model knows classes, not attributes: give --label NAME"),
        (
            ATTRIBUTES,
            ("hat",),
            (),
            "--label: this model knows attributes, not classes: give --attribute, such",
        ),
        (CLASSES, ("boot",), ("boot=1",), "--label: this model knows classes"),
        (ATTRIBUTES, (), ("hat=1,Hat=0",), "--attribute hat=1,Hat=0: hat is there twice; give it once"),
        (ATTRIBUTES, (), ("",), "--attribute '': give a name and 1 or 0, such as glasses=1"),
        (
            Condition(("Hair, blond",)),
            (),
            ("hat",),
            """--attribute 'hat': give a name and 1 or 0, such as "Hair, blond"=1""",
        ),
        (ATTRIBUTES, (), ("hat",), "--attribute 'hat': give a name and 1 or 0, such as glasses=1"),
        (ATTRIBUTES, (), ("hat=2",), "--attribute 'hat=2': give a name and 1 or 0"),
        (ATTRIBUTES, (), ("cap=1",), "no attribute 'cap': this model knows glasses, hat"),
        (CLASSES, ("cap",), (), "no class 'cap'"),
    ],
)
def test_what_the_command_line_cannot_ask_for(
    condition: Condition | None, labels: tuple[str, ...], attributes: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError) as refused:
        asked_for(condition, labels, attributes)
    assert message in str(refused.value)
