"""The multi-task loss: each term by hand, and images that there is nothing to learn from.

`python tests/losses/test_multitask.py FILE` writes the gradient of this rank's share of two images.
"""

import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from segtrain.engine.objective import objective
from segtrain.errors import UserError
from segtrain.layers.roi import RoIPool
from segtrain.layers.rpn import RegionProposals
from segtrain.layers.two_stage import TwoStage
from segtrain.losses.multitask import MultiTask
from segtrain.models.mask_rcnn import BoxHead, MaskHead, MLPMaskHead
from segtrain.runtime import distributed
from segtrain.structures.instances import Instances
from segtrain.structures.samples import Batch

NAMES = ("rpn_class", "rpn_box", "class", "box", "mask")
TERMS = dict.fromkeys(NAMES, 1.0)


def instances(*rows, crowd=False, dropped=0):
    """Rectangles with full masks in 64 x 64 pixels, of class 1."""
    masks = torch.zeros(len(rows), 64, 64, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, rows, strict=True):
        mask[y1:y2, x1:x2] = True
    found = torch.tensor(rows, dtype=torch.float32).view(-1, 4)
    crowds = torch.full((len(rows),), crowd)
    return Instances(
        found, torch.ones(len(rows), dtype=torch.int64), masks, crowds, dropped=dropped
    )


def batch(*targets):
    """Grey images, each of another brightness."""
    images = torch.stack(
        [torch.full((3, 64, 64), 40 + 50 * i, dtype=torch.uint8) for i in range(len(targets))]
    )
    return Batch(
        images,
        torch.tensor([[64, 64]] * len(targets)),
        [""] * len(targets),
        instances=list(targets),
    )


def only(name, **output):
    """(sum, count) of one term."""
    term = MultiTask({name: 1.0}).eval()(output, batch(instances()))[name]
    return term.sum.item(), term.count.item()


BINARY = torch.tensor([0.0, 0, 2]), torch.tensor([1.0, 0, 1])
FOUR = torch.zeros(1, 4)


@pytest.mark.parametrize("name", ["rpn_class", "object"])
def test_binary_terms_by_hand(name):
    total, count = only(name, **{name: BINARY[0], f"{name}_target": BINARY[1]})
    assert total == pytest.approx(2 * math.log(2) + math.log(1 + math.exp(-2)))
    assert count == 3


def test_smooth_l1_of_anchors_is_a_parabola_below_a_ninth_and_counts_all_anchors():
    off = torch.tensor([[0, 1 / 18, 1, -2]])  # 0, 9/2 x 1/18^2 = 1/72, 1 - 1/18, 2 - 1/18
    total, count = only("rpn_box", rpn_box=off, rpn_box_target=FOUR, rpn_class_target=BINARY[1])
    assert total == pytest.approx(1 / 72 + 3 - 1 / 9)
    assert count == 3


def test_smooth_l1_of_regions_is_a_parabola_below_one_and_counts_all_regions():
    off = torch.tensor([[0.5, 1, 2, 0]])  # 1/8, 1/2, 3/2, 0
    given = {"box": off, "box_target": FOUR, "class_target": torch.zeros(2)}
    assert only("box", **given) == (2.125, 2)
    term = MultiTask({"box": 1.0}, box_beta=1 / 9)(given, batch(instances()))["box"]
    assert term.sum.item() == pytest.approx(3.5 - 3 / 18)
    lines = MultiTask({"box": 1.0}, box_beta=0.0)(given, batch(instances()))["box"]
    assert lines.sum.item() == 3.5  # L1, as in detectron2


def test_a_beta_below_0_is_refused():
    with pytest.raises(UserError, match=r"loss.box_beta=-1: .*0 is L1"):
        MultiTask({"box": 1.0}, box_beta=-1)


