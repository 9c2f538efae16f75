"""The dense CRF against an independent implementation and the exact mean field; what it is for."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from segtrain.errors import UserError
from segtrain.inference.crf import DenseCRF
from segtrain.inference.lattice import Lattice, _simplices

# scripts/bench_crf.py --golden: pydensecrf2 1.1 (Kraehenbuehl's C++) on a generated image of 32 x
# 40 pixels, 3 classes
GOLDEN = Path(__file__).parents[1] / "golden" / "crf.npz"
CASES = {
    "deeplab": DenseCRF(),
    "deconvnet": DenseCRF.deconvnet(),
    "smooth": DenseCRF(color_weight=0.0, smooth_std=2.0),
    "color": DenseCRF(
        iterations=3, smooth_weight=0.0, color_weight=2.0, position_std=10.0, color_std=15.0
    ),
}


def golden(*names: str) -> list[Tensor]:
    with np.load(GOLDEN) as file:
        return [torch.from_numpy(file[name]) for name in names]


def noisy(high: int, wide: int, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """An image and probabilities without structure."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, high, wide), dtype=torch.uint8, generator=generator)
    return image, torch.randn(classes, high, wide, generator=generator).softmax(0)


@pytest.mark.parametrize("case", CASES)
def test_the_marginals_are_those_of_the_usual_implementation(case: str) -> None:
    image, probabilities, expected = golden("image", "probabilities", case)
    result = CASES[case](image, probabilities)
    changed = (expected.argmax(0) != probabilities.argmax(0)).float().mean()
    assert changed > 0.02  # or agreeing would mean little
    assert torch.equal(result.argmax(0), expected.argmax(0))
    assert (result - expected).abs().max() < 1e-4


def test_the_cases_of_the_golden_numbers_differ_from_each_other() -> None:
    every = golden(*CASES)
    assert all((a - b).abs().max() > 0.1 for i, a in enumerate(every) for b in every[:i])


def exact(image: Tensor, probabilities: Tensor, crf: DenseCRF) -> Tensor:
    """Mean field with all pairs of pixels."""
    classes, high, wide = probabilities.shape
    rows, columns = torch.meshgrid(torch.arange(high), torch.arange(wide), indexing="ij")
    place = torch.stack([rows, columns]).flatten(1).double()
    colors = image.flatten(1).double()

    def kernel(*features: Tensor) -> Tensor:
        k = torch.exp(-sum((f[:, :, None] - f[:, None]).pow(2).sum(0) for f in features) / 2)
        norm = k.sum(1).rsqrt()
        return norm[:, None] * k * norm

    together = crf.smooth_weight * kernel(place / crf.smooth_std)
    together += crf.color_weight * kernel(place / crf.position_std, colors / crf.color_std)
    unary = probabilities.double().clamp(1e-5, 1).log().flatten(1)
    q = unary.softmax(0)
    for _ in range(crf.iterations):
        q = (unary + q @ together).softmax(0)
    return q.reshape(classes, high, wide)


@pytest.mark.parametrize("crf", [DenseCRF(color_std=20.0), DenseCRF(2, 1.0, 1.5, 1.0, 5.0, 60.0)])
def test_the_marginals_are_near_the_exact_mean_field(crf: DenseCRF) -> None:
    # the lattice approximates the Gaussians, so only about: 120 pixels in two colours with noise,
    # unsure probabilities
    image, probabilities = noisy(12, 10)
    image = image // 16 + 100
    image[:, :, 5:] += 80
    probabilities = (
        probabilities.log() + torch.eye(3)[:, (0, 0, 0, 0, 0, 1, 1, 1, 1, 1)][:, None]
    ).softmax(0)
    expected = exact(image, probabilities, crf)
    result = crf(image, probabilities)
    assert (result - expected).abs().mean() < 0.006
    assert (result.argmax(0) == expected.argmax(0)).float().mean() > 0.97
    assert (
        probabilities - expected
    ).abs().mean() > 0.05  # the exact one is far from where both start


def test_it_moves_a_boundary_to_the_edge_of_the_image() -> None:
    # a dark and a bright half with the edge at column 20; the network is unsure and sees it at
    # column 24
    image = torch.full((3, 30, 40), 50, dtype=torch.uint8)
    image[:, :, 20:] = 200
    probabilities = torch.full((2, 30, 40), 0.4)
    probabilities[0, :, :24] = probabilities[1, :, 24:] = 0.6
    labels = DenseCRF()(image, probabilities).argmax(0)
    assert (labels[:, :20] == 0).all()
    assert (labels[:, 20:] == 1).all()


