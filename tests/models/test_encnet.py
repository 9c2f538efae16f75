"""EncNet: the sizes of the authors' code, its outputs, its gate and its parts put together."""

import pytest
import torch
import torchvision
from torch import nn

from segtrain.errors import UserError
from segtrain.losses.combined import Combined
from segtrain.losses.pixel import PixelCrossEntropy
from segtrain.losses.semantic_encoding import SemanticEncodingLoss
from segtrain.models.encnet import EncNet, gate
from segtrain.structures.samples import Batch


def on_meta(*args, **kwargs):
    with torch.device("meta"):
        return EncNet(*args, **kwargs)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("classes", "backbone", "lateral", "aux", "count"),
    [
        (59, "resnet50", True, True, 43_915_217),
        (59, "resnet101", True, True, 62_907_345),
        (59, "resnet50", False, True, 36_047_825),
        (59, "resnet101", False, True, 55_039_953),
        (21, "resnet101", True, True, 62_858_591),
        (59, "resnet50", False, False, 33_672_854),
        (59, "resnet101", False, False, 52_664_982),
    ],
)
def test_parameter_counts_are_those_of_the_authors_code(classes, backbone, lateral, aux, count):
    assert parameters(on_meta(classes, backbone, lateral=lateral, aux=aux)) == count


def test_what_each_switch_adds():
    def added(**on):
        return parameters(on_meta(59, "resnet50", **(plain | on))) - parameters(
            on_meta(59, "resnet50", **plain)
        )

    plain = {"se": False, "se_aux": False, "lateral": False, "aux": False}
    assert added(se=True) == 59 * 513
    # 1x1, norm, encoding, norm, scores
    assert added(se_aux=True) == 1024 * 512 + 1024 + 32 * 513 + 64 + 59 * 513
    assert added(lateral=True) == (512 + 1024) * 512 + 2 * 1024 + 9 * 1536 * 512 + 1024
    assert added(codewords=0) == -(32 * 513 + 64)
    assert added(stem="torchvision") == 23_508_032 - 23_631_808


def rates(stages):
    return [
        [
            conv.dilation[0]
            for conv in stage.modules()
            if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3)
        ]
        for stage in stages
    ]


def test_the_first_block_of_a_dilated_stage_keeps_the_rate_before_it():
    model = on_meta(5, "resnet50")
    assert rates(model.backbone.stages)[2:] == [[1, 2, 2, 2, 2, 2], [2, 4, 4]]
    with torch.device("meta"):
        other = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True])
    assert rates(model.backbone.stages) == rates(
        [other.layer1, other.layer2, other.layer3, other.layer4]
    )


def test_features_are_at_an_eighth_of_the_input():
    model = on_meta(5, "resnet18").eval()
    sizes = []
    model.classifier.register_forward_hook(
        lambda _, inputs, output: sizes.append((inputs[0].shape, output.shape))
    )
    model(torch.empty(2, 3, 65, 97, device="meta"))
    assert sizes == [((2, 512, 9, 13), (2, 5, 9, 13))]


def test_the_outputs_that_are_asked_for_exist_in_training_only():
    x = torch.empty(2, 3, 33, 49, device="meta")
    model = on_meta(5, "resnet18", se_aux=True)
    shapes = {name: tuple(value.shape) for name, value in model(x).items()}
    assert shapes == {
        "logits": (2, 5, 33, 49),
        "aux": (2, 5, 33, 49),
        "se": (2, 5),
        "se_aux": (2, 5),
    }
    assert list(model.eval()(x)) == ["logits"]
    assert list(on_meta(5, "resnet18", se=False, aux=False)(x)) == ["logits"]


def test_a_gate_of_even_odds_lets_half_as_much_again_through():
    x = torch.tensor([2.0, -2.0]).view(1, 2, 1, 1)
    assert gate(x, torch.zeros(1, 2)).flatten().tolist() == [3.0, 0.0]
    assert gate(x, torch.tensor([[100.0, -100.0]])).flatten().tolist() == [4.0, 0.0]
    assert gate(x, torch.tensor([[-100.0, 0.0]])).flatten().tolist() == [2.0, 0.0]


def test_the_model_is_its_parts_put_together():
    torch.manual_seed(0)
    model = EncNet(5, "resnet18", aux=False).eval()
    seen = {}
    for name in ("reduce", "fuse", "context", "gate", "classifier"):
        module = model.get_submodule(name)
        module.register_forward_hook(
            lambda _, inputs, output, name=name: seen.update({name: (inputs[0], output)})
        )
    x = torch.randn(2, 3, 33, 33)
    logits = model(x)["logits"]
    second, third = model.backbone(x)[1:3]
    sides = [model.lateral[0](second), model.lateral[1](third)]
    assert torch.equal(seen["fuse"][0], torch.cat([seen["reduce"][1], *sides], 1))
    deep = seen["fuse"][1]
    code = seen["context"][1]
    scores = seen["gate"][1]
    assert seen["context"][0] is deep
    assert seen["gate"][0] is code
    wanted = (deep * (1 + 1 / (1 + (-scores).exp()))[:, :, None, None]).relu()
    torch.testing.assert_close(seen["classifier"][0], wanted)
    up = nn.functional.interpolate(
        seen["classifier"][1], size=(33, 33), mode="bilinear", align_corners=True
    )
    assert torch.equal(logits, up)


