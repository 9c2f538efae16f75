"""The overlap-tile strategy: tiles and turned views give the scores of the whole image."""

import pytest
import torch

from segtrain.errors import UserError
from segtrain.inference.crf import DenseCRF
from segtrain.inference.semantic import Semantic
from segtrain.inference.tile import OverlapTile, smallest_tile, tile_starts
from segtrain.models.unet import UNet


def picture(height, width):
    return torch.randint(
        0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return UNet(3, 1, "valid", "none", width=4).eval()


@pytest.mark.parametrize(
    ("size", "tile", "batch"),
    [
        ((33, 51), [36, 52], 1),
        ((5, 120), [36, 52], 1),
        ((33, 51), [20, 20], 5),
        ((1, 1), [20, 20], 5),
    ]
    + [
        pytest.param(size, tile, batch, marks=pytest.mark.slow)
        for size in ((100, 70), (116, 52))
        for tile, batch in (([36, 52], 1), ([20, 20], 5))
    ],
)
def test_tiles_give_the_scores_of_the_whole_image(model, size, tile, batch):
    image = picture(*size)
    whole = Semantic(model).scores(image)
    tiled = OverlapTile(model, tile, batch)
    torch.testing.assert_close(tiled.scores(image), whole, rtol=0, atol=1e-5)
    assert (tiled(image) == Semantic(model)(image)).float().mean() > 0.999
    # the scores are not one number everywhere
    assert size == (1, 1) or whole.std(dim=(1, 2)).min() > 1e-3


def test_tiles_begin_where_the_networks_pooling_does():
    """Multiples of 16, so 384 apart for the paper's 388; no tile without a pixel of its own."""
    assert tile_starts(512, 388) == [0, 384]
    assert tile_starts(388, 388) == [0]
    assert tile_starts(389, 388) == [0, 384]
    assert tile_starts(772, 388) == [0, 384]
    assert tile_starts(773, 388) == [0, 384, 768]
    assert tile_starts(1, 20) == [0]


def test_tiles_side_by_side_as_in_the_figure_would_not_give_the_whole_images_scores(model):
    """That is why tiles overlap by 4: 8 pixels further the same pixels are pooled with others."""
    x = torch.rand(1, 1, 220, 220, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        here = model.tile(x[..., 16:, 16:])
        there = model.tile(x[..., 8:212, 8:212])
    assert (here[..., :12, :12] - there[..., 8:, 8:]).abs().max() > 1e-3
    with torch.no_grad():
        there = model.tile(x[..., :204, :204])
    torch.testing.assert_close(here[..., :4, :4], there[..., 16:, 16:], rtol=0, atol=1e-5)


def test_a_small_image_gets_a_small_tile(model):
    assert [smallest_tile(side) for side in (1, 20, 21, 36, 388, 512)] == [20, 20, 36, 36, 388, 516]
    seen = []
    hook = model.backbone[0].register_forward_pre_hook(
        lambda module, inputs: seen.append(tuple(inputs[0].shape))
    )
    OverlapTile(model)(picture(30, 700))
    hook.remove()
    assert seen == [(1, 1, 36 + 184, 572)] * 2


def test_eight_views_are_the_mean_over_turns_and_mirrored_turns(model):
    image = picture(40, 24)
    tiled = OverlapTile(model, views=8)
    each = []
    for mirror in (False, True):
        for turns in range(4):
            seen = image.flip(2) if mirror else image
            for _ in range(turns):
                seen = seen.transpose(1, 2).flip(1)  # a quarter turn
            scores = Semantic(model).scores(seen)
            for _ in range(turns):
                scores = scores.flip(1).transpose(1, 2)
            each.append(scores.flip(2) if mirror else scores)
    torch.testing.assert_close(tiled.scores(image), torch.stack(each).mean(0), rtol=0, atol=1e-5)
    seven = OverlapTile(model, views=7).scores(image)
    torch.testing.assert_close(seven, torch.stack(each[1:]).mean(0), rtol=0, atol=1e-5)
    assert (each[0] - each[1]).abs().max() > 1e-3


def test_the_mean_over_eight_views_turns_with_the_image(model):
    image = picture(40, 24)
    tiled = OverlapTile(model, views=8)
    turned = tiled.scores(torch.rot90(image, 1, (1, 2)))
    torch.testing.assert_close(
        turned, torch.rot90(tiled.scores(image), 1, (1, 2)), rtol=0, atol=1e-5
    )


def test_it_is_a_predictor_that_needs_its_own_passes(model):
    tiled = OverlapTile(model)
    labels = tiled(picture(30, 40), "slice 7")
    assert tiled.plain is False
    assert labels.shape == (30, 40)
    assert labels.dtype == torch.uint8
    assert (tiled.mode, OverlapTile(model, views=7).mode) == ("tile", "tile_7_views")


def test_a_crf_gets_the_image_and_the_mean_probabilities(model):
    class Contrary(DenseCRF):
        def __call__(self, image, probabilities):
            self.seen = image, probabilities
            return -probabilities

    image = picture(30, 40)
    crf = Contrary()
    labels = OverlapTile(model, views=8, crf=crf)(image)
    assert torch.equal(crf.seen[0], image)
    assert torch.equal(crf.seen[1], OverlapTile(model, views=8).scores(image))
    assert torch.equal(labels, crf.seen[1].argmin(0).to(torch.uint8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"tile": [388, 384]},
            r"inference\.tile=\[388, 384\]: give \[height, width\] of 16k \+ 4 pixels",
        ),
        ({"tile": [4, 388]}, r"inference\.tile=\[4, 388\]"),
        ({"tile": [388]}, r"inference\.tile=\[388\]"),
        ({"batch": 0}, r"inference\.batch=0"),
        ({"views": 6}, r"inference\.views=6: use 1, 7 or 8"),
    ],
)
def test_other_values_are_refused_by_name(model, arguments, message):
    with pytest.raises(UserError, match=message):
        OverlapTile(model, **arguments)


def test_a_network_with_padding_is_refused():
    with pytest.raises(
        UserError, match=r"UNet pads its convolutions.*inference=whole, or model=unet_paper"
    ):
        OverlapTile(UNet(2, width=1))