def test_colour_differences_count_in_units_of_0_to_255() -> None:
    # one step of 10 between the halves is three standard deviations of 3; with 60 the halves are
    # one region
    image = torch.full((3, 20, 20), 100, dtype=torch.uint8)
    image[:, :, 10:] = 110
    probabilities = torch.full((2, 20, 20), 0.4)
    probabilities[0, :, :13] = probabilities[1, :, 13:] = 0.6
    assert DenseCRF(smooth_weight=0.0)(image, probabilities).argmax(0).sum() == 20 * 10
    blind = DenseCRF(smooth_weight=0.0, color_std=60.0)(image, probabilities)
    assert blind.argmax(0).sum() == 0  # 13 columns outvote 7


def test_without_iterations_or_terms_the_probabilities_stay() -> None:
    image, probabilities = noisy(9, 7)
    for crf in (DenseCRF(iterations=0), DenseCRF(smooth_weight=0.0, color_weight=0.0)):
        assert torch.allclose(crf(image, probabilities), probabilities, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 17), (5, 3), (33, 51)])
def test_marginals_sum_to_one_at_any_size_and_are_the_same_again(size: tuple[int, int]) -> None:
    image, probabilities = noisy(*size, classes=4)
    result = DenseCRF()(image, probabilities)
    assert result.shape == probabilities.shape
    assert result.dtype == torch.float32
    assert torch.allclose(result.sum(0), torch.ones(size), atol=1e-5)
    assert torch.equal(DenseCRF()(image, probabilities), result)


def test_certain_probabilities_are_clipped_and_give_no_infinities() -> None:
    image, _ = noisy(8, 8)
    probabilities = torch.zeros(3, 8, 8)
    probabilities[1] = 1
    assert DenseCRF()(image, probabilities).isfinite().all()
    assert DenseCRF(iterations=0)(image, probabilities)[0].max() == pytest.approx(1e-5, rel=0.01)


def test_autocast_changes_nothing() -> None:
    image, probabilities = noisy(16, 20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = DenseCRF()(image, probabilities)
    assert torch.equal(inside, DenseCRF()(image, probabilities))


def test_the_classes_do_not_depend_on_their_order() -> None:
    image, probabilities = noisy(16, 20, classes=4)
    order = [2, 0, 3, 1]
    assert torch.allclose(
        DenseCRF()(image, probabilities[order]), DenseCRF()(image, probabilities)[order], atol=1e-5
    )


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_plain_torch_and_scipys_products_filter_alike(dimensions: int) -> None:
    generator = torch.Generator().manual_seed(dimensions)
    lattice = Lattice(3 * torch.randn(dimensions, 300, generator=generator))
    values = torch.rand(300, 4, generator=generator)
    assert torch.allclose(lattice.gather(values), lattice.filter(values), atol=1e-6)


def test_the_filter_of_points_on_a_line_is_about_the_gaussian() -> None:
    # 401 points a tenth of a standard deviation apart, one of them lit
    features = torch.arange(401)[None] / 10
    values = torch.zeros(401, 1)
    values[200] = 1
    result = Lattice(features).filter(values)[:, 0]
    kernel = torch.exp(-((features[0] - 20) ** 2) / 2)
    assert torch.allclose(result, kernel / kernel.sum(), atol=0.1 * float(result.max()))


def test_barycentric_weights_are_a_partition_of_one() -> None:
    image, _ = noisy(20, 20)
    weights, keys, _ = _simplices(image.flatten(1).float() / 7)
    assert torch.allclose(weights.sum(0), torch.ones(400), atol=1e-5)
    assert weights.min() > -1e-5
    assert all(len(set(vertices)) == 4 for vertices in keys.T.tolist())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"iterations": -1}, "crf.iterations=-1"),
        ({"color_weight": -1.0}, "crf.color_weight=-1.0"),
        ({"smooth_std": 0.0}, "crf.smooth_std=0.0"),
        ({"color_std": float("nan")}, "crf.color_std=nan"),
    ],
)
def test_values_that_mean_nothing_are_refused_by_name(change: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        DenseCRF(**change)


def test_a_lattice_too_fine_to_number_is_refused() -> None:
    image, probabilities = noisy(10, 10)
    with pytest.raises(UserError, match="too small"):
        DenseCRF(color_std=1e-3, position_std=1e-3)(image, probabilities)


def test_scores_colours_from_0_to_1_and_another_size_are_refused() -> None:
    # each of them gives labels that are worse than without a CRF, and no error
    image, probabilities = noisy(10, 12)
    for wrong in (
        (image, probabilities.log()),
        (image, 2 * probabilities),
        (image.float() / 255, probabilities),
        (image, probabilities[:, :, :10]),
    ):
        with pytest.raises(ValueError, match="the CRF takes"):
            DenseCRF()(*wrong)
