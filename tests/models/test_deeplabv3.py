"""DeepLab v3: published sizes, parity with torchvision's, dilations of cascade and ASPP."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import segmentation

from segtrain.errors import UserError
from segtrain.layers.aspp import ASPP, aspp_dilations
from segtrain.models.deeplabv3 import DeepLabV3, more_of

CASCADE = {"variant": "cascade"}
TORCHVISION = {"head": "torchvision", "output_stride": 8}


def on_meta(*args, **kwargs):
    with torch.device("meta"):
        return DeepLabV3(*args, **kwargs)


def size(model):
    return sum(p.numel() for p in model.parameters())


def dilated(model):
    """Name -> rate of every dilated convolution."""
    convs = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert all(c.padding == (c.dilation[0] * (c.kernel_size[0] // 2),) * 2 for c in convs.values())
    return {name: conv.dilation[0] for name, conv in convs.items() if conv.dilation[0] > 1}


def stage_rates(model):
    """Rates of the 3x3 of block4, block5 ... of a cascade on bottlenecks."""
    return [
        [unit.conv2.dilation[0] for unit in stage]
        for stage in (model.backbone.stages[3], *model.context)
    ]


@pytest.mark.parametrize(
    ("backbone", "arguments", "count"),
    [
        ("resnet50", {}, 39_048_533),
        ("resnet101", {}, 58_040_661),
        ("resnet50", TORCHVISION | {"aux": True}, 42_004_074),
        ("resnet101", TORCHVISION | {"aux": True}, 60_996_202),
        ("resnet50", TORCHVISION, 39_638_869),
        ("resnet101", TORCHVISION, 58_630_997),
    ],
)
def test_parameter_counts_are_the_published_systems(backbone, arguments, count):
    assert size(on_meta(21, backbone, **arguments)) == count


@pytest.mark.parametrize(
    ("backbone", "body"), [("resnet50", 23_508_032), ("resnet101", 42_500_160)]
)
def test_a_block_of_the_cascade_adds_three_bottlenecks_with_plain_shortcuts(backbone, body):
    bottleneck = (2048 * 512 + 9 * 512 * 512 + 512 * 2048) + 2 * (512 + 512 + 2048)
    for blocks in (4, 5, 6, 7):
        model = on_meta(21, backbone, blocks=blocks, **CASCADE)
        assert size(model) == body + (blocks - 4) * 3 * bottleneck + 21 * 2049


@pytest.mark.parametrize(
    ("output_stride", "conv4", "conv5", "branches"),
    [
        (32, 1, [1, 2, 4], [3, 6, 9]),
        (16, 1, [2, 4, 8], [6, 12, 18]),
        (8, 2, [4, 8, 16], [12, 24, 36]),
    ],
)
def test_every_rate_follows_the_output_stride(output_stride, conv4, conv5, branches):
    model = on_meta(21, "resnet50", output_stride=output_stride)
    expected = {f"backbone.stages.2.{block}.conv2": conv4 for block in range(6)}
    expected |= {f"backbone.stages.3.{block}.conv2": rate for block, rate in enumerate(conv5)}
    expected |= {f"context.branches.{branch}.0": rate for branch, rate in enumerate(branches, 1)}
    assert dilated(model) == {name: rate for name, rate in expected.items() if rate > 1}
    # input pixels, the same at every output stride
    assert [rate * output_stride for rate in branches] == [
        96,
        192,
        288,
    ]


def test_torchvisions_rates_grow_from_a_stages_second_block_on():
    rates = dilated(on_meta(21, "resnet50", **TORCHVISION))
    assert [rates.get(f"backbone.stages.2.{block}.conv2", 1) for block in range(6)] == [
        1,
        2,
        2,
        2,
        2,
        2,
    ]
    assert [rates.get(f"backbone.stages.3.{block}.conv2", 1) for block in range(3)] == [2, 4, 4]
    assert [rates[f"context.branches.{branch}.0"] for branch in (1, 2, 3)] == [12, 24, 36]


def test_the_rates_of_aspp_are_given_for_output_stride_16():
    model = on_meta(21, "resnet18", output_stride=8, dilations=[6, 12, 18, 24], image_pooling=False)
    assert [branch[0].dilation[0] for branch in model.context.branches[1:]] == [12, 24, 36, 48]
    assert aspp_dilations(16, [4]) == [4]
    assert aspp_dilations(32, [1]) == [1]


@pytest.mark.parametrize(("rate", "side"), [(2, 9), (6, 15)])
def test_a_branch_sees_nine_positions_a_rate_apart_the_image_branch_all(rate, side):
    torch.manual_seed(0)
    aspp = ASPP(3, [rate], width=4).eval()
    x = torch.randn(1, 3, side, side, requires_grad=True)
    middle = side // 2

    def seen(module):
        (gradient,) = torch.autograd.grad(module[:2](x)[..., middle, middle].sum(), x)
        return {tuple(place) for place in gradient[0].abs().sum(0).nonzero().tolist()}

    around = (middle - rate, middle, middle + rate)
    assert seen(aspp.branches[1]) == {(row, column) for row in around for column in around}
    assert seen(aspp.branches[0]) == {(middle, middle)}
    (everywhere,) = torch.autograd.grad(aspp.pooling(x)[..., middle, middle].sum(), x)
    assert torch.allclose(everywhere, everywhere[:, :, :1, :1])
    assert everywhere.any()


@pytest.mark.parametrize(
    ("output_stride", "expected"),
    [
        (8, [[4, 8, 4], [8, 16, 8], [16, 32, 16], [32, 64, 32]]),
        (16, [[2, 4, 2], [4, 8, 4], [8, 16, 8], [16, 32, 16]]),
        (32, [[1, 2, 1], [2, 4, 2], [4, 8, 4], [8, 16, 8]]),
        (128, [[1, 2, 1], [1, 2, 1], [1, 2, 1], [2, 4, 2]]),
    ],
)
def test_a_cascades_rates_double_from_block_to_block_times_the_multi_grid(output_stride, expected):
    assert stage_rates(on_meta(21, "resnet50", output_stride=output_stride, **CASCADE)) == expected
    plain = on_meta(21, "resnet50", output_stride=output_stride, multi_grid=[1, 1, 1], **CASCADE)
    assert stage_rates(plain) == [[rates[0]] * 3 for rates in expected]
    assert set(dilated(plain).values()) | {1} == {
        1,
        *(stage[0] for stage in expected),
        2 if output_stride == 8 else 1,
    }


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
@pytest.mark.parametrize("output_stride", [8, 16, 32, 64, 128, 256])
def test_a_cascade_reaches_every_output_stride_of_the_paper(backbone, output_stride):
    model = on_meta(5, backbone, output_stride=output_stride, **CASCADE)
    features = model.backbone(torch.empty(1, 3, 513, 385, device="meta"))[-1]
    assert model.context(features).shape[-2:] == (
        512 // output_stride + 1,
        -(-385 // output_stride),
    )
    assert model.eval()(torch.empty(1, 3, 33, 51, device="meta"))["logits"].shape == (1, 5, 33, 51)


def test_but_for_its_first_3x3_a_dense_block_computes_the_strided_blocks_features():
    torch.manual_seed(0)
    stage = DeepLabV3(5, "resnet18", **CASCADE).backbone.stages[3]
    strided, dense = (
        more_of(stage, 5, output_stride, [1], "batch").eval() for output_stride in (64, 32)
    )
    dense.load_state_dict(strided.state_dict())
    assert [c.dilation[0] for c in dense.modules() if isinstance(c, nn.Conv2d)] == [2, 2, 2, 2]
    dense[0].conv1.dilation = dense[0].conv1.padding = (1, 1)
    x = torch.randn(1, 512, 9, 11)
    with torch.no_grad():
        torch.testing.assert_close(dense(x)[:, :, ::2, ::2], strided(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "strides"), [({}, (8, 16, 32)), (CASCADE, (8, 16, 32, 64, 128, 256))]
)
def test_one_checkpoint_serves_every_output_stride(arguments, strides):
    shapes = [
        {
            k: v.shape
            for k, v in on_meta(21, "resnet50", output_stride=s, **arguments).state_dict().items()
        }
        for s in strides
    ]
    assert all(shape == shapes[0] for shape in shapes)


def test_the_null_multi_grid_is_each_variants_best():
    def units(**arguments):
        return [
            unit.conv2.dilation[0]
            for unit in on_meta(21, "resnet50", **arguments).backbone.stages[3]
        ]

    assert units() == [2, 4, 8]
    assert units(variant="cascade") == [2, 4, 2]
    assert units(head="torchvision") == [1, 2, 2]
    assert units(multi_grid=[1, 2, 1]) == [2, 4, 2]


def torchvisions(name, ours):
    """torchvision's network of that name with our weights."""
    theirs = getattr(segmentation, f"deeplabv3_{name}")(
        weights=None, weights_backbone=None, num_classes=5, aux_loss=True
    )
    body = theirs.backbone
    aspp = theirs.classifier[0]
    aux = theirs.aux_classifier
    pairs = [(body.conv1, ours.backbone.stem[0]), (body.bn1, ours.backbone.stem[1])]
    pairs += [(body[f"layer{i + 1}"], stage) for i, stage in enumerate(ours.backbone.stages)]
    for place in (0, 1):  # convolution and norm
        pairs += [
            (other[place], branch[place])
            for other, branch in zip(aspp.convs, ours.context.branches, strict=False)
        ]
        pairs += [(aspp.convs[4][place + 1], ours.context.pooling.project[place])]
        pairs += [(aspp.project[place], ours.context.project[0][place])]
        pairs += [
            (theirs.classifier[place + 1], ours.refine[place]),
            (aux[place], ours.aux[0][place]),
        ]
    pairs += [(theirs.classifier[4], ours.classifier), (aux[4], ours.aux[2])]
    for other, mine in pairs:
        other.load_state_dict(mine.state_dict())
    assert len(theirs.state_dict()) == sum(len(other.state_dict()) for other, _ in pairs)
    return theirs


