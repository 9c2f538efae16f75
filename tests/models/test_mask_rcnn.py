"""Mask R-CNN: parameters and parity with torchvision's.

Its parts by hand are in tests/layers/test_regions.py.
"""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models.detection import maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2

from segtrain.datasets.coco import CocoInstances
from segtrain.errors import UserError
from segtrain.inference.instances import InstanceSegmentation
from segtrain.inference.maps import rescaled
from segtrain.losses.multitask import MultiTask
from segtrain.models.mask_rcnn import MaskRCNN
from segtrain.structures import run_lengths
from segtrain.structures.instances import Instances
from segtrain.structures.samples import Batch

DATA = os.environ.get("SEGTRAIN_DATA")
TERMS = {"rpn_class": 1.0, "rpn_box": 1.0, "class": 1.0, "box": 1.0, "mask": 1.0}
NAMES = [  # torchvision's keys -> ours, version 2's where they differ before version 1's
    (r"backbone\.fpn\.inner_blocks\.(\d)\.1\.", r"pyramid.lateral.\1.1."),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.1\.", r"pyramid.output.\1.1."),
    (r"roi_heads\.box_head\.(\d)\.0\.", lambda m: f"stages.box_head.convs.{3 * int(m[1])}."),
    (r"roi_heads\.box_head\.(\d)\.1\.", lambda m: f"stages.box_head.convs.{3 * int(m[1]) + 1}."),
    (r"roi_heads\.box_head\.5\.", "stages.box_head.fc."),
    (r"roi_heads\.mask_head\.(\d)\.1\.", lambda m: f"stages.mask_head.convs.{3 * int(m[1]) + 1}."),
    (r"backbone\.body\.conv1\.", "backbone.stem.0."),
    (r"backbone\.body\.bn1\.", "backbone.stem.1."),
    (r"backbone\.body\.layer(\d)\.", lambda m: f"backbone.stages.{int(m[1]) - 1}."),
    (r"backbone\.fpn\.inner_blocks\.(\d)\.0\.", r"pyramid.lateral.\1.0."),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.0\.", r"pyramid.output.\1.0."),
    (r"rpn\.head\.", "stages.rpn.head."),
    (r"roi_heads\.box_head\.", "stages.box_head."),
    (r"roi_heads\.box_predictor\.cls_score\.", "stages.box_head.predict.score."),
    (r"roi_heads\.box_predictor\.bbox_pred\.", "stages.box_head.predict.box."),
    (r"roi_heads\.mask_head\.(\d)\.0\.", lambda m: f"stages.mask_head.convs.{3 * int(m[1])}."),
    (r"roi_heads\.mask_predictor\.conv5_mask\.", "stages.mask_head.predict.0."),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.", "stages.mask_head.predict.2."),
]


def renamed(key):
    for pattern, ours in NAMES:
        if re.match(pattern, key):
            return re.sub(pattern, ours, key)
    raise KeyError(key)


def photos(count, shorter):
    """Sample images without crowd regions, resized, with their instances: [(pixels (3, H, W) uint8,
    Instances)].
    """
    images = CocoInstances(str(Path(DATA) / "coco"), "train2017")
    found = []
    for index in range(len(images)):
        target = images.instances(index)
        if len(target.boxes) < 3 or target.crowd.any():
            continue
        pixels = torch.from_numpy(images[index].image).permute(2, 0, 1)
        factor = shorter / min(pixels.shape[1:])
        # multiples of 64, so that nothing is padded: torchvision also learns from anchors in the
        # padding
        size = (
            max(64, round(pixels.shape[1] * factor / 64) * 64),
            max(64, round(pixels.shape[2] * factor / 64) * 64),
        )
        masks = torch.nn.functional.interpolate(
            target.masks[None].float(), size, mode="nearest-exact"
        )[0].bool()
        keep = masks.flatten(1).any(1)
        scale = torch.tensor([size[1] / pixels.shape[2], size[0] / pixels.shape[1]] * 2)
        boxes = target.boxes[keep] * scale
        found.append(
            (
                rescaled(pixels, size),
                Instances(boxes, target.labels[keep], masks[keep], target.crowd[keep]),
            )
        )
        if len(found) == count:
            return found
    raise AssertionError("too few images")


@pytest.fixture(scope="module")
def pair():
    """torchvision's Mask R-CNN with seeded weights that say something, and ours with the same."""
    return with_weights(maskrcnn_resnet50_fpn, MaskRCNN(90, roi="legacy"))


