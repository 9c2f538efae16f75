"""Reading images and masks: what converts, and that all else is refused with one line (R18)."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from segtrain.data.images import image_size, orientation, read_image, read_mask, shown
from segtrain.errors import DataError

pytestmark = pytest.mark.row("R18")

RAMP = (np.arange(6 * 8 * 3) % 256).astype(np.uint8).reshape(6, 8, 3)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, kind: int, rows: list[bytes]) -> bytes:
    """A PNG written by hand: an independent reference for depth and header tests."""

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncated_png(path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def truncated_jpeg(path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def header_only(path: Path) -> None:
    path.write_bytes(png(8, 6, 8, 2, [])[:20])


def text_as_png(path: Path) -> None:
    path.write_text("<html>404 not found</html>")


def gif_as_png(path: Path) -> None:
    Image.new("P", (4, 4)).save(path, "GIF")


def damaged_crc(path: Path) -> None:
    data = bytearray(png(8, 6, 8, 2, [b"\1" * 24] * 6))
    data[20] ^= 1
    path.write_bytes(data)


def folder(path: Path) -> None:
    path.mkdir()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def dangling_link(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere.png"))


def missing(path: Path) -> None:
    assert not path.exists()


def huge_header(path: Path) -> None:
    path.write_bytes(png(60_000, 60_000, 8, 2, [b"\0" * 10]))


def no_pixels(path: Path) -> None:
    path.write_bytes(png(0, 5, 8, 0, []))


BROKEN: dict[Callable[[Path], None], str] = {
    empty: "is empty",
    truncated_png: "truncated or damaged",
    truncated_jpeg: "truncated or damaged|JPEG is lossy",
    header_only: "truncated or damaged",
    text_as_png: "is not a PNG, JPEG, TIFF, BMP or WebP file .it starts with b'<html>40",
    gif_as_png: "is not a PNG, JPEG, TIFF",
    damaged_crc: "truncated or damaged",
    folder: "is a folder",
    pipe: "is a folder or a device",
    dangling_link: "is a link to .*nowhere.png, which does not exist",
    missing: "No such file",
    huge_header: "header says 60000 x 60000.*tiles",
    no_pixels: "header says 0 x 5|truncated or damaged",
}


@pytest.mark.parametrize("read", [read_image, read_mask])
@pytest.mark.parametrize(
    ("make", "reason"), [pytest.param(m, r, id=m.__name__) for m, r in BROKEN.items()]
)
def test_a_broken_file_is_refused_in_one_line_that_names_it(
    tmp_path: Path, make: Callable[[Path], None], reason: str, read: Callable[[Path], np.ndarray]
) -> None:
    path = tmp_path / "x.png"
    make(path)
    with pytest.raises(DataError, match=reason) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 65


@contextmanager
def as_nobody() -> Generator[None]:
    """Root may read everything, so step down for a moment."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(RAMP).save(path)
    path.chmod(0)
    with as_nobody(), pytest.raises(DataError, match=r"x.png: cannot be read: Permission denied"):
        read_image(path)


