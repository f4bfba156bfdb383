"""Draws labelled cartoon faces: from a seed and a number to an image and its attributes.

Imports neither TensorFlow nor TFDS, so that worker processes start in a moment.
"""

from __future__ import annotations

import io
import random
from dataclasses import dataclass
from functools import cache
from typing import TypeVar
from xml.etree import ElementTree

import numpy as np
import python_avatars as pa
import resvg_py
from PIL import Image

Choice = TypeVar("Choice")

HAIR_COLORS = {
    "black": (pa.HairColor.BLACK,),
    "brown": (pa.HairColor.BROWN, pa.HairColor.BROWN_DARK),
    "blond": (pa.HairColor.BLONDE, pa.HairColor.BLONDE_GOLDEN),
    "red": (pa.HairColor.RED, pa.HairColor.AUBURN),
    "gray": (pa.HairColor.SILVER_GRAY, pa.HairColor.PLATINUM),
    "pink": (pa.HairColor.PASTEL_PINK,),
}
ATTRIBUTES = (
    "smiling",
    "open_mouth",
    "glasses",
    "sunglasses",
    "facial_hair",
    "hat",
    "bald",
    "long_hair",
    *(f"{group}_hair" for group in HAIR_COLORS),
    "dark_skin",
)

# Left out are tops that hide facial hair or glasses, leave the picture, or do not take the hair colour.
LONG_HAIR = (
    pa.HairType.BIG_HAIR,
    pa.HairType.BOB,
    pa.HairType.CURVY,
    pa.HairType.DREADS,
    pa.HairType.LONG_NOT_TOO_LONG,
    pa.HairType.MIA_WALLACE,
    pa.HairType.STRAIGHT_1,
    pa.HairType.STRAIGHT_STRAND,
    pa.HairType.TWIST_LONG_HAIR,
)
SHORT_HAIR = (
    pa.HairType.BUN,
    pa.HairType.BUZZCUT,
    pa.HairType.CAESAR_SIDE_PART,
    pa.HairType.FRO,
    pa.HairType.PIXIE,
    pa.HairType.QUIFF,
    pa.HairType.SHORT_CURLY,
    pa.HairType.SHORT_DREADS_1,
    pa.HairType.SHORT_FLAT,
    pa.HairType.SHORT_ROUND,
    pa.HairType.SHORT_WAVED,
)
HATS = (
    pa.HatType.HAT,
    pa.HatType.TURBAN,
    pa.HatType.WINTER_HAT_1,
    pa.HatType.WINTER_HAT_2,
    pa.HatType.WINTER_HAT_3,
    pa.HatType.WINTER_HAT_4,
)
# By (smiling, open), so that the two attributes are independent of each other.
MOUTHS = {
    (True, True): (pa.MouthType.SMILE, pa.MouthType.BIG_SMILE, pa.MouthType.TONGUE),
    (True, False): (pa.MouthType.TWINKLE,),
    (False, True): (pa.MouthType.CONCERNED, pa.MouthType.SCREAM_OPEN, pa.MouthType.DISBELIEF),
    (False, False): (pa.MouthType.SERIOUS, pa.MouthType.SAD),
}
GLASSES = (pa.AccessoryType.PRESCRIPTION_2, pa.AccessoryType.ROUND)
SUNGLASSES = (pa.AccessoryType.SUNGLASSES, pa.AccessoryType.WAYFARERS, pa.AccessoryType.KURT)
FACIAL_HAIR = (
    pa.FacialHairType.BEARD_LIGHT,
    pa.FacialHairType.BEARD_MAGESTIC,
    pa.FacialHairType.BEARD_MEDIUM,
    pa.FacialHairType.MOUSTACHE_FANCY,
    pa.FacialHairType.MOUSTACHE_MAGNUM,
)
LIGHT_SKINS = (pa.SkinColor.PALE, pa.SkinColor.LIGHT, pa.SkinColor.TANNED, pa.SkinColor.BROWN)
DARK_SKINS = (pa.SkinColor.DARK_BROWN, pa.SkinColor.BLACK)
EYES = (pa.EyeType.DEFAULT, pa.EyeType.HAPPY, pa.EyeType.SIDE, pa.EyeType.SQUINT, pa.EyeType.SURPRISED)
EYEBROWS = (
    pa.EyebrowType.DEFAULT_NATURAL,
    pa.EyebrowType.ANGRY_NATURAL,
    pa.EyebrowType.FLAT_NATURAL,
    pa.EyebrowType.RAISED_EXCITED_NATURAL,
    pa.EyebrowType.SAD_CONCERNED_NATURAL,
)
CLOTHES = (
    pa.ClothingType.BLAZER_SHIRT,
    pa.ClothingType.COLLAR_SWEATER,
    pa.ClothingType.HOODIE,
    pa.ClothingType.OVERALL,
    pa.ClothingType.SHIRT_CREW_NECK,
    pa.ClothingType.SHIRT_V_NECK,
)
BACKGROUNDS = ("#FFFFFF", "#65C9FF", "#FFDEB5", "#A7FFC4", "#D9C7F5")

