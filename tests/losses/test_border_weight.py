"""U-Net's weight of borders: gaps computed by hand and equation 2, pixel by pixel."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.distance import cdist
from torch import nn
from torch.nn import functional as F

from segtrain.data.loader import train_loader
from segtrain.engine.objective import global_counts, mask_map_of, objective
from segtrain.errors import UserError
from segtrain.losses import border_weight
from segtrain.losses.border_weight import BorderCrossEntropy, border_term
from segtrain.losses.combined import Combined
from segtrain.losses.pixel import PixelCrossEntropy
from segtrain.structures.samples import Batch, Sample


class Alone:
    """A world of one process."""

    device = torch.device("cpu")

    def sum(self, tensor):
        return tensor


def batch_of(targets):
    targets = torch.as_tensor(np.asarray(targets), dtype=torch.uint8)
    images = torch.zeros(len(targets), 3, *targets.shape[1:], dtype=torch.uint8)
    return Batch(
        images,
        torch.tensor([targets.shape[1:]] * len(targets)),
        ["x"] * len(targets),
        masks=targets,
    )


def cells(height=40, width=50, seed=0):
    """Blobs of class 1 on class 0."""
    rough = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(height, width)), 2)
    return (rough > np.quantile(rough, 0.55)).astype(np.uint8)


def test_a_gap_computed_by_hand():
    # Cells at columns 0 and 4: the middle of the gap is 2 + 2 away, its edges 1 + 3, and 4^2 / (2 *
    # 25) = 0.32 for all three.
    term = border_term(np.array([[1, 0, 0, 0, 1]], np.uint8), 1, 10.0, 5.0)
    assert term[0].tolist() == pytest.approx([0, *[10 * math.exp(-0.32)] * 3, 0], rel=1e-6)
    # A pixel below a gap of one column: 1 and 1 diagonally, sqrt(2) each.
    term = border_term(np.array([[1, 0, 1], [0, 0, 0]], np.uint8), 1, 10.0, 5.0)
    assert term[0, 1] == pytest.approx(10 * math.exp(-4 / 50), rel=1e-6)
    assert term[1, 1] == pytest.approx(10 * math.exp(-8 / 50), rel=1e-6)


def test_cells_are_connected_regions_not_the_class_map():
    """A bay of one cell is no border between two: both of its shores belong to the same region."""
    bay = np.array([[1, 0, 1], [1, 0, 1], [1, 1, 1]], np.uint8)
    assert not border_term(bay, 1, 10.0, 5.0).any()
    bay[2, 1] = 0
    assert border_term(bay, 1, 10.0, 5.0)[0, 1] > 9


def test_a_diagonal_membrane_one_pixel_wide_separates():
    assert (border_term(1 - np.eye(5, dtype=np.uint8), 1, 10.0, 5.0).diagonal() > 9).all()


def test_classes_may_be_named():
    named = BorderCrossEntropy(class_weights={"cell": 2.0}, foreground="cell")
    named.name_classes(["membrane", "other", "cell"])
    assert named.foreground == 2
    assert named.table[:3].tolist() == [1, 1, 2]
    with pytest.raises(
        UserError, match=r"loss\.foreground=cel: there is no such class\. Did you mean `cell"
    ):
        BorderCrossEntropy(foreground="cel").name_classes(["membrane", "cell"])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_term_is_equation_2_pixel_by_pixel(seed):
    mask = cells(seed=seed)
    labels, count = ndimage.label(mask)
    assert count > 5
    places = np.argwhere(labels >= 0)
    each = np.stack([cdist(places, np.argwhere(labels == n)).min(1) for n in range(1, count + 1)])
    first, second = np.sort(each, 0)[:2]
    expected = np.where(mask.ravel() == 1, 0, 7 * np.exp(-((first + second) ** 2) / (2 * 1.5**2)))
    np.testing.assert_allclose(
        border_term(mask, 1, 7.0, 1.5).ravel(), expected, rtol=1e-4, atol=1e-6
    )


def test_without_a_second_cell_there_is_no_term():
    for mask in (np.zeros((9, 9), np.uint8), np.ones((9, 9), np.uint8), np.eye(9, 9, 8, np.uint8)):
        assert not border_term(mask, 1, 10.0, 5.0).any()


def test_without_the_term_it_is_the_weighted_mean_of_the_pixel_loss():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 40, 50, generator=g, requires_grad=True)
    targets = np.stack([cells(), cells(seed=1)])
    targets[:, :3] = 255
    batch = batch_of(targets)
    ours = BorderCrossEntropy(border_w0=0.0, class_weights=[3.0, 0.5])
    theirs = PixelCrossEntropy(class_weights=[3.0, 0.5])
    for loss in (ours, theirs):
        loss.value = loss({"logits": logits}, batch)["seg"].sum / loss.counts(batch)["seg"]
    torch.testing.assert_close(ours.value, theirs.value)
    torch.testing.assert_close(
        torch.autograd.grad(ours.value, logits), torch.autograd.grad(theirs.value, logits)
    )


def test_the_objective_is_sum_of_w_times_cross_entropy_over_sum_of_w():
    logits = torch.randn(1, 2, 40, 50, generator=torch.Generator().manual_seed(0))
    targets = cells()[None]
    targets[:, :, :5] = 255
    batch = batch_of(targets)
    loss = BorderCrossEntropy(class_weights=[2.0, 1.0])
    w = np.where(targets[0] == 1, 1.0, 2.0) + border_term(targets[0], 1, 10.0, 5.0)
    w[:, :5] = 0
    losses = (
        F.cross_entropy(logits, batch.masks.long(), ignore_index=255, reduction="none")[0]
        .double()
        .numpy()
    )
    total, _ = objective(
        loss({"logits": logits}, batch),
        global_counts(loss, [batch], Alone()),
        loss.weights,
        Alone(),
        1,
    )
    assert total.item() == pytest.approx((w * losses).sum() / w.sum(), rel=1e-5)
    assert w.max() > 10


def test_ignored_pixels_have_no_weight_and_zero_gradient():
    targets = np.array([[[1, 0, 1, 255, 1, 0]]], np.uint8)
    logits = torch.zeros(1, 2, 1, 6, requires_grad=True)
    loss = BorderCrossEntropy()
    assert loss.pixel_weights(batch_of(targets))[0, 0, 3] == 0
    loss({"logits": logits}, batch_of(targets))["seg"].sum.backward()
    assert [bool(g) for g in logits.grad.abs().sum(1)[0, 0]] == [
        True,
        True,
        True,
        False,
        True,
        True,
    ]


def test_the_margin_is_cut_in_training_only_and_cells_outside_the_window_count():
    """The middle column lies between two cells that only the margin shows."""
    targets = np.zeros((1, 7, 7), np.uint8)
    targets[0, :, 1] = targets[0, :, 5] = 1
    batch = batch_of(targets)
    loss = BorderCrossEntropy(margin=3)
    assert loss.counts(batch)["seg"].item() == pytest.approx(1 + 10 * math.exp(-16 / 50))
    term = loss({"logits": torch.zeros(1, 2, 1, 1)}, batch)["seg"]
    assert term.sum.item() == pytest.approx(math.log(2) * (1 + 10 * math.exp(-16 / 50)))
    loss.eval()
    everywhere = loss({"logits": torch.zeros(1, 2, 7, 7)}, batch)["seg"].sum
    assert everywhere.item() == pytest.approx(math.log(2) * loss.counts(batch)["seg"].item())
    assert loss.counts(batch)["seg"] > 49


class Cells:
    """Two images of cells of different sizes."""

    ids = ("a", "b")

    def __len__(self):
        return 2

    def __getitem__(self, index):
        mask = cells(40 + 8 * index, 50 - 8 * index, index)
        return Sample(self.ids[index], np.zeros((*mask.shape, 3), np.uint8), mask)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_loader_makes_the_map_and_the_step_does_not(monkeypatch, workers):
    """So no step on a GPU waits for the host; bits are those of a loss that makes it itself."""
    loss = BorderCrossEntropy(class_weights=[2.0, 1.0])
    whole = lambda sample, seed: sample  # noqa: E731
    made = mask_map_of(Combined({"pixel": loss}))
    (batch,) = train_loader(Cells(), whole, 0, [[(0, 0), (0, 1)]], workers, mask_map=made)
    assert batch.mask_maps.shape == batch.masks.shape == (2, 48, 50)
    assert batch.to(torch.device("meta")).mask_maps.device.type == "meta"
    itself = loss.pixel_weights(replace(batch, mask_maps=None))
    assert itself.max() > 10
    monkeypatch.setattr(border_weight, "border_term", None)
    assert torch.equal(loss.pixel_weights(batch), itself)


def test_two_parts_that_make_a_map_are_refused():
    both = nn.ModuleList([BorderCrossEntropy(), BorderCrossEntropy()])
    with pytest.raises(UserError, match=r"loss\.parts: 2 losses make a map of each mask"):
        mask_map_of(both)
    assert mask_map_of(PixelCrossEntropy()) is None


def test_perfect_is_better_than_random_and_the_loss_is_fp32_for_bf16_logits():
    targets = cells()[None]
    perfect = 20 * F.one_hot(torch.from_numpy(targets).long(), 2).permute(0, 3, 1, 2).float()
    loss = BorderCrossEntropy()
    batch = batch_of(targets)
    random = torch.randn(1, 2, 40, 50, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        values = [
            loss({"logits": logits.bfloat16()}, batch)["seg"].sum for logits in (perfect, random)
        ]
    assert values[0] < 1e-2 < 100 < values[1]
    assert values[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "shape", "message"),
    [
        (
            {"weights": {"aux": 1.0}},
            None,
            r"loss\.weights has the terms aux, but this loss has one: seg",
        ),
        ({"border_sigma": 0.0}, None, r"loss\.border_sigma=0\.0"),
        ({"margin": -1}, None, r"loss\.margin=-1"),
        (
            {"margin": 92},
            (40, 50),
            r"loss\.margin=92 leaves nothing of 40 x 50 pixels: enlarge dataset\.crop",
        ),
        (
            {"margin": 0},
            (8, 18),
            r"loss\.margin=0 leaves a target of 40 x 50 pixels, but the logits are 8 x 18",
        ),
        ({"class_weights": [1.0]}, (40, 50), r"loss\.class_weights has 1 numbers for 2 classes"),
        ({"foreground": 2}, (40, 50), r"loss\.foreground=2: the classes are 0 to 1"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(arguments, shape, message):
    with pytest.raises(UserError, match=message):
        BorderCrossEntropy(**arguments)(
            {"logits": torch.zeros(1, 2, *shape)}, batch_of(cells()[None])
        )
