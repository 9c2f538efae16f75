"""A PIL image is read as its file would be, and refused by the same words.

Kinds: grey, palette, CMYK, opaque alpha, turned; 16 bits, whole numbers and floating-point numbers,
transparent pixels (in colour, grey, a palette, one colour of it), premultiplied alpha; a closed
image, one that was never whole, one of a file that is gone.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segtrain.data.images import pixels_of, read_image
from segtrain.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
RGB = Image.fromarray(PIXELS)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_an_image_and_its_file_have_the_same_pixels(tmp_path: Path, mode: str, suffix: str) -> None:
    if (mode, suffix) == ("CMYK", ".png"):
        return  # there is none
    path = tmp_path / f"a{suffix}"
    image = RGB.convert("L").convert("LA") if mode == "LA" else RGB.convert(mode)
    image.save(path)
    expected = read_image(path)
    assert expected.shape == (5, 7, 3)
    assert (pixels_of(image) == expected).all()
    with Image.open(path) as opened:
        assert (pixels_of(opened) == expected).all()
        assert (pixels_of(opened) == expected).all()  # its file is closed by now


def test_an_image_is_turned_as_its_file_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned to the right
    for suffix in (".png", ".tif"):
        RGB.save(tmp_path / f"a{suffix}", exif=exif)
        with Image.open(tmp_path / f"a{suffix}") as opened:
            turned = pixels_of(opened)
        assert (turned == np.rot90(PIXELS, -1)).all()
        assert (read_image(tmp_path / f"a{suffix}") == turned).all()


def alpha(value: int) -> Image.Image:
    image = RGB.convert("RGBA")
    image.putpixel((3, 2), (1, 2, 3, value))
    return image


def grey_alpha() -> Image.Image:
    image = RGB.convert("L").convert("LA")
    image.putpixel((3, 2), (1, 254))
    return image


def one_colour_clear() -> Image.Image:
    image = RGB.convert("P")
    image.info["transparency"] = image.getpixel((0, 0))
    return image


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (alpha(0), "has transparent pixels; flatten the image to RGB"),
        (alpha(254), "has transparent pixels"),
        (grey_alpha(), "has transparent pixels"),
        (one_colour_clear(), "has transparent pixels"),
        (Image.fromarray(np.full((5, 7), 4096, np.uint16)), "colour mode I;16; convert the image"),
        (Image.fromarray(np.full((5, 7), 70000, np.int32)), "colour mode I; convert the image"),
        (Image.fromarray(np.full((5, 7), 0.5, np.float32)), "colour mode F; convert the image"),
        (RGB.convert("HSV"), "colour mode HSV; convert the image to 8-bit RGB"),
        (grey_alpha().convert("La"), "colour mode La; convert the image to 8-bit RGB"),
    ],
    ids=["clear", "nearly", "grey", "palette", "16 bits", "32 bits", "floats", "HSV", "La"],
)
def test_what_is_refused_of_a_file_is_refused_of_an_image(image: Image.Image, said: str) -> None:
    with pytest.raises(DataError, match=f"^the PIL image: {said}"):
        pixels_of(image)


def test_the_file_of_an_image_says_how_many_bits_it_has(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((5, 7), 4096, np.uint16)).save(path)
    said = "deep.png: 16 bits per channel; convert the image to 8 bit"
    with pytest.raises(DataError, match=said):
        read_image(path)
    with Image.open(path) as opened, pytest.raises(DataError, match=said):
        pixels_of(opened)


def test_a_closed_or_a_damaged_image_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS.repeat(40, 0).repeat(40, 1)).save(path)
    closed = Image.open(path)
    closed.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with Image.open(path) as cut, Image.open(io.BytesIO(path.read_bytes())) as bare:
        for image, name in ((closed, "a.png"), (cut, "a.png"), (bare, "the PIL image")):
            said = f"{name}: cannot be read, it is closed, truncated or damaged"
            with pytest.raises(DataError, match=said) as raised:
                pixels_of(image)
            assert "\n" not in str(raised.value)
