"""PANet: the sizes of the release, its path and pooling by hand, its parts off as Mask R-CNN."""

import math

import pytest
import torch
from torch import nn

import segtrain
from segtrain.errors import UserError
from segtrain.layers.roi import RoIPool
from segtrain.models import mask_rcnn
from segtrain.models.panet import AdaptivePooling, BottomUpPath, BoxHead, FusedMask, MaskHead, PANet
from segtrain.structures.instances import Instances
from segtrain.structures.samples import Batch

STRIDES = [4, 8, 16, 32]
OFF = {"bottom_up": False, "adaptive_pooling": False, "fusion": False, "box_head": "two_fc"}
SMALL = {"backbone": "resnet18", "norm": "group", "width": 32, "regions": 16, "proposals": (30, 20)}


def on_meta(**arguments):
    with torch.device("meta"):
        return PANet(80, **arguments)


def size(module):
    return sum(p.numel() for p in module.parameters())


def constant_levels(values, side=256, channels=1):
    """Maps of strides 4, 8, 16, 32 of a square image of `side` pixels, each of one value."""
    return [
        torch.full((1, channels, side // s, side // s), float(v))
        for s, v in zip(STRIDES, values, strict=True)
    ]


def fill(layer, weight, bias=0.0):
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(weight).expand_as(layer.weight))
        layer.bias.copy_(torch.as_tensor(bias).expand_as(layer.bias))


def random_levels(channels, images=2, side=64):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(images, channels, side // s, side // s, generator=generator) for s in STRIDES
    ]


def some_boxes():
    return [
        torch.tensor([[3.0, 5.0, 40.0, 60.0], [10.0, 2.0, 20.0, 30.0]]),
        torch.tensor([[0.0, 0.0, 64.0, 64.0]]),
    ]


def batch(side=96):
    """Two images; one object in the first, two in the second."""
    torch.manual_seed(0)
    targets = []
    for boxes in ([[8, 8, 60, 70]], [[4, 10, 50, 40], [30, 20, 90, 92]]):
        masks = torch.zeros(len(boxes), side, side, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
            mask[y1:y2, x1:x2] = True
        crowd = torch.zeros(len(boxes), dtype=torch.bool)
        targets.append(
            Instances(torch.tensor(boxes).float(), torch.arange(len(boxes)), masks, crowd)
        )
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    return Batch(images, torch.full((2, 2), side), ["a", "b"], instances=targets)


# The numbers of the release


@pytest.mark.parametrize(
    ("backbone", "count"), [("resnet50", 73_356_357), ("resnet101", 92_348_485)]
)
def test_the_default_has_the_parameters_of_the_release(backbone, count):
    assert size(on_meta(backbone=backbone)) == count


def test_the_parameters_follow_from_the_layers():
    model = on_meta()
    conv = 9 * 256 * 256
    assert size(model.backbone) == 23_508_032
    assert size(model.pyramid) == (256 + 512 + 1024 + 2048) * 256 + 4 * conv + 8 * 512
    assert size(model.path) == 6 * (conv + 256 + 512)  # a bias beside the norm
    assert size(model.stages.box_head.first) == 4 * (conv + 512)
    assert size(model.stages.box_head.shared) == 3 * (conv + 512) + (256 * 49 + 1) * 1024
    assert size(model.stages.mask_head.fusion.convs) == conv + 512 + conv // 2 + 256
    assert size(model.stages.mask_head.fusion.cells) == (128 * 196 + 1) * 784


def test_norms_are_groups_of_32_and_the_trunk_is_frozen():
    model = on_meta()
    norms = [m for m in model.modules() if isinstance(m, nn.GroupNorm)]
    # Pyramid 8, path 6, box head 4 + 3, mask head 4 + 2 + 1, fusion 2, whose second one has 128
    # channels.
    assert len(norms) == 30
    assert {(m.num_groups, m.eps) for m in norms} == {(32, 1e-5)}
    assert sorted({m.num_channels for m in norms}) == [128, 256]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


@pytest.mark.parametrize(
    ("backbone", "count"), [("resnet50", 44_400_693), ("resnet101", 63_392_821)]
)
def test_with_all_parts_off_it_has_the_parameters_of_mask_rcnn(backbone, count):
    assert size(on_meta(backbone=backbone, head_norm="none", **OFF)) == count


# Bottom-up path


def test_the_path_by_hand():
    path = BottomUpPath(1, levels=2)
    fill(path.down[0][0], 1.0, -5.0)
    fill(path.merge[0][0], 1.0)
    p2 = torch.ones(1, 1, 4, 4)
    p3 = torch.tensor([[[[-3.0, 0.0], [0.0, 0.0]]]])
    # A 3x3 of ones and stride 2 counts pixels: 4, 6, 6, 9; less 5 and ReLU: 0, 1, 1, 4; with p3:
    # -3, 1, 1, 4, together 3. A ReLU behind the sum would give 6, none before it 2, and p3 added
    # behind the second convolution 3, 6, 6, 6.
    n2, n3 = path([p2, p3])
    assert n2 is p2
    assert n3.tolist() == [[[[3, 3], [3, 3]]]]
    fill(path.merge[0][0], 1.0, -4.0)
    assert not path([p2, p3])[1].any()  # 3 - 4, and ReLU


def test_a_level_reads_the_one_below_on_the_path_not_on_the_pyramid():
    path = BottomUpPath(1, levels=3)
    for layers in (path.down, path.merge):
        for layer in layers:
            fill(layer[0], 0.0)
    center = torch.zeros(3, 3)
    center[1, 1] = 1
    for layer in (path.merge[0][0], path.down[1][0], path.merge[1][0]):
        fill(layer, center)
    pyramid = [
        torch.zeros(1, 1, 4, 4),
        torch.full((1, 1, 2, 2), 5.0),
        torch.full((1, 1, 1, 1), 2.0),
    ]
    fill(path.merge[0][0], center, 10.0)  # n3 = p3 + 10
    assert path(pyramid)[2].item() == 5 + 10 + 2


@pytest.mark.parametrize("side", [32, 33, 35, 9])
def test_the_path_keeps_the_sizes_of_the_pyramid(side):
    sides = [math.ceil(side / 2**i) for i in range(4)]
    path = BottomUpPath(32, norm="group")([torch.randn(1, 32, s, s) for s in sides])
    assert [level.shape for level in path] == [(1, 32, s, s) for s in sides]


def test_strides_of_the_network_are_4_to_64():
    torch.manual_seed(0)
    model = PANet(3, **SMALL)
    seen = []
    model.path.register_forward_hook(lambda module, inputs, output: seen.extend(output))
    features = model.features(batch(side=128))
    assert [tuple(f.shape) for f in features] == [(2, 32, s, s) for s in (32, 16, 8, 4, 2)]
    # proposals and heads both read n2 to n5
    assert all(a is b for a, b in zip(features, seen, strict=False))
    assert torch.equal(features[4], features[3][:, :, ::2, ::2])


# Adaptive pooling


def unit_layers(pooling, weights):
    """Give level i's first layer, 49 cells -> 2 units, the mean of the cells times `weights[i]`."""
    for layer, (a, b) in zip(pooling.layers, weights, strict=True):
        fill(layer[1], torch.tensor([[a / 49], [b / 49]]))


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(49, 2))


def test_adaptive_pooling_is_the_maximum_over_levels_of_layers_with_their_own_weights():
    pooling = AdaptivePooling(RoIPool(7, STRIDES), linear)
    unit_layers(pooling, [(10, 1), (1, 1), (2, 1), (-1, 3)])
    boxes = [torch.tensor([[64.0, 64.0, 128.0, 128.0], [80.0, 64.0, 112.0, 160.0]])]
    # Levels of 1, 2, 3, 4: the units say 10, 2, 6, -4 and 1, 2, 3, 12. Any box gets the same,
    # whatever its size.
    found = pooling(constant_levels([1, 2, 3, 4]), boxes)
    torch.testing.assert_close(found, torch.tensor([[10.0, 12.0], [10.0, 12.0]]))
    assert len({p.data_ptr() for p in pooling.parameters()}) == 8
    pooling.layers = nn.ModuleList([pooling.layers[0]] * 4)  # shared weights would say 40 and 4
    torch.testing.assert_close(
        pooling(constant_levels([1, 2, 3, 4]), boxes)[0], torch.tensor([40.0, 4.0])
    )


def test_further_levels_are_not_pooled():
    pooling = AdaptivePooling(RoIPool(7, STRIDES), linear)
    unit_layers(pooling, [(1, 1)] * 4)
    levels = [*constant_levels([1, 2, 3, 4]), torch.full((1, 1, 4, 4), 99.0)]
    assert pooling(
        levels, [torch.tensor([[64.0, 64.0, 128.0, 128.0]])]
    ).max().item() == pytest.approx(4)


def test_without_it_a_region_is_read_from_the_level_that_fits_its_area():
    pooling = AdaptivePooling(RoIPool(7, STRIDES), linear, adaptive=False)
    unit_layers(pooling, [(10, 1)])
    boxes = torch.tensor(
        [[0, 0, 111, 111], [0, 0, 112, 112], [0, 0, 224, 224], [0, 0, 448, 448], [0, 0, 896, 896]]
    )
    found = pooling(constant_levels([1, 2, 3, 4], side=1024), [boxes.float()])
    torch.testing.assert_close(found[:, 0], torch.tensor([10.0, 20, 30, 40, 40]))


def test_gradient_goes_to_the_level_that_won():
    pooling = AdaptivePooling(RoIPool(7, STRIDES), linear)
    levels = constant_levels([1, 2, 3, 4])
    unit_layers(pooling, [(10, 1), (1, 1), (2, 1), (-1, 3)])
    levels = [level.requires_grad_() for level in levels]
    pooling(levels, [torch.tensor([[64.0, 64.0, 128.0, 128.0]])])[:, 0].sum().backward()
    assert [level.grad.sum().item() for level in levels] == pytest.approx([10, 0, 0, 0])


# Fusion


def fused(width=4, **arguments):
    module = FusedMask(width, **arguments)
    nn.init.zeros_(module.cells.weight)
    return module


def test_the_fully_connected_values_are_the_rows_of_the_map():
    module = fused()
    fill(module.cells, 0.0, torch.arange(784.0))
    found = module(torch.randn(2, 4, 14, 14))
    assert found.shape == (2, 1, 28, 28)
    assert found[1, 0, 0].tolist() == list(range(28))
    assert found[1, 0, 1, 0] == 28
    assert found[0, 0, 27, 27] == 783


def test_the_released_map_never_lowers_a_logit_and_the_other_does():
    values = torch.linspace(-1, 1, 784)
    released = fused()
    signed = fused(relu=False)
    for module in (released, signed):
        fill(module.cells, 0.0, values)
    x = torch.randn(1, 4, 14, 14)
    torch.testing.assert_close(released(x).flatten(), values.clamp(min=0))
    torch.testing.assert_close(signed(x).flatten(), values)


def test_fusion_adds_one_map_to_every_class():
    torch.manual_seed(0)
    head = MaskHead(RoIPool(14, STRIDES), 8, 5)
    levels = random_levels(8)
    boxes = some_boxes()
    plain = head(levels, boxes)
    head.fusion = fused(8)
    fill(head.fusion.cells, 0.0, torch.arange(784.0))
    added = head(levels, boxes) - plain
    assert plain.shape == (3, 5, 28, 28)
    torch.testing.assert_close(
        added, torch.arange(784.0).view(28, 28).expand(3, 5, 28, 28), rtol=1e-4, atol=1e-3
    )


def test_fusion_branches_off_behind_the_third_convolution():
    torch.manual_seed(0)
    head = MaskHead(RoIPool(14, STRIDES), 8, 5)
    seen = []
    head.fusion = FusedMask(8)
    for module in (head.last, head.fusion):
        module.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    head.shared.register_forward_hook(lambda module, inputs, output: seen.append(output))
    head(random_levels(8), some_boxes())
    assert len(seen) == 3
    assert seen[0] is seen[1] is seen[2]
    assert len(head.shared) == 2


# Switches


def keys(**arguments):
    return set(on_meta(backbone="resnet18", **arguments).state_dict())


def test_a_switch_changes_what_it_says_and_nothing_else():
    full = keys()
    assert full - keys(bottom_up=False) == {k for k in full if k.startswith("path.")}
    assert full - keys(fusion=False) == {k for k in full if ".fusion." in k}
    first = {k for k in full if ".first.layers." in k}
    assert full - keys(adaptive_pooling=False) == {k for k in first if ".layers.0." not in k}
    assert {k.split(".")[:2] == ["stages", "box_head"] for k in full ^ keys(box_head="two_fc")} == {
        True
    }
    assert full == keys(fusion_relu=False)
    assert [on_meta(fusion_relu=on).stages.mask_head.fusion.relu for on in (True, False)] == [
        True,
        False,
    ]
    for switch in ("bottom_up", "fusion", "adaptive_pooling"):
        assert not keys(**{switch: False}) - full


def same_weights(ours, theirs):
    """Copy, in the order of the layers, which both define alike."""
    pairs = list(zip(ours.parameters(), theirs.parameters(), strict=True))
    with torch.no_grad():
        for target, source in pairs:
            target.copy_(source)


@pytest.mark.parametrize("norm", ["none", "group"])
def test_with_all_parts_off_the_heads_are_those_of_mask_rcnn(norm):
    torch.manual_seed(0)
    boxes = some_boxes()
    levels = random_levels(32)
    pool = RoIPool(14, STRIDES)
    ours = MaskHead(pool, 32, 4, adaptive=False, norm=norm)
    theirs = mask_rcnn.MaskHead(pool, 32, 4, norm)
    same_weights(ours, theirs)
    torch.testing.assert_close(ours(levels, boxes), theirs(levels, boxes))
    pool = RoIPool(7, STRIDES)
    box = BoxHead(pool, 32, 4, "two_fc", adaptive=False)
    reference = mask_rcnn.BoxHead(pool, 32, 4)
    same_weights(box, reference)
    torch.testing.assert_close(box(levels, boxes), reference(levels, boxes))


CONVENTIONS = {
    "style": "msra",
    "anchor_corners": "quantised",
    "roi": "legacy",
    "roi_samples": 0,
    "inclusive_boxes": True,
}


@pytest.mark.parametrize(
    "conventions", [{}, pytest.param(CONVENTIONS, marks=pytest.mark.slow)], ids=["ours", "releases"]
)
def test_with_all_parts_off_the_network_gives_what_mask_rcnn_gives(conventions):
    torch.manual_seed(0)
    ours = PANet(3, head_norm="none", **SMALL | OFF | conventions).eval()
    theirs = mask_rcnn.MaskRCNN(3, head_norm="none", **SMALL | conventions).eval()
    same_weights(ours, theirs)
    with torch.no_grad():
        torch.testing.assert_close(ours(batch()), theirs(batch()))


def test_an_unknown_head_is_named():
    with pytest.raises(UserError, match=r"box_head=heavier is unknown. Did you mean `heavy`"):
        on_meta(box_head="heavier")


# The whole


@pytest.mark.parametrize(
    "arguments", [{}, {"box_head": "two_fc", "head_norm": "none"}, {"head_norm": "batch"}]
)
def test_gradients_reach_every_parameter(arguments):
    torch.manual_seed(0)
    model = PANet(3, **SMALL | arguments)
    if model.stages.mask_head.fusion is not None:
        # clear of the ReLU's dead side
        nn.init.constant_(model.stages.mask_head.fusion.cells.bias, 0.5)
    output = model(batch())
    sum(
        value.square().sum() for name, value in output.items() if not name.endswith("_target")
    ).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("norm", ["group", "batch", "none"])
@pytest.mark.parametrize("kind", ["two_fc", "heavy"])
def test_heads_without_a_region_give_nothing_and_a_zero_gradient(norm, kind):
    box = BoxHead(RoIPool(7, STRIDES), 32, 4, kind, norm=norm, hidden=32)
    mask = MaskHead(RoIPool(14, STRIDES), 32, 4, norm=norm)
    mask.fusion = FusedMask(32, norm=norm)
    levels = random_levels(32)
    boxes = [torch.zeros(0, 4)] * 2
    scores, deltas = box(levels, boxes)
    masks = mask(levels, boxes)
    assert (scores.shape, deltas.shape, masks.shape) == ((0, 4), (0, 16), (0, 4, 28, 28))
    (scores.sum() + deltas.sum() + masks.sum()).backward()
    assert all(p.grad is not None and not p.grad.any() for m in (box, mask) for p in m.parameters())
    assert all(b.isfinite().all() for m in (box, mask) for b in m.buffers())


def test_images_without_an_object_train_what_can_be_trained():
    torch.manual_seed(0)
    model = PANet(3, **SMALL)
    empty = batch()
    none = Instances(
        torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 96, 96).bool()
    )
    output = model(Batch(empty.images, empty.sizes, empty.ids, instances=[none, none]))
    assert len(output["mask"]) == len(output["box"]) == 0
    assert not output["class_target"].any()
    sum(
        value.square().sum() for name, value in output.items() if not name.endswith("_target")
    ).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_evaluation_is_deterministic_and_gives_boxes_and_masks():
    torch.manual_seed(0)
    model = PANet(3, **SMALL).eval()
    with torch.no_grad():
        features = model.features(batch())
        images = batch()
        (probabilities, boxes), _ = model.detect(features, images.sizes)
        assert probabilities.shape == (len(boxes), 3)
        assert boxes.shape == (len(boxes), 3, 4)
        assert len(boxes) <= 20
        masks = model.masks(features, [boxes[:2, 0], boxes[:0, 0]], torch.tensor([0, 2]))
        assert masks.shape == (2, 28, 28)
        assert masks.min() >= 0
        assert masks.max() <= 1
        first = model(images)
        second = model(images)
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_backbone_parameters_are_the_trunk():
    model = on_meta()
    trunk = {id(p) for p in model.backbone_parameters()}
    assert {n.split(".")[0] for n, p in model.named_parameters() if id(p) not in trunk} == {
        "pyramid",
        "path",
        "stages",
    }


@pytest.mark.parametrize("name", ["panet", "panet_r18"])
def test_the_config_says_every_argument(name):
    cfg = segtrain.compose([f"model={name}", "dataset=coco_instance", "dataset.root=nowhere"])
    written = set(cfg.model) - {"_target_"}
    assert written == set(PANet.__init__.__annotations__) - {"num_classes", "return"}


@pytest.mark.parametrize(
    ("conventions", "shift"),
    [({}, 0.0), ({"roi": "legacy"}, 0.5), ({"roi": "legacy", "inclusive_boxes": True}, 0.0)],
)
def test_a_model_says_how_its_boxes_and_masks_lie(conventions, shift):
    """Detectron's masks, whose boxes are inclusive, lie in them: they learn from polygons."""
    with torch.device("meta"):
        model = PANet(3, **SMALL | conventions)
    assert model.mask_shift == shift
    assert model.stages.legacy == (shift > 0)
    assert model.inclusive_boxes == conventions.get("inclusive_boxes", False)
    pools = [m for m in model.modules() if isinstance(m, RoIPool)]
    assert {pool.roi for pool in pools} == {conventions.get("roi", "align")}
