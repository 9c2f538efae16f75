"""Any transform of albumentations by its name in `augment.extra`.

Image, masks and instances stay in step, equal seeds give equal bytes whoever asks, and what cannot
stand there is refused by name before a run begins.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commandline import refused, trained

from segtrain.data.shorter_edge import ShorterEdge
from segtrain.data.transforms import Augment
from segtrain.errors import UserError
from segtrain.structures.instances import Instances
from segtrain.structures.samples import IGNORE, Sample

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
        ([{"CLAHE": 3}], "CLAHE needs its arguments by name"),
        ([{"CLAHE": {}, "Blur": {}}], "is no transform; write"),
        ([7], "7 is no transform; write"),
    ],
)
def test_what_cannot_stand_there_is_refused_by_name(extra: list[Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        plain(extra)


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
