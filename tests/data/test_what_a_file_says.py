"""What a file says of itself decides, and what a folder holds is said.

Members of a TIFF: white is zero (one bit, eight bits), nothing said of white, a fourth band, a band
beside grey, signed numbers, floats, two pages, opacity as a channel, compressed by JPEG or WebP. Of
other kinds: BMP, WebP, HEIC, animated PNG and WebP, transparent masks in colours. Of a folder: a
Mac's `._` files, upper-case suffixes, linked folders, a link to a folder above, other files.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segtrain.data.images import image_size, read_colors, read_image, read_mask
from segtrain.data.listing import images_below, in_words
from segtrain.errors import DataError

pytestmark = pytest.mark.row("R18")

SHORT = 3
LONG = 4


def tiff(path: Path, pixels: np.ndarray, tags: dict[int, int | tuple[int, ...]]) -> Path:
    """Write an uncompressed TIFF of one strip, as its specification says, without a library."""
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    bits = tags.get(258, (pixels.dtype.itemsize * 8,) * channels)
    entries: dict[int, int | tuple[int, ...]] = {
        256: width,
        257: height,
        259: 1,
        277: channels,
        278: height,
        279: pixels.nbytes,
        **tags,
        258: bits,
    }
    data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    if entries[258] in (1, (1,)):
        data = np.packbits(pixels.astype(bool), axis=1).tobytes()
        entries[279] = len(data)
    offset = 8 + 2 + 12 * (len(entries) + 1) + 4
    extra = b""
    entries[273] = 0  # the strip's place, known below
    fields = []
    for tag, value in sorted(entries.items()):
        values = value if isinstance(value, tuple) else (value,)
        kind = LONG if tag in (273, 279) else SHORT
        packed = struct.pack(f"<{len(values)}{'I' if kind == LONG else 'H'}", *values)
        if len(packed) > 4:
            place = offset + len(extra)
            extra += packed
            packed = struct.pack("<I", place)
        fields.append((tag, kind, len(values), packed.ljust(4, b"\0")))
    strip = struct.pack("<I", offset + len(extra))
    body = b"".join(
        struct.pack("<HHI", tag, kind, count) + (strip if tag == 273 else packed)
        for tag, kind, count, packed in fields
    )
    directory = struct.pack("<H", len(fields)) + body + struct.pack("<I", 0)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + directory + extra + data)
    return path


GREY = np.array([[0, 1, 2], [3, 4, 250]], np.uint8)
COLOUR = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)


def test_a_plain_tiff_is_read_as_it_is(tmp_path: Path) -> None:
    assert read_mask(tiff(tmp_path / "m.tif", GREY, {262: 1})).tolist() == GREY.tolist()
    photo = read_image(tiff(tmp_path / "p.tif", COLOUR, {262: 2}))
    assert photo.tolist() == COLOUR.tolist()


@pytest.mark.parametrize(("values", "bits"), [(GREY, 8), (GREY % 2, 1), (GREY[:, :1], 8)])
def test_a_mask_whose_zero_is_white_is_refused_and_a_photo_is_turned_right(
    tmp_path: Path, values: np.ndarray, bits: int
) -> None:
    path = tiff(tmp_path / "m.tif", values, {262: 0, 258: bits})
    with pytest.raises(DataError, match=r"m\.tif: .*WhiteIsZero.*save the mask as PNG"):
        read_mask(path)
    white = 255 if bits == 8 else 1
    shown = (white - values.astype(int)) * (255 // white)
    assert read_image(path)[..., 0].tolist() == shown.tolist()


@pytest.mark.parametrize(
    ("pixels", "tags", "said"),
    [
        (np.zeros((2, 3, 4), np.uint8), {262: 2, 338: 0}, "4 channels, 1 of them more"),
        (np.zeros((2, 3, 5), np.uint8), {262: 2, 338: (0, 0)}, "5 channels, 2 of them more"),
        (np.zeros((2, 3, 2), np.uint8), {262: 1, 338: 0}, "2 channels, 1 of them more"),
        (np.zeros((2, 3), np.int16), {262: 1, 339: 2}, "signed numbers"),
        (np.zeros((2, 3), np.float32), {262: 1, 339: 3}, "floating-point numbers"),
    ],
    ids=["infrared", "two more", "grey and one", "signed", "floats"],
)
def test_what_pillow_would_drop_is_refused_by_what_it_is(
    tmp_path: Path, pixels: np.ndarray, tags: dict, said: str
) -> None:
    path = tiff(tmp_path / "x.tif", pixels, tags)
    for read in (read_image, read_mask):
        with pytest.raises(DataError, match=f"x.tif: is a TIFF of {said}"):
            read(path)


def test_opacity_is_no_channel_too_many(tmp_path: Path) -> None:
    opaque = np.concatenate([COLOUR, np.full((2, 3, 1), 255, np.uint8)], 2)
    assert read_image(tiff(tmp_path / "a.tif", opaque, {262: 2, 338: 2})).tolist() == (
        COLOUR.tolist()
    )


def test_several_pages_are_refused(tmp_path: Path) -> None:
    pages = [Image.fromarray(GREY), Image.fromarray(GREY)]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match=r"x\.tif: is a TIFF of several pages"):
        read_mask(tmp_path / "x.tif")


@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
def test_a_tiff_that_does_not_say_which_end_is_white_is_refused(
    tmp_path: Path, pixels: np.ndarray
) -> None:
    path = tiff(tmp_path / "x.tif", pixels, {})  # Pillow would invert it
    for read in (read_image, read_mask, image_size):
        with pytest.raises(DataError, match=r"x\.tif: is a TIFF that does not say whether 0 is b"):
            read(path)


@pytest.mark.parametrize(("code", "kind"), [(6, "JPEG"), (7, "JPEG"), (50001, "WebP")])
def test_a_mask_in_a_tiff_of_lossy_compression_is_refused(
    tmp_path: Path, code: int, kind: str
) -> None:
    path = tiff(tmp_path / "m.tif", GREY, {262: 1, 259: code})
    for read in (read_mask, read_colors):
        with pytest.raises(DataError, match=rf"m\.tif: is a TIFF compressed by {kind}, which is l"):
            read(path)


def test_lossless_tiff_masks_and_lossy_tiff_photos_are_read(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "m.tif", compression="tiff_lzw")
    assert read_mask(tmp_path / "m.tif").tolist() == GREY.tolist()
    Image.fromarray(np.full((16, 16, 3), 99, np.uint8)).save(tmp_path / "p.tif", compression="jpeg")
    assert np.abs(read_image(tmp_path / "p.tif").astype(int) - 99).max() <= 2


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_an_animation_is_refused_and_one_picture_of_its_kind_is_read(
    tmp_path: Path, suffix: str
) -> None:
    pictures = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]
    path = tmp_path / f"a.{suffix}"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], lossless=True)
    for read in (read_image, read_mask, read_colors, image_size):
        with pytest.raises(DataError, match=rf"a\.{suffix}: is an animation of several pictures"):
            read(path)
    pictures[0].save(path, save_all=True, lossless=True)
    assert read_image(path).tolist() == COLOUR.tolist()


def test_a_colour_mask_that_hides_pixels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    drawn = np.dstack([COLOUR, np.full((2, 3), 255, np.uint8)])
    Image.fromarray(drawn).save(path)
    colors = read_colors(path)
    assert colors is not None
    assert colors.tolist() == COLOUR.tolist()
    drawn[0, 0, 3] = 0
    Image.fromarray(drawn).save(path)
    with pytest.raises(DataError, match=r"m\.png: has transparent pixels; flatten"):
        read_colors(path)
    Image.fromarray(COLOUR).save(path, transparency=(3, 4, 5))  # a colour that is there
    with pytest.raises(DataError, match=r"m\.png: has transparent pixels; flatten"):
        read_colors(path)
    Image.fromarray(COLOUR).save(path, transparency=(9, 9, 9))  # one that is not
    assert np.array_equal(read_colors(path), COLOUR)


def test_bmp_and_webp_are_read_and_heic_is_named(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "a.bmp")
    Image.fromarray(COLOUR).save(tmp_path / "a.webp", lossless=True)
    for name in ("a.bmp", "a.webp"):
        assert read_image(tmp_path / name).tolist() == COLOUR.tolist()
    Image.fromarray(GREY).save(tmp_path / "m.bmp")
    assert read_mask(tmp_path / "m.bmp").tolist() == GREY.tolist()
    with pytest.raises(DataError, match="WebP may be lossy"):
        read_mask(tmp_path / "a.webp")
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 20)
    with pytest.raises(DataError, match=r"a\.heic: is a HEIC photo of a phone; convert it to JPEG"):
        read_image(tmp_path / "a.heic")


def test_a_folder_of_strangers_files_is_listed_and_the_rest_counted(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "day").mkdir(parents=True)
    (photos / ".cache").mkdir()
    (tmp_path / "card").mkdir()
    for name in ("b.PNG", "day/a.JpG", ".cache/x.png", "._b.PNG", "notes.txt", "c.heic", "README"):
        (photos / name).write_bytes(b"x")
    (tmp_path / "card/d.webp").write_bytes(b"x")
    (photos / "linked").symlink_to(tmp_path / "card")
    (photos / "day/up").symlink_to(photos)  # leads to itself
    (photos / "gone.png").symlink_to(tmp_path / "nowhere.png")
    found = images_below(photos)
    names = [path.relative_to(photos).as_posix() for path in found.images]
    assert names == ["b.PNG", "day/a.JpG", "linked/d.webp"]
    assert in_words(found.left_out) == (
        "1 .heic, 1 .txt, 1 broken link, 2 hidden, 1 without a suffix "
        "(convert HEIC and AVIF to JPEG)"
    )
