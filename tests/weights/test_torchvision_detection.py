"""torchvision's Mask R-CNN comes in whole: its detections are torchvision's own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detector_files import brought_in, photo
from torch import Tensor, nn
from torchvision.models.detection import maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms

from segtrain.errors import UserError
from segtrain.inference.maps import batch_of
from segtrain.structures.labels import BUILT_IN
from segtrain.weights import torchvision_detection
from segtrain.weights.content import Weights
from segtrain.weights.families import recognise
from segtrain.weights.family import translate


def few(outputs: int = 91, depth: tuple[int, ...] = (3, 4, 6, 3)) -> dict[str, Tensor]:
    """The names of a file with tensors that are small where their size says nothing."""
    values = {"backbone.body.conv1.weight": torch.zeros(64, 3, 7, 7)}
    for stage, blocks in enumerate(depth, 1):
        for block in range(blocks):
            for conv in (1, 2, 3):
                values[f"backbone.body.layer{stage}.{block}.conv{conv}.weight"] = torch.zeros(
                    64, 64
                )
    values["rpn.head.cls_logits.weight"] = torch.zeros(3, 8)
    rows = torch.arange(outputs, dtype=torch.float32)
    for name, each in {
        "box_predictor.cls_score": 1,
        "box_predictor.bbox_pred": 4,
        "mask_predictor.mask_fcn_logits": 1,
    }.items():
        values[f"roi_heads.{name}.weight"] = rows.repeat_interleave(each)[:, None]
    return values


def refusal(values: dict[str, Tensor]) -> str:
    with pytest.raises(UserError) as error:
        recognise("mask.pth", Weights("torch", values, {}))
    return str(error.value)


def test_rows_of_cocos_official_ids_become_its_80_classes() -> None:
    published = torchvision_detection.MASK_RCNN.read(few())
    state = translate(published)
    entries = json.loads((BUILT_IN / "coco.json").read_text())["classes"]
    official = [0, *(entry["id"] for entry in sorted(entries, key=lambda entry: entry["train"]))]
    assert published.num_classes == 80
    assert state["stages.box_head.predict.score.weight"][:, 0].tolist() == official
    assert state["stages.mask_head.predict.2.weight"][:, 0].tolist() == official
    boxes = state["stages.box_head.predict.box.weight"].reshape(81, 4)
    assert torch.equal(boxes, torch.tensor(official).float()[:, None].expand(81, 4))


def test_a_users_own_classes_stay_as_they_are() -> None:
    published = torchvision_detection.MASK_RCNN.read(few(outputs=3))
    rows = translate(published)["stages.box_head.predict.score.weight"]
    assert published.num_classes == 2
    assert rows[:, 0].tolist() == [0, 1, 2]


def test_what_is_no_mask_rcnn_of_ours_is_refused_in_a_line() -> None:
    mixed = few() | {"roi_heads.box_head.0.0.weight": torch.zeros(1)}
    assert "neither version of torchvision's Mask R-CNN" in refusal(mixed)
    faster = {key: value for key, value in few().items() if "mask" not in key}
    assert refusal(faster) == (
        "mask.pth: weights of torchvision detection, but it draws no masks (Faster R-CNN): our "
        "detectors do"
    )
    assert "3, 4, 7, 3 blocks in the four stages" in refusal(few(depth=(3, 4, 7, 3)))


def randomised(model: nn.Module) -> nn.Module:
    """Give a detector weights with which it is sure of many objects, and norms that matter."""
    g = torch.Generator().manual_seed(0)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        with torch.no_grad():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5, generator=g)
            elif name.endswith("running_mean") or name.endswith("bias"):
                value.normal_(0, 0.05, generator=g)
            elif re.search(r"(bn3|downsample\.1)\.weight", name):
                value.uniform_(0.1, 0.3, generator=g)  # sums of many blocks stay small
            elif name.endswith("weight") and value.ndim == 1:  # of all other norms
                value.uniform_(0.5, 1.5, generator=g)
            elif name.endswith("weight"):
                value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=g)
    score = model.roi_heads.box_predictor.cls_score
    score.weight.data *= 3
    score.bias.data[list(torchvision_detection.NO_CLASS)] = -50  # as trained: never seen
    model.rpn.head.bbox_pred.weight.data *= 0.1
    model.roi_heads.box_predictor.bbox_pred.weight.data *= 0.2
    return model


def renamed_before_013(key: str) -> str:
    """The names of the published file, which is older than some of torchvision's layers."""
    key = re.sub(r"(inner_blocks|layer_blocks)\.(\d)\.0\.", r"\1.\2.", key)
    key = re.sub(
        r"mask_head\.(\d)\.0\.", lambda layer: f"mask_head.mask_fcn{int(layer[1]) + 1}.", key
    )
    return key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "rename"),
    [
        (maskrcnn_resnet50_fpn, str),
        (maskrcnn_resnet50_fpn, renamed_before_013),
        (maskrcnn_resnet50_fpn_v2, str),
    ],
)
def test_its_detections_are_torchvisions(
    tmp_path: Path, build: Callable[..., nn.Module], rename: Callable[[str], str]
) -> None:
    size = (192, 256)
    theirs = build(weights=None, weights_backbone=None, num_classes=91)
    if build is maskrcnn_resnet50_fpn:
        overwrite_eps(theirs, 0.0)  # as where torchvision loads its published weights
    randomised(theirs).eval()
    path = tmp_path / "maskrcnn.pth"
    torch.save({rename(key): value for key, value in theirs.state_dict().items()}, path)

    ours = brought_in(path)
    batch = batch_of(photo(*size)[None], size)
    with torch.inference_mode():
        pixels = ours.preprocess(batch.images, batch.sizes)
        features = theirs.backbone(pixels)
        proposals, _ = theirs.rpn(ImageList(pixels, [size]), features)
        expected = theirs.roi_heads(features, proposals, [size])[0][0]

        features = ours.features(batch)
        found = most_probable(*ours.detect(features, batch.sizes)[0])
        masks = ours.masks(features, [found["boxes"]], found["labels"])
    assert len(expected["boxes"]) == len(found["boxes"]) == 100
    assert found["labels"].unique().numel() > 3
    # Rounding swaps neighbours of nearly one score.
    official = torch.tensor(torchvision_detection.COCO_ROWS)[1:][found["labels"]]
    distance = (expected["boxes"][:, None] - found["boxes"]).abs().amax(2)
    distance += 1000 * (expected["labels"][:, None] != official)
    farthest, same = distance.min(1)
    assert same.unique().numel() == 100
    assert farthest.max() < 1e-2  # pixels
    torch.testing.assert_close(found["scores"][same], expected["scores"], atol=1e-4, rtol=0)
    torch.testing.assert_close(masks[same], expected["masks"][:, 0], atol=1e-4, rtol=0)


def most_probable(probabilities: Tensor, boxes: Tensor) -> dict[str, Tensor]:
    """The 100 detections that torchvision keeps, of probabilities (n, K) and boxes (n, K, 4)."""
    rows, labels = torch.nonzero(probabilities > 0.05, as_tuple=True)
    scores = probabilities[rows, labels]
    chosen = boxes[rows, labels]
    kept = batched_nms(chosen, scores, labels, 0.5)[:100]
    return {"boxes": chosen[kept], "labels": labels[kept], "scores": scores[kept]}
