"""Seconds per photo of our dense CRF beside pydensecrf2, and how far their results agree.

Run:  pip install pydensecrf2 && python scripts/bench_crf.py --root VOCdevkit/VOC2012 --images 5
      python scripts/bench_crf.py --golden tests/golden/crf.npz     writes the tests' numbers

One thread, 21 classes, 10 iterations, the default parameters. Probabilities are made from the
truth: blurred with 12 pixels, with smooth noise. Both take turns in one process, because the speed
of a machine drifts; the table has the shortest of the rounds. Without pydensecrf2 only our seconds
are shown.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

# Thread pools read it when torch and numpy are imported, so it is set before.
os.environ["OMP_NUM_THREADS"] = "1"
import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn.functional import interpolate

from segtrain.data.images import read_image, read_mask
from segtrain.inference.crf import DenseCRF

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--root", type=Path, help="VOCdevkit/VOC2012")
parser.add_argument("--images", type=int, default=5, help="photos")
parser.add_argument("--rounds", type=int, default=3, help="turns of each")
parser.add_argument(
    "--large",
    action="store_true",
    help="one photo enlarged to Cityscapes' 1024 x 2048 instead, 19 classes",
)
parser.add_argument(
    "--golden",
    type=Path,
    help="write the numbers of pydensecrf2 on a generated image here, and stop",
)


def reference(image: Tensor, probabilities: Tensor, crf: DenseCRF) -> np.ndarray:
    """Return the marginals (K, H, W) that pydensecrf2 computes."""
    from pydensecrf.densecrf import DenseCRF2D
    from pydensecrf.utils import unary_from_softmax

    classes, height, width = probabilities.shape
    model = DenseCRF2D(width, height, classes)
    model.setUnaryEnergy(unary_from_softmax(probabilities.numpy().copy()))
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy()).copy()
    if crf.smooth_weight:
        model.addPairwiseGaussian(sxy=crf.smooth_std, compat=crf.smooth_weight)
    if crf.color_weight:
        spread = {"sxy": crf.position_std, "srgb": crf.color_std}
        model.addPairwiseBilateral(**spread, rgbim=pixels, compat=crf.color_weight)
    return np.array(model.inference(crf.iterations)).reshape(classes, height, width)


def plausible(mask: np.ndarray, classes: int, seed: int) -> Tensor:
    """Make probabilities (K, H, W) of a network that sees the truth blurred and errs in patches."""
    rng = np.random.default_rng(seed)
    truth = np.where(mask == 255, 0, mask)
    scores = [
        6 * gaussian_filter((truth == k).astype(np.float32), 12)
        + 30 * gaussian_filter(rng.standard_normal(mask.shape), 10)
        for k in range(classes)
    ]
    return torch.from_numpy(np.stack(scores).astype(np.float32)).softmax(0)


def photo(root: Path, name: str, large: bool = False) -> tuple[Tensor, Tensor]:
    """Read a VOC photo (3, H, W) and make probabilities for it."""
    image = (
        torch.from_numpy(read_image(root / "JPEGImages" / f"{name}.jpg"))
        .permute(2, 0, 1)
        .contiguous()
    )
    mask = read_mask(root / "SegmentationClass" / f"{name}.png")
    if not large:
        return image, plausible(mask, 21, seed=0)
    size = (1024, 2048)
    enlarged = interpolate(image[None].float(), size, mode="bilinear")[0].round().byte()
    labels = interpolate(torch.from_numpy(mask)[None, None].float(), size)[0, 0].numpy()
    return enlarged, plausible(np.where(labels >= 19, 0, labels), 19, seed=0)


def seconds(call: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def golden(path: Path) -> None:
    """Write a generated image, unsure probabilities and what pydensecrf2 makes of them.

    The image (32 x 40) shows a noisy disc and a bar; there are 3 classes.
    """
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:32, :40]
    mask = ((rows - 14) ** 2 + (columns - 13) ** 2 < 81).astype(np.uint8)
    mask[20:29, 22:37] = 2
    colors = np.array([(60, 90, 120), (180, 120, 60), (90, 150, 90)])[mask]
    image = (colors + rng.normal(0, 6, colors.shape)).clip(0, 255).astype(np.uint8)
    shifted = np.roll(mask, (2, 3), (0, 1))  # the network sees objects where they are not quite
    scores = [
        2 * gaussian_filter((shifted == k).astype(float), 2) + rng.normal(0, 0.7, mask.shape)
        for k in range(3)
    ]
    probabilities = torch.from_numpy(np.stack(scores)).softmax(0).float()
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    cases = {
        "deeplab": DenseCRF(),
        "deconvnet": DenseCRF.deconvnet(),
        "smooth": DenseCRF(color_weight=0.0, smooth_std=2.0),
        "color": DenseCRF(
            iterations=3, smooth_weight=0.0, color_weight=2.0, position_std=10.0, color_std=15.0
        ),
    }
    results = {
        name: reference(pixels, probabilities, crf).astype(np.float32)
        for name, crf in cases.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, image=pixels.numpy(), probabilities=probabilities.numpy(), **results)
    print(f"{path}: {path.stat().st_size} bytes")


def photos(options: argparse.Namespace) -> list[tuple[str, Tensor, Tensor]]:
    """Return (name, image, probabilities) of photos spread evenly over the data set."""
    names = sorted(path.stem for path in (options.root / "SegmentationClass").glob("*.png"))
    chosen = names[:: max(1, len(names) // options.images)][: options.images]
    return [(name, *photo(options.root, name, options.large)) for name in chosen]


def compare(options: argparse.Namespace) -> None:
    """Print the table beside pydensecrf2."""
    crf = DenseCRF()
    ratios = []
    print(
        f"{'photo':<14}{'size':>12}{'pydensecrf2':>13}{'segtrain':>10}{'ratio':>7}"
        f"{'argmax':>10}{'max |dQ|':>10}{'moved':>8}"
    )
    for name, image, probabilities in photos(options):
        theirs = ours = float("inf")
        for _ in range(options.rounds):
            theirs = min(theirs, seconds(partial(reference, image, probabilities, crf)))
            ours = min(ours, seconds(partial(crf, image, probabilities)))
        expected = reference(image, probabilities, crf)
        result = crf(image, probabilities).numpy()
        same = (expected.argmax(0) == result.argmax(0)).mean()
        moved = (expected.argmax(0) != probabilities.numpy().argmax(0)).mean()
        ratios.append(ours / theirs)
        size = f"{image.shape[1]}x{image.shape[2]}"
        print(
            f"{name:<14}{size:>12}{theirs:>11.2f} s{ours:>8.2f} s{ratios[-1]:>7.2f}"
            f"{same:>10.4%}{abs(expected - result).max():>10.1e}{moved:>8.1%}"
        )
    print(f"mean ratio {np.mean(ratios):.2f}; moved: pixels whose label the CRF changed")


def measure_alone(options: argparse.Namespace) -> None:
    """Print our seconds, without pydensecrf2."""
    crf = DenseCRF()
    print("pydensecrf2 is not installed (pip install pydensecrf2): nothing to compare with")
    print(f"{'photo':<14}{'size':>12}{'segtrain':>10}")
    for name, image, probabilities in photos(options):
        ours = min(seconds(partial(crf, image, probabilities)) for _ in range(options.rounds))
        print(f"{name:<14}{f'{image.shape[1]}x{image.shape[2]}':>12}{ours:>8.2f} s")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, or write the golden numbers."""
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    installed = importlib.util.find_spec("pydensecrf") is not None
    if options.golden and not installed:
        parser.error("--golden: the numbers are pydensecrf2's: pip install pydensecrf2")
    if options.golden:
        golden(options.golden)
    elif not options.root:
        parser.error("give --root VOCdevkit/VOC2012 or --golden FILE")
    elif installed:
        compare(options)
    else:
        measure_alone(options)


if __name__ == "__main__":
    main()
