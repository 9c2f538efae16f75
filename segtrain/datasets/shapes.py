"""Generated shapes: a data set that needs no download, for the demo, the tests and first steps.

Circles, squares, triangles, crosses and rings of random colour, size, position and angle lie over
one another on a noisy background with thin lines. All classes draw their colours alike: outline and
pattern tell them apart, a pixel does not.
"""

from __future__ import annotations

import numpy as np

from segtrain.data.base import BaseDataset
from segtrain.errors import UserError
from segtrain.rng import generator_for
from segtrain.structures.labels import LabelMap, voc_color
from segtrain.structures.samples import Sample

NAMES = ("background", "circle", "square", "triangle", "cross", "ring")
LABELS = LabelMap(
    "shapes",
    NAMES,
    tuple(voc_color(i) for i in range(len(NAMES))),
    {i: i for i in range(len(NAMES))},
)
# Least distance (RGB, 0 to 255) between an object's colour and the mean background, so that its
# outline stands out from noise and lines.
MIN_CONTRAST = 70.0
PATTERN_CONTRAST = 60.0  # how much lighter and darker (0 to 255) a pattern is than its colour
MIN_SIDE = 32  # pixels; in smaller images an object is too small to show its pattern
MAX_DRAWS = 20  # of an object's position, so that a full image ends the search


class Shapes(BaseDataset):
    """Images of `size` (height, width): so many `train` and `val`.

    Image i is a function of (seed, split, i), so nothing is stored.
    """

    def __init__(
        self,
        split: str,
        size: tuple[int, int] = (96, 128),
        train: int = 2000,
        val: int = 64,
        seed: int = 0,
    ) -> None:
        counts = {"train": train, "val": val}
        if split not in counts:
            raise UserError(f"split={split}: the generated shapes have the splits train and val")
        if len(size) != 2 or min(size) < MIN_SIDE:
            raise UserError(
                f"dataset.size={list(size)}: give [height, width], both at least {MIN_SIDE} pixels"
            )
        if counts[split] < 1:
            raise UserError(
                f"dataset.{split}={counts[split]}: give the number of images, at least 1"
            )
        super().__init__(LABELS, [f"{split}_{i:05d}" for i in range(counts[split])])
        self.split = split
        self.size = (size[0], size[1])
        self.seed = seed

    def __getitem__(self, index: int) -> Sample:
        """Draw image and mask."""
        rng = generator_for(self.seed, f"shapes {self.split}", index)
        image, mask = draw(rng, *self.size)
        return Sample(self.ids[index], image, mask)


def draw(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one image (H, W, 3) uint8 and its mask (H, W) uint8."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    image = background(rng, y, x)
    mean = image.mean((0, 1))
    mask = np.zeros((height, width), np.uint8)
    placed: list[tuple[float, float, float]] = []
    for _ in range(rng.integers(2, 5)):
        radius = float(rng.uniform(0.17, 0.29)) * min(height, width)
        cy, cx = pick_centre(rng, radius, placed, height, width)
        placed.append((cy, cx, radius))
        label = int(rng.integers(1, len(NAMES)))
        u, v = turned(y - cy, x - cx, radius, float(rng.uniform(0, 2 * np.pi)))
        inside = outline(NAMES[label], u, v)
        mask[inside] = label
        image[inside] = surface(NAMES[label], rng, mean, u[inside], v[inside])
    image += rng.integers(-12, 13, image.shape, np.int8)
    return np.clip(image, 0, 255).astype(np.uint8), mask


def background(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Draw (H, W, 3) float32: a gradient of colour, and thin lines that belong to no object."""
    height, width = y.shape
    base = rng.uniform(30, 225, 3)
    slope_y = rng.uniform(-40, 40, 3)
    slope_x = rng.uniform(-40, 40, 3)
    plane = np.stack([y / height - 0.5, x / width - 0.5], -1)
    image = plane @ np.stack([slope_y, slope_x]).astype(np.float32) + base.astype(np.float32)
    for angle, offset in rng.uniform((0, -0.4), (np.pi, 0.4), (3, 2)):
        distance = (
            np.cos(angle) * (x - width / 2) + np.sin(angle) * (y - height / 2) - offset * height
        )
        image[np.abs(distance) < 1] = rng.uniform(0, 255, 3)
    return image


def pick_centre(
    rng: np.random.Generator,
    radius: float,
    placed: list[tuple[float, float, float]],
    height: int,
    width: int,
) -> tuple[float, float]:
    """Return a centre (y, x) that leaves the earlier objects mostly visible.

    After `MAX_DRAWS` draws that do not, the last one is taken.
    """
    cy = cx = 0.0
    for _ in range(MAX_DRAWS):
        cy = rng.uniform(0.6 * radius, height - 0.6 * radius)
        cx = rng.uniform(0.6 * radius, width - 0.6 * radius)
        if all(np.hypot(cy - y, cx - x) > 0.85 * (radius + r) for y, x, r in placed):
            break
    return cy, cx


def turned(
    dy: np.ndarray, dx: np.ndarray, radius: float, angle: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return an object's own coordinates (u, v) of pixels (dy, dx) from its centre.

    Their unit is its radius.
    """
    cos = np.float32(np.cos(angle) / radius)
    sin = np.float32(np.sin(angle) / radius)
    return cos * dx + sin * dy, cos * dy - sin * dx


def outline(name: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return (H, W) bool, the pixels inside the shape `name`."""
    if name == "circle":
        return u * u + v * v < 0.8
    if name == "square":
        return np.maximum(np.abs(u), np.abs(v)) < 0.75
    if name == "triangle":
        # Equilateral: three half-planes at 120 degrees, with corners at distance 1.1.
        side = np.float32(np.sqrt(0.75))
        return np.maximum(v, np.maximum(side * u - v / 2, -side * u - v / 2)) < 0.55
    if name == "cross":
        u = np.abs(u)
        v = np.abs(v)
        return (np.minimum(u, v) < 0.32) & (np.maximum(u, v) < 1)
    squared = u * u + v * v
    return (squared < 1) & (squared > 0.3)


def surface(
    name: str, rng: np.random.Generator, mean: np.ndarray, u: np.ndarray, v: np.ndarray
) -> np.ndarray:
    """Return (N, 3) colours at an object's own coordinates (u, v).

    They are any colour that stands out from `mean`, with the shape's pattern.
    """
    color = rng.uniform(30, 225, 3)
    while np.linalg.norm(color - mean) < MIN_CONTRAST:
        color = rng.uniform(30, 225, 3)
    return (color + PATTERN_CONTRAST * pattern(name, rng, u, v)[:, None]).astype(np.float32)


def pattern(name: str, rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return (N,) light and dark in -1 to 1: rings, stripes, grain, chequers or spokes."""
    if name == "circle":
        return np.cos(10 * np.hypot(u, v))
    if name == "square":
        return np.sin(7 * u)
    if name == "triangle":
        return rng.uniform(-1, 1, u.shape)
    if name == "cross":
        return np.sign(np.sin(11 * u) * np.sin(11 * v))
    return np.sign(np.sin(8 * np.arctan2(v, u)))
