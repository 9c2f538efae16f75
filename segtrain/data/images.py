"""Read images and masks from disk.

Every unreadable file is a DataError of one line: file, reason, way out. Formats: PNG, JPEG, TIFF,
BMP and WebP, told by their first bytes and never by the suffix. The size is read from the header
and limited before anything is decoded; truncated files are refused, never filled up with grey. What
a TIFF says of itself (pages, channels, kind of numbers, which end is white) is read before its
pixels, as Pillow drops some of it without a word. What holds several pictures is refused. One
function, `_tag`, says how every format is turned, from the file before its pixels are decoded.
The checksums of a PNG are compared before its pixels are decoded: Pillow passes over those of the
pixels, and of flipped bits in a mask some decode to other classes without an error.
"""

from __future__ import annotations

import os
import re
import stat
import zlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from segtrain.errors import DataError, words_of

# Pillow's own warning level; a 60,000 x 60,000 header is refused before it takes 10 GB.
MAX_PIXELS = 89_478_485
READERS: dict[bytes, type[ImageFile]] = {
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"\xff\xd8\xff": JpegImageFile,
    b"II*\0": TiffImageFile,
    b"MM\0*": TiffImageFile,
    b"BM": BmpImageFile,
}
Picture = Image.Image  # what other programs hand over
HEAD = 16  # bytes that tell every format
# Of the kind `....ftypheic`: photos of phones, which Pillow does not read.
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis")
COLOR_MODES = ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr")
ALPHA_MODES = ("LA", "PA", "RGBa")  # besides RGBA, and which Pillow converts to it
ORIENTATION_TAG = 0x0112  # of EXIF and TIFF; 5 to 8 swap height and width
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# A PNG may hold its EXIF or XMP behind the pixels, as exiftool writes them. It is looked for in so
# many last bytes: what EXIF takes in a JPEG, where it came from.
TAIL = 1 << 16
SIGNATURE = 8  # bytes that begin a PNG; chunks follow
XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
COMPRESSION_TAG = 259  # of TIFF
# Lossy, or lossless only where somebody asked for it, which no tag tells.
LOSSY = {6: "JPEG", 7: "JPEG", 34712: "JPEG 2000", 34892: "JPEG", 50001: "WebP", 50002: "JPEG XL"}
BITS_PER_SAMPLE_TAG = 258  # of TIFF
PHOTOMETRIC_TAG = 262  # 0: white is zero, 1: black is zero, 2: RGB, 3: palette, 5: CMYK, 6: YCbCr
SAMPLES_TAG = 277  # channels
SAMPLE_FORMAT_TAG = 339  # 1: unsigned, 2: signed, 3: float
EXTRA_SAMPLES_TAG = 338  # 1 and 2: opacity
CHANNELS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # that a photometric meaning stands for


