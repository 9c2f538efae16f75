"""Pictures that travel inside a page: made small, as text of a data URL.

Imports no torch: a report needs none.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from segtrain.errors import DataError, words_of

MAX_PIXELS = 1 << 26  # of a file that is read; a stranger's may claim any size
QUALITY = 80  # of WebP; chosen by eye, flat colours of label maps stay clean


def data_url(path: Path, side: int) -> str:
    """Return a PNG or JPEG file as a WebP data URL, no side longer than `side` pixels.

    Errors: DataError for what is no picture, or too large.
    """
    try:
        with Image.open(path, formats=["PNG", "JPEG"]) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise DataError(f"{path}: {picture.width} x {picture.height} pixels are too many")
            small = picture.convert("RGB")
    except DataError:
        raise
    except Exception as error:  # a damaged file ends in errors of any kind
        raise DataError(f"{path}: cannot be read as a picture ({words_of(error)})") from None
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
