"""R18, of the bytes of a picture: what is read is what was written, or nothing is read.

Members: one flipped bit anywhere in a PNG (a label map of regions, a flat one, one of small
objects, a palette, an object map of 16 bits, a photo); a file of each format cut at any byte. The
other members of R18 (formats, sizes, names, permissions, links) are in tests/data and
tests/datasets, under the same mark.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rows import Tally, amount

from segtrain.data.images import read_colors, read_image, read_mask
from segtrain.data.verify import verify_labels
from segtrain.datasets.folder import Folder
from segtrain.errors import DataError

ROW, COLUMN = np.indices((48, 64))
REGIONS = (ROW // 12 + 4 * (COLUMN // 16) % 7).astype(np.uint8)
FLAT = np.full((48, 64), 3, np.uint8)
SMALL = ((ROW % 8 < 2) & (COLUMN % 8 < 2)).astype(np.uint8)
OBJECTS = (ROW // 12 * 1000 + COLUMN // 16).astype(np.uint16)
PHOTO = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def palette(values: np.ndarray) -> Image.Image:
    image = Image.fromarray(values, "P")
    image.putpalette([value for number in range(256) for value in (number, 255 - number, 7)])
    return image


PICTURES: dict[str, tuple[Image.Image, Callable[[Path], np.ndarray | None]]] = {
    "regions": (Image.fromarray(REGIONS), read_mask),
    "flat": (Image.fromarray(FLAT), read_mask),
    "small objects": (Image.fromarray(SMALL), read_mask),
    "palette": (palette(REGIONS), read_mask),
    "colours of a palette": (palette(REGIONS), read_colors),
    "objects": (Image.fromarray(OBJECTS), read_mask),
    "photo": (Image.fromarray(PHOTO), read_image),
}


def written(image: Image.Image, form: str) -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


@pytest.mark.row("R18")
def test_each_of_250_flipped_bits_of_a_png_is_refused_in_one_line(
    tmp_path: Path, tally: Tally
) -> None:
    """Pillow alone decodes some of them, and that is counted, as what is guarded against."""
    rng = np.random.default_rng(18)
    path = tmp_path / "a.png"
    flips = amount(250, 250, 5000) // len(PICTURES) + 1
    unseen = 0
    for image, read in PICTURES.values():
        whole = written(image, "PNG")
        right = np.array(image)
        for bit in rng.integers(0, 8 * len(whole), flips).tolist():
            data = bytearray(whole)
            data[bit // 8] ^= 1 << bit % 8
            path.write_bytes(data)
            with pytest.raises(DataError) as caught:
                read(path)
            assert str(caught.value).startswith(f"{path}: ")
            assert "\n" not in str(caught.value)
            unseen += decoded_otherwise(data, right)
            tally(seed=18)
    assert unseen  # else nothing was guarded against
    tally(0, note=f"{unseen} of {tally.cases} flipped bits Pillow alone decodes to other values")


def decoded_otherwise(data: bytes, right: np.ndarray) -> bool:
    """Whether Pillow alone reads a picture of the right size with other values."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            found = np.array(image)
    except Exception:  # decoders of damaged files raise nearly anything
        return False
    return found.shape == right.shape and bool((found != right).any())


@pytest.mark.row("R18")
@pytest.mark.filterwarnings("ignore")  # Pillow's, of a TIFF that ends too soon
@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "BMP", "WEBP"])
def test_a_file_cut_at_any_byte_is_refused(tmp_path: Path, form: str, tally: Tally) -> None:
    whole = written(Image.fromarray(PHOTO), form)
    path = tmp_path / "a"
    places = range(0, len(whole), amount(max(1, len(whole) // 40), max(1, len(whole) // 40), 1))
    for place in {*places, *range(len(whole) - 20, len(whole))}:
        path.write_bytes(whole[:place])
        with pytest.raises(DataError, match=f"^{path}: "):
            read_image(path)
        tally()


@pytest.mark.row("R18")
def test_a_flipped_bit_in_a_mask_of_a_data_set_is_named_when_it_is_verified(
    tmp_path: Path,
) -> None:
    for name in ("a", "b", "c"):
        for folder, values in (("images", PHOTO), ("masks", SMALL[:24, :32])):
            path = tmp_path / folder / "train" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
    mask = tmp_path / "masks/train/b.png"
    data = bytearray(mask.read_bytes())
    place = data.index(b"IDAT")
    data[place + 10] ^= 4
    mask.write_bytes(data)
    found = verify_labels(Folder(str(tmp_path), "train", labels=["no", "yes"]))
    assert found.problems == [
        f"{mask}: cannot be decoded, the file is truncated or damaged (wrong checksum of the chunk "
        f"b'IDAT' at byte {place - 4})"
    ]
