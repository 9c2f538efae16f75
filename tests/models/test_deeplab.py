"""DeepLab: published sizes, the added branches, dilations and the starting weights."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.models import vgg

from segtrain.errors import UserError
from segtrain.layers.norm import FrozenBatchNorm
from segtrain.losses.pixel import PixelCrossEntropy
from segtrain.models.deeplab import DeepLab, percents, shrink
from segtrain.optim.optimizers import parameter_groups
from segtrain.structures.samples import Batch

CONF = Path(__file__).parents[2] / "conf"


def on_meta(*args, **kwargs):
    with torch.device("meta"):
        return DeepLab(*args, **kwargs)


def meta(height, width, images=1):
    return torch.empty(images, 3, height, width, device="meta")


def shapes(output):
    return {name: tuple(value.shape[-2:]) for name, value in output.items()}


VGG16 = {"backbone": "vgg16", "norm": "none"}


@pytest.mark.parametrize(
    ("classes", "arguments", "count"),
    [
        (21, {}, 44_048_532),
        (21, {"style": "caffe", "norm": "batch"}, 44_048_532),
        (60, {}, 46_924_080),
        (19, {}, 43_901_068),
        (21, {"head": "largefov"}, 42_887_253),  # 42,500,160 + 9 x 2048 x 21 + 21
        (91, {"head": "plain"}, 42_686_619),  # 42,500,160 + 2048 x 91 + 91
        (21, VGG16, 37_877_652),
        (21, VGG16 | {"head": "largefov"}, 20_505_429),
    ],
)
def test_parameter_counts_are_the_papers(classes, arguments, count):
    assert sum(p.numel() for p in on_meta(classes, **arguments).parameters()) == count


def test_the_head_is_four_dilated_classifiers_and_nothing_else():
    model = on_meta(21)
    assert [c.dilation for c in model.classifiers] == [(6, 6), (12, 12), (18, 18), (24, 24)]
    assert all(
        c.weight.shape == (21, 2048, 3, 3) and c.padding == c.dilation for c in model.classifiers
    )
    head = {id(p) for p in model.parameters()} - {id(p) for p in model.backbone_parameters()}
    assert len(head) == 8
    assert sum(p.numel() for p in model.classifiers.parameters()) == 1_548_372
    # ASPP-S
    assert [c.dilation[0] for c in on_meta(21, dilations=[2, 4, 8, 12]).classifiers] == [
        2,
        4,
        8,
        12,
    ]
    assert [c.dilation[0] for c in on_meta(21, head="largefov").classifiers] == [12]


def test_the_head_starts_from_a_normal_distribution_of_0_01_without_bias():
    torch.manual_seed(0)
    for conv in DeepLab(21, "resnet18").classifiers:
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert conv.bias.abs().max() == 0


@pytest.mark.parametrize("backbone", ["resnet18", "vgg11"])
def test_the_branches_are_added(backbone):
    torch.manual_seed(0)
    model = DeepLab(3, backbone, norm="batch", scales=[1.0]).eval()
    for conv in model.classifiers:
        nn.init.normal_(conv.bias)
    x = torch.randn(2, 3, 41, 33)
    with torch.no_grad():
        deep = model.backbone(x)[-1]
        expected = torch.zeros(2, 3, 6, 5)
        for i, rate in enumerate((6, 12, 18, 24)):
            conv = model.classifiers[i]
            if backbone == "vgg11":
                fc6, norm6, _, _, fc7, norm7, _, _ = model.fc[i]
                y = F.relu(norm6(F.conv2d(deep, fc6.weight, fc6.bias, padding=rate, dilation=rate)))
                y = F.relu(norm7(F.conv2d(y, fc7.weight, fc7.bias)))
                expected += F.conv2d(y, conv.weight, conv.bias)
            else:
                expected += F.conv2d(deep, conv.weight, conv.bias, padding=rate, dilation=rate)
        torch.testing.assert_close(model.scores(x), expected, rtol=1e-4, atol=1e-5)


def test_the_branches_of_a_vgg_start_apart():
    model = DeepLab(3, "vgg11", norm="none")
    first = [model.fc[i][0].weight for i in range(4)]
    assert [fc.dilation for fc in (branch[0] for branch in model.fc)] == [
        (6, 6),
        (12, 12),
        (18, 18),
        (24, 24),
    ]
    assert not any(torch.equal(first[0], other) for other in first[1:])


def test_with_weights_every_branch_starts_as_the_classifiers_layers(monkeypatch):
    numbers = torch.arange(4096.0)  # filter i of fc6 and fc7 is all i
    asked = []

    def weights(*names):
        asked.append(names)
        layers = vgg.make_layers(vgg.cfgs["A"])  # torchvision's numbering
        features = {f"features.{k}": v for k, v in layers.state_dict().items()}
        fc6 = numbers[:, None].expand(4096, 25088)
        fc7 = numbers[:, None].expand(4096, 4096)
        biases = {"classifier.0.bias": numbers, "classifier.3.bias": -numbers}
        return features | {"classifier.0.weight": fc6, "classifier.3.weight": fc7} | biases

    monkeypatch.setattr("segtrain.backbones.vgg.classifier_weights", weights)
    model = DeepLab(3, "vgg11", norm="none", weights="imagenet")
    # trunk and branches: the file has half a gigabyte
    assert asked == [("vgg11", "none", "imagenet")] * 2
    kept = torch.linspace(0, 4095, 1024).round()
    for branch, rate in zip(model.fc, (6, 12, 18, 24), strict=True):
        fc6 = branch[0]
        fc7 = branch[3]
        assert fc6.dilation == fc6.padding == (rate, rate)
        assert torch.equal(fc6.weight[:, 7, 1, 2], kept)
        assert torch.equal(fc6.bias, kept)
        assert torch.equal(fc7.weight[:, 9, 0, 0], kept)
        assert torch.equal(fc7.bias, -kept)
    assert len({branch[0].weight.data_ptr() for branch in model.fc}) == 4


def dilations(stage):
    return [
        conv.dilation[0]
        for conv in stage.modules()
        if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3)
    ]


@pytest.mark.parametrize("style", ["torchvision", "caffe"])
def test_every_3x3_of_the_fourth_stage_has_rate_2_and_of_the_fifth_rate_4(style):
    stages = on_meta(21, style=style).backbone.stages
    assert [dilations(stage) for stage in stages] == [[1] * 3, [1] * 4, [2] * 23, [4] * 3]
    assert {
        conv.stride
        for stage in stages[2:]
        for conv in stage.modules()
        if isinstance(conv, nn.Conv2d)
    } == {(1, 1)}


def test_style_caffe_strides_in_the_1x1_and_reads_bgr():
    model = on_meta(21, style="caffe")
    first = model.backbone.stages[1][0]
    assert (first.conv1.stride, first.conv2.stride, first.downsample[0].stride) == (
        (2, 2),
        (1, 1),
        (2, 2),
    )
    pixel = torch.tensor([200, 100, 50], dtype=torch.uint8).view(1, 3, 1, 1)  # red, green, blue
    with torch.device("cpu"):
        y = (
            DeepLab(2, "resnet18", style="caffe")
            .preprocess(pixel, torch.tensor([[1, 1]]))
            .flatten()
        )
    torch.testing.assert_close(y, torch.tensor([50 - 104.008, 100 - 116.669, 200 - 122.675]))


def test_sizes_of_the_released_models():
    model = on_meta(21, style="caffe")
    sizes = []
    x = meta(321, 321)
    for layer in (
        model.backbone.stem[:3],
        model.backbone.stem[3],
        model.backbone.stages[0],
        model.backbone.stages[1],
    ):
        x = layer(x)
        sizes.append(x.shape[-1])
    assert sizes == [161, 81, 81, 41]
    assert [shrink(meta(321, 321), p).shape[-1] for p in (100, 75, 50)] == [321, 241, 161]
    assert [model.scores(meta(n, n)).shape[-1] for n in (321, 241, 161)] == [41, 31, 21]


def test_shrinking_keeps_the_corners():
    x = torch.arange(9.0).expand(1, 1, 9, 9)
    assert shrink(x, 50)[0, 0, 0].tolist() == [0, 2, 4, 6, 8]
    assert shrink(x, 75)[0, 0, 0].tolist() == pytest.approx(
        [0, 8 / 6, 16 / 6, 4, 32 / 6, 40 / 6, 8]
    )
    assert shrink(x, 100) is x


class Told(DeepLab):
    """Scores from a table by the input's width, in place of a network's."""

    def scores(self, x):
        return self.table[x.shape[-1]]


@pytest.fixture
def told():
    model = Told(1, "resnet18", scales=[1.0, 0.5])
    # By hand: the half-scale map, brought to 3 x 3 with aligned corners, is 0 1 2 / 2 3 4 / 4 5 6.
    half = torch.tensor([[0.0, 2], [4, 6]])
    model.table = {17: torch.full((1, 1, 3, 3), 3.0), 9: half.view(1, 1, 2, 2)}
    return model


FUSED = [[3.0, 3, 3], [3, 3, 4], [4, 5, 6]]


def test_fusion_is_the_largest_score_at_each_pixel_in_training(told):
    told.upsample = False
    output = told(torch.zeros(1, 3, 17, 17))
    assert output["logits"][0, 0].tolist() == FUSED
    assert output["scale_100"][0, 0].tolist() == [[3.0] * 3] * 3
    # stride 16: the paper's label is shrunk by 16
    assert output["scale_50"][0, 0].tolist() == [
        [0, 2],
        [4, 6],
    ]
    told.upsample = True
    output = told(torch.zeros(1, 3, 17, 17))
    assert output["logits"][0, 0, ::8, ::8].tolist() == FUSED
    assert output["scale_50"][0, 0, ::8, ::8].tolist() == [[0, 1, 2], [2, 3, 4], [4, 5, 6]]
    assert output["logits"][0, 0, 16, 8:].tolist() == [5 + i / 8 for i in range(9)]


@pytest.mark.parametrize("upsample", [True, False])
def test_fusion_is_the_largest_score_in_evaluation_too_at_full_size(told, upsample):
    told.upsample = upsample
    output = told.eval()(torch.zeros(1, 3, 17, 17))
    assert shapes(output) == {"logits": (17, 17)}
    assert output["logits"][0, 0, ::8, ::8].tolist() == FUSED


def test_without_aligned_corners_every_resize_is_between_pixel_centres():
    # kazuto1011's deeplab-pytorch: inputs of 1/2 and 3/4, rounded down; scores at the full map's
    # size by maximum, then at the input's. New pixel i of a factor f lies at (i + 0.5) / f - 0.5.
    torch.manual_seed(0)
    model = DeepLab(3, "resnet18", norm="group", align_corners=False).eval()
    x = torch.randn(1, 3, 66, 51)

    def between_centres(maps, size, factors):
        for axis, length, factor in zip((2, 3), size, factors, strict=True):
            last = maps.shape[axis] - 1
            at = ((torch.arange(length) + 0.5) / factor - 0.5).clamp(0, last)
            low = at.floor().long()
            share = (at - low).view(-1, 1) if axis == 2 else at - low
            high = maps.index_select(axis, (low + 1).clamp(max=last))
            maps = maps.index_select(axis, low) * (1 - share) + high * share
        return maps

    def resized(maps, size):
        return between_centres(
            maps, size, [n / m for n, m in zip(size, maps.shape[2:], strict=True)]
        )

    with torch.no_grad():
        inputs = [
            x,
            between_centres(x, (33, 25), (0.5, 0.5)),
            between_centres(x, (49, 38), (0.75, 0.75)),
        ]
        maps = [model.scores(each) for each in inputs]
        fused = torch.stack([resized(m, maps[0].shape[2:]) for m in maps]).amax(0)
        expected = resized(fused, (66, 51))
        torch.testing.assert_close(model(x)["logits"], expected, rtol=1e-4, atol=1e-5)
        model.align_corners = True
        assert not torch.allclose(model(x)["logits"], expected, rtol=1e-2)


def test_small_outputs_without_aligned_corners_are_each_scales_own_map():
    # kazuto1011's deeplab-pytorch: 41 x 41 scores of 321 x 321 pixels, 31 of 240, 21 of 160.
    arguments = {"style": "caffe", "upsample": False, "align_corners": False}
    model = on_meta(5, "resnet18", **arguments)
    assert shapes(model(meta(321, 321))) == {
        "logits": (41, 41),
        "scale_100": (41, 41),
        "scale_75": (31, 31),
        "scale_50": (21, 21),
    }
    assert shapes(model.eval()(meta(321, 321))) == {"logits": (321, 321)}
    assert shapes(on_meta(5, "resnet18", scales=[1.0], **arguments)(meta(321, 321))) == {
        "logits": (41, 41)
    }


def test_a_released_loss_on_each_scales_own_map_is_the_mean_at_pillows_nearest_labels():
    # main.py and msc.py there, in a few lines: the scores of each scale at their size, and of the
    # maximum of them at the full map's, each compared with the label map that Pillow resizes.
    torch.manual_seed(0)
    arguments = {"norm": "group", "upsample": False, "align_corners": False}
    model = DeepLab(4, "resnet18", **arguments)
    x = torch.randn(2, 3, 97, 97)
    mask = torch.randint(0, 4, (2, 97, 97), dtype=torch.uint8)
    mask[torch.rand(mask.shape) < 0.2] = 255
    maps = [
        model.scores(x if p == 1 else F.interpolate(x, scale_factor=p, mode="bilinear"))
        for p in (1, 0.75, 0.5)
    ]
    up = [F.interpolate(m, maps[0].shape[2:], mode="bilinear") for m in maps]
    expected = 0
    for scores in (torch.stack(up).amax(0), *maps):
        size = scores.shape[2:]
        small = [Image.fromarray(m.numpy()).resize(size, Image.Resampling.NEAREST) for m in mask]
        labels = torch.tensor(np.stack(small)).long()
        expected += F.cross_entropy(scores, labels, ignore_index=255)
    names = ("seg", "scale_100", "scale_75", "scale_50")
    loss = PixelCrossEntropy(dict.fromkeys(names, 1.0), nearest=True)
    whole = torch.tensor([[97, 97]] * 2)
    batch = Batch(torch.zeros(2, 3, 97, 97, dtype=torch.uint8), whole, ["a", "b"], masks=mask)
    terms = loss(model(x), batch)
    ours = sum(terms[name].sum / terms[name].count for name in names)
    torch.testing.assert_close(ours, expected)


def test_each_scale_is_the_same_network_on_a_smaller_image():
    torch.manual_seed(0)
    model = DeepLab(3, "resnet18", norm="group").eval()
    single = DeepLab(3, "resnet18", norm="group", scales=[1.0]).eval()
    single.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 65, 49)
    with torch.no_grad():
        maps = [
            single.scores(F.interpolate(x, size, mode="bilinear", align_corners=True))
            for size in ((65, 49), (49, 37), (33, 25))
        ]
        assert [m.shape[-2:] for m in maps] == [(9, 7), (7, 5), (5, 4)]
        up = [F.interpolate(m, (9, 7), mode="bilinear", align_corners=True) for m in maps]
        fused = torch.maximum(torch.maximum(up[0], up[1]), up[2])
        expected = F.interpolate(fused, (65, 49), mode="bilinear", align_corners=True)
        torch.testing.assert_close(model(x)["logits"], expected)
        assert not torch.allclose(single(x)["logits"], expected)


def test_outputs_in_training_are_named_in_percent():
    model = on_meta(5, "resnet18")
    names = ["logits", "scale_100", "scale_75", "scale_50"]
    assert shapes(model(meta(33, 51))) == dict.fromkeys(names, (33, 51))
    assert list(model.eval()(meta(33, 51))) == ["logits"]
    assert list(on_meta(5, "resnet18", scales=[1.0])(meta(33, 51))) == ["logits"]


@pytest.mark.parametrize("size", [321, 320, 331, 336])
@pytest.mark.parametrize(
    "model", [{"style": "caffe", "backbone": "resnet18"}, {"backbone": "vgg11", "norm": "none"}]
)
def test_small_outputs_fit_every_eighth_and_every_sixteenth_label(model, size):
    label = torch.zeros(size, size)
    output = shapes(on_meta(5, upsample=False, **model)(meta(size, size)))
    assert output == {
        "logits": label[::8, ::8].shape,
        "scale_100": label[::8, ::8].shape,
        "scale_75": label[::8, ::8].shape,
        "scale_50": label[::16, ::16].shape,
    }


def test_gradients_reach_what_trains_and_frozen_batch_norm_stays_put():
    torch.manual_seed(0)
    model = DeepLab(4, "resnet18").train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(parameter_groups(model, lr=0.01, weight_decay=5e-4), lr=0.01)
    output = model(torch.randn(2, 3, 49, 57))
    losses = [F.cross_entropy(score, torch.ones(2, 49, 57).long()) for score in output.values()]
    sum(losses).backward()
    optimizer.step()
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 20 + 8  # the trunk's convolutions; weight and bias of four classifiers
    assert [n for n, p in trained if p.grad is None or not p.grad.abs().max() > 0] == []
    held = [n for n, m in model.named_modules() if isinstance(m, FrozenBatchNorm)]
    assert len(held) == 20
    after = model.state_dict()
    same = {key for key in after if torch.equal(after[key], before[key])}
    assert same == {f"{n}.{key}" for n in held for key in model.get_submodule(n).state_dict()}


def test_synchronised_conversion_wakes_no_frozen_batch_norm():
    frozen = nn.SyncBatchNorm.convert_sync_batchnorm(on_meta(3, "resnet18"))
    warm = nn.SyncBatchNorm.convert_sync_batchnorm(on_meta(3, "resnet18", norm="batch"))
    counts = [
        sum(isinstance(m, nn.SyncBatchNorm) for m in model.modules()) for model in (frozen, warm)
    ]
    assert counts == [0, 20]


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_gradients_reach_every_parameter_of_a_vgg(norm):
    torch.manual_seed(0)
    model = DeepLab(4, "vgg11", norm=norm, dilations=[1, 2])
    F.cross_entropy(
        model(torch.randn(1, 3, 65, 65))["logits"], torch.ones(1, 65, 65).long()
    ).backward()
    assert [
        n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0
    ] == []


@pytest.mark.parametrize(
    ("arguments", "head"),
    [({"backbone": "resnet18"}, 4), ({"backbone": "vgg11", "norm": "none"}, 4)],
)
def test_only_the_classifiers_learn_at_the_heads_rate(arguments, head):
    groups = {
        g["name"]: g
        for g in parameter_groups(on_meta(3, **arguments), 1.0, 5e-4, head_factor=10, bias_factor=2)
    }
    assert len(groups["head.weight"]["params"]) == len(groups["head.bias"]["params"]) == head
    assert (
        groups["head.weight"]["lr"],
        groups["head.bias"]["lr"],
        groups["backbone.weight"]["lr"],
    ) == (10, 20, 1)
    assert all(len(p) == 3 for p in groups["head.bias"]["params"])


def test_a_batch_is_normalised_by_the_models_own_preprocess():
    torch.manual_seed(0)
    model = DeepLab(3, "resnet18", style="caffe").eval()
    images = torch.randint(0, 256, (1, 3, 33, 41), dtype=torch.uint8)
    batch = Batch(
        images, torch.tensor([[30, 35]]), ["a"], masks=torch.zeros(1, 33, 41, dtype=torch.uint8)
    )
    with torch.no_grad():
        x = images.flip(1).float() - torch.tensor([104.008, 116.669, 122.675]).view(1, 3, 1, 1)
        x[:, :, 30:] = 0
        x[:, :, :, 35:] = 0
        torch.testing.assert_close(model(batch)["logits"], model(x)["logits"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head": "asp"}, "head=asp is unknown. Did you mean `aspp`"),
        ({"head": "largefov", "dilations": [6, 12]}, "head=largefov has one branch; use one"),
        ({"dilations": []}, r"dilations=\[\]: one of 1 or more per branch"),
        ({"dilations": [6, 0]}, "dilations=.6, 0.: one of 1 or more"),
        ({"scales": [0.5, 1.0]}, "1.0 first and largest"),
        ({"scales": [1.0, 0.5, 0.5]}, "different ones"),
        ({"scales": [1.0, 1.5]}, "1.0 first and largest"),
        ({"scales": [1.0, 0.333]}, "in whole percent"),
        ({"style": "cafe"}, "style=cafe is unknown. Did you mean `caffe`"),
        (
            {"style": "caffe", "weights": "imagenet"},
            "do not fit style=caffe: use style=torchvision, or weights=null",
        ),
        ({"weights": "features"}, "weights=features belong to a VGG, resnet101 has imagenet"),
        (
            {"backbone": "vgg16"},
            "norm=frozen: vgg16 has no batch norm to freeze or replace: use norm=none",
        ),
        ({"backbone": "resnet19"}, "backbone `resnet19` is unknown"),
        (
            {"head": "plain", "dilations": [6]},
            r"dilations=\[6\]: head=plain is a 1x1, which has none",
        ),
        (VGG16 | {"head": "plain"}, "head=plain belongs to a ResNet: on vgg16 use head=largefov"),
    ],
)
def test_a_bad_argument_is_named_with_the_way_out(arguments, message):
    with pytest.raises(UserError, match=message):
        on_meta(21, **arguments)


def test_percents_are_names():
    assert percents([1.0, 0.75, 0.5, 0.29]) == [100, 75, 50, 29]  # 0.29 * 100 is 28.999...


@pytest.mark.parametrize("upsample", [True, False])
def test_the_loss_of_conf_reads_the_fused_scores_and_each_scale(upsample):
    torch.manual_seed(0)
    node = OmegaConf.to_container(OmegaConf.load(CONF / "loss" / "deeplab.yaml"))
    assert node.pop("_target_") == "segtrain.losses.pixel.PixelCrossEntropy"
    factors = {"seg": 8, "scale_100": 8, "scale_75": 8, "scale_50": 16}  # the paper's labels
    loss = PixelCrossEntropy(**node, shrink=None if upsample else factors)
    model = DeepLab(4, "resnet18", upsample=upsample)
    for conv in model.classifiers:
        nn.init.zeros_(conv.weight)
    mask = torch.randint(0, 4, (2, 65, 65), dtype=torch.uint8)
    mask[:, ::8] = 255  # all that the shrunk labels of rows 0, 8, ... see
    batch = Batch(
        torch.zeros(2, 3, 65, 65, dtype=torch.uint8),
        torch.tensor([[65, 65]] * 2),
        ["a", "b"],
        masks=mask,
    )
    assert loss.weights == dict.fromkeys(factors, 1.0)
    terms = loss(model(batch), batch)
    assert list(terms) == list(factors)
    if upsample:
        for term in terms.values():  # undecided between 4 classes: ln 4 at each valid pixel
            assert term.sum.item() / (2 * 56 * 65) == pytest.approx(1.386294)
    else:
        assert [term.sum.item() for term in terms.values()] == [0] * 4  # 255 survives the shrink
        assert [count.item() for count in loss.counts(batch).values()] == [0] * 4
    assert list(loss.eval()(model.eval()(batch), batch)) == ["seg"]