def test_cross_entropy_of_classes_by_hand():
    total, count = only(
        "class", **{"class": torch.zeros(2, 3), "class_target": torch.tensor([0, 2])}
    )
    assert total == pytest.approx(2 * math.log(3))
    assert count == 2
    certain = torch.tensor([[0.0, 0, 20]])
    assert only("class", **{"class": certain, "class_target": torch.tensor([2])})[0] < 1e-6


def test_masks_by_hand_each_for_itself_and_competing():
    cells = torch.tensor([[[1.0, 0], [0, 1]]])
    total, count = only("mask", mask=torch.zeros(1, 2, 2), mask_target=cells)
    assert total == pytest.approx(4 * math.log(2))
    assert count == 4
    total, count = only("mask", mask=torch.zeros(1, 3, 2, 2), mask_target=2 * cells.long())
    assert total == pytest.approx(4 * math.log(3))
    assert count == 4


def test_bf16_outputs_are_summed_in_float32():
    term = MultiTask({"rpn_class": 1.0})(
        {"rpn_class": torch.zeros(1000).bfloat16(), "rpn_class_target": torch.ones(1000)},
        batch(instances()),
    )["rpn_class"]
    assert term.sum.dtype == torch.float32
    assert term.sum.item() == pytest.approx(1000 * math.log(2), rel=1e-5)


def test_the_objective_weighs_each_sum_over_its_count():
    output = {
        "rpn_class": BINARY[0],
        "rpn_class_target": BINARY[1],
        "rpn_box": FOUR + 1,
        "rpn_box_target": FOUR,
    }
    criterion = MultiTask({"rpn_class": 2.0, "rpn_box": 0.5})
    images = batch(instances())
    total, parts = objective(
        criterion(output, images), {}, criterion.weights, distributed.World(), 1
    )
    each = [(2 * math.log(2) + math.log(1 + math.exp(-2))) / 3, 4 * (1 - 1 / 18) / 3]
    assert [parts["rpn_class"].item(), parts["rpn_box"].item()] == pytest.approx(each)
    assert total.item() == pytest.approx(2 * each[0] + 0.5 * each[1])


def test_dropped_objects_are_counted_in_training_alone():
    output = {"rpn_class": BINARY[0], "rpn_class_target": BINARY[1]}
    criterion = MultiTask({"rpn_class": 1.0})
    images = batch(instances(dropped=3), instances(dropped=1))
    terms = criterion.train()(output, images)
    assert terms["dropped"].sum.item() == 4
    assert terms["dropped"].count is None
    total, parts = objective(
        terms, criterion.counts(images), criterion.weights, distributed.World(), 1
    )
    assert parts["dropped"] == 4
    assert total == parts["rpn_class"]
    assert list(criterion.eval()(output, images)) == ["rpn_class"]


def test_an_unknown_term_and_one_that_the_model_does_not_give_are_named():
    with pytest.raises(
        UserError,
        match=r"^loss\.weights\.masks: no such term\. Did you mean `mask`\? Known: rpn_class, ",
    ):
        MultiTask({"masks": 1.0})
    with pytest.raises(
        UserError,
        match=r"^loss\.weights\.mask: the model gives no such output; it gives rpn_class$",
    ):
        MultiTask({"rpn_class": 1.0, "mask": 1.0})({"rpn_class": BINARY[0]}, batch(instances()))
    with pytest.raises(UserError, match=r"it gives none of them$"):
        MultiTask({"object": 1.0})({"logits": BINARY[0]}, batch(instances()))
    maps = Batch(
        torch.zeros(1, 3, 8, 8),
        torch.tensor([[8, 8]]),
        ["x"],
        masks=torch.zeros(1, 8, 8, dtype=torch.uint8),
    )
    with pytest.raises(
        UserError,
        match=r"needs objects, but this data set gives label maps; .*dataset=coco_instance",
    ):
        MultiTask({"object": 1.0})({}, maps)


# A whole two-stage network, of 4 channels


