"""MobileNet-v2, and TensorFlow's DeepLabv3 on it, come in as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from release import Release, upsampled
from torch import Tensor
from torch.nn import functional as F

from segtrain.backbones.staged import make_staged
from segtrain.checkpoints import match
from segtrain.errors import UserError
from segtrain.models.deeplabv3 import DeepLabV3
from segtrain.weights import families
from segtrain.weights.content import Weights

# (expansion, width, stride) of blocks 1 to 17 (table 2 of the paper).
BLOCKS = [
    (1, 16, 1),
    *[(6, 24, 2), (6, 24, 1)],
    *[(6, 32, 2), (6, 32, 1), (6, 32, 1)],
    *[(6, 64, 2), (6, 64, 1), (6, 64, 1), (6, 64, 1)],
    *[(6, 96, 1), (6, 96, 1), (6, 96, 1)],
    *[(6, 160, 2), (6, 160, 1), (6, 160, 1), (6, 320, 1)],
]


def relu6(x: Tensor) -> Tensor:
    return x.clamp(0, 6)


def framed(image: Tensor) -> Tensor:
    """The image within one pixel of 127.5, normalised as torchvision does."""
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)
    return (F.pad(image, (1, 1, 1, 1), value=0.5) - mean) / std


def trunk(file: Release, image: Tensor, stride14: int) -> Tensor:
    """torchvision's features.0 to 17, with block 14 at a stride and what follows dilated."""
    if stride14 == 1:  # TensorFlow pads with what is 0 to it
        x = file.conv(framed(image), "features.0.0", 32, 3, 2, padding=0)
    else:
        x = file.conv(image, "features.0.0", 32, 3, 2)
    x = relu6(file.norm(x, "features.0.1"))
    for number, (expansion, width, stride) in enumerate(BLOCKS, 1):
        name = f"features.{number}.conv"
        stride = stride14 if number == 14 else stride
        dilation = 2 // stride14 if number > 14 else 1
        y, inner, first = x, x.shape[1] * expansion, 0
        if expansion > 1:
            y = relu6(file.norm(file.conv(y, f"{name}.0.0", inner), f"{name}.0.1"))
            first = 1
        y = file.conv(y, f"{name}.{first}.0", inner, 3, stride, dilation, groups=inner)
        y = relu6(file.norm(y, f"{name}.{first}.1"))
        y = file.conv(y, f"{name}.{first + 1}", width)
        y = file.norm(y, f"{name}.{first + 2}")
        x = x + y if y.shape == x.shape else y
    return x


def classifier(file: Release, image: Tensor) -> Tensor:
    x = trunk(file, image, 2)
    y = relu6(file.norm(file.conv(x, "features.18.0", 1280), "features.18.1"))
    file.linear(y.mean((2, 3)), "classifier.1", 1000)
    return x


def deeplabv3(file: Release, image: Tensor) -> Tensor:
    x = trunk(file, image, 1)
    mean = relu6(file.conv(x.mean((2, 3), keepdim=True), "image_pooling", 256, bias=True))
    near = relu6(file.conv(x, "aspp0", 256, bias=True))
    y = torch.cat([mean.expand_as(near), near], 1)
    y = relu6(file.conv(y, "concat_projection", 256, bias=True))
    return upsampled(file.conv(y, "logits", 21, bias=True), image, align_corners=True)


def imported(file: Release, folder: Path) -> families.Recognised:
    path = folder / "weights.pth"
    torch.save(file.tensors, path)
    return families.read_published(path)


def close(ours: Tensor, theirs: Tensor) -> bool:
    assert theirs.std() > 0.05  # of an output that is all but constant, equality says nothing
    return float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-4


def test_the_classifier_is_a_backbone(tmp_path: Path) -> None:
    file = Release()
    image = file.image(65, 33)
    expected = classifier(file, image)
    found = imported(file, tmp_path)
    assert (found.family.name, found.published.model) == ("torchvision's MobileNet-v2", "")
    network = make_staged(found.published.arguments["name"]).eval()
    state = {key.removeprefix("backbone."): value for key, value in found.state.items()}
    match.load_exactly(network, state, tmp_path)
    left_out = {key.split(".")[0] + "." + key.split(".")[1] for key in found.left_out}
    assert left_out == {"features.18", "classifier.1"}
    with torch.inference_mode():
        assert close(network(image)[-1], expected)


@pytest.mark.parametrize("norm", ["frozen", pytest.param("batch", marks=pytest.mark.slow)])
def test_deeplabv3_of_tensorflow_is_ours(norm: str, tmp_path: Path) -> None:
    file = Release()
    image = file.image(65, 33).sigmoid()  # pixels, 0 to 1
    expected = deeplabv3(file, image)
    found = imported(file, tmp_path)
    published = found.published
    assert published.model == "deeplabv3_mobilenet"
    assert (published.num_classes, published.classes) == (21, "voc")
    arguments = {"backbone": "mobilenet_v2", "dilations": [], **published.arguments}
    model = DeepLabV3(21, norm=norm, **arguments).eval()
    match.load_exactly(model, found.state, tmp_path)
    with torch.inference_mode():
        assert close(model(2 * image - 1)["logits"], expected)


def test_other_widths_are_refused_in_a_line() -> None:
    file = Release(empty=True)
    classifier(file, file.image(33, 33))
    file.tensors["features.0.0.weight"] = torch.zeros(48, 3, 3, 3)
    with pytest.raises(UserError, match="torchvision's MobileNet-v2, but it is not of the full"):
        families.recognise("f.pth", Weights("torch", file.tensors, {}))
