"""Cross-entropy per pixel: by hand, against torch's, and without ignored pixels."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from segtrain.engine.objective import global_counts, objective
from segtrain.errors import UserError
from segtrain.losses.pixel import PixelCrossEntropy, hardest, nearest_to
from segtrain.runtime.distributed import World
from segtrain.structures.samples import Batch


def batch_of(targets):
    targets = torch.as_tensor(targets, dtype=torch.uint8)
    images = torch.zeros(len(targets), 3, *targets.shape[1:], dtype=torch.uint8)
    return Batch(
        images,
        torch.tensor([targets.shape[1:]] * len(targets)),
        ["x"] * len(targets),
        masks=targets,
    )


def random_case(classes=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, 7, 6, generator=g, requires_grad=True)
    targets = torch.randint(0, classes, (2, 7, 6), generator=g)
    targets[torch.rand(2, 7, 6, generator=g) < 0.3] = 255
    return logits, batch_of(targets)


def test_a_case_computed_by_hand():
    # One pixel with odds 1 : 3 labelled 1 costs ln(4/3), one with even odds costs ln 2, one is
    # ignored.
    logits = torch.tensor([[[0.0, 0.0, 9.0]], [[math.log(3), 0.0, -9.0]]]).unsqueeze(0)
    batch = batch_of([[[1, 0, 255]]])
    loss = PixelCrossEntropy()
    assert loss({"logits": logits}, batch)["seg"].sum.item() == pytest.approx(
        math.log(4 / 3) + math.log(2), rel=1e-6
    )
    assert loss.counts(batch)["seg"].item() == 2


@pytest.mark.parametrize("class_weights", [None, [0.5, 1.0, 2.0, 0.0, 4.0]])
def test_sum_over_count_equals_torchs_cross_entropy_with_its_gradient(class_weights):
    logits, batch = random_case()
    loss = PixelCrossEntropy(class_weights=class_weights)
    ours = loss({"logits": logits}, batch)["seg"].sum / loss.counts(batch)["seg"]
    weight = None if class_weights is None else torch.tensor(class_weights)
    theirs = F.cross_entropy(logits, batch.masks.long(), weight, ignore_index=255)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits)
    )


def test_ignored_pixels_have_exactly_zero_gradient_and_others_have_not():
    logits, batch = random_case()
    PixelCrossEntropy()({"logits": logits}, batch)["seg"].sum.backward()
    pixelwise = logits.grad.abs().sum(1)
    assert (pixelwise[batch.masks == 255] == 0).all()
    assert (pixelwise[batch.masks != 255] > 0).all()


def test_a_batch_without_a_valid_pixel_gives_zero_and_zero_gradient():
    logits, batch = random_case()
    batch.masks.fill_(255)
    loss = PixelCrossEntropy()
    total = loss({"logits": logits}, batch)["seg"].sum
    total.backward()
    assert total.item() == 0
    assert loss.counts(batch)["seg"].item() == 0
    assert (logits.grad == 0).all()


def test_an_ignore_index_below_the_number_of_classes_is_ignored_too():
    logits, batch = random_case()
    batch.masks.clamp_(max=4)
    loss = PixelCrossEntropy(ignore_index=0)
    theirs = F.cross_entropy(logits, batch.masks.long(), ignore_index=0)
    torch.testing.assert_close(
        loss({"logits": logits}, batch)["seg"].sum / loss.counts(batch)["seg"], theirs
    )


def test_perfect_is_better_than_random():
    logits, batch = random_case()
    perfect = 20 * F.one_hot(batch.masks.long().clamp(max=4), 5).permute(0, 3, 1, 2).float()
    loss = PixelCrossEntropy()
    assert (
        loss({"logits": perfect}, batch)["seg"].sum
        < 1e-3
        < 10
        < loss({"logits": logits}, batch)["seg"].sum
    )


def test_the_loss_is_fp32_inside_autocast_and_for_bf16_logits():
    logits, batch = random_case()
    exact = PixelCrossEntropy()({"logits": logits.bfloat16().float()}, batch)["seg"].sum
    with torch.autocast("cpu", torch.bfloat16):
        inside = PixelCrossEntropy()({"logits": logits.bfloat16()}, batch)["seg"].sum
    assert inside.dtype == torch.float32
    assert inside.item() == exact.item()


def test_each_term_reads_its_own_output():
    logits, batch = random_case()
    other, _ = random_case(seed=1)
    loss = PixelCrossEntropy({"seg": 1.0, "aux": 0.4})
    terms = loss({"logits": logits, "aux": other}, batch)
    assert loss.weights == {"seg": 1.0, "aux": 0.4}
    assert (
        terms["aux"].sum
        == PixelCrossEntropy()({"logits": other}, batch)["seg"].sum
        != terms["seg"].sum
    )
    assert terms["seg"].count is None
    assert set(loss.counts(batch)) == {"seg", "aux"}


def test_a_missing_aux_output_is_an_error_in_training_and_left_out_in_evaluation():
    logits, batch = random_case()
    loss = PixelCrossEntropy({"seg": 1.0, "aux": 0.4})
    with pytest.raises(UserError, match=r"model\.aux=true"):
        loss({"logits": logits}, batch)
    assert set(loss.eval()({"logits": logits}, batch)) == {"seg"}


@pytest.mark.parametrize("size", [(41, 31), (21, 41), (5, 321), (400, 2)])
def test_nearest_labels_are_those_of_pillow(size):
    target = torch.randint(0, 200, (2, 321, 257), dtype=torch.uint8)
    for mine, label in zip(nearest_to(target, *size), target, strict=True):
        theirs = Image.fromarray(label.numpy()).resize(size[::-1], Image.Resampling.NEAREST)
        assert np.array_equal(mine.numpy(), np.asarray(theirs))


def test_terms_of_nearest_labels_count_these_in_training_and_all_in_evaluation():
    logits, batch = random_case()
    small = torch.zeros(2, 5, 2, 3)
    loss = PixelCrossEntropy({"seg": 1.0, "small": 1.0}, nearest=True)
    assert loss.counts(batch) == {}
    labels = batch.masks[:, [1, 5]][:, :, [1, 3, 5]]  # (i + 0.5) x 7 / 2, (i + 0.5) x 6 / 3
    terms = loss({"logits": logits, "small": small}, batch)
    assert terms["small"].count == (labels != 255).sum()
    assert terms["small"].sum.item() == pytest.approx(terms["small"].count.item() * math.log(5))
    plain = PixelCrossEntropy()
    assert terms["seg"].count == plain.counts(batch)["seg"]
    assert terms["seg"].sum == plain({"logits": logits}, batch)["seg"].sum
    loss.eval()
    assert loss.counts(batch)["small"] == (batch.masks != 255).sum()
    assert loss({"logits": logits}, batch)["seg"].count is None
    sums = PixelCrossEntropy(nearest=True, reduction="sum")
    assert sums({"logits": small}, batch)["seg"].count is None


def test_any_term_reads_the_output_of_its_name():
    logits, batch = random_case()
    terms = PixelCrossEntropy({"scale_75": 1.0})({"logits": logits * 0, "scale_75": logits}, batch)
    assert list(terms) == ["scale_75"]
    assert terms["scale_75"].sum == PixelCrossEntropy()({"logits": logits}, batch)["seg"].sum


def test_an_unknown_term_is_refused_with_what_there_is_and_a_suggestion():
    logits, batch = random_case()
    with pytest.raises(UserError, match=r"`axu`.*gives logits, aux\)\. Did you mean `aux`\?"):
        PixelCrossEntropy({"seg": 1.0, "axu": 0.4})({"logits": logits, "aux": logits}, batch)
    with pytest.raises(UserError, match=r"`sge`.*Did you mean `seg`\?"):
        PixelCrossEntropy({"sge": 1.0})({"logits": logits}, batch)


def test_a_missing_seg_output_is_an_error_even_in_evaluation():
    logits, batch = random_case()
    with pytest.raises(UserError, match=r"no output `logits` \(it gives scores\)\. To"):
        PixelCrossEntropy().eval()({"scores": logits}, batch)


def one_process(loss, logits, batches, world=None):
    """The objective of an update of these micro-batches, one process."""
    world = world or World(0, 1, torch.device("cpu"))
    counts = global_counts(loss, batches, world)
    parts = [
        objective(loss({"logits": x}, b), counts, loss.weights, world, len(batches))[0]
        for x, b in zip(logits, batches, strict=True)
    ]
    return sum(parts)


def parts_of(batch, *pieces):
    return [
        Batch(batch.images[p], batch.sizes[p], batch.ids[p], masks=batch.masks[p]) for p in pieces
    ]


def test_a_plain_sum_is_the_sum_over_all_pixels_of_all_micro_batches():
    logits, batch = random_case()
    loss = PixelCrossEntropy({"seg": 2.0}, reduction="sum")
    wanted = 2 * F.cross_entropy(logits, batch.masks.long(), ignore_index=255, reduction="sum")
    torch.testing.assert_close(one_process(loss, [logits], [batch]), wanted)
    halves = parts_of(batch, slice(0, 1), slice(1, 2))
    torch.testing.assert_close(one_process(loss, logits.split(1), halves), wanted)


def test_a_plain_sum_asks_other_processes_for_nothing():
    # Every process adds its pixels; the trainer undoes DDP's mean. So the objective of one does not
    # depend on the others.
    class Crowd(World):
        def sum(self, tensor):
            return tensor * 7

    logits, batch = random_case()
    sums = PixelCrossEntropy(reduction="sum")
    crowd = Crowd(0, 7, torch.device("cpu"))
    assert one_process(sums, [logits], [batch], crowd) == one_process(sums, [logits], [batch])
    means = PixelCrossEntropy()
    torch.testing.assert_close(
        7 * one_process(means, [logits], [batch], crowd), one_process(means, [logits], [batch])
    )


def test_a_mean_does_not_change_when_a_batch_is_split():
    logits, batch = random_case()
    halves = parts_of(batch, slice(0, 1), slice(1, 2))
    loss = PixelCrossEntropy()
    torch.testing.assert_close(
        one_process(loss, logits.split(1), halves), one_process(loss, [logits], [batch])
    )


def test_a_plain_sum_is_evaluated_as_the_mean_over_images():
    logits, batch = random_case()
    loss = PixelCrossEntropy(reduction="sum").eval()
    assert loss.counts(batch) == {"seg": 2}
    assert loss.train().counts(batch) == {}
    assert loss({"logits": logits}, batch)["seg"].count is None


def test_a_shrunk_term_reads_every_nth_label_in_training():
    logits, batch = random_case()
    loss = PixelCrossEntropy({"seg": 1.0, "small": 1.0}, shrink={"small": 3})
    small = logits[:, :, ::3, ::3]
    assert small.shape[-2:] == (3, 2)  # of 7 x 6
    terms = loss({"logits": logits, "small": small}, batch)
    counts = loss.counts(batch)
    labels = batch.masks[:, ::3, ::3].long()
    assert counts["small"] == (labels != 255).sum() < counts["seg"] == (batch.masks != 255).sum()
    torch.testing.assert_close(
        terms["small"].sum / counts["small"], F.cross_entropy(small, labels, ignore_index=255)
    )
    assert terms["seg"].sum == PixelCrossEntropy()({"logits": logits}, batch)["seg"].sum


def test_a_shrunk_term_reads_all_labels_in_evaluation():
    logits, batch = random_case()
    loss = PixelCrossEntropy(shrink={"seg": 2}).eval()
    assert loss.counts(batch)["seg"] == (batch.masks != 255).sum()
    assert (
        loss({"logits": logits}, batch)["seg"].sum
        == PixelCrossEntropy()({"logits": logits}, batch)["seg"].sum
    )


def test_scores_that_do_not_fit_the_labels_are_refused():
    logits, batch = random_case()
    with pytest.raises(
        UserError, match=r"scores of 7x6 pixels for labels of 4x3 \(loss\.shrink\.seg=2\)"
    ):
        PixelCrossEntropy(shrink={"seg": 2})({"logits": logits}, batch)
    with pytest.raises(
        UserError, match=r"scores of 4x3 pixels for labels of 7x6 \(loss\.shrink\.seg=1\)"
    ):
        PixelCrossEntropy()({"logits": logits[:, :, ::2, ::2]}, batch)


def test_the_hardest_share_of_the_valid_pixels_is_kept():
    # Likelihoods of class 1: 0.9, 0.1, 0.5, 0.2 and one ignored pixel that would be the hardest;
    # half of four are two.
    odds = torch.tensor([9.0, 1 / 9, 1.0, 0.25, 1e-6])
    logits = torch.stack([torch.zeros(5), odds.log()]).view(1, 2, 1, 5).requires_grad_()
    batch = batch_of([[[1, 1, 1, 1, 255]]])
    loss = PixelCrossEntropy(hard=0.5)
    term = loss({"logits": logits}, batch)["seg"]
    assert term.count == 2
    assert loss.counts(batch) == {}
    assert term.sum.item() == pytest.approx(-math.log(0.1) - math.log(0.2), rel=1e-5)
    term.sum.backward()
    assert (logits.grad.abs().sum((0, 1, 2)) > 0).tolist() == [False, True, False, True, False]


def test_hard_pixels_are_weighted_by_their_class_and_equal_ones_share_their_fate():
    batch = batch_of([[[0, 0, 1, 255]]])
    loss = PixelCrossEntropy(class_weights=[3.0, 1.0], hard=0.34)
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]).view(1, 2, 1, 4)
    term = loss({"logits": logits}, batch)["seg"]  # one of three is asked for, two are equally hard
    assert term.count == 6
    assert term.sum.item() == pytest.approx(6 * math.log(1 + math.e), rel=1e-6)


def test_all_pixels_hard_is_the_mean_and_evaluation_is_always_the_mean():
    logits, batch = random_case()
    plain = one_process(PixelCrossEntropy(), [logits], [batch])
    torch.testing.assert_close(one_process(PixelCrossEntropy(hard=1.0), [logits], [batch]), plain)
    torch.testing.assert_close(
        one_process(PixelCrossEntropy(hard=0.1).eval(), [logits], [batch]), plain
    )
    assert one_process(PixelCrossEntropy(hard=0.1), [logits], [batch]) > 1.5 * plain


def test_hard_pixels_of_a_batch_without_a_valid_pixel_are_none():
    logits, batch = random_case()
    batch.masks.fill_(255)
    term = PixelCrossEntropy(hard=0.5)({"logits": logits}, batch)["seg"]
    assert term.sum == 0
    assert term.count == 0


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_a_share_of_all_pixels_is_what_tensorflows_deeplab_takes(share):
    """Its k = int(share x all pixels) largest losses, ignored pixels having 0, over those not 0."""
    logits, batch = random_case()
    losses = F.cross_entropy(logits, batch.masks.long(), ignore_index=255, reduction="none")
    largest = losses.flatten().topk(int(share * losses.numel())).values
    theirs = largest.sum() / (largest != 0).sum()
    ours = one_process(PixelCrossEntropy(hard=share, hard_of="all"), [logits], [batch])
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("threshold", "least"),
    [(0.2, 5), (0.02, 20), (0.2, 1), (0.2, 1000)],  # by threshold, by number, by threshold, all
)
def test_a_threshold_and_a_least_number_choose_what_ohem_does(threshold, least):
    """The threshold rises to the `least`-th smallest probability where that is larger."""
    logits, batch = random_case()
    target = batch.masks.long().flatten()
    probability = logits.softmax(1).permute(0, 2, 3, 1).flatten(0, 2)[target != 255]
    of_truth = probability[torch.arange(len(probability)), target[target != 255]]
    limit = max(threshold, of_truth.sort().values[:least][-1].item())
    kept = of_truth[of_truth <= limit]
    if least > 100:
        assert len(kept) == len(of_truth)
    else:
        assert least <= len(kept) < len(of_truth)
    loss = PixelCrossEntropy(hard_threshold=threshold, min_kept=least)
    assert loss.counts(batch) == {}
    term = loss({"logits": logits}, batch)["seg"]
    assert term.count == len(kept)
    torch.testing.assert_close(term.sum, -kept.log().sum())
    torch.testing.assert_close(
        one_process(loss.eval(), [logits], [batch]),
        one_process(PixelCrossEntropy(), [logits], [batch]),
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"hard_of": "void"}, "loss.hard_of=void is unknown. Known: valid, all"),
        ({"hard_threshold": 70.0}, "loss.hard_threshold=70.0: a probability"),
        ({"hard": 0.5, "hard_threshold": 0.7}, "both choose the hard pixels"),
        ({"hard_threshold": 0.7, "min_kept": -1}, "loss.min_kept=-1"),
        ({"hard_threshold": 0.7, "reduction": "sum"}, "loss.reduction=mean"),
        ({"hard": 0.0}, "loss.hard=0.0"),
        ({"hard": 1.5}, "loss.hard=1.5"),
        ({"hard": 0.5, "reduction": "sum"}, "loss.reduction=mean"),
        ({"shrink": {"seg": 0}}, "loss.shrink.seg=0"),
        ({"nearest": True, "shrink": {"seg": 8}}, "loss.nearest=true .* leave loss.shrink out"),
        ({"shrink": {"sge": 8}}, "Did you mean `seg`"),
    ],
)
def test_values_that_make_no_sense_are_refused(values, words):
    with pytest.raises(UserError, match=words):
        PixelCrossEntropy(**values)


def test_class_weights_by_name_are_those_in_the_order_of_the_classes():
    """Classes that are not mentioned weigh 1; the order of the mapping plays no part."""
    names = ["road", "car", "sky", "traffic light"]
    loss = PixelCrossEntropy(class_weights={"traffic light": 4.0, "road": 0.5})
    loss.name_classes(names)
    other = PixelCrossEntropy(class_weights=[0.5, 1.0, 1.0, 4.0])
    assert torch.equal(loss.table, other.table)
    assert loss.num_classes == 4
    loss.name_classes(names[::-1])
    assert loss.table[:4].tolist() == [4, 1, 1, 0.5]
    with pytest.raises(
        UserError, match=r"class_weights: there is no class `raod`\. Did you mean `road"
    ):
        PixelCrossEntropy(class_weights={"raod": 1.0}).name_classes(names)


def test_class_weights_of_the_wrong_length_are_refused():
    logits, batch = random_case()
    with pytest.raises(UserError, match="3 numbers for 5 classes"):
        PixelCrossEntropy(class_weights=[1.0, 2.0, 3.0])({"logits": logits}, batch)


def test_an_ignored_pixel_is_never_hard():
    scores = torch.tensor([-9.0, -1.0, -2.0, -3.0])
    valid = torch.tensor([False, True, True, True])
    assert hardest(scores, valid, 0.34).tolist() == [False, False, False, True]
    assert hardest(scores, valid, 0.01).tolist() == [False, False, False, True]  # at least one
    assert hardest(scores, valid, 1.0).tolist() == valid.tolist()
    assert hardest(scores, torch.zeros(4, dtype=torch.bool), 0.5).any().item() is False