@pytest.mark.parametrize("raw", [b"caf\xe9.png", b"n" * 251 + b".png"])
def test_names_that_are_not_utf8_or_very_long_are_read_and_printable(
    tmp_path: Path, raw: bytes
) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + raw))
    Image.fromarray(RAMP).save(path)
    assert (read_image(path) == RAMP).all()
    shown(path).encode("utf-8")
    path.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        read_image(path)
    str(caught.value).encode("utf-8")


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_an_rgb_image_comes_back_exactly_and_writable(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(RAMP).save(path)
    image = read_image(path)
    assert image.dtype == np.uint8
    assert image.flags.writeable
    assert image.flags.c_contiguous
    assert (image == RAMP).all()


def test_the_content_decides_the_format_and_not_the_suffix(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    Image.fromarray(RAMP).save(path, "PNG")
    assert (read_image(path) == RAMP).all()


def test_grey_one_bit_palette_and_opaque_alpha_images_become_rgb(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(RAMP[..., 0]).save(path)
    assert (read_image(path) == RAMP[..., :1]).all()
    Image.fromarray(RAMP[..., 0] > 70).save(path)
    assert (read_image(path) == np.where(RAMP[..., :1] > 70, 255, 0)).all()
    palette = Image.new("P", (2, 1))
    palette.putpalette([1, 2, 3, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    palette.save(path)
    assert read_image(path).tolist() == [[[1, 2, 3], [40, 50, 60]]]
    Image.fromarray(np.dstack([RAMP, np.full((6, 8), 255, np.uint8)])).save(path)
    assert (read_image(path) == RAMP).all()


def test_a_cmyk_jpeg_becomes_rgb(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    # no cyan, full magenta and yellow: red
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(path, quality=95)
    assert np.abs(read_image(path).astype(int) - [255, 0, 0]).max() <= 3


def test_real_transparency_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    alpha = np.full((6, 8), 255, np.uint8)
    alpha[0, 0] = 254
    Image.fromarray(np.dstack([RAMP, alpha])).save(path)
    with pytest.raises(DataError, match=r"x.png: has transparent pixels; flatten"):
        read_image(path)


@pytest.mark.parametrize(("kind", "channels"), [(0, 1), (2, 3)])
def test_a_16_bit_image_is_refused_and_never_cut_to_8(
    tmp_path: Path, kind: int, channels: int
) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(
        png(2, 1, 16, kind, [struct.pack(f">{2 * channels}H", *range(1000, 1000 + 2 * channels))])
    )
    with pytest.raises(DataError, match="16 bits per channel; convert the image to 8 bit"):
        read_image(path)


def test_a_float_tiff_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    Image.fromarray(np.zeros((2, 2), np.float32)).save(path)
    for read in (read_image, read_mask):
        with pytest.raises(DataError, match="is a TIFF of floating-point numbers"):
            read(path)


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_exif_orientation_is_applied_to_pixels_and_size(
    tmp_path: Path, tag: int, suffix: str
) -> None:
    turned = {
        1: RAMP,
        2: RAMP[:, ::-1],
        3: RAMP[::-1, ::-1],
        4: RAMP[::-1],
        5: RAMP.transpose(1, 0, 2),
        6: np.rot90(RAMP, -1),
        7: RAMP[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(RAMP),
    }[tag]
    path = tmp_path / f"x.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(RAMP).save(path, exif=exif)
    assert (read_image(path) == turned).all()
    assert image_size(path) == turned.shape[:2]


def say(path: Path, tag: int, where: str) -> None:
    """Write RAMP with its orientation in one of the places where tools write it."""
    exif = Image.Exif()
    exif[0x0112] = tag
    xmp = f'<x tiff:Orientation="{tag}"/>'.encode()
    picture = Image.fromarray(RAMP)
    if where == "in front":
        picture.save(path, exif=exif)
    elif where == "as XMP" and path.suffix == ".png":
        text = PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp.decode())
        picture.save(path, pnginfo=text)
    elif where == "as XMP" and path.suffix == ".tif":
        picture.save(path, tiffinfo={700: xmp})
    elif where == "as XMP":
        picture.save(path, xmp=xmp, **({"lossless": True} if path.suffix == ".webp" else {}))
    else:
        picture.save(path)
        stored = path.read_bytes()
        end = stored.index(b"IEND") - 4
        behind = {
            "behind": chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")),
            "as XMP behind": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
            "in text that is none": chunk(b"tEXt", b"Comment\0eXIfiTXt"),
        }[where]
        path.write_bytes(stored[:end] + behind + stored[end:])


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("x.png", "in front"),
        ("x.png", "behind"),
        ("x.png", "as XMP"),
        ("x.png", "as XMP behind"),
        ("x.tif", "in front"),
        ("x.tif", "as XMP"),
        ("x.jpg", "in front"),
        ("x.jpg", "as XMP"),
        ("x.webp", "as XMP"),
    ],
)
@pytest.mark.parametrize("tag", [3, 6])
def test_pixels_size_and_tag_agree_wherever_the_tag_stands(
    tmp_path: Path, name: str, where: str, tag: int
) -> None:
    path = tmp_path / name
    say(path, tag, where)
    turned = np.rot90(RAMP, {3: 2, 6: -1}[tag])
    found = read_image(path)
    assert image_size(path) == found.shape[:2] == turned.shape[:2]
    assert orientation(path) == tag
    if name != "x.jpg":
        assert (found == turned).all()
    else:
        assert np.abs(found.astype(int) - turned).mean() < 20  # lossy; upright it is 60 off


def test_the_name_of_a_chunk_in_a_text_is_no_chunk(tmp_path: Path) -> None:
    say(tmp_path / "x.png", 6, "in text that is none")
    assert orientation(tmp_path / "x.png") == 1
    assert (read_image(tmp_path / "x.png") == RAMP).all()


def test_the_size_of_a_turned_jpeg_is_read_from_its_header(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RAMP).save(path, exif=exif)
    assert image_size(path) == (8, 6) == read_image(path).shape[:2]


def test_one_pixel_is_an_image(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png(1, 1, 8, 0, [b"\x07"]))
    assert read_image(path).tolist() == [[[7, 7, 7]]]
    assert read_mask(path).tolist() == [[7]]
    assert image_size(path) == (1, 1)


def test_a_palette_mask_gives_the_index_and_not_the_colour(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    mask = Image.fromarray(np.array([[0, 15], [255, 1]], np.uint8)).convert("L").convert("P")
    mask = Image.frombytes("P", (2, 2), bytes([0, 15, 255, 1]))
    mask.putpalette([(7 * i) % 256 for i in range(768)])
    mask.save(path, transparency=0)
    assert read_mask(path).tolist() == [[0, 15], [255, 1]]
    assert read_mask(path).dtype == np.uint8


@pytest.mark.parametrize("kind", [0, 3])
@pytest.mark.parametrize(
    ("depth", "row", "values"),
    [(1, b"\xa0", [1, 0, 1, 0]), (2, b"\x1b", [0, 1, 2, 3]), (4, b"\x01\x2f", [0, 1, 2, 15])],
)
def test_low_bit_masks_keep_their_stored_values(
    tmp_path: Path, kind: int, depth: int, row: bytes, values: list[int]
) -> None:
    data = png(4, 1, depth, kind, [row])
    if kind == 3:  # a palette between the header (33 bytes) and the data
        colours = bytes(range(3 * 2**depth))
        chunk = (
            struct.pack(">I", len(colours))
            + b"PLTE"
            + colours
            + struct.pack(">I", zlib.crc32(b"PLTE" + colours))
        )
        data = data[:33] + chunk + data[33:]
    path = tmp_path / "m.png"
    path.write_bytes(data)
    assert read_mask(path).tolist() == [values]


def test_a_16_bit_mask_keeps_large_values(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    path.write_bytes(png(2, 1, 16, 0, [struct.pack(">2H", 26001, 7)]))
    mask = read_mask(path)
    assert mask.dtype == np.uint16
    assert mask.tolist() == [[26001, 7]]


def test_colour_and_jpeg_masks_are_refused(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=r"m.png: mode RGB, but a mask is 1 channel"):
        read_mask(tmp_path / "m.png")
    Image.fromarray(RAMP[..., 0]).save(tmp_path / "m.jpg")
    with pytest.raises(DataError, match=r"m.jpg: JPEG is lossy"):
        read_mask(tmp_path / "m.jpg")


def test_random_damage_never_ends_in_another_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "x"
    refused = []
    for form in ("PNG", "JPEG", "TIFF"):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path, form)
        whole = path.read_bytes()
        for _ in range(100):
            data = bytearray(whole)
            for place in rng.integers(0, min(len(data), 300), 4):
                data[place] = rng.integers(0, 256)
            path.write_bytes(data)
            try:
                assert read_image(path).dtype == np.uint8
            except DataError as error:
                refused.append(str(error))
    assert len(refused) > 100
    assert not any("\n" in message for message in refused)
