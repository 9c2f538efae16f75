"""The inference protocols on models whose scores are known functions of the pixels."""

import pytest
import torch
from torch import Tensor, nn

from segtrain.config import parts
from segtrain.config.compose import check, compose_config
from segtrain.errors import UserError
from segtrain.inference.crf import DenseCRF
from segtrain.inference.semantic import Semantic
from segtrain.inference.windows import scaled_size, window_starts
from segtrain.structures.samples import Batch


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(
        0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


class Pointwise(nn.Module):
    """Class scores are the colour channels: the label is the brightest channel."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Batch] = []

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        self.seen.append(batch)
        return {"logits": batch.images.float() / 64}


class Column(nn.Module):
    """Score of class 0 is the column inside what the model sees, of class 1 the constant 2."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        count, _, height, width = batch.images.shape
        columns = torch.arange(width, dtype=torch.float32).expand(count, 1, height, width)
        return {"logits": torch.cat([columns, torch.full_like(columns, 2)], 1)}


class Quarter(nn.Module):
    """Mean colour of 4 x 4 blocks: logits a quarter of the (odd) input size, rounded up."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return {"logits": nn.functional.avg_pool2d(batch.images.float(), 4, ceil_mode=True)}


def test_whole_gives_the_brightest_channel_at_the_images_own_odd_size() -> None:
    image = picture(37, 53)
    labels = Semantic(Pointwise())(image)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), image.max(0)[1])


@pytest.mark.parametrize("size", [(64, 64), (65, 83), (31, 100), (16, 17)])
@pytest.mark.parametrize("average", ["probabilities", "logits", "summed", "exp"])
def test_sliding_a_pointwise_model_equals_showing_the_whole_image(
    size: tuple[int, int], average: str
) -> None:
    image = picture(*size)
    slide = Semantic(
        Pointwise(), "slide", window=[32, 32], stride=0.6, average=average, window_batch=3
    )
    whole = Semantic(Pointwise(), average=average)
    assert torch.allclose(slide.scores(image), whole.scores(image), atol=1e-6)
    assert torch.equal(slide(image), whole(image))


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_flipping_changes_nothing_for_a_pointwise_model(mode: str) -> None:
    image = picture(40, 51)
    window = [24, 32] if mode == "slide" else None
    flipped = Semantic(Pointwise(), mode, window=window, flip=True)
    assert torch.allclose(flipped.scores(image), Semantic(Pointwise()).scores(image), atol=1e-6)


def test_windows_start_at_the_published_steps_and_end_inside() -> None:
    assert window_starts(473 + 316 + 1, 473, 2 / 3) == [0, 316, 317]
    assert window_starts(2048, 713, 2 / 3) == [0, 476, 952, 1335]
    assert window_starts(480 + 320, 480, 0.666666667) == [0, 320]
    assert window_starts(100, 100, 0.5) == window_starts(30, 100, 0.5) == [0]


@pytest.mark.parametrize("window_batch", [1, 2, 8])
def test_every_pixel_is_the_mean_over_the_windows_that_cover_it(window_batch: int) -> None:
    # windows of 4 at columns 0, 2 and 3 of 7: e.g. pixel 3 is column 3, 1 and 0 of them, mean 4/3
    slide = Semantic(
        Column(), "slide", window=[4, 4], stride=0.5, average="logits", window_batch=window_batch
    )
    expected = torch.tensor([0, 1, (2 + 0) / 2, (3 + 1 + 0) / 3, (2 + 1) / 2, (3 + 2) / 2, 3])
    assert torch.allclose(slide.scores(picture(6, 7))[0], expected.expand(6, 7))
    assert slide(picture(6, 7))[0].tolist() == [1, 1, 1, 1, 1, 0, 0]


def test_flip_averages_with_the_mirrored_scores_mirrored_back() -> None:
    # columns 0 1 2 3 and 3 2 1 0
    scores = Semantic(Column(), flip=True, average="logits").scores(picture(2, 4))
    assert torch.equal(scores[0], torch.full((2, 4), 1.5))


def test_probabilities_and_logits_are_different_averages() -> None:
    image = picture(2, 4)
    forward = torch.tensor([[0.0, 1, 2, 3], [2, 2, 2, 2]])
    expected = (forward.softmax(0) + forward.flip(1).softmax(0)) / 2
    scores = Semantic(Column(), flip=True, scales=[1.0, 1.0]).scores(image)
    assert torch.allclose(scores[:, 0], expected)
    assert torch.allclose(scores.sum(0), torch.ones(2, 4))


@pytest.mark.parametrize("flip", [False, True])
def test_an_image_smaller_than_the_window_is_padded_at_the_right_and_its_size_is_told(
    flip: bool,
) -> None:
    model = Pointwise()
    image = picture(10, 40)
    labels = Semantic(model, "slide", window=[16, 32], stride=0.5, flip=flip)(image)
    assert torch.equal(labels.long(), image.max(0)[1])
    assert model.seen[0].sizes.tolist() == [[10, 32], [10, 32]]  # two windows in one batch
    for batch in model.seen:
        assert batch.images.shape == (2, 3, 16, 32)
        assert not batch.images[:, :, 10:].any()


def test_scores_smaller_than_the_image_are_resized_to_it() -> None:
    image = torch.zeros(3, 13, 18, dtype=torch.uint8)
    image[0, :, :8] = 200
    image[1, :, 8:] = 200
    labels = Semantic(Quarter())(image)
    assert labels.shape == (13, 18)
    assert (labels[:, :7] == 0).all()
    assert (labels[:, 9:] == 1).all()


def test_each_scale_shows_the_model_a_rounded_size_and_returns_to_the_images_own() -> None:
    model = Pointwise()
    image = picture(21, 31)
    labels = Semantic(model, scales=[0.5, 1.0, 1.75])(image)
    assert [tuple(batch.images.shape[-2:]) for batch in model.seen] == [
        (10, 16),
        (21, 31),
        (37, 54),
    ]
    assert [batch.images.dtype for batch in model.seen] == [torch.uint8] * 3
    assert labels.shape == (21, 31)


def test_scaling_interpolates_between_half_pixel_centres() -> None:
    model = Pointwise()
    Semantic(model, scales=[2.0]).scores(torch.tensor([0, 100], dtype=torch.uint8).expand(3, 1, 2))
    assert model.seen[0].images[0, 0].tolist() == [[0, 25, 75, 100]] * 2


@pytest.mark.parametrize("model", [Pointwise(), Quarter()])
def test_plain_labels_reuse_a_forward_pass_bit_for_bit(model: nn.Module) -> None:
    image = picture(29, 34)
    predictor = Semantic(model)
    batch = Batch(
        image[None],
        torch.tensor([[29, 34]]),
        ["a"],
        masks=torch.zeros(1, 29, 34, dtype=torch.uint8),
    )
    assert predictor.plain
    assert torch.equal(predictor.labels(model(batch), (29, 34)), predictor(image))


def test_labels_of_a_padded_batch_lose_the_padding() -> None:
    image = picture(29, 34)
    padded = nn.functional.pad(image, (0, 6, 0, 3))
    labels = Semantic(Pointwise()).labels({"logits": padded[None].float()}, (29, 34))
    assert torch.equal(labels.long(), image.max(0)[1])


def test_only_one_view_of_the_whole_image_is_plain() -> None:
    assert not Semantic(Pointwise(), flip=True).plain
    assert not Semantic(Pointwise(), scales=[0.5]).plain
    assert not Semantic(Pointwise(), "slide", window=[8, 8]).plain
    assert not Semantic(Pointwise(), base=100).plain
    assert not Semantic(Pointwise(), pad=[100, 100]).plain
    assert not Semantic(Pointwise(), crf=DenseCRF()).plain


def test_the_models_own_logits_are_not_changed_by_averaging() -> None:
    class Constant(nn.Module):
        logits = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1).repeat(1, 1, 4, 4)

        def forward(self, batch: Batch) -> dict[str, Tensor]:
            return {"logits": self.logits}

    Semantic(Constant(), scales=[1.0, 1.0, 1.0], average="logits")(picture(4, 4))
    assert torch.equal(Constant.logits[0, :, 0, 0], torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize("training", [True, False])
def test_predicting_leaves_train_and_eval_mode_alone_and_needs_no_gradient(training: bool) -> None:
    model = nn.Sequential(Pointwise()).train(training)
    labels = Semantic(model, flip=True)(picture(8, 8))
    assert model.training == model[0].training == training
    assert labels.is_inference()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"mode": "slide"}, "inference.window=None"),
        ({"window": [8, 8]}, "no effect with mode=whole"),
        ({"mode": "slides"}, "inference.mode=slides"),
        ({"average": "mean"}, "inference.average=mean"),
        ({"stride": 0}, "inference.stride=0"),
        ({"scales": []}, "inference.scales="),
        ({"scales": [1.0, -1.0]}, "inference.scales="),
        ({"window_batch": 0}, "inference.window_batch=0"),
        ({"base": 0}, "inference.base=0"),
        ({"pad": [513]}, "inference.pad="),
        ({"pad": [8, 8], "mode": "slide", "window": [8, 8]}, "no effect with mode=slide"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_by_name(arguments: dict, named: str) -> None:
    with pytest.raises(UserError, match=named.replace("[", r"\[")):
        Semantic(Pointwise(), **arguments)


# The protocols of the papers


class Fixed(nn.Module):
    """The same logits, columns from left to right, whatever is shown."""

    def __init__(self, logits: list[list[float]]) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)  # (K, W)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        height, width = batch.images.shape[-2:]
        return {
            "logits": self.logits[None, :, None, :width].expand(len(batch.images), -1, height, -1)
        }


def test_every_average_of_a_view_and_its_mirror_image_is_the_published_formula() -> None:
    # two columns: the left one has logits (3, 0), seen mirrored (-1, 0)
    model = Fixed([[3.0, -1.0], [0.0, 0.0]])
    image = picture(2, 2)

    def left(average: str) -> Tensor:
        return Semantic(model, flip=True, average=average).scores(image)[:, 0, 0]

    softmax = torch.softmax
    here = torch.tensor([3.0, 0.0])
    mirrored = torch.tensor([-1.0, 0.0])
    assert torch.allclose(left("probabilities"), (softmax(here, 0) + softmax(mirrored, 0)) / 2)
    assert torch.allclose(left("logits"), torch.tensor([1.0, 0.0]))
    assert torch.allclose(left("summed"), softmax(torch.tensor([2.0, 0.0]), 0))
    # exp(2) against exp(0), then divided by the sum
    assert torch.allclose(left("exp"), softmax(torch.tensor([2.0, 0.0]), 0))


def test_exp_lets_a_sure_window_outvote_two_unsure_ones() -> None:
    # windows of 2 columns at 0, 1 and 2 of 4: column 1 is column 1 of the first and 0 of the
    # second. exp: class 0 has e^4 + e^0, class 1 e^0 + e^3; the softmaxes are 0.98 + 0.05 against
    # 0.02 + 0.95
    slide = {"mode": "slide", "window": [1, 2], "stride": 0.5}
    model = Fixed([[0.0, 4.0], [3.0, 0.0]])
    image = picture(1, 4)
    e = torch.tensor([1.0, 3.0, 4.0]).exp()
    one = 1.0
    third = e[1]
    fourth = e[2]
    expected = torch.stack([fourth + one, third + one]) / (fourth + third + 2 * one)
    assert torch.allclose(Semantic(model, **slide, average="exp").scores(image)[:, 0, 1], expected)
    mean = (torch.tensor([4.0, 0.0]).softmax(0) + torch.tensor([0.0, 3.0]).softmax(0)) / 2
    assert torch.allclose(Semantic(model, **slide).scores(image)[:, 0, 1], mean)
    assert expected[0] > 0.7
    assert mean[0] < 0.52


def test_exp_holds_for_logits_whose_exponential_is_beyond_single_precision() -> None:
    model = Fixed([[200.0, 200.0], [201.0, 199.0]])
    # one view alone needs no average
    labels = Semantic(model, scales=[1.0, 1.0], average="exp")(picture(3, 2))
    assert labels.tolist() == [[1, 0]] * 3


def test_summed_is_a_softmax_per_window_so_windows_weigh_alike() -> None:
    # as above, mirrored: every window gives 4 + 0 against 0 + 3 in both columns
    slide = {"mode": "slide", "window": [1, 2], "stride": 0.5, "flip": True}
    scores = Semantic(Fixed([[0.0, 4.0], [3.0, 0.0]]), **slide, average="summed").scores(
        picture(1, 4)
    )
    assert torch.allclose(scores[0], torch.tensor([4.0, 3.0]).softmax(0)[0].expand(1, 4))


@pytest.mark.parametrize(
    ("size", "scale", "base", "expected"),
    [
        ((375, 500), 1.0, 512, (384, 512)),  # PSPNet on VOC
        ((500, 375), 0.5, 512, (256, 192)),
        ((1024, 2048), 1.75, 2048, (1792, 3584)),  # on Cityscapes
        ((375, 500), 1.25, 520, (488, 650)),  # EncNet: 487.5 is rounded up
        ((333, 333), 0.75, 520, (390, 390)),
        ((3, 5000), 0.5, 520, (1, 260)),
        ((375, 500), 0.5, None, (188, 250)),  # factors of the image's own sides
    ],
)
def test_base_is_the_long_side_at_scale_1(
    size: tuple, scale: float, base: int | None, expected: tuple
) -> None:
    assert scaled_size(size, scale, base) == expected


def test_an_image_is_shown_at_base_times_scale_and_labelled_at_its_own_size() -> None:
    model = Pointwise()
    labels = Semantic(model, scales=[0.5, 1.0], base=40)(picture(15, 20))
    assert [tuple(batch.images.shape[-2:]) for batch in model.seen] == [(15, 20), (30, 40)]
    assert labels.shape == (15, 20)


def test_pad_fills_small_images_to_the_canvas_of_each_scale_and_tells_the_real_size() -> None:
    # (side - 1) * scale + 1, as in DeepLab's release: 33 -> 17 and 49, never 16 or 50; 41 is larger
    # and stays
    model = Pointwise()
    image = picture(24, 41)
    labels = Semantic(model, scales=[0.5, 1.0, 1.5], pad=[33, 33])(image)
    assert [tuple(batch.images.shape[-2:]) for batch in model.seen] == [
        (17, 20),
        (33, 41),
        (49, 62),
    ]
    assert [batch.sizes.tolist() for batch in model.seen] == [[[12, 20]], [[24, 41]], [[36, 62]]]
    assert not model.seen[1].images[:, :, 24:].any()
    assert labels.shape == (24, 41)
    assert torch.equal(Semantic(Pointwise(), pad=[33, 63])(image).long(), image.max(0)[1])


class Recorded(DenseCRF):
    """Remembers what it was given, and answers with class 2 everywhere."""

    def __call__(self, image: Tensor, probabilities: Tensor) -> Tensor:
        self.image = image
        self.probabilities = probabilities
        return nn.functional.one_hot(torch.full(image.shape[1:], 2), 3).permute(2, 0, 1).float()


@pytest.mark.parametrize("average", ["probabilities", "logits", "summed", "exp"])
def test_the_crf_sees_the_whole_image_and_probabilities_of_its_size_whatever_is_shown(
    average: str,
) -> None:
    # not the resized image, not the padded canvas, not logits
    image = picture(21, 30)
    for shown in (
        {"pad": [40, 40], "scales": [0.5, 1.0]},
        {"mode": "slide", "window": [16, 16], "base": 50},
    ):
        crf = Recorded()
        labels = Semantic(Pointwise(), **shown, average=average, crf=crf, flip=True)(image)
        assert torch.equal(crf.image, image)
        assert crf.probabilities.shape == (3, 21, 30)
        assert crf.probabilities.dtype == torch.float32
        assert torch.allclose(crf.probabilities.sum(0), torch.ones(21, 30), atol=1e-5)
        assert (labels == 2).all()


def test_a_crf_refines_the_labels_under_autocast_too() -> None:
    class Shifted(nn.Module):
        def forward(self, batch: Batch) -> dict[str, Tensor]:
            # the network sees the edge 3 pixels late
            bright = (batch.images[:, :1].float() / 128).roll(3, -1)
            return {"logits": torch.cat([1 - bright, bright], 1).bfloat16() / 2}

    image = torch.zeros(3, 20, 30, dtype=torch.uint8)
    image[:, :, 12:27] = 200
    truth = (image[0] > 0).to(torch.uint8)
    assert not torch.equal(Semantic(Shifted())(image), truth)
    for average in ("probabilities", "logits"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(Semantic(Shifted(), average=average, crf=DenseCRF())(image), truth)


# From the command line


def predictor(*overrides: str) -> Semantic:
    cfg, _ = compose_config(overrides)
    return parts.predictor(check(cfg), Pointwise())


@pytest.mark.parametrize(
    "name",
    [
        "whole",
        "deeplab_crf",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("slide", "multi_scale", "pspnet", "encnet", "deeplab")
        ),
    ],
)
def test_every_preset_can_be_built_and_switched_from_the_command_line(name: str) -> None:
    node = f"inference={name}"
    assert (predictor(node).crf is not None) == (name == "deeplab_crf")
    for off in ("eval.crf=false", "inference.crf=null"):
        assert predictor(node, off).crf is None
    assert vars(predictor(node, "eval.crf=true").crf) == vars(DenseCRF())
    changed = predictor(
        node, "inference.base=100", "inference.pad=null", "eval.scales=[1,2]", "eval.flip=true"
    )
    assert (changed.base, changed.pad, changed.scales, changed.flip) == (
        100,
        None,
        [1.0, 2.0],
        True,
    )


def test_eval_crf_switches_the_values_of_the_config_on_and_off() -> None:
    # off while training
    experiment = [
        "inference=deeplab_crf",
        "inference.crf.color_std=5",
        "eval.crf=false",
    ]
    assert predictor(*experiment).crf is None
    on = predictor(*experiment[:2], "eval.crf=true").crf
    assert on is not None
    assert on.color_std == 5
    assert on.position_std == 67
    assert (
        predictor("inference.crf={_target_: segtrain.inference.crf.DenseCRF, smooth_std: 3}").crf
        is not None
    )


def test_a_wrong_value_of_the_crf_is_named() -> None:
    with pytest.raises(UserError, match=r"inference.crf.colour_std.*color_std"):
        predictor("inference=deeplab_crf", "+inference.crf.colour_std=5")
    with pytest.raises(UserError, match=r"inference.crf.smooth_std=0"):
        predictor("inference=deeplab_crf", "inference.crf.smooth_std=0.0")


def test_the_presets_are_the_published_protocols() -> None:
    pspnet = predictor("inference=pspnet")
    encnet = predictor("inference=encnet")
    deeplab = predictor("inference=deeplab")
    scales = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    assert (pspnet.scales, pspnet.flip, pspnet.base, pspnet.average) == (
        scales,
        True,
        512,
        "summed",
    )
    assert window_starts(1000, 473, pspnet.stride)[1] == 316
    assert window_starts(1000, 713, pspnet.stride)[1] == 287
    assert (encnet.scales, encnet.flip, encnet.base, encnet.average) == (scales, True, 520, "exp")
    assert encnet.window == [480, 480]
    assert window_starts(900, 480, encnet.stride)[1] == 320
    assert (deeplab.mode, deeplab.pad, deeplab.plain) == ("whole", [513, 513], False)
    assert predictor("inference=whole").plain
