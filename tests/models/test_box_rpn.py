"""The region proposal network by itself: sizes, what the loss reads, boxes of one image."""

import pytest
import torch

from segtrain.errors import UserError
from segtrain.inference.maps import batch_of
from segtrain.inference.mask_proposals import BoxProposals
from segtrain.losses.multitask import MultiTask
from segtrain.metrics.coco import ProposalEvaluator
from segtrain.models.box_rpn import BoxRPN
from segtrain.structures.instances import Instances
from segtrain.structures.samples import Batch

LOSS = MultiTask({"rpn_class": 1.0, "rpn_box": 1.0})
BOXES = [[8.0, 16.0, 40.0, 48.0], [64.0, 0.0, 96.0, 64.0]]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return BoxRPN(1, "resnet18", norm="group", head_norm="group", width=32, proposals=50)


def target(boxes=BOXES):
    table = torch.tensor(boxes).reshape(-1, 4)
    none = torch.zeros(len(table), dtype=torch.bool)
    return Instances(
        table,
        torch.zeros(len(table)).long(),
        torch.zeros(len(table), 64, 96, dtype=torch.bool),
        none,
    )


def batch(*targets):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(
        0, 256, (len(targets), 3, 64, 96), generator=generator, dtype=torch.uint8
    )
    return Batch(
        images,
        torch.tensor([[64, 96]] * len(targets)),
        [str(i) for i in range(len(targets))],
        instances=list(targets),
    )


def total(model, shown):
    terms = LOSS(model(shown), shown)
    return sum(
        terms[name].sum / terms[name].count.clamp(min=1) for name in ("rpn_class", "rpn_box")
    )


def test_the_number_of_parameters_follows_from_the_layers():
    with torch.device("meta"):
        network = BoxRPN(80)
    lateral = sum((256 * 2**i + 1) * 256 for i in range(4))
    output = 4 * (9 * 256 + 1) * 256
    head = (9 * 256 + 1) * 256 + 257 * (3 + 12)
    assert (
        sum(p.numel() for p in network.parameters())
        == 23_508_032 + lateral + output + head
        == 27_446_351
    )


def test_anchors_of_an_image_are_sampled_and_the_loss_reads_them(model):
    output = model(batch(target(), target(BOXES[:1])))
    assert 256 < len(output["rpn_class"]) <= 2 * 256  # of 1,536 anchors an image
    assert output["rpn_box"].shape == output["rpn_box_target"].shape
    # each object has at least its best anchor
    assert len(output["rpn_box"]) == output["rpn_class_target"].sum() >= 3


def test_every_parameter_gets_a_gradient_and_an_image_without_objects_is_learned_from(model):
    total(model, batch(target(), target([]))).backward()
    assert [
        name
        for name, p in model.named_parameters()
        if p.grad is None or not p.grad.isfinite().all()
    ] == []
    alone = model(batch(target([])))
    assert not alone["rpn_class_target"].any()
    assert alone["rpn_box"].shape == (0, 4)
    assert len(alone["rpn_class"]) == 256


def test_a_batch_without_instances_gives_nothing(model):
    images = torch.zeros(1, 3, 64, 96, dtype=torch.uint8)
    assert model(Batch(images, torch.tensor([[64, 96]]), ["a"], masks=torch.zeros(1, 64, 96))) == {}


def test_proposals_lie_in_the_image_and_the_best_come_first(model):
    image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    ((boxes, scores),) = model.eval().propose(batch_of(image[None], (50, 70)))
    assert 0 < len(boxes) <= 50
    assert bool((scores[:-1] >= scores[1:]).all())
    assert bool((boxes >= 0).all())
    assert bool((boxes[:, 2:] <= torch.tensor([70, 50])).all())
    assert bool((boxes[:, 2:] > boxes[:, :2]).all())


def test_without_deltas_proposals_are_the_anchors_in_the_images_own_pixels(model):
    """Those of 512 pixels, cut to the image, are the whole of it; it is seen at half its size."""
    for layer in (model.rpn.head.cls_logits, model.rpn.head.bbox_pred):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    found = BoxProposals(model.eval(), shorter=64)(torch.zeros(3, 128, 128, dtype=torch.uint8))
    assert found.masks is None
    assert [0.0, 0.0, 128.0, 128.0] in found.boxes.tolist()
    assert found.areas.max() == 128 * 128
    assert set(found.labels.tolist()) == {0}


@pytest.mark.slow
def test_thirty_steps_on_one_image_find_its_boxes(model):
    shown = batch(target())
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(30):
        optimizer.zero_grad()
        total(model, shown).backward()
        optimizer.step()
    metric = ProposalEvaluator(["object"], "bbox")
    metric.update("0", BoxProposals(model.eval(), shorter=None)(shown.images[0]), target())
    assert metric.compute()["bbox/AR@10"] > 0.5


def test_no_proposals_is_a_mistake():
    with pytest.raises(UserError, match=r"model.proposals=0: at least 1"):
        BoxRPN(1, "resnet18", proposals=0)