@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_torchvisions_head_gives_torchvisions_logits_in_training_and_evaluation(name):
    torch.manual_seed(0)
    ours = DeepLabV3(5, name, aux=True, **TORCHVISION)
    x = torch.randn(2, 3, 65, 49)
    with torch.no_grad():
        for parameter in (*ours.classifier.parameters(), *ours.aux[2].parameters()):
            parameter.normal_(std=0.1)  # logits near 1
        theirs = torchvisions(name, ours)
        dropouts = [
            [m for m in net.modules() if isinstance(m, nn.Dropout)] for net in (ours, theirs)
        ]
        assert [[d.p for d in found] for found in dropouts] == [[0.5, 0.1], [0.5, 0.1]]
        for dropout in (*dropouts[0], *dropouts[1]):
            dropout.p = 0.0
        mine = ours.train()(x)
        other = theirs.train()(x)
        torch.testing.assert_close(mine["logits"], other["out"], rtol=0, atol=1e-4)
        torch.testing.assert_close(mine["aux"], other["aux"], rtol=0, atol=1e-4)
        assert mine["logits"].std() > 0.1
        assert mine["aux"].std() > 0.1
        # with the statistics that training left
        mine = ours.eval()(x)
        other = theirs.eval()(x)
        torch.testing.assert_close(mine["logits"], other["out"], rtol=0, atol=1e-4)


