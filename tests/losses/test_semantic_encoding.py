"""The semantic encoding loss: the sets of labels by hand, the loss against torch's."""

import math

import pytest
import torch
from torch.nn import functional as F

from segtrain.engine.objective import global_counts, objective
from segtrain.errors import UserError
from segtrain.losses.semantic_encoding import SemanticEncodingLoss, classes_present
from segtrain.runtime.distributed import World
from segtrain.structures.instances import Instances
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


def test_a_class_is_present_when_one_pixel_is_and_ignored_pixels_are_no_class():
    target = torch.tensor(
        [[[0, 0, 2], [2, 2, 255]], [[255, 255, 255], [255, 255, 255]], [[1, 255, 1], [1, 1, 3]]]
    )
    assert classes_present(target, 4).tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 1]]


def test_with_59_classes_the_ignored_background_is_not_the_last_class():
    # PASCAL-Context with 59 outputs: labels 0 to 58, background is 255.
    target = torch.full((1, 4, 4), 255)
    target[0, 0, 0] = 58
    target[0, 3, 3] = 0
    present = classes_present(target, 59)
    assert present.shape == (1, 59)
    assert present[0].nonzero().flatten().tolist() == [0, 58]


def test_another_ignored_label_is_left_out_too():
    assert classes_present(torch.tensor([[[0, 1]], [[0, 0]]]), 3, ignore_index=0).tolist() == [
        [0, 1, 0],
        [0, 0, 0],
    ]


def test_a_case_computed_by_hand():
    # One image of class 0; the scores say 3 : 1 for class 0 (right), even for 1, 1 : 1 for 2: (ln
    # 4/3 + 2 ln 2) / 3.
    loss = SemanticEncodingLoss()
    batch = batch_of([[[0, 0], [255, 0]]])
    term = loss({"se": torch.tensor([[math.log(3), 0.0, 0.0]])}, batch)["se"]
    assert term.sum.item() == pytest.approx((math.log(4 / 3) + 2 * math.log(2)) / 3, rel=1e-6)
    assert loss.weights == {"se": 0.2}
    assert loss.counts(batch) == {"se": 1}
    assert term.count is None


def random_case(images=4, classes=5):
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(images, classes, generator=g, requires_grad=True)
    targets = torch.randint(0, classes, (images, 2, 2), generator=g)
    targets[torch.rand(images, 2, 2, generator=g) < 0.3] = 255
    return scores, batch_of(targets)


def test_sum_over_count_is_torchs_mean_binary_cross_entropy_of_sets_of_labels():
    scores, batch = random_case()
    truth = torch.tensor(
        [[float(k in set(t.flatten().tolist())) for k in range(5)] for t in batch.masks]
    )
    wanted = F.binary_cross_entropy_with_logits(scores, truth)
    loss = SemanticEncodingLoss({"se": 1.0})
    ours = loss({"se": scores}, batch)["se"].sum / loss.counts(batch)["se"]
    torch.testing.assert_close(ours, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(ours, scores), torch.autograd.grad(wanted, scores)
    )


def test_the_objective_is_the_same_however_the_images_are_split():
    scores, batch = random_case()
    loss = SemanticEncodingLoss({"se": 0.2})
    world = World(0, 1, torch.device("cpu"))

    def total(pieces):
        micros = [
            Batch(batch.images[p], batch.sizes[p], batch.ids[p], masks=batch.masks[p])
            for p in pieces
        ]
        counts = global_counts(loss, micros, world)
        terms = [loss({"se": scores[p]}, micro) for p, micro in zip(pieces, micros, strict=True)]
        return sum(objective(term, counts, loss.weights, world, len(micros))[0] for term in terms)

    torch.testing.assert_close(total([slice(0, 1), slice(1, 4)]), total([slice(0, 4)]))


def test_a_small_class_weighs_as_much_as_a_large_one():
    loss = SemanticEncodingLoss()
    scores = torch.tensor([[0.3, -2.0, 1.0]])
    one = torch.zeros(1, 8, 8)
    most = torch.zeros(1, 8, 8)
    one[0, 0, 0] = 1
    most[0, :, 1:] = 1
    assert (
        loss({"se": scores}, batch_of(one))["se"].sum
        == loss({"se": scores}, batch_of(most))["se"].sum
    )


def test_each_term_reads_the_output_of_its_name():
    scores, batch = random_case()
    loss = SemanticEncodingLoss({"se": 0.2, "se_aux": 0.1})
    terms = loss({"se": scores, "se_aux": scores * 0}, batch)
    assert (
        terms["se_aux"].sum.item()
        == pytest.approx(4 * math.log(2), rel=1e-6)
        != terms["se"].sum.item()
    )
    assert set(loss.counts(batch)) == {"se", "se_aux"}


def test_a_missing_output_is_an_error_in_training_and_left_out_in_evaluation():
    scores, batch = random_case()
    loss = SemanticEncodingLoss({"se": 0.2, "se_aux": 0.2})
    with pytest.raises(UserError, match=r"`se_aux` \(it gives logits, se\).*model\.se_aux=true"):
        loss({"logits": scores, "se": scores}, batch)
    assert loss.eval()({"logits": scores}, batch) == {}


def test_the_loss_is_fp32_inside_autocast():
    scores, batch = random_case()
    exact = SemanticEncodingLoss()({"se": scores.bfloat16().float()}, batch)["se"].sum
    with torch.autocast("cpu", torch.bfloat16):
        inside = SemanticEncodingLoss()({"se": scores.bfloat16()}, batch)["se"].sum
    assert inside.dtype == torch.float32
    assert inside.item() == exact.item()


def test_maps_of_scores_and_instances_are_refused():
    scores, batch = random_case()
    with pytest.raises(UserError, match="one score per image and class"):
        SemanticEncodingLoss()({"se": scores[:, :, None, None]}, batch)
    none = Instances(
        torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2, 2, dtype=torch.bool)
    )
    with pytest.raises(UserError, match="needs label maps"):
        SemanticEncodingLoss().counts(
            Batch(batch.images, batch.sizes, batch.ids, instances=[none] * 4)
        )
