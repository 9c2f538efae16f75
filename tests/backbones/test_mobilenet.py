"""The MobileNet-v2 trunk: parity with torchvision, strides and dilations, what is refused."""

import instance_zoo
import pytest
import torch
import torchvision
import zoo
from torch import nn

from segtrain.backbones.mobilenet import MobileNetV2, from_torchvision
from segtrain.backbones.staged import freeze_parts, make_staged
from segtrain.errors import UserError
from segtrain.models.deeplabv3 import DeepLabV3

STRIDES = [16, *(pytest.param(stride, marks=pytest.mark.slow) for stride in (8, 32))]
# The last block of each stride, by torchvision's numbers.
ENDS = (3, 6, 13, 17)


def on_meta(*args, **kwargs):
    with torch.device("meta"):
        return make_staged("mobilenet_v2", *args, **kwargs)


def used():
    """torchvision's network with statistics as after training, so that no norm is an identity."""
    torch.manual_seed(0)
    net = torchvision.models.mobilenet_v2().eval()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.05, 0.2)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.2)
    return net


def atrous(net, output_stride):
    """TensorFlow's rule on torchvision's network: a stride that is denied dilates what follows."""
    stride, dilation = 2, 1
    for block in net.features[1:18]:
        depthwise = next(m for m in block.modules() if isinstance(m, nn.Conv2d) and m.groups > 1)
        depthwise.dilation = depthwise.padding = (dilation, dilation)
        if depthwise.stride == (2, 2) and stride == output_stride:
            depthwise.stride = (1, 1)
            dilation *= 2
        elif depthwise.stride == (2, 2):
            stride *= 2
    return net


@pytest.mark.parametrize("output_stride", STRIDES)
def test_outputs_equal_torchvisions_with_tensorflows_rule_for_dilations(output_stride):
    theirs = used()
    ours = MobileNetV2("mobilenet_v2", output_stride).eval()
    ours.load_state_dict(from_torchvision(theirs.state_dict()))  # strict: every name is there
    atrous(theirs, output_stride)
    x = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        expected = []
        y = x
        for number, block in enumerate(theirs.features[:18]):
            y = block(y)
            if number in ENDS:
                expected.append(y)
        features = ours(x)
    assert ours.channels == [feature.shape[1] for feature in expected]
    for feature, there in zip(features, expected, strict=True):
        assert there.std() > 0.1
        torch.testing.assert_close(feature, there, rtol=1e-5, atol=1e-5)


def test_the_stride_of_block_14_becomes_the_dilation_of_15_to_17():
    blocks = on_meta(16).stages[3]
    convs = [block.conv[1][0] for block in blocks]
    assert [conv.stride for conv in convs] == [(1, 1)] * 4
    assert [conv.dilation for conv in convs] == [(1, 1), (2, 2), (2, 2), (2, 2)]
    assert [block.adds for block in blocks] == [False, True, True, False]


@pytest.mark.parametrize("output_stride", STRIDES)
def test_maps_have_the_channels_and_strides_they_announce(output_stride):
    net = on_meta(output_stride)
    features = net(torch.empty(1, 3, 97, 65, device="meta"))
    assert net.channels == [24, 32, 96, 320]
    assert net.strides == [4, 8, min(16, output_stride), output_stride]
    for feature, channels, stride in zip(features, net.channels, net.strides, strict=True):
        assert feature.shape == (1, channels, -(-97 // stride), -(-65 // stride))


def test_it_has_the_parameters_of_torchvisions_but_for_its_classifier():
    # 3,504,872 of the whole; 1281 x 1000 of the classifier, 1280 x (320 + 2) before it
    count = sum(p.numel() for p in on_meta().parameters())
    assert count == 3_504_872 - 1281 * 1000 - 1280 * 322


def test_freeze_takes_the_stem_and_the_first_stages():
    net = on_meta()
    freeze_parts(net, None, "imagenet")
    frozen = [name for name, parameter in net.named_parameters() if not parameter.requires_grad]
    assert {name[:8] for name in frozen} == {"stem.0.0", "stem.0.1", "stem.1.c", "stages.0"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_stride": 4}, "output_stride=4.*8, 16 and 32"),
        ({"weights": "coco"}, "weights=coco.*imagenet.*null"),
        ({"weights": "imagenet", "norm": "group"}, "weights=imagenet needs norm=batch"),
        ({"multi_grid": [1, 2]}, "multi_grid=.*belongs to a ResNet.*null"),
        ({"style": "caffe"}, "style=caffe belongs to a ResNet"),
    ],
)
def test_what_it_does_not_offer_is_refused_with_the_way_out(arguments, message):
    with pytest.raises(UserError, match=message):
        on_meta(**arguments)


def test_a_name_that_nobody_offers_is_refused_with_the_nearest_one():
    with pytest.raises(UserError, match=r"mobilenet_v3.*mobilenet_v2.*Known: resnet18"):
        make_staged("mobilenet_v3")


@pytest.mark.parametrize("name", ["deeplabv3plus", "semantic_fpn", "deeplabv3"])
@pytest.mark.slow
def test_semantic_systems_train_on_it_at_odd_sizes(name):
    model = zoo.build(name, backbone="mobilenet_v2").train()
    batch = zoo.batch_of(47, 65)
    logits = model(batch)["logits"]
    assert logits.shape == (2, zoo.CLASSES, 47, 65)
    logits.square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.backbone.parameters() if p.dim() > 1)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mask_rcnn", {}),
        ("mask_rcnn", {"trunk": "c4"}),
        ("panet", {}),
        ("fpn", {}),
        ("box_rpn", {}),
    ],
)
@pytest.mark.slow
def test_instance_systems_train_on_it(name, changes):
    model = instance_zoo.build(name, backbone="mobilenet_v2", **changes).train()
    batch = instance_zoo.batch_of()
    output = model(batch)
    assert set(model.outputs) <= set(output)
    sum(output[key].float().square().sum() for key in model.outputs).backward()
    stem = model.backbone.stem[0][0].weight
    assert stem.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "cascade"}, "variant=cascade copies a ResNet's blocks.*aspp"),
        ({"multi_grid": [1, 2, 4]}, "multi_grid=.*belongs to a ResNet"),
        ({"pattern": "uniform"}, "pattern=uniform belongs to a ResNet"),
    ],
)
def test_deeplabv3_refuses_what_only_a_resnet_has(arguments, message):
    with pytest.raises(UserError, match=message), torch.device("meta"):
        DeepLabV3(5, "mobilenet_v2", **arguments)


def test_relu6_bounds_what_stands_behind_the_backbone():
    with torch.device("meta"):
        free = DeepLabV3(5, "mobilenet_v2", dilations=[])
        bounded = DeepLabV3(5, "mobilenet_v2", dilations=[], relu6=True)
    assert [type(m) for m in free.context.modules()].count(nn.ReLU) == 3
    assert [type(m) for m in bounded.context.modules()].count(nn.ReLU6) == 3
    assert not any(type(m) is nn.ReLU for m in bounded.modules())
    assert free.context.branches[0][0].weight.shape == (256, 320, 1, 1)
    assert free.context.project[0][0].weight.shape == (256, 512, 1, 1)
