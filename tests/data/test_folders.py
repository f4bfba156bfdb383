"""What real folders hold: every kind of file is decoded rightly, or skipped and counted with its reason."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_vae import InputError, data
from keras_vae.data import image_files
from keras_vae.data.image_files import Listing, scan

SMALL = [
    "--image-size",
    "32",
    "--batch-size",
    "4",
    "--latent-dim",
    "4",
    "--width",
    "4",
    "--perceptual",
    "none",
    "--epochs",
    "1",
]
RED, GREY, WHITE = (200, 30, 30), (128, 128, 128), (255, 255, 255)


def picture(colour: tuple[int, ...] = RED, size: tuple[int, int] = (40, 40), mode: str = "RGB") -> Image.Image:
    return Image.new("RGB", size, colour).convert(mode)


def transparent(mode: str) -> Image.Image:
    """Red on the left, and on the right nothing."""
    image = picture().convert("RGBA")
    image.paste((0, 0, 0, 0), (20, 0, 40, 40))
    return image.quantize(4) if mode == "P" else image.convert(mode)


def png_of_16_bits(path: Path) -> None:
    """RGB of 16 bits a channel, which Pillow reads and does not write."""
    row = b"\0" + struct.pack(">3H", *(value * 257 for value in RED)) * 40
    chunks = [
        (b"IHDR", struct.pack(">2I5B", 40, 40, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(row * 40)),
        (b"IEND", b""),
    ]
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def turned(path: Path) -> None:
    """Stored with its upper half red; shown turned by 90 degrees, which makes that the right half."""
    image = picture(WHITE)
    image.paste(RED, (0, 0, 40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, exif=exif, quality=95)


def animated(path: Path) -> None:
    picture().save(path, save_all=True, append_images=[picture(WHITE), picture(GREY)], duration=50, lossless=True)


def saved(image: Image.Image, **options: object) -> Callable[[Path], None]:
    return lambda path: image.save(path, **options)


def cut(path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8))
    noise.save(path)
    path.write_bytes(path.read_bytes()[:-900])


# A file, how it is made, and its left and right half as they must be seen.
DECODED: list[tuple[str, Callable[[Path], None], tuple[int, ...], tuple[int, ...]]] = [
    ("plain.jpg", saved(picture(), quality=95), RED, RED),
    ("UPPER.JPG", saved(picture(), format="JPEG", quality=95), RED, RED),
    ("really-a-png.jpg", saved(picture(), format="PNG"), RED, RED),
    ("cmyk.jpg", saved(picture().convert("CMYK"), quality=95), RED, RED),
    ("grey.jpg", saved(picture(GREY, mode="L")), GREY, GREY),
    ("grey.png", saved(picture(GREY, mode="L")), GREY, GREY),
    ("grey16.png", saved(Image.fromarray(np.full((40, 40), 128 * 257, np.uint16))), GREY, GREY),
    ("colour16.png", png_of_16_bits, RED, RED),
    ("bits.png", saved(picture(WHITE, mode="1")), WHITE, WHITE),
    ("palette.png", saved(picture().quantize(4)), RED, RED),
    ("palette-alpha.png", saved(transparent("P")), RED, WHITE),
    ("alpha.png", saved(transparent("RGBA")), RED, WHITE),
    ("grey-alpha.png", saved(transparent("LA")), (81, 81, 81), WHITE),
    ("alpha.webp", saved(transparent("RGBA"), lossless=True), RED, WHITE),
    ("animated.gif", animated, RED, RED),
    ("animated.webp", animated, RED, RED),
    ("turned.jpg", turned, WHITE, RED),
    ("wide.png", saved(picture(size=(20_000, 300))), RED, RED),
    ("large.jpg", saved(picture(size=(6_000, 4_000)), quality=95), RED, RED),
    ("one-pixel.png", saved(picture(size=(1, 1))), RED, RED),
    ("with spaces and ünïcödé 写真.png", saved(picture()), RED, RED),
    (os.fsdecode(b"not-utf8-\xff.png"), saved(picture(), format="PNG"), RED, RED),
]

# A file, how it is made, and the reason that is given for skipping it.
SKIPPED: list[tuple[str, Callable[[Path], object], str]] = [
    ("cut.jpg", cut, "truncated"),
    ("cut.png", cut, "truncated"),
    ("empty.jpg", Path.touch, "empty file"),
    ("text.jpg", lambda path: path.write_text("this is not an image"), "not an image"),
    (
        "postscript.png",
        lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n"),
        "not an image",
    ),
    ("bomb.png", saved(Image.new("1", (20_000, 20_000))), "too large"),
    ("float.tif", saved(Image.new("F", (40, 40), 0.5)), "32-bit"),
    ("broken-link.jpg", lambda path: path.symlink_to(path.with_name("nowhere")), "broken link"),
    ("self-link.jpg", lambda path: path.symlink_to(path), "broken link"),
    ("pipe.jpg", os.mkfifo, "not a regular file"),
    ("memory.jpg", lambda path: path.symlink_to("/proc/self/mem"), "cannot be read"),
]

# Files that are no images to begin with.
PASSED_OVER = (".hidden.jpg", "Thumbs.db", ".DS_Store", "notes.txt", "noextension")


@pytest.mark.parametrize(("name", "make", "left", "right"), DECODED, ids=[ascii(each[0]) for each in DECODED])
def test_decoded_rightly(
    tmp_path: Path, name: str, make: Callable[[Path], None], left: tuple[int, ...], right: tuple[int, ...]
) -> None:
    path = tmp_path / name
    make(path)
    before = path.read_bytes()
    image = image_files.decode(path, 32).astype(int)
    assert image.shape == (32, 32, 3)
    assert abs(image[:, :12].mean((0, 1)) - left).max() < 6
    assert abs(image[:, -12:].mean((0, 1)) - right).max() < 6
    assert path.read_bytes() == before


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_folder_of_everything(tmp_path: Path) -> None:
    """Each bad file is counted with its reason, in the loading or while batches are made, and nothing fails."""
    for name, make, *_ in (*DECODED, *SKIPPED):
        make(tmp_path / name)
    for name in PASSED_OVER:
        (tmp_path / name).write_bytes((tmp_path / "plain.jpg").read_bytes())
    for index in range(150):
        picture((index, 100, 100)).save(tmp_path / f"filler-{index}.png")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    for subfolder in ("a", "b"):
        (tmp_path / subfolder).mkdir()
        picture().save(tmp_path / subfolder / "same-name.png")
    loaded = data.load(tmp_path, 32, batch_size=1)
    assert loaded.train_size + loaded.test_size == len(DECODED) + 150 + 2
    assert len(loaded.skips) == len(SKIPPED)
    reasons = dict(loaded.skips.files)
    for name, _, reason in SKIPPED:
        assert reason in reasons[name]
    assert len(list(loaded.train)) == loaded.train_size
    assert len(list(loaded.test)) == loaded.test_size
    with pytest.raises(InputError, match="strict reading"):
        data.load(tmp_path, 32, 1, strict=True)


def test_more_than_a_tenth_unreadable_is_refused(tmp_path: Path) -> None:
    for index in range(17):
        picture().save(tmp_path / f"{index}.png")
    (tmp_path / "bad-0.png").write_text("text")
    assert len(data.load(tmp_path, 16, 1).skips) == 1
    (tmp_path / "bad-1.png").write_text("text")
    with pytest.raises(
        InputError, match=r"2 of 19 images cannot be read.*bad-\d.png \(not an image\), bad-"
    ) as refused:
        data.load(tmp_path, 16, 1)
    assert "\n" not in str(refused.value)


@pytest.fixture
def late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of which loading reads nothing: all is found out in the first epoch."""
    monkeypatch.setattr(data.folders, "SAMPLE", 0)
    for index in range(100):
        picture((index, 100, 100)).save(tmp_path / f"{index:02d}.png")
    return tmp_path