# The drawing is 264 x 280 units with room around the head: this square holds what is drawn.
VIEW_BOX = "12 10 240 240"


@dataclass(frozen=True)
class AvatarExample:
    """One drawn face: image uint8 (size, size, 3) and attributes, 0 or 1 by name."""

    image: np.ndarray
    attributes: dict[str, int]


class _Dice:
    """Draws from `random.random` alone, whose numbers Python promises to keep from version to version."""

    def __init__(self, *key: object) -> None:
        self._random = random.Random("-".join(map(str, key)))

    def chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def pick(self, choices: tuple[Choice, ...]) -> Choice:
        return choices[int(self._random.random() * len(choices))]


def draw(seed: int, split: str, index: int, size: int) -> AvatarExample:
    """Draws the avatar of that number.

    Attributes are independent of each other where the drawing allows: a hat or a bald head has no hair
    to have a length or a colour, glasses exclude sunglasses, and one hair colour excludes the others.

    Args:
        seed, split, index: together they determine the face.
        size: pixels a side; the same face in any size.
    """
    dice = _Dice(seed, split, index)
    smiling, open_mouth = dice.chance(0.5), dice.chance(0.5)
    eyewear = dice.pick(("none", "none", "glasses", "sunglasses"))
    accessory = {"none": pa.AccessoryType.NONE, "glasses": dice.pick(GLASSES), "sunglasses": dice.pick(SUNGLASSES)}
    facial_hair, hat, dark_skin = dice.chance(0.35), dice.chance(0.25), dice.chance(0.35)
    bald = not hat and dice.chance(0.1)
    long_hair = not hat and not bald and dice.chance(0.5)
    group = dice.pick(tuple(HAIR_COLORS))
    hair_color = dice.pick(HAIR_COLORS[group])
    if hat:
        top: pa.TopType = dice.pick(HATS)
    elif bald:
        top = pa.HairType.NONE
    else:
        top = dice.pick(LONG_HAIR if long_hair else SHORT_HAIR)
    avatar = pa.Avatar(
        style=pa.AvatarStyle.TRANSPARENT,
        top=top,
        hat_color=dice.pick(tuple(pa.ClothingColor)),
        eyebrows=dice.pick(EYEBROWS),
        eyes=dice.pick(EYES),
        nose=dice.pick(tuple(pa.NoseType)),
        mouth=dice.pick(MOUTHS[smiling, open_mouth]),
        facial_hair=dice.pick(FACIAL_HAIR) if facial_hair else pa.FacialHairType.NONE,
        skin_color=dice.pick(DARK_SKINS if dark_skin else LIGHT_SKINS),
        hair_color=hair_color,
        facial_hair_color=hair_color,
        accessory=accessory[eyewear],
        clothing=dice.pick(CLOTHES),
        clothing_color=dice.pick(tuple(pa.ClothingColor)),
    )
    attributes = {
        "smiling": smiling,
        "open_mouth": open_mouth,
        "glasses": eyewear == "glasses",
        "sunglasses": eyewear == "sunglasses",
        "facial_hair": facial_hair,
        "hat": hat,
        "bald": bald,
        "long_hair": long_hair,
        **{f"{name}_hair": name == group and not hat and not bald for name in HAIR_COLORS},
        "dark_skin": dark_skin,
    }
    image = _render(avatar, dice.pick(BACKGROUNDS), size)
    return AvatarExample(image, {name: int(value) for name, value in attributes.items()})


def draw_many(seed: int, split: str, indices: range, size: int) -> list[AvatarExample]:
    """`draw` for each index: a parcel of work for one process."""
    return [draw(seed, split, index, size) for index in indices]


def _render(avatar: pa.Avatar, background: str, size: int) -> np.ndarray:
    svg = ElementTree.fromstring(avatar.render())
    svg.attrib.update(viewBox=VIEW_BOX, width=str(size), height=str(size))
    png = resvg_py.svg_to_bytes(
        svg_string=ElementTree.tostring(svg, encoding="unicode"),
        background=background,
        skip_system_fonts=True,
    )
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


@cache
def sources() -> str:
    """The packages that made the drawings, for the data set's card."""
    from importlib.metadata import version

    return f"python-avatars {version('python-avatars')}, resvg-py {version('resvg-py')}"
