"""What users of instance systems get wrong is said in one line that names the setting and the way
out.
"""

import pytest
import torch
from instance_zoo import batch_of, build

from segtrain.engine.parts import check_judged
from segtrain.errors import UserError
from segtrain.inference.instances import InstanceSegmentation
from segtrain.inference.mask_proposals import MaskProposals
from segtrain.inference.semantic import Semantic
from segtrain.losses.multitask import MultiTask
from segtrain.metrics.coco import CocoEvaluator, ProposalEvaluator


@pytest.mark.parametrize("name", ["mask_rcnn", "panet"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"freeze": 6}, r"model\.freeze=6: 0 for nothing, 1 for the stem, up to 5"),
        ({"freeze": -1}, r"model\.freeze=-1: "),
        (
            {"anchors": (0, 16, 32, 64, 128)},
            r"model\.anchors=\[0, 16, 32, 64, 128\]: sides in pixels",
        ),
        ({"proposals": (100, 0)}, r"model\.proposals=\[100, 0\]: proposals an image, at least 1"),
        ({"regions": 3}, r"model\.regions=3: of which 0\.25 may be objects, which is none"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(name, arguments, words):
    with torch.device("meta"), pytest.raises(UserError, match=words):
        build(name, **arguments)


def test_an_output_without_a_weight_is_named():
    model = build("mask_rcnn").train()
    batch = batch_of()
    with pytest.raises(
        UserError, match=r"the model's output `class` has no weight; add loss\.weights\.class=1"
    ):
        MultiTask({"rpn_class": 1.0, "rpn_box": 1.0})(model(batch), batch)


def test_proposals_are_not_judged_by_class():
    with torch.device("meta"):
        proposals = MaskProposals(build("fpn"))
        detections = InstanceSegmentation(build("mask_rcnn"))
    classes = CocoEvaluator(["a", "b"])
    blind = ProposalEvaluator(["object"])
    with pytest.raises(
        UserError, match="proposes objects without a class; take dataset=coco_proposal"
    ):
        check_judged(proposals, classes)
    check_judged(proposals, blind)
    check_judged(detections, classes)
    check_judged(detections, blind)
    check_judged(proposals, None)


@pytest.mark.parametrize("name", ["mask_rcnn", "fpn"])
def test_a_semantic_protocol_says_what_objects_need(name):
    with (
        torch.device("meta"),
        pytest.raises(UserError, match=r"gives no label map; take inference=instances"),
    ):
        Semantic(build(name))


def test_a_map_of_one_cell_trains_at_the_smallest_width():
    model = build("mask_rcnn").train()
    batch = batch_of(32, 32, boxes=([(4, 4, 28, 28)],))
    assert all(value.isfinite().all() for value in model(batch).values())
