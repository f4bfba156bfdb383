"""What a conditional model's images are of: one of several classes, or any of several attributes. numpy alone.

A condition is a row of float32 numbers, one for each name. Of classes it is 1 for the image's class and 0 for the
others; of attributes it is 1 for those that the image has, and -1 for those that it lacks. Zero says that nothing is
known: a row of zeros is an image of any kind.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_vae.support.errors import InputError
from keras_vae.support.names import quoted, split

ANY = "any"  # what an image of which nothing is known is called
AT_MOST = 1000  # names: each is a column of every condition
LARGEST = 100  # number in a condition: training knows -1 to 1, and float16 ends at 65,504
SHOWN = 20  # of the names in a message


@dataclass(frozen=True)
class Condition:
    """What images can be asked for by.

    Attributes:
        names: of the classes or attributes.
        exclusive: whether they are classes, of which an image has one, rather than attributes, of which it has any.

    Raises:
        InputError: no names, two that are alike, or a single class.

    Example:
        >>> Condition(("boot", "bag"), exclusive=True).rows("bag", 1)
        array([[0., 1.]], dtype=float32)
    """

    names: tuple[str, ...]
    exclusive: bool = False

    def __post_init__(self) -> None:
        names = self.names
        if (
            isinstance(names, str)
            or not isinstance(names, Sequence)
            or not all(isinstance(name, str) and name for name in names)
        ):
            raise InputError(f"condition names {names!r}: give a sequence of names, such as ('glasses', 'hat')")
        if ANY in names:
            raise InputError(f"condition: {ANY!r} is what images of which nothing is known are called; rename yours")
        object.__setattr__(self, "names", tuple(names))
        object.__setattr__(self, "exclusive", bool(self.exclusive))
        if len(set(names)) < len(names):
            twice = next(name for name in names if list(names).count(name) > 1)
            raise InputError(f"condition: {twice!r} is there twice; give each name once")
        least = 2 if self.exclusive else 1
        if not least <= len(names) <= AT_MOST:
            what = "classes" if self.exclusive else "attributes"
            raise InputError(f"condition of {len(names)} {what}: give {least} to {AT_MOST}")

    @classmethod
    def of(cls, given: Any) -> Condition | None:
        """What a model was given: a number of classes, names of attributes, a `Condition`, its config, or None.

        Raises:
            InputError: something else.
        """
        if given is None or isinstance(given, Condition):
            return given
        if isinstance(given, Mapping) and set(given) == {"names", "exclusive"}:
            return cls(**given)
        if isinstance(given, int | np.integer) and not isinstance(given, bool):
            if not 2 <= given <= AT_MOST:
                raise InputError(f"condition={given}: give 2 to {AT_MOST} classes")
            return cls(tuple(map(str, range(int(given)))), exclusive=True)
        if isinstance(given, Sequence) and not isinstance(given, str):
            return cls(tuple(given))
        raise InputError(
            f"condition={given!r}: give a number of classes, names of attributes, or a keras_vae.Condition"
        )

    @classmethod
    def of_metadata(cls, metadata: Mapping[str, str]) -> Condition | None:
        """What an exported model's metadata say; None of one without conditions."""
        return cls.of(json.loads(metadata["condition"])) if "condition" in metadata else None

    def __len__(self) -> int:
        return len(self.names)

    def config(self) -> dict[str, Any]:
        """As `of` takes it, and JSON."""
        return {"names": list(self.names), "exclusive": self.exclusive}

    def metadata(self) -> dict[str, str]:
        """The entry in an exported model's metadata."""
        return {"condition": json.dumps(self.config())}

    def rows(self, asked: Any, count: int) -> np.ndarray:
        """Conditions of some images, float32 (count, names).

        Args:
            asked: None or "any" for images of any kind; a name, or a class's number, -1 for any; a mapping from
                attributes to whether the images have them, None for either; a sequence of `count` of these; or an
                array, or what numpy makes one of: of whole numbers the images' labels, (count,) class numbers or
                (count, names) of 1 and 0 (or -1); of floats the conditions themselves, (count, names), or (1, names)
                for all.
            count: of images.

        Raises:
            InputError: a name that there is not, or an array of another shape or not finite.
        """
        if hasattr(asked, "__array__") and not isinstance(asked, np.generic):  # such as a column of a data frame
            asked = np.asarray(asked)
            asked = asked.tolist() if asked.dtype.kind in "SUO" else asked
        if asked is None or isinstance(asked, str | int | np.integer | Mapping):
            return np.repeat(self._row(asked)[np.newaxis], count, axis=0)
        if isinstance(asked, Sequence) and any(each is None or isinstance(each, str | Mapping) for each in asked):
            if len(asked) != count:
                raise InputError(
                    f"a list of {len(asked)} conditions, and {count} images: give one for each, or no list"
                )
            return np.stack([self._row(each) for each in asked])
        try:
            values = np.asarray(asked)
        except ValueError as error:
            raise InputError(
                "conditions are lists of different lengths: give as many numbers for each image"
            ) from error
        if values.dtype.kind in "biu" and self.exclusive and values.shape in ((count,), (count, 1)):
            numbers = values.astype(int).ravel().tolist()
            return np.stack([self._row(number) for number in numbers]) if count else self._none(0)
        if values.dtype.kind in "biuf" and values.shape == (1, len(self)):
            values = np.repeat(values, count, axis=0)
        if values.dtype.kind not in "biuf" or values.shape != (count, len(self)):
            raise InputError(
                f"conditions of {count} images are of shape {values.shape} and type {values.dtype}: give numbers, "
                f"({count}, {len(self)}), for {self._listed()}"
            )
        if values.dtype.kind != "f":
            return np.where(values > 0, 1.0, 0.0 if self.exclusive else -1.0).astype(np.float32)
        if not (np.abs(values) <= LARGEST).all():  # NaN is not, either
            raise InputError(
                f"conditions hold NaN or numbers beyond {LARGEST}: give 1 for what is, and 0 for what is not known"
            )
        return values.astype(np.float32)

    def of_images(self, labels: Any, count: int) -> np.ndarray:
        """Conditions of images by their labels, as `rows`, but one label for each image.

        Raises:
            InputError: there are more or fewer, or as `rows`.
        """
        found = 1 if isinstance(labels, str | Mapping) or not hasattr(labels, "__len__") else len(labels)
        if isinstance(labels, str | Mapping) or found != count:
            raise InputError(f"{count} images and {found} label{'s' if found != 1 else ''}: give one for each image")
        return self.rows(labels, count)

    def each(self) -> np.ndarray:
        """The condition of each class, or of each attribute alone: float32 (names, names)."""
        return np.eye(len(self), dtype=np.float32)

    def _none(self, count: int) -> np.ndarray:
        return np.zeros((count, len(self)), np.float32)

    def _row(self, asked: Any) -> np.ndarray:
        row = self._none(1)[0]
        if asked is None or (isinstance(asked, str) and asked == ANY):
            return row
        if isinstance(asked, Mapping):
            if self.exclusive:
                raise InputError(f"condition={dict(asked)!r}: this model knows classes; name one: {self._listed()}")
            for name, has_it in asked.items():
                if not (has_it is None or np.ndim(has_it) == 0) or has_it not in (None, True, False, -1):
                    raise InputError(f"condition {name}={has_it!r}: give True or False, or None if it is not asked for")
                row[self.position(name)] = {None: 0.0, True: 1.0}.get(has_it, -1.0)
            return row
        if not isinstance(asked, str) and self.exclusive and not isinstance(asked, bool):
            if not isinstance(asked, int | np.integer):
                raise InputError(f"class {asked!r}: give a name, a whole number, or None: {self._listed()}")
            if not -1 <= int(asked) < len(self):
                raise InputError(f"class {asked}: this model knows {len(self)}, from 0 on: {self._listed()}")
            if asked >= 0:
                row[int(asked)] = 1.0
            return row
        row[self.position(asked)] = 1.0
        return row

    def position(self, name: Any) -> int:
        """The place of a name.

        Raises:
            InputError: there is no such name; the message has those that there are.
        """
        if name in self.names:
            return self.names.index(name)
        folded = {each.lower(): each for each in self.names}
        if isinstance(name, str) and name.lower() in folded and len(folded) == len(self.names):
            return self.names.index(folded[name.lower()])
        kind = "class" if self.exclusive else "attribute"
        near = [folded[each] for each in difflib.get_close_matches(str(name).lower(), folded, 3, 0.5)]
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise InputError(f"no {kind} {name!r}: {hint}this model knows {self._listed()}")

    def _listed(self) -> str:
        more = f" and {len(self) - SHOWN} more" if len(self) > SHOWN else ""
        return ", ".join(self.names[:SHOWN]) + more


