"""The authors' own test protocols beside short statements of them, in numpy.

The statements are written from the facts: `weights` and `antialiased` are the interpolations, one
row of factors for each new pixel, and every release is a function from a normalised network and a
photo to the mean scores. The network is random, but it sees where padding lies and what surrounds a
window: it pools its whole input.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn

from segtrain.errors import UserError
from segtrain.inference.crf import DenseCRF
from segtrain.inference.semantic import Semantic
from segtrain.inference.windows import canvas_size, laid, scaled_size, window_starts
from segtrain.layers.preprocess import Preprocess
from segtrain.structures.samples import Batch

CONF = Path(__file__).parents[2] / "conf" / "inference"
MEAN = np.array([0.485, 0.456, 0.406]).reshape(3, 1, 1)
STD = np.array([0.229, 0.224, 0.225]).reshape(3, 1, 1)
CLASSES = 5
STRIDE = 4  # of the network's scores

Run = Callable[[np.ndarray], np.ndarray]  # a normalised image (3, h, w) -> logits (K, h, w)


class Net(nn.Module):
    """Two strided convolutions and the mean of all, resized with aligned corners."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.preprocess = Preprocess(MEAN.ravel().tolist(), STD.ravel().tolist())
        self.first = nn.Conv2d(3, 8, 3, 2, 1)
        self.second = nn.Conv2d(8, 8, 3, 2, 1)
        self.classifier = nn.Conv2d(16, CLASSES, 1)
        self.seen: list[Tensor] = []
        with torch.no_grad():
            self.classifier.weight.mul_(12)

    def small(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.classifier(torch.cat([x, x.mean((2, 3), keepdim=True).expand_as(x)], 1))

    def forward(self, batch: Batch | Tensor) -> dict[str, Tensor]:
        if isinstance(batch, Batch):
            self.seen.append(batch.images)
            batch = self.preprocess(batch.images, batch.sizes)
        return {"logits": on_corners(self.small(batch), batch.shape[-2:])}


def on_corners(maps: Tensor, size: Any) -> Tensor:
    return nn.functional.interpolate(maps, tuple(size), mode="bilinear", align_corners=True)


def preset(name: str, **changes: Any) -> Semantic:
    arguments: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    arguments.pop("_target_")
    if isinstance(arguments["crf"], dict):
        arguments["crf"].pop("_target_")
        arguments["crf"] = DenseCRF(**arguments["crf"])
    return Semantic(Net().eval(), **arguments | changes)


def photo(height: int, width: int) -> np.ndarray:
    """A generated photo (3, H, W) uint8: blobs of colour, and grain."""
    random = np.random.default_rng(height)
    coarse = random.random((3, 7, 9)) * 255
    rows = weights(7, height, corners=True)
    columns = weights(9, width, corners=True)
    grain = random.normal(size=(3, height, width)) * 12
    return (rows @ coarse @ columns.T + grain).clip(0, 255).astype(np.uint8)


# Interpolation


def weights(old: int, new: int, corners: bool = False) -> np.ndarray:
    """(new, old): between pixel centres, or with the first and last pixels upon each other."""
    at = (
        np.arange(new) * (old - 1) / (new - 1)
        if corners
        else (np.arange(new) + 0.5) * old / new - 0.5
    )
    return np.maximum(0, 1 - abs(at.clip(0, old - 1)[:, None] - np.arange(old)))


def antialiased(old: int, new: int) -> np.ndarray:
    """(new, old): a triangle as wide as a new pixel where they are larger, mirrored at the ends."""
    factor = min(1.0, new / old)
    reach = int(2 / factor) + 2
    index = np.arange(-reach, old + reach)
    at = (np.arange(new) + 0.5) * old / new - 0.5
    triangle = np.maximum(0, 1 - factor * abs(at[:, None] - index))
    result = np.zeros((new, old))
    inside = np.where(index < 0, -1 - index, np.where(index < old, index, 2 * old - 1 - index))
    for column, pixel in enumerate(inside.clip(0, old - 1)):
        result[:, pixel] += triangle[:, column]
    return result / result.sum(1, keepdims=True)


def resized(maps: np.ndarray, size: Any, corners: bool = False) -> np.ndarray:
    height, width = maps.shape[1:]
    return weights(height, size[0], corners) @ maps @ weights(width, size[1], corners).T


def softmax(logits: np.ndarray) -> np.ndarray:
    power = np.exp(logits - logits.max(0))
    return power / power.sum(0)


# The releases


def semseg(run: Run, image: np.ndarray, base: int, window: int, scales: list[float]) -> np.ndarray:
    """hszhao/semseg, tool/test.py."""
    _, height, width = image.shape
    total = 0
    for scale in scales:
        long = round(scale * base)
        size = [long, round(long / height * width)]
        if height <= width:
            size = [round(long / width * height), long]
        pixels = resized(image / 255, size)
        rows, columns = (max(window, side) for side in size)
        top, left = (rows - size[0]) // 2, (columns - size[1]) // 2
        canvas = np.zeros((3, rows, columns)) + MEAN
        canvas[:, top : top + size[0], left : left + size[1]] = pixels
        canvas = (canvas - MEAN) / STD
        step = int(np.ceil(window * 2 / 3))
        scores, count = np.zeros((CLASSES, rows, columns)), np.zeros((rows, columns))
        for y in range(0, rows - window + step, step):
            for x in range(0, columns - window + step, step):
                y, x = min(y, rows - window), min(x, columns - window)
                part = canvas[:, y : y + window, x : x + window]
                both = softmax(run(part)) + softmax(run(part[:, :, ::-1])[:, :, ::-1])
                scores[:, y : y + window, x : x + window] += both / 2
                count[y : y + window, x : x + window] += 1
        mean = (scores / count)[:, top : top + size[0], left : left + size[1]]
        total = total + resized(mean, (height, width))
    return total / len(scales)


def encoding(
    run: Run, image: np.ndarray, base: int, window: int, scales: list[float]
) -> np.ndarray:
    """PyTorch-Encoding's MultiEvalModule."""
    _, height, width = image.shape
    total = 0
    for scale in scales:
        long = int(np.ceil(base * scale))
        size = [int(side * long / max(height, width) + 0.5) for side in (height, width)]
        pixels = resized((image / 255 - MEAN) / STD, size, corners=True)
        step = int(window * 2 / 3)
        ends = [max(side, window) for side in size]
        starts = [range(0, int(np.ceil((end - window) / step)) * step + 1, step) for end in ends]
        black = -MEAN / STD
        scores, count = np.zeros((CLASSES, *ends)), np.zeros(ends)
        canvas = np.zeros((3, *ends)) + black
        canvas[:, : size[0], : size[1]] = pixels
        for y in starts[0]:
            for x in starts[1]:
                cut = canvas[:, y : y + window, x : x + window]
                part = np.zeros((3, window, window)) + black
                part[:, : cut.shape[1], : cut.shape[2]] = cut
                power = np.exp(run(part) + run(part[:, :, ::-1])[:, :, ::-1])
                power = power[:, : cut.shape[1], : cut.shape[2]]
                scores[:, y : y + window, x : x + window] += power
                count[y : y + window, x : x + window] += 1
        mean = (scores / count)[:, : size[0], : size[1]]
        total = total + resized(mean, (height, width), corners=True)
    return total / total.sum(0)


def caffe(run: Run, image: np.ndarray, base: int, window: int, scales: list[float]) -> np.ndarray:
    """hszhao/PSPNet, evaluation/*.m; MATLAB resizes one side after the other, bytes as bytes."""
    _, height, width = image.shape
    total = 0
    for scale in scales:
        long = base * scale + 1
        size = [int(side * long / max(height, width) + 0.5) for side in (height, width)]
        rows, columns = antialiased(height, size[0]), antialiased(width, size[1])
        if size[0] / height <= size[1] / width:
            pixels = np.around(np.around(rows @ image) @ columns.T)
        else:
            pixels = np.around(rows @ np.around(image @ columns.T))
        ends = [max(side, window) for side in size]
        canvas = np.zeros((3, *ends))  # the mean
        canvas[:, : size[0], : size[1]] = (pixels / 255 - MEAN) / STD
        step = int(np.ceil(window * 2 / 3))
        scores, count = np.zeros((CLASSES, *ends)), np.zeros(ends)
        for y in range(0, ends[0] - window + step, step):
            for x in range(0, ends[1] - window + step, step):
                y, x = min(y, ends[0] - window), min(x, ends[1] - window)
                part = canvas[:, y : y + window, x : x + window]
                scores[:, y : y + window, x : x + window] += softmax(
                    run(part) + run(part[:, :, ::-1])[:, :, ::-1]
                )
                count[y : y + window, x : x + window] += 1
        mean = (scores / count)[:, : size[0], : size[1]]
        back = antialiased(size[0], height) @ mean @ antialiased(size[1], width).T
        total = total + back / back.sum(0)
    return total / len(scales)


def tensorflow(net: Net, image: np.ndarray, canvas: int, scales: list[float]) -> np.ndarray:
    """tensorflow/models, research/deeplab: eval.py and predict_labels_multi_scale of model.py."""
    _, height, width = image.shape
    padded = np.zeros((3, canvas, canvas))  # the mean
    padded[:, :height, :width] = (image / 255 - MEAN) / STD
    views = []
    for scale in scales:
        side = int((canvas - 1) * scale + 1)
        grid = int((canvas - 1) * max(1, scale) / STRIDE + 1)
        for step in (1, -1):
            shown = resized(padded[:, :, ::step], (side, side), corners=True)
            with torch.no_grad():
                small = net.small(torch.from_numpy(shown)[None].float())[0].double().numpy()
            small = resized(small, (grid, grid), corners=True)[:, :, ::step]
            views.append(softmax(resized(small, (canvas, canvas), corners=True)))
    return np.mean(views, 0)[:, :height, :width]


def runs(net: Net) -> Run:
    def run(image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            shown = torch.from_numpy(np.ascontiguousarray(image))[None].float()
            return net(shown)["logits"][0].double().numpy()

    return run


RELEASES = {"pspnet_semseg": semseg, "encoding": encoding, "pspnet_caffe": caffe}
SCALES = [0.5, 0.75, 1.75]


def agreement(predictor: Semantic, scores: np.ndarray, image: np.ndarray) -> float:
    """The share of equal labels, of a photo that is not all of one class."""
    ours = predictor(torch.from_numpy(image)).numpy()
    assert np.bincount(ours.ravel()).max() < 0.9 * ours.size
    return (ours == scores.argmax(0)).mean()


@pytest.mark.parametrize("size", [(45, 70), pytest.param((70, 45), marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", RELEASES)
def test_the_scores_are_those_of_the_release(name: str, size: tuple[int, int]) -> None:
    # windows of 49: scale 0.5 is padded in both directions, 0.75 in one, 1.75 needs 2 x 3 windows
    predictor = preset(name, base=72, window=[49, 49], scales=SCALES, flip=True)
    image = photo(*size)
    expected = RELEASES[name](runs(predictor.model), image, 72, 49, SCALES)
    ours = predictor.scores(torch.from_numpy(image)).numpy()
    # MATLAB mirrors a photo at its border where torch leaves out what is beyond, and a photo as
    # small as this one is border in one pixel of nine.
    exact = name != "pspnet_caffe"
    assert np.abs(ours - expected).max() < (1e-4 if exact else 2e-2)
    assert agreement(predictor, expected, image) > (0.999 if exact else 0.997)
    old = Semantic(
        predictor.model, "slide", [49, 49], 2 / 3, SCALES, True, predictor.average, base=72
    )
    assert agreement(old, expected, image) < 0.99


@pytest.mark.parametrize("scales", [[1.0], [0.5, 0.75, 1.25]])
def test_the_canvas_is_scaled_as_in_tensorflow(scales: list[float]) -> None:
    predictor = preset("deeplab_tf", pad=[81, 81], scales=scales, flip=True, score_stride=STRIDE)
    image = photo(45, 70)
    expected = tensorflow(predictor.model, image, 81, scales)
    ours = predictor.scores(torch.from_numpy(image)).numpy()
    assert np.abs(ours - expected).max() < 1e-4
    assert agreement(predictor, expected, image) > 0.999
    if len(scales) > 1:
        predictor.score_stride = None
        assert np.abs(predictor.scores(torch.from_numpy(image)).numpy() - expected).max() > 1e-2


def test_the_caffe_release_of_deeplab_pads_with_the_mean_and_cuts_the_scores() -> None:
    predictor = preset("deeplab", pad=[81, 81])
    image = photo(45, 70)
    canvas = np.zeros((3, 81, 81))
    canvas[:, :45, :70] = (image / 255 - MEAN) / STD
    assert agreement(predictor, runs(predictor.model)(canvas)[:, :45, :70], image) > 0.999


def test_kazutos_deeplab_is_shown_the_image_as_it_is() -> None:
    assert preset("kazuto").plain
    with pytest.raises(UserError, match=r"inference.crf.wrap=\[1\]: three numbers"):
        DenseCRF(wrap=[1])


@pytest.mark.slow
def test_kazutos_crf_is_given_the_networks_input_as_bytes() -> None:
    crf = preset("kazuto_crf").crf
    assert crf is not None
    # the mean is taken off, the rest cut to a whole number and then to a byte: -1.4 -> -1 -> 255
    image = torch.from_numpy(photo(24, 31))
    mean = torch.tensor([122.675, 116.669, 104.008]).view(3, 1, 1)
    bytes_of_it = (image - mean).to(torch.int32).numpy().astype(np.uint8)
    probabilities = torch.rand(3, 24, 31).softmax(0)
    given = DenseCRF()(torch.from_numpy(bytes_of_it), probabilities)
    assert torch.equal(crf(image, probabilities), given)
    assert not torch.allclose(DenseCRF()(image, probabilities), given, atol=1e-2)


@pytest.mark.parametrize("size", [(60, 81), (30, 41), (41, 30)])
def test_torchvision_shows_what_pillow_makes_of_the_shorter_side(size: tuple[int, int]) -> None:
    predictor = preset("torchvision", base=47)
    image = photo(*size)
    predictor(torch.from_numpy(image))
    (shown,) = predictor.model.seen
    wide = int(47 * max(size) / min(size))  # rounded down
    assert shown.shape[2:] == ((47, wide) if size[0] < size[1] else (wide, 47))
    pillow = Image.fromarray(image.transpose(1, 2, 0)).resize(
        (shown.shape[3], shown.shape[2]), Image.Resampling.BILINEAR
    )
    difference = shown[0].int() - torch.from_numpy(np.array(pillow).transpose(2, 0, 1)).int()
    assert difference.abs().max() <= 1


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        # 512 / 1024 * 681 = 340.5
        ("half_up", (512, 341)),
        ("half_even", (512, 340)),
        ("down", (512, 340)),
        ("plus_one", (513, 341)),  # 341.17
    ],
)
def test_sides_follow_from_the_base_by_the_releases_rules(
    sides: Any, expected: tuple[int, int]
) -> None:
    assert scaled_size((1024, 681), 1.0, 512, "long", sides) == expected
    turned = scaled_size((681, 1024), 1.0, 512, "long", sides)
    assert turned == expected[::-1]
    assert scaled_size((333, 333), 1.5, 512, "short", sides)[0] == 768 + (sides == "plus_one")


def test_the_last_window_may_hang_over() -> None:
    assert window_starts(1000, 480, 2 / 3) == [0, 320, 520]
    assert window_starts(1000, 480, 2 / 3, overhang=True) == [0, 320, 640]
    assert window_starts(480, 480, 2 / 3, overhang=True) == [0]
    # 332.67: a window that moves inside steps by 333, one that hangs over by 332
    assert [window_starts(900, 499, 2 / 3, overhang=o)[1] for o in (False, True)] == [333, 332]


def test_an_image_lies_in_the_corner_or_the_middle_of_its_canvas() -> None:
    image = torch.ones(1, 2, 2)
    board, top, left = laid(image, (3, 5), 7.0, middle=True)
    assert (top, left) == (0, 1)
    assert board[0].tolist() == [[7, 1, 1, 7, 7], [7, 1, 1, 7, 7], [7, 7, 7, 7, 7]]
    assert laid(image, (3, 3))[0][0].tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert canvas_size((513, 1025), 0.75) == (385, 769)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"resize": "cubic"}, "inference.resize=cubic: use one of bytes, floats"),
        ({"padding": "white"}, "inference.padding=white"),
        ({"sides": "up"}, "inference.sides=up"),
        ({"base_side": "width"}, "inference.base_side=width"),
        ({"average": "resized", "mode": "slide", "window": [8, 8]}, "average=resized"),
        ({"overhang": True}, "inference.overhang=true with inference.mode=whole"),
        ({"overhang": True, "mode": "slide", "window": [8, 8]}, "padding=training"),
        ({"score_stride": 4}, "only with inference.average=resized"),
        ({"score_stride": 0, "average": "resized"}, "score_stride=0"),
        ({"padding": "middle", "resize": "aligned", "pad": [9, 9]}, "inference.padding=middle"),
    ],
)
def test_what_makes_no_sense_together_is_refused_by_name(arguments: Any, named: str) -> None:
    with pytest.raises(UserError, match=named):
        Semantic(Net(), **arguments)


@pytest.mark.slow
@pytest.mark.parametrize("name", RELEASES)
def test_the_labels_of_photos_are_those_of_the_release(name: str, data_root: Path) -> None:
    voc = data_root / "voc2012" / "VOCdevkit" / "VOC2012"
    ids = (voc / "ImageSets" / "Segmentation" / "val.txt").read_text().split()[::30]
    scales = [0.75, 1.25]
    predictor = preset(name, scales=scales, flip=True)
    assert predictor.window is not None
    assert predictor.base is not None
    for each in ids:
        image = np.array(Image.open(voc / "JPEGImages" / f"{each}.jpg")).transpose(2, 0, 1).copy()
        expected = RELEASES[name](
            runs(predictor.model), image, predictor.base, predictor.window[0], scales
        )
        assert agreement(predictor, expected, image) > 0.999