def test_files_found_bad_in_an_epoch_leave_their_places_to_others(late: Path) -> None:
    for index in range(0, 100, 12):
        (late / f"{index:02d}.png").write_text("text")
    loaded = data.load(late, 16, batch_size=4)
    for _ in range(2):
        assert [len(batch) for batch in loaded.train] == [4] * (loaded.train_size // 4)
    assert sum(len(batch) for batch in loaded.test) <= loaded.test_size
    assert len(loaded.skips) == 9
    assert dict(loaded.skips.reasons) == {"not an image": 9}


def test_too_many_bad_files_found_in_an_epoch_stop_the_run(
    late: Path, command: Callable[..., object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    for index in range(0, 100, 3):
        (late / f"{index:02d}.png").write_text("text")
    out = tmp_path_factory.mktemp("runs") / "run"
    result = command("train", "--data", late, "--out", out, *SMALL)
    assert result.status == 2
    message = result.err.splitlines()[-1]
    assert "of 100 images cannot be read, more than 10%" in message
    assert "Traceback" not in result.err


def test_a_run_says_what_it_skipped(
    late: Path, command: Callable[..., object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    (late / "07.png").write_text("text")
    out = tmp_path_factory.mktemp("runs") / "run"
    result = command("train", "--data", late, "--out", out, *SMALL)
    assert result.status == 0, result.err
    assert "skipped 1 of 100 images" in result.err
    assert (out / "skipped.csv").read_text() == "file,reason\n07.png,not an image\n"


# Listing ----------------------------------------------------------------------------------------


def test_links_are_followed_each_folder_once(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "real").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    picture().save(folder / "real" / "a.png")
    picture().save(tmp_path / "elsewhere" / "b.png")
    (folder / "a-link").symlink_to(folder / "real")
    (folder / "z-link").symlink_to(tmp_path / "elsewhere")
    (folder / "real" / "up").symlink_to(folder)
    (folder / "file-link.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    assert sorted(scan(folder)) == [("file-link.png", None), ("real/a.png", None), ("z-link/b.png", None)]


def test_listing_is_the_same_in_any_order() -> None:
    names = [f"{index:05d}.jpg" for index in range(5000)]
    one, other = Listing(names), Listing(reversed(names))
    assert list(one) == list(other)
    assert sorted(one) == names
    np.testing.assert_array_equal(one.held_out, other.held_out)
    assert 0.08 < one.held_out.mean() < 0.12
    more = Listing([*names, *(f"new-{index}.jpg" for index in range(3000))])
    before = {name for name, held_out in zip(one, one.held_out, strict=True) if held_out}
    after = {name for name, held_out in zip(more, more.held_out, strict=True) if held_out}
    assert before == {name for name in after if not name.startswith("new")}