def test_the_second_head_reads_the_third_stage_with_an_encoding_of_its_own():
    model = on_meta(5, "resnet50", se_aux=True)
    context, head = model.se_aux
    assert context.project[0].weight.shape == (512, 1024, 1, 1)
    assert head.weight.shape == (5, 512)
    assert context.encoding.codewords is not model.context.encoding.codewords


def case(images=2, height=33, width=41, classes=4):
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 3, height, width), dtype=torch.uint8, generator=g)
    targets = torch.randint(0, classes - 1, (images, height, width), generator=g).byte()
    targets[:, 0] = 255
    return Batch(
        pixels,
        torch.tensor([[height, width]] * images),
        [str(i) for i in range(images)],
        masks=targets,
    )


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_gradients_reach_every_parameter_codewords_and_smoothing_too(norm):
    torch.manual_seed(0)
    model = EncNet(4, "resnet18", se_aux=True, norm=norm)
    batch = case()
    pixel = PixelCrossEntropy({"seg": 1.0, "aux": 0.2})
    semantic = SemanticEncodingLoss({"se": 0.2, "se_aux": 0.2})
    loss = Combined({"pixel": pixel, "semantic": semantic})
    counts = loss.counts(batch)
    terms = loss(model(batch), batch)
    sum(loss.weights[name] * term.sum / counts[name] for name, term in terms.items()).backward()
    assert [
        n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0
    ] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_without_an_se_loss_the_gate_still_teaches_the_codewords():
    torch.manual_seed(0)
    model = EncNet(4, "resnet18", se=False, aux=False)
    batch = case()
    PixelCrossEntropy()(model(batch), batch)["seg"].sum.backward()
    assert (
        model.context.encoding.codewords.grad.abs().max()
        > 0
        < model.context.encoding.smoothing.grad.abs().max()
    )


def test_a_fresh_model_is_undecided():
    torch.manual_seed(0)
    model = EncNet(11, "resnet18", se_aux=True)
    batch = case(classes=11)
    output = model(batch)
    seg = PixelCrossEntropy()(output, batch)["seg"].sum / PixelCrossEntropy().counts(batch)["seg"]
    assert abs(seg.item() - 2.398) < 0.2  # ln 11
    semantic = SemanticEncodingLoss({"se": 1.0, "se_aux": 1.0})(output, batch)
    assert all(abs(term.sum.item() / 2 - 0.693) < 0.1 for term in semantic.values())  # ln 2


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("codewords", [32, 0])
def test_one_image_is_enough_to_train_and_to_evaluate(norm, codewords):
    # BatchNorm of the codes sees 512 values per codeword of one image, every other one sees
    # positions.
    model = EncNet(4, "resnet18", codewords=codewords, se_aux=True, norm=norm)
    assert getattr(model, "min_train_batch", 1) == 1
    x = torch.randn(1, 3, 33, 33)
    assert model(x)["se"].isfinite().all()
    assert model.eval()(x)["logits"].shape == (1, 4, 33, 33)


def test_images_of_a_batch_do_not_see_each_other_in_evaluation():
    torch.manual_seed(0)
    model = EncNet(4, "resnet18").eval()
    x = torch.randn(2, 3, 40, 40)
    torch.testing.assert_close(model(x)["logits"][1:], model(x[1:])["logits"], rtol=1e-4, atol=1e-5)


def test_bf16_is_close_and_the_encoding_stays_fp32():
    torch.manual_seed(0)
    model = EncNet(4, "resnet18").eval()
    x = torch.randn(2, 3, 40, 40)
    dtypes = []
    model.context.encoding.register_forward_hook(
        lambda _, inputs, output: dtypes.append(output.dtype)
    )
    exact = model(x)["logits"]
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(x)["logits"]
    assert dtypes == [torch.float32] * 2
    assert (rough - exact).abs().max() < 0.1 * exact.abs().max()


def test_backbone_and_head_share_no_parameter_and_leave_none_out():
    model = on_meta(5, "resnet18", se_aux=True)
    backbone = {id(p) for p in model.backbone_parameters()}
    assert {n.split(".")[0] for n, p in model.named_parameters() if id(p) not in backbone} == {
        "reduce",
        "lateral",
        "fuse",
        "context",
        "gate",
        "classifier",
        "se",
        "aux",
        "se_aux",
    }


def test_imagenet_weights_do_not_fit_the_deep_stem():
    with pytest.raises(
        UserError, match=r"stem=deep: set model\.stem=torchvision, or model\.weights=null"
    ):
        EncNet(5, weights="imagenet")


def test_dropout_drops_channels_and_new_layers_begin_as_torch_makes_them_where_asked():
    torch.manual_seed(0)
    net = EncNet(5, "resnet18", "torchvision", dropout="channel", head_init="torch")
    assert all(
        isinstance(part[place], nn.Dropout2d) for part, place in [(net.classifier, 0), (net.aux, 1)]
    )
    for layer in (net.reduce[0], net.classifier[1], net.aux[2], net.se, net.context.project[0]):
        bound = layer.weight[0].numel() ** -0.5
        assert layer.weight.abs().max().item() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
