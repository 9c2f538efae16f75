"""The inference protocols on models whose scores are known functions of the pixels."""

import pytest
import torch
from torch import Tensor, nn

from segtrain.contracts import Batch
from segtrain.errors import UserError
from segtrain.inference.semantic import Semantic, window_starts


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


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
@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_sliding_a_pointwise_model_equals_showing_the_whole_image(size: tuple[int, int], average: str) -> None:
    image = picture(*size)
    slide = Semantic(Pointwise(), "slide", window=[32, 32], stride=0.6, average=average, window_batch=3)
    whole = Semantic(Pointwise(), average=average)
    assert torch.allclose(slide.scores(image), whole.scores(image), atol=1e-6)
    assert torch.equal(slide(image), whole(image))


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_flipping_changes_nothing_for_a_pointwise_model(mode: str) -> None:
    image, window = picture(40, 51), [24, 32] if mode == "slide" else None
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
    slide = Semantic(Column(), "slide", window=[4, 4], stride=0.5, average="logits", window_batch=window_batch)
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
def test_an_image_smaller_than_the_window_is_padded_at_the_right_and_its_size_is_told(flip: bool) -> None:
    model, image = Pointwise(), picture(10, 40)
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
    assert (labels[:, :7] == 0).all() and (labels[:, 9:] == 1).all()


def test_each_scale_shows_the_model_a_rounded_size_and_returns_to_the_images_own() -> None:
    model, image = Pointwise(), picture(21, 31)
    labels = Semantic(model, scales=[0.5, 1.0, 1.75])(image)
    assert [tuple(batch.images.shape[-2:]) for batch in model.seen] == [(10, 16), (21, 31), (37, 54)]
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
    batch = Batch(image[None], torch.tensor([[29, 34]]), torch.zeros(1, 29, 34, dtype=torch.uint8), ["a"])
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
    ],
)
def test_arguments_that_make_no_sense_are_refused_by_name(arguments: dict, named: str) -> None:
    with pytest.raises(UserError, match=named.replace("[", r"\[")):
        Semantic(Pointwise(), **arguments)
