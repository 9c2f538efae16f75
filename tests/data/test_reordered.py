"""A data set with its classes in the order of another one."""

from __future__ import annotations

import numpy as np
import torch

from segtrain.data.base import BaseDataset
from segtrain.data.reordered import Reordered, in_order
from segtrain.structures.instances import Instances, Segments
from segtrain.structures.labels import LabelMap
from segtrain.structures.samples import IGNORE, Sample, Scene

LABELS = LabelMap(
    "test", ("a", "b", "c"), ((1, 1, 1), (2, 2, 2), (3, 3, 3)), {7: 0, 8: 1, 9: 2, 6: 1, 0: IGNORE}
)
NAMES = ["c", "a", "b"]
IMAGE = np.zeros((2, 2, 3), np.uint8)
MASK = np.array([[0, 1], [2, IGNORE]], np.uint8)
RENUMBERED = [[1, 2], [0, IGNORE]]


class Scenes(BaseDataset):
    """One image with a mask, and a scene as its truth."""

    def __init__(self) -> None:
        super().__init__(LABELS, ["x"])

    def __getitem__(self, index: int) -> Sample:
        return Sample("x", IMAGE, MASK)

    def scored(self, index: int) -> Sample:
        return Sample("x", IMAGE, MASK, truth=Scene(MASK, MASK * 2))


class Objects(BaseDataset):
    """One image with three objects, of which the truth says more."""

    labelled_with = "instances"

    def __init__(self) -> None:
        super().__init__(LABELS, ["x"])

    def __getitem__(self, index: int) -> Sample:
        masks = torch.zeros(3, 2, 2, dtype=torch.bool)
        boxes = torch.zeros(3, 4)
        return Sample("x", IMAGE, instances=Instances(boxes, torch.tensor([2, 0, 1]), masks))

    def scored(self, index: int) -> Sample:
        sample = self[index]
        truth = Segments((2, 2), np.array([2, 2, 0]), np.zeros((3, 4)), None, np.zeros(3))
        return Sample("x", IMAGE, instances=sample.instances, truth=truth)


def test_masks_and_scenes_hold_the_train_ids_of_the_names() -> None:
    images = in_order(Scenes(), NAMES)
    assert images is not None
    assert images.labels.names == ("c", "a", "b")
    assert images.labels.colors == ((3, 3, 3), (1, 1, 1), (2, 2, 2))
    sample = images.scored(0)
    assert images[0].mask.tolist() == sample.mask.tolist() == RENUMBERED
    assert isinstance(sample.truth, Scene)
    assert sample.truth.mask.tolist() == RENUMBERED
    assert sample.truth.instances.tolist() == (MASK * 2).tolist()
    assert images.target(0).mask.tolist() == RENUMBERED
    assert images.truth(0).mask.tolist() == RENUMBERED


def test_raw_values_of_files_stay() -> None:
    """7, 8, 9 are a, b, c in any order; of b's two values the first listed one is written."""
    images = Reordered(Scenes(), NAMES)
    raw = np.array([[7, 8], [9, 0]])
    assert images.labels.encode(raw, "mask").tolist() == RENUMBERED
    assert images.encode_prediction(raw, "prediction").tolist() == RENUMBERED
    assert images.labels.decode(np.array(RENUMBERED, np.uint8)).tolist() == raw.tolist()


def test_objects_have_the_labels_of_the_names() -> None:
    images = Reordered(Objects(), NAMES)
    assert images.labelled_with == "instances"
    assert images[0].instances.labels.tolist() == [0, 1, 2]
    assert images[0].instances.labels.dtype == torch.int64
    assert images.target(0).instances.labels.tolist() == [0, 1, 2]
    assert images.truth(0).labels.tolist() == [0, 0, 1]
    assert images.scored(0).truth.labels.dtype == np.int64


def test_the_same_order_is_the_same_set_and_other_classes_are_none() -> None:
    images = Scenes()
    assert in_order(images, ["a", "b", "c"]) is images
    assert in_order(images, ["a", "b"]) is None
    assert in_order(images, ["a", "b", "d"]) is None