def with_weights(build, ours):
    """Return torchvision's model with seeded weights that say something, and `ours` with them."""
    if not DATA:
        pytest.skip("needs SEGTRAIN_DATA, a folder of sample data sets")
    torch.manual_seed(0)
    theirs = build(weights=None, weights_backbone=None, num_classes=91)
    # else the anchors of P6 stand 61 pixels apart instead of 64
    theirs.transform.size_divisible = 64
    # Statistics of real images, so that activations have the size of a trained network's.
    for layer in theirs.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None
    with torch.no_grad():
        pixels = [image.float() / 255 for image, _ in photos(4, 160)]
        as_is(theirs, pixels[0].shape[1:])
        theirs.backbone.train()(theirs.transform(pixels)[0].tensors)
        theirs.roi_heads.box_predictor.cls_score.weight.mul_(4)  # else all classes have 1/91
        # else boxes are thinner than a pixel
        theirs.roi_heads.box_predictor.bbox_pred.weight.mul_(0.1)
        theirs.rpn.head.cls_logits.weight.mul_(10)
        theirs.rpn.head.bbox_pred.weight.mul_(0.1)
        # masks that lean to full or to empty, and noise
        theirs.roi_heads.mask_predictor.mask_fcn_logits.bias.normal_()
    state = {
        key: value
        for key, value in theirs.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    missing, unexpected = ours.load_state_dict(
        {renamed(k): v for k, v in state.items()}, strict=False
    )
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    ours.divisor = 64
    return theirs, ours


def as_is(model, size):
    """torchvision's own resizing switched off for images of `size` (height, width)."""
    model.transform.min_size = (min(size),)
    model.transform.max_size = max(size)


def partners(corners, got, expected):
    """Place in torchvision's list of each of our detections, by label, score and box.

    Near-equal scores may change places.
    """
    boxes = expected["boxes"].numpy()
    scores = expected["scores"].numpy()
    tolerance = 1e-4 * max(got.size)
    order = []
    for box, score, label in zip(corners, got.scores, got.labels, strict=True):
        near = (np.abs(boxes - box).max(1) <= tolerance) & (np.abs(scores - score) <= 1e-4)
        order += np.flatnonzero(near & (expected["labels"].numpy() == label + 1))[:1].tolist()
    return order


def small_masks(model, pixels, boxes, labels):
    """torchvision's (N, 28, 28) probabilities in boxes (N, 4), before they are pasted."""
    images, _ = model.transform([pixels.float() / 255])
    pooled = model.roi_heads.mask_roi_pool(
        model.backbone(images.tensors), [boxes], images.image_sizes
    )
    logits = model.roi_heads.mask_predictor(model.roi_heads.mask_head(pooled))
    return logits[torch.arange(len(labels)), labels].sigmoid()


def compare_detections(pair, images):
    """(detections, all equal to torchvision's; share of all masks' pixels that are equal, share of
    those in the boxes).
    """
    theirs, ours = (model.eval() for model in pair)
    predictor = InstanceSegmentation(ours, shorter=None, paste="expanded")
    counts = np.zeros(5)
    for pixels, _ in images:
        as_is(theirs, pixels.shape[1:])
        with torch.no_grad():
            expected = theirs([pixels.float() / 255])[0]
            cells = small_masks(theirs, pixels, expected["boxes"], expected["labels"])
            batch = Batch(pixels[None], torch.tensor([pixels.shape[1:]]), ["x"])
            got = ours.masks(ours.features(batch), [expected["boxes"]], expected["labels"] - 1)
        torch.testing.assert_close(got, cells, rtol=0, atol=1e-3)
        got = predictor(pixels)
        corners = np.concatenate([got.boxes[:, :2], got.boxes[:, :2] + got.boxes[:, 2:]], 1)
        order = partners(corners, got, expected)
        assert sorted(order) == list(range(len(expected["scores"]))), "a detection has no partner"
        same = run_lengths.decode(got.masks, got.size) == (
            expected["masks"][order, 0].numpy() >= 0.5
        )
        for mask, (left, top, right, bottom) in zip(same, corners.round().astype(int), strict=True):
            inside = mask[top:bottom, left:right]
            counts += [1, mask.sum(), mask.size, inside.sum(), inside.size]
    return int(counts[0]), counts[1] / counts[2], counts[3] / counts[4]


@pytest.mark.slow
def test_ten_images_give_torchvisions_boxes_labels_scores_and_masks(pair):
    found, everywhere, in_boxes = compare_detections(pair, photos(10, 480))
    print(
        f"{found} detections; equal pixels: {everywhere:.5f} of all, "
        f"{in_boxes:.4f} of those in the boxes"
    )
    assert found >= 500
    assert in_boxes >= 0.999


def test_two_small_images_give_torchvisions_boxes_labels_scores_and_masks(pair):
    found, everywhere, in_boxes = compare_detections(pair, photos(2, 128))
    assert found >= 50
    assert everywhere >= 0.9999
    assert in_boxes >= 0.999


@pytest.mark.slow
def test_version_2_gives_torchvisions_boxes_labels_scores_and_masks():
    """Two convolutions in the RPN, four with batch norm in the box head, norms everywhere."""
    ours = MaskRCNN(90, roi="legacy", head_norm="batch", box_head="heavy", rpn_convs=2)
    pair = with_weights(maskrcnn_resnet50_fpn_v2, ours)
    found, everywhere, in_boxes = compare_detections(pair, photos(1, 128))
    assert found >= 20
    assert everywhere >= 0.9999
    assert in_boxes >= 0.999


def losses(pair, images):
    """The five losses of torchvision's model and of ours, all candidates sampled."""
    theirs, ours = (model.train() for model in pair)
    theirs.backbone.eval()  # as if its batch norm were frozen
    every = 10**6  # nothing is left to chance: both sample all candidates
    theirs.rpn.fg_bg_sampler.batch_size_per_image = (
        theirs.roi_heads.fg_bg_sampler.batch_size_per_image
    ) = every
    ours.stages.rpn.samples = ours.stages.regions = every
    theirs.rpn._pre_nms_top_n = theirs.rpn._post_nms_top_n = {"training": 300, "testing": 1000}
    ours.stages.rpn.before = ours.stages.rpn.after = (300, 1000)
    criterion = MultiTask(TERMS, box_beta=1 / 9)
    rows = []
    for pixels, target in images:
        as_is(theirs, pixels.shape[1:])
        labelled = {
            "boxes": target.boxes,
            "labels": target.labels + 1,
            "masks": target.masks.to(torch.uint8),
        }
        with torch.no_grad():
            expected = theirs([pixels.float() / 255], [labelled])
            batch = Batch(pixels[None], torch.tensor([pixels.shape[1:]]), ["x"], instances=[target])
            terms = criterion(ours(batch), batch)
        names = (
            "loss_objectness",
            "loss_rpn_box_reg",
            "loss_classifier",
            "loss_box_reg",
            "loss_mask",
        )
        got = [float(terms[name].sum / terms[name].count) for name in TERMS]
        rows.append((got, [float(expected[name]) for name in names]))
    return np.array(rows)


def test_the_five_losses_of_the_same_regions_are_torchvisions(pair):
    got, expected = losses(pair, photos(2, 160)).transpose(1, 0, 2)
    assert (expected > 0.001).all()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("backbone", "count"),
    [
        ("resnet50", 44400693),
        ("resnet101", 63392821),
        ("resnext101_64x4d", 102298933),
        ("resnext101_32x8d", 107634997),
    ],
)
def test_parameters_are_those_of_the_networks_of_the_paper(backbone, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in MaskRCNN(80, backbone).parameters()) == count


def test_parameters_of_version_2_are_those_that_torchvision_counts():
    with torch.device("meta"):
        model = MaskRCNN(90, norm="batch", head_norm="batch", box_head="heavy", rpn_convs=2)
    assert sum(p.numel() for p in model.parameters()) == 46_359_409


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"box_head": "heave"}, "box_head=heave is unknown. Did you mean `heavy`"),
        ({"box_head": "heavy", "trunk": "c4"}, "box_head=heavy belongs to trunk=fpn"),
        ({"rpn_convs": 0}, r"model\.rpn_convs=0: 3x3 of the RPN, at least 1"),
        ({"style": "msar"}, "style=msar is unknown. Did you mean `msra`"),
        ({"style": "msra", "weights": "imagenet"}, "do not fit a msra ResNet"),
    ],
)
def test_what_is_not_offered_is_refused_in_one_line(arguments, words):
    with torch.device("meta"), pytest.raises(UserError, match=words):
        MaskRCNN(2, **{"backbone": "resnet50", **arguments})
