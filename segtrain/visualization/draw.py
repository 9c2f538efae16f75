"""Pictures of results: overlays, legends, panels, grids, confusion heat maps, label PNGs. The only maker of pictures.

A picture is a numpy array (H, W, 3) uint8 RGB. Colours are one (r, g, b) per class, in the order of the class names.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from segtrain.errors import DataError, DiskError
from segtrain.structures import run_lengths
from segtrain.structures.boxes import corners, overlaps
from segtrain.structures.instances import Instances, Segments
from segtrain.structures.samples import IGNORE

Color = tuple[int, int, int]
Prediction = np.ndarray | Tensor | Instances | Segments

VOID: Color = (224, 224, 192)  # IGNORE in label pictures
INK: Color = (38, 42, 51)
PALE: Color = (128, 134, 145)
PAPER: Color = (255, 255, 255)
WRONG: Color = (222, 45, 62)
HEAT = np.array(
    [(247, 250, 253), (198, 219, 239), (107, 174, 214), (33, 113, 181), (8, 48, 107)],
    dtype=np.float64,
)
MARGIN = 12
LEAST = 0.5  # detectors give up to 100 objects an image from score 0.05 on; those below this clutter a picture
MOST = 100  # objects that a detector may find; a prediction of more is one of proposals, of which a picture shows the best
FEW = 10
HALF = 0.5  # IoU of boxes above which the less sure of two objects of one class is not drawn


def colorize(mask: Tensor | np.ndarray, colors: Sequence[Color]) -> np.ndarray:
    """Label map (H, W) -> picture; IGNORE in VOID. Raises `DataError` for a value without a colour."""
    labels = _array(mask)
    known = (labels >= 0) & (labels < len(colors)) | (labels == IGNORE)
    if not known.all():
        value = int(labels[~known][0])
        raise DataError(
            f"label {value} has no colour: there are {len(colors)}, for 0-{len(colors) - 1}."
        )
    table = np.full((256, 3), VOID, dtype=np.uint8)
    table[: len(colors)] = colors[:256]
    return table[labels]


def overlay(
    image: np.ndarray,
    prediction: Prediction,
    class_names: Sequence[str],
    colors: Sequence[Color],
    least: float = LEAST,
) -> np.ndarray:
    """Picture with a label map (H, W) or objects drawn over it, at the image's size; IGNORE is left as it is.

    Of predicted objects those that score at least `least` are shown, none half over a better one of its class; of more than
    100 (proposals) only the best 10. Without masks only their boxes.
    """
    return _paint(_shown(prediction, least), image, class_names, colors)


def _shown(prediction: Prediction, least: float) -> np.ndarray | Tensor | Segments:
    """What is drawn of a prediction: objects with the surest last; label maps and truths whole."""
    objects = run_lengths.segments(prediction) if isinstance(prediction, Instances) else prediction
    if not isinstance(objects, Segments) or objects.scores is None:
        return objects
    best = np.argsort(-objects.scores, kind="stable")
    order = np.array(_apart(objects, best[objects.scores[best] >= least])[::-1], np.int64)
    columns = {
        name: getattr(objects, name)[order] for name in ("labels", "boxes", "areas", "scores")
    }
    return replace(objects, **columns, masks=objects.masks and [objects.masks[i] for i in order])


def _apart(objects: Segments, places: np.ndarray) -> list[int]:
    """The first of `places` that are not half over an earlier one of their class: all, or 10 where there are more than 100."""
    most = MOST if len(places) <= MOST else FEW
    boxes = corners(objects.boxes)
    kept: list[int] = []
    for place in places.tolist():
        if len(kept) == most:
            break
        same = [other for other in kept if objects.labels[other] == objects.labels[place]]
        if not (same and (overlaps(boxes[[place]], boxes[same]) > HALF).any()):
            kept.append(place)
    return kept


@functools.singledispatch
def _paint(
    prediction: object, image: np.ndarray, class_names: Sequence[str], colors: Sequence[Color]
) -> np.ndarray:
    raise TypeError(f"cannot draw a {type(prediction).__name__}")


@_paint.register(np.ndarray)
@_paint.register(Tensor)
def _paint_labels(
    prediction: np.ndarray | Tensor,
    image: np.ndarray,
    class_names: Sequence[str],
    colors: Sequence[Color],
) -> np.ndarray:
    labels = _array(prediction)
    tinted = _blend(image, colorize(labels, colors), 0.6)
    border = np.zeros(labels.shape, dtype=bool)
    border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    border[1:] |= labels[1:] != labels[:-1]
    tinted[border] = _blend(tinted[border], np.array(PAPER), 0.6)
    return np.where((labels == IGNORE)[..., None], image, tinted)


@_paint.register(Segments)
def _paint_objects(
    prediction: Segments, image: np.ndarray, class_names: Sequence[str], colors: Sequence[Color]
) -> np.ndarray:
    picture, labels, scores = image.copy(), prediction.labels.tolist(), prediction.scores
    width = max(1, round(min(image.shape[:2]) / 200))
    masks = prediction.masks or []
    for label, mask, tight in zip(
        labels, masks, run_lengths.boxes(masks).astype(int).tolist(), strict=False
    ):
        x, y, wide, high = tight
        part = picture[y : y + high, x : x + wide]
        inside = run_lengths.decode([mask], prediction.size)[0][y : y + high, x : x + wide]
        part[inside] = _blend(part[inside], np.array(colors[label]), 0.5)
        part[inside & ~_eroded(inside, width)] = colors[label]
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    boxes = corners(prediction.boxes).tolist()
    for label, box in zip(labels, boxes, strict=True):
        left, top, right, bottom = (round(side) for side in box)
        inside = (
            left,
            top,
            max(left, right - 1),
            max(top, bottom - 1),
        )  # PIL counts the last pixel in
        draw.rectangle(inside, outline=colors[label], width=width)
    for number, (label, box) in enumerate(zip(labels, boxes, strict=True)):
        text = class_names[label] + ("" if scores is None else f" {scores[number]:.2f}")
        _tag(draw, (box[0], box[1]), text, colors[label])
    return np.asarray(canvas).copy()


def _tag(draw: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, color: Color) -> None:
    """A name on top of the upper left corner of a box, or inside the box where there is no room above."""
    wide, high = draw.im.size
    font = _font(int(np.clip(min(high, wide) / 28, 11, 32)))
    text_wide, text_high = font.getlength(text) + 6, font.size + 4
    x = max(0, min(round(corner[0]), wide - text_wide))
    y = round(corner[1] - text_high) if corner[1] >= text_high else max(0, round(corner[1]))
    draw.rectangle((x, y, x + text_wide, y + text_high), fill=color)
    draw.text((x + 3, y + text_high / 2), text, fill=_readable_on(color), font=font, anchor="lm")


def legend(
    class_names: Sequence[str], colors: Sequence[Color], present: Iterable[int], width: int = 640
) -> np.ndarray:
    """Swatches and names of the classes `present` (ids; IGNORE is skipped), wrapped to `width` pixels."""
    font, swatch = _font(14), 14
    entries = [i for i in sorted(set(present)) if 0 <= i < len(class_names)]
    places, x, y = [], MARGIN, MARGIN
    for i in entries:
        needed = swatch + 6 + int(font.getlength(class_names[i])) + 18
        if x > MARGIN and x + needed > width - MARGIN:
            x, y = MARGIN, y + 22
        places.append((i, x, y))
        x += needed
    canvas = Image.new("RGB", (width, y + swatch + MARGIN), PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, x, y in places:
        draw.rectangle((x, y, x + swatch, y + swatch), fill=tuple(colors[i]), outline=PALE)
        draw.text(
            (x + swatch + 6, y + swatch / 2), class_names[i], fill=INK, font=font, anchor="lm"
        )
    return np.asarray(canvas).copy()


def panel(
    image: np.ndarray,
    truth: Prediction,
    prediction: Prediction,
    class_names: Sequence[str],
    colors: Sequence[Color],
    title: str = "",
    least: float = LEAST,
) -> np.ndarray:
    """Image | truth | prediction, for label maps also | errors (red where they differ), with a title and a legend.

    `least` as in `overlay`; the caption of the prediction tells how many objects are shown.
    """
    real, found = _shown(truth, least), _shown(prediction, least)
    caption = "prediction"
    if (
        isinstance(found, Segments)
        and found.scores is not None
        and isinstance(prediction, (Instances, Segments))
    ):
        caption += f": {len(found)} of {len(prediction.labels)}, score from {least:g}"
    tiles = {
        "image": image,
        "truth": _paint(real, image, class_names, colors),
        caption: _paint(found, image, class_names, colors),
    }
    if not isinstance(real, Segments) and not isinstance(found, Segments):
        tiles["errors in red, ignored pale"] = _errors(image, _array(real), _array(found))
    row = grid([_captioned(_fit(tile), name) for name, tile in tiles.items()], columns=len(tiles))
    names = legend(class_names, colors, _present(real) | _present(found), width=row.shape[1])
    parts = [row, names]
    if title:
        parts.insert(0, _text_line(title, row.shape[1], 18))
    return np.concatenate(parts)


def _errors(image: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Grey image, red where the prediction is wrong, pale where the truth is IGNORE."""
    grey = np.repeat(image.mean(2, keepdims=True), 3, axis=2)
    picture = _blend(grey, np.array(PAPER), 0.35)
    ignored = truth == IGNORE
    wrong = (truth != prediction) & ~ignored
    picture[wrong] = _blend(picture[wrong], np.array(WRONG), 0.75)
    picture[ignored] = _blend(picture[ignored], np.array(VOID), 0.8)
    return picture