def shown(path: str | Path) -> str:
    """Return the path as printable text, also where its bytes are not UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def read_image(path: str | Path) -> np.ndarray:
    """Return (H, W, 3) uint8 RGB, turned as its orientation tag says.

    Grey, palette, CMYK and opaque alpha are converted; 16 bits per channel and real transparency
    are refused, because what they should become is the user's decision. Errors: DataError.
    """
    with _opened(path) as image:
        if _depth(image) > 8:
            raise DataError(
                f"{shown(path)}: {_depth(image)} bits per channel; convert the image to 8 bit"
            )
        return _rgb(_upright(image), path)


def pixels_of(picture: Picture) -> np.ndarray:
    """Return a PIL image as `read_image` would return its file. Errors: DataError."""
    name = "the PIL image"
    if isinstance(picture, ImageFile) and picture.filename:
        name = os.fsdecode(picture.filename)
    try:
        if isinstance(picture, ImageFile) and _depth(picture) > 8:  # before Pillow cuts them off
            raise DataError(
                f"{shown(name)}: {_depth(picture)} bits per channel; convert the image to 8 bit"
            )
        return _rgb(ImageOps.exif_transpose(picture), name)
    except DataError:
        raise
    except Exception as error:  # a closed one, or a damaged file, which is decoded only now
        raise DataError(
            f"{shown(name)}: cannot be read, it is closed, truncated or damaged ({words_of(error)})"
        ) from error


def _rgb(image: Image.Image, path: str | Path) -> np.ndarray:
    """Return a decoded image as (H, W, 3) uint8 RGB.

    Errors: DataError where it is not of 8 bits, or hides pixels.
    """
    if image.mode not in (*COLOR_MODES, *ALPHA_MODES):
        raise DataError(f"{shown(path)}: colour mode {image.mode}; convert the image to 8-bit RGB")
    image = _opaque(image, path)
    if image.mode != "RGB":  # convert would copy an RGB image too
        image = image.convert("RGB")
    return np.array(image)


def read_mask(path: str | Path) -> np.ndarray:
    """Return (H, W) class values as stored: uint8, or uint16 for 16-bit files.

    Palette files give the index, not the colour. Colour masks and JPEG masks (lossy, so their
    values are not class ids) are refused. Errors: DataError.
    """
    with _opened(path) as image:
        _check_lossless(image, path, "save masks as 1-channel PNG")
        if isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_TAG) == 0:
            raise DataError(
                f"{shown(path)}: is a TIFF whose 0 means white (WhiteIsZero), so programs disagree "
                "about which value is which; save the mask as PNG"
            )
        depth = _depth(image)
        mask = _upright(image)
        if mask.mode.startswith("I;16"):
            return np.array(mask).astype(np.uint16)
        if mask.mode not in ("1", "L", "P"):
            way = (
                "take one channel where all are equal, else put a class value for each colour "
                "(dataset=folder dataset.rgb=true reads masks in the classes' colours)"
            )
            raise DataError(
                f"{shown(path)}: mode {mask.mode}, but a mask is 1 channel of class values; {way}"
            )
        values = np.array(mask).astype(np.uint8)
        if mask.mode == "L" and depth < 8:
            # Pillow stretches 2- and 4-bit grey to 0..255; labels must not be stretched.
            values //= 255 // (2**depth - 1)
        return values


def read_colors(path: str | Path) -> np.ndarray | None:
    """Return the colours (H, W, 3) uint8 of a mask that is drawn in colours; None for grey ones.

    Those of a palette image are the palette's. What lies below a transparent pixel is no colour
    that anybody drew. Errors: DataError.
    """
    with _opened(path) as image:
        _check_lossless(image, path, "save masks in colours as PNG")
        if image.mode not in ("RGB", "RGBA", "P"):
            return None
        if _depth(image) > 8:
            raise DataError(f"{shown(path)}: {_depth(image)} bits per channel; save it with 8")
        return np.array(_opaque(_upright(image), path).convert("RGB"))


def image_size(path: str | Path) -> tuple[int, int]:
    """Return (height, width) as `read_image` would give, without decoding the pixels."""
    with _opened(path) as image:
        swapped = _tag(image) >= 5
        if isinstance(image, TiffImageFile) and image.tag_v2.get(ORIENTATION_TAG) in range(5, 9):
            swapped = False  # Pillow has swapped them already
        return (image.width, image.height) if swapped else (image.height, image.width)


def orientation(path: str | Path) -> int:
    """Return how `read_image` and `read_mask` turn a file: from 1 for upright, as most are, to 8.

    2 to 4 turn or mirror within the same size, 5 to 8 swap height and width. Errors: DataError.
    """
    with _opened(path) as image:
        return _tag(image)


def turn_of(path: str | Path) -> int:
    """Return the orientation of a file, as `orientation` does; 1 for what is no image."""
    try:
        return orientation(path)
    except DataError:
        return 1


def turned_hint(
    path: str | Path, annotated: Sequence[int], annotation: str | Path | None = None
) -> str:
    """Say that a photo fits `annotated` (height, width) but for an orientation tag, or ''.

    The tag may be that of the photo, or of the mask at `annotation`.
    """
    height, width = image_size(path)
    if (width, height) != tuple(annotated):
        return ""
    if (tag := orientation(path)) >= 5:
        return (
            f"; its orientation tag is {tag}, which turns it, and the labels fit the photo as it "
            "was before: turn them too, or take the tag out of the photo"
        )
    if annotation is not None and (tag := turn_of(annotation)) >= 5:
        return f"; the mask has an orientation tag of its own, {tag}, which turns it: take it out"
    return ""


def _tag(image: ImageFile) -> int:
    """Return the orientation of a file before its pixels are decoded.

    It is that of EXIF, or of a TIFF's own tags, or else of XMP.
    """
    # Of a PNG the method of its own class would decode the pixels first.
    tag = Image.Image.getexif(image).get(ORIENTATION_TAG)
    if tag is None and isinstance(image, PngImageFile):
        tag = _tag_behind_pixels(image)
    return tag if tag in TURNS else 1


def _tag_behind_pixels(image: PngImageFile) -> int | None:
    """Return the orientation in the last bytes of a PNG, None where they hold none."""
    assert image.fp is not None
    place = image.fp.tell()
    image.fp.seek(max(0, image.fp.seek(0, os.SEEK_END) - TAIL))
    tail = image.fp.read()
    image.fp.seek(place)
    for data in _chunks(tail, b"eXIf"):
        exif = Image.Exif()
        exif.load(b"Exif\0\0" + data)
        if (tag := exif.get(ORIENTATION_TAG)) is not None:
            return tag
    found = XMP_ORIENTATION.search(b"".join(_chunks(tail, b"iTXt")))
    return int(found[1]) if found else None


def _chunks(tail: bytes, kind: bytes) -> Generator[bytes]:
    """Yield what the chunks of a kind in the end of a PNG hold, known by their checksums."""
    for found in re.finditer(kind, tail):
        start = found.end()
        size = int.from_bytes(tail[max(0, start - 8) : start - 4], "big")
        data = tail[start : start + size]
        checksum = tail[start + size : start + size + 4]
        if zlib.crc32(data, zlib.crc32(kind)).to_bytes(4, "big") == checksum:
            yield data


def _check_sums(image: PngImageFile) -> None:
    """Compare the checksum of every chunk of a PNG up to its last. Errors: ValueError."""
    file = image.fp
    assert file is not None
    place = file.tell()
    file.seek(SIGNATURE)
    kind = b""
    while kind != b"IEND":
        start = file.tell()
        head = file.read(8)  # size of the data, and kind
        size = int.from_bytes(head[:4], "big")
        kind = head[4:]
        # A damaged size may be of gigabytes; `read` gives, and takes memory for, what is there.
        data = file.read(size)
        checksum = file.read(4)
        if len(checksum) < 4:
            raise ValueError("the file ends before its last chunk, IEND")
        if zlib.crc32(data, zlib.crc32(kind)).to_bytes(4, "big") != checksum:
            raise ValueError(f"wrong checksum of the chunk {kind!r} at byte {start:,}")
    file.seek(place)


@contextmanager
def _opened(path: str | Path) -> Generator[ImageFile]:
    """Give the file with its header read and its size checked.

    Any failure inside the block becomes a DataError.
    """
    try:
        # Before open(): a named pipe would wait forever.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise DataError(f"{shown(path)}: is a folder or a device, not an image file")
        with open(path, "rb") as file:
            reader = _reader(file.read(HEAD), path)
            file.seek(0)
            if reader is TiffImageFile:
                _check_tiff(file, path)
            with reader(file) as image:
                if not 0 < image.width * image.height <= MAX_PIXELS:
                    limit = f"allowed are 1 to {MAX_PIXELS:,} pixels; cut larger images into tiles"
                    raise DataError(
                        f"{shown(path)}: the header says {image.width} x {image.height}; {limit}"
                    )
                if isinstance(image, PngImageFile | WebPImageFile) and image.is_animated:
                    raise DataError(
                        f"{shown(path)}: is an animation of several pictures; save the one that "
                        "counts"
                    )
                yield image
    except DataError:
        raise
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise DataError(f"{shown(path)}: {reason(path, error)}") from error


def _reader(head: bytes, path: str | Path) -> type[ImageFile]:
    if not head:
        raise DataError(f"{shown(path)}: is empty (0 bytes)")
    for magic, reader in READERS.items():
        if head.startswith(magic):
            return reader
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return WebPImageFile
    if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS:
        raise DataError(f"{shown(path)}: is a HEIC photo of a phone; convert it to JPEG")
    raise DataError(
        f"{shown(path)}: is not a PNG, JPEG, TIFF, BMP or WebP file (it starts with {head[:8]!r})"
    )


def _check_tiff(file: BinaryIO, path: str | Path) -> None:
    """Refuse a TIFF of which Pillow would drop something. Errors: DataError saying what it is."""
    tags = ImageFileDirectory_v2(file.read(8))
    file.seek(tags.next)
    tags.load(file)
    file.seek(0)
    if tags.next:
        raise DataError(f"{shown(path)}: is a TIFF of several pages; save the one that counts")
    kinds = {1: "unsigned", 2: "signed numbers", 3: "floating-point numbers"}
    for kind in tags.get(SAMPLE_FORMAT_TAG, (1,)):
        if kind != 1:
            what = kinds.get(kind, f"numbers of kind {kind}")
            raise DataError(f"{shown(path)}: is a TIFF of {what}; save it as 8-bit whole numbers")
    channels = tags.get(SAMPLES_TAG, 1)
    opacity = sum(kind in (1, 2) for kind in tags.get(EXTRA_SAMPLES_TAG, ()))
    if PHOTOMETRIC_TAG not in tags:
        raise DataError(
            f"{shown(path)}: is a TIFF that does not say whether 0 is black or white (it lacks "
            "PhotometricInterpretation), so programs disagree; save it as PNG"
        )
    meant = CHANNELS.get(tags[PHOTOMETRIC_TAG])
    if meant is not None and channels > meant + opacity:
        raise DataError(
            f"{shown(path)}: is a TIFF of {channels} channels, {channels - meant - opacity} of "
            f"them more than an image has; keep {meant}"
        )


def reason(path: str | Path, error: Exception) -> str:
    """Say why a file of the data set cannot be read."""
    if isinstance(error, FileNotFoundError) and os.path.islink(path):
        return f"is a link to {shown(os.readlink(path))}, which does not exist"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    return f"cannot be decoded, the file is truncated or damaged ({words_of(error)})"


def _depth(image: ImageFile) -> int:
    """Return the bits per channel in the file.

    Pillow's mode does not tell: it cuts 16-bit RGB to 8 without a word.
    """
    if isinstance(image, TiffImageFile):
        bits = image.tag_v2.get(BITS_PER_SAMPLE_TAG, 1)
        return max(bits) if isinstance(bits, tuple) else bits
    if isinstance(image, PngImageFile) and image.fp is not None:
        offset = image.fp.tell()
        image.fp.seek(24)  # bytes: signature 8, chunk head 8, width 4, height 4
        depth = image.fp.read(1)[0]
        image.fp.seek(offset)
        return depth
    return 8


def _check_lossless(image: ImageFile, path: str | Path, way: str) -> None:
    """Refuse a mask whose values may have been changed by saving. Errors: DataError."""
    if isinstance(image, JpegImageFile):
        raise DataError(f"{shown(path)}: JPEG is lossy and invents mask values; {way}")
    if isinstance(image, WebPImageFile):
        raise DataError(f"{shown(path)}: WebP may be lossy; {way}")
    kind = image.tag_v2.get(COMPRESSION_TAG) if isinstance(image, TiffImageFile) else None
    if kind in LOSSY:
        raise DataError(
            f"{shown(path)}: is a TIFF compressed by {LOSSY[kind]}, which is lossy and invents "
            f"mask values; {way}"
        )


def _opaque(image: Image.Image, path: str | Path) -> Image.Image:
    """Return a decoded image that hides no pixel. Errors: DataError for one that does."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema() != (255, 255):
        raise DataError(f"{shown(path)}: has transparent pixels; flatten the image to RGB")
    return image


def _upright(image: ImageFile) -> Image.Image:
    """Return the image decoded and turned as its tag says, see `_tag`.

    Pillow turns TIFF by itself. Errors: ValueError for a PNG that is not what was written.
    """
    if isinstance(image, PngImageFile):
        _check_sums(image)
    tag = _tag(image)
    image.load()
    if isinstance(image, TiffImageFile) or tag not in TURNS:
        return image
    return image.transpose(TURNS[tag])