def test_the_papers_head_has_no_second_3x3_and_its_dropout_is_a_tenth():
    model = on_meta(21, "resnet50")
    assert isinstance(model.refine, nn.Identity)
    assert model.aux is None
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.1]
    assert model.context.project[0][0].weight.shape == (256, 1280, 1, 1)
    assert on_meta(21, "resnet50", image_pooling=False).context.project[0][0].weight.shape == (
        256,
        1024,
        1,
        1,
    )


def test_the_papers_logits_align_corners():
    torch.manual_seed(0)
    model = DeepLabV3(5, "resnet18").eval()
    x = torch.randn(1, 3, 33, 49)
    with torch.no_grad():
        small = model.classifier(model.context(model.backbone(x)[-1]))
        assert small.shape == (1, 5, 3, 4)
        expected = F.interpolate(small, (33, 49), mode="bilinear", align_corners=True)
        torch.testing.assert_close(model(x)["logits"], expected)
    # 16k + 1 pixels: every feature lies on a pixel
    torch.testing.assert_close(expected[..., ::16, ::16], small)


@pytest.mark.parametrize("arguments", [{}, TORCHVISION, CASCADE])
def test_the_auxiliary_output_exists_in_training_only(arguments):
    model = on_meta(5, "resnet18", aux=True, **arguments)
    x = torch.empty(2, 3, 33, 51, device="meta")
    assert {k: v.shape for k, v in model(x).items()} == {
        "logits": (2, 5, 33, 51),
        "aux": (2, 5, 33, 51),
    }
    assert list(model.eval()(x)) == ["logits"]
    assert list(on_meta(5, "resnet18", **arguments)(x)) == ["logits"]


@pytest.mark.parametrize(
    ("arguments", "least"),
    [
        ({}, 2),
        ({"norm": "group"}, 1),
        ({"norm": "frozen"}, 1),
        ({"image_pooling": False}, 1),
        (CASCADE, 1),
    ],
)
def test_the_image_branch_needs_two_images_to_train_with_batch_norm(arguments, least):
    model = on_meta(5, "resnet18", **arguments)
    x = torch.empty(1, 3, 33, 33, device="meta")
    assert model.min_train_batch == least
    if least == 2:
        with pytest.raises(
            UserError, match=r"image pooling branch .* batch_size to at least 2 per process"
        ):
            model(x)
        assert nn.SyncBatchNorm.convert_sync_batchnorm(model).min_train_batch == 1
    else:
        assert model(x)["logits"].shape == (1, 5, 33, 33)