def _present(drawn: np.ndarray | Tensor | Segments) -> set[int]:
    labels = drawn.labels if isinstance(drawn, Segments) else drawn
    return set(np.unique(_array(labels)).tolist()) - {IGNORE}


def grid(pictures: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Pictures of any sizes in rows of `columns`, each at the upper left of its cell, with margins around."""
    if not pictures or columns < 1:
        raise ValueError("grid() needs at least one picture and one column")
    columns = min(columns, len(pictures))
    high = max(picture.shape[0] for picture in pictures) + MARGIN
    wide = max(picture.shape[1] for picture in pictures) + MARGIN
    rows = -(-len(pictures) // columns)
    canvas = np.full((rows * high + MARGIN, columns * wide + MARGIN, 3), PAPER, dtype=np.uint8)
    for i, picture in enumerate(pictures):
        top, left = MARGIN + i // columns * high, MARGIN + i % columns * wide
        canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return canvas


def confusion_picture(matrix: Tensor | np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Heat map of (K, K) counts, rows = truth, each in percent of its sum; rows without true pixels stay grey."""
    counts = _array(matrix).astype(np.float64)
    total = counts.sum(1, keepdims=True)
    shares = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    classes = len(class_names)
    cell = int(np.clip(960 / classes, 14, 56))
    font = _font(13 if cell >= 18 else 11)
    label = int(max(font.getlength(name) for name in class_names)) + 10
    left, top = MARGIN + label, MARGIN + 26
    size = (left + max(classes * cell, 300) + MARGIN, top + classes * cell + label + MARGIN)
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text(
        (left, MARGIN),
        "row: truth, column: prediction, % of the row",
        fill=PALE,
        font=_font(13),
        anchor="lt",
    )
    for row in range(classes):
        for column in range(classes):
            corner = (left + column * cell, top + row * cell)
            _cell(draw, corner, cell, float(shares[row, column]), empty=total[row, 0] == 0)
    for i, name in enumerate(class_names):
        middle = i * cell + cell / 2
        draw.text((left - 6, top + middle), name, fill=INK, font=font, anchor="rm")
        upright = _upright(name, font)
        place = (round(left + middle - upright.width / 2), top + classes * cell + 6)
        canvas.paste(upright, place)
    return np.asarray(canvas).copy()


def _cell(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], side: int, share: float, empty: bool
) -> None:
    """One cell of the heat map; its percentage where it rounds to at least 1 and fits."""
    x, y = corner
    position = share**0.5 * (len(HEAT) - 1)  # the root shows small confusions
    color = tuple(
        round(np.interp(position, range(len(HEAT)), HEAT[:, channel])) for channel in range(3)
    )
    fill = (240, 240, 240) if empty else color
    draw.rectangle((x, y, x + side - 2, y + side - 2), fill=fill)
    if side >= 24 and share >= 0.005:
        ink = _readable_on(fill)
        text = f"{100 * share:.0f}"
        draw.text(
            (x + side / 2 - 1, y + side / 2 - 1),
            text,
            fill=ink,
            font=_font(min(15, side // 2)),
            anchor="mm",
        )


def png(picture: np.ndarray) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, "PNG")
    return buffer.getvalue()


def save(path: str | Path, picture: np.ndarray) -> None:
    """Write a picture as PNG or JPEG by its suffix, making the folder. Raises `DiskError`."""
    _write(Path(path), Image.fromarray(np.ascontiguousarray(picture)))


def save_labels(path: str | Path, mask: Tensor | np.ndarray, colors: Sequence[Color]) -> None:
    """Write a label map (H, W) as palette PNG whose indices are the labels, a uint16 one as 16-bit grey PNG.

    Raises `DataError` for labels that do not fit, `DiskError`.
    """
    labels = _array(mask)
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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    except OSError as error:
        raise DiskError(
            f"{path}: cannot write the picture ({error.strerror or error}). Is the disk full?"
        ) from None


def _array(values: Tensor | np.ndarray) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values


def _blend(below: np.ndarray, above: np.ndarray, share: float) -> np.ndarray:
    return np.rint(below * (1 - share) + above * share).astype(np.uint8)


def _eroded(mask: np.ndarray, times: int) -> np.ndarray:
    """Mask (H, W) without its outermost `times` pixels (4 neighbours; outside the picture counts as outside)."""
    for _ in range(times):
        padded = np.pad(mask, 1)
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask


def _fit(picture: np.ndarray) -> np.ndarray:
    """Tiles of a panel: small pictures enlarged by a whole factor, wide ones shrunk to 640 pixels."""
    high, wide = picture.shape[:2]
    if wide > 640:
        size = (640, max(1, round(high * 640 / wide)))
        return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)).copy()
    factor = max(1, 320 // wide)
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def _captioned(picture: np.ndarray, caption: str) -> np.ndarray:
    return np.concatenate(
        [_text_line(caption, picture.shape[1], 14, margin=0, color=PALE), picture]
    )


def _text_line(
    text: str, width: int, size: int, margin: int = MARGIN, color: Color = INK
) -> np.ndarray:
    """A line of text (size + 10, width, 3), shortened where it does not fit."""
    font = _font(size)
    if font.getlength(text) > width - 2 * margin:
        while text and font.getlength(text + "...") > width - 2 * margin:
            text = text[:-1]
        text += "..."
    canvas = Image.new("RGB", (width, size + 10), PAPER)
    ImageDraw.Draw(canvas).text((margin, (size + 10) / 2), text, fill=color, font=font, anchor="lm")
    return np.asarray(canvas).copy()


def _upright(text: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Text that reads from bottom to top."""
    flat = Image.new("RGB", (int(font.getlength(text)) + 2, int(font.size) + 4), PAPER)
    ImageDraw.Draw(flat).text((1, flat.height / 2), text, fill=INK, font=font, anchor="lm")
    return flat.transpose(Image.Transpose.ROTATE_90)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _readable_on(color: Sequence[int]) -> Color:
    """Black or white, whichever is read more easily on `color` (luma of ITU-R BT.601)."""
    red, green, blue = color
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else PAPER