def asked_for(condition: Condition | None, labels: Sequence[str], attributes: Sequence[str]) -> list[Any]:
    """What the command line asks for, each as `Condition.rows` takes it: labels, or mappings of attributes.

    Args:
        condition: the model's, or None.
        labels: names of classes; "any" for images of any kind.
        attributes: each "NAME=1" or "NAME=0", or several with commas between them, as `names.split` takes them.

    Raises:
        InputError: the model has no such classes or attributes.
    """
    if not labels and not attributes:
        return []
    given = "--label" if labels else "--attribute"
    if condition is None:
        raise InputError(f"{given}: this model was trained without conditions; leave it out, or train with --condition")
    if (labels and attributes) or condition.exclusive != bool(labels):
        knows = "classes, not attributes: give --label NAME"
        if not condition.exclusive:
            knows = f"attributes, not classes: give --attribute, such as {quoted(condition.names[0])}=1"
        raise InputError(f"{given}: this model knows {knows}")
    if labels:
        return [None if label == ANY else condition.names[condition.position(label)] for label in labels]
    return [_attributes(condition, text) for text in attributes]


def _attributes(condition: Condition, text: str) -> dict[str, bool]:
    asked: dict[str, bool] = {}
    for pair in split(text):
        name, equals, value = pair.rpartition("=")
        if not equals or value not in ("0", "1"):
            raise InputError(f"--attribute {pair!r}: give a name and 1 or 0, such as {quoted(condition.names[0])}=1")
        name = condition.names[condition.position(name.strip())]
        if name in asked:
            raise InputError(f"--attribute {text}: {name} is there twice; give it once")
        asked[name] = value == "1"
    return asked


def in_words(asked: Any) -> str:
    """What is asked for, as a row of a picture is called."""
    if isinstance(asked, Mapping):
        return ", ".join(f"{name}={int(has_it)}" for name, has_it in asked.items())
    return ANY if asked is None else str(asked)


def check_none(asked: Any) -> None:
    """Refuses a condition that is asked of a model without any.

    Raises:
        InputError: it is one.
    """
    if asked is not None:
        raise InputError(f"condition={asked!r}: this model was trained without conditions; leave it out")
