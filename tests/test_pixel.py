import math

import pytest
import torch
from torch.nn import functional as F

from segtrain.contracts import Batch
from segtrain.errors import UserError
from segtrain.losses.pixel import PixelCrossEntropy


def batch_of(targets):
    targets = torch.as_tensor(targets, dtype=torch.uint8)
    images = torch.zeros(len(targets), 3, *targets.shape[1:], dtype=torch.uint8)
    return Batch(images, torch.tensor([targets.shape[1:]] * len(targets)), targets, ["x"] * len(targets))


def random_case(classes=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, 7, 6, generator=g, requires_grad=True)
    targets = torch.randint(0, classes, (2, 7, 6), generator=g)
    targets[torch.rand(2, 7, 6, generator=g) < 0.3] = 255
    return logits, batch_of(targets)


def test_a_case_computed_by_hand():
    # One pixel with odds 1 : 3 labelled 1 costs ln(4/3), one with even odds costs ln 2, one is ignored.
    logits = torch.tensor([[[0.0, 0.0, 9.0]], [[math.log(3), 0.0, -9.0]]]).unsqueeze(0)
    batch = batch_of([[[1, 0, 255]]])
    loss = PixelCrossEntropy()
    assert loss({"logits": logits}, batch)["seg"].sum.item() == pytest.approx(math.log(4 / 3) + math.log(2), rel=1e-6)
    assert loss.counts(batch)["seg"].item() == 2


@pytest.mark.parametrize("class_weights", [None, [0.5, 1.0, 2.0, 0.0, 4.0]])
def test_sum_over_count_equals_torchs_cross_entropy_with_its_gradient(class_weights):
    logits, batch = random_case()
    loss = PixelCrossEntropy(class_weights=class_weights)
    ours = loss({"logits": logits}, batch)["seg"].sum / loss.counts(batch)["seg"]
    weight = None if class_weights is None else torch.tensor(class_weights)
    theirs = F.cross_entropy(logits, batch.targets.long(), weight, ignore_index=255)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits))


def test_ignored_pixels_have_exactly_zero_gradient_and_others_have_not():
    logits, batch = random_case()
    PixelCrossEntropy()({"logits": logits}, batch)["seg"].sum.backward()
    pixelwise = logits.grad.abs().sum(1)
    assert (pixelwise[batch.targets == 255] == 0).all()
    assert (pixelwise[batch.targets != 255] > 0).all()


def test_a_batch_without_a_valid_pixel_gives_zero_and_zero_gradient():
    logits, batch = random_case()
    batch.targets.fill_(255)
    loss = PixelCrossEntropy()
    total = loss({"logits": logits}, batch)["seg"].sum
    total.backward()
    assert total.item() == 0 and loss.counts(batch)["seg"].item() == 0
    assert (logits.grad == 0).all()


def test_an_ignore_index_below_the_number_of_classes_is_ignored_too():
    logits, batch = random_case()
    batch.targets.clamp_(max=4)
    loss = PixelCrossEntropy(ignore_index=0)
    theirs = F.cross_entropy(logits, batch.targets.long(), ignore_index=0)
    torch.testing.assert_close(loss({"logits": logits}, batch)["seg"].sum / loss.counts(batch)["seg"], theirs)


def test_perfect_is_better_than_random():
    logits, batch = random_case()
    perfect = 20 * F.one_hot(batch.targets.long().clamp(max=4), 5).permute(0, 3, 1, 2).float()
    loss = PixelCrossEntropy()
    assert loss({"logits": perfect}, batch)["seg"].sum < 1e-3 < 10 < loss({"logits": logits}, batch)["seg"].sum


def test_the_loss_is_fp32_inside_autocast_and_for_bf16_logits():
    logits, batch = random_case()
    exact = PixelCrossEntropy()({"logits": logits.bfloat16().float()}, batch)["seg"].sum
    with torch.autocast("cpu", torch.bfloat16):
        inside = PixelCrossEntropy()({"logits": logits.bfloat16()}, batch)["seg"].sum
    assert inside.dtype == torch.float32 and inside.item() == exact.item()


def test_each_term_reads_its_own_output():
    logits, batch = random_case()
    other, _ = random_case(seed=1)
    loss = PixelCrossEntropy({"seg": 1.0, "aux": 0.4})
    terms = loss({"logits": logits, "aux": other}, batch)
    assert loss.weights == {"seg": 1.0, "aux": 0.4}
    assert terms["aux"].sum == PixelCrossEntropy()({"logits": other}, batch)["seg"].sum != terms["seg"].sum
    assert terms["seg"].count is None and set(loss.counts(batch)) == {"seg", "aux"}


def test_a_missing_aux_output_is_an_error_in_training_and_left_out_in_evaluation():
    logits, batch = random_case()
    loss = PixelCrossEntropy({"seg": 1.0, "aux": 0.4})
    with pytest.raises(UserError, match=r"model\.aux=true"):
        loss({"logits": logits}, batch)
    assert set(loss.eval()({"logits": logits}, batch)) == {"seg"}


def test_an_unknown_term_is_refused_with_a_suggestion():
    with pytest.raises(UserError, match="`axu`. Did you mean `aux`"):
        PixelCrossEntropy({"seg": 1.0, "axu": 0.4})


def test_class_weights_of_the_wrong_length_are_refused():
    logits, batch = random_case()
    with pytest.raises(UserError, match="3 numbers for 5 classes"):
        PixelCrossEntropy(class_weights=[1.0, 2.0, 3.0])({"logits": logits}, batch)
