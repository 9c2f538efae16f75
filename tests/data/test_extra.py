"""Any transform of albumentations by its name in `augment.extra`.

Image, masks and instances stay in step, equal seeds give equal bytes whoever asks, and what cannot
stand there is refused by name before a run begins: a name, an argument, a value, another size than
that of the crop (padded, cut, scaled, turned on its side; of whole images too), a label that the
data set does not have, a pixel that would belong to every object. What only one view shows is
refused there, by name too.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commandline import refused, trained

from segtrain.config.compose import check, compose_config
from segtrain.data.base import BaseDataset
from segtrain.data.extra import FILLS as FILL_NAMES
from segtrain.data.loader import train_loader
from segtrain.data.sampler import StreamSampler
from segtrain.data.shorter_edge import ShorterEdge
from segtrain.data.transforms import Augment
from segtrain.errors import UserError
from segtrain.structures.instances import Instances
from segtrain.structures.labels import LabelMap
from segtrain.structures.samples import IGNORE, Batch, Sample

# By name, with p=1 unless the transform has none; all that keep an image's size and form.
NAMES = (
    "AdvancedBlur",
    "Blur",
    "Defocus",
    "GaussianBlur",
    "GlassBlur",
    "MedianBlur",
    "MotionBlur",
    "ZoomBlur",
    "ChannelDropout",
    "CoarseDropout",
    "MaskDropout",
    "Erasing",
    "GridDropout",
    "PixelDropout",
    "ElasticTransform",
    "GridDistortion",
    "OpticalDistortion",
    "ThinPlateSpline",
    "HorizontalFlip",
    "VerticalFlip",
    "Rotate",
    "SafeRotate",
    "Affine",
    "Perspective",
    "Morphological",
    "CLAHE",
    "AdditiveNoise",
    "AutoContrast",
    "ChannelShuffle",
    "ChromaticAberration",
    "ColorJitter",
    "Downscale",
    "Emboss",
    "Equalize",
    "FancyPCA",
    "GaussNoise",
    "HueSaturationValue",
    "ISONoise",
    "Illumination",
    "ImageCompression",
    "InvertImg",
    "MultiplicativeNoise",
    "PlanckianJitter",
    "PlasmaBrightnessContrast",
    "PlasmaShadow",
    "Posterize",
    "RGBShift",
    "RandomBrightnessContrast",
    "RandomFog",
    "RandomGamma",
    "RandomGravel",
    "RandomRain",
    "RandomShadow",
    "RandomSnow",
    "RandomSunFlare",
    "RandomToneCurve",
    "RingingOvershoot",
    "SaltAndPepper",
    "Sharpen",
    "ShotNoise",
    "Solarize",
    "Spatter",
    "Superpixels",
    "ToGray",
    "ToSepia",
    "UnsharpMask",
    "NoOp",
    "RandomGridShuffle",
)
# What keeps a square crop of 48 pixels.
SQUARE: dict[str, dict[str, Any]] = {
    "RandomRotate90": {},
    "D4": {},
    "Transpose": {},
    "SquareSymmetry": {},
    "RandomResizedCrop": {"size": [48, 48]},
    "RandomSizedCrop": {"min_max_height": [20, 40], "size": [48, 48]},
    "RandomCrop": {"height": 48, "width": 48},
    "CenterCrop": {"height": 48, "width": 48},
    "Resize": {"height": 48, "width": 48},
    "PadIfNeeded": {"min_height": 32, "min_width": 48},
    "LongestMaxSize": {"max_size": 48},
}
# A few in `make test`, all of them in `make test-all`.
QUICK = ("CLAHE", "HorizontalFlip", "Affine", "GaussNoise")


def sample() -> Sample:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (48, 64, 3), np.uint8)
    mask = rng.choice(np.array([1, 3, IGNORE], np.uint8), (6, 8)).repeat(8, 0).repeat(8, 1)
    return Sample("a", image, mask)


def plain(extra: list[Any], **arguments: Any) -> Augment:
    """What crops the sample to itself, and adds `extra`."""
    return Augment((48, 64), scale=(1.0, 1.0), flip=0.0, extra=extra, **arguments)


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_labels_stay_labels_and_equal_seeds_are_equal_bytes(name: str) -> None:
    arguments = {} if name == "NoOp" else {"p": 1.0}
    first = plain([{name: arguments}])
    second = plain([{name: arguments}])
    for seed in range(3):
        shown = first(sample(), seed)
        again = second(sample(), seed)
        assert shown.image.tobytes() == again.image.tobytes()
        assert shown.mask.tobytes() == again.mask.tobytes()
        assert shown.image.shape == (48, 64, 3)
        assert shown.image.dtype == np.uint8
        assert set(np.unique(shown.mask).tolist()) <= {1, 3, IGNORE}


def test_there_are_sixty_and_more() -> None:
    assert len(NAMES) == len(set(NAMES)) >= 60


@pytest.mark.parametrize("name", SQUARE)
def test_what_keeps_the_size_of_the_crop_is_taken(name: str) -> None:
    augment = Augment((48, 48), extra=[{name: {"p": 1.0, **SQUARE[name]}}])
    augment.check_labels(4, "masks")
    augment.check_labels(2, "instances")
    shown = augment(sample(), 5)
    assert shown.image.shape == (48, 48, 3)
    assert shown.mask is not None
    assert shown.mask.shape == (48, 48)
    assert set(np.unique(shown.mask).tolist()) <= {1, 3, IGNORE}
    assert augment(sample(), 5).image.tobytes() == shown.image.tobytes()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("PadIfNeeded", {"min_height": 64, "min_width": 64}),
        ("PadIfNeeded", {"min_height": 32, "min_width": 64}),
        ("LongestMaxSize", {"max_size": 81}),
        ("Resize", {"height": 67, "width": 81}),
        ("RandomResizedCrop", {"size": [67, 81]}),
        ("RandomSizedCrop", {"min_max_height": [20, 30], "size": [67, 81]}),
        ("RandomScale", {}),
        ("RandomCropFromBorders", {}),
    ],
)
def test_what_changes_the_size_of_the_crop_is_refused(name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"extra: {name} makes an image of another size or form"):
        Augment((32, 32), extra=[{name: arguments}])


@pytest.mark.parametrize("name", ["RandomRotate90", "D4", "Transpose", "SquareSymmetry"])
def test_what_lays_a_crop_on_its_side_is_refused_where_it_is_no_square(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} .*64 x 48 x 3 uint8 of 48 x 64 x 3 uint8"):
        plain([name])


@pytest.mark.parametrize(
    "step",
    [
        {"LongestMaxSize": {"max_size": 81}},
        {"Resize": {"height": 67, "width": 81}},
        {"PadIfNeeded": {"min_height": 64, "min_width": 64}},
        "RandomRotate90",
    ],
)
def test_what_changes_the_size_of_whole_images_is_refused(step: Any) -> None:
    with pytest.raises(UserError, match="makes an image of another size or form"):
        ShorterEdge((48,), 64, extra=[step])


def test_a_size_that_one_view_only_has_is_refused_there_by_name() -> None:
    small = {"PadIfNeeded": {"min_height": 50, "min_width": 50, "p": 1.0}}
    edges = ShorterEdge((48,), 64, extra=[{"Blur": {}}, small])
    with pytest.raises(UserError, match="PadIfNeeded makes an image of another size or form"):
        edges(sample(), 0)
    assert ShorterEdge((50,), 70, extra=[small])(sample(), 0).image.shape == (50, 67, 3)


def objects() -> Sample:
    masks = torch.zeros(2, 48, 64, dtype=torch.bool)
    masks[0, 0:24, 0:32] = True
    masks[1, 20:48, 40:64] = True
    boxes = torch.tensor([[0.0, 0, 32, 24], [40, 20, 64, 48]])
    return Sample("a", sample().image, instances=Instances(boxes, torch.tensor([5, 6]), masks))


FILLS: list[tuple[str, dict[str, Any]]] = [
    ("Affine", {"fill_mask": 3, "rotate": [30, 30]}),
    ("Rotate", {"fill_mask": 255}),
    ("CoarseDropout", {"fill_mask": 3}),
    ("GridDropout", {"fill_mask": 1}),
    ("Erasing", {"fill_mask": 3}),
    ("XYMasking", {"fill_mask": 3, "num_masks_x": 3, "mask_x_length": 9}),
    ("CropAndPad", {"fill_mask": 3, "px": 4}),
    ("MaskDropout", {"fill_mask": 3}),
    ("PixelDropout", {"mask_drop_value": 3}),
]


@pytest.mark.parametrize(("name", "arguments"), FILLS)
def test_new_pixels_have_labels_of_the_data_set_and_are_of_no_object(
    name: str, arguments: dict[str, Any]
) -> None:
    augment = plain([{name: {"p": 1.0, **arguments}}])
    key, label = next((key, arguments[key]) for key in FILL_NAMES if key in arguments)
    told = f"augment.extra: {name}.{key}={label}: "
    with pytest.raises(UserError, match=told + "new pixels would belong to every object"):
        augment.check_labels(80, "instances")
    augment.check_labels(4, "masks")
    shown = augment(sample(), 0)
    assert set(np.unique(shown.mask).tolist()) <= {1, 3, IGNORE, label}
    if label == 3:
        with pytest.raises(UserError, match=told + "the data set has 3 classes; give a train id"):
            augment.check_labels(3, "masks")
    if name != "MaskDropout":
        with pytest.raises(UserError, match=name) if label > 1 else nullcontext():
            augment(objects(), 0)
        none = plain([{name: {"p": 1.0, **arguments, key: 0}}])
        none.check_labels(80, "instances")
        left = none(objects(), 0).instances
        assert left is not None
        assert int(left.masks.view(torch.uint8).max()) == 1


def test_mask_dropout_takes_regions_of_a_label_map_away_and_is_refused_for_objects() -> None:
    mask = np.zeros((48, 64), np.uint8)
    mask[4:8, 4:8] = 2
    augment = plain([{"MaskDropout": {"p": 1.0}}])
    shown = augment(Sample("a", sample().image, mask), 0)
    assert (shown.mask == np.where(mask == 2, IGNORE, 0)).all()
    assert not shown.image[4:8, 4:8].any()
    with pytest.raises(UserError, match=r"MaskDropout cannot stand here: .*'mask'"):
        augment.check_labels(80, "instances")


def test_a_padding_label_is_one_of_the_data_set() -> None:
    augment = Augment((48, 64), padding_label=3)
    augment.check_labels(4, "masks")
    augment.check_labels(1, "instances")  # it is in no object
    Augment((48, 64), padding_label=IGNORE).check_labels(2, "masks")
    with pytest.raises(UserError, match=r"augment.padding_label=3: the data set has 3 classes"):
        augment.check_labels(3, "masks")


def test_a_mirror_moves_image_mask_and_objects_together() -> None:
    source = sample()
    shown = plain(["HorizontalFlip", {"HorizontalFlip": None}, {"HorizontalFlip": {"p": 1}}])
    # Two are drawn with p = 0.5 each, the third is certain: so the sum is one of two.
    for seed in range(6):
        made = shown(source, seed)
        whole = [source.image, source.image[:, ::-1]]
        which = [i for i, image in enumerate(whole) if (made.image == image).all()]
        assert len(which) == 1
        assert (made.mask == [source.mask, source.mask[:, ::-1]][which[0]]).all()
    masks = torch.zeros(2, 48, 64, dtype=torch.bool)
    masks[0, 2:5, 1:4] = True
    masks[1, 40:48, 60:64] = True
    boxes = torch.tensor([[1.0, 2, 4, 5], [60, 40, 64, 48]])
    objects = Sample("a", source.image, instances=Instances(boxes, torch.tensor([0, 1]), masks))
    made = plain([{"HorizontalFlip": {"p": 1.0}}])(objects, 0)
    assert made.instances is not None
    assert made.instances.boxes.tolist() == [[60, 2, 63, 5], [0, 40, 4, 48]]
    assert made.instances.masks.equal(masks.flip(-1))
    edges = ShorterEdge((48,), 64, flip=0.0, extra=[{"HorizontalFlip": {"p": 1.0}}])(objects, 0)
    assert edges.instances is not None
    assert edges.instances.boxes.tolist() == made.instances.boxes.tolist()


def test_new_pixels_are_the_mean_and_of_no_label_and_lost_objects_are_dropped() -> None:
    source = sample()
    right = [{"Affine": {"translate_px": [32, 32], "p": 1.0}}]
    made = plain(right)(source, 0)
    assert (made.mask[32:, 32:] == source.mask[:16, :32]).all()
    assert (made.mask[:32] == IGNORE).all()
    assert (made.image[:32] == (124, 116, 104)).all()
    masks = torch.zeros(2, 48, 64, dtype=torch.bool)
    masks[0, 0:4, 0:4] = True
    masks[1, 20:48, 40:64] = True  # is moved out
    boxes = torch.tensor([[0.0, 0, 4, 4], [40, 20, 64, 48]])
    objects = Sample("a", source.image, instances=Instances(boxes, torch.tensor([5, 6]), masks))
    left = plain(right)(objects, 0).instances
    assert left is not None
    assert left.labels.tolist() == [5]
    assert left.boxes.tolist() == [[32, 32, 36, 36]]
    assert left.dropped == 1
    empty = Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), masks[:0])
    none = plain(right)(Sample("a", source.image, instances=empty), 0).instances
    assert none is not None
    assert len(none.labels) == 0


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ([{"CLAHEE": {}}], "albumentations has no transform `CLAHEE`.*Did you mean `CLAHE`"),
        ([{"CLAHE": {"clip_limt": 2}}], "CLAHE has no argument `clip_limt`.*Did you mean `clip_l"),
        ([{"CLAHE": {"p": "often"}}], "CLAHE.p=often: give a probability"),
        ([{"Affine": {"scale": {"x": 1}}}], r"Affine.scale: arguments are numbers, text and lists"),
        ([{"OneOf": {"transforms": []}}], "no transform `OneOf`"),
        ([{"Resize": {"height": 8, "width": 8}}], "Resize makes an image of another size or form"),
        ([{"Normalize": {}}], "Normalize makes an image of another size or form"),
        ([{"Rotate": {"mask_interpolation": 1}}], "Rotate makes labels that there were not"),
        ([{"FDA": {}}], "FDA (cannot stand here|refuses these values)"),
        ([{"Lambda": {}}], "no transform `Lambda`"),
        ([{"Affine": {"fill_mask": 256}}], r"Affine.fill_mask=256: give a train id, or 255"),
        ([{"Affine": {"fill_mask": 1.5}}], r"Affine.fill_mask=1.5: give a train id"),
        ([{"Affine": {"fill_mask": [1]}}], r"Affine.fill_mask=\[1\]: give a train id"),
        ([{"CLAHE": 3}], "CLAHE needs its arguments by name"),
        ([{"CLAHE": {}, "Blur": {}}], "is no transform; write"),
        ([7], "7 is no transform; write"),
    ],
)
def test_what_cannot_stand_there_is_refused_by_name(extra: list[Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        plain(extra)


class Six(BaseDataset):
    """Six copies of the sample."""

    def __init__(self) -> None:
        super().__init__(LabelMap.load("voc"), [f"{i}" for i in range(6)])

    def __getitem__(self, index: int) -> Sample:
        return sample()


def bytes_of(batches: list[Batch]) -> list[tuple[bytes, bytes]]:
    """Image and mask of each sample in order."""
    found = []
    for batch in batches:
        assert batch.masks is not None
        for image, mask in zip(batch.images, batch.masks, strict=True):
            found.append((image.numpy().tobytes(), mask.numpy().tobytes()))
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # four workers on two cores
def test_sixty_together_give_the_same_bytes_to_all_workers_and_ranks_and_after_a_resume() -> None:
    augment = plain([name if name == "NoOp" else {name: {"p": 0.2}} for name in NAMES])

    def of(start: int = 0, rank: int = 0, ranks: int = 1, workers: int = 0) -> list[Any]:
        order = StreamSampler(6, 4, 7, start, 6, rank, ranks)
        return bytes_of(list(train_loader(Six(), augment, 7, order, workers)))

    alone = of()
    assert len(set(alone)) == 24  # no two views are equal
    assert of(workers=2) == alone
    assert of(workers=4) == alone
    assert of(start=3) == alone[12:]
    halves = [of(rank=rank, ranks=2) for rank in range(2)]
    steps = range(0, 12, 2)
    assert [view for step in steps for half in halves for view in half[step : step + 2]] == alone


def test_a_bare_name_is_taken_on_the_command_line() -> None:
    cfg, _ = compose_config(["augment.extra=[CLAHE]"])
    assert check(cfg).augment["extra"] == ["CLAHE"]
    cfg, _ = compose_config(["augment.extra=[CLAHE, {Affine: {rotate: [-10, 10]}}]"])
    assert check(cfg).augment["extra"] == ["CLAHE", {"Affine": {"rotate": [-10, 10]}}]
    with pytest.raises(UserError, match=r"extra: .*, got 'CLAHE'. A list of one is .* \[CLAHE\]."):
        check(compose_config(["augment.extra=CLAHE"])[0])


SMALL = [
    "dataset.train=6",
    "dataset.val=2",
    "dataset.size=[32,32]",
    "dataset.crop=[32,32]",
    "model=unet",
    "model.width=16",
    "model.norm=group",
    "model.dropout=0",
    "train.steps=3",
    "train.batch_size=2",
    "train.precision=fp32",
    "train.device=cpu",
    "train.threads=1",
    "log.every=1",
    "log.images=0",
    "writer=[]",
    "augment.extra=[{GaussNoise: {p: 1}}, {Affine: {rotate: [-20, 20], p: 0.7}}, "
    "{CLAHE: {p: 0.3}}]",
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # four workers on two cores
def test_any_number_of_workers_makes_the_same_bytes_and_two_processes_the_same_loss(
    tmp_path: Path,
) -> None:
    def of(name: str, *words: str) -> str:
        run = trained(tmp_path / name, *SMALL, *words)
        return hashlib.sha256((run / "metrics.jsonl").read_bytes()).hexdigest()

    alone = of("alone", "train.workers=0")
    assert of("two", "train.workers=2") == alone
    assert of("four", "train.workers=4") == alone
    of("both", "train.processes=2")

    def losses(name: str) -> list[float]:
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines if '"train"' in line]

    assert losses("both")[0] == pytest.approx(losses("alone")[0], rel=1e-5)


def test_a_misspelt_argument_ends_with_2_before_anything_is_made(tmp_path: Path) -> None:
    run = tmp_path / "run"
    refused(
        2,
        ["augment.extra: CLAHE has no argument `clip_limt`"],
        "segtrain",
        f"hydra.run.dir={run}",
        "augment.extra=[{CLAHE: {clip_limt: 2}}]",
    )
    assert not run.exists()


def test_a_label_that_the_data_set_lacks_ends_with_2_before_anything_is_made(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    refused(
        2,
        ["augment.extra: Affine.fill_mask=6: the data set has 6 classes; give a train id from 0"],
        "segtrain",
        f"hydra.run.dir={run}",
        *SMALL[:-1],
        "augment.extra=[{Affine: {fill_mask: 6}}]",
    )
    assert not run.exists()