@pytest.mark.parametrize("arguments", [{}, CASCADE | {"blocks": 5}])
def test_a_second_stage_of_training_freezes_every_norm_at_output_stride_8(arguments):
    torch.manual_seed(0)
    first = DeepLabV3(5, "resnet18", **arguments)
    x = torch.randn(2, 3, 33, 33)
    with torch.no_grad():
        first.train()(x)  # moves the statistics away from 0 and 1
    second = DeepLabV3(5, "resnet18", norm="frozen", output_stride=8, **arguments).train()
    second.load_state_dict(first.state_dict())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in second.modules())
    for dropout in (m for m in second.modules() if isinstance(m, nn.Dropout)):
        dropout.p = 0.0
    same = DeepLabV3(5, "resnet18", output_stride=8, **arguments).eval()
    same.load_state_dict(first.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(second(x)["logits"], same(x)["logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arguments", [{"aux": True}, TORCHVISION, CASCADE])
def test_momentum_reaches_every_batch_norm(arguments):
    norms = [
        m
        for m in on_meta(5, "resnet18", momentum=0.0003, **arguments).modules()
        if isinstance(m, nn.BatchNorm2d)
    ]
    assert len(norms) > 20
    assert {m.momentum for m in norms} == {0.0003}


def test_the_backbone_may_have_a_momentum_of_its_own():
    model = on_meta(5, "resnet18", momentum=0.0003, backbone_momentum=0.05)
    norms = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    trunk = [name.startswith("backbone.") for name, _ in norms]
    assert [m.momentum for _, m in norms] == [0.05 if inside else 0.0003 for inside in trunk]
    assert sum(trunk) == 20


@pytest.mark.parametrize(
    ("arguments", "heads"),
    [
        (TORCHVISION | {"aux": True}, ["aux", "classifier", "context", "refine"]),
        (CASCADE, ["classifier", "context"]),
    ],
)
def test_backbone_and_head_share_no_parameter_and_leave_none_out(arguments, heads):
    model = on_meta(5, "resnet18", **arguments)
    backbone = {id(p) for p in model.backbone_parameters()}
    assert (
        sorted({n.split(".")[0] for n, p in model.named_parameters() if id(p) not in backbone})
        == heads
    )
    assert {n.split(".")[0] for n, p in model.named_parameters() if id(p) in backbone} == {
        "backbone"
    }


@pytest.mark.parametrize("arguments", [{}, CASCADE])
def test_logits_start_near_zero_from_weights_of_a_hundredth(arguments):
    torch.manual_seed(0)
    model = DeepLabV3(11, "resnet18", **arguments)
    assert abs(model.classifier.weight.std().item() - 0.01) < 0.001
    assert not model.classifier.bias.any()
    if not arguments:  # the features of an untrained cascade are larger
        loss = F.cross_entropy(
            model(torch.randn(2, 3, 32, 32))["logits"], torch.randint(0, 11, (2, 32, 32))
        )
        assert abs(loss.item() - 2.398) < 0.1  # ln 11


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "cascades"}, "variant=cascades is unknown. Did you mean `cascade`"),
        ({"head": "paper1"}, "head=paper1 is unknown. Did you mean `paper`"),
        (
            {"output_stride": 64},
            "output_stride=64: variant=aspp offers 8, 16, 32; 64, 128 and 256 belong to a cascade",
        ),
        (
            {"output_stride": 256, "blocks": 6, **CASCADE},
            "output_stride=256: variant=cascade offers 8, 16, 32, 64, 128;",
        ),
        ({"output_stride": 4}, "output_stride=4: variant=aspp offers 8, 16, 32$"),
        ({"blocks": 8, **CASCADE}, "blocks=8"),
        ({"head": "torchvision", **CASCADE}, "head=torchvision belongs to variant=aspp"),
        ({"pattern": "delayed", **CASCADE}, "pattern=delayed belongs to variant=aspp"),
        ({"dilations": [6, 0]}, r"dilations=\[6, 0\]"),
        ({"aspp_width": 0}, "aspp_width=0 project_kernel=1"),
        ({"style": "caffee"}, "style=caffee is unknown. Did you mean `caffe`"),
    ],
)
def test_what_is_not_offered_is_refused_in_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        on_meta(5, "resnet18", **arguments)


def test_the_pattern_goes_with_the_head_unless_it_is_given():
    for head, pattern, first in (
        ("paper", None, 2),
        ("paper", "delayed", 1),
        ("torchvision", None, 1),
        ("torchvision", "uniform", 2),
    ):
        model = on_meta(2, "resnet18", head=head, pattern=pattern, multi_grid=[1, 1])
        dilations = [block.conv1.dilation[0] for block in model.backbone.stages[3]]
        assert dilations == [first, 2]
    with pytest.raises(UserError, match=r"set model\.pattern=null for mobilenet_v2"):
        on_meta(2, "mobilenet_v2", pattern="uniform")