class Tiny(nn.Module):
    """One convolution of stride 8, anchors of 16 pixels, Mask R-CNN's heads with 4 channels.

    All candidates are sampled.
    """

    def __init__(self, mask_head="fcn", masks="sigmoid"):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(3, 4, 8, stride=8)
        rpn = RegionProposals(4, [8], [[16]], before=(50, 50), after=(50, 50), samples=1000)
        pool = RoIPool(2, [8])
        mask = MLPMaskHead(pool, 4, 3, 4) if mask_head == "mlp" else MaskHead(pool, 4, 3)
        self.stages = TwoStage(
            rpn, BoxHead(RoIPool(2, [8]), 4, 3, 8), mask, regions=1000, masks=masks
        )

    def forward(self, images):
        return self.stages([self.body(images.images.float() / 255)], images)


def gradient(model, images, world=distributed.World()):  # noqa: B008
    """All gradients of one step as the trainer makes them, flat."""
    criterion = MultiTask(TERMS)
    network = world.wrap(model)
    total, parts = objective(criterion(network(images), images), {}, criterion.weights, world, 1)
    assert total.isfinite()
    (total * world.size).backward()
    assert all(p.grad is not None for p in model.parameters())
    return torch.cat([p.grad.flatten() for p in model.parameters()]), parts


OBJECT = instances((10, 12, 30, 28), (40, 30, 56, 50))


@pytest.mark.parametrize(
    ("mask_head", "masks"), [("fcn", "sigmoid"), ("fcn", "softmax"), ("mlp", "sigmoid")]
)
def test_an_image_without_objects_reaches_every_parameter(mask_head, masks):
    found, parts = gradient(Tiny(mask_head, masks), batch(instances()))
    assert found.isfinite().all()
    assert found.any()
    assert parts["rpn_class"] > 0
    assert parts["class"] > 0
    assert [parts[name].item() for name in ("rpn_box", "box", "mask")] == [0, 0, 0]


def test_an_image_that_is_all_crowd_teaches_nothing_and_reaches_every_parameter():
    found, parts = gradient(Tiny(), batch(instances((-99, -99, 199, 199), crowd=True)))
    assert not found.any()
    assert not any(part.item() for part in parts.values())


def test_objects_give_every_term_a_loss():
    found, parts = gradient(Tiny(), batch(OBJECT))
    assert found.isfinite().all()
    assert all(parts[name] > 0 for name in NAMES)


def test_inside_autocast_the_loss_reads_float32():
    with torch.autocast("cpu", torch.bfloat16):
        output = Tiny()(batch(OBJECT, instances()))
    kinds = {name: values.dtype for name, values in output.items()}
    assert kinds.pop("class_target") == torch.int64
    assert set(kinds.values()) == {torch.float32}


def rank(folder):
    """Rank 0 has the objects, rank 1 the empty image; one process has both."""
    images = [OBJECT, instances()]
    torch.set_num_threads(1)
    with distributed.join("cpu", 60) as world:
        both = batch(*images)
        mine = slice(world.rank, world.rank + 1) if world.size > 1 else slice(None)
        share = Batch(both.images[mine], both.sizes[mine], both.ids[mine], instances=images[mine])
        found, _ = gradient(Tiny(), share, world)
        torch.save(found, folder / f"{world.rank}.pt")


@pytest.mark.slow
def test_a_rank_without_objects_changes_no_gradient(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        group = {
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(probe.getsockname()[1]),
        }
    env = {**os.environ, **group, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path)]
    ranks = [
        subprocess.Popen(command, env={**env, "RANK": str(i), "LOCAL_RANK": str(i)})
        for i in range(2)
    ]
    try:
        assert [process.wait(300) for process in ranks] == [0, 0]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    alone, _ = gradient(Tiny(), batch(OBJECT, instances()))
    for i in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{i}.pt"), alone, rtol=1e-4, atol=1e-7)


if __name__ == "__main__":
    rank(Path(sys.argv[1]))
