"""Pictures and label maps as files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from segtrain.errors import DataError, DiskError
from segtrain.runtime.files import write_file
from segtrain.structures.samples import IGNORE
from segtrain.visualization.colors import VOID, Color, as_array


def png(picture: np.ndarray) -> bytes:
    """Return a picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, "PNG")
    return buffer.getvalue()


def save(path: str | Path, picture: np.ndarray) -> None:
    """Write a picture as PNG or JPEG, by its suffix, and make its folder. Errors: DiskError."""
    _write(Path(path), Image.fromarray(np.ascontiguousarray(picture)))


def save_labels(path: str | Path, mask: Tensor | np.ndarray, colors: Sequence[Color]) -> None:
    """Write a label map (H, W) as palette PNG whose indices are the labels.

    One of uint16 becomes a 16-bit grey PNG, for palettes end at 255.
    Errors: DataError for labels that do not fit, DiskError.
    """
    labels = as_array(mask)
    if labels.dtype == np.uint16:
        _write(Path(path), Image.fromarray(labels))
        return
    if labels.min() < 0 or labels.max() > 255:
        raise DataError(
            f"{path}: labels {labels.min()}-{labels.max()} do not fit a palette PNG (0-255)."
        )
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[: len(colors)] = colors[:256]
    if len(colors) <= IGNORE:
        palette[IGNORE] = VOID
    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette(palette.tobytes())
    _write(Path(path), picture)


def _write(path: Path, picture: Image.Image) -> None:
    """Write a file that appears whole, whatever ends the command meanwhile."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, buffer.getvalue())
    except OSError as error:
        reason = error.strerror or error
        raise DiskError(f"{path}: cannot write the picture ({reason}). Is the disk full?") from None
